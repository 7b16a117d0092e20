"""Documents: what is stored is what comes back; bad input of every kind stores nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from toondb import Database
from toondb.config import open_options
from toondb_protocol.collections import Namespace
from toondb_protocol.errors import (
    DimensionMismatchError,
    TransactionConflictError,
    TransactionTooLargeError,
    ValidationError,
)
from toondb_protocol.search import Document


def packed(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_what_is_stored_comes_back(ns: Namespace) -> None:
    docs = ns.create_collection("c", content_field="text")
    metadata = {"a": None, "b": [1, {"c": 2.5}], "text": "from the field", "big": (1 << 64) - 1, "": "empty name"}
    assert docs.insert("id", [1, 2.5], metadata, "given") == "id"
    assert docs.get("id") == Document("id", metadata, "given", [1.0, 2.5])
    docs.upsert("id", [3, 4], metadata)
    assert docs.get("id") == Document("id", metadata, "from the field", [3.0, 4.0])
    made = docs.insert(np.array([1, 2], dtype=np.float64), {"n": np.int64(5)})
    assert docs.get(made) == Document(made, {"n": 5}, None, [1.0, 2.0])
    docs.insert(id="words", content="no vector")
    assert docs.get("words") == Document("words", {}, "no vector")
    docs.insert_multi_vector("several", {"title": [1, 0], "body": [0, 1]}, {"k": 1}, "text")
    assert docs.get("several") == Document("several", {"k": 1}, "text", None, {"title": [1.0, 0.0], "body": [0.0, 1.0]})
    assert docs.get_batch(["none", "words", "none"])[1] == Document("words", {}, "no vector")
    assert len(docs) == docs.count() == 4
    assert [each.id for each in docs.iterate()] == sorted([made, "id", "several", "words"])
    assert [each.id for each in docs.iterate(after="id", limit=1)] == ["several"]
    assert [each.id for each in docs.iterate(filter={"k": 1})] == ["several"]
    assert docs.count({"n": {"$gte": 5}}) == 1
    assert docs.delete_batch(["id", "id", "none", "words"]) == 2
    assert docs.delete("id") is False
    assert len(docs) == 2


@pytest.mark.parametrize("id", ["a", "é" * 200, "x" * 400, "\0", "a\0b", "../..", "\U0010ffff", " "])
def test_ids_of_any_kind(ns: Namespace, id: str) -> None:
    docs, other = ns.create_collection("c", enable_hybrid_search=True), ns.create_collection("d")
    docs.insert(id, [1, 2], {"x": 1}, "word")
    assert docs.get(id) is not None
    assert other.get(id) is None
    assert [each.id for each in docs.vector_search([1, 2])] == [id]
    assert [each.id for each in docs.keyword_search("word")] == [id]
    assert [each.id for each in docs.iterate()] == [id]
    assert docs.delete(id)
    assert docs.vector_search([1, 2]) == docs.keyword_search("word") == []
    assert list(docs.iterate()) == []


def test_pages(ns: Namespace) -> None:
    docs = ns.create_collection("c")
    docs.insert_batch([(f"{at:05}", [1.0], {"n": at}) for at in range(1500)])
    docs.insert_batch([(f"large{at}", [1.0], {}, "x" * (3 << 20)) for at in range(3)])
    assert [each.id for each in docs.iterate()] == [f"{at:05}" for at in range(1500)] + [
        f"large{at}" for at in range(3)
    ]
    assert [each.metadata["n"] for each in docs.iterate(filter={"n": {"$gte": 1400}})] == list(range(1400, 1500))
    assert len(list(docs.iterate(limit=700))) == 700
    assert docs.count({"n": {"$lt": 10}}) == 10


BAD_PUTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ids": ["a"], "vectors": packed(1), "dimension": 1}, DimensionMismatchError, "have 2"),
    ({"ids": ["a"], "vectors": packed(1, 2, 3), "dimension": 2}, DimensionMismatchError, "12 bytes"),
    ({"ids": ["a"], "vectors": b"1", "dimension": 2}, DimensionMismatchError, "1 bytes"),
    ({"ids": ["a"], "vectors": "text", "dimension": 2}, ValidationError, "'text'"),
    ({"ids": ["a"], "vectors": packed(1, 2), "dimension": 0}, ValidationError, "got 0"),
    ({"ids": ["a"], "vectors": packed(1, 2), "dimension": True}, ValidationError, "got True"),
    ({"ids": ["a"], "vectors": packed(1, 2), "dimension": 1 << 70}, ValidationError, "1 to 65536"),
    ({"ids": ["a"], "vectors": packed(1, 2)}, ValidationError, "got None"),
    ({"ids": ["a"], "vectors": packed(1, float("nan")), "dimension": 2}, ValidationError, "nan at 1"),
    ({"ids": ["a"], "vectors": packed(float("inf"), 0), "dimension": 2}, ValidationError, "inf at 0"),
    ({"ids": ["a"], "vectors": packed(0, 0), "dimension": 2}, ValidationError, "length 0"),
    ({"ids": ["b", "a", "b"]}, ValidationError, "'b'"),
    ({"ids": ["a"], "metadatas": [{}, {}]}, ValidationError, "1 documents and 2 metadatas"),
    ({"ids": ["a"], "contents": [5]}, ValidationError, "content"),
    ({"ids": ["a"], "contents": ["\ud800"]}, ValidationError, "Unicode"),
    ({"ids": ["a"], "metadatas": [[]]}, ValidationError, "mapping"),
    ({"ids": ["a"], "metadatas": [{1: 2}]}, ValidationError, "not text"),
    ({"ids": ["a"], "metadatas": [{"x": b"bytes"}]}, ValidationError, "bytes"),
    ({"ids": ["a"], "metadatas": [{"x": float("nan")}]}, ValidationError, "finite"),
    ({"ids": ["a"], "metadatas": [{"x": 1 << 64}]}, ValidationError, "64 bits"),
    ({"ids": ["a"], "metadatas": [{"x": "\ud800"}]}, ValidationError, "Unicode"),
    ({"ids": [""]}, ValidationError, "1 to 400"),
    ({"ids": ["é" * 201]}, ValidationError, "402"),
    ({"ids": [5]}, ValidationError, "5"),
    ({"ids": "a"}, ValidationError, "list"),
    ({"ids": ["\udc80"]}, ValidationError, "Unicode"),
    ({"ids": ["a"], "color": "red"}, ValidationError, "'color'"),
]


@pytest.mark.parametrize(("given", "error", "says"), BAD_PUTS)
@pytest.mark.parametrize("inside", [False, True])
def test_bad_documents_store_nothing(
    db: Database, ns: Namespace, given: dict[str, Any], error: type[Exception], says: str, inside: bool
) -> None:
    docs = ns.create_collection("c", dimension=2, enable_hybrid_search=True)
    docs.insert("kept", [1, 1], {}, "kept word")
    count = len(given["ids"])
    arguments = {"namespace": "ns", "collection": "c", "metadatas": [{}] * count, "contents": [None] * count, **given}
    if inside:
        with db.transaction() as txn:
            with pytest.raises(error, match=says):
                txn._operate("document_put", arguments)
            txn.put("k", b"v")  # the transaction goes on
    else:
        with pytest.raises(error, match=says):
            db._operate("document_put", arguments)
    assert [each.id for each in docs.iterate()] == ["kept"]
    assert [each.id for each in docs.vector_search([1, 0], 9)] == ["kept"]
    assert [each.id for each in docs.keyword_search("kept word", 9)] == ["kept"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"names": [], "vectors": b"", "dimension": 2}, ValidationError),
        ({"names": ["a", "a"], "vectors": packed(1, 2, 3, 4), "dimension": 2}, ValidationError),
        ({"names": [""], "vectors": packed(1, 2), "dimension": 2}, ValidationError),
        ({"names": ["a"], "vectors": None, "dimension": 2}, ValidationError),
        ({"names": ["a", "b"], "vectors": packed(1, 2), "dimension": 2}, DimensionMismatchError),
        ({"names": [f"{at}" for at in range(1025)], "vectors": packed(*[1] * 1025), "dimension": 1}, ValidationError),
    ],
)
def test_bad_documents_of_several_vectors(
    db: Database, ns: Namespace, given: dict[str, Any], error: type[Exception]
) -> None:
    ns.create_collection("c", dimension=2)
    with pytest.raises(error):
        db._operate("document_put_multi", {"namespace": "ns", "collection": "c", "id": "x", "metadata": {}, **given})
    assert len(db.collection("ns", "c")) == 0


def test_too_much_for_a_transaction(folder: Any) -> None:
    with Database.open(folder, {"memtable_size_bytes": 1 << 20}) as db:
        docs = db.create_namespace("n").create_collection("c", enable_hybrid_search=True)
        docs.insert("kept", [1, 1], {}, "kept")
        rows = [(str(at), [1.0, at], {"x": "y" * 1000}, "text " * 50) for at in range(1000)]
        with pytest.raises(TransactionTooLargeError):
            docs.insert_batch(rows)
        with db.transaction() as txn:
            with pytest.raises(TransactionTooLargeError):
                txn.collection("n", "c").insert_batch(rows)
            assert len(txn.collection("n", "c")) == 1
            assert len(txn.collection("n", "c").keyword_search("text", 9)) == 0
            txn.collection("n", "c").insert("more", [2, 2], {}, "text")
        assert [each.id for each in docs.iterate()] == ["kept", "more"]
        assert [each.id for each in docs.keyword_search("text", 9)] == ["more"]
    assert open_options(None).engine.max_transaction_bytes > 1 << 20


def test_conflicts(db: Database, ns: Namespace) -> None:
    """In transactions of users the first committer wins; plain writes never conflict."""
    docs = ns.create_collection("c", dimension=1)
    first, second, other = db.begin_transaction(), db.begin_transaction(), db.begin_transaction()
    first.collection("ns", "c").insert([1], id="a", metadata={"by": 1})
    second.collection("ns", "c").insert([1], id="a", metadata={"by": 2})
    other.collection("ns", "c").insert([1], id="b")
    first.commit()
    other.commit()
    docs.insert([3], id="c")
    with pytest.raises(TransactionConflictError, match="document 'a'"):
        second.commit()
    assert docs.get("a").metadata == {"by": 1}  # type: ignore[union-attr]
    assert len(docs) == 3


def test_with_keys_and_sql(db: Database, ns: Namespace) -> None:
    docs = ns.create_collection("c", enable_hybrid_search=True)
    db.execute("CREATE TABLE t (a)")

    def write(txn: Any, at: int) -> None:
        txn.put(f"k{at}", b"v")
        txn.execute("INSERT INTO t VALUES (?)", (at,))
        txn.collection("ns", "c").insert([1.0, at], {"n": at}, f"d{at}", f"word{at}")
        assert txn.execute("SELECT count(*) AS n FROM t")[0]["n"] == at + 1
        assert len(txn.collection("ns", "c").keyword_search(f"word{at}")) == 1

    for at in range(3):
        with db.transaction() as txn:
            write(txn, at)
    with db.transaction() as txn:
        write(txn, 3)
        txn.abort()
    assert db.get("k3") is None
    assert db.execute("SELECT count(*) AS n FROM t")[0]["n"] == len(docs) == 3
    assert docs.keyword_search("word3") == []
    assert len(docs.vector_search([1, 1], 9)) == 3


def test_serializable(db: Database, ns: Namespace) -> None:
    """A search has read the whole collection, a count and an iteration too."""
    docs = ns.create_collection("c", dimension=1)
    docs.insert([1], id="a")
    reads: list[Callable[[Any], Any]] = [
        lambda c: c.vector_search([1]),
        lambda c: c.count(),
        lambda c: list(c.iterate()),
        lambda c: c.get("new"),
    ]
    for read in reads:
        with pytest.raises(TransactionConflictError):
            with db.transaction("serializable") as txn:
                read(txn.collection("ns", "c"))
                txn.put("k", b"v")
                docs.insert([2], id="new")
        docs.delete("new")
        with db.transaction("serializable") as txn:
            read(txn.collection("ns", "c"))
            txn.put("k", b"v")
            db.put("other", b"v")
