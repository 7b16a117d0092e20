"""PUT with options from clients without manners: every op, wrong options, order among other writes, expiry."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import msgpack
import pytest

from tests.server.raw import (
    BEGIN,
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
    PUT,
    QUERY,
    SCAN,
    TXN_ID,
    VALUE,
    Raw,
    daemon_on,
    frame,
    peak_memory,
    put,
    put_with,
    reset_peak,
    scan,
    until,
)
from tests.support.daemon import Daemon

MOST_MS = 1 << 52
_names = count()


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for all tests of this file."""
    with daemon_on(request.param) as running:
        yield running


@pytest.fixture
def key() -> bytes:
    """A key of this test alone."""
    return b"key/%04d" % next(_names)


def get(raw: Raw, key: bytes, txn: int = 0) -> bytes | None:
    """The value of a key, as the extended form tells it."""
    got = raw.call(frame(GET, key, txn=txn))
    assert got.code in (VALUE, OK), got
    return got.payload if got.code == VALUE else None


def left_ms(raw: Raw, key: bytes, txn: int = 0) -> int | None:
    """What a key has to live; it must exist."""
    got = raw.call(scan(txn=txn, keys=[key], values=False, expiry=True))
    assert got.rows[0] == key
    assert got.end == {"rows": 1, "cursor": None}
    left: int | None = got.rows[1]
    return left


# What each op does, outside and inside a transaction


@pytest.mark.parametrize("inside", [False, True])
def test_every_op(raw: Raw, key: bytes, inside: bool) -> None:
    txn = raw.begin() if inside else 0

    def ask(value: bytes = b"", **options: object) -> object:
        return raw.call(put_with(key, value, txn=txn, **options)).result

    assert ask(op="expire") is False
    assert ask(op="expire", ttl_ms=60_000) is False
    assert ask(op="delete", expected=b"") is False
    assert ask(op="delete", expected=None) is True  # that there is none is what was expected
    assert ask(b"no", expected=b"x") is False
    assert ask(b"no", expected=b"") is False
    assert get(raw, key, txn) is None
    assert ask(b"", expected=None) is True
    assert get(raw, key, txn) == b""
    assert ask(b"no", expected=None) is False
    assert ask(b"one", expected=b"") is True
    assert ask(b"two") is True
    assert ask(b"three", op="put", expected=b"two", ttl_ms=60_000) is True
    assert 0 < (left_ms(raw, key, txn) or 0) <= 60_000
    assert ask(op="expire") is True
    assert left_ms(raw, key, txn) is None
    assert ask(op="expire", ttl_ms=MOST_MS) is True
    assert (left_ms(raw, key, txn) or 0) > MOST_MS - 1_000_000
    assert ask(b"four") is True
    assert left_ms(raw, key, txn) is None
    assert ask(op="delete", expected=b"three") is False
    assert ask(op="delete", expected=b"four") is True
    assert get(raw, key, txn) is None
    assert ask(op="add") == 1
    assert ask(op="add", by=-3) == -2
    assert ask(op="add", by=0) == -2
    assert get(raw, key, txn) == b"-2"
    assert ask(op="expire", ttl_ms=60_000) is True
    assert ask(op="add", by=10) == 8
    assert 0 < (left_ms(raw, key, txn) or 0) <= 60_000, "adding ended the time to live"
    assert raw.call(put(key, b"plain", txn=txn)).code == OK
    assert left_ms(raw, key, txn) is None
    if inside:
        assert get(raw, key) is None
        assert raw.call(frame(COMMIT, txn=txn)).code == TXN_ID
    assert get(raw, key) == b"plain"


def test_the_bounds_of_numbers(raw: Raw, key: bytes) -> None:
    big, small = (1 << 63) - 1, -(1 << 63)
    assert raw.call(put_with(key, op="add", by=big)).result == big
    assert raw.call(put_with(key, op="add", by=1)).error == "VALIDATION"
    assert get(raw, key) == b"%d" % big
    assert raw.call(put_with(key, op="add", by=small)).result == -1
    assert raw.call(put_with(key, op="add", by=small)).error == "VALIDATION"
    for value in (b"", b" 1", b"1 ", b"+1", b"0x1", b"1_0", b"1.0", b"\xd9\xa1", b"9" * 20, b"1\n", b"--1", b"9" * 19):
        assert raw.call(put(key, value)).code == OK
        got = raw.call(put_with(key, op="add", by=0))
        assert got.error == "VALIDATION", value
        assert get(raw, key) == value
    for value, number in ((b"-0", 1), (b"007", 8), (b"-9223372036854775808", small + 1)):
        assert raw.call(put(key, value)).code == OK
        assert raw.call(put_with(key, op="add")).result == number


