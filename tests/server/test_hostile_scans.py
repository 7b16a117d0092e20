"""Scans, windows and cursors against a model; results that are too large; misuse of cursors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.server.raw import (
    ABORT,
    CAP,
    COMMIT,
    DELETE,
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
    """One daemon for all tests of this file."""
    with daemon_on(request.param) as running:
        yield running


def windows(raw: Raw, *, txn: int = 0, window: int, **body: Any) -> tuple[list[Any], int]:
    """All rows of a scan read window by window, and how many windows it took."""
    got = raw.call(scan(txn=txn, window=window, **body))
    rows, turns = got.rows, 1
    while (cursor := got.end["cursor"]) is not None:
        assert got.rows, "a window without rows"
        got = raw.call(scan(txn=txn, window=window, cursor=cursor))
        rows += got.rows
        turns += 1
    return rows, turns


@pytest.mark.parametrize("seed", range(6))
def test_scans_equal_the_model_in_every_form(raw: Raw, seed: int) -> None:
    rng = random.Random(seed)
    prefix = b"m%d/" % seed
    alphabet = (b"", b"\x00", b"a", b"b", b"\xff", b"/")

    def key() -> bytes:
        return prefix + b"".join(rng.choice(alphabet) for _ in range(rng.randrange(6)))

    stored = {key(): rng.randbytes(rng.choice((0, 3, 100, 3000))) for _ in range(400)}
    fill(raw, stored.items())
    txn = raw.begin()
    seen = dict(stored)
    for _ in range(150):
        name = key()
        if rng.random() < 0.4:
            assert raw.call(frame(DELETE, name, txn=txn)).code == OK
            seen.pop(name, None)
        else:
            value = rng.randbytes(rng.randrange(50))
            assert raw.call(put(name, value, txn=txn)).code == OK
            seen[name] = value
    # What another connection writes meanwhile must not show inside the transaction.
    later = prefix + b"later"
    assert raw.call(put(later, b"x")).code == OK
    stored[later] = b"x"
    for _ in range(60):
        inside = rng.random() < 0.5
        pairs = sorted((seen if inside else stored).items())
        body: dict[str, Any] = {}
        if rng.random() < 0.5:
            body["prefix"] = key()[: rng.randrange(3, 9)]
            pairs = [pair for pair in pairs if pair[0].startswith(body["prefix"])]
        else:
            body["start"], body["end"] = sorted((key(), key()))
            pairs = [pair for pair in pairs if body["start"] <= pair[0] < body["end"]]
        if rng.random() < 0.5:
            body["reverse"] = True
            pairs.reverse()
        if rng.random() < 0.5:
            body["limit"] = rng.randrange(1, 100)
            pairs = pairs[: body["limit"]]
        if rng.random() < 0.5:
            body["batch"] = rng.choice((1, 2, 7, 1000, 100_000))
        wanted: list[bytes]
        if rng.random() < 0.3:
            body["values"] = False
            wanted = [name for name, _ in pairs]
        else:
            wanted = [part for pair in pairs for part in pair]
        number = txn if inside else 0
        once = raw.call(scan(txn=number, **body))
        assert once.rows == wanted, body
        assert once.end == {"rows": len(pairs), "cursor": None}
        rows, turns = windows(raw, txn=number, window=rng.choice((1, 50, 1000, 10**9)), **body)
        assert rows == wanted, body
        assert turns <= len(pairs) + 1
        names = [rng.choice(list(stored)) if rng.random() < 0.7 else key() for _ in range(20)]
        view = seen if inside else stored
        looked_up = [part for name in names if name in view for part in (name, view[name])]
        assert raw.call(scan(txn=number, keys=names, batch=3)).rows == looked_up
        assert raw.call(scan(txn=number, keys=names, values=False)).rows == looked_up[::2]
    assert raw.call(frame(ABORT, txn=txn)).code == OK


def test_a_batch_may_change_with_the_window(raw: Raw) -> None:
    fill(raw, ((b"batch/%03d" % at, b"v") for at in range(100)))
    got = raw.call(scan(prefix=b"batch/", batch=3, window=1))
    assert len(got.rows) == 6
    got = raw.call(scan(cursor=got.end["cursor"], batch=10, window=1))
    assert got.rows[::2] == [b"batch/%03d" % at for at in range(3, 13)]
    got = raw.call(scan(cursor=got.end["cursor"], window=1))
    assert len(got.rows) == 20
    got = raw.call(scan(cursor=got.end["cursor"]))
    assert got.end == {"rows": 77, "cursor": None}


def test_a_cursor_keeps_its_snapshot(raw: Raw) -> None:
    fill(raw, ((b"snap/%03d" % at, b"old") for at in range(50)))
    got = raw.call(scan(prefix=b"snap/", batch=10, window=1))
    fill(raw, ((b"snap/%03d" % at, b"new") for at in range(20, 60)))
    got = raw.call(scan(cursor=got.end["cursor"]))
    assert got.rows == [part for at in range(10, 50) for part in (b"snap/%03d" % at, b"old")]


def test_a_scan_inside_a_transaction_does_not_see_what_it_writes_later(raw: Raw) -> None:
    fill(raw, ((b"own/%03d" % at, b"old") for at in range(30)))
    txn = raw.begin()
    raw.call(put(b"own/005", b"before", txn=txn))
    got = raw.call(scan(txn=txn, prefix=b"own/", batch=10, window=1))
    assert got.rows[11] == b"before"
    raw.call(put(b"own/020", b"after", txn=txn))
    got = raw.call(scan(txn=txn, cursor=got.end["cursor"]))
    assert set(got.rows[1::2]) == {b"old"}
    assert raw.call(scan(txn=txn, keys=[b"own/020"])).rows == [b"own/020", b"after"]
    assert raw.call(frame(ABORT, txn=txn)).code == OK


def test_cursors_belong_to_their_connection_and_transaction(daemon: Daemon, raw: Raw) -> None:
    fill(raw, ((b"mine/%03d" % at, b"v") for at in range(50)))
    free = raw.call(scan(prefix=b"mine/", batch=10, window=1)).end["cursor"]
    txn, other = raw.begin(), raw.begin()
    bound = raw.call(scan(txn=txn, prefix=b"mine/", batch=10, window=1)).end["cursor"]
    assert free != bound
    for number, cursor in ((txn, free), (0, bound), (other, bound), (12345, bound)):
        assert raw.call(scan(txn=number, cursor=cursor)).error == "CURSOR_NOT_FOUND"
        assert raw.call(scan(txn=number, cursor=cursor, close=True)).error == "CURSOR_NOT_FOUND"
    with Raw(daemon.socket) as stranger:
        assert stranger.call(scan(cursor=free)).error == "CURSOR_NOT_FOUND"
    assert raw.call(scan(cursor=free, close=True)).end == {"rows": 0, "cursor": None}
    assert raw.call(scan(cursor=free)).error == "CURSOR_NOT_FOUND"
    assert raw.call(scan(cursor=free, close=True)).error == "CURSOR_NOT_FOUND"
    # The end of the transaction is the end of its cursor.
    again = raw.call(scan(txn=txn, prefix=b"mine/", batch=10, window=1)).end["cursor"]
    assert raw.call(frame(COMMIT, txn=txn)).code == TXN_ID
    assert raw.call(scan(txn=txn, cursor=again)).error == "CURSOR_NOT_FOUND"
    gone = raw.call(scan(txn=other, prefix=b"mine/", batch=10, window=1)).end["cursor"]
    assert raw.call(frame(ABORT, txn=other)).code == OK
    assert raw.call(scan(txn=other, cursor=gone)).error == "CURSOR_NOT_FOUND"
    # An exhausted cursor is gone too.
    last = raw.call(scan(prefix=b"mine/", batch=40, window=1)).end["cursor"]
    assert raw.call(scan(cursor=last)).end == {"rows": 10, "cursor": None}
    assert raw.call(scan(cursor=last)).error == "CURSOR_NOT_FOUND"
    settled(raw)


def test_a_scan_in_no_transaction_of_ours_is_refused(raw: Raw) -> None:
    for body in ({"prefix": b"x"}, {"keys": [b"x"]}, {"start": b""}):
        assert raw.call(frame(SCAN, msgpack.packb(body), txn=999)).error == "TRANSACTION_NOT_FOUND"
    assert raw.call(frame(QUERY, txn=999)).error == "TRANSACTION_NOT_FOUND"


def test_too_many_cursors(raw: Raw) -> None:
    fill(raw, ((b"cur/%03d" % at, b"v") for at in range(50)))
    raw.send(*[scan(prefix=b"cur/", batch=1, window=1)] * 257)
    got = raw.answers(257)
    assert all(reply.end["cursor"] for reply in got[:256])
    assert got[256].error == "TRANSACTION"
    assert raw.call(scan(cursor=got[3].end["cursor"], close=True)).code == END_STREAM
    assert raw.call(scan(prefix=b"cur/", batch=1, window=1)).end["cursor"]
    # A scan that needs no cursor is served all the same.
    assert raw.call(scan(prefix=b"cur/")).end["rows"] == 50


def test_results_too_large_for_a_classic_frame_name_the_extended_form(raw: Raw) -> None:
    fill(raw, ((b"huge/%02d" % at, b'{"v": "' + bytes([65 + at]) * MIB + b'"}') for at in range(18)))
    for request in (
        frame(SCAN, b"huge/"),
        frame(QUERY, b"\x05\x00huge/" + bytes(8) + bytes(2)),
    ):
        got = raw.call(request)
        assert got.error == "FRAME_TOO_LARGE"
        assert b"extended bit 0x40" in got.payload
    got = raw.call(scan(prefix=b"huge/"))
    assert got.end["rows"] == 18
    assert [len(value) for value in got.rows[1::2]] == [MIB + 9] * 18
    got = raw.call(frame(QUERY, msgpack.packb({"prefix": b"huge/"}), txn=0))
    text = b"".join(got.rows)
    assert text.startswith(b"result[18]{v}:")
    assert text.count(b"R" * MIB) == 1
    got = raw.call(frame(QUERY, b"\x05\x00huge/" + b"\x02\0\0\0" + bytes(4) + bytes(2)))
    assert got.code == VALUE
    assert len(got.payload) > 2 * MIB
    fill_back = [frame(DELETE, b"huge/%02d" % at) for at in range(18)]
    assert {reply.code for reply in raw.send(*fill_back).answers(18)} == {OK}


def test_rows_larger_than_a_batch(raw: Raw) -> None:
    sizes = [0, 1, 255_000, 262_144, 300_000, 2 * MIB, 0, CAP - 20, CAP - 4 - 8, 10]
    fill(raw, ((b"large/%02d" % at, bytes([at]) * size) for at, size in enumerate(sizes)))
    wanted = [part for at, size in enumerate(sizes) for part in (b"large/%02d" % at, bytes([at]) * size)]
    assert raw.call(scan(prefix=b"large/")).rows == wanted
    assert raw.call(scan(keys=wanted[::2])).rows == wanted
    assert windows(raw, prefix=b"large/", window=1, batch=3)[0] == wanted
    assert windows(raw, prefix=b"large/", window=1, values=False)[0] == wanted[::2]
    assert raw.call(frame(GET, b"large/08")).payload == wanted[17]
    fill_back = [frame(DELETE, key) for key in wanted[::2]]
    assert {reply.code for reply in raw.send(*fill_back).answers(len(sizes))} == {OK}


@pytest.mark.parametrize("loop", LOOPS)
def test_values_stored_under_a_larger_cap_are_refused_not_truncated(loop: str) -> None:
    with daemon_on(loop) as first:
        with Raw(first.socket) as raw:
            fill(raw, [(b"a", b"1"), (b"b", bytes(5000)), (b"c", b"3")])
        first.stop()
        with Daemon(first.db, "--max-frame", "1024", loop=loop) as second, Raw(second.socket) as raw:
            assert raw.call(frame(GET, b"b")).error == "FRAME_TOO_LARGE"
            assert raw.call(frame(GET, b"b", txn=0)).error == "FRAME_TOO_LARGE"
            txn = raw.begin()
            assert raw.call(frame(GET, b"b", txn=txn)).error == "FRAME_TOO_LARGE"
            assert raw.call(scan(prefix=b"")).error == "FRAME_TOO_LARGE"
            assert raw.call(scan(keys=[b"a", b"b"])).error == "FRAME_TOO_LARGE"
            assert raw.call(frame(SCAN)).error == "FRAME_TOO_LARGE"
            assert raw.call(scan(prefix=b"", values=False)).rows == [b"a", b"b", b"c"]
            assert raw.call(scan(keys=[b"a", b"c"])).rows == [b"a", b"1", b"c", b"3"]
            assert raw.call(put(b"d", bytes(1024 - 5))).code == OK
            assert raw.call(put(b"d", bytes(1024 - 4))).error == "FRAME_TOO_LARGE"
            assert raw.call(scan(prefix=b"d")).rows == [b"d", bytes(1024 - 5)]
            assert raw.call(frame(PING, txn=0)).code == PONG
            assert raw.stats()["keys_count"] == 4


def test_a_hundred_thousand_small_scans_in_one_go(raw: Raw) -> None:
    fill(raw, ((b"small/%d" % at, b"v") for at in range(3)))
    requests = [scan(prefix=b"small/"), frame(SCAN, b"small/"), scan(prefix=b"none/"), scan(keys=[b"small/1"])]
    part = b"".join(requests) * 2500
    for _ in range(10):
        # The daemon has 10,000 of them at once; sending more before reading would only block this side.
        raw.send(part)
        for _ in range(2500):
            got = raw.answers(4)
            assert [len(reply.rows) for reply in got] == [6, 0, 0, 2]
            assert [reply.code for reply in got] == [END_STREAM, VALUE, END_STREAM, END_STREAM]
    raw.ping()
