"""Rows of a statement, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

import apsw

from .connection import Outcome, SqlConnection

__all__ = ["FinishedRows", "OpenRows", "RowStream"]


class RowStream(Protocol):
    """The rows of a statement. Used by one thread at a time, except :meth:`interrupt`.

    Attributes:
        columns: Names of the columns; empty for a statement without rows.
        rows_affected: Rows that the statement inserted, changed or deleted.
        last_row_id: Row id of the last row inserted.
    """

    columns: list[str]
    rows_affected: int
    last_row_id: int

    def fetch(self, count: int) -> list[tuple[Any, ...]]:
        """The next rows, ``count`` at the most; fewer only at the end, which closes it."""

    def interrupt(self) -> None:
        """End the fetch that is under way; from any thread."""

    def close(self) -> None:
        """Give it up. Idempotent."""


class FinishedRows:
    """The rows of a statement that has run to its end: one that writes."""

    def __init__(self, outcome: Outcome) -> None:
        self.columns, rows, self.rows_affected, self.last_row_id = outcome
        self._rows = iter(rows)

    def fetch(self, count: int) -> list[tuple[Any, ...]]:
        return list(islice(self._rows, count))

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self._rows = iter(())


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
        self._open = True

    def fetch(self, count: int) -> list[tuple[Any, ...]]:
        if not self._open:
            return []
        try:
            rows = self._guarded(lambda: self._fetch(count))
        except BaseException:
            self.close()
            raise
        if len(rows) < count:
            self.close()
        return rows

    def _fetch(self, count: int) -> list[tuple[Any, ...]]:
        rows, self._seconds = self._connection.fetch(self._cursor, count, self._seconds)
        return rows

    def interrupt(self) -> None:
        if self._open:
            self._connection.interrupt()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._end()
