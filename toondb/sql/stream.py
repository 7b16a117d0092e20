"""Rows of a statement, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import apsw

from .connection import Outcome, SqlConnection
from .fetching import FETCH_BYTES, some_rows

__all__ = ["FinishedRows", "OpenRows", "RowStream"]


class RowStream(Protocol):
    """The rows of a statement. Used by one thread at a time, except :meth:`interrupt`.

    Attributes:
        columns: Names of the columns; empty for a statement without rows.
        ended: Whether the last row was fetched, or it was closed.
        rows_affected: Rows that the statement inserted, changed or deleted.
        last_row_id: Row id of the last row inserted.
    """

    columns: list[str]
    ended: bool
    rows_affected: int
    last_row_id: int

    def fetch(self, count: int, size: int = FETCH_BYTES) -> list[tuple[Any, ...]]:
        """The next rows: ``count`` of them, or of ``size`` bytes, at the most. The end closes it."""

    def interrupt(self) -> None:
        """End the fetch that is under way; from any thread."""

    def close(self) -> None:
        """Give it up. Idempotent."""


class FinishedRows:
    """The rows of a statement that has run to its end: one that writes."""

    def __init__(self, outcome: Outcome) -> None:
        self.columns, rows, self.rows_affected, self.last_row_id = outcome
        self._rows = iter(rows)
        self.ended = False

    def fetch(self, count: int, size: int = FETCH_BYTES) -> list[tuple[Any, ...]]:
        found, self.ended = some_rows(self._rows, count, size)
        return found

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self._rows = iter(())
        self.ended = True


class OpenRows:
    """The rows of a statement that reads as it is asked.

    Args:
        connection: The connection that runs it, which counts the time that the statement may take in all.
        cursor: The started statement.
        columns: Names of its columns.
        seconds: Time that is left to it; None = any.
        guarded: Runs a function while the connection is this caller's.
        end: Called once, when it is over.
    """

    rows_affected = 0
    last_row_id = 0

    def __init__(
        self,
        connection: SqlConnection,
        cursor: apsw.Cursor,
        columns: list[str],
        seconds: float | None,
        guarded: Callable[[Callable[[], list[tuple[Any, ...]]]], list[tuple[Any, ...]]],
        end: Callable[[], None],
    ) -> None:
        self.columns = columns
        self._connection = connection
        self._cursor = cursor
        self._seconds = seconds
        self._guarded = guarded
        self._end = end
        self._last = self.ended = False

    def fetch(self, count: int, size: int = FETCH_BYTES) -> list[tuple[Any, ...]]:
        if self.ended:
            return []
        try:
            rows = self._guarded(lambda: self._fetch(count, size))
        except BaseException:
            self.close()
            raise
        if self._last:
            self.close()
        return rows

    def _fetch(self, count: int, size: int) -> list[tuple[Any, ...]]:
        rows, self._last, self._seconds = self._connection.fetch(self._cursor, count, self._seconds, size)
        return rows

    def interrupt(self) -> None:
        if not self.ended:
            self._connection.interrupt()

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self._end()
