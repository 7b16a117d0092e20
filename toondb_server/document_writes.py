"""Small writes of documents: each waits for its turn in the collection's queue without a thread of its own.

All that come while others commit share the next commit. With a thread for each, to wake them all up took longer than
the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .requests import WAITING, Job

if TYPE_CHECKING:
    from toondb.collections.engine import CollectionsEngine
    from toondb.sql.write_queue import Write

    from .session import Session

__all__ = ["DOCUMENT_WRITES", "LONGEST_SMALL", "DocumentWrite", "is_small"]

DOCUMENT_WRITES = frozenset({"document_put", "document_put_multi", "document_delete"})
LONGEST_SMALL = 16 * 1024
"""Bytes of arguments that are looked at on the event loop."""

_MOST_ITEMS = 64


def is_small(arguments: dict[str, Any]) -> bool:
    """Whether arguments are of few documents, so that checking them keeps nobody waiting."""
    return all(len(value) <= _MOST_ITEMS for value in arguments.values() if type(value) is list)


class DocumentWrite:
    """One of ``DOCUMENT_WRITES``, outside transactions.

    Args:
        session: Whose request it is.
        packed: Makes the reply of the result.
    """

    def __init__(self, session: Session, packed: Callable[[Any], bytes]) -> None:
        self._session = session
        self._packed = packed
        self._done: Write[Any, Any] | None = None

    def job(self, collections: CollectionsEngine, operation: str, arguments: dict[str, Any]) -> Job:
        """The reply, for the session."""
        withdraw = collections.write_later(operation, arguments, self)
        try:
            while self._done is None:
                yield WAITING
            done, self._done = self._done, None
        finally:
            withdraw()
        if done.error is not None:
            raise done.error
        yield self._packed(done.result)

    def run_elsewhere(self, turns: Callable[[], None]) -> None:
        """Run turns of the queue on a thread."""
        self._session.server.writing_workers.submit(turns)

    def answered(self, write: Write[Any, Any]) -> None:
        """Take the outcome; on any thread."""
        self._done = write
        self._session.server.task_stepped(self._session)
