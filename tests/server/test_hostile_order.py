"""Pipelined mixes of every kind of request against a model in memory: right answers, in request order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.raw import (
    ABORT,
    BEGIN,
    CHECKPOINT,
    COMMIT,
    CREATE_TABLE,
    DELETE,
    END_STREAM,
    ERROR,
    GET,
    LOOPS,
    OK,
    PING,
    PONG,
    PUT,
    SCAN,
    TXN_ID,
    VALUE,
    Answer,
    Raw,
    daemon_on,
    frame,
    put,
    scan,
    settled,
)
from tests.support.daemon import Daemon

_runs = count()


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon; every example works below a prefix of its own."""
    with daemon_on(request.param) as running:
        yield running


class Model:
    """What one connection must be answered, given that nobody else writes below its prefix.

    Transactions are named by the order of their BEGIN; the daemon's ids are learned from its replies, so a
    request that names one can be pipelined only behind the reply to its BEGIN.
    """

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.stored: dict[bytes, bytes] = {}
        self.versions: dict[bytes, int] = {}
        self.version = 0
        self.open: dict[int, tuple[int, dict[bytes, bytes], dict[bytes, bytes | None]]] = {}
        self.last_lsn = 0

    def write(self, key: bytes, value: bytes | None) -> None:
        if value is None and key not in self.stored:
            return
        self.version += 1
        self.versions[key] = self.version
        if value is None:
            del self.stored[key]
        else:
            self.stored[key] = value

    def view(self, txn: int) -> dict[bytes, bytes]:
        if not txn:
            return self.stored
        _, snapshot, writes = self.open[txn]
        merged: dict[bytes, bytes | None] = {**snapshot, **writes}
        return {key: value for key, value in merged.items() if value is not None}

    def commit(self, txn: int) -> str:
        since, _, writes = self.open.pop(txn)
        if any(self.versions.get(key, 0) > since for key in writes):
            return "TRANSACTION_CONFLICT"
        for key, value in writes.items():
            self.write(key, value)
        return ""

    # A request of the plan, as a frame and a check of its answer

    def step(self, kind: str, key: bytes, value: bytes, txn: int, extended: bool) -> tuple[bytes, object]:
        """The frame, and what must come back: a code, a (code, payload) or an error's code as text."""
        known = not txn or txn in self.open
        named = txn if extended else None
        missing = "TRANSACTION_NOT_FOUND"
        if kind == "put":
            request = put(key, value, txn=named)
            if not extended or not txn:
                self.write(key, value)
            elif known:
                self.open[txn][2][key] = value
            return request, OK if not extended or known else missing
        if kind == "delete":
            request = frame(DELETE, key, txn=named)
            if not extended or not txn:
                self.write(key, None)
            elif known:
                self.open[txn][2][key] = None
            return request, OK if not extended or known else missing
        if kind == "get":
            request = frame(GET, key, txn=named)
            if not extended:
                return request, (VALUE, self.stored.get(key, b""))
            if not known:
                return request, missing
            found = self.view(txn).get(key)
            return request, OK if found is None else (VALUE, found)
        if kind == "scan":
            if not extended:
                rows = sorted(self.stored.items())
                body = len(rows).to_bytes(4, "little") + b"".join(
                    len(k).to_bytes(2, "little") + k + len(v).to_bytes(4, "little") + v for k, v in rows
                )
                return frame(SCAN, self.prefix), (VALUE, body)
            request = scan(txn=txn, prefix=self.prefix)
            if not known:
                return request, missing
            return request, [part for pair in sorted(self.view(txn).items()) for part in pair]
        if kind == "keys":
            request = scan(txn=txn, keys=[key, self.prefix + b"never", key])
            if not known:
                return request, missing
            found = self.view(txn).get(key)
            return request, [] if found is None else [key, found] * 2
        if kind == "commit":
            request = frame(COMMIT, txn=txn) if extended else frame(COMMIT, txn.to_bytes(8, "little"))
            if txn not in self.open:
                return request, missing
            return request, self.commit(txn) or TXN_ID
        if kind == "abort":
            request = frame(ABORT, txn=txn) if extended else frame(ABORT, txn.to_bytes(8, "little"))
            if txn not in self.open:
                return request, missing
            del self.open[txn]
            return request, OK
        if kind == "ping":
            return frame(PING), (PONG, b"")
        if kind == "checkpoint":
            return frame(CHECKPOINT, txn=0 if extended else None), TXN_ID if extended else OK
        if kind == "unknown":
            return frame(0x3F, value, txn=0 if extended else None), "UNKNOWN_OPCODE"
        if kind == "empty key":
            return put(b"", value, txn=0 if extended else None), "INVALID_KEY"
        if kind == "long key":
            return frame(DELETE, bytes(512), txn=0 if extended else None), "KEY_TOO_LARGE"
        if kind == "torn put":
            return frame(PUT, b"\xff\xff\xff\xff" + key), "MALFORMED_REQUEST"
        if kind == "short":
            return frame(PUT | 0x40, bytes(5)), "MALFORMED_REQUEST"
        if kind == "bad table":
            return frame(CREATE_TABLE, b"\0\0\0\0"), "VALIDATION"
        assert kind == "oversized"
        return frame(PUT, bytes(16 * 1024 * 1024 + 1)), "FRAME_TOO_LARGE"

    def check(self, got: Answer, wanted: object, step: object) -> None:
        if isinstance(wanted, str):
            assert got.code == ERROR, (step, got, wanted)
            assert got.error == wanted, step
        elif isinstance(wanted, list):
            assert got.code == END_STREAM, (step, got)
            assert got.rows == wanted, step
        elif isinstance(wanted, tuple):
            assert (got.code, got.payload) == wanted, step
        else:
            assert got.code == wanted, (step, got)


