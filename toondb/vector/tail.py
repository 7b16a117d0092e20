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
        return np.fromiter(self._places, np.int64, len(self._places))

    def living(self) -> tuple[Labels, Floats]:
        """All living labels and a copy of their rows, in order of arrival."""
        return self.living_labels(), self._rows(list(self._places.values()))

    def rows(self, labels: Labels) -> tuple[Labels, Floats]:
        """The given labels that live here, and a copy of their rows."""
        here = [label for label in labels.tolist() if label in self._places]
        return np.array(here, dtype=np.int64), self._rows([self._places[label] for label in here])

    def add(self, labels: Labels, rows: Floats) -> None:
        """Add rows under labels that are not there yet."""
        if self._flat.ntotal + len(rows) >= TAIL_ROWS:
            self._compact()
        base = self._flat.ntotal
        self._flat.add(rows)
        self._places.update(zip(labels.tolist(), range(base, base + len(rows)), strict=True))

    def remove(self, label: int) -> bool:
        """Remove a label; whether it was there."""
        return self._places.pop(label, None) is not None

    def clear(self) -> None:
        """Remove all."""
        self._flat.reset()
        self._places = {}

    def search(self, queries: Floats, k: int, allowed: Labels | None, threads: int) -> Found:
        """The ``k`` nearest living labels, or all there are; the arguments are those of ``Graph.search``."""
        labels = self.living_labels()
        if allowed is not None and len(labels):
            labels = labels[np.isin(labels, allowed)]
        k = min(k, len(labels))
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        parameters = None
        of_place = labels
        if len(labels) != self._flat.ntotal:
            places = np.array([self._places[label] for label in labels.tolist()], dtype=np.int64)
            parameters = faiss.SearchParameters()
            parameters.sel = faiss.IDSelectorArray(places)
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
        labels, rows = self.living()
        self.clear()
        self._flat.add(rows)
        self._places = dict(zip(labels.tolist(), range(len(labels)), strict=True))
