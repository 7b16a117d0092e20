"""Namespaces and collections themselves: made, found, listed, deleted, and reclaimed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toondb import Database
from toondb.engine.environment import Space
from toondb.engine.maintenance import check
from toondb_protocol.collections import Namespace
from toondb_protocol.errors import (
    CollectionConfigError,
    CollectionExistsError,
    CollectionNotFoundError,
    NamespaceError,
    NamespaceExistsError,
    NamespaceNotFoundError,
    TransactionConflictError,
    TransactionError,
    ValidationError,
)
from toondb_protocol.search import CollectionConfig, DistanceMetric, NamespaceConfig

SECONDS = 30.0


def records(db: Database, *spaces: Space) -> int:
    """How many records there are, and entries of the document log."""
    environment = db._engine.environment
    with environment.lmdb.begin() as txn:
        entries = sum(txn.stat(environment.spaces[space])["entries"] for space in spaces)
        return int(entries + txn.stat(environment.document_log)["entries"])


def wait_until_reclaimed(db: Database) -> None:
    """Wait for the background: each commit of it is announced."""
    environment = db._engine.environment
    give_up = time.monotonic() + SECONDS
    while records(db, Space.DOCUMENTS, Space.NAMESPACE_KV, Space.TEXT):
        assert time.monotonic() < give_up, "it is not reclaimed"
        environment.wait_for_commit(environment.announced_lsn, 0.1)


def test_life(db: Database) -> None:
    assert db.list_namespaces() == []
    with pytest.raises(NamespaceNotFoundError, match="'a'"):
        db.namespace("a")
    made = db.create_namespace("b", display_name="Bee", labels={"tier": "gold"})
    db.create_namespace(NamespaceConfig("a.1"))
    assert db.list_namespaces() == ["a.1", "b"]
    assert db.namespace("b").config == made.config == NamespaceConfig("b", "Bee", {"tier": "gold"})
    with pytest.raises(NamespaceExistsError, match="'b'"):
        db.create_namespace("b")
    docs = made.create_collection("docs", dimension=3, metric="euclidean", m=8, ef_construction=50, content_field="t")
    assert (
        made.collection("docs").config
        == docs.config
        == CollectionConfig("docs", 3, DistanceMetric.EUCLIDEAN, 8, 50, False, "t")
    )
    with pytest.raises(CollectionExistsError, match="'docs'"):
        made.create_collection("docs")
    made.create_collection(CollectionConfig("all", enable_hybrid_search=True))
    assert made.list_collections() == ["all", "docs"]
    assert db.namespace("a.1").list_collections() == []
    with pytest.raises(CollectionNotFoundError):
        db.collection("a.1", "docs")
    assert made.delete_collection("all") is True
    assert made.delete_collection("all") is False
    assert made.list_collections() == ["docs"]
    assert db.delete_namespace("b") is True
    assert db.delete_namespace("b") is False
    assert db.list_namespaces() == ["a.1"]
    with pytest.raises(NamespaceNotFoundError):
        made.list_collections()
    with pytest.raises(NamespaceNotFoundError):
        docs.insert([1, 2, 3])


def test_it_stays(folder: Path) -> None:
    with Database.open(folder) as db:
        docs = db.create_namespace("n", labels={"a": "b"}).create_collection("c")
        docs.insert([1.0, 2.0], {"x": 1}, "one")
    with Database.open(folder) as db:
        docs = db.collection("n", "c")
        assert docs.config.dimension == 2
        assert docs.get("one").metadata == {"x": 1}  # type: ignore[union-attr]
        assert db.namespace("n").config.labels == {"a": "b"}
    assert check(folder).damages == []


def test_what_was_deleted_never_comes_back(db: Database) -> None:
    """The same names again are other collections, before the old records are reclaimed and after."""
    for round in range(3):
        ns = db.create_namespace("n")
        docs = ns.create_collection("c", enable_hybrid_search=True)
        assert (len(docs), docs.get("0"), list(docs.iterate())) == (0, None, [])
        assert docs.vector_search([1, 0]) == docs.keyword_search("word") == []
        assert ns.get("key") is None
        assert list(ns.scan()) == []
        ns.put("key", b"%d" % round)
        docs.insert_batch([(str(at), [1.0, at], {}, "a word") for at in range(50)])
        assert len(docs.vector_search([1, 0], 100)) == len(docs.keyword_search("word", 100)) == 50
        if round == 1:
            ns.delete_collection("c")
            docs = ns.create_collection("c", dimension=5, metric="dot_product")
            assert docs.vector_search([1, 0, 0, 0, 0]) == []
            assert len(docs) == 0
            docs.insert([1, 2, 3, 4, 5])
        db.delete_namespace("n")
    wait_until_reclaimed(db)


def test_reclaiming_goes_on_after_a_crash(folder: Path) -> None:
    with Database.open(folder) as db:
        docs = db.create_namespace("n").create_collection("c", enable_hybrid_search=True)
        db.namespace("n").put_many({b"%d" % at: b"v" for at in range(2500)})
        docs.insert_batch([(str(at), [1.0, at], {}, "a word") for at in range(2500)])
        # As a process that was killed after its commit leaves it.
        db._shared.collections().close()
        db.delete_namespace("n")
        assert records(db, Space.DOCUMENTS, Space.NAMESPACE_KV) > 5000
    assert check(folder).damages == []
    with Database.open(folder) as db:
        assert db.list_namespaces() == []
        wait_until_reclaimed(db)
        with db._engine.environment.lmdb.begin() as txn:
            left = dict(txn.cursor(db._engine.environment.spaces[Space.CATALOG]))
        while any(key.startswith(b"gone/") for key in left):
            db._engine.environment.wait_for_commit(db._engine.environment.announced_lsn, 0.1)
            with db._engine.environment.lmdb.begin() as txn:
                left = dict(txn.cursor(db._engine.environment.spaces[Space.CATALOG]))
        assert set(left) == {b"last_id"}
    assert check(folder).damages == []


def test_transactions(db: Database) -> None:
    with db.transaction() as txn:
        docs = txn.create_namespace("n").create_collection("c", enable_hybrid_search=True)
        docs.insert([1, 2], {}, "a", "word")
        assert [each.id for each in docs.vector_search([1, 2])] == ["a"]
        assert [each.id for each in docs.keyword_search("word")] == ["a"]
        assert db.list_namespaces() == []
        txn.abort()
    assert db.list_namespaces() == []
    with db.transaction() as txn:
        txn.create_namespace("n").create_collection("c").insert([1, 2, 3], {}, "b")
        txn.put("k", b"v")
    assert db.collection("n", "c").config.dimension == 3
    assert [each.id for each in db.collection("n", "c").vector_search([1, 2, 3])] == ["b"]
    with db.transaction() as txn:
        txn.delete_namespace("n")
        assert txn.list_namespaces() == []
        assert db.list_namespaces() == ["n"]
    assert db.list_namespaces() == []
    with db.transaction(read_only=True) as txn, pytest.raises(TransactionError, match="read-only"):
        txn.create_namespace("x")


def test_nothing_is_written_into_what_was_deleted_meanwhile(db: Database, ns: Namespace) -> None:
    docs = ns.create_collection("c", dimension=1)

    attempts: dict[str, Callable[[Any], Any]] = {
        "document": lambda txn: txn.collection("ns", "c").insert([1.0], id="x"),
        "delete": lambda txn: txn.collection("ns", "c").delete("y"),
        "key": lambda txn: txn.namespace("ns").put("k", b"v"),
        "collection": lambda txn: txn.namespace("ns").create_collection("d"),
    }
    for attempt in attempts.values():
        docs.insert([2.0], id="y")
        transaction = db.begin_transaction()
        attempt(transaction)
        db.delete_namespace("ns")
        with pytest.raises(TransactionConflictError, match="namespaces and collections"):
            transaction.commit()
        docs = db.create_namespace("ns").create_collection("c", dimension=1)
    # And the other way round: who deletes does not leave behind what came meanwhile.
    transaction = db.begin_transaction()
    transaction.delete_namespace("ns")
    db.namespace("ns").create_collection("late")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    db.delete_namespace("ns")
    wait_until_reclaimed(db)


def test_first_vectors_of_two_dimensions(db: Database, ns: Namespace) -> None:
    docs = ns.create_collection("c")
    first, second = db.begin_transaction(), db.begin_transaction()
    first.collection("ns", "c").insert([1, 2])
    second.collection("ns", "c").insert([1, 2, 3])
    first.commit()
    with pytest.raises(TransactionConflictError):
        second.commit()
    assert db.collection("ns", "c").config.dimension == 2
    assert len(docs) == 1


def test_threads_create_at_once(db: Database) -> None:
    """None of them sees a conflict, and each name is made once."""
    made: list[str] = []
    failed: list[Exception] = []

    def create(worker: int) -> None:
        for at in range(6):
            for name in (f"own-{worker}-{at}", f"same-{at}"):
                try:
                    db.create_namespace(name)
                    made.append(name)
                except NamespaceExistsError:
                    pass
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=create, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(made) == db.list_namespaces()
    assert len(made) == 4 * 6 + 6


@pytest.mark.parametrize(
    ("operation", "arguments", "error"),
    [
        ("nothing", {}, ValidationError),
        ("namespace_create", {"name": "a/b"}, ValidationError),
        ("namespace_create", {"name": "a" * 65}, ValidationError),
        ("namespace_create", {"name": 5}, ValidationError),
        ("namespace_create", {"name": "n", "other": 1}, ValidationError),
        ("namespace_create", {"name": "n", "labels": {"a": 1}}, NamespaceError),
        ("namespace_create", {"name": "n", "labels": [1]}, NamespaceError),
        ("namespace_create", {"name": "n", "labels": {"\ud800": "x"}}, ValidationError),
        ("namespace_create", {"name": "n", "display_name": 7}, NamespaceError),
        ("namespace_create", [], ValidationError),
        ("namespace_get", {}, ValidationError),
        ("collection_create", {"namespace": "ns"}, ValidationError),
        ("collection_create", {"namespace": "ns", "name": "c", "dimension": 0}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "dimension": True}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "dimension": 65537}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "metric": "manhattan"}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "metric": ["cosine"]}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "m": 1}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "m": "16"}, CollectionConfigError),
        ("collection_create", {"namespace": "ns", "name": "c", "hybrid": 1}, ValidationError),
        ("collection_create", {"namespace": "ns", "name": "c", "content_field": 1}, ValidationError),
        ("namespace_kv_get", {"namespace": "ns", "keys": [b""]}, ValidationError),
        ("namespace_kv_get", {"namespace": "ns", "keys": [b"x" * 501]}, ValidationError),
        ("namespace_kv_get", {"namespace": "ns", "keys": ["x"]}, ValidationError),
        ("namespace_kv_put", {"namespace": "ns", "keys": [b"x"], "values": []}, ValidationError),
        ("namespace_kv_put", {"namespace": "ns", "keys": [b"x"], "values": ["v"]}, ValidationError),
        ("namespace_kv_scan", {"namespace": "ns", "start": "x"}, ValidationError),
        ("namespace_kv_scan", {"namespace": "ns", "limit": 0}, ValidationError),
        ("namespace_kv_scan", {"namespace": "none"}, NamespaceNotFoundError),
    ],
)
def test_bad_arguments_from_the_wire(
    db: Database, ns: Namespace, operation: str, arguments: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        db._operate(operation, arguments)  # type: ignore[arg-type]
    assert ns.list_collections() == []
    assert db.list_namespaces() == ["ns"]


class TestKeys:
    def test_no_namespace_sees_another(self, db: Database) -> None:
        names = ["a", "a.b", "a-b", "A", "b"]
        for name in names:
            ns = db.create_namespace(name)
            ns.put_many({key: name.encode() for key in (b"\0", b"k", b"\xff" * 500)})
        db.put("k", b"outside")
        for name in names:
            ns = db.namespace(name)
            assert {value for _, value in ns.scan()} == {name.encode()}
            assert [key for key, _ in ns.scan()] == [b"\0", b"k", b"\xff" * 500]
            assert [key for key, _ in ns.scan(reverse=True)] == [b"\xff" * 500, b"k", b"\0"]
            assert list(ns.scan("k")) == [(b"k", name.encode())]
            assert [key for key, _ in ns.scan(b"k", b"\xff\xff")] == [b"k"]
        db.namespace("a").delete("k")
        assert db.namespace("a").get("k") is None
        assert db.namespace("a.b").get("k") == b"a.b"
        assert db.get("k") == b"outside"
        assert [key for key, _ in db.scan()] == [b"k"]

    def test_pages(self, ns: Namespace) -> None:
        items = {b"%06d" % at: bytes(at % 7) for at in range(3000)}
        items |= {b"large%d" % at: bytes(3 << 20) for at in range(3)}
        ns.put_many(items)
        assert dict(ns.scan()) == items
        assert list(ns.scan(reverse=True)) == sorted(items.items(), reverse=True)
        assert list(ns.scan(limit=1500)) == sorted(items.items())[:1500]

    def test_in_a_transaction(self, db: Database, ns: Namespace) -> None:
        ns.put("a", b"1")
        with db.transaction() as txn:
            own = txn.namespace("ns")
            own.put("b", b"2")
            own.delete("a")
            assert (own.get("a"), own.get("b"), ns.get("a"), ns.get("b")) == (None, b"2", b"1", None)
            assert list(own.scan()) == [(b"b", b"2")]
        assert list(ns.scan()) == [(b"b", b"2")]
        first, second = db.begin_transaction(), db.begin_transaction()
        first.namespace("ns").put("b", b"3")
        second.namespace("ns").put("b", b"4")
        first.commit()
        with pytest.raises(TransactionConflictError, match="key 'b'"):
            second.commit()
