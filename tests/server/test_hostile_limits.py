"""Time limits, counts of clients and transactions, and who may connect."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.raw import (
    ABORT,
    BEGIN,
    CAP,
    COMMIT,
    ERROR,
    GET,
    LOOPS,
    OK,
    PING,
    PONG,
    PUT,
    TXN_ID,
    VALUE,
    Raw,
    daemon_on,
    fill,
    frame,
    put,
    scan,
    settled,
    until,
)
from tests.support.daemon import Daemon


@pytest.fixture(scope="module", params=LOOPS)
def hasty(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that waits for 400 ms."""
    with daemon_on(request.param, "--timeout-ms", "400") as daemon:
        yield daemon


def timeout_passes(daemon: Daemon) -> None:
    """Wait for longer than the daemon's timeout: until it has hung up on half a frame that was sent now."""
    with Raw(daemon.socket) as clock:
        clock.send(b"\x01")
        assert clock.answer().error == "OPERATION_TIMEOUT"
        assert clock.at_end()


HALVES = {
    "a header": b"\x01\x02\x03",
    "a payload": put(b"key", b"value")[:-1],
    "a big payload": put(b"key", bytes(CAP - 100))[:-1],
    "an oversized payload": frame(PUT, bytes(1000), length=CAP + 1),
    "an unknown payload": frame(0x33, bytes(1000), length=2000),
    "a frame behind others": put(b"key", b"value") + frame(GET, b"key") + b"\x01",
}


@pytest.mark.parametrize("name", HALVES)
def test_half_a_frame_then_silence_is_told_and_closed(hasty: Daemon, name: str) -> None:
    with Raw(hasty.socket) as quiet, Raw(hasty.socket) as raw:
        dropped = quiet.stats()["connections_dropped"]
        raw.send(HALVES[name])
        codes = []
        while (got := raw.frame()) is not None:
            codes.append(got)
        assert codes[-1][0] == ERROR
        assert codes[-1][1].startswith(b"OPERATION_TIMEOUT: ")
        assert b"--timeout-ms" in codes[-1][1]
        assert len(codes) == {"a frame behind others": 3}.get(
            name, 2 if "oversized" in name or "unknown" in name else 1
        )
        quiet.ping()
        assert quiet.stats()["connections_dropped"] == dropped + 1
        settled(quiet)


def test_a_trickle_does_not_extend_the_time_of_a_frame(hasty: Daemon) -> None:
    with Raw(hasty.socket) as raw:
        raw.send(frame(PUT, length=100_000))
        raw.sock.setblocking(False)
        try:
            # One byte for every answer to somebody else; far more than enough, were it not hung up on.
            with Raw(hasty.socket) as other:
                for _ in range(99_000):
                    raw.sock.send(b"x")
                    other.ping()
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("the daemon waited for a frame that never completed")


def test_a_quiet_client_stays(hasty: Daemon) -> None:
    with Raw(hasty.socket) as quiet, Raw(hasty.socket) as silent:
        quiet.ping()
        for _ in range(3):
            timeout_passes(hasty)
        quiet.ping()
        silent.ping()


def test_frames_that_complete_in_time_again_and_again(hasty: Daemon) -> None:
    request = put(b"again", b"value")
    with Raw(hasty.socket) as raw, Raw(hasty.socket) as other:
        uptime = other.stats()["uptime_secs"]
        raw.send(request[:3])
        for _ in range(100_000):
            # There is always half a frame, but never the same one.
            raw.send(request[3:] + request[:3])
            assert raw.answer().code == OK
            if other.stats()["uptime_secs"] >= uptime + 2:
                break
        raw.send(request[3:])
        assert raw.answer().code == OK
        raw.ping()


