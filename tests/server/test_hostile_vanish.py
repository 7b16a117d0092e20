"""Clients that half-close or vanish at any moment: replies are complete, and nothing of them is left."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.server.raw import (
    BEGIN,
    CHECKPOINT,
    COMMIT,
    END_STREAM,
    GET,
    LOOPS,
    MIB,
    OK,
    PING,
    PONG,
    QUERY,
    SCAN,
    TXN_ID,
    VALUE,
    Raw,
    daemon_on,
    fill,
    frame,
    put,
    scan,
    settled,
)
from tests.support.daemon import Daemon


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon with 20,000 rows and some large ones; its timeout plays no part here."""
    with daemon_on(request.param) as running:
        with Raw(running.socket) as raw:
            fill(raw, ((b"row/%06d" % at, b"x" * 100) for at in range(20_000)))
            fill(raw, ((b"big/%d" % at, bytes(MIB)) for at in range(8)))
        yield running


@pytest.fixture
def observer(daemon: Daemon) -> Iterator[Raw]:
    """A well-behaved client that must be served all the time."""
    with Raw(daemon.socket) as client:
        client.ping()
        yield client
        client.ping()
        settled(client)


# Half-close


def test_everything_sent_before_a_half_close_is_answered(daemon: Daemon, observer: Raw) -> None:
    del observer
    with Raw(daemon.socket) as raw:
        requests = [put(b"h", b"1"), frame(GET, b"h"), scan(prefix=b"row/"), put(b"h", b"2", txn=0), frame(GET, b"h")]
        raw.send(*requests * 20, frame(SCAN, b"row/00000"), frame(PING)).half_close()
        for _ in range(20):
            got = raw.answers(5)
            assert [reply.code for reply in got] == [OK, VALUE, END_STREAM, OK, VALUE]
            assert (got[1].payload, len(got[2].rows), got[4].payload) == (b"1", 40_000, b"2")
        assert raw.answer().code == VALUE
        assert raw.answer().code == PONG
        assert raw.at_end()


@pytest.mark.parametrize(
    "request_",
    [frame(PING), put(b"h", b"1"), scan(prefix=b"row/"), frame(SCAN, b"row/"), frame(CHECKPOINT), frame(GET, b"big/1")],
    ids=["ping", "put", "scan", "classic scan", "checkpoint", "get"],
)
def test_one_request_then_half_close(daemon: Daemon, observer: Raw, request_: bytes) -> None:
    del observer
    with Raw(daemon.socket) as raw:
        raw.send(request_).half_close()
        raw.answer()
        assert raw.at_end()


@pytest.mark.parametrize("rest", [b"", b"\x01", put(b"cut", b"off")[:-1]], ids=["nothing", "header", "payload"])
def test_half_close_behind_half_a_frame(daemon: Daemon, observer: Raw, rest: bytes) -> None:
    with Raw(daemon.socket) as raw:
        raw.send(put(b"h", b"3"), frame(GET, b"big/0") * 3, rest).half_close()
        assert [reply.code for reply in raw.answers(4)] == [OK, VALUE, VALUE, VALUE]
        assert raw.at_end()
    assert observer.call(frame(GET, b"cut", txn=0)).code == OK


