"""The result of a SQL statement, the same in every mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

__all__ = ["SQLQueryResult"]


class SQLQueryResult(Sequence[dict[str, Any]]):
    """Rows of a SQL statement: iterable, sized and indexable, each row a dict.

    Attributes:
        columns: Names of the columns, in order. The second of two alike is named ``name:1``.
        rows_affected: Rows that the statement inserted, changed or deleted.
        last_row_id: Row id of the last row that was inserted.
    """

    __slots__ = ("_dicts", "_tuples", "columns", "last_row_id", "rows_affected")

    def __init__(
        self, columns: list[str], tuples: list[tuple[Any, ...]], rows_affected: int = 0, last_row_id: int = 0
    ) -> None:
        self.columns = columns
        self._tuples = tuples
        self._dicts: list[dict[str, Any]] | None = None
        self.rows_affected = rows_affected
        self.last_row_id = last_row_id

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows as dicts."""
        if self._dicts is None:
            columns = self.columns
            self._dicts = [dict(zip(columns, row, strict=True)) for row in self._tuples]
        return self._dicts

    @property
    def tuples(self) -> list[tuple[Any, ...]]:
        """All rows as tuples, in the order of the columns."""
        return self._tuples

    def __len__(self) -> int:
        return len(self._tuples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"<SQLQueryResult {len(self._tuples)} rows of {self.columns}, {self.rows_affected} affected>"
