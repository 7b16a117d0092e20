"""Searches: as near to brute force as an approximate index can be, exact where they must be."""

from __future__ import annotations

import math
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.collections.brute import by_id, nearest, unit
from toondb import Database
from toondb.collections import text as text_module
from toondb.collections import vector_caches
from toondb.collections.text import words_of
from toondb.filters import compile_filter
from toondb_protocol.collections import Collection, Namespace
from toondb_protocol.errors import CollectionConfigError, DimensionMismatchError, ValidationError
from toondb_protocol.search import SearchRequest

DIMENSION = 24
COUNT = 3000
QUERIES = 20


def filled(ns: Namespace, count: int = COUNT, metric: str = "cosine") -> tuple[Collection, dict[str, Any]]:
    rng = np.random.default_rng(5)
    rows = unit(rng, count, DIMENSION)
    docs = ns.create_collection("c", metric=metric)
    model = {f"{at:05}": (rows[at], {"n": at, "mod": at % 100, "half": at % 2}) for at in range(count)}
    docs.insert_batch(rows, [row[1] for row in model.values()], list(model))
    return docs, model


def settle(db: Database, docs: Collection) -> None:
    """Let the index of a collection catch up with the store, as it does in the background."""
    docs.vector_search([1.0] * DIMENSION)
    collections = db._shared.collections()
    collections._caches.tend(lambda: False)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot_product"])
def test_recall_and_filters(db: Database, ns: Namespace, metric: str) -> None:
    docs, model = filled(ns, metric=metric)
    settle(db, docs)
    rng = np.random.default_rng(6)
    queries = unit(rng, QUERIES, DIMENSION)
    filters: list[dict[str, Any] | None] = [
        None,
        {"half": 1},
        {"mod": {"$lt": 10}},
        {"mod": 7},
        {"n": {"$in": [5, 17, 2999]}},
        {"n": 12},
        {"n": -1},
    ]
    for filter in filters:
        matches = compile_filter(filter or {})
        found_of_best = total = 0
        for query in queries:
            found = docs.vector_search(query, 10, filter)
            best = nearest(metric, query, model, 10, matches)
            assert len(found) == len(best)
            assert all(matches(each.metadata) for each in found)
            found_of_best += len({each.id for each in found} & {id for id, _ in best})
            total += len(best)
        assert found_of_best >= 0.95 * total, filter


def test_always_k(db: Database, ns: Namespace) -> None:
    """Whatever ``k`` is, and however small ``ef_search``: k results, or all there are, each once."""
    docs, model = filled(ns, 2000)
    settle(db, docs)
    query = model["00007"][0]
    for k in (1, 10, 500, 1999, 2000, 5000):
        for filter, there in ((None, 2000), ({"mod": {"$gte": 50}}, 1000), ({"mod": 3}, 20)):
            found = by_id(docs.vector_search(query, k, filter, ef_search=1))
            assert len(found) == len(set(found)) == min(k, there)


def test_changes_are_seen_at_once(db: Database, ns: Namespace) -> None:
    docs, model = filled(ns, 1000)
    settle(db, docs)
    rng = np.random.default_rng(7)
    for at in range(60):
        id = f"{int(rng.integers(0, 1100)):05}"
        if at % 3 == 2 and id in model:
            assert docs.delete(id)
            del model[id]
        else:
            row = unit(rng, 1, DIMENSION)[0]
            docs.insert(row, {"n": -at, "half": at % 2}, id)
            model[id] = (row, {"n": -at, "half": at % 2})
        query = unit(rng, 1, DIMENSION)[0]
        for filter in (None, {"half": 1}, {"n": {"$lt": 0}}):
            found = docs.vector_search(query, 5, filter)
            best = nearest("cosine", query, model, 5, compile_filter(filter or {}))
            assert [each.distance for each in found] == [pytest.approx(far, abs=1e-5) for _, far in best]
            assert by_id(found) == [id for id, _ in best]


def test_snapshots(db: Database, ns: Namespace) -> None:
    """A transaction finds what was there when it began, however far others have gone on since."""
    docs, model = filled(ns, 1200)
    settle(db, docs)
    txn = db.begin_transaction()
    own = txn.collection("ns", "c")
    query = model["00100"][0]
    before = nearest("cosine", query, model, 20)
    rng = np.random.default_rng(8)
    docs.insert_batch([(f"{at:05}", row, {}) for at, row in enumerate(unit(rng, 300, DIMENSION))])
    docs.delete_batch([id for id, _ in before])
    settle(db, docs)
    assert by_id(own.vector_search(query, 20)) == [id for id, _ in before]
    assert not {id for id, _ in before} & set(by_id(docs.vector_search(query, 20)))
    own.insert(query, id="own")
    assert by_id(own.vector_search(query, 2)) == [before[0][0], "own"] or by_id(own.vector_search(query, 2)) == [
        "own",
        before[0][0],
    ]
    own.delete(before[1][0])
    assert before[1][0] not in by_id(own.vector_search(query, 20))
    txn.abort()
    assert "own" not in by_id(docs.vector_search(query, 20))


