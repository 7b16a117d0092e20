"""A transaction that began before a collection was deleted still searches it, whatever was reclaimed since."""

from __future__ import annotations

from tests.collections.test_catalog import wait_until_reclaimed
from toondb import Database
from toondb_protocol.collections import Namespace


def test_a_search_in_a_snapshot_of_a_collection_that_is_reclaimed(db: Database, ns: Namespace) -> None:
    docs = ns.create_collection("docs", enable_hybrid_search=True)
    docs.insert_batch([(f"d{at}", [1.0, float(at)], {"n": at}, "word") for at in range(50)])
    early = db.begin_transaction()
    assert docs.vector_search([1.0, 0.0], k=1)[0].id == "d0"
    ns.delete_collection("docs")
    wait_until_reclaimed(db)
    late = db.begin_transaction()
    # Another one of that name changes nothing.
    ns.create_collection("docs", dimension=3).insert([1.0, 2.0, 3.0])
    inside = early.collection("ns", "docs")
    for _ in range(3):
        assert [each.id for each in inside.vector_search([1.0, 0.0], k=2)] == ["d0", "d1"]
        assert [each.id for each in inside.vector_search([1.0, 0.0], filter={"n": {"$gt": 40}}, k=1)] == ["d41"]
        assert len(inside.keyword_search("word", k=100)) == inside.count() == 50
    early.abort()
    assert late.namespace("ns").list_collections() == []
    late.abort()