def test_an_idle_transaction_expires_and_the_connection_survives(hasty: Daemon) -> None:
    with Raw(hasty.socket) as raw:
        one, two, three, four = (raw.begin() for _ in range(4))
        assert raw.call(put(b"idle", b"1", txn=one)).code == OK
        timeout_passes(hasty)
        assert raw.call(frame(GET, b"idle", txn=one)).error == "TRANSACTION_EXPIRED"
        assert raw.call(put(b"idle", b"2", txn=one)).error == "TRANSACTION_EXPIRED"
        assert raw.call(scan(txn=one, prefix=b"idle")).error == "TRANSACTION_EXPIRED"
        assert raw.call(frame(COMMIT, txn=one)).error == "TRANSACTION_EXPIRED"
        assert raw.call(frame(COMMIT, txn=one)).error == "TRANSACTION_NOT_FOUND"
        assert raw.call(frame(COMMIT, two.to_bytes(8, "little"))).error == "TRANSACTION_EXPIRED"
        assert raw.call(frame(ABORT, txn=three)).error in ("", "TRANSACTION_EXPIRED")
        assert raw.call(scan(txn=four, keys=[b"idle"])).error == "TRANSACTION_EXPIRED"
        assert raw.call(frame(GET, b"idle", txn=0)).code == OK
        again = raw.begin()
        raw.send(put(b"idle", b"3", txn=again), frame(COMMIT, txn=again))
        assert [reply.code for reply in raw.answers(2)] == [OK, TXN_ID]
        assert raw.stats()["active_transactions"] == 0


def test_expired_transactions_do_not_count_as_open(hasty: Daemon) -> None:
    with Raw(hasty.socket) as raw:
        raw.send(*[frame(BEGIN)] * 256)
        assert {reply.code for reply in raw.answers(256)} == {TXN_ID}
        timeout_passes(hasty)
        assert raw.begin()
        assert raw.stats()["active_transactions"] == 1


def test_an_idle_cursor_expires_and_the_connection_survives(hasty: Daemon) -> None:
    with Raw(hasty.socket) as raw:
        fill(raw, ((b"c/%03d" % at, b"v") for at in range(50)))
        first = raw.call(scan(prefix=b"c/", batch=10, window=1))
        cursor = first.end["cursor"]
        assert cursor
        txn = raw.begin()
        inside = raw.call(scan(txn=txn, prefix=b"c/", batch=10, window=1)).end["cursor"]
        timeout_passes(hasty)
        assert raw.call(scan(cursor=cursor, window=1)).error == "SNAPSHOT_EXPIRED"
        assert raw.call(scan(cursor=cursor, window=1)).error == "CURSOR_NOT_FOUND"
        assert raw.call(scan(txn=txn, cursor=inside, window=1)).error == "TRANSACTION_EXPIRED"
        raw.ping()
        settled(raw)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.daemon("--timeout-ms", "20000", "--max-transaction-age-ms", "300")