WRONG: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "unknown op": ({"op": "PUT"}, b"", "VALIDATION"),
    "empty op": ({"op": ""}, b"", "VALIDATION"),
    "long op": ({"op": "x" * 10_000}, b"", "VALIDATION"),
    "ttl of zero": ({"ttl_ms": 0}, b"v", "VALIDATION"),
    "ttl that is too long": ({"ttl_ms": MOST_MS + 1}, b"v", "VALIDATION"),
    "ttl of 64 bits": ({"op": "expire", "ttl_ms": (1 << 64) - 1}, b"", "VALIDATION"),
    "ttl of add": ({"op": "add", "ttl_ms": 1}, b"", "MALFORMED_REQUEST"),
    "ttl of delete": ({"op": "delete", "expected": None, "ttl_ms": 1}, b"", "MALFORMED_REQUEST"),
    "expected of add": ({"op": "add", "expected": b"1"}, b"", "MALFORMED_REQUEST"),
    "expected of expire": ({"op": "expire", "expected": b"1"}, b"", "MALFORMED_REQUEST"),
    "by of put": ({"by": 1}, b"v", "MALFORMED_REQUEST"),
    "by of expire": ({"op": "expire", "by": 1}, b"", "MALFORMED_REQUEST"),
    "delete of anything": ({"op": "delete"}, b"", "MALFORMED_REQUEST"),
    "value of add": ({"op": "add"}, b"1", "MALFORMED_REQUEST"),
    "value of expire": ({"op": "expire"}, b"v", "MALFORMED_REQUEST"),
    "value of delete": ({"op": "delete", "expected": None}, b"v", "MALFORMED_REQUEST"),
    "unknown option": ({"nx": True}, b"v", "MALFORMED_REQUEST"),
    "many options": ({f"o{at}": at for at in range(3000)}, b"v", "MALFORMED_REQUEST"),
    "options of many arrays": ({"expected": [[]] * 100_000}, b"v", "MALFORMED_REQUEST"),
    "a map as an option": ({"expected": {"a": {}}}, b"v", "MALFORMED_REQUEST"),
    "deep options": ({"expected": [[[[]]]]}, b"v", "MALFORMED_REQUEST"),
    "long options": ({"expected": bytes(2 * MIB)}, b"v", ""),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("inside", [False, True])
def test_wrong_options_are_refused_and_change_nothing(raw: Raw, key: bytes, name: str, inside: bool) -> None:
    options, value, code = WRONG[name]
    txn = raw.begin() if inside else 0
    raw.call(put(key, b"1", txn=txn))
    got = raw.call(put_with(key, value, txn=txn, **options))
    if code:
        assert (got.code, got.error) == (ERROR, code)
    else:
        assert got.result is False
    assert get(raw, key, txn) == b"1"
    raw.ping()


def test_options_cut_at_every_position(raw: Raw, key: bytes) -> None:
    whole = put_with(key, b"", expected=b"x", ttl_ms=5)
    body = whole[13:]
    head = 4 + len(key) + 4
    for size in range(len(body)):
        got = raw.call(frame(PUT, body[:size], txn=0))
        assert got.error == "MALFORMED_REQUEST", size
    # A map in the place of its end: it belongs to the options, and nothing of it to the value.
    longer = body[: head - 4] + (len(body) - head + 1).to_bytes(4, "little") + body[head:]
    assert raw.call(frame(PUT, longer, txn=0)).error == "MALFORMED_REQUEST"
    assert get(raw, key) is None
    raw.ping()


