"""The write set: what a transaction has written and not yet committed, in key order on demand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Protocol

__all__ = ["ABSENT", "MergedScan", "Scan", "WriteSet"]

_MOST_DELETES_PER_BATCH = 4096

ABSENT = object()
"""What :meth:`WriteSet.get` answers for a key that was not written (None means deleted)."""


class WriteSet:
    """Written keys with their new values; None stands for a delete.

    Sorting is deferred: a transaction that never scans never pays for it, and one that alternates writes
    and scans re-sorts an almost sorted list, which is linear in CPython.

    Attributes:
        size: Bytes of the keys and values held.
    """

    __slots__ = ("_sorted", "_values", "size")

    def __init__(self) -> None:
        self._values: dict[bytes, bytes | None] = {}
        self._sorted: list[bytes] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def get(self, key: bytes) -> object:
        """The new value, None when deleted, :data:`ABSENT` when not written."""
        return self._values.get(key, ABSENT)

    def put(self, key: bytes, value: bytes | None, room: int) -> int | None:
        """Record a write; ``value`` None records a delete.

        Args:
            key: The key.
            value: Its new value.
            room: Bytes by which the write set may grow.

        Returns:
            By how many it grew; None when there was not enough room, and nothing was recorded.
        """
        values = self._values
        old = values.get(key, ABSENT)
        grown = len(value) if value is not None else 0
        if old is ABSENT:
            grown += len(key)
        elif old is not None:
            grown -= len(old)  # type: ignore[arg-type]
        if grown > room:
            return None
        values[key] = value
        self.size += grown
        return grown

    def put_new(self, values: dict[bytes, bytes], size: int) -> None:
        """Record writes of keys that were not written before, ``size`` bytes in all."""
        self._values.update(values)
        self.size += size

    def is_disjoint(self, keys: Iterable[bytes]) -> bool:
        """Whether none of the keys was written."""
        return not self._values or self._values.keys().isdisjoint(keys)

    def values(self) -> list[bytes | None]:
        """The new values, in the order of :meth:`keys`."""
        keys = self.keys()
        if keys == list(self._values):
            return list(self._values.values())
        return list(map(self._values.__getitem__, keys))

    def items(self) -> Iterator[tuple[bytes, bytes | None]]:
        """All writes in key order (which LMDB inserts fastest)."""
        values = self._values
        return ((key, values[key]) for key in self.keys())

    def range(self, start: bytes, end: bytes | None) -> list[tuple[bytes, bytes | None]]:
        """A frozen copy of the writes in [start, end), in key order: later writes do not show in it."""
        if not self._values:
            return []
        keys = self.keys()
        low = bisect_left(keys, start)
        high = len(keys) if end is None else bisect_left(keys, end, low)
        values = self._values
        return [(key, values[key]) for key in keys[low:high]]

    def keys(self) -> list[bytes]:
        """The written keys in order. Not to be changed by the caller."""
        if len(self._sorted) != len(self._values):
            # Keys are only ever added, in dict order, so the tail of the dict is what the list lacks.
            self._sorted.extend(list(self._values)[len(self._sorted) :])
            self._sorted.sort()
        return self._sorted


class Scan(Protocol):
    """Rows in key order, read in batches.

    Attributes:
        exhausted: The end was reached; no batch will bring more.
        last_key: The last key given out.
    """

    @property
    def exhausted(self) -> bool: ...

    @property
    def last_key(self) -> bytes | None: ...

    def batch(self, max_rows: int, max_bytes: int) -> list[bytes]:
        """The next rows as a flat list ``[key, value, ...]``."""

    def pairs(self, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """The next rows as pairs of key and value."""

    def close(self) -> None:
        """Give the scan up. Idempotent."""


class MergedScan:
    """A scan with a frozen part of a write set laid over it. Same interface as ``SnapshotScan``."""

    __slots__ = ("_base", "_buffer", "_changes", "_reverse", "exhausted", "last_key")

    def __init__(self, base: Scan, changes: list[tuple[bytes, bytes | None]], *, reverse: bool = False) -> None:
        self._base = base
        # A stack: the next change is at the end.
        self._changes = changes if reverse else changes[::-1]
        self._reverse = reverse
        self._buffer: list[bytes] = []
        self.exhausted = False
        self.last_key: bytes | None = None

    def batch(self, max_rows: int, max_bytes: int) -> list[bytes]:
        """The next rows, see ``SnapshotScan.batch``."""
        out: list[bytes] = []
        size = 0
        limit = 2 * max_rows
        changes, reverse = self._changes, self._reverse
        # Deletes bring no row, however many there are; a batch of none is better than a long silence.
        patience = max(max_rows, _MOST_DELETES_PER_BATCH)
        while len(out) < limit and size < max_bytes and patience:
            if not self._buffer and not self._base.exhausted:
                fresh = self._base.batch(max_rows, max_bytes)
                # Reversed so that pop() takes the next key, then its value.
                self._buffer = fresh[::-1]
            stored = self._buffer[-1] if self._buffer else None
            change = changes[-1] if changes else None
            if stored is None and change is None:
                self.exhausted = True
                break
            if change is None:
                take_stored = True
            elif stored is None:
                take_stored = False
            else:
                take_stored = stored > change[0] if reverse else stored < change[0]
            if take_stored:
                key, value = self._buffer.pop(), self._buffer.pop()
            else:
                assert change is not None
                changes.pop()
                if stored == change[0]:
                    del self._buffer[-2:]
                if change[1] is None:
                    patience -= 1
                    continue
                key, value = change[0], change[1]
            out.append(key)
            out.append(value)
            size += len(key) + len(value)
        if out:
            self.last_key = out[-2]
        return out

    def pairs(self, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """The next rows as pairs."""
        flat = self.batch(max_rows, max_bytes)
        return list(zip(flat[::2], flat[1::2], strict=True))

    def close(self) -> None:
        """Give the scan up. Idempotent."""
        self.exhausted = True
        self._buffer = []
        self._changes = []
        self._base.close()