KINDS = (
    *("put",) * 6,
    *("delete",) * 2,
    *("get",) * 4,
    *("commit",) * 3,
    *("scan", "keys", "abort", "ping", "checkpoint", "unknown", "empty key", "long key", "torn put", "short"),
    "bad table",
)

Step = tuple[str, int, bytes, int, bool]
steps = st.tuples(
    st.sampled_from(KINDS),
    st.integers(0, 5),
    st.one_of(st.binary(max_size=4), st.binary(min_size=1000, max_size=1000)),
    st.integers(0, 6),
    st.booleans(),
)
burst = st.tuples(st.integers(0, 2), st.lists(steps, max_size=40))


def _run(daemon: Daemon, bursts: list[tuple[int, list[Step]]], cuts: random.Random) -> None:
    prefix = b"%d/" % next(_runs)
    model = Model(prefix)
    with Raw(daemon.socket) as raw, Raw(daemon.socket) as foreign:
        ids = [0, 2**63 + 1, foreign.begin()]  # none, one that never was, one of another connection
        for begins, plan in bursts:
            # BEGIN is pipelined behind writes of the burst before, in both forms.
            frames = [put(prefix + b"early", b"1"), *(frame(BEGIN, txn=0 if at else None) for at in range(begins))]
            model.write(prefix + b"early", b"1")
            got = raw.send(*frames).answers(1 + begins)
            assert got[0].code == OK
            for reply in got[1:]:
                ids.append(reply.number)
                model.open[reply.number] = (model.version, dict(model.stored), {})
            wanted = []
            stream = bytearray()
            for kind, key, value, which, extended in plan:
                step = (kind, prefix + b"k%d" % key, value, ids[which % len(ids)], extended)
                request, reply_wanted = model.step(*step)
                stream += request
                wanted.append((reply_wanted, step))
            at = 0
            while at < len(stream):
                size = cuts.choice((1, 5, 50, 500, 5000, len(stream)))
                raw.send(bytes(stream[at : at + size]))
                at += size
            for reply_wanted, told in wanted:
                model.check(raw.answer(), reply_wanted, told)
        raw.ping()
        assert foreign.call(frame(COMMIT, txn=ids[2])).code == TXN_ID
    with Raw(daemon.socket) as observer:
        settled(observer)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(bursts=st.lists(burst, min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_pipelined_requests_are_answered_as_the_model_says(
    daemon: Daemon, bursts: list[tuple[int, list[Step]]], seed: int
) -> None:
    _run(daemon, bursts, random.Random(seed))


@pytest.mark.parametrize("seed", range(4))
def test_long_pipelines_are_answered_as_the_model_says(daemon: Daemon, seed: int) -> None:
    rng = random.Random(seed)
    plan: list[tuple[int, list[Step]]] = []
    for _ in range(4):
        kinds = KINDS if seed % 2 else ("put", "put", "put", "commit", "get", "empty key", "unknown")
        plan.append(
            (
                2,
                [
                    (
                        rng.choice(kinds),
                        rng.randrange(6),
                        rng.randbytes(rng.randrange(60)),
                        rng.randrange(11),
                        rng.random() < 0.6,
                    )
                    for _ in range(700)
                ],
            )
        )
    plan[0][1].insert(50, ("oversized", 0, b"", 0, False))
    _run(daemon, plan, rng)


def test_a_commit_without_writes_amid_writes_does_not_turn_the_lsn_back(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        old = raw.begin()
        raw.send(*(put(b"lsn/%d" % at, b"x") for at in range(50)))
        assert {reply.code for reply in raw.answers(50)} == {OK}
        before = raw.stats()["lsn"]
        new = raw.begin()
        raw.send(put(b"lsn/a", b"1"), frame(COMMIT, txn=old), put(b"lsn/b", b"2"), put(b"lsn/c", b"3", txn=new))
        raw.send(frame(COMMIT, txn=new))
        got = raw.answers(5)
        assert [reply.code for reply in got] == [OK, TXN_ID, OK, OK, TXN_ID]
        assert got[1].number == before - 50
        assert got[4].number == before + 3
        assert raw.stats()["lsn"] == before + 3


def test_committing_twice_in_one_packet_is_like_committing_twice(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        for extended in (False, True):
            txn = raw.begin()
            end = frame(COMMIT, txn=txn) if extended else frame(COMMIT, txn.to_bytes(8, "little"))
            raw.send(put(b"twice", b"1", txn=txn), end, end, frame(GET, b"twice", txn=txn), end, frame(ABORT, txn=txn))
            got = raw.answers(6)
            assert [reply.error or reply.code for reply in got] == [OK, TXN_ID] + ["TRANSACTION_NOT_FOUND"] * 4


def test_a_conflict_amid_writes_takes_only_its_own_transaction(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        first, second, third = raw.begin(), raw.begin(), raw.begin()
        for txn, value in ((first, b"1"), (second, b"2")):
            assert raw.call(put(b"conflict", value, txn=txn)).code == OK
        assert raw.call(put(b"conflict-free", b"3", txn=third)).code == OK
        raw.send(
            put(b"before", b"x"),
            *(frame(COMMIT, txn=txn) for txn in (first, second, third)),
            put(b"after", b"x"),
            frame(GET, b"conflict"),
            frame(GET, b"conflict-free"),
            frame(GET, b"after"),
        )
        got = raw.answers(8)
        assert [reply.error or reply.code for reply in got[:5]] == [OK, TXN_ID, "TRANSACTION_CONFLICT", TXN_ID, OK]
        assert [reply.payload for reply in got[5:]] == [b"1", b"3", b"x"]


def test_a_table_created_twice_in_one_packet(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        request = b"\x02\x00tt\x01\x00\x01\x00a\x00\x00"
        raw.send(*[frame(CREATE_TABLE, request), frame(CREATE_TABLE, request, txn=0)] * 2, put(b"k", b"v"))
        got = raw.answers(5)
        assert [reply.error or reply.code for reply in got] == [OK, *["TABLE_EXISTS"] * 3, OK]


def test_many_writes_with_errors_between_them(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        unit = put(b"many", b"v") + put(b"", b"v") + put(b"many", b"w", txn=0) + frame(0x7F) + frame(GET, b"many")
        wanted = [OK, "INVALID_KEY", OK, "UNKNOWN_OPCODE", VALUE]
        for _ in range(10):
            raw.send(unit * 200)
            for _ in range(200):
                got = raw.answers(5)
                assert [reply.error or reply.code for reply in got] == wanted
                assert got[4].payload == b"w"


def test_too_many_open_transactions(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        raw.send(*[frame(BEGIN)] * 257)
        got = raw.answers(257)
        assert {reply.code for reply in got[:256]} == {TXN_ID}
        assert got[256].error == "TRANSACTION"
        assert raw.call(frame(ABORT, txn=got[7].number)).code == OK
        assert raw.begin()
    with Raw(daemon.socket) as observer:
        settled(observer)


def test_a_body_is_not_read_into_the_next_frame(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        # An extended PUT of 5 bytes looks as if the next frame's bytes completed its transaction id.
        raw.send(put(b"a", b"1"), frame(PUT | 0x40, bytes(5)), frame(0, bytes(3)), put(b"b", b"2"), frame(PING))
        got = raw.answers(5)
        assert [reply.error or reply.code for reply in got] == [OK, "MALFORMED_REQUEST", "UNKNOWN_OPCODE", OK, PONG]


def test_read_only_and_serializable_transactions_keep_their_word(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        reader = raw.begin(read_only=True)
        assert raw.call(put(b"ro", b"1", txn=reader)).error == "TRANSACTION"
        assert raw.call(frame(COMMIT, txn=reader)).code == TXN_ID
        strict = raw.begin(isolation="serializable")
        raw.send(
            frame(GET, b"skew", txn=strict),
            put(b"skew", b"other"),
            put(b"mine", b"1", txn=strict),
            frame(COMMIT, txn=strict),
        )
        assert [reply.error or reply.code for reply in raw.answers(4)] == [OK, OK, OK, "TRANSACTION_CONFLICT"]
        assert raw.call(frame(BEGIN, msgpack.packb({"isolation": "chaos"}), txn=0)).error == "VALIDATION"
        assert raw.call(frame(BEGIN, txn=reader)).error == "MALFORMED_REQUEST"