def test_options_do_not_become_large_objects(raw: Raw, daemon: Daemon, key: bytes) -> None:
    """Millions of small options would take many times their size in memory before any of them is looked at."""
    entries = b"".join(
        b"\xa4%c%c%c%c\x00" % tuple(48 + (at >> shift) % 64 for shift in (0, 6, 12, 18)) for at in range(1 << 21)
    )
    packed = b"\xdf" + (1 << 21).to_bytes(4, "big") + entries
    head = (len(key) + (1 << 31)).to_bytes(4, "little") + key + len(packed).to_bytes(4, "little")
    request = frame(PUT, head + packed, txn=0)
    base = reset_peak(daemon.pid)
    for _ in range(3):
        assert raw.call(request).error == "MALFORMED_REQUEST"
    assert peak_memory(daemon.pid) - base < 250 * MIB  # some copies of the request


def test_keys_that_cannot_be(raw: Raw) -> None:
    assert raw.call(put_with(b"", b"v")).error == "INVALID_KEY"
    assert raw.call(put_with(b"k" * 512, b"v")).error == "KEY_TOO_LARGE"
    assert raw.call(put_with(b"k" * 511, b"v", expected=None)).result is True
    assert raw.call(put_with(b"k" * 511, op="delete", expected=b"v")).result is True
    # The classic form has no options: the flag is a length of 2 GiB there.
    assert raw.call(frame(PUT, put_with(b"k", b"v")[13:])).error == "MALFORMED_REQUEST"


def test_transactions_that_cannot_be_used(raw: Raw, key: bytes) -> None:
    assert raw.call(put_with(key, b"v", txn=999)).error == "TRANSACTION_NOT_FOUND"
    reader = raw.begin(read_only=True)
    assert raw.call(put_with(key, b"v", txn=reader)).error == "TRANSACTION"
    assert raw.call(put_with(key, b"v", txn=reader, expected=b"other")).result is False, "it wrote nothing"
    assert get(raw, key) is None


def test_a_decision_in_a_transaction_conflicts_like_any_write(raw: Raw, daemon: Daemon, key: bytes) -> None:
    with Raw(daemon.socket) as other:
        txn = raw.begin()
        assert raw.call(put_with(key, txn=txn, op="add")).result == 1
        assert other.call(put_with(key, op="add")).result == 1
        assert raw.call(frame(COMMIT, txn=txn)).error == "TRANSACTION_CONFLICT"
        assert get(raw, key) == b"1"
        # Without a write there is nothing to conflict with, except in a serializable transaction.
        for isolation, conflicts in (("snapshot", False), ("serializable", True)):
            txn = raw.begin(isolation=isolation)
            assert raw.call(put_with(key, b"x", txn=txn, expected=b"none")).result is False
            assert raw.call(put(key + b"/other", b"x", txn=txn)).code == OK
            assert other.call(put_with(key, op="add")).code == END_STREAM
            assert bool(raw.call(frame(COMMIT, txn=txn)).error) == conflicts


# Pipelined with other writes


def test_replies_come_in_order_in_a_pipeline_of_everything(raw: Raw, key: bytes) -> None:
    txn = raw.begin()
    raw.send(
        put_with(key, op="add"),
        put(key + b"/a", b"1"),
        put_with(key, op="add", by=5),
        put_with(key, b"v", expected=b"wrong"),
        put_with(key, b"v", op="nonsense"),
        frame(DELETE, key + b"/a", txn=0),
        put_with(key + b"/a", b"2", expected=None),
        frame(GET, key, txn=0),
        put_with(key, txn=txn, op="add", by=100),
        put_with(key, op="add"),
        frame(GET, key),
        put_with(key, op="expire", ttl_ms=60_000),
        scan(keys=[key], values=False, expiry=True),
        put_with(b"", b"v"),
        put_with(key, op="add", by=1 << 62),
        put_with(key, op="add", by=1 << 62),
        frame(COMMIT, txn=txn),
        frame(PING),
    )
    codes = [END_STREAM, OK, END_STREAM, END_STREAM, ERROR, OK, END_STREAM, VALUE, END_STREAM, END_STREAM, VALUE]
    codes += [END_STREAM, END_STREAM, ERROR, END_STREAM, ERROR, ERROR, PONG]
    got = raw.answers(len(codes))
    assert [reply.code for reply in got] == codes
    assert [got[at].result for at in (0, 2, 3, 6, 8, 9, 11, 14)] == [1, 6, False, True, 100, 7, True, 7 + (1 << 62)]
    assert [got[at].error for at in (4, 13, 15, 16)] == [
        "VALIDATION",
        "INVALID_KEY",
        "VALIDATION",
        "TRANSACTION_CONFLICT",
    ]
    assert [got[at].payload for at in (7, 10)] == [b"6", b"7"]


