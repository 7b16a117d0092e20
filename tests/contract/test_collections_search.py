"""Searches in every mode: by vector, by words, by both and by several vectors, with filters, against plain sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from toondb import Aggregation, DistanceMetric, SearchRequest, SearchResult

from .collection_stores import clear, ids, make, vector
from .conftest import Places

COUNT = 120
DIMENSION = 8
RNG = np.random.default_rng(5)
VECTORS = RNG.normal(size=(COUNT, DIMENSION)).astype("f4")
QUERY = RNG.normal(size=DIMENSION).astype("f4")
LAST = {"last": 1}
METADATAS: list[dict[str, Any]] = [
    {
        "n": at,
        "even": at % 2 == 0,
        "tag": ["a", "b", "c"][at % 3],
        "deep": {"x": at // 10},
        **({"last": 1} if at > 117 else {}),
    }
    for at in range(COUNT)
]
NAMES = [f"d{at:03}" for at in range(COUNT)]


@pytest.fixture
def client(places: Places, mode: str) -> Iterator[Any]:
    """A store, plain; it has no keys and no namespaces."""
    with places.open(mode) as client:
        clear(client)
        yield client


def distances(metric: DistanceMetric, query: np.ndarray[Any, Any] = QUERY) -> np.ndarray[Any, Any]:
    """From each vector, in double precision."""
    vectors, wanted = VECTORS.astype("f8"), query.astype("f8")
    if metric is DistanceMetric.EUCLIDEAN:
        return np.asarray(np.linalg.norm(vectors - wanted, axis=1))
    products = vectors @ wanted
    if metric is DistanceMetric.DOT_PRODUCT:
        return np.asarray(-products)
    return np.asarray(1 - products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted))


SCORES: dict[DistanceMetric, Callable[[float], float]] = {
    DistanceMetric.COSINE: lambda distance: 1 - distance,
    DistanceMetric.EUCLIDEAN: lambda distance: 1 / (1 + distance),
    DistanceMetric.DOT_PRODUCT: lambda distance: -distance,
}


def nearest(metric: DistanceMetric, k: int, allowed: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> list[str]:
    """The ids of the nearest vectors."""
    order = np.argsort(distances(metric))
    return [NAMES[at] for at in order if allowed(METADATAS[at])][:k]


def alike(found: list[SearchResult], expected: list[SearchResult]) -> None:
    """The same, but for the last digits: they depend on how many vectors are compared at a time."""
    assert ids(found) == ids(expected)
    for one, other in zip(found, expected, strict=True):
        assert [one.score, one.distance] == pytest.approx([other.score, other.distance])
        assert (one.metadata, one.content, one.vector) == (other.metadata, other.content, other.vector)


@pytest.mark.parametrize("metric", list(DistanceMetric))
def test_by_vector(store: Any, metric: DistanceMetric) -> None:
    docs = make(store, dimension=DIMENSION, metric=metric)
    assert docs.vector_search(QUERY) == []
    docs.insert_batch(VECTORS, METADATAS, NAMES, [f"text {at}" for at in range(COUNT)])
    docs.insert(id="words only", content="a text")
    found = docs.vector_search(QUERY)
    assert ids(found) == nearest(metric, 10)
    expected = np.sort(distances(metric))[:10]
    np.testing.assert_allclose([each.distance for each in found], expected, atol=1e-5)
    np.testing.assert_allclose([each.score for each in found], [SCORES[metric](one) for one in expected], atol=1e-5)
    best = found[0]
    at = NAMES.index(best.id)
    assert best == SearchResult(best.id, best.score, METADATAS[at], f"text {at}", None, best.distance)
    assert type(best.score) is type(best.distance) is float
    alike(docs.search(SearchRequest(vector=list(map(float, QUERY)))), found)
    alike(docs.search(SearchRequest(QUERY, k=3, ef_search=500)), found[:3])
    bare = docs.search(SearchRequest(QUERY, k=2, include_vectors=True, include_content=False))
    assert [(each.content, each.vector) for each in bare] == [
        (None, VECTORS[NAMES.index(each.id)].tolist()) for each in found[:2]
    ]
    everything = docs.vector_search(QUERY, k=100_000)
    assert ids(everything) == nearest(metric, COUNT)
    between = (everything[20].score + everything[21].score) / 2
    alike(docs.vector_search(QUERY, k=100, min_score=between), everything[:21])
    assert docs.vector_search(QUERY, min_score=1e9) == []
    # What is deleted or replaced is found as it is now.
    docs.delete(best.id)
    docs.insert(QUERY if metric is not DistanceMetric.DOT_PRODUCT else 100 * QUERY, id=everything[-1].id)
    assert ids(docs.vector_search(QUERY, k=2)) == [everything[-1].id, everything[1].id]


FILTERS: dict[str, tuple[dict[str, Any], Callable[[Mapping[str, Any]], bool]]] = {
    "a value": ({"tag": "a"}, lambda m: m["tag"] == "a"),
    "two values": ({"tag": "a", "even": True}, lambda m: m["tag"] == "a" and m["even"]),
    "$eq": ({"tag": {"$eq": "b"}}, lambda m: m["tag"] == "b"),
    "$ne": ({"tag": {"$ne": "b"}}, lambda m: m["tag"] != "b"),
    "a range": ({"n": {"$gte": 20, "$lt": 40}}, lambda m: 20 <= m["n"] < 40),
    "another range": ({"n": {"$gt": 20, "$lte": 40}}, lambda m: 20 < m["n"] <= 40),
    "$in": ({"n": {"$in": [3, 5, 500]}}, lambda m: m["n"] in (3, 5)),
    "$nin": ({"tag": {"$nin": ["a", "b"]}}, lambda m: m["tag"] == "c"),
    "$exists": ({"last": {"$exists": True}}, lambda m: "last" in m),
    "a nested field": ({"deep.x": 4}, lambda m: m["deep"]["x"] == 4),
    "$and": ({"$and": [{"even": True}, {"n": {"$lt": 9}}]}, lambda m: m["even"] and m["n"] < 9),
    "$or": ({"$or": [{"n": 7}, {"n": {"$gt": 115}}]}, lambda m: m["n"] == 7 or m["n"] > 115),
    "$not": ({"$not": {"n": {"$gte": 4}}}, lambda m: m["n"] < 4),
    "nothing": ({"tag": "d"}, lambda m: False),
    "everything": ({}, lambda m: True),
}


def test_filters(store: Any) -> None:
    docs = make(store, dimension=DIMENSION)
    docs.insert_batch(VECTORS, METADATAS, NAMES, ["apple"] * COUNT)
    for name, (filter, allowed) in FILTERS.items():
        matching = [NAMES[at] for at in range(COUNT) if allowed(METADATAS[at])]
        assert ids(docs.iterate(filter=filter)) == matching, name
        assert docs.count(filter) == len(matching), name
        # As many as were asked for, when so many match.
        assert ids(docs.vector_search(QUERY, 15, filter)) == nearest(DistanceMetric.COSINE, 15, allowed), name
        words = docs.keyword_search("apple", k=15, filter=filter)
        assert len(words) == min(15, len(matching)), name
        assert set(ids(words)) <= set(matching), name
        both = docs.hybrid_search(QUERY, "apple", k=COUNT, filter=filter)
        assert sorted(ids(both)) == matching, name


TEXTS = {
    "a": "ToonDB is a fast database",
    "b": "a database of notes about databases: fast, fast, fast",
    "c": "the slow brown fox",
    "d": "Größe und Übermut, café",
    "e": 'quotes " AND NOT OR NEAR( * : ^ ) are words',
}


def test_by_words(store: Any) -> None:
    docs = make(store)
    assert docs.keyword_search("fast") == []
    docs.insert_batch([(id, vector(1, at), {"n": at}, text) for at, (id, text) in enumerate(TEXTS.items())])
    docs.insert(vector(1), id="without")
    found = docs.keyword_search("fast database")
    assert sorted(ids(found)) == ["a", "b"]  # any of the words
    assert found[0].score >= found[1].score > 0
    assert {each.distance for each in found} == {None}
    assert [each.content for each in found] == [TEXTS[each.id] for each in found]
    assert ids(docs.search(SearchRequest(text_query="fast slow", k=1))) == ["c"]  # the rarer word
    assert ids(docs.keyword_search("grosse GRÖSSE größe")) == ids(docs.keyword_search("ubermut CAFE")) == ["d"]
    for text in (
        '"',
        "*",
        "AND",
        "NOT",
        'NEAR("quotes" words)',
        "quotes:words",
        "^quotes",
        "a\0",
        "-",
        "()",
        "'; DROP",
    ):
        for each in docs.keyword_search(text):
            assert each.id in TEXTS, text
    assert ids(docs.keyword_search("NEAR")) == ["e"]
    assert docs.keyword_search("") == docs.keyword_search(" \t -") == docs.keyword_search("nothing like it") == []
    assert ids(docs.keyword_search("fast", filter={"n": 1})) == ["b"]
    assert docs.keyword_search("fast database", min_score=found[0].score) == [
        each for each in found if each.score >= found[0].score
    ]
    assert docs.search(SearchRequest(text_query="slow", include_content=False))[0].content is None
    docs.insert("c", content="quick")
    docs.delete("a")
    assert ids(docs.keyword_search("slow quick ToonDB")) == ["c"]


def test_by_both(store: Any) -> None:
    docs = make(store)
    docs.insert("near", vector(1), content="something else")
    docs.insert("far", vector(0, 1), content="apple")
    docs.insert("both", vector(1, 0.2), content="apple apple pie")
    docs.insert("neither", vector(-1), content="nothing")
    docs.insert("words", content="a pie")
    by_vector = ["near", "both", "far", "neither"]
    by_words = ids(docs.keyword_search("apple pie"))
    assert sorted(by_words) == ["both", "far", "words"]

    def fused(alpha: float, k_rrf: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        for weight, ranking in ((alpha, by_vector), (1 - alpha, by_words)):
            for rank, id in enumerate(ranking, 1):
                scores[id] = scores.get(id, 0.0) + weight / (k_rrf + rank)
        return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))

    for alpha, k_rrf in ((0.5, 60), (0.7, 60), (0.1, 1), (1, 60), (0, 60)):
        found = docs.hybrid_search(vector(1), "apple pie", alpha=alpha, k_rrf=k_rrf)
        expected = fused(alpha, k_rrf)
        assert ids(found) == list(expected), alpha
        np.testing.assert_allclose([each.score for each in found], list(expected.values()))
    known = {each.id: each.distance for each in found}
    assert known["words"] is None
    np.testing.assert_allclose([known["near"], known["far"], known["neither"]], [0, 1, 2], atol=1e-6)
    alike(docs.search(SearchRequest(vector(1), "apple pie", k=2)), docs.hybrid_search(vector(1), "apple pie", 2))
    # By scores, each scaled to 0 to 1.
    words = {each.id: each.score for each in docs.keyword_search("apple pie")}
    scaled = docs.hybrid_search(vector(1), "apple pie", alpha=0.3, rrf_fusion=False)
    near = {each.id: each.score for each in docs.vector_search(vector(1))}
    expected = {
        id: 0.3 * (near[id] - min(near.values())) / (max(near.values()) - min(near.values())) if id in near else 0.0
        for id in [*near, "words"]
    }
    for id, score in words.items():
        expected[id] += 0.7 * (score - min(words.values())) / (max(words.values()) - min(words.values()))
    assert {each.id: pytest.approx(each.score, abs=1e-6) for each in scaled} == expected
    assert [each.score for each in scaled] == sorted((each.score for each in scaled), reverse=True)
    assert ids(docs.hybrid_search(vector(1), "no such words")) == by_vector
    assert ids(docs.hybrid_search(vector(1), "apple", filter={"none": 1})) == []


def test_by_several_vectors(store: Any) -> None:
    docs = make(store)
    docs.insert_multi_vector("one", {"title": vector(1), "body": vector(0, 1)}, {"n": 1}, "content")
    docs.insert_multi_vector("two", {"title": vector(0.6, 0.8), "body": vector(0.6, 0.8)}, {"n": 2})
    docs.insert_multi_vector("title", {"title": vector(0.8, 0.6)}, {"n": 3})
    docs.insert("single", vector(1))
    query = {"title": vector(1), "body": vector(1)}
    expected = {
        "max_pooling": {"one": 1.0, "title": 0.8, "two": 0.6},
        "mean_pooling": {"two": 0.6, "one": 0.5, "title": 0.4},
        "weighted_sum": {"two": 1.2, "one": 1.0, "title": 0.8},
    }
    for name, scores in expected.items():
        for aggregation in (name, Aggregation(name)):
            found = docs.multi_vector_search(query, aggregation=aggregation)
            assert {each.id: pytest.approx(each.score, abs=1e-6) for each in found} == scores
            assert ids(found) == list(scores)
    assert found[1].metadata == {"n": 1}
    weighted = docs.multi_vector_search(query, 2, "weighted_sum", weights={"title": 3, "body": 0.5})
    assert {each.id: pytest.approx(each.score, abs=1e-6) for each in weighted} == {"one": 3.0, "title": 2.4}
    assert ids(docs.multi_vector_search({"body": vector(1)})) == ["two", "one"]
    assert ids(docs.multi_vector_search(query, filter={"n": {"$gt": 1}}, ef_search=9)) == ["title", "two"]
    assert docs.multi_vector_search({"other": vector(1)}) == []
    # A search by one vector is for documents of one vector.
    assert ids(docs.vector_search(vector(1))) == ["single"]
    assert docs.get("two").vectors["title"] == pytest.approx([0.6, 0.8, 0, 0])


def test_a_collection_of_words_alone(store: Any) -> None:
    docs = make(store, dimension=None)
    docs.insert_batch(contents=["apples", "pears"], ids=["a", "p"])
    assert ids(docs.keyword_search("pears")) == ["p"]
    assert docs.vector_search([1.0, 2.0]) == []
    assert ids(docs.hybrid_search([1.0, 2.0], "apples")) == ["a"]
    assert docs.multi_vector_search({"x": [1.0]}) == []


def test_numbers_of_numpy_are_numbers(store: Any) -> None:
    docs = make(store, dimension=np.int64(DIMENSION))
    metadata = {"n": np.int64(7), "share": np.float32(0.5), "new": np.bool_(True), "list": [np.uint8(1)]}
    docs.insert_batch([(None, VECTORS[0], metadata), ("b", VECTORS[1], {"n": 8})])
    wanted = {"n": {"$in": [np.int64(7)]}, "share": np.float32(0.5), "new": np.bool_(True), "list": np.uint8(1)}
    asked: dict[str, Any] = {"k": np.int64(5), "filter": wanted, "min_score": np.float32(-1)}
    found = docs.search(SearchRequest(VECTORS[0], **asked))
    assert [each.metadata for each in found] == [{"n": 7, "share": 0.5, "new": True, "list": [1]}]
    assert all(type(value) in (int, float, bool, list) for value in found[0].metadata.values())
    assert docs.count({"n": {"$lt": np.float64(7.5)}}) == 1
    hybrid = {"k": np.int32(1), "alpha": np.float32(0.5), "k_rrf": np.int64(60), "ef_search": np.uint16(64)}
    assert ids(docs.hybrid_search(VECTORS[1], "words", **hybrid)) == ["b"]
    weights = {"body": np.float32(2)}
    assert docs.multi_vector_search({"body": QUERY}, np.int64(1), "weighted_sum", weights=weights) == []
