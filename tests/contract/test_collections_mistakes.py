"""Mistakes with namespaces and collections: every mode tells them alike, and nothing is half done."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from toondb import CollectionConfig, Document, NamespaceConfig, SearchRequest
from toondb_protocol.errors import (
    CollectionConfigError,
    CollectionExistsError,
    CollectionNotFoundError,
    DatabaseClosedError,
    DimensionMismatchError,
    InvalidKeyError,
    KeyTooLargeError,
    NamespaceError,
    NamespaceExistsError,
    NamespaceNotFoundError,
    ToonDBError,
    TransactionClosedError,
    TransactionError,
    ValidationError,
)

from .collection_stores import clear, make, refused, vector
from .conftest import Places
from .test_mistakes import Action, Told, compared, deep, ended, told

HALF = "\ud800"
V = vector(1)

Mistakes = dict[str, tuple[type[ToonDBError], Action]]


def _space(call: Action) -> Action:
    return lambda s: call(s.namespace("ns"))


def _docs(call: Action) -> Action:
    return lambda s: call(s.collection("ns", "docs"))


def _request(**fields: Any) -> Action:
    return _docs(lambda d: d.search(SearchRequest(**{"vector": V, **fields})))


def _set_later(name: str, value: Any) -> Action:
    def action(store: Any) -> Any:
        request = SearchRequest(V)
        setattr(request, name, value)
        return store.collection("ns", "docs").search(request)

    return action


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


STORE: Mistakes = {
    # Namespaces
    "create_namespace, empty": (ValidationError, lambda s: s.create_namespace("")),
    "create_namespace, number": (ValidationError, lambda s: s.create_namespace(5)),
    "create_namespace, none": (ValidationError, lambda s: s.create_namespace(None)),
    "create_namespace, bytes": (ValidationError, lambda s: s.create_namespace(b"a")),
    "create_namespace, a slash": (ValidationError, lambda s: s.create_namespace("a/b")),
    "create_namespace, a space": (ValidationError, lambda s: s.create_namespace("a b")),
    "create_namespace, a newline": (ValidationError, lambda s: s.create_namespace("a\n")),
    "create_namespace, another letter": (ValidationError, lambda s: s.create_namespace("größe")),
    "create_namespace, no Unicode": (ValidationError, lambda s: s.create_namespace(HALF)),
    "create_namespace, long": (ValidationError, lambda s: s.create_namespace("n" * 65)),
    "create_namespace, again": (NamespaceExistsError, lambda s: s.create_namespace("ns")),
    "create_namespace, again, a config": (NamespaceExistsError, lambda s: s.create_namespace(NamespaceConfig("ns"))),
    "create_namespace, both": (ValidationError, lambda s: s.create_namespace(NamespaceConfig("x"), display_name="y")),
    "display_name of bytes": (NamespaceError, lambda s: s.create_namespace("x", display_name=b"x")),
    "display_name, no Unicode": (ValidationError, lambda s: s.create_namespace("x", display_name=HALF)),
    "labels, a list": (NamespaceError, lambda s: s.create_namespace("x", labels=["a"])),
    "labels, a number": (NamespaceError, lambda s: s.create_namespace("x", labels={"a": 1})),
    "labels, a name that is none": (NamespaceError, lambda s: s.create_namespace("x", labels={1: "a"})),
    "labels, no Unicode": (ValidationError, lambda s: s.create_namespace("x", labels={"a": HALF})),
    "labels, many": (NamespaceError, lambda s: s.create_namespace("x", labels={str(at): "" for at in range(65)})),
    "namespace, unknown": (NamespaceNotFoundError, lambda s: s.namespace("nowhere")),
    "namespace, number": (ValidationError, lambda s: s.namespace(5)),
    "namespace, the case": (NamespaceNotFoundError, lambda s: s.namespace("NS")),
    "delete_namespace, number": (ValidationError, lambda s: s.delete_namespace(5)),
    "delete_namespace, a slash": (ValidationError, lambda s: s.delete_namespace("a/b")),
    # Keys
    "namespace key, empty": (InvalidKeyError, _space(lambda n: n.get(""))),
    "namespace key, number": (InvalidKeyError, _space(lambda n: n.put(5, b""))),
    "namespace key, long": (KeyTooLargeError, _space(lambda n: n.put("k" * 501, b""))),
    "namespace key, longer": (KeyTooLargeError, _space(lambda n: n.get("k" * 600))),
    "namespace key to delete, long": (KeyTooLargeError, _space(lambda n: n.delete("k" * 501))),
    "namespace value, text": (ValidationError, _space(lambda n: n.put("k", "text"))),
    "namespace value, none": (ValidationError, _space(lambda n: n.put_many([("a", b""), ("b", None)]))),
    "namespace pairs, number": (ValidationError, _space(lambda n: n.put_many(5))),
    "namespace pairs, long key": (KeyTooLargeError, _space(lambda n: n.put_many({"a": b"", "k" * 501: b""}))),
    "namespace scan, limit below 0": (ValidationError, _space(lambda n: list(n.scan(limit=-1)))),
    "namespace scan, number": (InvalidKeyError, _space(lambda n: list(n.scan(5)))),
    # Collections
    "create_collection, empty": (ValidationError, _space(lambda n: n.create_collection(""))),
    "create_collection, a slash": (ValidationError, _space(lambda n: n.create_collection("a/b"))),
    "create_collection, number": (ValidationError, _space(lambda n: n.create_collection(5))),
    "create_collection, again": (CollectionExistsError, _space(lambda n: n.create_collection("docs"))),
    "create_collection, both": (
        CollectionConfigError,
        _space(lambda n: n.create_collection(CollectionConfig("x"), dimension=3)),
    ),
    "an unknown option": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimensions=3))),
    "dimension 0": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimension=0))),
    "dimension below 0": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimension=-1))),
    "too many dimensions": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimension=65_537))),
    "dimension of text": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimension="3"))),
    "dimension of a fraction": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimension=3.0))),
    "dimension True": (CollectionConfigError, _space(lambda n: n.create_collection("x", dimension=True))),
    "an unknown metric": (CollectionConfigError, _space(lambda n: n.create_collection("x", metric="manhattan"))),
    "a metric that is none": (CollectionConfigError, _space(lambda n: n.create_collection("x", metric=None))),
    "a metric in capitals": (CollectionConfigError, _space(lambda n: n.create_collection("x", metric="COSINE"))),
    "m 1": (CollectionConfigError, _space(lambda n: n.create_collection("x", m=1))),
    "m too large": (CollectionConfigError, _space(lambda n: n.create_collection("x", m=513))),
    "m of text": (CollectionConfigError, _space(lambda n: n.create_collection("x", m="16"))),
    "ef_construction 0": (CollectionConfigError, _space(lambda n: n.create_collection("x", ef_construction=0))),
    "enable_hybrid_search 1": (
        CollectionConfigError,
        _space(lambda n: n.create_collection("x", enable_hybrid_search=1)),
    ),
    "content_field 5": (CollectionConfigError, _space(lambda n: n.create_collection("x", content_field=5))),
    "content_field, no Unicode": (ValidationError, _space(lambda n: n.create_collection("x", content_field=HALF))),
    "collection, unknown": (CollectionNotFoundError, _space(lambda n: n.collection("nothing"))),
    "collection, number": (ValidationError, _space(lambda n: n.collection(5))),
    "collection of an unknown namespace": (NamespaceNotFoundError, lambda s: s.collection("nowhere", "docs")),
    "delete_collection, number": (ValidationError, _space(lambda n: n.delete_collection(5))),
    # Vectors
    "fewer numbers": (DimensionMismatchError, _docs(lambda d: d.insert([1.0, 2.0, 3.0]))),
    "more numbers": (DimensionMismatchError, _docs(lambda d: d.insert([1.0] * 5))),
    "no numbers": (ValidationError, _docs(lambda d: d.insert([]))),
    "too many numbers": (ValidationError, _docs(lambda d: d.insert([1.0] * 65_537))),
    "NaN": (ValidationError, _docs(lambda d: d.insert([1.0, math.nan, 0.0, 0.0]))),
    "infinity": (ValidationError, _docs(lambda d: d.insert([1.0, 0.0, -math.inf, 0.0]))),
    "NaN of NumPy": (ValidationError, _docs(lambda d: d.insert(np.array([1.0, math.nan, 0.0, 0.0])))),
    "beyond float32": (ValidationError, _docs(lambda d: d.insert([1e39, 0, 0, 0]))),
    "beyond float32 of NumPy": (ValidationError, _docs(lambda d: d.insert(np.array([1e39, 0, 0, 0])))),
    "zeros under cosine": (ValidationError, _docs(lambda d: d.insert([0.0] * 4))),
    "a vector of text": (ValidationError, _docs(lambda d: d.insert(["a"] * 4))),
    "a vector as bytes": (ValidationError, _docs(lambda d: d.insert(bytes(16)))),
    "a vector as a number": (ValidationError, _docs(lambda d: d.insert(5))),
    "a vector as a set": (ValidationError, _docs(lambda d: d.insert({1.0, 2.0}))),
    "a vector as a type": (ValidationError, _docs(lambda d: d.insert(range))),
    "a vector with none": (ValidationError, _docs(lambda d: d.insert([1.0, None, 0.0, 0.0]))),
    "a vector of two axes": (ValidationError, _docs(lambda d: d.insert(np.ones((1, 4))))),
    "complex numbers": (ValidationError, _docs(lambda d: d.insert(np.ones(4, complex)))),
    # Documents
    "id of a number": (ValidationError, _docs(lambda d: d.insert(V, id=5))),
    "id, empty": (ValidationError, _docs(lambda d: d.insert(V, id=""))),
    "id, long": (ValidationError, _docs(lambda d: d.insert(V, id="i" * 401))),
    "id, long in UTF-8": (ValidationError, _docs(lambda d: d.insert(V, id="ü" * 201))),
    "id, no Unicode": (ValidationError, _docs(lambda d: d.insert(V, id=HALF))),
    "id twice": (ValidationError, _docs(lambda d: d.insert("x", V, id="y"))),
    "vector twice": (ValidationError, _docs(lambda d: d.insert(V, vector=V))),
    "too many arguments": (ValidationError, _docs(lambda d: d.insert(V, {}, "x", "y", "z"))),
    "metadata, a list": (ValidationError, _docs(lambda d: d.insert(V, ["a"]))),
    "metadata, text": (ValidationError, _docs(lambda d: d.insert(V, "text"))),
    "metadata, a date": (ValidationError, _docs(lambda d: d.insert(V, {"a": {"b": datetime.date(2026, 1, 1)}}))),
    "metadata, bytes": (ValidationError, _docs(lambda d: d.insert(V, {"a": b"x"}))),
    "metadata, NaN": (ValidationError, _docs(lambda d: d.insert(V, {"a": [math.nan]}))),
    "metadata, infinity": (ValidationError, _docs(lambda d: d.insert(V, {"a": math.inf}))),
    "metadata, a name that is none": (ValidationError, _docs(lambda d: d.insert(V, {"a": {1: 2}}))),
    "metadata, a large number": (ValidationError, _docs(lambda d: d.insert(V, {"a": 1 << 64}))),
    "metadata, no Unicode": (ValidationError, _docs(lambda d: d.insert(V, {"a": ["b", HALF]}))),
    "metadata, a name, no Unicode": (ValidationError, _docs(lambda d: d.insert(V, {HALF: 1}))),
    "metadata, deep": (ValidationError, _docs(lambda d: d.insert(V, {"a": nested(40)}))),
    "metadata, an array": (ValidationError, _docs(lambda d: d.insert(V, {"a": np.array([1, 2])}))),
    "metadata, an array of one": (ValidationError, _docs(lambda d: d.insert(V, {"a": np.array([1])}))),
    "metadata, a long double": (ValidationError, _docs(lambda d: d.insert(V, {"a": np.longdouble(1.5)}))),
    "metadata, a date of NumPy": (ValidationError, _docs(lambda d: d.insert(V, {"a": np.datetime64("2026-01-01")}))),
    "metadata, very deep": (ValidationError, _docs(lambda d: d.insert(V, {"a": nested(3000)}))),
    "content, bytes": (ValidationError, _docs(lambda d: d.insert(V, content=b"x"))),
    "content, no Unicode": (ValidationError, _docs(lambda d: d.insert(V, content=HALF))),
    "get, number": (ValidationError, _docs(lambda d: d.get(5))),
    "get, empty": (ValidationError, _docs(lambda d: d.get(""))),
    "get_batch, one string": (ValidationError, _docs(lambda d: d.get_batch("abc"))),
    "get_batch, number": (ValidationError, _docs(lambda d: d.get_batch(5))),
    "delete, none": (ValidationError, _docs(lambda d: d.delete(None))),
    "delete_batch, one string": (ValidationError, _docs(lambda d: d.delete_batch("there"))),
    "delete_batch, number": (ValidationError, _docs(lambda d: d.delete_batch(5))),
    "delete_batch, one of them": (ValidationError, _docs(lambda d: d.delete_batch(["there", 5]))),
    # Batches
    "batch, number": (ValidationError, _docs(lambda d: d.insert_batch(5))),
    "batch, text": (ValidationError, _docs(lambda d: d.insert_batch("text"))),
    "batch, one vector": (ValidationError, _docs(lambda d: d.insert_batch(V))),
    "batch of one axis": (ValidationError, _docs(lambda d: d.insert_batch(np.array(V)))),
    "batch of three axes": (ValidationError, _docs(lambda d: d.insert_batch(np.ones((1, 2, 4))))),
    "batch of different dimensions": (DimensionMismatchError, _docs(lambda d: d.insert_batch([V, [1.0]]))),
    "batch of another dimension": (DimensionMismatchError, _docs(lambda d: d.insert_batch([[1.0], [2.0]]))),
    "batch with NaN": (ValidationError, _docs(lambda d: d.insert_batch([V, vector(math.nan)]))),
    "batch of NumPy with NaN": (ValidationError, _docs(lambda d: d.insert_batch(np.array([V, vector(math.nan)])))),
    "batch with zeros": (ValidationError, _docs(lambda d: d.insert_batch([V, vector(0)]))),
    "batch, an id twice": (ValidationError, _docs(lambda d: d.insert_batch([V, V], ids=["a", "a"]))),
    "batch, an id that is none": (ValidationError, _docs(lambda d: d.insert_batch([V, V], ids=["a", 5]))),
    "batch, fewer ids": (ValidationError, _docs(lambda d: d.insert_batch([V, V], ids=["a"]))),
    "batch, more metadata": (ValidationError, _docs(lambda d: d.insert_batch([V], [{}, {}], ["a"]))),
    "batch, ids as text": (ValidationError, _docs(lambda d: d.insert_batch([V, V], ids="ab"))),
    "batch, ids as a number": (ValidationError, _docs(lambda d: d.insert_batch([V], ids=5))),
    "batch, contents as text": (ValidationError, _docs(lambda d: d.insert_batch([V, V], contents="ab"))),
    "batch, metadata as one": (ValidationError, _docs(lambda d: d.insert_batch([V], metadatas={"a": 1}))),
    "batch, metadata that is none": (ValidationError, _docs(lambda d: d.insert_batch([V], metadatas=[5]))),
    "batch, a wrong tuple": (ValidationError, _docs(lambda d: d.insert_batch([("a", V), ("b",)]))),
    "batch, an empty tuple": (ValidationError, _docs(lambda d: d.insert_batch([()]))),
    "batch, a tuple of an id": (ValidationError, _docs(lambda d: d.insert_batch([(None,)]))),
    "batch, a long tuple": (ValidationError, _docs(lambda d: d.insert_batch([("a", V, {}, "", 5)]))),
    "batch, tuples and ids": (ValidationError, _docs(lambda d: d.insert_batch([("a", V)], ids=["a"]))),
    "batch, tuples and vectors": (ValidationError, _docs(lambda d: d.insert_batch([("a", V), V]))),
    # Several vectors
    "multi, no vectors": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", {}))),
    "multi, a list": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", [V]))),
    "multi, a name that is none": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", {1: V}))),
    "multi, an empty name": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", {"": V}))),
    "multi, a name that is no Unicode": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", {HALF: V}))),
    "multi, id of a number": (ValidationError, _docs(lambda d: d.insert_multi_vector(5, {"a": V}))),
    "multi, different dimensions": (
        DimensionMismatchError,
        _docs(lambda d: d.insert_multi_vector("m", {"a": V, "b": [1.0]})),
    ),
    "multi, another dimension": (DimensionMismatchError, _docs(lambda d: d.insert_multi_vector("m", {"a": [1.0]}))),
    "multi, zeros": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", {"a": V, "b": vector(0)}))),
    "multi, many": (ValidationError, _docs(lambda d: d.insert_multi_vector("m", {str(at): V for at in range(1025)}))),
    "search, an unknown aggregation": (ValidationError, _docs(lambda d: d.multi_vector_search({"a": V}, 1, "min"))),
    "search, aggregation none": (ValidationError, _docs(lambda d: d.multi_vector_search({"a": V}, 1, None))),
    "search, weights for the highest": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, weights={"a": 1})),
    ),
    "search, weights of another": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, 1, "weighted_sum", weights={"b": 1})),
    ),
    "search, weights below 0": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, 1, "weighted_sum", weights={"a": -1})),
    ),
    "search, weights NaN": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, 1, "weighted_sum", weights={"a": math.nan})),
    ),
    "search, weights infinite": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, 1, "weighted_sum", weights={"a": math.inf})),
    ),
    "search, weights huge": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, 1, "weighted_sum", weights={"a": 10**400})),
    ),
    "search, weights as a list": (
        ValidationError,
        _docs(lambda d: d.multi_vector_search({"a": V}, 1, "weighted_sum", weights=[1])),
    ),
    "search, no query vectors": (ValidationError, _docs(lambda d: d.multi_vector_search({}))),
    "search, one query vector": (ValidationError, _docs(lambda d: d.multi_vector_search(V))),
    "multi search, k 0": (ValidationError, _docs(lambda d: d.multi_vector_search({"a": V}, 0))),
    "multi search, ef_search 0": (ValidationError, _docs(lambda d: d.multi_vector_search({"a": V}, ef_search=0))),
    "multi search, filter": (ValidationError, _docs(lambda d: d.multi_vector_search({"a": V}, filter={"$x": 1}))),
    "multi search, another dimension": (DimensionMismatchError, _docs(lambda d: d.multi_vector_search({"a": [1.0]}))),
    "multi search, zeros": (ValidationError, _docs(lambda d: d.multi_vector_search({"a": vector(0)}))),
    # Searches
    "search for nothing": (ValidationError, _docs(lambda d: d.search(SearchRequest()))),
    "search, no request": (ValidationError, _docs(lambda d: d.search(V))),
    "search, none": (ValidationError, _docs(lambda d: d.search(None))),
    "search, another dimension": (DimensionMismatchError, _docs(lambda d: d.vector_search([1.0, 2.0]))),
    "search, NaN": (ValidationError, _docs(lambda d: d.vector_search(vector(math.nan)))),
    "search, infinity": (ValidationError, _docs(lambda d: d.vector_search(vector(math.inf)))),
    "search, zeros under cosine": (ValidationError, _docs(lambda d: d.vector_search(vector(0)))),
    "search, text": (ValidationError, _docs(lambda d: d.vector_search("text"))),
    "k 0": (ValidationError, _request(k=0)),
    "k below 0": (ValidationError, _request(k=-1)),
    "k of text": (ValidationError, _request(k="10")),
    "k of a fraction": (ValidationError, _request(k=1.5)),
    "k none": (ValidationError, _request(k=None)),
    "k True": (ValidationError, _request(k=True)),
    "k too large": (ValidationError, _request(k=100_001)),
    "k set later": (ValidationError, _set_later("k", 0)),
    "alpha set later": (ValidationError, _set_later("alpha", 2)),
    "alpha above 1": (ValidationError, _request(alpha=1.1)),
    "alpha below 0": (ValidationError, _request(alpha=-0.1)),
    "alpha NaN": (ValidationError, _request(alpha=math.nan)),
    "alpha none": (ValidationError, _request(alpha=None)),
    "alpha huge": (ValidationError, _request(alpha=10**400)),
    "k_rrf 0": (ValidationError, _request(k_rrf=0)),
    "ef_search 0": (ValidationError, _request(ef_search=0)),
    "ef_search too large": (ValidationError, _request(ef_search=1_000_001)),
    "min_score NaN": (ValidationError, _request(min_score=math.nan)),
    "min_score of text": (ValidationError, _request(min_score="0.5")),
    "min_score huge": (ValidationError, _request(min_score=10**400)),
    "rrf_fusion of text": (ValidationError, _request(rrf_fusion="no")),
    "include_vectors of text": (ValidationError, _request(include_vectors="no")),
    "include_content none": (ValidationError, _request(include_content=None)),
    "text_query 5": (ValidationError, _request(text_query=5)),
    "text_query, no Unicode": (ValidationError, _request(text_query=HALF)),
    "text_query of very many words": (
        ValidationError,
        _docs(lambda d: d.keyword_search(" ".join(map(str, range(5000))))),
    ),
    "words without an index": (CollectionConfigError, lambda s: s.collection("ns", "bare").keyword_search("x")),
    "both without an index": (CollectionConfigError, lambda s: s.collection("ns", "bare").hybrid_search(V, "x")),
    # Filters
    "filter, text": (ValidationError, _request(filter="a")),
    "filter, a list": (ValidationError, _request(filter=[1])),
    "filter, unknown operator": (ValidationError, _request(filter={"a": {"$near": 1}})),
    "filter, unknown operator at the top": (ValidationError, _request(filter={"$near": 1})),
    "filter, $in without a list": (ValidationError, _request(filter={"a": {"$in": 5}})),
    "filter, empty $or": (ValidationError, _request(filter={"$or": []})),
    "filter, a set": (ValidationError, _request(filter={"a": {"$in": {1}}})),
    "filter, an object": (ValidationError, _request(filter={"a": object})),
    "filter, a field that is a number": (ValidationError, _request(filter={1: 2})),
    "filter, no Unicode": (ValidationError, _request(filter={"a": HALF})),
    "filter, a field that is no Unicode": (ValidationError, _request(filter={HALF: 1})),
    "filter, a large number": (ValidationError, _request(filter={"a": 1 << 64})),
    "filter, deep": (ValidationError, _request(filter=deep(60))),
    "filter, very deep": (ValidationError, _request(filter=deep(3000))),
    "count, unknown operator": (ValidationError, _docs(lambda d: d.count({"a": {"$near": 1}}))),
    "count, text": (ValidationError, _docs(lambda d: d.count("a"))),
    "iterate, unknown operator": (ValidationError, _docs(lambda d: list(d.iterate(filter={"$near": 1})))),
    "iterate, limit below 0": (ValidationError, _docs(lambda d: list(d.iterate(limit=-1)))),
    "iterate, limit of text": (ValidationError, _docs(lambda d: list(d.iterate(limit="1")))),
    "iterate, after a number": (ValidationError, _docs(lambda d: list(d.iterate(after=5)))),
}


def reading(call: Action) -> Action:
    def action(client: Any) -> Any:
        transaction = client.begin_transaction(read_only=True)
        try:
            return call(transaction)
        finally:
            transaction.abort()

    return action


CLIENT: Mistakes = {
    "list_namespaces after commit": (TransactionClosedError, ended("commit", lambda t: t.list_namespaces())),
    "create_namespace after abort": (TransactionClosedError, ended("abort", lambda t: t.create_namespace("x"))),
    "collection after commit": (TransactionClosedError, ended("commit", lambda t: t.collection("ns", "docs"))),
    "create_namespace in a reading one": (TransactionError, reading(lambda t: t.create_namespace("x"))),
    "put in a reading one": (TransactionError, reading(lambda t: t.namespace("ns").put("k", b""))),
    "insert in a reading one": (TransactionError, reading(lambda t: t.collection("ns", "docs").insert(V))),
    "delete in a reading one": (TransactionError, reading(lambda t: t.collection("ns", "docs").delete("there"))),
}


def prepare(client: Any) -> None:
    clear(client)
    make(client).insert(V, {"n": 1}, "there", "text")
    client.namespace("ns").create_collection("bare", dimension=4)


@pytest.fixture(scope="module")
def as_told_here(places: Places) -> Iterator[dict[str, Any]]:
    """What an embedded database tells of each mistake."""
    with places.open("embedded") as client:
        prepare(client)
        yield {name: told(action, client) for name, (_, action) in {**STORE, **CLIENT}.items()}


@pytest.fixture
def client(places: Places, mode: str, as_told_here: dict[str, Any]) -> Iterator[Any]:
    """A store, plain, with a few documents."""
    with places.open(mode) as client:
        prepare(client)
        yield client


def test_of_a_store(store: Any, as_told_here: dict[str, Any]) -> None:
    assert compared(STORE, store, as_told_here) == {}
    # None of them did anything, and a transaction goes on.
    assert store.list_namespaces() == ["ns"]
    assert store.namespace("ns").list_collections() == ["bare", "docs"]
    assert list(store.namespace("ns").scan()) == []
    docs = store.collection("ns", "docs")
    assert list(docs.iterate()) == [Document("there", {"n": 1}, "text", V)]
    assert store.collection("ns", "bare").count() == 0
    docs.insert(vector(2), id="more")
    assert docs.count() == 2


def test_of_a_client(client: Any, as_told_here: dict[str, Any]) -> None:
    assert compared(CLIENT, client, as_told_here) == {}
    assert client.stats()["active_transactions"] == 0


def test_a_handle_of_an_ended_transaction(client: Any, end: str) -> None:
    transaction = client.begin_transaction()
    docs, space = transaction.collection("ns", "docs"), transaction.namespace("ns")
    walk = docs.iterate()
    getattr(transaction, end)()
    refused(
        TransactionClosedError,
        lambda: docs.insert(V),
        lambda: docs.get("there"),
        lambda: docs.vector_search(V),
        lambda: next(walk),
        lambda: space.put("k", b""),
        lambda: space.create_collection("x"),
    )
    assert client.collection("ns", "docs").count() == 1


def test_after_close(client: Any) -> None:
    docs = client.collection("ns", "docs")
    client.close()
    refused(
        DatabaseClosedError,
        lambda: client.list_namespaces(),
        lambda: client.create_namespace("x"),
        lambda: docs.get("there"),
        lambda: docs.insert(V),
        lambda: docs.vector_search(V),
    )


def test_messages_name_what_is_wrong(as_told_here: dict[str, Any]) -> None:
    said = {name: found.message for name, found in as_told_here.items() if isinstance(found, Told)}
    assert len(said) == len(STORE) + len(CLIENT)
    for name, words in {
        "create_namespace, a slash": "'a/b'",
        "an unknown metric": "'manhattan' is unknown; known: cosine, euclidean, dot_product",
        "an unknown option": "dimensions",
        "too many dimensions": "65536",
        "fewer numbers": "'docs'",
        "NaN": "nan at 1",
        "infinity": "-inf at 2",
        "k 0": "k is a number of 1 to 100000, got 0",
        "batch, an id twice": "'a'",
        "batch, fewer ids": "1 ids",
        "filter, unknown operator": "$near",
        "metadata, a date": "metadata.a.b",
        "metadata, an array": "metadata.a is of type ndarray",
        "zeros under cosine": "the vector has length 0",
        "batch with zeros": "the vectors: row 1 has length 0",
        "namespace key, long": "501 bytes, the limit is 500",
        "namespace key, longer": "600 bytes, the limit is 500",
        "id, long": "400",
        "words without an index": "'bare'",
        "search, an unknown aggregation": "'min' is unknown",
    }.items():
        assert words in said[name], (name, said[name])
    for name in ("namespace key, empty", "namespace key, longer", "namespace pairs, long key"):
        assert "1 to 500 bytes" in as_told_here[name].remediation, name
    assert "tolist" in as_told_here["metadata, an array"].remediation
    mismatch = as_told_here["fewer numbers"]
    assert mismatch.details == {"expected": 4, "actual": 3}
    assert "4" in mismatch.remediation