def test_half_close_while_replies_are_stuck(daemon: Daemon, observer: Raw) -> None:
    del observer
    for size in range(190_000, 1_400_000, 40_000):
        # The end of the replies falls together with the end of the daemon's pause, in one of the sizes.
        with Raw(daemon.socket) as raw:
            raw.send(frame(GET, b"big/2"), frame(GET, b"row/000001") * (size // 105)).half_close()
            assert raw.drain() == 5 + MIB + size // 105 * 105


def test_half_close_at_once(daemon: Daemon, observer: Raw) -> None:
    del observer
    with Raw(daemon.socket) as raw:
        raw.half_close()
        assert raw.at_end()


def test_half_close_ends_transactions(daemon: Daemon, observer: Raw) -> None:
    with Raw(daemon.socket) as raw:
        txn = raw.begin()
        raw.send(put(b"never", b"1", txn=txn), frame(GET, b"never", txn=txn)).half_close()
        assert [reply.code for reply in raw.answers(2)] == [OK, VALUE]
        assert raw.at_end()
    assert observer.call(frame(GET, b"never", txn=0)).code == OK


# Vanishing


def mid_frame(raw: Raw) -> None:
    raw.send(put(b"v", bytes(100_000))[:50_000])


def mid_oversized(raw: Raw) -> None:
    raw.send(frame(1, length=1 << 30), bytes(50_000))


def mid_write(raw: Raw) -> None:
    raw.send(put(b"v", b"1") * 3000)


def mid_scan(raw: Raw) -> None:
    raw.send(scan(prefix=b""))
    raw.read()


def mid_scan_unread(raw: Raw) -> None:
    raw.send(scan(prefix=b"") * 50)


def mid_classic_scan(raw: Raw) -> None:
    raw.send(frame(SCAN, b"row/") * 50)


def mid_query(raw: Raw) -> None:
    raw.send(frame(QUERY, txn=0) * 20)


def mid_transaction(raw: Raw) -> None:
    for _ in range(20):
        assert raw.call(put(b"never", b"1", txn=raw.begin())).code == OK


def mid_transaction_scan(raw: Raw) -> None:
    txn = raw.begin(isolation="serializable")
    raw.send(put(b"never", b"1", txn=txn), scan(txn=txn, prefix=b""), scan(txn=txn, prefix=b"", window=1))
    raw.read()


def between_submit_and_commit(raw: Raw) -> None:
    txn = raw.begin()
    raw.send(put(b"maybe", b"1", txn=txn), frame(COMMIT, txn=txn))


def with_cursors(raw: Raw) -> None:
    txn = raw.begin()
    for number in (0, txn) * 20:
        assert raw.call(scan(txn=number, prefix=b"row/", window=1, batch=1)).end["cursor"]


def with_a_cursor_under_way(raw: Raw) -> None:
    cursor = raw.call(scan(prefix=b"", window=1, batch=1)).end["cursor"]
    raw.send(scan(cursor=cursor) + scan(cursor=cursor))


def with_replies_unread(raw: Raw) -> None:
    raw.send(frame(GET, b"big/1") * 50)


def in_a_checkpoint(raw: Raw) -> None:
    raw.send(frame(CHECKPOINT) * 5, frame(BEGIN) * 5)


def at_once(raw: Raw) -> None:
    del raw


MOMENTS = (
    mid_frame,
    mid_oversized,
    mid_write,
    mid_scan,
    mid_scan_unread,
    mid_classic_scan,
    mid_query,
    mid_transaction,
    mid_transaction_scan,
    between_submit_and_commit,
    with_cursors,
    with_a_cursor_under_way,
    with_replies_unread,
    in_a_checkpoint,
    at_once,
)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_that_vanishes_leaves_nothing(daemon: Daemon, observer: Raw, moment: Callable[[Raw], None]) -> None:
    for abort in (False, True):
        for _ in range(3):
            with Raw(daemon.socket) as raw:
                moment(raw)
                if abort:
                    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            observer.ping()
    settled(observer)
    assert observer.call(frame(GET, b"never", txn=0)).code == OK


def test_a_crowd_that_vanishes_at_random_moments(daemon: Daemon, observer: Raw) -> None:
    rng = random.Random(7)
    crowd: list[Raw] = []
    with contextlib.ExitStack() as stack:
        for _ in range(120):
            raw = stack.enter_context(Raw(daemon.socket))
            crowd.append(raw)
            rng.choice(MOMENTS)(raw)
            if rng.random() < 0.3:
                raw.half_close()
            if len(crowd) > 20:
                crowd.pop(rng.randrange(len(crowd))).close()
            if rng.random() < 0.2:
                observer.ping()
    settled(observer)


def test_a_commit_whose_client_vanished_is_whole_or_absent(daemon: Daemon, observer: Raw) -> None:
    for at in range(30):
        with Raw(daemon.socket) as raw:
            txn = raw.begin()
            raw.send(*(put(b"whole/%d/%d" % (at, part), b"x", txn=txn) for part in range(50)), frame(COMMIT, txn=txn))
    settled(observer)
    for at in range(30):
        assert observer.call(scan(prefix=b"whole/%d/" % at)).end["rows"] in (0, 50)


def test_a_conflict_is_settled_when_nobody_waits_for_it(daemon: Daemon, observer: Raw) -> None:
    for _ in range(10):
        with Raw(daemon.socket) as raw:
            txn = raw.begin()
            assert raw.call(put(b"fought over", b"mine", txn=txn)).code == OK
            assert observer.call(put(b"fought over", b"yours")).code == OK
            raw.send(frame(COMMIT, txn=txn))
    settled(observer)
    txn = observer.begin()
    observer.send(put(b"fought over", b"again", txn=txn), frame(COMMIT, txn=txn), frame(GET, b"fought over"))
    got = observer.answers(3)
    assert [reply.code for reply in got] == [OK, TXN_ID, VALUE]
    assert got[2].payload == b"again"
