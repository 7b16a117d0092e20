"""The search without the general case answers what the general search does, or leaves it to that."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toondb import Database
from toondb.collections.engine import CollectionsEngine
from toondb.collections.plain_search import PlainSearches
from toondb.engine.environment import Space
from toondb_protocol.collections import Collection
from toondb_protocol.errors import CorruptionError, ToonDBError
from toondb_protocol.search import SearchRequest

DIMENSION = 12
METRICS = ["cosine", "euclidean", "dot_product"]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "db") as db:
        db.create_namespace("ns")
        yield db


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each search was a plain one."""
    seen: list[bool] = []
    search = PlainSearches.search

    def watched(self: PlainSearches, arguments: Any) -> Any:
        found = search(self, arguments)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(PlainSearches, "search", watched)
    return seen


def engine_of(db: Database) -> CollectionsEngine:
    return db._shared.collections()


def vectors(count: int, seed: int = 0) -> list[list[float]]:
    rows: list[list[float]] = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype("f4").tolist()
    return rows


def filled(db: Database, metric: str = "cosine", count: int = 1500) -> Collection:
    """Documents of every kind: with one vector, some of them equal, with none, and with several."""
    docs = db.namespace("ns").create_collection("docs", dimension=DIMENSION, metric=metric)
    rows = vectors(count)
    rows[7] = rows[3]
    docs.insert_batch([(f"{at}", row, {"n": at}, f"text {at}" * (at % 7)) for at, row in enumerate(rows)])
    docs.insert_multi_vector("several", {"title": rows[0], "body": rows[1]}, {"n": -1})
    db._operate(
        "document_put",
        {
            "namespace": "ns",
            "collection": "docs",
            "ids": ["none"],
            "vectors": None,
            "metadatas": [{}],
            "contents": ["no vector"],
        },
    )
    # The first search begins to load them.
    asked = {"namespace": "ns", "collection": "docs", "vector": np.ones(DIMENSION, "f4").tobytes(), "k": 1}
    while engine_of(db)._plain.search(asked) is None:
        docs.vector_search(rows[0], 1)
    return docs


def in_transaction(db: Database, request: SearchRequest) -> Any:
    with db.transaction() as txn:
        return txn.collection("ns", "docs").search(request)


@pytest.mark.parametrize("metric", METRICS)
def test_it_finds_what_the_general_search_finds(db: Database, plain: list[bool], metric: str) -> None:
    docs = filled(db, metric)
    plain.clear()
    rows = vectors(20, seed=1) + vectors(10)
    for at, row in enumerate(rows):
        for request in (
            SearchRequest(row, k=1 + at),
            SearchRequest(row, k=40, ef_search=100, min_score=-0.5, include_vectors=True),
            SearchRequest(row, k=5, include_content=False),
        ):
            assert docs.search(request) == in_transaction(db, request)
    assert plain == [True] * 3 * len(rows)
    assert len(docs.search(SearchRequest(rows[0], k=2000))) == 1500


def test_equal_vectors_come_by_id_at_distance_0(db: Database, plain: list[bool]) -> None:
    docs = filled(db)
    found = docs.vector_search(vectors(8)[3], 2)
    assert [(each.id, each.distance, each.score) for each in found] == [("3", 0.0, 1.0), ("7", 0.0, 1.0)]
    assert plain[-1]


def test_it_sees_every_commit_at_once(db: Database, plain: list[bool]) -> None:
    docs = filled(db)
    rng = np.random.default_rng(5)
    for at in range(60):
        row = rng.standard_normal(DIMENSION).tolist()
        docs.insert(row, {"at": at}, f"new {at}")
        assert docs.vector_search(row, 1)[0].id == f"new {at}"
        db.put(b"key", b"%d" % at)
        plain.clear()
        assert docs.vector_search(row, 1)[0].id == f"new {at}"
        assert plain == [True]  # a commit of keys alone changes nothing
        if at % 3 == 0:
            assert docs.delete(f"new {at}")
            assert docs.vector_search(row, 1)[0].id != f"new {at}"
        elif at % 3 == 1:
            docs.upsert([-number for number in row], {"at": -at}, f"new {at}")
            assert docs.vector_search([-number for number in row], 1)[0].metadata == {"at": -at}


def test_an_uncommitted_write_is_not_seen(db: Database, plain: list[bool]) -> None:
    docs = filled(db)
    row = [100.0] + [0.0] * (DIMENSION - 1)
    with db.transaction() as txn:
        txn.collection("ns", "docs").insert(row, {}, "own")
        assert txn.collection("ns", "docs").vector_search(row, 1)[0].id == "own"
        assert docs.vector_search(row, 1)[0].id != "own"
    assert docs.vector_search(row, 1)[0].id == "own"


