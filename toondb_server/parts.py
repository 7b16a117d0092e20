"""Requests that come in parts: what is too large for one frame is kept until its last part has come."""

from __future__ import annotations

import time

from toondb_protocol.errors import MalformedRequestError, TransactionTooLargeError

__all__ = ["Parts"]

_OVERHEAD = 128


class Parts:
    """The parts of one request, as they came: packed they take least memory.

    Args:
        kind: What the parts are of, in words: ``"statement"`` or ``"operation"``.
        name: Which one.
        transaction: The transaction it is for, 0 = none.

    Attributes:
        payloads: The parts.
        touched_at: ``time.monotonic()`` when the last of them came.
    """

    def __init__(self, kind: str, name: str, transaction: int) -> None:
        self._key = (kind, name, transaction)
        self.payloads: list[bytes] = []
        self.touched_at = time.monotonic()
        self._size = 0

    @classmethod
    def following(cls, before: Parts | None, kind: str, name: str, transaction: int, number: int) -> Parts:
        """Where part ``number`` belongs: with those ``before`` it, which it must follow; the first begins anew.

        Raises:
            MalformedRequestError: A part was refused or lost: the others alone must not be run.
        """
        if not number:
            return cls(kind, name, transaction)
        if before is None or before._key != (kind, name, transaction) or len(before.payloads) != number:
            raise MalformedRequestError(f"part {number} does not follow part {number - 1} of the same {kind}")
        return before

    def add(self, payload: bytes, limit: int, what: str) -> None:
        """Keep a part.

        Raises:
            TransactionTooLargeError: All of them, which are ``what``, have more than ``limit`` bytes.
        """
        self.touched_at = time.monotonic()
        self._size += len(payload) + _OVERHEAD
        if self._size > limit:
            raise TransactionTooLargeError(
                f"the {what} have {self._size} bytes, the cap of a transaction is {limit}.",
                details={"limit": limit, "actual": self._size},
            )
        self.payloads.append(payload)
