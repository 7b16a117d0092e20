"""The query builder: rows of JSON objects under a key prefix, as TOON. The same in every mode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from .arguments import sendable_filter, text, whole_number
from .errors import ProtocolError, ValidationError
from .keys import KeyLike, as_prefix
from .rows import Row, pair_rows

__all__ = ["AsyncQueryBuilder", "QueryAnswer", "QueryBuilder"]

B = TypeVar("B", bound="_Builder")


class QueryAnswer(Protocol):
    """What a query gives: flat batches of what was asked for, and how many rows there are."""

    @property
    def batches(self) -> list[list[bytes]]: ...

    @property
    def rows(self) -> int: ...


class _Builder:
    """What to ask; every method answers a new builder."""

    def __init__(
        self,
        ask: Callable[[Mapping[str, Any]], Any],
        prefix: KeyLike,
        columns: Iterable[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> None:
        self._ask = ask
        self._prefix = as_prefix(prefix)
        self._columns = self._checked(columns)
        self._limit = None if limit is None else whole_number("limit", limit)
        self._offset = 0 if offset is None else whole_number("offset", offset)
        self._filters: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def _checked(columns: Iterable[str] | None) -> list[str]:
        if isinstance(columns, (str, bytes)):
            raise ValidationError(f"columns is a list of names, got {columns!r}.", remediation='Write ["name"].')
        if columns is None:
            return []
        if not isinstance(columns, Iterable):
            raise ValidationError(f"columns is a list of names, got {columns!r}.", remediation='Write ["name"].')
        return [text("a column name", name) for name in columns]

    def _copy(self: B, **changes: Any) -> B:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.__dict__.update(changes)
        return other

    def select(self: B, columns: Iterable[str]) -> B:
        """Show these fields only."""
        return self._copy(_columns=self._checked(columns))

    def where(self: B, condition: Mapping[str, Any] | None = None, /, **equal: Any) -> B:
        """Answer only rows whose fields meet a condition; several calls must all hold.

        Args:
            condition: A filter such as ``{"price": {"$gt": 10}}``; its operators are those of ``toondb.filters``.
            equal: Fields and the values that they must have: ``where(name="Mouse")``.

        Raises:
            ValidationError: It is no filter, or has values that JSON-like rows cannot have; an unknown operator is
                refused when the query is run.
        """
        if condition is not None and not isinstance(condition, Mapping):
            raise ValidationError(
                f"where() takes a filter, got {condition!r:.60}.", remediation='Write {"field": {"$gt": 10}}.'
            )
        added = [sendable_filter(part) for part in (condition, equal) if part]
        return self._copy(_filters=(*self._filters, *added))

    def limit(self: B, limit: int | None) -> B:
        """Answer so many rows at the most; None = all."""
        return self._copy(_limit=None if limit is None else whole_number("limit", limit))

    def offset(self: B, offset: int) -> B:
        """Skip so many rows first."""
        return self._copy(_offset=whole_number("offset", offset))

    def _body(self, form: str, limit: int | None) -> dict[str, Any]:
        body: dict[str, Any] = {"prefix": self._prefix, "form": form}
        if self._columns:
            body["columns"] = self._columns
        if len(self._filters) == 1:
            body["where"] = self._filters[0]
        elif self._filters:
            body["where"] = {"$and": list(self._filters)}
        if limit:
            body["limit"] = limit
        if self._offset:
            body["offset"] = self._offset
        return body

    @property
    def _nothing(self) -> bool:
        # In a body a limit of 0 means no limit; a builder's limit(0) asks for no rows.
        return self._limit == 0


def _text(answer: QueryAnswer) -> str:
    try:
        return b"".join(part for batch in answer.batches for part in batch).decode()
    except UnicodeDecodeError:
        raise ProtocolError("the server sent TOON text that is not UTF-8") from None


def _rows(answer: QueryAnswer) -> list[Row]:
    return [row for batch in answer.batches for row in pair_rows(batch)]


_EMPTY = "result[0]{}:"


class QueryBuilder(_Builder):
    """A query of a store; ``str(builder)`` is its TOON text.

    Rows are the keys of the prefix whose value is a JSON object, in key order. When there is none, every pair is a
    row with the columns ``key`` and ``value``.
    """

    _ask: Callable[[Mapping[str, Any]], QueryAnswer]

    def execute(self) -> str:
        """The whole result as one TOON text: ``result[2]{name,price}:Laptop,999;Mouse,25``."""
        return _EMPTY if self._nothing else _text(self._ask(self._body("toon", self._limit)))

    to_toon = execute
    __str__ = execute

    def to_list(self) -> list[Row]:
        """A ``(key, TOON text of that row as bytes)`` pair for each row."""
        return [] if self._nothing else _rows(self._ask(self._body("rows", self._limit)))

    def first(self) -> Row | None:
        """The first row, or None."""
        rows = [] if self._nothing else _rows(self._ask(self._body("rows", 1)))
        return rows[0] if rows else None

    def count(self) -> int:
        """How many rows there are."""
        return 0 if self._nothing else self._ask(self._body("count", self._limit)).rows

    def exists(self) -> bool:
        """Whether there is any row."""
        return self.first() is not None

    def __iter__(self) -> Iterator[Row]:
        return iter(self.to_list())


class AsyncQueryBuilder(_Builder):
    """A query of an async client or transaction; see :class:`QueryBuilder`."""

    _ask: Callable[[Mapping[str, Any]], Awaitable[QueryAnswer]]

    async def execute(self) -> str:
        """The whole result as one TOON text: ``result[2]{name,price}:Laptop,999;Mouse,25``."""
        return _EMPTY if self._nothing else _text(await self._ask(self._body("toon", self._limit)))

    to_toon = execute

    async def to_list(self) -> list[Row]:
        """A ``(key, TOON text of that row as bytes)`` pair for each row."""
        return [] if self._nothing else _rows(await self._ask(self._body("rows", self._limit)))

    async def first(self) -> Row | None:
        """The first row, or None."""
        rows = [] if self._nothing else _rows(await self._ask(self._body("rows", 1)))
        return rows[0] if rows else None

    async def count(self) -> int:
        """How many rows there are."""
        return 0 if self._nothing else (await self._ask(self._body("count", self._limit))).rows

    async def exists(self) -> bool:
        """Whether there is any row."""
        return await self.first() is not None
