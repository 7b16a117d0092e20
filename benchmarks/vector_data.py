"""The vectors that are measured: real embeddings of texts where there are any, and random ones.

The real ones are those of :mod:`benchmarks.embeddings`. Making them takes minutes and needs a model, so only the
command line does it, before anything is measured. Without them, stand-ins take their place, and every row says so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.embeddings import COUNT, QUERIES, are_made, load_embeddings
from benchmarks.row import Row
from benchmarks.workload import Workload

__all__ = ["BUCKETS", "EMBEDDING_DIMENSION", "RANDOM_DIMENSION", "STAND_INS", "K", "VectorData", "labelled", "recall"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

K = 10
"""Results of every search."""
BUCKETS = 1000
"""Every document is in one of so many buckets, which filters ask for."""
EMBEDDING_DIMENSION, RANDOM_DIMENSION = 384, 768
STAND_INS = "RANDOM STAND-INS FOR THE EMBEDDINGS, see python -m benchmarks.embeddings"

_LATENT = 12
_QUESTION_WORDS = 8
_FEW_QUERIES = 20
_INSERTED = 1000
_NEAR = 1e-6


def labelled(row: Row) -> Row:
    """The row; when it is measured with stand-ins, its title and its targets say so."""
    if are_made():
        return row
    targets = tuple(replace(target, text=f"{target.text} ({STAND_INS})") for target in row.targets)
    return replace(row, title=f"{row.title} ({STAND_INS})", targets=targets)


def _made_up_texts(count: int) -> list[str]:
    words = random.Random(1)
    return [" ".join(f"word{int(words.paretovariate(0.5)) % 5000}" for _ in range(12)) for _ in range(count)]


@dataclass(frozen=True)
class VectorData:
    """The vectors of a run: with the usual number of records 20,000 embeddings and 10,000 random vectors.

    Args:
        workload: Says how many records there are.
    """

    workload: Workload

    @property
    def count(self) -> int:
        """How many embeddings there are to be found."""
        return min(COUNT, self.workload.keys // 5)

    @property
    def asked(self) -> int:
        """How many queries there are."""
        return max(_FEW_QUERIES, min(QUERIES, self.workload.keys // 100))

    @cached_property
    def _texts_and_vectors(self) -> tuple[list[str], Floats, list[str], Floats]:
        if are_made():
            made = load_embeddings()
            count = min(self.count, len(made.texts))
            texts = [text.whole for text in made.texts[:count]]
            asked = [text.text for text in made.query_texts[: self.asked]]
            return texts, np.array(made.vectors[:count]), asked, np.array(made.queries[: self.asked])
        generator = np.random.default_rng(1)
        # Of few dimensions in truth, as texts are: in random vectors of 384 everything is equally far away.
        plane = generator.standard_normal((_LATENT, EMBEDDING_DIMENSION), dtype=np.float32)
        vectors = generator.standard_normal((self.count + self.asked, _LATENT), dtype=np.float32) @ plane
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        texts = _made_up_texts(len(vectors))
        return texts[self.asked :], vectors[self.asked :], texts[: self.asked], vectors[: self.asked]

    @property
    def texts(self) -> list[str]:
        """The texts to be found."""
        return self._texts_and_vectors[0]

    @property
    def vectors(self) -> Floats:
        """Their embeddings, of length 1."""
        return self._texts_and_vectors[1]

    @property
    def questions(self) -> list[str]:
        """The first words of other texts."""
        return [" ".join(text.split()[:_QUESTION_WORDS]) for text in self._texts_and_vectors[2]]

    @property
    def queries(self) -> Floats:
        """The embeddings of those other texts."""
        return self._texts_and_vectors[3]

    @cached_property
    def random(self) -> tuple[Floats, Floats]:
        """Random vectors and queries, of length 1: nothing is near to anything, the hardest that there is."""
        generator = np.random.default_rng(2)
        size = max(K, self.workload.keys // 10)
        vectors = generator.standard_normal((size + self.asked, RANDOM_DIMENSION), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors[self.asked :], vectors[: self.asked]

    @cached_property
    def inserted(self) -> tuple[Floats, list[str]]:
        """Vectors and texts of the size of real ones, for many processes to insert again and again."""
        generator = np.random.default_rng(4)
        return generator.standard_normal((_INSERTED, EMBEDDING_DIMENSION), dtype=np.float32), _made_up_texts(_INSERTED)

    def of(self, name: str) -> tuple[Floats, Floats]:
        """Vectors and queries: those of texts (``real``), or random ones (``random``)."""
        return self.random if name == "random" else (self.vectors, self.queries)

    @cached_property
    def buckets(self) -> Labels:
        """The bucket of each text, 0 to 999, all of the same size, drawn at random."""
        count = len(self.vectors)
        found: Labels = np.random.default_rng(3).permutation(count) * BUCKETS // count
        return found

    def metadata(self, number: int) -> dict[str, Any]:
        """The metadata of a document."""
        return {"number": number, "bucket": int(self.buckets[number]), "source": "benchmark"}

    def matching(self, buckets: int) -> Labels:
        """The numbers of the documents in the first buckets."""
        return np.flatnonzero(self.buckets < buckets)


def recall(found: list[list[int]], vectors: Floats, queries: Floats, among: Labels | None = None) -> float:
    """Recall@10: the share of the true nearest that were found.

    As ann-benchmarks.com counts: what is as near as the farthest of the true nearest is one of them.

    Args:
        found: Numbers of vectors for the first of the queries.
        vectors: All vectors, of length 1.
        queries: Queries, of length 1.
        among: Only these numbers are right; all when omitted.
    """
    queries = queries[: len(found)]
    candidates = np.arange(len(vectors)) if among is None else among
    wanted = min(K, len(candidates))
    near = queries @ vectors[candidates].T
    least = np.partition(near, len(candidates) - wanted, axis=1)[:, len(candidates) - wanted] - _NEAR
    hits = 0
    for row, numbers in enumerate(found):
        right = np.unique(np.array(numbers[:wanted], dtype=np.int64))
        if among is not None:
            right = right[np.isin(right, among)]
        hits += int(np.count_nonzero(vectors[right] @ queries[row] >= least[row]))
    return hits / (wanted * len(found))