def test_an_index_that_disagrees_is_not_believed(db: Database, ns: Namespace) -> None:
    docs, model = filled(ns, 1200)
    settle(db, docs)
    (cache,) = db._shared.collections()._caches._caches.values()
    for label, known in list(cache._owners.items()):
        cache._owners[label] = cache._documents[known.id] = known._replace(lsn=known.lsn + 5)
    query = model["00100"][0]
    assert by_id(docs.vector_search(query, 9)) == [id for id, _ in nearest("cosine", query, model, 9)]


def test_threads(db: Database, ns: Namespace) -> None:
    """Searches beside inserts and deletes: every answer is of documents that were there, and all of the stable ones."""
    docs, model = filled(ns, 1500)
    stop = threading.Event()
    failed: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
            stop.set()

    def change(worker: int) -> None:
        rng = np.random.default_rng(worker)
        for at in range(40):
            ids = [f"w{worker}-{n}" for n in range(at % 7 + 1)]
            docs.insert_batch(unit(rng, len(ids), DIMENSION), [{"w": worker}] * len(ids), ids)
            assert docs.count({"w": worker}) >= len(ids)
            found = docs.vector_search(unit(rng, 1, DIMENSION)[0], 50, {"w": worker})
            assert {each.id for each in found} >= set(ids)
            docs.delete_batch([f"w{worker}-{n}" for n in range(9)])
            assert docs.vector_search(unit(rng, 1, DIMENSION)[0], 50, {"w": worker}) == []

    def look() -> None:
        rng = np.random.default_rng(99)
        while not stop.is_set():
            at = int(rng.integers(0, 1500))
            found = docs.vector_search(model[f"{at:05}"][0], 3, {"n": at})
            assert by_id(found) == [f"{at:05}"]
            assert len(docs.vector_search(model[f"{at:05}"][0], 10)) == 10

    writers = [threading.Thread(target=guarded, args=(lambda w=w: change(w),)) for w in range(3)]
    reader = threading.Thread(target=guarded, args=(look,))
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert failed == []
    assert len(docs) == 1500


def test_churn_stays_bounded(db: Database, ns: Namespace, folder: Path) -> None:
    """Delete and insert, again and again: nothing grows, in memory or in the file."""
    docs = ns.create_collection("c", enable_hybrid_search=True)
    rng = np.random.default_rng(9)

    def round(at: int) -> None:
        rows = unit(rng, 300, DIMENSION)
        docs.insert_batch([(f"{n}", row, {"round": at}, "some words here") for n, row in enumerate(rows)])
        docs.vector_search(rows[0], 5)
        docs.delete_batch([f"{n}" for n in range(0, 300, 2)])
        docs.vector_search(rows[0], 5)

    sizes: list[tuple[int, int]] = []
    for at in range(60):
        round(at)
        if at in (20, 59):
            settle(db, docs)
            environment = db._engine.environment
            with environment.lmdb.begin() as txn:
                logged = txn.stat(environment.document_log)["entries"]
            sizes.append((db.stats()["storage_used_bytes"], logged))
    (cache,) = db._shared.collections()._caches._caches.values()
    assert len(cache) == len(cache._documents) == len(cache._owners) == 150
    assert cache.hnsw._graph.nodes < 10_000
    assert sizes[1][0] < 1.5 * sizes[0][0]
    assert sizes[1][1] < 1.5 * sizes[0][1] + 100


