"""Fusion by rank, and duplicates."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from toondb.context import DeduplicationStrategy
from toondb.context.fusion import Found, deduplicated, fused
from toondb_protocol.search import SearchResult

IDS = [f"d{at}" for at in range(12)]
ANSWERS = st.lists(st.lists(st.sampled_from(IDS), unique=True, max_size=12), min_size=1, max_size=4)


def answer(ids: list[str]) -> list[SearchResult]:
    return [SearchResult(id, 1 / at, {}, f"text of {id}") for at, id in enumerate(ids, 1)]


@given(ANSWERS, st.integers(1, 200), st.data())
def test_relevance_is_the_share_of_the_best_possible_sum(answers: list[list[str]], k: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 40).map(lambda n: n / 8), min_size=len(answers), max_size=len(answers)))
    found = fused([answer(ids) for ids in answers], weights, k)
    sums = {
        id: sum(
            Fraction(weight) / (k + ids.index(id) + 1)
            for ids, weight in zip(answers, weights, strict=True)
            if id in ids
        )
        for id in set().union(*answers)
    }
    best = sum(Fraction(weight) / (k + 1) for weight in weights)
    assert {one.result.id for one in found} == set(sums)
    for one in found:
        id = one.result.id
        assert math.isclose(one.relevance, sums[id] / best, rel_tol=1e-12)
        assert 0 < one.relevance <= 1
        assert one.scores == tuple(1 / (ids.index(id) + 1) if id in ids else None for ids in answers)
    assert [one.relevance for one in found] == sorted((one.relevance for one in found), reverse=True)


def test_the_first_in_every_answer_has_relevance_1() -> None:
    found = fused([answer(["a", "b"]), answer(["a", "c"])], [0.7, 0.3], 60)
    assert [one.result.id for one in found] == ["a", "b", "c"]
    assert found[0].relevance == 1.0


def test_equal_ones_are_ordered_by_best_rank_then_by_id() -> None:
    assert [one.result.id for one in fused([answer(["b"]), answer(["a"])], [1, 1], 60)] == ["a", "b"]
    assert [one.result.id for one in fused([answer([]), answer([])], [1, 1], 60)] == []


def test_the_text_is_the_content_or_a_field() -> None:
    results = [
        SearchResult("a", 1, {"body": "of a field"}, "of a"),
        SearchResult("b", 1, {"body": " of b\n"}),
        SearchResult("c", 1, {"body": 7}),
        SearchResult("d", 1, {}, " \n"),
    ]
    assert [one.text for one in fused([results], [1], 60, "body")] == ["of a", "of b", "", ""]
    assert [one.text for one in fused([results], [1], 60)] == ["of a", "", "", ""]


def found(texts: list[str], vectors: list[list[float] | None] | None = None) -> list[Found]:
    vectors = vectors or [None] * len(texts)
    return [
        Found(SearchResult(str(at), 1.0, {}, text, vector), text, 1.0 - at / 100, ())
        for at, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]


def kept(items: list[Found], strategy: DeduplicationStrategy, threshold: float = 0.9) -> str:
    return "".join(one.result.id for one in deduplicated(items, strategy, threshold))


def test_exact_duplicates() -> None:
    items = found(["one text", "another", "one  text\n", "One text"])
    assert kept(items, DeduplicationStrategy.NONE) == "0123"
    assert kept(items, DeduplicationStrategy.EXACT) == "013"


def test_semantic_duplicates() -> None:
    def at(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    # 25.8 degrees are a cosine of 0.9. The second is near the first; the third is near the second only, which is gone.
    items = found([*"abcdef"], [at(0), at(20), at(40), None, [0.0, 0.0], [x * 7 for x in at(0.001)]])
    assert kept(items, DeduplicationStrategy.SEMANTIC, 0.9) == "0234"
    assert kept(items, DeduplicationStrategy.SEMANTIC, 0.95) == "01234"
    assert kept(items, DeduplicationStrategy.EXACT) == "012345"
    assert kept(found(["a", "a"], [at(0), at(90)]), DeduplicationStrategy.SEMANTIC) == "0"


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), max_size=100),
    st.sampled_from([0.5, 0.8, 0.95, 1.0]),
)
def test_semantic_duplicates_are_near_one_that_is_kept(vectors: list[list[int]], threshold: float) -> None:
    items = found([str(at) for at in range(len(vectors))], [[float(x) for x in vector] for vector in vectors])
    chosen = [int(one.result.id) for one in deduplicated(items, DeduplicationStrategy.SEMANTIC, threshold)]

    def near(left: int, right: int) -> bool:
        a, b = np.asarray(vectors[left]), np.asarray(vectors[right])
        lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
        return bool(lengths) and bool(a @ b / lengths >= threshold - 1e-6)

    for at in range(len(vectors)):
        assert (at in chosen) is not any(near(at, other) for other in chosen if other < at)
