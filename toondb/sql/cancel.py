"""Stopping a statement from outside: a token that goes with whatever a piece of work runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Cancel", "cancelled_by", "current_cancel"]


class Cancel:
    """Stops the statements of some work, those under way and those to come.

    Attributes:
        cancelled: Set it, from any thread, to stop them.
    """

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False


_current: ContextVar[Cancel | None] = ContextVar("toondb_sql_cancel", default=None)
current_cancel = _current.get


@contextmanager
def cancelled_by(cancel: Cancel | None) -> Iterator[None]:
    """Let ``cancel`` stop the statements that the block runs on this thread; None = nothing does."""
    token = _current.set(cancel)
    try:
        yield
    finally:
        _current.reset(token)
