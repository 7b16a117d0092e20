"""Namespaces, their keys, collections and documents in every mode, plain and inside a transaction."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from toondb import CollectionConfig, DistanceMetric, Document, NamespaceConfig
from toondb_protocol.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    NamespaceExistsError,
    NamespaceNotFoundError,
    ValidationError,
)

from .collection_stores import clear, ids, make, refused, vector
from .conftest import Places


@pytest.fixture
def client(places: Places, mode: str) -> Iterator[Any]:
    """A store, plain; it has no keys and no namespaces."""
    with places.open(mode) as client:
        clear(client)
        yield client


# Namespaces


def test_namespaces(store: Any) -> None:
    assert store.list_namespaces() == []
    config = NamespaceConfig(name="tenant_123", display_name="Acme Corp", labels={"tier": "enterprise"})
    made = store.create_namespace(config)
    assert (made.name, made.config) == ("tenant_123", config)
    store.create_namespace("a.b-c_D9", display_name="Größe 日本", labels={"": "", "k": "\U0001f600"})
    store.create_namespace("plain")
    assert store.list_namespaces() == ["a.b-c_D9", "plain", "tenant_123"]
    assert store.namespace("tenant_123").config == config
    assert store.namespace("a.b-c_D9").config == NamespaceConfig("a.b-c_D9", "Größe 日本", {"": "", "k": "\U0001f600"})
    assert store.namespace("plain").config == NamespaceConfig("plain", None, {})
    with pytest.raises(NamespaceExistsError, match="'plain'"):
        store.create_namespace("plain")
    with pytest.raises(NamespaceNotFoundError, match="'tenant_999'"):
        store.namespace("tenant_999")
    assert (store.delete_namespace("plain"), store.delete_namespace("plain")) == (True, False)
    assert store.list_namespaces() == ["a.b-c_D9", "tenant_123"]
    longest = "n" * 64
    assert store.create_namespace(longest).name == longest


def test_a_namespace_takes_everything_with_it(store: Any) -> None:
    docs = make(store)
    docs.insert(vector(1), id="a", content="apple")
    store.namespace("ns").put("k", b"v")
    assert store.delete_namespace("ns") is True
    refused(
        NamespaceNotFoundError, lambda: docs.get("a"), lambda: store.namespace("ns"), lambda: docs.insert(vector(1))
    )
    again = make(store, dimension=None)
    assert (again.get("a"), again.count(), list(again.iterate())) == (None, 0, [])
    assert (again.keyword_search("apple"), again.vector_search([1.0, 2.0])) == ([], [])
    assert (store.namespace("ns").get("k"), list(store.namespace("ns").scan())) == (None, [])
    again.insert([1.0, 2.0], id="b")
    assert ids(again.vector_search([1.0, 2.0])) == ["b"]


# Keys of a namespace


def test_keys_of_a_namespace(store: Any) -> None:
    one, other = store.create_namespace("a"), store.create_namespace("a.sub")
    store.put("k", b"of the store")
    one.put("k", b"1")
    other.put(b"k", bytearray(b"2"))
    assert (one.get("k"), other.get("k"), store.get("k")) == (b"1", b"2", b"of the store")
    assert one.put_many({"k2": b"", b"\xff" * 500: memoryview(b"long")}) == 2
    assert one.put_many([]) == 0
    assert (one.get("k2"), one.exists("k2"), one.exists("k3"), one.get("k3")) == (b"", True, False, None)
    assert list(one.scan()) == [(b"k", b"1"), (b"k2", b""), (b"\xff" * 500, b"long")]
    assert list(one.scan("k2")) == [(b"k2", b"")]  # one argument is a prefix
    assert list(one.scan("k", "k2")) == [(b"k", b"1")]
    assert list(one.scan(reverse=True, limit=2)) == [(b"\xff" * 500, b"long"), (b"k2", b"")]
    assert list(one.scan(limit=0)) == list(store.scan(limit=0)) == []
    assert list(other.scan()) == [(b"k", b"2")]
    one.delete("k")
    one.delete("k")
    assert (one.get("k"), other.get("k"), store.get("k")) == (None, b"2", b"of the store")
    assert [key for key, _ in store.scan()] == [b"k"]


def test_a_long_scan_of_a_namespace(store: Any) -> None:
    keys = store.create_namespace("many")
    rows = [(b"%05d" % at, b"v" * (at % 7)) for at in range(1100)]
    assert keys.put_many(rows) == 1100
    assert list(keys.scan()) == rows
    assert list(keys.scan(reverse=True)) == rows[::-1]
    assert list(keys.scan("00010", "01090", limit=1050)) == rows[10:1060]
    assert list(keys.scan("00010", "01090", limit=1050, reverse=True)) == rows[40:1090][::-1]
    keys.put("large", b"x" * 3_000_000)
    keys.put("large 2", b"y" * 3_000_000)
    assert [(key, len(value)) for key, value in keys.scan("large")] == [(b"large", 3_000_000), (b"large 2", 3_000_000)]
    scan = keys.scan()
    assert next(scan) == rows[0]
    scan.close()


# Collections


def test_collections(store: Any) -> None:
    space = store.create_namespace("ns")
    config = CollectionConfig(
        name="documents",
        dimension=384,
        metric=DistanceMetric.EUCLIDEAN,
        m=8,
        ef_construction=50,
        enable_hybrid_search=True,
        content_field="text",
    )
    made = space.create_collection(config)
    assert (made.name, made.namespace, made.config) == ("documents", "ns", config)
    simpler = space.create_collection("embeddings", dimension=768)
    assert simpler.config == CollectionConfig("embeddings", 768)
    assert space.create_collection("x", metric="dot_product").config.metric is DistanceMetric.DOT_PRODUCT
    assert space.list_collections() == ["documents", "embeddings", "x"]
    assert space.collection("documents").config == space.get_collection("documents").config == config
    assert store.collection("ns", "embeddings").config == simpler.config
    with pytest.raises(CollectionExistsError, match=r"'x'.*'ns'"):
        space.create_collection("x")
    with pytest.raises(CollectionNotFoundError, match=r"'nothing'.*'ns'"):
        space.collection("nothing")
    with pytest.raises(NamespaceNotFoundError, match="'nowhere'"):
        store.collection("nowhere", "x")
    assert (space.delete_collection("x"), space.delete_collection("x")) == (True, False)
    assert space.list_collections() == ["documents", "embeddings"]
    store.create_namespace("other").create_collection("documents", dimension=2)
    assert store.collection("ns", "documents").config.dimension == 384


def test_the_dimension_of_the_first_vector(store: Any) -> None:
    docs = make(store, dimension=None)
    assert docs.insert(metadata={"no": "vector"}, id="words")
    assert store.collection("ns", "docs").config.dimension is None
    docs.insert([1, 2, 3], id="a")
    assert store.collection("ns", "docs").config.dimension == 3
    assert store.collection("ns", "docs").get("a").vector == [1.0, 2.0, 3.0]
    store.namespace("ns").create_collection("multi").insert_multi_vector("a", {"x": [1, 2], "y": [3, 4]})
    assert store.collection("ns", "multi").config.dimension == 2


def test_a_collection_is_emptied_by_deleting_it(store: Any) -> None:
    docs = make(store)
    docs.insert(vector(1), id="a", content="apple")
    space = store.namespace("ns")
    assert space.delete_collection("docs") is True
    with pytest.raises(CollectionNotFoundError):
        docs.count()
    again = space.create_collection("docs", enable_hybrid_search=True)
    assert (again.count(), again.get("a"), again.keyword_search("apple")) == (0, None, [])
    again.insert([5.0], id="a")
    assert docs.get("a") == Document("a", {}, None, [5.0])  # a handle is a name


# Documents

FORMS: dict[str, Any] = {
    "keywords": lambda d: d.insert(vector=vector(1), metadata={"n": 1}, id="x", content="text"),
    "a leading vector": lambda d: d.insert(vector(1), {"n": 1}, "x", "text"),
    "a leading vector, some keywords": lambda d: d.insert(vector(1), {"n": 1}, id="x", content="text"),
    "a leading id": lambda d: d.insert("x", vector(1), {"n": 1}, "text"),
    "a leading id, keywords": lambda d: d.insert("x", vector=vector(1), metadata={"n": 1}, content="text"),
    "upsert": lambda d: d.upsert("x", vector(1), {"n": 1}, "text"),
    "upsert, keywords": lambda d: d.upsert(vector=vector(1), metadata={"n": 1}, id="x", content="text"),
    "a batch by keywords": lambda d: d.insert_batch(
        vectors=[vector(1)], metadatas=[{"n": 1}], ids=["x"], contents=["text"]
    )[0],
    "a batch by position": lambda d: d.insert_batch([vector(1)], [{"n": 1}], ["x"], ["text"])[0],
    "a batch of tuples": lambda d: d.insert_batch([("x", vector(1), {"n": 1}, "text")])[0],
    "a batch of NumPy": lambda d: d.insert_batch(np.array([vector(1)]), ({"n": 1},), ("x",), ("text",))[0],
    "NumPy": lambda d: d.insert(np.array(vector(1), "f4"), {"n": np.int64(1)}, "x", "text"),
    "NumPy of doubles": lambda d: d.insert(np.array(vector(1)), {"n": 1}, "x", "text"),
    "NumPy of integers": lambda d: d.insert(np.array([1, 0, 0, 0]), {"n": 1}, "x", "text"),
    "every other number of NumPy": lambda d: d.insert(np.array([1, 5, 0, 5, 0, 5, 0, 5.0])[::2], {"n": 1}, "x", "text"),
    "an array": lambda d: d.insert(array("d", vector(1)), {"n": 1}, "x", "text"),
    "a tuple": lambda d: d.insert((1, 0, 0, 0), {"n": 1}, "x", "text"),
}


def test_every_form_of_insert(store: Any) -> None:
    docs = make(store)
    for name, form in FORMS.items():
        assert form(docs) == "x", name
        assert docs.get("x") == Document("x", {"n": 1}, "text", vector(1)), name
        assert docs.count() == 1
        assert docs.delete("x") is True
    made = docs.insert(vector(1))
    assert (len(made), docs.get(made)) == (32, Document(made, {}, None, vector(1)))
    assert docs.insert(vector(1)) != made
    assert len(set(docs.insert_batch([vector(1)] * 3))) == 3
    assert len(set(docs.insert_batch([vector(1)] * 3, ids=[None, "known", None]))) == 3
    assert docs.count() == len(docs) == 8


VALUES: dict[str, Any] = {
    "null": None,
    "bools": [True, False],
    "numbers": [0, -1, (1 << 64) - 1, -(1 << 63), 0.5, 1e300, -0.0],
    "text": "Größe 日本 \U0001f600 \0",
    "nested": {"a": {"b": [{"c": []}, {}]}, "": ""},
    "a b.c$d": 1,
}


def test_documents_come_back_as_they_were(store: Any) -> None:
    docs = make(store)
    docs.insert(vector(0.1, -2), VALUES, "Größe 日本", "content\0 Größe")
    tenth = float(np.float32(0.1))
    found = docs.get("Größe 日本")
    assert found == Document("Größe 日本", VALUES, "content\0 Größe", [tenth, -2.0, 0.0, 0.0])
    assert str(found.metadata) == str(VALUES)
    docs.insert(id="words", content="only words")
    docs.insert(id="nothing")
    docs.insert_multi_vector("multi", {"b": vector(1), "a": vector(2)}, {"n": 1}, "two")
    assert docs.get("words") == Document("words", {}, "only words")
    assert docs.get("nothing") == Document("nothing", {})
    assert docs.get("multi") == Document("multi", {"n": 1}, "two", None, {"b": vector(1), "a": vector(2)})
    assert docs.get("missing") is None
    assert docs.get_batch(["nothing", "missing", "words", "nothing"]) == [
        Document("nothing", {}),
        None,
        Document("words", {}, "only words"),
        Document("nothing", {}),
    ]
    assert docs.get_batch([]) == []
    # A document is replaced as a whole, also by one of another kind.
    docs.insert("words", vector(3))
    assert docs.get("words") == Document("words", {}, None, vector(3))
    assert docs.keyword_search("words") == []
    docs.insert_multi_vector("words", {"x": vector(4)})
    assert docs.get("words") == Document("words", {}, None, None, {"x": vector(4)})
    docs.upsert(id="multi")
    assert docs.get("multi") == Document("multi", {})
    assert docs.count() == 4
    longest = "i" * 400
    assert docs.get(docs.insert(id=longest)) == Document(longest, {})


def test_content_comes_from_its_field(store: Any) -> None:
    docs = make(store, content_field="text")
    docs.insert(vector(1), {"text": "apples and pears"}, "a")
    docs.insert(vector(1), {"text": "apples"}, "b", "cherries")
    docs.insert(vector(1), {"text": 5}, "c")
    docs.insert(vector(1), {}, "d")
    docs.insert_batch([("e", vector(1), {"text": "apples"})])
    docs.insert_multi_vector("f", {"x": vector(1)}, {"text": "plums"})
    assert [docs.get(id).content for id in "abcdef"] == ["apples and pears", "cherries", None, None, "apples", "plums"]
    assert sorted(ids(docs.keyword_search("apples"))) == ["a", "e"]
    assert ids(docs.keyword_search("plums")) == ["f"]
    assert docs.get("a").metadata == {"text": "apples and pears"}


def test_delete(store: Any) -> None:
    docs = make(store)
    docs.insert_batch([(f"d{at}", vector(1, at), {"n": at}, f"word{at}") for at in range(6)])
    assert (docs.delete("d0"), docs.delete("d0"), docs.delete("never")) == (True, False, False)
    assert docs.delete_batch(["d1", "d2", "d1", "never"]) == 2
    assert docs.delete_batch([]) == 0
    assert docs.delete_batch(id for id in ("d3",)) == 1
    assert (docs.count(), ids(docs.iterate())) == (2, ["d4", "d5"])
    assert docs.keyword_search("word1") == []
    assert ids(docs.vector_search(vector(1, 1), k=10)) == ["d4", "d5"]
    docs.insert(vector(1), id="d0")
    assert ids(docs.vector_search(vector(1), k=1)) == ["d0"]


def test_a_batch_is_stored_whole_or_not_at_all(store: Any) -> None:
    docs = make(store)
    docs.insert(vector(1), id="there")
    refused(
        ValidationError,
        lambda: docs.insert_batch([vector(1), vector(float("nan"))]),
        lambda: docs.insert_batch([vector(1), [1.0]]),
        lambda: docs.insert_batch([vector(1), vector(0)]),  # no direction
        lambda: docs.insert_batch([vector(1), vector(2)], ids=["a", "a"]),
        lambda: docs.insert_batch([vector(1), vector(2)], ids=["a", ""]),
        lambda: docs.insert_batch([vector(1), vector(2)], metadatas=[{}]),
        lambda: docs.insert_batch([vector(1), vector(2)], metadatas=[{}, {"a": object()}]),
        lambda: docs.insert_batch([("a", vector(1)), ("b", vector(2), {}, 5)]),
    )
    assert ids(docs.iterate()) == ["there"]
    assert docs.insert_batch([]) == docs.insert_batch() == []


@pytest.mark.parametrize(
    ("count", "size"), [(1200, 900), (3, 900_000)], ids=["many documents", "documents of nearly a part"]
)
def test_batches_that_are_larger_than_a_part(store: Any, count: int, size: int) -> None:
    docs = make(store, enable_hybrid_search=False)
    made = docs.insert_batch(
        np.arange(1, 4 * count + 1, dtype="f4").reshape(count, 4),
        metadatas=[{"n": at, "text": "x" * size} for at in range(count)],
        ids=[f"{at:05}" for at in range(count)],
    )
    assert made == [f"{at:05}" for at in range(count)]
    assert docs.count() == docs.count({"n": {"$gte": 0}}) == count
    found = docs.get_batch(made)
    assert [each.metadata["n"] for each in found] == list(range(count))
    assert {len(each.metadata["text"]) for each in found} == {size}
    assert found[-1].vector == [4.0 * count - 3, 4.0 * count - 2, 4.0 * count - 1, 4.0 * count]
    results = docs.vector_search(found[1].vector, k=count)
    assert sorted(ids(results)) == made
    assert docs.delete_batch(made) == count
    assert (docs.count(), list(docs.iterate())) == (0, [])


# Count and iterate


def test_iterate(store: Any) -> None:
    docs = make(store)
    count = 600  # more than two pages
    docs.insert_batch([(f"{at:04}", vector(1, at), {"n": at, "even": at % 2 == 0}) for at in range(count)])
    names = [f"{at:04}" for at in range(count)]
    assert ids(docs.iterate()) == names
    assert ids(docs.iterate(limit=300)) == names[:300]
    assert ids(docs.iterate(limit=0)) == []
    assert ids(docs.iterate(after="0010", limit=3)) == ["0011", "0012", "0013"]
    assert ids(docs.iterate(after="00105")) == names[11:]
    assert ids(docs.iterate(after="zzz")) == []
    assert ids(docs.iterate(filter={"even": True})) == names[::2]
    assert ids(docs.iterate(filter={"even": True, "n": {"$lt": 7}}, after="0002")) == ["0004", "0006"]
    assert ids(docs.iterate(filter={"n": {"$gte": 590}}, limit=4)) == names[590:594]
    assert next(docs.iterate(filter={"n": 599})) == Document("0599", {"n": 599, "even": False}, None, vector(1, 599))
    walk = docs.iterate()
    assert next(walk).id == "0000"
    walk.close()
    assert (docs.count(), docs.count({}), docs.count({"even": True}), docs.count({"n": -1})) == (600, 600, 300, 0)
    # What is deleted while it is read is not there any more, and nothing comes twice.
    seen = []
    for each in docs.iterate():
        seen.append(each.id)
        if each.id == "0100":
            docs.delete_batch(names[300:])
    assert seen == names[: len(seen)]
    assert len(seen) in range(300, 600)
