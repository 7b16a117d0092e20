"""Operations of namespaces and collections from hostile clients: bodies, parts, arguments, results, and their ends."""

from __future__ import annotations

import contextlib
import math
import random
import struct
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgpack
import pytest

from tests.server.raw import (
    ABORT,
    BEGIN,
    CAP,
    COMMIT,
    END_STREAM,
    ERROR,
    GET,
    LOOPS,
    MIB,
    OK,
    PING,
    PONG,
    QUERY,
    TXN_ID,
    VALUE,
    Answer,
    Raw,
    daemon_on,
    frame,
    hung_up,
    peak_memory,
    put,
    reset_peak,
    scan,
    settled,
)
from tests.server.sql_frames import sql
from tests.support.daemon import Daemon
from toondb import IpcClient
from toondb_protocol.collections import OPERATIONS, READING
from toondb_protocol.errors import ErrorCode

WHERE: dict[str, Any] = {"namespace": "ns", "collection": "docs"}
ONE = struct.pack("<2f", 1.0, 0.0)


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for all tests of this file; it must survive every one of them."""
    with daemon_on(request.param, "--max-transaction-bytes", str(20 * MIB)) as running:
        yield running
        assert "internal error" not in running.log


@pytest.fixture
def docs(raw: Raw) -> Raw:
    """A connection, and a collection ``ns/docs`` of two dimensions with the document ``there``."""
    for name in result(raw.call(op("namespace_list"))):
        assert result(raw.call(op("namespace_delete", name=name))) is True
    assert result(raw.call(op("namespace_create", name="ns"))) is None
    made = op("collection_create", namespace="ns", name="docs", dimension=2, hybrid=True)
    assert result(raw.call(made)) is None
    assert result(raw.call(document("there"))) is None
    return raw


def op(name: Any, /, *, txn: int = 0, **arguments: Any) -> bytes:
    """A QUERY with an operation."""
    return body(txn=txn, op=name, args=msgpack.packb(arguments))


def body(*, txn: int = 0, **keys: Any) -> bytes:
    return frame(QUERY, msgpack.packb(keys), txn=txn)


def document(*ids: str, txn: int = 0, **others: Any) -> bytes:
    """A QUERY that stores documents."""
    count = len(ids)
    given = {
        "ids": ids,
        "vectors": ONE * count,
        "dimension": 2,
        "metadatas": [{}] * count,
        "contents": ["word"] * count,
    }
    return op("document_put", txn=txn, **{**WHERE, **given, **others})


def result(answer: Answer) -> Any:
    """The result of an operation."""
    assert answer.end["rows"] == len(answer.rows)
    return msgpack.unpackb(b"".join(answer.rows), strict_map_key=False)


def count(raw: Raw) -> int:
    return int(result(raw.call(op("document_count", **WHERE))))


# Bodies


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"op": "no_such"}, "VALIDATION"),
        ({"op": ""}, "VALIDATION"),
        ({"op": "x" * 100_000}, "VALIDATION"),
        ({"op": 5}, "MALFORMED_REQUEST"),
        ({"op": None}, "MALFORMED_REQUEST"),
        ({"op": ["search"]}, "MALFORMED_REQUEST"),
        ({"op": b"search"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": {}}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": "text"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": None}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": 5}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "more": 1}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "part": -1}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "part": True}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "part": 1}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "window": 1}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "params": []}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "prefix": b"a"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "sql": "SELECT 1"}, "MALFORMED_REQUEST"),
        ({"args": b"\x80"}, "MALFORMED_REQUEST"),
        ({"args": b"\x80", "prefix": b"a"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\xc1"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x80\x80"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x90"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\xc0"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x01"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81\x01\x02"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81\xa1\xff\x02"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81\xa1a\xd4\x01\x02"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81\xa1a" + b"\x91" * 80 + b"\x01"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": b"\x81\xa1a\xdd\xff\xff\xff\xff"}, "MALFORMED_REQUEST"),
        ({"op": "namespace_list", "args": msgpack.packb({"unknown": 1})}, "VALIDATION"),
    ],
)
def test_a_wrong_body_is_refused(docs: Raw, keys: dict[str, Any], code: str) -> None:
    assert docs.call(body(**keys)).error == code
    assert result(docs.call(op("namespace_list"))) == ["ns"]
    assert result(docs.call(body(op="namespace_list"))) == ["ns"]  # no arguments at all


def test_the_classic_form_knows_no_operations(docs: Raw) -> None:
    assert docs.call(frame(QUERY, msgpack.packb({"op": "namespace_list"}))).code == ERROR
    docs.ping()


@pytest.mark.parametrize("txn", [1 << 63, 12_345])
def test_operations_in_no_transaction_of_ours(docs: Raw, txn: int) -> None:
    for name in OPERATIONS:
        assert docs.call(op(name, txn=txn)).error == "TRANSACTION_NOT_FOUND"
        assert docs.call(body(txn=txn, op=name, args=b"", more=True)).error == "TRANSACTION_NOT_FOUND"


def test_many_small_values_are_refused_before_they_are_made(docs: Raw, daemon: Daemon) -> None:
    before = reset_peak(daemon.pid)
    empty = [b"\x81\xa3ids\xdd" + struct.pack(">I", 12 * MIB)] + [b"\x90" * MIB] * 12
    flat = [b"\x82\xa3ids\xdd" + struct.pack(">I", 4_194_304) + b"\xc0" * 4_194_304, b"\xa1a\x91\xc0"]
    for parts in (empty, flat):
        for at, part in enumerate(parts[:-1]):
            docs.send(body(op="document_get", args=part, part=at, more=True))
        docs.send(body(op="document_get", args=parts[-1], part=len(parts) - 1))
        assert {reply.error for reply in docs.answers(len(parts) - 1)} == {""}
        assert docs.answer().error == "MALFORMED_REQUEST"
    assert peak_memory(daemon.pid) - before < 150 * MIB


# Parts


def cut(packed: bytes, *at: int, **keys: Any) -> list[bytes]:
    """An operation in parts."""
    bounds = [0, *at, len(packed)]
    parts = [packed[low:high] for low, high in pairwise(bounds)]
    last = len(parts) - 1
    return [
        body(**{"op": "document_put", "args": part, "part": number, "more": number < last, **keys})
        for number, part in enumerate(parts)
    ]


def packed(*ids: str) -> bytes:
    request = document(*ids)
    arguments: bytes = msgpack.unpackb(request[13:])["args"]
    return arguments


def test_parts_are_one_operation(docs: Raw) -> None:
    parts = cut(packed("a", "b"), 1, 7, 7, 60)
    got = docs.send(*parts).answers(len(parts))
    assert [reply.end["rows"] for reply in got[:-1]] == [0] * 4
    assert result(got[-1]) is None
    assert count(docs) == 3
    txn = docs.begin()
    docs.send(*cut(packed("c"), 9, txn=txn), frame(COMMIT, txn=txn))
    assert [reply.error or reply.code for reply in docs.answers(3)] == [END_STREAM, END_STREAM, TXN_ID]
    assert count(docs) == 4
    # Byte by byte.
    arguments = packed("d")
    parts = cut(arguments, *range(1, len(arguments)))
    assert {reply.error for reply in docs.send(*parts).answers(len(parts))} == {""}
    assert count(docs) == 5


A, B, C = cut(packed("x", "y"), 10, 20)
UNKNOWN = body(op="no_such")


@pytest.mark.parametrize(
    "broken",
    [
        [A, C],
        [B, C],
        [A, B, B, C],
        [A, cut(packed("x", "y"), 10, 20, op="document_delete")[1], C],
        [A, cut(packed("x", "y"), 10, 20, txn=77)[1], C],
        [A, body(op="document_put", args="text", part=1), C],
        [A, body(op="document_put", args=b"", part=1, window=1), C],
        [A, UNKNOWN, B, C],
        [A, op("namespace_list"), B, C],
        [A, body(op="document_put", args=bytes(8 * MIB), part=1, more=True)]
        + [body(op="document_put", args=bytes(8 * MIB), part=at, more=True) for at in (2, 3)]
        + [body(op="document_put", args=b"", part=4)],
    ],
    ids=[
        "a part left out",
        "the first left out",
        "a part twice",
        "another operation amid them",
        "another transaction amid them",
        "no bytes",
        "a key without meaning",
        "an unknown operation amid them",
        "another operation done amid them",
        "more than a transaction takes",
    ],
)
def test_a_refused_part_is_the_end_of_all(docs: Raw, broken: list[bytes]) -> None:
    got = docs.send(*broken).answers(len(broken))
    assert got[-1].code == ERROR
    assert count(docs) == 1
    # Nothing of it is taken for a part of what comes next.
    assert docs.call(C).error == "MALFORMED_REQUEST"
    assert {reply.error for reply in docs.send(A, B, C).answers(3)} == {""}
    assert count(docs) == 3


def test_the_first_part_again_begins_anew(docs: Raw) -> None:
    assert {reply.error for reply in docs.send(A, A, B, A, B, C).answers(6)} == {""}
    assert count(docs) == 3


def test_other_requests_between_parts(docs: Raw) -> None:
    txn = docs.begin()
    docs.send(
        A,
        frame(PING),
        put(b"between", b"1"),
        frame(GET, b"between"),
        put(b"inside", b"2", txn=txn),
        sql("SELECT 1"),
        B,
        frame(COMMIT, txn=txn),
        scan(prefix=b"between"),
        frame(0x7F),
        C,
    )
    got = [reply.error or reply.code for reply in docs.answers(11)]
    expected = [END_STREAM, PONG, OK, VALUE, OK, END_STREAM, END_STREAM, TXN_ID, END_STREAM, "UNKNOWN_OPCODE"]
    assert got == [*expected, END_STREAM]
    assert count(docs) == 3


def test_parts_of_a_transaction_that_ends_between_them(docs: Raw) -> None:
    for end in (COMMIT, ABORT):
        txn = docs.begin()
        first, last = cut(packed("x"), 10, txn=txn)
        assert docs.send(first, frame(end, txn=txn), last).answers(3)[2].error == "TRANSACTION_NOT_FOUND"
    assert count(docs) == 1


def test_parts_of_two_connections_do_not_mix(daemon: Daemon, docs: Raw) -> None:
    with Raw(daemon.socket) as other:
        assert docs.call(A).error == ""
        assert other.call(B).error == "MALFORMED_REQUEST"
        assert {reply.error for reply in docs.send(B, C).answers(2)} == {""}
    assert count(docs) == 3


# Arguments

ODD: list[Any] = [
    *(None, True, 0, 1, -1, 1 << 63, (1 << 64) - 1, 0.5, math.nan, math.inf, "", "a", "a" * 700, "ü\0", b"", b"\xff"),
    *(b"\x80" * 9, ONE, [], [1], [None], ["a", "a"], ["a"] * 3000, [b"k"], [[]], {}, {"a": 1}, {"$x": 1}, {"$not": {}}),
    [{"a": {"b": [math.nan]}}],
]

GOOD: dict[str, dict[str, Any]] = {
    "namespace_create": {"name": "new", "display_name": "x", "labels": {"a": "b"}},
    "namespace_get": {"name": "ns"},
    "namespace_list": {},
    "namespace_delete": {"name": "other"},
    "namespace_kv_get": {"namespace": "ns", "keys": [b"k"]},
    "namespace_kv_put": {"namespace": "ns", "keys": [b"k"], "values": [b"v"]},
    "namespace_kv_delete": {"namespace": "ns", "keys": [b"k"]},
    "namespace_kv_scan": {"namespace": "ns", "start": b"", "end": None, "limit": 5, "reverse": False},
    "collection_create": {
        "namespace": "ns",
        "name": "more",
        "dimension": 2,
        "metric": "cosine",
        "m": 16,
        "ef_construction": 100,
        "hybrid": False,
        "content_field": "x",
    },
    "collection_get": {"namespace": "ns", "name": "docs"},
    "collection_list": {"namespace": "ns"},
    "collection_delete": {"namespace": "ns", "name": "other"},
    "document_put": {**WHERE, "ids": ["b"], "vectors": ONE, "dimension": 2, "metadatas": [{}], "contents": ["x"]},
    "document_put_multi": {
        **WHERE,
        "id": "m",
        "names": ["x"],
        "vectors": ONE,
        "dimension": 2,
        "metadata": {},
        "content": "x",
    },
    "document_get": {**WHERE, "ids": ["there"]},
    "document_delete": {**WHERE, "ids": ["m"]},
    "document_count": {**WHERE, "filter": {"a": 1}},
    "document_iterate": {**WHERE, "after": "a", "limit": 3, "filter": None},
    "search": {
        **WHERE,
        "vector": ONE,
        "text_query": "word",
        "k": 3,
        "filter": {},
        "alpha": 0.5,
        "rrf_fusion": True,
        "k_rrf": 60,
        "ef_search": 64,
        "min_score": 0.0,
        "include_vectors": True,
        "include_content": True,
    },
    "search_multi": {
        **WHERE,
        "names": ["x"],
        "vectors": ONE,
        "dimension": 2,
        "k": 3,
        "aggregation": "weighted_sum",
        "weights": {"x": 1.0},
        "filter": {},
        "ef_search": 64,
    },
}

REFUSALS = {
    *("VALIDATION", "MALFORMED_REQUEST", "DIMENSION_MISMATCH", "INVALID_KEY", "KEY_TOO_LARGE", "NAMESPACE"),
    *("NAMESPACE_NOT_FOUND", "NAMESPACE_EXISTS", "COLLECTION_NOT_FOUND", "COLLECTION_EXISTS", "COLLECTION_CONFIG"),
}


def test_the_arguments_of_every_operation_are_known_here() -> None:
    assert GOOD.keys() == OPERATIONS.keys()
    assert OPERATIONS.keys() > READING
    assert set(ErrorCode) >= REFUSALS


@pytest.mark.parametrize("name", OPERATIONS)
def test_odd_arguments(docs: Raw, name: str) -> None:
    """Each argument with each odd value: it is done, or refused with a code that says why; never a failure inside."""
    good = GOOD[name]
    txn = docs.begin()
    requests: list[bytes] = [op(name, txn=txn), op(name, txn=txn, **good)]
    for argument in good:
        requests += [op(name, txn=txn, **{**good, argument: value}) for value in ODD]
        requests.append(op(name, txn=txn, **{key: value for key, value in good.items() if key != argument}))
        requests.append(op(name, txn=txn, **{**good, f"{argument} ": 1}))
    for at in range(0, len(requests), 64):
        docs.send(*requests[at : at + 64])
        for reply in docs.answers(len(requests[at : at + 64])):
            assert reply.code == END_STREAM or reply.error in REFUSALS, (name, reply.error, reply.payload)
    assert docs.call(frame(ABORT, txn=txn)).code == OK
    assert result(docs.call(op("namespace_list"))) == ["ns"]
    assert result(docs.call(op("collection_list", namespace="ns"))) == ["docs"]
    assert count(docs) == 1


NAN, INFINITY = struct.pack("<2f", 1.0, math.nan), struct.pack("<2f", math.inf, 0.0)


@pytest.mark.parametrize(
    ("vectors", "dimension", "code"),
    [
        (NAN, 2, "VALIDATION"),
        (INFINITY, 2, "VALIDATION"),
        (b"\x00\x00\xc0\x7f" * 2, 2, "VALIDATION"),
        (b"\x01\x00\x80\xff" * 2, 2, "VALIDATION"),  # a signalling NaN
        (bytes(8), 2, "VALIDATION"),  # no direction
        (ONE[:7], 2, "DIMENSION_MISMATCH"),
        (ONE + b"\0", 2, "DIMENSION_MISMATCH"),
        (ONE * 2, 2, "DIMENSION_MISMATCH"),
        (b"", 2, "DIMENSION_MISMATCH"),
        (ONE, 1, "DIMENSION_MISMATCH"),
        (ONE[:4], 1, "DIMENSION_MISMATCH"),
        (ONE * 2, 4, "DIMENSION_MISMATCH"),
        (ONE, 0, "VALIDATION"),
        (ONE, -2, "VALIDATION"),
        (ONE, 65_537, "VALIDATION"),
        (ONE, 1 << 62, "VALIDATION"),
        (ONE, None, "VALIDATION"),
        (ONE, 2.0, "VALIDATION"),
        (ONE, True, "VALIDATION"),
        ([1.0, 0.0], 2, "VALIDATION"),
        ("text", 2, "VALIDATION"),
    ],
)
def test_vectors_that_are_none(docs: Raw, vectors: Any, dimension: Any, code: str) -> None:
    assert docs.call(document("a", vectors=vectors, dimension=dimension)).error == code
    multi = {"id": "a", "names": ["x"], "vectors": vectors, "dimension": dimension, "metadata": {}, "content": None}
    assert docs.call(op("document_put_multi", **WHERE, **multi)).error == code
    asked = {"names": ["x"], "vectors": vectors, "dimension": dimension, "k": 1, "aggregation": "max_pooling"}
    assert docs.call(op("search_multi", **WHERE, **asked)).error == code
    assert count(docs) == 1
    if type(dimension) is int and dimension == 2 and vectors != ONE * 2:
        assert docs.call(op("search", **WHERE, vector=vectors)).error in (code, "VALIDATION")


def test_huge_numbers_in_a_search(docs: Raw) -> None:
    for arguments in ({"k": 1 << 63}, {"k": 100_001}, {"ef_search": 1 << 40}, {"k_rrf": (1 << 64) - 1}):
        assert docs.call(op("search", **WHERE, vector=ONE, **arguments)).error == "VALIDATION"
    largest = {"k": 100_000, "ef_search": 1_000_000, "k_rrf": 1_000_000}
    assert len(result(docs.call(op("search", **WHERE, vector=ONE, text_query="word", **largest)))) == 1
    for name, value in (("alpha", math.nan), ("min_score", math.inf), ("alpha", 1e308), ("k", 1e300)):
        assert docs.call(op("search", **{**WHERE, "vector": ONE, name: value})).error == "VALIDATION"
    words = [f"w{at}" for at in range(4096)]
    assert docs.call(op("search", **WHERE, text_query=" ".join(["word", *words]))).error == "VALIDATION"
    assert len(result(docs.call(op("search", **WHERE, text_query=" ".join(["word", *words[1:], *words[1:]]))))) == 1
    assert result(docs.call(op("search", **WHERE, text_query="x" * MIB))) == []


def test_filters_of_any_kind(docs: Raw) -> None:
    deep: Any = {"a": 1}
    for _ in range(50):
        deep = {"$not": deep}
    wide = {"$or": [{"a": at} for at in range(5000)]}
    filters: list[Any] = [
        deep,
        wide,
        {"a": {"$in": "text"}},
        {"$and": {}},
        {"$where": "x"},
        {"": {"$gt": None}},
        [],
        "a",
        5,
    ]
    for filter in filters:
        for request in (
            op("search", **WHERE, vector=ONE, filter=filter),
            op("document_count", **WHERE, filter=filter),
            op("document_iterate", **WHERE, filter=filter),
        ):
            reply = docs.call(request)
            assert reply.error == "VALIDATION", (filter, reply)


# Random operations


def test_random_operations(docs: Raw) -> None:
    draw = random.Random(11)
    values = [*ODD, *(value for arguments in GOOD.values() for value in arguments.values())]
    txns = [0, docs.begin(), docs.begin()]
    for _ in range(40):
        requests = []
        for _ in range(20):
            name = draw.choice(list(OPERATIONS))
            arguments = dict(GOOD[name])
            for argument in draw.sample(list(arguments), min(len(arguments), draw.randint(0, 2))):
                arguments[argument] = draw.choice(values)
            request = bytearray(op(name, txn=draw.choice(txns), **arguments))
            if draw.random() < 0.2 and len(request) > 20:
                request[draw.randrange(13, len(request))] = draw.randrange(256)
            requests.append(bytes(request))
        docs.send(*requests)
        for reply in docs.answers(len(requests)):
            # Texts are written by one transaction at a time.
            assert reply.code == END_STREAM or reply.error in {*REFUSALS, "TRANSACTION_CONFLICT"}, reply
    for txn in txns[1:]:
        reply = docs.call(frame(draw.choice([COMMIT, ABORT]), txn=txn))
        assert reply.code in (OK, TXN_ID) or reply.error == "TRANSACTION_CONFLICT"


# Large results


def test_results_larger_than_a_frame(docs: Raw) -> None:
    large = "x" * (5 * MIB)
    for id in "abcd":
        assert result(docs.call(document(id, contents=[large]))) is None
    found = result(docs.call(op("search", **WHERE, vector=ONE, k=10)))
    assert sorted(len(row[3]) for row in found) == [4, *[5 * MIB] * 4]
    # A page is not larger than it must be, whatever is asked for.
    assert [row[0] for row in result(docs.call(op("document_iterate", **WHERE)))] == ["a"]
    assert [row[0] for row in result(docs.call(op("document_get", **WHERE, ids=["a"] * 100_000)))] == ["a"]
    assert result(docs.call(op("namespace_kv_put", namespace="ns", keys=[b"k"], values=[bytes(5 * MIB)]))) is None
    (value,) = result(docs.call(op("namespace_kv_get", namespace="ns", keys=[b"k"] * 100_000)))
    assert value == bytes(5 * MIB)


def test_a_slow_reader_holds_nobody_up(daemon: Daemon, docs: Raw) -> None:
    large = "x" * (3 * MIB)
    for id in "abcd":
        assert result(docs.call(document(id, contents=[large], metadatas=[{"large": True}]))) is None
    before = reset_peak(daemon.pid)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Raw(daemon.socket, receive_buffer=4096)) for _ in range(6)]
        for raw in slow:
            # The filter: a search may begin after a write that was sent later, on another connection.
            raw.send(op("search", **WHERE, vector=ONE, k=10, filter={"large": True}))
        # They hold no thread: others write and search meanwhile.
        for at in range(20):
            assert result(docs.call(document(f"e{at}"))) is None
            assert len(result(docs.call(op("search", **WHERE, vector=ONE, k=3, include_content=False)))) == 3
        assert len(result(slow[0].answer())) == 4
    assert peak_memory(daemon.pid) - before < 400 * MIB


# Clients that vanish


VANISHING: dict[str, list[bytes]] = {
    "a search": [op("search", **WHERE, vector=ONE, k=1000)],
    "many searches": [op("search", **WHERE, vector=ONE, text_query="word", k=1000)] * 30,
    "writes": [document(*(f"v{at}-{n}" for n in range(200))) for at in range(10)],
    "parts": [A, B],
    "half a part": [A, B[:40]],
    "an iteration": [op("document_iterate", **WHERE, filter={"n": {"$gte": 0}})] * 30,
}
INSIDE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "a search": [("search", {"vector": ONE, "text_query": "word", "k": 1000})] * 10,
    "writes": [
        ("document_put", {"ids": [f"t{at}"], "vectors": ONE, "dimension": 2, "metadatas": [{}], "contents": ["word"]})
        for at in range(40)
    ],
    "deletes": [("document_delete", {"ids": [f"d{at}" for at in range(1000)]})] * 3,
}


@pytest.fixture
def full(docs: Raw) -> Raw:
    """Documents enough that a search takes some time."""
    names = [f"d{at}" for at in range(3000)]
    vectors = struct.pack(f"<{2 * len(names)}f", *(float(at % 97 + 1) for at in range(2 * len(names))))
    assert result(docs.call(document(*names, vectors=vectors, metadatas=[{"n": at} for at in range(3000)]))) is None
    return docs


@pytest.mark.parametrize("how", [*VANISHING, *(f"{how}, in a transaction" for how in INSIDE)])
def test_a_client_that_vanishes(daemon: Daemon, full: Raw, how: str) -> None:
    for round in range(6):
        with Raw(daemon.socket) as raw:
            if how in VANISHING:
                raw.send(*VANISHING[how])
            else:
                txn = raw.begin()
                requests = [op(name, txn=txn, **WHERE, **rest) for name, rest in INSIDE[how.partition(",")[0]]]
                raw.send(*requests, frame(COMMIT, txn=txn))
            if round % 3 == 1:
                raw.answer()
            elif round % 3 == 2:
                raw.half_close()
        full.ping()
    settled(full)
    # What was asked for and is there, is there whole.
    stored = count(full)
    assert len(result(full.call(op("search", **WHERE, vector=ONE, k=10_000)))) == stored
    assert len(result(full.call(op("search", **WHERE, text_query="word", k=10_000)))) == stored


def test_a_namespace_that_is_deleted_while_it_is_used(daemon: Daemon, full: Raw) -> None:
    searches = [op("search", **WHERE, vector=ONE, text_query="word", k=500, filter={"n": {"$lt": 1000}})] * 4
    with Raw(daemon.socket) as other, Raw(daemon.socket) as writer:
        txn = other.begin()
        inside = [op("search", txn=txn, **WHERE, vector=ONE, text_query="word", k=100_000)] * 3
        other.send(*searches, *inside, frame(ABORT, txn=txn))
        writer.send(*(document(f"w{at}") for at in range(20)))
        assert result(full.call(op("namespace_delete", name="ns"))) is True
        got = other.answers(8)
        for reply in got[:4]:
            assert reply.error == "NAMESPACE_NOT_FOUND" or len(result(reply)) == 500
        # A transaction that began before has it as it was.
        sizes = {len(result(reply)) for reply in got[4:7]}
        assert len(sizes) == 1
        assert min(sizes) >= 3001
        for reply in writer.answers(20):
            assert reply.error in ("", "NAMESPACE_NOT_FOUND")
    assert result(full.call(op("namespace_list"))) == []


# Many at once


def test_many_clients_insert_at_once(daemon: Daemon, docs: Raw) -> None:
    clients, each = 12, 40
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(daemon.socket)) for _ in range(clients)]
        for number, raw in enumerate(raws):
            raw.send(*(document(f"{number}-{at}", metadatas=[{"by": number}]) for at in range(each)))
        docs.ping()
        for raw in raws:
            assert {reply.error for reply in raw.answers(each)} == {""}
    assert count(docs) == clients * each + 1
    for number in range(clients):
        assert result(docs.call(op("document_count", **WHERE, filter={"by": number}))) == each
    assert len(result(docs.call(op("search", **WHERE, vector=ONE, k=1000)))) == clients * each + 1
    assert len(result(docs.call(op("search", **WHERE, text_query="word", k=1000)))) == clients * each + 1


def test_the_same_document_by_many_at_once(daemon: Daemon, docs: Raw) -> None:
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(daemon.socket)) for _ in range(6)]
        for number, raw in enumerate(raws):
            for at in range(15):
                raw.send(document("same", metadatas=[{"by": number}], contents=[f"from{number} at{at}"]))
                raw.send(op("document_delete", **WHERE, ids=["same"]))
            raw.send(document("same", metadatas=[{"by": number}], contents=[f"from{number} last"]))
        for raw in raws:
            assert {reply.error for reply in raw.answers(31)} == {""}
    (row,) = result(docs.call(op("document_get", **WHERE, ids=["same"])))
    number = row[1]["by"]
    # The last one of all of them, in each index.
    assert [each[0] for each in result(docs.call(op("search", **WHERE, text_query="last")))] == ["same"]
    assert [each[0] for each in result(docs.call(op("search", **WHERE, text_query=f"from{number}")))] == ["same"]
    others = " ".join(f"from{other}" for other in range(6) if other != number)
    assert result(docs.call(op("search", **WHERE, text_query=others))) == []
    assert count(docs) == 2


def test_creating_the_same_at_once(daemon: Daemon, docs: Raw) -> None:
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(daemon.socket)) for _ in range(8)]
        for raw in raws:
            raw.send(op("namespace_create", name="same"), op("collection_create", namespace="same", name="one"))
        replies = [raw.answers(2) for raw in raws]
    assert sorted(first.error for first, _ in replies) == ["", *["NAMESPACE_EXISTS"] * 7]
    assert sorted(second.error for _, second in replies) == ["", *["COLLECTION_EXISTS"] * 7]
    assert result(docs.call(op("namespace_delete", name="same"))) is True


def test_pings_are_answered_while_an_index_is_built(daemon: Daemon, docs: Raw) -> None:
    """Searches and inserts of many vectors run on threads: a ping is answered before they are done."""
    numbers = random.Random(3)
    dimension, rows = 64, 4000
    made = op("collection_create", namespace="ns", name="large", dimension=dimension, ef_construction=200)
    assert result(docs.call(made)) is None
    vectors = struct.pack(f"<{rows * dimension}f", *(numbers.gauss(0, 1) for _ in range(rows * dimension)))
    done = threading.Event()
    failures: list[BaseException] = []

    def insert() -> None:
        try:
            with IpcClient.connect(daemon.socket) as client:
                large = client.collection("ns", "large")
                flat = [vectors[at : at + 4 * dimension] for at in range(0, len(vectors), 4 * dimension)]
                lists = [struct.unpack(f"<{dimension}f", each) for each in flat]
                for at in range(0, rows, 1000):
                    large.insert_batch(lists[at : at + 1000], ids=[f"{at + n}" for n in range(1000)])
                for _ in range(5):
                    assert len(large.vector_search(lists[0], k=50)) == 50
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=insert)
    thread.start()
    pings = 0
    while not done.is_set():
        docs.ping()
        pings += 1
    thread.join()
    assert failures == []
    assert pings > 20
    assert result(docs.call(op("document_count", namespace="ns", collection="large"))) == rows


# Limits of time


@pytest.fixture(scope="module")
def impatient() -> Iterator[Daemon]:
    """One daemon with short limits."""
    with daemon_on("auto", "--timeout-ms", "300", "--max-transaction-age-ms", "900") as running:
        with Raw(running.socket) as raw:
            for request in (
                op("namespace_create", name="ns"),
                op("collection_create", namespace="ns", name="docs", dimension=2, hybrid=True),
            ):
                assert result(raw.call(request)) is None
        yield running
        assert "internal error" not in running.log


def test_parts_that_do_not_go_on_are_forgotten(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw, Raw(impatient.socket) as watcher:
        txn = raw.begin()
        assert raw.call(A).error == ""
        # The transaction expires with the same sweep that forgets the parts.
        seen = watcher.stats()["active_transactions"]
        while seen:
            seen = watcher.stats()["active_transactions"]
        assert raw.call(op("document_count", txn=txn, **WHERE)).error in (
            "TRANSACTION_EXPIRED",
            "TRANSACTION_NOT_FOUND",
        )
        assert raw.send(A, B, C).answers(3)[2].error == ""
        assert count(raw) == 2


def test_a_transaction_that_is_idle_or_old(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw:
        txn = raw.begin()
        assert result(raw.call(document("never", txn=txn))) is None
        replies: list[Answer] = []
        while not replies or replies[-1].error == "":
            replies.append(raw.call(op("search", txn=txn, **WHERE, vector=ONE)))
        # It was used all the time, so it ended for its age.
        assert len(replies) > 3
        assert replies[-1].error == "TRANSACTION_EXPIRED", replies[-1]
        assert result(raw.call(op("document_get", **WHERE, ids=["never"]))) == [None]
        assert raw.call(frame(COMMIT, txn=txn)).code == ERROR


def test_a_client_that_does_not_read_its_result(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw:
        for id in "pqrstuvw":
            assert result(raw.call(document(id, contents=["x" * MIB]))) is None
        with Raw(impatient.socket, receive_buffer=4096) as slow:
            slow.send(op("search", **WHERE, vector=ONE, k=50))
            hung_up(slow)
        settled(raw)


def test_an_ending_daemon_finishes_what_it_was_sent() -> None:
    with daemon_on("auto") as daemon, Raw(daemon.socket) as raw:
        raw.send(op("namespace_create", name="ns"), op("collection_create", namespace="ns", name="docs", hybrid=True))
        raw.send(*(document(f"{at}") for at in range(50)), op("search", **WHERE, vector=ONE, k=100))
        raw.send(frame(BEGIN, txn=0))
        assert [reply.error for reply in raw.answers(2)] == ["", ""]
        daemon.process.terminate()
        got = raw.answers(50)
        assert {reply.error for reply in got} == {""}
        assert len(result(raw.answer())) == 50
        raw.drain()
        assert daemon.process.wait(30) == 0


def test_a_frame_over_the_cap(docs: Raw) -> None:
    assert docs.call(body(op="namespace_list", args=bytes(CAP))).error == "FRAME_TOO_LARGE"
    assert count(docs) == 1
