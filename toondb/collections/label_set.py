"""Sets of labels of an index: those of a filter, or of a name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from toondb.vector.metrics import Labels

__all__ = ["LabelSet", "common"]


class LabelSet:
    """Labels, as a set that changes and as an array that searches use."""

    __slots__ = ("_array", "_labels")

    def __init__(self, labels: Iterable[int] = ()) -> None:
        self._labels = set(labels)
        self._array: Labels | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, label: int) -> bool:
        return label in self._labels

    def add(self, labels: Iterable[int]) -> None:
        """Add labels."""
        self._labels.update(labels)
        self._array = None

    def remove(self, labels: Iterable[int]) -> None:
        """Remove labels that may be there."""
        self._labels.difference_update(labels)
        self._array = None

    def array(self) -> Labels:
        """All of them, ascending. Not to be changed."""
        array = self._array
        if array is None:
            array = np.fromiter(self._labels, np.int64, len(self._labels))
            array.sort()
            array.flags.writeable = False  # so that a graph may remember what it makes of it
            self._array = array
        return array


def common(first: Labels | None, second: Labels | None) -> Labels | None:
    """The labels in both of two ascending arrays; None stands for all labels."""
    if first is None or second is None:
        return second if first is None else first
    both: Labels = np.intersect1d(first, second, assume_unique=True)
    return both
