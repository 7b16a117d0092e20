"""The history over the wire: long polls that wake, end, vanish and wait in line; what is trimmed, huge or misused."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.server.raw import (
    COMMIT,
    DELETE,
    END_STREAM,
    ERROR,
    GET,
    LOOPS,
    MIB,
    OK,
    PING,
    PONG,
    ROW,
    TXN_ID,
    VALUE,
    Raw,
    daemon_on,
    fill,
    frame,
    peak_memory,
    put,
    put_with,
    reset_peak,
    scan,
    settled,
)
from tests.support.daemon import Daemon

_names = count()


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for the tests that leave its history alone."""
    with daemon_on(request.param, "--sync-mode", "off") as running:
        yield running


@pytest.fixture(scope="module", params=LOOPS)
def hasty(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that waits for 400 ms."""
    with daemon_on(request.param, "--timeout-ms", "400", "--sync-mode", "off") as running:
        yield running


@pytest.fixture
def prefix() -> bytes:
    """A prefix of this test alone."""
    return b"p%04d/" % next(_names)


def now(raw: Raw) -> int:
    """Where history ends."""
    got = raw.call(scan(since_lsn=None))
    assert got.rows == []
    assert got.end.keys() == {"rows", "lsn"}
    lsn: int = got.end["lsn"]
    return lsn


def poll(prefix: bytes, since: int, wait_ms: int = 15_000) -> bytes:
    """A frame that asks for changes and waits."""
    return scan(prefix=prefix, since_lsn=since, wait_ms=wait_ms)


def test_a_poll_wakes_with_the_commit_of_another_client(raw: Raw, daemon: Daemon, prefix: bytes) -> None:
    with Raw(daemon.socket) as other:
        lsn = now(raw)
        raw.send(poll(prefix, lsn))
        other.call(put(b"elsewhere", b"x"))  # wakes it, and shows it nothing
        other.call(put(prefix + b"a", b"1"))
        got = raw.answer()
        assert got.changes == [(lsn + 2, "put", prefix + b"a", b"1", True)]
        assert got.end["lsn"] >= lsn + 2
        raw.send(poll(prefix, got.end["lsn"]))
        txn = other.begin()
        for key, value in ((b"b", b""), (b"a", None)):
            other.call(put(prefix + key, value, txn=txn) if value is not None else frame(DELETE, prefix + key, txn=txn))
        other.call(put(b"elsewhere", b"x", txn=txn))
        done = other.call(frame(COMMIT, txn=txn)).number
        assert raw.answer().changes == [
            (done, "delete", prefix + b"a", None, False),
            (done, "put", prefix + b"b", b"", True),
        ]


def test_what_is_there_is_answered_without_waiting(raw: Raw, prefix: bytes) -> None:
    lsn = now(raw)
    raw.send(*(put(prefix + b"%d" % at, b"v") for at in range(5)), frame(DELETE, prefix + b"absent"))
    raw.answers(6)
    for wait in (0, 15_000):
        got = raw.call(poll(prefix, lsn, wait))
        assert [change[0] for change in got.changes] == [lsn + at for at in range(1, 6)]
        assert all(change[4] for change in got.changes)
        assert got.end["lsn"] == lsn + 5
    assert raw.call(scan(start=prefix + b"1", end=prefix + b"3", since_lsn=lsn)).end["rows"] == 2
    assert raw.call(scan(start=prefix + b"3", since_lsn=lsn + 3)).end["rows"] == 2


def test_a_poll_ends_by_itself(raw: Raw, prefix: bytes) -> None:
    lsn = now(raw)
    assert raw.call(poll(prefix, lsn, 1)).end == {"rows": 0, "lsn": lsn}
    assert raw.call(poll(prefix, lsn, 50)).end == {"rows": 0, "lsn": lsn}
    raw.call(put(b"elsewhere", b"x"))
    # Nothing of it matched, and it need not be looked at again.
    assert raw.call(poll(prefix, lsn, 50)).end == {"rows": 0, "lsn": lsn + 1}
    assert raw.call(poll(prefix, lsn, 0)).end == {"rows": 0, "lsn": lsn + 1}


def test_a_wait_is_cut_to_half_the_timeout(hasty: Daemon, prefix: bytes) -> None:
    with Raw(hasty.socket) as raw:
        for wait in (201, 10**6, (1 << 64) - 1):
            assert raw.call(poll(prefix, now(raw), wait)).end["rows"] == 0


def test_a_watcher_is_not_taken_for_idle(hasty: Daemon, prefix: bytes) -> None:
    with Raw(hasty.socket) as raw, Raw(hasty.socket) as other:
        lsn = now(raw)
        dropped = other.stats()["connections_dropped"]
        for _ in range(5):  # longer than the timeout in all, and never a whole frame outstanding
            following = poll(prefix, lsn)
            raw.send(poll(prefix, lsn), following[:7])
            assert raw.answer().end["rows"] == 0
            assert raw.send(following[7:]).answer().end["rows"] == 0
        assert other.stats()["connections_dropped"] == dropped
    with Raw(hasty.socket) as observer:
        settled(observer)


def test_half_a_frame_behind_a_poll_is_still_told(hasty: Daemon, prefix: bytes) -> None:
    with Raw(hasty.socket) as raw:
        raw.send(poll(prefix, now(raw)), b"\x01\x05")
        assert raw.answer().end["rows"] == 0
        assert raw.answer().error == "OPERATION_TIMEOUT"
        assert raw.at_end()


def test_requests_behind_a_poll_wait_and_come_in_order(raw: Raw, daemon: Daemon, prefix: bytes) -> None:
    with Raw(daemon.socket) as other:
        lsn = now(raw)
        behind = put(prefix + b"mine", b"2", txn=0) + frame(GET, prefix + b"mine") + poll(prefix + b"x", lsn, 20)
        behind += poll(prefix, lsn, 15_000) + frame(PING)
        raw.send(poll(prefix, lsn))
        for at in range(len(behind)):  # in pieces of one byte, while it sleeps
            raw.send(behind[at : at + 1])
        other.ping()
        assert other.call(frame(GET, prefix + b"mine", txn=0)).code == OK, "a request overtook the poll before it"
        other.call(put(prefix + b"theirs", b"1"))
        got = raw.answers(6)
        assert [reply.code for reply in got] == [END_STREAM, OK, VALUE, END_STREAM, END_STREAM, PONG]
        assert [change[2] for change in got[0].changes] == [prefix + b"theirs"]
        assert got[3].changes == []
        assert [change[2] for change in got[4].changes] == [prefix + b"theirs", prefix + b"mine"]


def test_a_flood_behind_a_poll_is_held_back(raw: Raw, daemon: Daemon, prefix: bytes) -> None:
    with Raw(daemon.socket) as other:
        raw.send(poll(prefix, now(raw)))
        data = put(b"flood", bytes(500), txn=0) * 20_000
        raw.sock.setblocking(False)
        sent = 0
        # The socket is full before the daemon holds much more than a megabyte.
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += raw.sock.send(memoryview(data)[sent:])
                other.ping()
        assert sent < 6 * MIB
        raw.sock.settimeout(30)
        other.call(put(prefix + b"go", b""))
        assert raw.answer().end["rows"] == 1


def test_many_watchers_at_once(daemon: Daemon, prefix: bytes) -> None:
    with contextlib.ExitStack() as stack:
        writer, *watchers = [stack.enter_context(Raw(daemon.socket)) for _ in range(95)]
        lsn = now(writer)
        for at, raw in enumerate(watchers):
            raw.send(poll(prefix + (b"odd" if at % 2 else b""), lsn))
        for number in range(20):
            writer.call(put(prefix + (b"odd" if number % 2 else b"even"), b"%d" % number))
        for at, raw in enumerate(watchers):
            seen: list[tuple[Any, ...]] = []
            while len(seen) < (10 if at % 2 else 20):
                got = raw.answer()
                seen += got.changes
                raw.send(poll(prefix + (b"odd" if at % 2 else b""), got.end["lsn"]))
            assert [int(change[3]) for change in seen] == list(range(at % 2, 20, 1 + at % 2))
    with Raw(daemon.socket) as observer:
        settled(observer)


@pytest.mark.parametrize("how", ["close", "half frame", "requests behind", "half-close"])
def test_watchers_that_vanish_leave_nothing(daemon: Daemon, prefix: bytes, how: str) -> None:
    with Raw(daemon.socket) as observer:
        lsn = now(observer)
        watchers = [Raw(daemon.socket) for _ in range(20)]
        for raw in watchers:
            raw.send(poll(prefix, lsn, 15_000 if how != "half-close" else 200))
            if how == "half frame":
                raw.send(b"\x01\x05")
            elif how == "requests behind":
                raw.send(put(prefix + b"never", b"x") * 3)
        observer.ping()
        for raw in watchers:
            if how == "half-close":
                raw.half_close()
                assert raw.answer().end["rows"] == 0
                assert raw.at_end()
            raw.close()
        settled(observer)
        observer.call(put(prefix + b"x", b"1"))
        assert observer.call(poll(prefix, lsn)).changes == [(lsn + 1, "put", prefix + b"x", b"1", True)]


WRONG: dict[str, dict[str, Any]] = {
    "wait without history": {"wait_ms": 5},
    "limit": {"since_lsn": 0, "limit": 5},
    "batch": {"since_lsn": 0, "batch": 5},
    "reverse": {"since_lsn": 0, "reverse": True},
    "window": {"since_lsn": 0, "window": 5},
    "keys": {"since_lsn": 0, "keys": [b"a"]},
    "values": {"since_lsn": 0, "values": False},
    "cursor": {"since_lsn": 0, "cursor": 1},
    "prefix and start": {"since_lsn": 0, "prefix": b"a", "start": b"b"},
    "expiry": {"since_lsn": None, "expiry": False},
    "text": {"since_lsn": "0"},
    "negative": {"since_lsn": -1},
    "float": {"since_lsn": 0.0},
    "bool": {"since_lsn": True},
}


@pytest.mark.parametrize("name", WRONG)
def test_misuse_is_refused(raw: Raw, name: str) -> None:
    assert raw.call(scan(**WRONG[name])).error == "MALFORMED_REQUEST"
    raw.ping()


def test_history_is_not_read_in_a_transaction(raw: Raw) -> None:
    txn = raw.begin()
    for since in (None, 0):
        assert raw.call(scan(txn=txn, since_lsn=since)).error == "MALFORMED_REQUEST"
    assert raw.call(scan(txn=999, since_lsn=0)).error == "MALFORMED_REQUEST"
    assert raw.call(frame(COMMIT, txn=txn)).code == TXN_ID


def test_the_future_is_refused(raw: Raw, prefix: bytes) -> None:
    lsn = now(raw)
    for since in (lsn + 1, 1 << 63, (1 << 64) - 1):
        for wait in (0, 15_000):
            got = raw.call(poll(prefix, since, wait))
            assert (got.code, got.error) == (ERROR, "VALIDATION")
    raw.ping()


def test_a_page_without_a_match_does_not_hide_what_follows(raw: Raw, prefix: bytes) -> None:
    """History is read some 256 KiB at a time; the answer to whoever does not wait covers all of it."""
    lsn = now(raw)
    fill(raw, ((b"elsewhere/%04d" % at, bytes(900)) for at in range(1500)))
    raw.call(put(prefix, b"1"))
    got = raw.call(scan(prefix=prefix, since_lsn=lsn))
    assert got.changes == [(lsn + 1501, "put", prefix, b"1", True)]
    assert raw.call(scan(prefix=prefix + b"none", since_lsn=lsn)).end == {"rows": 0, "lsn": lsn + 1501}


def test_long_values_come_from_the_store(raw: Raw, prefix: bytes) -> None:
    lsn = now(raw)
    long = bytes(range(256)) * 400
    for key, value in ((b"a", long), (b"b", long), (b"a", b"short"), (b"c", long)):
        raw.call(put(prefix + key, value))
    raw.call(put_with(prefix + b"d", long, ttl_ms=60_000))
    raw.call(frame(DELETE, prefix + b"c"))
    changes = raw.call(scan(prefix=prefix, since_lsn=lsn)).changes
    assert changes == [
        (lsn + 2, "put", prefix + b"b", long, True),
        (lsn + 3, "put", prefix + b"a", b"short", True),
        (lsn + 5, "put", prefix + b"d", long, True),
        (lsn + 6, "delete", prefix + b"c", None, True),
    ]


def test_a_value_as_large_as_a_frame(raw: Raw, prefix: bytes) -> None:
    lsn = now(raw)
    value = bytes(16 * MIB - 12 - 511)
    key = prefix.ljust(511, b"k")
    assert raw.call(put(key, value, txn=0)).code == OK
    assert raw.call(scan(prefix=prefix, since_lsn=lsn)).changes == [(lsn + 1, "put", key, value, True)]


def test_history_that_was_trimmed_is_told(tmp_db: Path) -> None:
    with Daemon(tmp_db, "--sync-mode", "off") as daemon, Raw(daemon.socket) as raw, Raw(daemon.socket) as watcher:
        raw.call(put(b"first", b"x"))
        watcher.send(poll(b"none/", 1))  # sleeps all the time, and is not left behind by what it need not see
        fill(raw, ((b"k/%06d" % at, bytes(900)) for at in range(24_000)))
        lsn = now(raw)
        for since in (0, 1, 100):
            got = raw.call(poll(b"first", since))
            assert (got.code, got.error) == (ERROR, "HISTORY_TRIMMED")
        assert len(raw.call(scan(since_lsn=lsn - 10)).changes) == 10
        raw.call(put(b"none/x", b"1"))
        assert watcher.answer().end["rows"] == 1


def test_a_commit_of_100_000_keys_streams_with_flat_memory(tmp_db: Path) -> None:
    with Daemon(tmp_db, "--sync-mode", "off") as daemon, Raw(daemon.socket) as raw:
        lsn = now(raw)
        txn = raw.begin()
        keys = [b"row/%06d" % at for at in range(100_000)]
        for at in range(0, len(keys), 5000):
            raw.send(*(put(key, key * 30, txn=txn) for key in keys[at : at + 5000]))
            assert {got.code for got in raw.answers(5000)} == {OK}
        assert raw.call(frame(COMMIT, txn=txn)).number == lsn + 1
        raw.call(scan(prefix=b"row/00", since_lsn=lsn))
        with Raw(daemon.socket) as reader:
            base = reset_peak(daemon.pid)
            reader.send(scan(since_lsn=lsn))
            sizes, rows = [], []
            while (got := reader.frame()) is not None and got[0] == ROW:
                sizes.append(len(got[1]))
                rows.append(got[1])
            assert got is not None
            assert got[0] == END_STREAM
            assert peak_memory(daemon.pid) - base < 48 * MIB  # the mapped file is part of it, some 32 MiB
        assert max(sizes) < 2 * MIB
        assert len(sizes) > 20
        found = raw.call(scan(since_lsn=lsn)).changes
        assert found == [(lsn + 1, "put", key, key * 30, key == keys[-1]) for key in keys]
        half = raw.call(scan(prefix=b"row/05", since_lsn=lsn)).changes
        assert [change[4] for change in half] == [False] * 9_999 + [True]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_ends_the_sleep_of_watchers(tmp_db: Path, loop: str) -> None:
    """All limits are beyond what this test waits for, so nothing but the stop itself can end them in time."""
    limits = ("--timeout-ms", "1200000", "--drain-ms", "600000")
    with contextlib.ExitStack() as stack, Daemon(tmp_db, *limits, loop=loop) as daemon:
        watchers = [stack.enter_context(Raw(daemon.socket)) for _ in range(20)]
        lsn = now(watchers[0])
        for at, raw in enumerate(watchers):
            raw.send(poll(b"none/", lsn, 600_000))
            if at % 2:
                raw.send(put(b"behind/%d" % at, b"1"), poll(b"none/", lsn, 600_000), frame(PING))
        with Raw(daemon.socket) as other:
            other.ping()
            other.ping()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert "cut off" not in daemon.log
        for at, raw in enumerate(watchers):
            assert raw.answer().end["rows"] == 0
            if at % 2:
                assert [got.code for got in raw.answers(3)] == [OK, END_STREAM, PONG]
            assert raw.at_end()


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_sleeps_for_a_client_that_sends_no_more(tmp_db: Path, loop: str) -> None:
    """As above: no limit can end these in time."""
    with Daemon(tmp_db, "--timeout-ms", "1200000", loop=loop) as daemon, Raw(daemon.socket) as raw:
        lsn = now(raw)
        raw.send(poll(b"none/", lsn, 600_000), poll(b"none/", lsn, 600_000), frame(PING))
        raw.half_close()
        assert [got.code for got in raw.answers(3)] == [END_STREAM, END_STREAM, PONG]
        assert raw.at_end()
