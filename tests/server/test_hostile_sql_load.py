"""SQL that is too much for the daemon's threads, clients that vanish or stop reading, and ends in the middle of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.raw import (
    COMMIT,
    END_STREAM,
    GET,
    LOOPS,
    MIB,
    OK,
    ROW,
    TXN_ID,
    VALUE,
    Raw,
    daemon_on,
    flood,
    frame,
    hung_up,
    peak_memory,
    put,
    reset_peak,
    scan,
    settled,
    until,
)
from tests.server.sql_frames import COUNT_UP, ENDLESS, many, rows, sql
from tests.support.daemon import Daemon

READING_THREADS = 8
WRITE_ENDLESS = f"INSERT INTO t SELECT x, 1 FROM ({COUNT_UP} SELECT x FROM n) WHERE x < 0"
MILLION = f"{COUNT_UP} SELECT x, 'some text' FROM n LIMIT 1000000"


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon whose statements may run for ever."""
    with daemon_on(request.param, "--statement-timeout-ms", "0") as running:
        with Raw(running.socket) as raw:
            assert raw.call(sql("CREATE TABLE t (a, b)")).code == END_STREAM
        yield running
        assert "internal error" not in running.log


@pytest.fixture(scope="module")
def impatient() -> Iterator[Daemon]:
    """One daemon with short limits."""
    limits = ("--timeout-ms", "300", "--max-transaction-age-ms", "900", "--statement-timeout-ms", "60000")
    with daemon_on("auto", *limits) as running:
        with Raw(running.socket) as raw:
            assert raw.call(sql("CREATE TABLE t (a, b)")).code == END_STREAM
        yield running
        assert "internal error" not in running.log


@pytest.fixture
def observer(daemon: Daemon) -> Iterator[Raw]:
    """A well-behaved client that must be served all the time; nothing of the others may be left behind."""
    with Raw(daemon.socket) as client:
        client.ping()
        yield client
        client.ping()
        settled(client)
        assert rows(client.call(sql("PRAGMA integrity_check"))) == [("ok",)]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_idle(daemon: Daemon) -> None:
    """Wait until the daemon does nothing any more: a statement that ran on would use a whole processor."""

    def idle() -> bool:
        before = cpu_seconds(daemon.pid)
        # What it does in some time is what is looked at.
        time.sleep(0.06)
        return cpu_seconds(daemon.pid) - before < 0.03

    until(idle, "a daemon that does nothing")


def busy(daemon: Daemon, seconds: float = 0.1) -> None:
    """Wait until the daemon has worked for so long since now."""
    before = cpu_seconds(daemon.pid)
    until(lambda: cpu_seconds(daemon.pid) - before >= seconds, "a daemon at work")


# Vanishing


def plain(raw: Raw) -> None:
    raw.send(sql(ENDLESS))


def in_a_window(raw: Raw) -> None:
    raw.send(sql(ENDLESS, window=1))


def writing(raw: Raw) -> None:
    raw.send(sql(WRITE_ENDLESS))


def many_runs(raw: Raw) -> None:
    raw.send(many(WRITE_ENDLESS.replace("0", "? AND ? < 0"), [0, -1] * 50))


def a_script(raw: Raw) -> None:
    raw.send(sql(f"INSERT INTO t VALUES (1, 1); {WRITE_ENDLESS}", script=True))


def reading_in_a_transaction(raw: Raw) -> None:
    txn = raw.begin()
    raw.send(put(b"never", b"1", txn=txn), sql(ENDLESS, txn=txn), frame(COMMIT, txn=txn))


def writing_in_a_transaction(raw: Raw) -> None:
    txn = raw.begin()
    raw.send(sql("INSERT INTO t VALUES (1, 1)", txn=txn), sql(WRITE_ENDLESS, txn=txn), frame(COMMIT, txn=txn))


def rows_unread(raw: Raw) -> None:
    raw.send(sql(f"{COUNT_UP} SELECT x FROM n"))


def cursors_open(raw: Raw) -> None:
    txn = raw.begin()
    for number in (0, txn) * 5:
        assert raw.call(sql(f"{COUNT_UP} SELECT x FROM n", txn=number, window=1)).end["cursor"]
    raw.send(sql(ENDLESS))


def more_sent_behind(raw: Raw) -> None:
    raw.send(sql(ENDLESS))
    raw.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            raw.sock.send(put(b"behind", bytes(50_000)))


def half_closed(raw: Raw) -> None:
    raw.send(sql(ENDLESS)).half_close()


