"""Ranking by BM25, as FTS5 computes it, to the last bit: in its order of operations, in double precision.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
Source: https://www.sqlite.org/fts5.html#the_bm25_function
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scores", "Slots", "Weighed", "best_first", "idf", "summed", "weights"]

Slots: TypeAlias = NDArray[np.int32]
Scores: TypeAlias = NDArray[np.float64]

_K1 = 1.2
_B = 0.75
_LEAST_IDF = 1e-6
_FIRST = 128
"""So many are sorted at first: the hybrid search asks for 100."""
_MORE = 8


class Weighed(NamedTuple):
    """A word in the documents that have it.

    Attributes:
        slots: The places of these documents, ascending.
        weights: What the word adds to the score of each.
    """

    slots: Slots
    weights: Scores


def idf(rows: int, having: int) -> float:
    """The inverse document frequency of a word.

    Args:
        rows: How many documents there are.
        having: How many have the word.
    """
    ratio = (rows - having + 0.5) / (having + 0.5)
    return math.log(ratio) if ratio > 1.0 else _LEAST_IDF


def weights(rows: int, average: float, counts: NDArray[Any], lengths: NDArray[Any]) -> Scores:
    """What a word adds to the score of each of the documents that have it.

    Args:
        rows: How many documents there are.
        average: Their average length in words.
        counts: How often each of those with the word has it.
        lengths: Their lengths in words.
    """
    frequency = counts.astype(np.float64)
    norm = _K1 * (1.0 - _B + _B * lengths / average)
    found: Scores = idf(rows, len(counts)) * ((frequency * (_K1 + 1.0)) / (frequency + norm))
    return found


def summed(words: Sequence[Weighed], size: int) -> Scores:
    """The scores by place, 0 where a document has none of the words; ``size`` places."""
    if not words:
        return np.zeros(size)
    slots = np.concatenate([word.slots for word in words], dtype=np.intp)
    # One after the other, so that each sum is made in the order of the words.
    return np.asarray(np.bincount(slots, np.concatenate([word.weights for word in words]), size), np.float64)


def best_first(scores: Scores) -> Iterator[list[tuple[int, float]]]:
    """The places with a score, best first, equal ones by place; in pieces, the first of about 128."""
    left = np.flatnonzero(scores > 0.0)
    count = _FIRST
    while len(left):
        found = scores[left]
        if len(left) <= 2 * count:
            yield _sorted(left, found)
            return
        head = np.flatnonzero(found >= np.partition(found, len(found) - count)[len(found) - count])
        yield _sorted(left[head], found[head])
        left = np.delete(left, head)
        count *= _MORE


def _sorted(places: NDArray[np.intp], scores: Scores) -> list[tuple[int, float]]:
    order = np.argsort(-scores, kind="stable")
    return list(zip(places[order].tolist(), scores[order].tolist(), strict=True))
