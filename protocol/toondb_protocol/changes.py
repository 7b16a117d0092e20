"""Changes: what a watch gives, the same in every mode."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

__all__ = ["Change", "ChangeKind"]


class ChangeKind(StrEnum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"
    EXPIRE = "expire"


class Change(NamedTuple):
    """One change of one key.

    Attributes:
        lsn: The commit that made it; all changes of one commit have the same.
        kind: ``put``, ``delete``, or ``expire`` for a key whose time to live was over.
        key: The key.
        value: The new value; None unless ``kind`` is ``put``.
        last: No more changes of this commit follow, so a watch may be resumed after this one with
            ``since_lsn=change.lsn``.
    """

    lsn: int
    kind: ChangeKind
    key: bytes
    value: bytes | None
    last: bool
