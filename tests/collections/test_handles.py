"""Handles of every kind: closed, forked, several of one folder, and reading beside a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.collections.brute import by_id
from tests.support.children import in_child
from tests.support.daemon import Daemon
from toondb import Database, IpcClient
from toondb_protocol.collections import Namespace
from toondb_protocol.errors import DatabaseClosedError, DatabaseLockedError, ForkedProcessError, TransactionError


def test_closed(folder: Path) -> None:
    db = Database.open(folder)
    docs = db.create_namespace("n").create_collection("c")
    docs.insert([1, 2], id="a")
    txn = db.begin_transaction()
    inside = txn.collection("n", "c")
    db.close()
    for call in (db.list_namespaces, lambda: docs.insert([1, 2]), lambda: docs.vector_search([1, 2])):
        with pytest.raises(DatabaseClosedError):
            call()
    with pytest.raises(DatabaseClosedError):
        inside.vector_search([1, 2])


def test_after_the_end_of_a_transaction(db: Database, ns: Namespace) -> None:
    docs = ns.create_collection("c", enable_hybrid_search=True)
    txn = db.begin_transaction()
    inside = txn.collection("ns", "c")
    inside.insert([1, 2], content="word")
    txn.commit()
    for call in (lambda: inside.insert([1, 2]), lambda: inside.keyword_search("word"), lambda: inside.count()):
        with pytest.raises(TransactionError):
            call()
    assert len(docs) == 1


def test_two_handles_share_one_index(folder: Path) -> None:
    with Database.open(folder) as first, Database.open(folder) as second:
        docs = first.create_namespace("n").create_collection("c")
        docs.insert([1, 2], id="a")
        assert by_id(second.collection("n", "c").vector_search([1, 2])) == ["a"]
        assert first._shared.collections() is second._shared.collections()
        first.close()
        second.collection("n", "c").insert([2, 1], id="b")
        assert by_id(second.collection("n", "c").vector_search([2, 1])) == ["b", "a"]


def test_in_a_forked_child(db: Database, ns: Namespace) -> None:
    docs = ns.create_collection("c", enable_hybrid_search=True)
    docs.insert([1, 2], id="a", content="word")
    docs.vector_search([1, 2])

    def child() -> list[str]:
        told = []
        for call in (db.list_namespaces, lambda: docs.insert([1, 2]), lambda: docs.vector_search([1, 2]), db.close):
            try:
                call()
            except ForkedProcessError as error:
                told.append(type(error).__name__)
        return told

    assert in_child(child) == ["ForkedProcessError"] * 3
    assert by_id(docs.vector_search([1, 2])) == by_id(docs.keyword_search("word")) == ["a"]


def test_reading_beside_a_daemon(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        docs = client.create_namespace("n").create_collection("c", enable_hybrid_search=True)
        docs.insert([1, 2], {"x": 1}, "a", "word")
        with Database.open_concurrent(tmp_db) as db:
            assert db.read_only
            beside = db.collection("n", "c")
            assert by_id(beside.vector_search([1, 2])) == by_id(beside.keyword_search("word")) == ["a"]
            docs.insert([2, 1], {"x": 2}, "b", "word")
            assert by_id(beside.vector_search([2, 1], 5, {"x": 2})) == ["b"]
            assert len(beside.hybrid_search([2, 1], "word")) == len(beside) == 2
            docs.delete("a")
            assert by_id(beside.vector_search([1, 2])) == by_id(beside.keyword_search("word")) == ["b"]
            for call in (lambda: beside.insert([1, 2]), lambda: db.delete_namespace("n"), lambda: beside.delete("b")):
                with pytest.raises(DatabaseLockedError):
                    call()