MOMENTS = (
    *(plain, in_a_window, writing, many_runs, a_script, reading_in_a_transaction, writing_in_a_transaction),
    *(rows_unread, cursors_open, more_sent_behind, half_closed),
)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_statement_ends_with_its_client(daemon: Daemon, observer: Raw, moment: Callable[[Raw], None]) -> None:
    with Raw(daemon.socket) as raw:
        moment(raw)
        busy(daemon, 0.02)
        observer.ping()
    wait_idle(daemon)
    settled(observer)
    assert rows(observer.call(sql("SELECT count(*) FROM t"))) == [(0,)]
    assert observer.call(frame(GET, b"never", txn=0)).code == OK


def test_a_half_closed_client_gets_its_rows(daemon: Daemon, observer: Raw) -> None:
    del observer
    with Raw(daemon.socket) as raw:
        raw.send(sql(f"{COUNT_UP} SELECT count(*) FROM (SELECT x FROM n LIMIT 300000)"), sql("SELECT 2")).half_close()
        assert rows(raw.answer()) == [(300_000,)]
        assert rows(raw.answer()) == [(2,)]
        assert raw.at_end()


@pytest.mark.parametrize("daemon", ["uvloop"], indirect=True)
def test_waiting_writers_that_vanish_write_nothing(daemon: Daemon, observer: Raw) -> None:
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(Raw(daemon.socket))
        leader.send(sql(WRITE_ENDLESS))
        busy(daemon, 0.02)
        waiting = [stack.enter_context(Raw(daemon.socket)) for _ in range(10)]
        for raw in waiting:
            raw.send(sql("INSERT INTO t VALUES ('waited', 1)"))
        # Keys are written and read meanwhile, and tables read.
        assert observer.call(put(b"meanwhile", b"1")).code == OK
        assert rows(observer.call(sql("SELECT count(*) FROM t"))) == [(0,)]
        for raw in waiting:
            raw.close()
        until(lambda: observer.stats()["connections_active"] == 2, "only the leader is left")
        leader.close()
        wait_idle(daemon)
    assert rows(observer.call(sql("SELECT count(*) FROM t"))) == [(0,)]
    assert observer.call(sql("INSERT INTO t VALUES (1, 1)")).end["affected"] == 1
    assert observer.call(sql("DELETE FROM t")).end["affected"] == 1


# More than there are threads


@pytest.mark.parametrize("daemon", ["uvloop"], indirect=True)
def test_others_are_served_while_all_threads_are_busy(daemon: Daemon, observer: Raw) -> None:
    with contextlib.ExitStack() as stack:
        heavy = [stack.enter_context(Raw(daemon.socket)) for _ in range(2 * READING_THREADS)]
        for raw in heavy:
            raw.send(sql(ENDLESS))
        busy(daemon, 0.05)
        # None of the heavy ones can end, so every answer comes while they run.
        for turn in range(30):
            value = b"%d" % turn
            observer.send(put(b"busy", value), frame(GET, b"busy"), scan(prefix=b"busy"))
            got = observer.answers(3)
            assert (got[0].code, got[1].payload, got[2].rows) == (OK, value, [b"busy", value])
            observer.ping()
        txn = observer.begin()
        assert observer.call(put(b"busy", b"txn", txn=txn)).code == OK
        assert observer.call(frame(COMMIT, txn=txn)).code == TXN_ID
        # Those that write have threads of their own.
        assert observer.call(sql("INSERT INTO t VALUES (1, 1)")).end["affected"] == 1
        assert observer.call(sql("DELETE FROM t")).end["affected"] == 1
        for raw in heavy:
            assert not select.select([raw.sock], [], [], 0)[0], "a heavy statement was answered"
        # One more that reads has to wait, and is served when one of them is gone.
        last = stack.enter_context(Raw(daemon.socket))
        last.send(sql("SELECT a FROM t WHERE random() IS NULL"))
        for raw in heavy:
            raw.close()
        assert rows(last.answer()) == []
    wait_idle(daemon)


