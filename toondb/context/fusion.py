"""From the answers to several queries to one list: fused by rank, without duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from toondb_protocol.search import SearchResult

__all__ = ["DeduplicationStrategy", "Found", "deduplicated", "fused"]

# Unit vectors multiply to a little less than 1 with themselves.
_ROUNDING = 1e-6


class DeduplicationStrategy(StrEnum):
    """Which chunks are the same, so that only the most relevant of them is kept."""

    NONE = "none"
    """None are."""

    EXACT = "exact"
    """Those with the same text, white space aside."""

    SEMANTIC = "semantic"
    """Those, and those whose vectors are nearly the same: the cosine of their angle reaches a threshold."""


@dataclass(frozen=True, slots=True)
class Found:
    """A document that was found, and how well it fits all queries together (see :class:`ContextChunk`)."""

    result: SearchResult
    text: str
    relevance: float
    scores: tuple[float | None, ...]


def fused(
    answers: Sequence[Sequence[SearchResult]], weights: Sequence[float], k: int, text_field: str | None = None
) -> list[Found]:
    """The documents of all answers, most relevant first.

    Weighted reciprocal rank fusion: a document at rank r (from 1) of an answer gets weight / (k + r) for it, and
    these are added (Cormack, Clarke, Büttcher, SIGIR 2009). Divided by what the best rank in every answer would give,
    the sum is a number of 0 to 1. Equal ones are ordered by their best rank, then by id.

    Args:
        answers: The results of each query, best first.
        weights: One for each.
        k: The constant of the fusion.
        text_field: The field of the metadata that is the text of a document without a content.
    """
    sums: dict[str, float] = {}
    best_ranks: dict[str, int] = {}
    results: dict[str, SearchResult] = {}
    scores: dict[str, list[float | None]] = {}
    for query, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        for rank, result in enumerate(answer, 1):
            id = result.id
            results.setdefault(id, result)
            sums[id] = sums.get(id, 0.0) + weight / (k + rank)
            best_ranks[id] = min(rank, best_ranks.get(id, rank))
            scores.setdefault(id, [None] * len(answers))[query] = result.score
    most = 0.0
    for weight in weights:
        most += weight / (k + 1)
    order = sorted(results, key=lambda id: (-sums[id], best_ranks[id], id))
    return [
        Found(results[id], _text_of(results[id], text_field), min(1.0, sums[id] / most), tuple(scores[id]))
        for id in order
    ]


def _text_of(result: SearchResult, text_field: str | None) -> str:
    content: Any = result.content
    if content is None and text_field is not None:
        content = result.metadata.get(text_field)
    return content.strip() if isinstance(content, str) else ""


def deduplicated(found: Iterable[Found], strategy: DeduplicationStrategy, threshold: float) -> list[Found]:
    """The first of each set of duplicates.

    Args:
        found: The documents, most relevant first.
        strategy: Which are duplicates.
        threshold: From which cosine on two vectors count as the same; a document without a vector, or with several, is
            compared by its text alone.
    """
    if strategy is DeduplicationStrategy.NONE:
        return list(found)
    texts: set[str] = set()
    vectors = _Directions(threshold)
    kept: list[Found] = []
    for one in found:
        text = " ".join(one.text.split())
        if text in texts:
            continue
        vector = one.result.vector if strategy is DeduplicationStrategy.SEMANTIC else None
        if vector is not None and not vectors.add(vector):
            continue
        texts.add(text)
        kept.append(one)
    return kept


class _Directions:
    """Vectors, none of which is near another in direction."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold - _ROUNDING
        self._units: Any = None
        self._count = 0

    def add(self, vector: Sequence[float]) -> bool:
        """Add a vector unless it is near one of those added; answers whether it was added."""
        import numpy as np

        given = np.asarray(vector, dtype=np.float64)
        length = float(np.linalg.norm(given))
        if length == 0.0:
            return True  # it has no direction
        unit = given / length
        if self._units is None:
            self._units = np.empty((64, len(unit)))
        if self._count and float(np.max(self._units[: self._count] @ unit)) >= self._threshold:
            return False
        if self._count == len(self._units):
            self._units = np.concatenate([self._units, np.empty_like(self._units)])
        self._units[self._count] = unit
        self._count += 1
        return True
