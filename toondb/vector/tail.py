"""The newest rows of an index, before they go into the graph together.

To add one row to the graph costs faiss a pass over all its nodes; to add a thousand costs hardly more. So single
inserts are collected here, and searches look at all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .faiss_library import faiss
from .graph import Found
from .metrics import Floats, Labels, Metric
from .threads import in_parallel

__all__ = ["TAIL_ROWS", "Tail"]

TAIL_ROWS = 1024
"""As many rows go into the graph together. A scan of them costs about as much as a search in the graph."""


class Tail:
    """A few rows by label, compared one by one. The caller keeps writers apart from everybody else.

    Args:
        dimension: Numbers in a row.
        metric: How distances are measured.
        faiss_metric: The metric of faiss for it.
    """

    def __init__(self, dimension: int, metric: Metric, faiss_metric: int) -> None:
        self.metric = metric
        self._flat: Any = faiss.IndexFlat(dimension, faiss_metric)
        self._places: dict[int, int] = {}  # of living labels
        self._arrays: tuple[Labels, Labels] | None = None

    def __len__(self) -> int:
        """The number of living labels."""
        return len(self._places)

    def __contains__(self, label: int) -> bool:
        """Whether a label lives here."""
        return label in self._places

    def has_room(self, rows: int) -> bool:
        """Whether so many more rows may be added."""
        return len(self._places) + rows < TAIL_ROWS

    def living_labels(self) -> Labels:
        """All living labels, in order of arrival."""
        return self._living()[0]

    def _living(self) -> tuple[Labels, Labels]:
        """All living labels and their places, kept until something changes."""
        arrays = self._arrays
        if arrays is None:
            count = len(self._places)
            arrays = self._arrays = (
                np.fromiter(self._places, np.int64, count),
                np.fromiter(self._places.values(), np.int64, count),
            )
        return arrays

    def living(self) -> tuple[Labels, Floats]:
        """All living labels and a copy of their rows, in order of arrival."""
        return self.living_labels(), self._rows(list(self._places.values()))

    def rows(self, labels: Labels) -> tuple[Labels, Floats]:
        """The given labels that live here, and a copy of their rows."""
        here = [label for label in labels.tolist() if label in self._places]
        return np.array(here, dtype=np.int64), self._rows([self._places[label] for label in here])

    def add(self, labels: Labels, rows: Floats) -> None:
        """Add rows under labels that are not there yet."""
        if self._flat.ntotal - len(self._places) >= max(TAIL_ROWS // 2, len(self._places)):
            self._compact()
        base = self._flat.ntotal
        self._flat.add(rows)
        self._places.update(zip(labels.tolist(), range(base, base + len(rows)), strict=True))
        self._arrays = None

    def remove(self, label: int) -> bool:
        """Remove a label; whether it was there."""
        if self._places.pop(label, None) is None:
            return False
        self._arrays = None
        return True

    def drop(self, labels: Labels) -> None:
        """Remove labels, those of them that are there, and give their room back."""
        for label in labels.tolist():
            self._places.pop(label, None)
        self._compact()

    def clear(self) -> None:
        """Remove all."""
        self._flat.reset()
        self._places = {}
        self._arrays = None

    def search(self, queries: Floats, k: int, allowed: Labels | None, threads: int) -> Found:
        """The ``k`` nearest living labels, or all there are; the arguments are those of ``Graph.search``."""
        labels, places = self._living()
        if allowed is not None and len(labels):
            # Not np.isin, which would sort the allowed ones, of which there may be many.
            at = np.searchsorted(allowed, labels)
            wanted = at < len(allowed)
            wanted[wanted] = allowed[at[wanted]] == labels[wanted]
            labels, places = labels[wanted], places[wanted]
        k = min(k, len(labels))
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        parameters = None
        of_place = labels
        if len(labels) != self._flat.ntotal:
            wanted = np.zeros(self._flat.ntotal, np.bool_)
            wanted[places] = True
            bits = np.packbits(wanted, bitorder="little")
            parameters = faiss.SearchParameters()
            parameters.sel = faiss.IDSelectorBitmap(bits)
            of_place = np.empty(self._flat.ntotal, dtype=np.int64)
            of_place[places] = labels
        several = max(1, min(threads, len(queries)))
        raw, found = in_parallel(lambda: self._flat.search(queries, k, params=parameters), several)
        return self.metric.distances(raw), of_place[found]

    def _rows(self, places: list[int]) -> Floats:
        count, dimension = self._flat.ntotal, self._flat.d
        if count == 0:
            return np.empty((0, dimension), np.float32)
        flat: Floats = faiss.rev_swig_ptr(self._flat.get_xb(), count * dimension)
        return flat.reshape(count, dimension)[places]

    def _compact(self) -> None:
        labels = np.fromiter(self._places, np.int64, len(self._places))
        rows = self._rows(list(self._places.values()))
        self.clear()
        self._flat.add(rows)
        self._places = dict(zip(labels.tolist(), range(len(labels)), strict=True))