def test_memory_stays_bounded(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """More collections than fit: those that were not searched for the longest time leave memory, and come back."""
    monkeypatch.setattr(vector_caches, "_MOST_BYTES", 200_000)
    monkeypatch.setattr(vector_caches, "_SAVED_FROM", 1)
    rng = np.random.default_rng(12)
    many = {}
    for at in range(12):
        rows = unit(rng, 100, DIMENSION)
        docs = ns.create_collection(f"c{at}")
        docs.insert_batch(rows, ids=[str(n) for n in range(100)])
        many[docs] = rows
    caches = ns._store._shared.collections()._caches  # type: ignore[attr-defined]
    for _ in range(2):
        for docs, rows in many.items():
            assert by_id(docs.vector_search(rows[7], 1)) == ["7"]
        caches.tend(lambda: False)
        assert sum(cache.size for cache in caches._caches.values()) <= 200_000
        assert len(caches._caches) >= 1


# Words


def test_words_that_most_documents_have(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come last, and are found all the same."""
    monkeypatch.setattr(text_module, "_MANY_ROWS", 1)
    docs = ns.create_collection("c", enable_hybrid_search=True)
    docs.insert_batch([(f"{at:02}", [1.0], {"n": at}, "the " + ("ant " if at % 5 == 0 else "")) for at in range(50)])
    found = docs.keyword_search("the ant", 50)
    assert sorted(by_id(found)) == [f"{at:02}" for at in range(50)]
    assert set(by_id(found[:10])) == {f"{at:02}" for at in range(0, 50, 5)}
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert set(by_id(docs.keyword_search("the ant", 3, {"n": {"$in": [1, 2, 45]}}))) == {"45", "01", "02"}
    assert len(docs.keyword_search("the", 50)) == 50
    with ns._store.transaction() as txn:  # type: ignore[attr-defined]
        txn.collection("ns", "c").delete_batch([f"{at:02}" for at in range(10, 50)])
        assert len(txn.collection("ns", "c").keyword_search("the ant", 50)) == 10


def bm25(texts: dict[str, list[str]], query: list[str]) -> dict[str, float]:
    """BM25 by its definition, with k1 = 1.2 and b = 0.75, as FTS5 has it (an IDF of 0 or less is 1e-6)."""
    average = sum(map(len, texts.values())) / len(texts)
    scores: dict[str, float] = {}
    for word in query:
        having = sum(word in text for text in texts.values())
        idf = math.log((len(texts) - having + 0.5) / (having + 0.5)) if having else 0.0
        idf = idf if idf > 0 else 1e-6
        for id, text in texts.items():
            frequency = Counter(text)[word]
            if frequency:
                part = frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * len(text) / average))
                scores[id] = scores.get(id, 0.0) + idf * part
    return scores


def test_words_are_ranked_by_bm25(ns: Namespace) -> None:
    docs = ns.create_collection("c", enable_hybrid_search=True)
    rng = np.random.default_rng(10)
    vocabulary = [f"word{at}" for at in range(40)]
    weights = 1 / np.arange(1, 41)
    texts = {
        f"{at:03}": rng.choice(vocabulary, int(rng.integers(1, 30)), p=weights / weights.sum()).tolist()
        for at in range(300)
    }
    docs.insert_batch([(id, [1.0], {"n": int(id)}, " ".join(text)) for id, text in texts.items()])
    for query in (["word0"], ["word39"], ["word5", "word30"], ["word1", "word2", "word3", "none"]):
        expected = bm25(texts, query)
        found = docs.keyword_search(" ".join(query), 300)
        assert {each.id for each in found} == set(expected)
        # A word that most of them have weighs 1e-6.
        np.testing.assert_allclose([each.score for each in found], [expected[each.id] for each in found], atol=1e-5)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        some = docs.keyword_search(" ".join(query), 5, {"n": {"$gte": 150}})
        best = sorted((score for id, score in expected.items() if int(id) >= 150), reverse=True)[:5]
        np.testing.assert_allclose([each.score for each in some], best, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        '"',
        "*",
        "a*",
        "AND",
        "NOT",
        "OR OR",
        "near(a b)",
        "content:a",
        "^a",
        "a AND",
        "(",
        "{a b}: c",
        "a-b",
        "'; DROP TABLE words; --",
        "\0",
        "a\0b",
        "naïve ÄÖ",
        "💥",
        "a" * 100_000,
        " ".join(f"w{at}" for at in range(3000)),
        "-",
        "\\",
        "a\nb\r\tc",
        "ﷺ ½ ²",
    ],
)
def test_the_text_of_users_is_no_syntax(ns: Namespace, text: str) -> None:
    docs = ns.create_collection("c", enable_hybrid_search=True)
    docs.insert(id="1", content="a b c near content naive AND or not drop table words w5 aou")
    docs.insert(id="2", content="other")
    docs.insert(id="3", content=text)
    found = by_id(docs.keyword_search(text, 10))
    assert "2" not in found
    assert ("3" in found) == (bool(words_of(text)) and any(each.isalnum() for each in text))


def test_hybrid(ns: Namespace) -> None:
    docs = ns.create_collection("c", enable_hybrid_search=True)
    docs.insert([1, 0], {"n": 1}, "near", "nothing")
    docs.insert([0.9, 0.1], {"n": 2}, "both", "fast database")
    docs.insert([0, 1], {"n": 3}, "words", "fast fast database")
    docs.insert(id="text", content="database", metadata={"n": 4})
    rank = {"near": (1, None), "both": (2, 2), "words": (3, 1), "text": (None, 3)}
    for alpha in (0.0, 0.3, 0.5, 1.0):
        for k_rrf in (1, 60):
            found = docs.hybrid_search([1, 0], "fast database", 10, alpha=alpha, k_rrf=k_rrf)
            expected = {
                id: (alpha / (k_rrf + near) if near else 0) + ((1 - alpha) / (k_rrf + words) if words else 0)
                for id, (near, words) in rank.items()
            }
            assert {each.id: pytest.approx(each.score) for each in found} == expected
            assert [each.score for each in found] == pytest.approx(sorted(expected.values(), reverse=True))
    found = docs.hybrid_search([1, 0], "fast database", 10, alpha=0.5, rrf_fusion=False)
    assert by_id(found)[0] == "both"
    assert all(0 <= each.score <= 1 for each in found)
    by_distance = {each.id: each.distance for each in found}
    assert by_distance["text"] is None
    assert by_distance["words"] == pytest.approx(1.0)
    assert by_id(docs.hybrid_search([1, 0], "fast", 1, {"n": 3})) == ["words"]
    assert docs.search(SearchRequest([1, 0], "fast", min_score=9.0)) == []
    one = docs.search(SearchRequest([1, 0], "fast", 1, include_vectors=True, include_content=False))[0]
    assert (one.id, one.content) == ("words", None)
    assert one.vector == [0.0, 1.0]


def test_scores(ns: Namespace) -> None:
    rows = {"a": [3.0, 4.0], "b": [4.0, 3.0]}
    for metric, distances in {"cosine": (0, 0.04), "euclidean": (0, 2**0.5), "dot_product": (-25, -24)}.items():
        docs = ns.create_collection(metric, metric=metric)
        docs.insert_batch(list(rows.values()), ids=list(rows))
        found = docs.vector_search([3, 4], 2)
        assert [each.distance for each in found] == [pytest.approx(distance, abs=1e-5) for distance in distances]
        scores = {"cosine": (1, 0.96), "euclidean": (1, 1 / (1 + 2**0.5)), "dot_product": (25, 24)}[metric]
        assert [each.score for each in found] == [pytest.approx(score, abs=1e-5) for score in scores]
        between = (found[0].score + found[1].score) / 2
        assert by_id(docs.vector_search([3, 4], 2, min_score=between)) == ["a"]


VECTOR = struct.pack("<2f", 1, 0)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, ValidationError),
        ({"vector": b""}, ValidationError),
        ({"vector": b"12"}, ValidationError),
        ({"vector": b"12345"}, DimensionMismatchError),
        ({"vector": struct.pack("<3f", 1, 2, 3)}, DimensionMismatchError),
        ({"vector": struct.pack("<2f", math.nan, 0)}, ValidationError),
        ({"vector": bytes(8)}, ValidationError),
        ({"vector": [1.0, 2.0]}, ValidationError),
        ({"vector": VECTOR, "k": 0}, ValidationError),
        ({"vector": VECTOR, "k": -1}, ValidationError),
        ({"vector": VECTOR, "k": True}, ValidationError),
        ({"vector": VECTOR, "k": 1.5}, ValidationError),
        ({"vector": VECTOR, "k": 100_001}, ValidationError),
        ({"vector": VECTOR, "ef_search": 0}, ValidationError),
        ({"vector": VECTOR, "alpha": 1.1}, ValidationError),
        ({"vector": VECTOR, "alpha": math.nan}, ValidationError),
        ({"vector": VECTOR, "k_rrf": 0}, ValidationError),
        ({"vector": VECTOR, "min_score": math.inf}, ValidationError),
        ({"vector": VECTOR, "min_score": "high"}, ValidationError),
        ({"vector": VECTOR, "rrf_fusion": 1}, ValidationError),
        ({"vector": VECTOR, "filter": {"a": {"$near": 1}}}, ValidationError),
        ({"vector": VECTOR, "filter": {"$or": []}}, ValidationError),
        ({"vector": VECTOR, "filter": "a"}, ValidationError),
        ({"vector": VECTOR, "depth": 3}, ValidationError),
        ({"text_query": 5}, ValidationError),
        ({"text_query": "\ud800"}, ValidationError),
        ({"text_query": "word"}, CollectionConfigError),
        ({"vector": VECTOR, "text_query": "word"}, CollectionConfigError),
    ],
)
def test_bad_searches(db: Database, ns: Namespace, given: dict[str, Any], error: type[Exception]) -> None:
    docs = ns.create_collection("c")
    docs.insert([1, 0], {"a": 1}, "x")
    with pytest.raises(error):
        db._operate("search", {"namespace": "ns", "collection": "c", **given})
    assert by_id(docs.vector_search([1, 0])) == ["x"]
