"""Finding equal rows: from a hash of each row to where it is.

HNSW keeps the nearest neighbours of each node. When a vector occurs more often than a node has neighbours, its copies
are neighbours of each other only, an island that no search from outside reaches. So the graph holds each distinct
vector once, and this table tells whether it has one already.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .metrics import Floats, Labels

__all__ = ["Hashes", "RowTable", "row_hashes"]

Hashes = NDArray[np.uint64]
_BLOCK = 1 << 18
"""Numbers that are hashed at a time, so that their 64-bit copies stay in the cache."""


def row_hashes(rows: Floats) -> Hashes:
    """A 64-bit hash of each row's bits: multilinear hashing (Carter and Wegman, 1979) with fixed random factors."""
    factors = np.random.default_rng(0x70_0D).integers(0, 1 << 64, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    words = np.ascontiguousarray(rows).view(np.uint32)
    hashes = np.empty(len(rows), dtype=np.uint64)
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        hashes[start : start + step] = words[start : start + step].astype(np.uint64) @ factors
    return hashes


class RowTable:
    """From hashes to positions, in 16 bytes for each: sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Labels]] = []

    def copy(self) -> RowTable:
        """One that can grow by itself."""
        other = RowTable()
        other._runs = list(self._runs)  # each run stays as it is
        return other

    def find(self, hashes: Hashes) -> Labels:
        """The position of a row with each hash, or -1."""
        found = np.full(len(hashes), -1, dtype=np.int64)
        for keys, positions in self._runs:
            at = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
            found = np.where(keys[at] == hashes, positions[at], found)
        return found

    def all(self, hashed: np.uint64) -> Labels:
        """The positions of all rows with a hash."""
        found = [
            positions[np.searchsorted(keys, hashed, "left") : np.searchsorted(keys, hashed, "right")]
            for keys, positions in self._runs
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def add(self, hashes: Hashes, positions: Labels) -> None:
        """Remember rows. Of rows with the same hash :meth:`find` finds any."""
        if not len(hashes):
            return
        run = _sorted(hashes, positions)
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            keys, places = self._runs.pop()
            run = _sorted(np.concatenate([keys, run[0]]), np.concatenate([places, run[1]]))
        self._runs.append(run)


def _sorted(hashes: Hashes, positions: Labels) -> tuple[Hashes, Labels]:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], positions[order]
