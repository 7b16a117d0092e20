"""The query builder of the clients: rows of JSON objects under a key prefix, as TOON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from toondb_protocol.errors import ProtocolError, ValidationError
from toondb_protocol.keys import KeyLike, as_prefix

from . import calls
from .rows import Row, pair_rows

__all__ = ["AsyncQueryBuilder", "QueryBuilder"]

B = TypeVar("B", bound="_Builder")


class _Builder:
    """What to ask; every method answers a new builder."""

    def __init__(
        self,
        txn: int,
        prefix: KeyLike,
        columns: Iterable[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> None:
        self._txn = txn
        self._prefix = as_prefix(prefix)
        self._columns = self._checked(columns)
        self._limit = None if limit is None else calls.whole_number("limit", limit)
        self._offset = 0 if offset is None else calls.whole_number("offset", offset)

    @staticmethod
    def _checked(columns: Iterable[str] | None) -> list[str]:
        if isinstance(columns, (str, bytes)):
            raise ValidationError(f"columns is a list of names, got {columns!r}.", remediation='Write ["name"].')
        if columns is None:
            return []
        if not isinstance(columns, Iterable):
            raise ValidationError(f"columns is a list of names, got {columns!r}.", remediation='Write ["name"].')
        return [calls.text("a column name", name) for name in columns]

    def _copy(self: B, **changes: Any) -> B:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.__dict__.update(changes)
        return other

    def select(self: B, columns: Iterable[str]) -> B:
        """Show these fields only."""
        return self._copy(_columns=self._checked(columns))

    def limit(self: B, limit: int | None) -> B:
        """Answer so many rows at the most; None = all."""
        return self._copy(_limit=None if limit is None else calls.whole_number("limit", limit))

    def offset(self: B, offset: int) -> B:
        """Skip so many rows first."""
        return self._copy(_offset=calls.whole_number("offset", offset))

    def _call(self, form: str, limit: int | None) -> calls.Call:
        body: dict[str, Any] = {"prefix": self._prefix, "form": form}
        if self._columns:
            body["columns"] = self._columns
        if limit:
            body["limit"] = limit
        if self._offset:
            body["offset"] = self._offset
        return calls.query(self._txn, body)

    @property
    def _nothing(self) -> bool:
        # On the wire a limit of 0 means no limit; a builder's limit(0) asks for no rows.
        return self._limit == 0


def _text(window: calls.Window) -> str:
    try:
        return b"".join(part for batch in window.batches for part in batch).decode()
    except UnicodeDecodeError:
        raise ProtocolError("the server sent TOON text that is not UTF-8") from None


def _rows(window: calls.Window) -> list[Row]:
    return [row for batch in window.batches for row in pair_rows(batch)]


_EMPTY = "result[0]{}:"


class QueryBuilder(_Builder):
    """A query of a sync client or transaction; ``str(builder)`` is its TOON text."""

    _run: Callable[[calls.Call], Any]

    def execute(self) -> str:
        """The whole result as one TOON text."""
        return _EMPTY if self._nothing else _text(self._run(self._call("toon", self._limit)))

    to_toon = execute
    __str__ = execute

    def to_list(self) -> list[Row]:
        """A ``(key, TOON text of that row as bytes)`` pair for each row."""
        return [] if self._nothing else _rows(self._run(self._call("rows", self._limit)))

    def first(self) -> Row | None:
        """The first row, or None."""
        rows = [] if self._nothing else _rows(self._run(self._call("rows", 1)))
        return rows[0] if rows else None

    def count(self) -> int:
        """How many rows there are."""
        if self._nothing:
            return 0
        rows: int = self._run(self._call("count", self._limit)).rows
        return rows

    def exists(self) -> bool:
        """Whether there is any row."""
        return self.first() is not None

    def __iter__(self) -> Any:
        return iter(self.to_list())


class AsyncQueryBuilder(_Builder):
    """A query of an async client or transaction."""

    _run: Callable[[calls.Call], Awaitable[Any]]

    async def execute(self) -> str:
        """The whole result as one TOON text."""
        return _EMPTY if self._nothing else _text(await self._run(self._call("toon", self._limit)))

    to_toon = execute

    async def to_list(self) -> list[Row]:
        """A ``(key, TOON text of that row as bytes)`` pair for each row."""
        return [] if self._nothing else _rows(await self._run(self._call("rows", self._limit)))

    async def first(self) -> Row | None:
        """The first row, or None."""
        rows = [] if self._nothing else _rows(await self._run(self._call("rows", 1)))
        return rows[0] if rows else None

    async def count(self) -> int:
        """How many rows there are."""
        if self._nothing:
            return 0
        rows: int = (await self._run(self._call("count", self._limit))).rows
        return rows

    async def exists(self) -> bool:
        """Whether there is any row."""
        return await self.first() is not None
