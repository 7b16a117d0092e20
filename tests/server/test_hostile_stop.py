"""Stopping, killing and robbing the daemon while clients are at work."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.server.raw import (
    BEGIN,
    COMMIT,
    GET,
    LOOPS,
    OK,
    PING,
    TXN_ID,
    VALUE,
    Raw,
    fill,
    frame,
    put,
    scan,
    settled,
    until,
)
from tests.support.daemon import Daemon

pytestmark = pytest.mark.parametrize("loop", LOOPS)


def test_what_was_acknowledged_before_sigterm_is_there_afterwards(tmp_db: Path, loop: str) -> None:
    with Daemon(tmp_db, loop=loop) as daemon:
        writers = [Raw(daemon.socket) for _ in range(8)]
        for raw in writers:
            raw.ping()
        for at, raw in enumerate(writers):
            raw.send(*(put(b"%d/%05d" % (at, number), b"v" * 50) for number in range(3000)))
        # The first acknowledgement shows that requests are in flight.
        assert writers[0].answer().code == OK
        daemon.send_signal(signal.SIGTERM)
        acknowledged = []
        for at, raw in enumerate(writers):
            count = 0 if at else 1
            while (got := raw.frame()) is not None:  # fails on half a frame
                assert got == (OK, b"")
                count += 1
            acknowledged.append(count)
            raw.close()
        assert daemon.wait() == 0
    with Daemon(tmp_db, loop=loop) as daemon, Raw(daemon.socket) as raw:
        for at, count in enumerate(acknowledged):
            rows = raw.call(scan(prefix=b"%d/" % at, values=False)).rows
            # In order, without a gap, and at least what was acknowledged.
            assert rows == [b"%d/%05d" % (at, number) for number in range(len(rows))]
            assert len(rows) >= count


def test_sigterm_amid_scans_reads_and_transactions(tmp_db: Path, loop: str) -> None:
    with contextlib.ExitStack() as stack, Daemon(tmp_db, loop=loop) as daemon:
        with Raw(daemon.socket) as raw:
            fill(raw, ((b"row/%06d" % at, b"x" * 100) for at in range(20_000)))
            fill(raw, ((b"big/%d" % at, bytes(1 << 20)) for at in range(8)))
        scanner, reader, holder, cursor, quiet, half = (stack.enter_context(Raw(daemon.socket)) for _ in range(6))
        quiet.ping()
        txn = holder.begin()
        holder.call(put(b"never", b"1", txn=txn))
        assert cursor.call(scan(prefix=b"row/", window=1)).end["cursor"]
        half.send(put(b"half", b"a frame")[:-3])
        quiet.ping()
        scanner.send(scan(prefix=b"row/"))
        reader.send(frame(GET, b"big/3") * 20)
        assert scanner.read()
        assert reader.read()
        daemon.send_signal(signal.SIGTERM)
        # What was received is answered in full, as long as it is read.
        assert scanner.answer().end["rows"] == 20_000
        assert scanner.at_end()
        while (got := reader.frame()) is not None:
            assert got == (VALUE, bytes(1 << 20))
        for raw in (holder, cursor, quiet, half):
            assert raw.at_end()
        assert daemon.wait() == 0
        assert not daemon.socket.exists()
    with Daemon(tmp_db, loop=loop) as daemon, Raw(daemon.socket) as raw:
        assert raw.call(frame(GET, b"never", txn=0)).code == OK
        assert raw.call(frame(GET, b"half", txn=0)).code == OK


@pytest.mark.daemon("--sync-mode", "off")
def test_a_stop_with_a_busy_flood_ends(daemon: Daemon) -> None:
    raw = Raw(daemon.socket)
    raw.sock.setblocking(False)
    request = put(b"flood", bytes(1000)) * 50
    with contextlib.suppress(BlockingIOError):
        while True:
            raw.sock.send(request)
    daemon.send_signal(signal.SIGTERM)
    raw.sock.settimeout(30)
    while raw.read():
        pass
    assert daemon.wait() == 0
    raw.close()


def test_a_second_sigterm_forces(tmp_db: Path, loop: str) -> None:
    daemon = Daemon(tmp_db, loop=loop)
    try:
        with Raw(daemon.socket) as stuck, Raw(daemon.socket) as writer:
            fill(writer, ((b"big/%d" % at, bytes(1 << 20)) for at in range(8)))
            stuck.send(frame(GET, b"big/0") * 50)
            writer.call(put(b"kept", b"1"))
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait_notified("STOPPING=1")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait() == 128 + signal.SIGTERM
    finally:
        daemon.kill()
    with Daemon(tmp_db, loop=loop) as again, Raw(again.socket) as raw:
        assert raw.call(frame(GET, b"kept")).payload == b"1"


@pytest.mark.daemon("--drain-ms", "300")
def test_sigterm_does_not_wait_for_ever_for_who_never_reads(daemon: Daemon) -> None:
    with (
        Raw(daemon.socket) as stuck,
        Raw(daemon.socket) as few,
        Raw(daemon.socket) as scanner,
        Raw(daemon.socket) as ok,
    ):
        fill(ok, ((b"big/%d" % at, bytes(1 << 20)) for at in range(8)))
        stuck.send(frame(GET, b"big/0") * 50)
        few.send(frame(GET, b"big/1"))
        scanner.send(scan(prefix=b"big/"))
        ok.call(put(b"kept", b"1"))
        daemon.send_signal(signal.SIGTERM)
        assert ok.at_end()
        assert daemon.wait() == 0
        assert "cut off" in daemon.log


def test_kill_then_restart_on_the_stale_socket(tmp_db: Path, loop: str) -> None:
    first = Daemon(tmp_db, loop=loop)
    with Raw(first.socket) as raw:
        fill(raw, ((b"%05d" % at, b"v") for at in range(1000)))
        raw.send(*[frame(BEGIN)] * 50)
        raw.answers(50)
        raw.send(*[put(b"in flight", b"1")] * 100)
        first.send_signal(signal.SIGKILL)
        first.wait()
        while raw.frame() is not None:
            pass
    first.kill()
    assert first.socket.exists()
    with pytest.raises(ConnectionRefusedError):
        Raw(first.socket)
    with Daemon(tmp_db, loop=loop) as second, Raw(second.socket) as raw:
        assert raw.call(scan(prefix=b"0", values=False)).end["rows"] == 1000
        settled(raw)


def test_the_file_of_a_thief_is_left_alone(tmp_db: Path, loop: str) -> None:
    with Daemon(tmp_db, "--timeout-ms", "400", loop=loop) as daemon, Raw(daemon.socket) as raw:
        raw.ping()
        with socket.socket(socket.AF_UNIX) as thief:
            stolen = daemon.socket.with_name("stolen")
            thief.bind(str(stolen))
            thief.listen()
            os.replace(stolen, daemon.socket)
            inode = daemon.socket.stat().st_ino
            until(lambda: "deleted or replaced" in daemon.log, "an error in the log")
            raw.send(put(b"still", b"served"), frame(GET, b"still"))
            assert raw.answers(2)[1].payload == b"served"
            assert daemon.stop() == 0
            assert daemon.socket.stat().st_ino == inode


def test_a_deleted_socket_is_told_once_and_clients_stay(tmp_db: Path, loop: str) -> None:
    with (
        Daemon(tmp_db, "--timeout-ms", "200", loop=loop) as daemon,
        Raw(daemon.socket) as raw,
        Raw(daemon.socket) as half,
    ):
        raw.ping()
        half.ping()
        daemon.socket.unlink()
        until(lambda: "deleted or replaced" in daemon.log, "an error in the log")
        half.send(b"\x01")
        assert half.answer().error == "OPERATION_TIMEOUT"  # some sweeps later
        raw.ping()
        assert daemon.log.count("deleted or replaced") == 1
        with pytest.raises(FileNotFoundError):
            Raw(daemon.socket)


def test_a_client_that_sends_on_while_the_daemon_stops(tmp_db: Path, loop: str) -> None:
    """Every request is answered wholly or not at all, and a commit that was answered is there."""
    with Daemon(tmp_db, loop=loop) as daemon:
        raw = Raw(daemon.socket)
        done = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                raw.send(frame(BEGIN))
                got = raw.frame()
                if got is None:
                    break
                assert got[0] == TXN_ID
                txn = int.from_bytes(got[1], "little")
                raw.send(put(b"count", b"%d" % (done + 1), txn=txn), frame(COMMIT, txn=txn))
                if (got := raw.frame()) is None:
                    break
                if (got := raw.frame()) is None:
                    break
                assert got[0] == TXN_ID
                done += 1
                if done == 20:
                    daemon.send_signal(signal.SIGTERM)
        raw.close()
        assert daemon.wait() == 0
        assert done >= 20
    with Daemon(tmp_db, loop=loop) as daemon, Raw(daemon.socket) as raw:
        assert int(raw.call(frame(GET, b"count")).payload) in (done, done + 1)
        raw.send(frame(PING))
