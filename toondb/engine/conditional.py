"""Writes that depend on what is there: compare and set, increment, and a change of the time to live.

Outside a transaction they are units of the writer, which decides inside the LMDB transaction: nothing can come in
between, whichever process it is of. Inside a transaction they decide by its view, and its commit finds conflicts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, Final

from toondb_protocol.arguments import MAX_INTEGER, MIN_INTEGER
from toondb_protocol.errors import ValidationError
from toondb_protocol.keys import prefix_end
from toondb_protocol.record import MAX_KEY_SIZE, Expiring, decode_expiry, live_value, now_ms

from .environment import Space
from .snapshot import records
from .transaction import Transaction
from .write_batch import WriteBatch

__all__ = ["CompareAndSet", "Conditional", "DeleteTree", "Expire", "Increment", "PutFor", "expires_in"]

_NUMBER = re.compile(rb"-?[0-9]{1,19}")


class _Keep(Enum):
    KEEP = 0


KEEP: Final = _Keep.KEEP
"""The decision to write nothing."""


def expires_in(value: bytes, ttl_ms: int | None) -> bytes:
    """``value`` as one that expires in so many milliseconds; as it is when None."""
    return bytes(value) if ttl_ms is None else Expiring(value, now_ms() + ttl_ms)


class Conditional(ABC):
    """A write of one key that depends on its value. A unit of the writer.

    Attributes:
        key: The key.
        size: Bytes that it may write.
        result: What to answer, once it was applied.
    """

    result: Any = None

    def __init__(self, key: bytes, size: int = 0) -> None:
        self.key = key
        self.size = len(key) + size

    @property
    def written_keys(self) -> tuple[bytes, ...]:
        """The keys that it may write."""
        return (self.key,)

    @abstractmethod
    def decide(self, value: bytes | None, expires_ms: int | None) -> tuple[bytes | _Keep | None, Any]:
        """What to write (None deletes, ``KEEP`` leaves it) and what to answer.

        Args:
            value: The value of the key, None when there is none or it has expired.
            expires_ms: When it expires, if ever.
        """

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Decide by the newest commit."""
        raw = batch.get(self.key)
        value = live_value(raw)
        new, self.result = self.decide(value, None if raw is None else decode_expiry(raw))
        if new is KEEP:
            return lsn
        if new is None:
            return lsn + batch.delete(self.key, lsn + 1)
        batch.put(self.key, new, lsn + 1)
        return lsn + 1

    def apply_in(self, transaction: Transaction) -> Any:
        """Decide by a transaction's view, write into it, and answer."""
        value, expires_ms = transaction.get_with_expiry(self.key)
        new, result = self.decide(value, expires_ms)
        if new is not KEEP:
            transaction.put(self.key, new)
        return result


class PutFor(Conditional):
    """Stores a value for a time; it depends on nothing but the clock."""

    def __init__(self, key: bytes, value: bytes, ttl_ms: int | None) -> None:
        super().__init__(key, len(value))
        self._value, self._ttl_ms = value, ttl_ms

    def decide(self, value: bytes | None, expires_ms: int | None) -> tuple[bytes | _Keep | None, Any]:
        return expires_in(self._value, self._ttl_ms), True


class CompareAndSet(Conditional):
    """Stores (or with ``new`` None deletes) when the value is the expected one; answers whether."""

    def __init__(self, key: bytes, expected: bytes | None, new: bytes | None, ttl_ms: int | None = None) -> None:
        super().__init__(key, len(new or b""))
        self._expected, self._new, self._ttl_ms = expected, new, ttl_ms

    def decide(self, value: bytes | None, expires_ms: int | None) -> tuple[bytes | _Keep | None, Any]:
        if value != self._expected:
            return KEEP, False
        return None if self._new is None else expires_in(self._new, self._ttl_ms), True


class Increment(Conditional):
    """Adds to a number in decimal text; answers the sum."""

    def __init__(self, key: bytes, by: int) -> None:
        super().__init__(key, 20)
        self._by = by

    def decide(self, value: bytes | None, expires_ms: int | None) -> tuple[bytes | _Keep | None, Any]:
        if value is not None and not _NUMBER.fullmatch(value):
            raise ValidationError(
                f"the value of key {self.key[:64]!r} is not a number: {value[:32]!r}.",
                remediation="Count under a key whose value is decimal text, or delete it first.",
            )
        total = int(value or 0) + self._by
        if not MIN_INTEGER <= total <= MAX_INTEGER:
            raise ValidationError(f"the counter {self.key[:64]!r} would become {total}, which 64 bits cannot hold.")
        text = b"%d" % total
        return text if value is None or expires_ms is None else Expiring(text, expires_ms), total


class Expire(Conditional):
    """Gives a key another time to live, None = for ever; answers whether there is such a key."""

    def __init__(self, key: bytes, ttl_ms: int | None) -> None:
        super().__init__(key)
        self._ttl_ms = ttl_ms

    def decide(self, value: bytes | None, expires_ms: int | None) -> tuple[bytes | _Keep | None, Any]:
        if value is None:
            return KEEP, False
        if expires_ms is None and self._ttl_ms is None:
            return KEEP, True
        return expires_in(value, self._ttl_ms), True


class DeleteTree:
    """A unit of the writer: deletes the key of a path and every key below it, as one commit.

    Attributes:
        written_keys: The keys that it deleted.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.written_keys: list[bytes] = []

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Delete what is there in the newest commit."""
        names = [self._key]
        start = self._key + b"/"
        end = prefix_end(start)
        if len(start) < MAX_KEY_SIZE:  # or no key can be below it
            for name, _ in records(batch.txn, batch.database(Space.KV), start, end, values=False):
                if end is not None and name >= end:
                    break
                names.append(name)
        self.written_keys = [name for name in names if batch.delete(name, lsn + 1)]
        return lsn + bool(self.written_keys)
