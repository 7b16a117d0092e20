"""Which documents have a value in a field: for filters by equality that were not asked before.

Kept are pairs of a hash and a label, one for each value of a document's field. A hash is no proof, and need not be one:
a search looks at every document that it answers, and does not believe an index that named a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from toondb.vector.metrics import Labels
from toondb.vector.row_table import RowTable

__all__ = ["FieldIndex", "Required", "hashes_of", "required_by"]

_NOTHING = hash("nothing")
"""Null, or no such field: a filter does not tell them apart."""

_MASK = (1 << 64) - 1
_WHOLE = range(-(1 << 63), 1 << 63)


class Required(NamedTuple):
    """What a filter demands by equality.

    Attributes:
        fields: By name, the hashes of which a document has one at the least.
        alone: The filter says nothing else.
    """

    fields: Mapping[str, frozenset[int]]
    alone: bool


class FieldIndex:
    """The pairs of one field."""

    def __init__(self) -> None:
        self._pairs = RowTable()
        self._count = 0

    def __len__(self) -> int:
        """The number of pairs."""
        return self._count

    def add(self, hashes: Sequence[int], labels: Sequence[int]) -> None:
        """Add pairs."""
        self._pairs.add(np.array(hashes, np.uint64), np.array(labels, np.int64))
        self._count += len(labels)

    def labels(self, wanted: frozenset[int]) -> Labels:
        """The labels that have any of these hashes, or had it when they were alive: ascending, each once."""
        found = [self._pairs.all(np.uint64(each)) for each in wanted]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def hashes_of(value: Any) -> list[int]:
    """The hashes that are kept for the value of a field; None also stands for a field that is not there.

    A list meets an equality by each of its elements, see ``docs/filters.md``.
    """
    if isinstance(value, list):
        return list({hashed for item in value if (hashed := _hash(item)) is not None})
    hashed = _hash(value)
    return [] if hashed is None else [hashed]


def required_by(filter: Mapping[str, Any]) -> Required:
    """What a valid filter demands by equality of fields without a dot in their name."""
    fields: dict[str, frozenset[int]] = {}
    alone = len(filter) == 1
    for name, wanted in filter.items():
        if name == "$and":
            for part in wanted:
                inner = required_by(part)
                fields.update(inner.fields)
                alone = alone and len(wanted) == 1 and inner.alone
            continue
        hashes, says_more = (None, True) if name[:1] == "$" or "." in name else _equals(wanted)
        alone = alone and not says_more
        if hashes is not None:
            fields[name] = hashes
    return Required(fields, alone and bool(fields))


def _equals(wanted: Any) -> tuple[frozenset[int] | None, bool]:
    """The hashes of values of which a field must have one (None = of any), and whether more is said."""
    if not isinstance(wanted, Mapping):
        return _hashes([wanted]), False
    if "$eq" in wanted:
        return _hashes([wanted["$eq"]]), len(wanted) > 1
    if "$in" in wanted:
        return _hashes(wanted["$in"]), len(wanted) > 1
    return None, True


def _hashes(values: Any) -> frozenset[int] | None:
    """The hashes of plain values; None when one of them is a list or an object."""
    if any(isinstance(value, (list, tuple, Mapping)) for value in values):
        return None
    return frozenset(hashed for value in values if (hashed := _hash(value)) is not None)


def _hash(value: Any) -> int | None:
    """The same 64 bits for values that a filter takes for equal; None = it is equal to no plain value."""
    if isinstance(value, str):
        hashed = hash(value)
    elif value is None:
        hashed = _NOTHING
    elif isinstance(value, bool):
        hashed = hash(("bool", value))
    elif isinstance(value, bytes):
        hashed = hash(("bytes", value))
    elif isinstance(value, (int, float)):
        if value != value:  # NaN
            return None
        # Not the hash of a small number: that of -1 is that of -2.
        whole = int(value) if isinstance(value, int) or value.is_integer() else None
        hashed = whole if whole is not None and whole in _WHOLE else hash(value)
    else:
        return None
    return hashed & _MASK
