"""Rows of a statement, some at a time, bounded in number and in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

__all__ = ["FETCH_BYTES", "some_rows"]

FETCH_BYTES = 1 << 20

_LONG = frozenset({str, bytes})
_VALUE_BYTES = 8


def some_rows(rows: Iterator[tuple[Any, ...]], count: int, size: int) -> tuple[list[tuple[Any, ...]], bool]:
    """The next rows, and whether these were the last.

    Args:
        rows: Where they come from.
        count: How many at the most.
        size: Bytes that they may have, about; one row comes in any case.
    """
    taken: list[tuple[Any, ...]] = []
    for row in islice(rows, count):
        taken.append(row)
        # Each is looked at: a few long ones behind a million short ones would fill the memory.
        size -= _VALUE_BYTES * len(row)
        for value in row:
            if type(value) in _LONG:
                size -= len(value)
        if size <= 0:
            return taken, False
    return taken, len(taken) < count