def test_an_old_transaction_ends_even_when_it_is_touched(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        fill(raw, ((b"c/%03d" % at, b"v") for at in range(50)))
        txn = raw.begin()
        cursor = raw.call(scan(prefix=b"c/", batch=1, window=1)).end["cursor"]
        seen = []

        def touched() -> bool:
            got = raw.call(frame(GET, b"x", txn=txn))
            seen.append(got.error)
            return bool(got.error)

        until(touched, "the end of an old transaction")
        assert seen[-1] == "TRANSACTION_EXPIRED"
        assert raw.call(frame(COMMIT, txn=txn)).error == "TRANSACTION_EXPIRED"
        assert raw.call(scan(cursor=cursor)).error == "SNAPSHOT_EXPIRED"
        raw.ping()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.daemon("--max-transaction-bytes", "1MiB")
def test_a_write_set_over_its_cap_is_refused_and_stays_usable(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        txn = raw.begin()
        raw.send(*(put(b"%d" % at, bytes(300_000), txn=txn) for at in range(6)), frame(COMMIT, txn=txn))
        got = raw.answers(7)
        assert [reply.error or reply.code for reply in got] == [OK] * 3 + ["TRANSACTION_TOO_LARGE"] * 3 + [TXN_ID]
        assert raw.stats()["keys_count"] == 3


# Clients


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.daemon("--max-clients", "3")
def test_one_client_too_many_is_told_and_a_slot_comes_free(daemon: Daemon) -> None:
    clients = [Raw(daemon.socket) for _ in range(3)]
    for client in clients:
        client.ping()
    for sends in (b"", frame(PING), put(b"a", b"b") * 1000):
        with Raw(daemon.socket) as late:
            try:
                late.send(sends)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it is closed already; what it was told can be read all the same
            got = late.answer()
            assert got.error == "TOO_MANY_CLIENTS"
            assert b"--max-clients" in got.payload
            assert got.payload[:1] < b"\x80"
            assert late.at_end()
    assert clients[0].stats()["connections_rejected"] == 3
    assert clients[0].stats()["connections_active"] == 3
    clients.pop().close()
    until(lambda: clients[0].stats()["connections_active"] == 2, "a free slot")
    with Raw(daemon.socket) as fourth:
        fourth.ping()
    for client in clients:
        client.ping()
        client.close()


@pytest.fixture
def descriptors() -> Iterator[int]:
    """As many open files as this test needs: both ends of a thousand connections are in two processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1400
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    yield wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.daemon("--max-clients", "1000")
@pytest.mark.usefixtures("descriptors")
def test_a_thousand_clients_at_once(daemon: Daemon) -> None:
    clients = [Raw(daemon.socket) for _ in range(1000)]
    for at, client in enumerate(clients):
        client.send(put(b"client/%d" % at, b"%d" % at), frame(GET, b"client/%d" % at), frame(BEGIN))
    for at, client in enumerate(clients):
        got = client.answers(3)
        assert [reply.code for reply in got] == [OK, VALUE, TXN_ID]
        assert got[1].payload == b"%d" % at
    with Raw(daemon.socket) as late:
        assert late.answer().error == "TOO_MANY_CLIENTS"
    stats = clients[0].stats()
    assert (stats["connections_active"], stats["active_transactions"], stats["keys_count"]) == (1000, 1000, 1000)
    for client in clients:
        client.close()
    with Raw(daemon.socket) as observer:
        settled(observer)


def test_connections_that_come_and_go_leave_nothing(hasty: Daemon) -> None:
    with Raw(hasty.socket) as observer:
        observer.ping()
        for at in range(500):
            with Raw(hasty.socket) as raw:
                # Refused ones among them: the daemon may not have seen the others go.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    raw.send(frame(BEGIN) * (at % 5), put(b"a", b"b"))
        # Some may still be waiting to be accepted, so the counters alone do not tell.
        until(lambda: len(os.listdir(f"/proc/{hasty.pid}/fd")) < 40, "closed descriptors")
        settled(observer)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_user_who_is_not_on_the_list_is_refused(tmp_db: Path, loop: str) -> None:
    with Daemon(tmp_db, "--allow-uid", str(os.getuid() + 1), loop=loop) as daemon:
        with Raw(daemon.socket) as raw:
            got = raw.answer()
            assert got.error == "PEER_NOT_ALLOWED"
            assert str(os.getuid()).encode() in got.payload
            assert b"--allow-uid" in got.payload
            assert raw.at_end()


def ask_as(uid: int, path: str) -> bytes:
    """What the daemon answers to a PING of another user."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(path)
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(frame(PING))
                os.write(write, sock.recv(4096))
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("loop", LOOPS)
def test_other_users_are_told_apart_by_the_kernel(loop: str) -> None:
    allowed, refused = 54_321, 54_322
    with tempfile.TemporaryDirectory(prefix="toondb-") as folder:
        os.chmod(folder, 0o711)
        path = f"{folder}/sock"
        args = ("--socket", path, "--socket-mode", "666", "--allow-uid", str(allowed), "--allow-uid", str(os.getuid()))
        with Daemon(f"{folder}/db", *args, loop=loop) as daemon:
            replies = {uid: ask_as(uid, path) for uid in (allowed, refused)}
            assert replies[allowed] == bytes([PONG, 0, 0, 0, 0])
            assert b"PEER_NOT_ALLOWED: uid 54322" in replies[refused]
            with Raw(daemon.socket) as mine:
                mine.ping()