def test_a_collection_that_is_deleted_and_made_again(db: Database) -> None:
    docs = filled(db)
    namespace = db.namespace("ns")
    namespace.delete_collection("docs")
    with pytest.raises(ToonDBError, match="there is no collection 'docs'"):
        docs.vector_search(vectors(1)[0])
    namespace.create_collection("docs", dimension=DIMENSION)
    assert docs.vector_search(vectors(1)[0]) == []
    db.delete_namespace("ns")
    with pytest.raises(ToonDBError, match="there is no namespace 'ns'"):
        docs.vector_search(vectors(1)[0])


MISTAKES: list[dict[str, Any]] = [
    {"namespace": "\ud800"},
    {"namespace": ""},
    {"namespace": "n" * 600},
    {"namespace": None},
    {"collection": "a/b"},
    {"collection": 7},
    {"collection": "other"},
    {"namespace": "other"},
    {"k": True},
    {"k": 0},
    {"k": 10**9},
    {"k": 2.0},
    {"k": None},
    {"k": -1},
    {"ef_search": 0},
    {"ef_search": False},
    {"ef_search": "64"},
    {"ef_search": 10**18},
    {"vector": b""},
    {"vector": b"12345"},
    {"vector": bytes(4 * DIMENSION)},
    {"vector": bytes(4 * DIMENSION + 4)},
    {"vector": np.full(DIMENSION, math.nan, "f4").tobytes()},
    {"vector": np.full(DIMENSION, math.inf, "f4").tobytes()},
    {"vector": None},
    {"vector": [1.0] * DIMENSION},
    {"vector": bytearray(np.ones(DIMENSION, "f4").tobytes())},
    {"min_score": math.nan},
    {"min_score": "high"},
    {"min_score": 0},
    {"min_score": None},
    {"include_vectors": 1},
    {"include_vectors": None},
    {"include_content": "no"},
    {"include_content": None},
    {"filter": {"n": {"$lt": 3}}},
    {"filter": {"n": {"$near": 3}}},
    {"text_query": "words"},
    {"alpha": 2},
    {"what": 1},
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{at}-{next(iter(each))}" for at, each in enumerate(MISTAKES)])
def test_what_is_odd_is_answered_or_refused_as_in_a_transaction(db: Database, mistake: dict[str, Any]) -> None:
    filled(db, count=50)
    collections = engine_of(db)
    arguments = {"namespace": "ns", "collection": "docs", "vector": np.ones(DIMENSION, "f4").tobytes(), "k": 3}
    told: list[Any] = []
    for transaction in (None, db._engine.begin(read_only=True)):
        try:
            told.append(collections.operate("search", {**arguments, **mistake}, transaction))
        except ToonDBError as error:
            told.append((type(error), str(error)))
    assert told[0] == told[1]


def test_a_damaged_document_is_told(db: Database, plain: list[bool]) -> None:
    docs = filled(db, count=50)
    row = vectors(1)[0]
    (entry,) = [cache.collection for cache in engine_of(db)._caches._caches.values()]
    engine = db._engine
    transaction = engine.begin()
    value = transaction.get(entry.prefix + b"0", Space.DOCUMENTS)
    assert value is not None
    transaction.put(entry.prefix + b"0", value[:-3], Space.DOCUMENTS)
    engine.commit(transaction)
    plain.clear()
    for _ in range(2):
        with pytest.raises(CorruptionError, match="cannot be read"):
            docs.vector_search(row, 1)
    assert plain == [False, False]


_CLOSING = """
import random, sys, threading, time
from toondb import Database
from toondb.errors import DatabaseClosedError

def search(docs, row, other):
    try:
        while True:
            docs.vector_search(row, 10)
    except DatabaseClosedError:
        return
    except BaseException as error:
        other.append(repr(error))

other = []
rng = random.Random(1)
row = [rng.random() for _ in range(12)]
for _ in range(60):
    db = Database.open(sys.argv[1])
    docs = db.namespace("ns").collection("docs")
    docs.vector_search(row, 1)
    threads = [threading.Thread(target=search, args=(docs, row, other)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(rng.random() * 0.01)
    db.close()
    for thread in threads:
        thread.join()
print(other)
"""


def test_a_store_that_is_closed_amid_searches(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db") as db:
        db.create_namespace("ns")
        filled(db, count=300)
    command = [sys.executable, "-X", "faulthandler", "-c", _CLOSING, str(tmp_path / "db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