@pytest.mark.parametrize("seed", range(4))
def test_a_pipeline_in_pieces_equals_the_model(raw: Raw, key: bytes, seed: int) -> None:
    rng = random.Random(seed)
    stored: bytes | None = None
    frames: list[bytes] = []
    wanted: list[object] = []
    for _ in range(600):
        match rng.randrange(6):
            case 0:
                stored = b"%d" % rng.randrange(5)
                frames.append(put(key, stored, txn=rng.choice((None, 0))))
                wanted.append("ok")
            case 1:
                stored = None
                frames.append(frame(DELETE, key, txn=0))
                wanted.append("ok")
            case 2:
                number = rng.randrange(-3, 4)
                stored = b"%d" % (int(stored or 0) + number)
                frames.append(put_with(key, op="add", by=number))
                wanted.append(int(stored))
            case 3:
                expected = rng.choice((None, b"%d" % rng.randrange(5)))
                frames.append(put_with(key, b"7", expected=expected))
                wanted.append(expected == stored)
                stored = b"7" if expected == stored else stored
            case 4:
                expected = rng.choice((None, b"%d" % rng.randrange(8)))
                frames.append(put_with(key, op="delete", expected=expected))
                wanted.append(expected == stored)
                stored = None if expected == stored else stored
            case _:
                frames.append(frame(GET, key, txn=0))
                wanted.append(stored)
    stream, at = b"".join(frames), 0
    while at < len(stream):
        size = rng.choice((1, 3, 60, 700, 5000))
        raw.send(stream[at : at + size])
        at += size
    for want in wanted:
        got = raw.answer()
        if want == "ok":
            assert got.code == OK
        elif want is None or isinstance(want, bytes):
            assert (got.code, got.payload) == ((OK, b"") if want is None else (VALUE, want))
        else:
            result = got.result
            assert (type(result), result) == (type(want), want)


def test_a_pipelining_client_shares_commits(raw: Raw, key: bytes) -> None:
    before = raw.stats()["commits"]
    raw.send(*(put_with(key, op="add") for _ in range(2000)))
    assert [got.result for got in raw.answers(2000)] == list(range(1, 2001))
    assert raw.stats()["commits"] - before < 200


# Expiry, seen by every read


def gone(raw: Raw, key: bytes) -> None:
    """Wait until a key has expired, by the clock alone: it may still be stored."""
    until(lambda: get(raw, key) is None, f"{key!r} has expired")


def test_no_read_sees_what_has_expired(raw: Raw, key: bytes) -> None:
    txn = raw.begin()
    live, dead = key + b"/live", key + b"/dead"
    raw.call(put(live, b'{"n":1}'))
    assert raw.call(put_with(dead, b'{"n":2}', ttl_ms=300)).result is True
    after = raw.begin()
    raw.call(put(dead + b"/own", b"x", txn=after))
    ends = time.monotonic() + 0.3
    rows = raw.call(scan(prefix=key)).rows
    if time.monotonic() < ends:
        assert rows == [dead, b'{"n":2}', live, b'{"n":1}']
    gone(raw, dead)
    query = frame(QUERY, msgpack.packb({"prefix": key, "form": "rows"}), txn=0)
    for round_ in range(2):
        assert raw.call(frame(GET, dead)).payload == b""
        assert raw.call(frame(GET, dead, txn=0)).code == OK
        assert raw.call(frame(GET, dead, txn=txn)).code == OK
        assert raw.call(frame(GET, dead, txn=after)).code == OK
        assert raw.call(scan(prefix=key)).rows == [live, b'{"n":1}']
        assert raw.call(scan(prefix=key, values=False)).rows == [live]
        assert raw.call(scan(prefix=key, values=False, reverse=True, limit=1)).rows == [live]
        assert raw.call(scan(prefix=key, window=1)).rows == [live, b'{"n":1}']
        assert raw.call(scan(prefix=key, txn=after, values=False)).rows == [dead + b"/own", live]
        assert raw.call(scan(keys=[dead, live])).rows == [live, b'{"n":1}']
        assert raw.call(scan(keys=[dead, live], values=False)).rows == [live]
        assert raw.call(scan(keys=[dead, live], values=False, expiry=True)).rows == [live, None]
        assert raw.call(scan(start=dead, end=dead + b"\0", limit=1, values=False)).rows == []
        assert raw.call(frame(SCAN, dead)).payload == bytes(4)
        assert raw.call(query).rows == [live, b"result[1]{n}:1"]
        if not round_:
            # The first round may have met the stored record, the second one meets none.
            lsn = raw.call(scan(since_lsn=None)).end["lsn"]
            until(
                lambda: any(c[1:3] == ("expire", dead) for c in raw.call(scan(prefix=dead, since_lsn=0)).changes),
                f"the record was deleted after {lsn}",
            )
    assert raw.call(put_with(dead, b"again", expected=None)).result is True
    assert get(raw, dead) == b"again"