def test_heavy_statements_are_interrupted_in_time() -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(daemon_on("auto", "--statement-timeout-ms", "150", "--timeout-ms", "60000"))
        raws = [stack.enter_context(Raw(daemon.socket)) for _ in range(2 * READING_THREADS)]
        for at, raw in enumerate(raws):
            raw.send(sql(ENDLESS if at % 2 else f"{COUNT_UP} SELECT count(*) FROM n"), frame(GET, b"x"))
        for raw in raws:
            assert [reply.error or reply.code for reply in raw.answers(2)] == ["SQL_INTERRUPTED", VALUE]
        raw = raws[0]
        # Rows that a client reads slowly are not the statement's time.
        got = raw.call(sql(f"{COUNT_UP} SELECT x FROM n LIMIT 3000", window=1))
        while cursor := got.end["cursor"]:
            got = raw.call(scan(cursor=cursor, window=10_000))
        assert raw.call(sql("CREATE TABLE t (a, b)")).code == END_STREAM
        txn = raw.begin()
        assert raw.call(sql("INSERT INTO t VALUES (1, 1)", txn=txn)).end["affected"] == 1
        assert raw.call(sql(ENDLESS, txn=txn)).error == "SQL_INTERRUPTED"
        assert raw.call(sql("INSERT INTO t VALUES (2, 2)", txn=txn)).end["affected"] == 1
        assert raw.call(frame(COMMIT, txn=txn)).code == TXN_ID
        txn = raw.begin()
        assert raw.call(sql("INSERT INTO t VALUES (3, 3)", txn=txn)).end["affected"] == 1
        # SQLite undoes the whole transaction when it is interrupted while it writes.
        assert raw.call(sql(WRITE_ENDLESS, txn=txn)).error in ("SQL_INTERRUPTED", "TRANSACTION")
        assert raw.call(frame(COMMIT, txn=txn)).code in (0x81, TXN_ID)
        assert raw.call(sql(f"INSERT INTO t VALUES (4, 4); {WRITE_ENDLESS}", script=True)).error == "SQL_INTERRUPTED"
        assert rows(raw.call(sql("SELECT a FROM t WHERE a IN (1, 2, 4)"))) == [(1,), (2,)]


# Rows that are not read, or slowly


@pytest.mark.parametrize("daemon", ["uvloop"], indirect=True)
def test_a_slow_reader_of_a_million_rows(daemon: Daemon, observer: Raw) -> None:
    with Raw(daemon.socket, receive_buffer=4096) as raw:
        before = reset_peak(daemon.pid)
        raw.send(sql(MILLION))
        received = pings = 0
        while True:
            got = raw.frame()
            assert got is not None
            if got[0] != ROW:
                break
            received += len(got[1])
            observer.ping()
            pings += 1
        assert got[0] == END_STREAM
        assert received > 12 * MIB
        assert pings > 40
        assert peak_memory(daemon.pid) - before < 24 * MIB


def test_a_reader_that_stops_is_dropped(impatient: Daemon) -> None:
    with Raw(impatient.socket) as other, Raw(impatient.socket) as raw:
        dropped = other.stats()["connections_dropped"]
        before = reset_peak(impatient.pid)
        raw.send(sql(f"{COUNT_UP} SELECT x, zeroblob(1000) FROM n"))
        hung_up(raw)
        settled(other)
        assert other.stats()["connections_dropped"] == dropped + 1
        wait_idle(impatient)
        assert peak_memory(impatient.pid) - before < 24 * MIB


