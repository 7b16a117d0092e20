"""The store: what a program can do with its data, the same in every mode.

``IpcClient``, the embedded ``Database`` and the transactions of both are stores, so a feature or a program that is
given a :class:`Store` works on any of them. (``AsyncIpcClient`` offers the same methods with ``await``.)
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .arguments import Items, ScanRange, scan_range
from .columns import Columns
from .keys import BytesLike, KeyLike
from .paths import path_key
from .query_builder import QueryAnswer, QueryBuilder
from .rows import Row
from .sql_result import SQLQueryResult
from .sql_values import SqlParameters

__all__ = ["Store"]


class Store(ABC):
    """Reads and writes, either each on its own or all inside one transaction.

    Keys are 1 to 511 bytes; text is taken as UTF-8. Values are bytes-like. Every method raises
    ``ValidationError`` for an argument that cannot be. A client also raises ``ConnectionError`` when the server is
    lost and ``OperationTimeoutError`` after its timeout; an embedded database raises ``DatabaseClosedError`` when it
    was closed.
    """

    # Keys

    @abstractmethod
    def get(self, key: KeyLike) -> bytes | None:
        """The value of a key; None when there is none (an empty value is ``b""``)."""

    @abstractmethod
    def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> None:
        """Store a value. Outside a transaction it is committed when this returns.

        Args:
            key: The key.
            value: The value.
            ttl: Seconds after which the key is gone, by the clock of the process that owns the store; None = it
                stays, also when the value before had a time to live.
        """

    @abstractmethod
    def delete(self, key: KeyLike) -> None:
        """Delete a key; no error when it is absent."""

    @abstractmethod
    def exists(self, key: KeyLike) -> bool:
        """Whether a key exists, without moving its value."""

    @abstractmethod
    def compare_and_set(
        self, key: KeyLike, expected: BytesLike | None, new: BytesLike | None, *, ttl: float | None = None
    ) -> bool:
        """Store ``new`` only if the key's value is ``expected``, in one step.

        Args:
            key: The key.
            expected: The value that it must have; None = it must be absent.
            new: The value to store; None = delete the key.
            ttl: Seconds after which the new value is gone; None = it stays. Not with a delete.

        Returns:
            Whether it was stored.
        """

    @abstractmethod
    def increment(self, key: KeyLike, by: int = 1) -> int:
        """Add to a counter, in one step: none is lost, however many processes count.

        Args:
            key: The key; its value is the number as decimal text. One that is absent counts as 0, and a time to
                live stays as it is.
            by: What to add, may be negative.

        Returns:
            The new number.

        Raises:
            ValidationError: The value is not a number, or the sum is not a signed 64-bit integer.
        """

    @abstractmethod
    def expire(self, key: KeyLike, ttl: float | None) -> bool:
        """Give a key another time to live.

        Args:
            key: The key.
            ttl: Seconds from now after which it is gone; None = it stays.

        Returns:
            Whether there is such a key.
        """

    @abstractmethod
    def ttl(self, key: KeyLike) -> float | None:
        """The seconds that a key has to live; None when it has no time to live, or there is no such key."""

    # Paths

    def get_path(self, path: str | Sequence[str]) -> bytes | None:
        """The value of a path such as ``users/alice/email`` or its list of segments."""
        return self.get(path_key(path))

    def put_path(self, path: str | Sequence[str], value: BytesLike, *, ttl: float | None = None) -> None:
        """Store a value under a path; its key is the segments joined by ``/``. See :meth:`put`."""
        self.put(path_key(path), value, ttl=ttl)

    @abstractmethod
    def delete_path(self, path: str | Sequence[str], *, recursive: bool = False) -> None:
        """Delete a path.

        Args:
            path: The path.
            recursive: Also delete everything below it, in one transaction.
        """

    # Many keys

    @abstractmethod
    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        """The values of those keys that exist, by the key as given, in the order given."""

    @abstractmethod
    def put_many(self, items: Items, *, ttl: float | None = None) -> int:
        """Store all pairs atomically; answers how many. ``ttl`` is for each of them, see :meth:`put`."""

    @abstractmethod
    def delete_many(self, keys: Iterable[KeyLike]) -> int:
        """Delete all keys atomically; answers how many were given."""

    # Ranges

    @abstractmethod
    def _scan(self, scan: ScanRange) -> Iterator[Row]:
        """The rows of a range."""

    def _scan_plain(self, scan: ScanRange) -> Iterator[tuple[bytes, bytes]]:
        """The same as plain tuples, where these cost less."""
        return self._scan(scan)

    def scan(
        self,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Row]:
        """The rows of a range, in key order, from one snapshot taken when iteration begins.

        Args:
            start: With ``end`` None the prefix of the keys; else the first key, inclusive.
            end: The end of the range, exclusive.
            limit: Rows at the most.
            reverse: Descending key order.

        Yields:
            ``(key, value)`` tuples that also answer ``row["key"]`` and ``row["value"]``.

        Raises:
            SnapshotExpiredError: Iteration paused for longer than the server's ``--timeout-ms``.
        """
        return self._scan(scan_range(start, end, limit=limit, reverse=reverse))

    def scan_prefix(self, prefix: KeyLike, *, limit: int | None = None, reverse: bool = False) -> Iterator[Row]:
        """The rows whose keys start with ``prefix``; see :meth:`scan`."""
        return self._scan(scan_range(prefix, None, limit=limit, reverse=reverse, prefix=True))

    def scan_batched(
        self,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        batch_size: int = 1000,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of the range [start, end), fetched ``batch_size`` at a time; see :meth:`scan`.

        Unlike ``scan``, ``start`` alone is the first key of an open range, not a prefix, and what it yields may be
        plain tuples: for a long scan of an embedded database they cost a third less.
        """
        return self._scan_plain(scan_range(start, end, limit=limit, reverse=reverse, batch=batch_size, prefix=False))

    # SQL

    @abstractmethod
    def execute_sql(self, sql: str, params: SqlParameters = None) -> SQLQueryResult:
        """Run one SQL statement, outside a transaction in one of its own.

        Args:
            sql: The statement, in the SQL of SQLite.
            params: Values for its parameters: a sequence for ``?``, a mapping for ``:name``. Values are None, int,
                float, str and bytes.

        Returns:
            Its rows as dicts; a result that is too large for memory is read with :meth:`stream_sql`.

        Raises:
            SqlError: It cannot be run; nothing of it was kept.
            SqlConstraintError: A constraint of a table forbids it.
            SqlForbiddenError: It asks for what SQL may not do here; the message names it.
            SqlInterruptedError: It ran for longer than a statement may.
            ValidationError: A value has a type that no column holds, or the values do not fit the parameters.
            TransactionConflictError: Only inside a transaction: it would write tables that another one changed first.
            LockTimeoutError: Other statements that write kept it waiting.
        """

    def execute(self, sql: str, params: SqlParameters = None) -> SQLQueryResult:
        """The same as :meth:`execute_sql`."""
        return self.execute_sql(sql, params)

    @abstractmethod
    def executemany(self, sql: str, params: Iterable[SqlParameters]) -> SQLQueryResult:
        """Run one SQL statement for each set of values; all of it or, when it fails, nothing.

        Args:
            sql: The statement; what rows it gives are dropped.
            params: Sequences of the same length, or mappings with the same names.

        Returns:
            A result without rows, whose ``rows_affected`` is the sum.

        Raises:
            SqlError and others: See :meth:`execute_sql`.
        """

    @abstractmethod
    def execute_script(self, sql: str) -> SQLQueryResult:
        """Run any number of SQL statements, separated by ``;``; all of them or, when one fails, none.

        Returns:
            A result without rows, whose ``rows_affected`` is the sum.

        Raises:
            SqlError and others: See :meth:`execute_sql`.
        """

    @abstractmethod
    def _sql_batches(self, sql: str, params: SqlParameters) -> Generator[list[Any], None, None]:
        """The names of a statement's columns, then batches of its rows as tuples; it begins with the first step."""

    def stream_sql(self, sql: str, params: SqlParameters = None) -> Iterator[dict[str, Any]]:
        """The rows of one SQL statement, read as they are asked for: any number of them in little memory.

        They come from one snapshot, taken when iteration begins. A statement that writes has run to its end then.

        Yields:
            Each row as a dict.

        Raises:
            SnapshotExpiredError: Iteration paused for longer than the server's ``--timeout-ms``.
            SqlError and others: See :meth:`execute_sql`.
        """
        return _as_dicts(self._sql_batches(sql, params))

    # Queries and tables

    @abstractmethod
    def _answer_query(self, body: Mapping[str, Any]) -> QueryAnswer:
        """Answer what a builder asks; ``body`` has the keys of an extended QUERY."""

    def query(
        self,
        prefix: KeyLike,
        *,
        columns: Iterable[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> QueryBuilder:
        """A query over a table or the JSON objects under a key prefix; see :class:`QueryBuilder`."""
        return QueryBuilder(self._answer_query, prefix, columns, limit, offset)

    @abstractmethod
    def create_table(self, name: str, columns: Columns) -> None:
        """Create a SQL table whose columns hold just one type each.

        Args:
            name: Its name.
            columns: ``{"id": "int64", "name": "text"}`` or rows ``(name, type[, nullable])``; types are
                int64, uint64, float64, text, binary and bool.

        Raises:
            TableExistsError: There is one of that name.
        """


def _as_dicts(batches: Generator[list[Any], None, None]) -> Iterator[dict[str, Any]]:
    """The rows of :meth:`Store._sql_batches` one by one."""
    with contextlib.closing(batches):
        columns: list[str] = next(batches, [])
        for rows in batches:
            for row in rows:
                yield dict(zip(columns, row, strict=True))