def test_an_expired_key_is_absent_for_every_decision(raw: Raw, key: bytes) -> None:
    def expired() -> None:
        raw.call(put_with(key, b"5", ttl_ms=1))
        gone(raw, key)

    expired()
    assert raw.call(put_with(key, op="add", by=2)).result == 2
    assert left_ms(raw, key) is None
    expired()
    assert raw.call(put_with(key, op="expire")).result is False
    expired()
    assert raw.call(put_with(key, b"x", expected=b"5")).result is False
    expired()
    assert raw.call(put_with(key, op="delete", expected=b"5")).result is False
    expired()
    txn = raw.begin()
    assert raw.call(put_with(key, b"6", expected=None, txn=txn)).result is True
    assert raw.call(frame(COMMIT, txn=txn)).error in ("", "TRANSACTION_CONFLICT")


def test_a_cached_reply_never_outlives_its_key(raw: Raw, key: bytes) -> None:
    both = (frame(GET, key), frame(GET, key, txn=0))
    raw.call(put(key, b"v"))
    for get_frame in both * 3:
        assert raw.call(get_frame).payload == b"v"  # kept from here on
    assert raw.call(put_with(key, op="expire", ttl_ms=200)).result is True
    hits = raw.stats()["cache_hits"]
    deadline = time.monotonic() + 30
    while raw.call(both[0]).payload:
        assert time.monotonic() < deadline
    # From one moment on it is gone, in both forms, and stays so.
    assert [raw.call(get_frame).payload for get_frame in both * 2] == [b""] * 4
    raw.call(put_with(key, b"w", ttl_ms=60_000))
    before = raw.stats()["cache_hits"]
    for get_frame in both * 3:
        assert raw.call(get_frame).payload == b"w"
    assert raw.stats()["cache_hits"] == before, "a reply that will be wrong was kept"
    assert before - hits <= 3


def test_readers_of_a_ttl_and_batches(raw: Raw, key: bytes) -> None:
    keys = [key + b"/%03d" % at for at in range(50)]
    raw.send(*(put_with(name, b"v", ttl_ms=60_000) for name in keys[::2]), *(put(name, b"v") for name in keys[1::2]))
    raw.answers(50)
    raw.send(scan(keys=keys, values=False, expiry=True, batch=7))
    sizes = []
    while (got := raw.frame()) is not None and got[0] != END_STREAM:
        sizes.append(len(msgpack.unpackb(got[1])) // 2)
    assert sizes == [7] * 7 + [1]
    rows = raw.call(scan(keys=keys, values=False, expiry=True)).rows
    assert rows[::2] == keys
    assert rows[3::4] == [None] * 25
    assert all(0 < left <= 60_000 for left in rows[1::4])
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"keys": keys, "expiry": True}, "MALFORMED_REQUEST"),
        ({"prefix": key, "expiry": True}, "MALFORMED_REQUEST"),
        ({"keys": keys, "expiry": True, "values": False, "prefix": key}, "MALFORMED_REQUEST"),
        ({"keys": [b""], "expiry": True, "values": False}, "INVALID_KEY"),
    )
    for body, code in refused:
        assert raw.call(scan(**body)).error == code


def test_begin_takes_no_options_of_put(raw: Raw) -> None:
    assert raw.call(frame(BEGIN, msgpack.packb({"ttl_ms": 5}), txn=0)).error == "MALFORMED_REQUEST"