@pytest.mark.parametrize(
    "request_",
    [
        sql(f"{COUNT_UP} SELECT x, zeroblob(1000) FROM n LIMIT 20000"),
        sql("SELECT zeroblob(1000000)"),
        sql("SELECT 'short'"),
        sql("SELEC"),
        many("INSERT INTO t VALUES (?, ?)", [1, 2], more=True),
        many("SELECT ?, ?", [1, 2]),
    ],
    ids=["rows", "a large row", "a short row", "errors", "parts", "runs"],
)
def test_a_flood_of_statements_whose_replies_nobody_reads(impatient: Daemon, request_: bytes) -> None:
    with Raw(impatient.socket) as other, Raw(impatient.socket) as raw:
        before = reset_peak(impatient.pid)
        flood(raw, request_ * max(1, 20_000 // len(request_)), other)
        settled(other)
        assert peak_memory(impatient.pid) - before < 48 * MIB
        wait_idle(impatient)


# Limits of time


def test_idle_and_old_cursors_are_given_up(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw:
        text = f"{COUNT_UP} SELECT x FROM n"
        cursor = raw.call(sql(text, window=1)).end["cursor"]
        until(lambda: "expired transactions or cursors" in impatient.log, "it expires")
        assert raw.call(scan(cursor=cursor, window=1)).error == "SNAPSHOT_EXPIRED"
        assert raw.call(scan(cursor=cursor, window=1)).error == "CURSOR_NOT_FOUND"
        old = raw.call(sql(text, window=1)).end["cursor"]
        while not (got := raw.call(scan(cursor=old, window=1))).error:
            old = got.end["cursor"]
        assert got.error == "SNAPSHOT_EXPIRED"
        assert raw.call(scan(cursor=old, window=1)).error == "CURSOR_NOT_FOUND"
        assert raw.stats()["open_cursors"] == 0


def test_parts_that_come_too_late(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw:
        expired = impatient.log.count("expired transactions or cursors")
        assert raw.call(many("INSERT INTO t VALUES (?, ?)", [1, 2], more=True)).code == END_STREAM
        until(lambda: impatient.log.count("expired transactions or cursors") > expired, "the parts expire")
        assert raw.call(many("INSERT INTO t VALUES (?, ?)", [1, 2], part=1)).error == "MALFORMED_REQUEST"
        assert rows(raw.call(sql("SELECT count(*) FROM t"))) == [(0,)]


@pytest.mark.parametrize("text", [ENDLESS, WRITE_ENDLESS, f"{COUNT_UP} SELECT x, zeroblob(100) FROM n"])
def test_a_transaction_that_is_too_old_ends_its_statement(impatient: Daemon, text: str) -> None:
    with Raw(impatient.socket) as raw, Raw(impatient.socket) as other:
        txn = raw.begin()
        raw.send(sql("INSERT INTO t VALUES (1, 1)", txn=txn), sql(text, txn=txn), put(b"old", b"1", txn=txn))
        raw.send(frame(COMMIT, txn=txn), frame(GET, b"old", txn=0))
        assert raw.answer().code == END_STREAM
        # Work on it, and rows that are read, keep it from being idle, but not from being old.
        got = [reply.error or reply.code for reply in raw.answers(4)]
        assert got[0] == "TRANSACTION_EXPIRED"
        assert got[1] == "TRANSACTION_EXPIRED"
        assert got[2] in ("TRANSACTION_EXPIRED", "TRANSACTION_NOT_FOUND")
        assert got[3] == OK
        assert rows(other.call(sql("SELECT count(*) FROM t"))) == [(0,)]
        wait_idle(impatient)
        settled(other, connections=2)


# Stopping


@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_while_statements_run(tmp_db: Path, loop: str) -> None:
    options = ("--statement-timeout-ms", "0", "--drain-ms", "300", "--timeout-ms", "200")
    daemon = Daemon(tmp_db, *options, loop=loop)
    try:
        with contextlib.ExitStack() as stack:
            raws = [stack.enter_context(Raw(daemon.socket)) for _ in range(14)]
            first = raws[0]
            assert first.call(sql("CREATE TABLE t (a, b)")).code == END_STREAM
            txn = first.begin()
            assert first.call(sql("INSERT INTO t VALUES ('never', 1)", txn=txn)).end["affected"] == 1
            # Before there are more that never end than there are threads for reading.
            assert raws[13].call(sql(f"{COUNT_UP} SELECT x FROM n", window=1)).end["cursor"]
            raws[12].send(sql(f"{COUNT_UP} SELECT x FROM n"))
            for raw in raws[:10]:
                raw.send(sql(ENDLESS))
            raws[10].send(sql(WRITE_ENDLESS))
            busy(daemon, 0.05)
            raws[11].send(sql("INSERT INTO t VALUES ('waits', 1)"))
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait() == 0
            for raw in raws:
                raw.sock.settimeout(30)
                raw.drain()
        log = daemon.log
        assert "Traceback" not in log
        assert '"level": "error"' not in log
    finally:
        daemon.kill()
    with Daemon(tmp_db) as again, Raw(again.socket) as raw:
        assert rows(raw.call(sql("SELECT a FROM t WHERE a = 'never'"))) == []
        assert rows(raw.call(sql("PRAGMA integrity_check"))) == [("ok",)]


def test_sigterm_lets_a_statement_end_that_takes_not_long(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, Raw(daemon.socket) as raw:
        assert raw.call(sql("CREATE TABLE t (a, b)")).code == END_STREAM
        raw.send(sql(f"INSERT INTO t {COUNT_UP} SELECT x, x FROM n LIMIT 400000"))
        busy(daemon, 0.02)
        daemon.send_signal(signal.SIGTERM)
        assert raw.answer().end["affected"] == 400_000
        assert raw.at_end()
        assert daemon.wait() == 0
    with Daemon(tmp_db) as daemon, Raw(daemon.socket) as raw:
        assert rows(raw.call(sql("SELECT count(*), sum(a) = sum(b) FROM t"))) == [(400_000, 1)]
