"""The store's methods of the async clients, shared by :class:`AsyncIpcClient` and its transactions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from toondb_protocol.arguments import Items, ScanRange, ms_or_none, new_ttl_ms, scan_range, ttl_to_ms, value_or_none
from toondb_protocol.columns import Columns
from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_value
from toondb_protocol.paths import path_key
from toondb_protocol.query_builder import AsyncQueryBuilder, QueryAnswer
from toondb_protocol.rows import Row, pair_rows
from toondb_protocol.sql_result import SQLQueryResult
from toondb_protocol.sql_values import SqlParameters

from . import calls
from .aio_collections import AsyncHasCollections

__all__ = ["AsyncStore"]

T = TypeVar("T")


class AsyncStore(AsyncHasCollections):
    """Reads and writes, either each on its own or all inside one transaction: a :class:`Store` with ``await``.

    Keys are 1 to 511 bytes; text is taken as UTF-8. Values are bytes-like. Every method raises
    ``ValidationError`` for an argument that cannot be, ``ConnectionError`` when the server is lost and
    ``OperationTimeoutError`` after the client's timeout.
    """

    _txn: int = 0

    @property
    def _max_frame(self) -> int:
        """The frame cap of the server."""
        raise NotImplementedError

    async def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        call = calls.read_operation(self._txn, operation, arguments, self._max_frame)
        if call is not None:
            return await self._call(call)
        return await self._run(calls.operate(self._txn, operation, arguments, self._max_frame))

    async def _call(self, call: calls.Call) -> Any:
        raise NotImplementedError

    async def _run(self, operation: calls.Operation[T]) -> T:
        raise NotImplementedError

    def _batches(self, call: calls.Call) -> AsyncGenerator[list[Any], None]:
        """The batches of a stream that is read window by window."""
        raise NotImplementedError

    async def _scan(self, scan: ScanRange) -> AsyncIterator[Row]:
        batches = self._batches(calls.scan_start(self._txn, scan, calls.FIRST_WINDOW))
        try:
            async for batch in batches:
                for row in pair_rows(batch):
                    yield row
        finally:
            await batches.aclose()

    async def get(self, key: KeyLike) -> bytes | None:
        """The value of a key; None when there is none (an empty value is ``b""``)."""
        value: bytes | None = await self._call(calls.get(self._txn, as_key(key)))
        return value

    async def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> None:
        """Store a value, for ``ttl`` seconds or for ever. Outside a transaction it is committed when this returns."""
        if ttl is None:
            await self._call(calls.put(self._txn, as_key(key), as_value(value)))
        else:
            await self._call(calls.put_for(self._txn, as_key(key), as_value(value), ttl_to_ms(ttl)))

    async def delete(self, key: KeyLike) -> None:
        """Delete a key; no error when it is absent."""
        await self._call(calls.delete(self._txn, as_key(key)))

    async def exists(self, key: KeyLike) -> bool:
        """Whether a key exists, without moving its value."""
        found: bool = await self._call(calls.exists(self._txn, as_key(key)))
        return found

    async def compare_and_set(
        self, key: KeyLike, expected: BytesLike | None, new: BytesLike | None, *, ttl: float | None = None
    ) -> bool:
        """Store ``new`` only if the key's value is ``expected``; answers whether. See :meth:`Store.compare_and_set`."""
        call = calls.compare_and_set(
            self._txn, as_key(key), value_or_none(expected), value_or_none(new), new_ttl_ms(new, ttl)
        )
        return bool(await self._call(call))

    async def increment(self, key: KeyLike, by: int = 1) -> int:
        """Add to a counter, in one step; answers the new number. See :meth:`Store.increment`."""
        return int(await self._call(calls.increment(self._txn, as_key(key), by)))

    async def expire(self, key: KeyLike, ttl: float | None) -> bool:
        """Give a key another time to live in seconds, None = for ever; answers whether there is such a key."""
        return bool(await self._call(calls.expire(self._txn, as_key(key), ms_or_none(ttl))))

    async def ttl(self, key: KeyLike) -> float | None:
        """The seconds that a key has to live; None when it has no time to live, or there is no such key."""
        seconds: float | None = await self._call(calls.ttl(self._txn, as_key(key)))
        return seconds

    async def get_path(self, path: str | Sequence[str]) -> bytes | None:
        """The value of a path such as ``users/alice/email`` or its list of segments."""
        return await self.get(path_key(path))

    async def put_path(self, path: str | Sequence[str], value: BytesLike, *, ttl: float | None = None) -> None:
        """Store a value under a path; its key is the segments joined by ``/``. See :meth:`put`."""
        await self.put(path_key(path), value, ttl=ttl)

    async def delete_path(self, path: str | Sequence[str], *, recursive: bool = False) -> None:
        """Delete a path.

        Args:
            path: The path.
            recursive: Also delete everything below it, in one transaction.
        """
        if not recursive:
            await self.delete(path_key(path))
            return
        key = as_key(path_key(path))
        await self._run(calls.delete_tree(self._txn, key))

    async def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        """The values of those keys that exist, by the key as given, in the order given."""
        return await self._run(calls.get_many(self._txn, keys))

    async def put_many(self, items: Items, *, ttl: float | None = None) -> int:
        """Store all pairs atomically; answers how many. ``ttl`` is for each of them, see :meth:`put`."""
        return await self._run(calls.put_many(self._txn, items, ms_or_none(ttl)))

    async def delete_many(self, keys: Iterable[KeyLike]) -> int:
        """Delete all keys atomically; answers how many were given."""
        return await self._run(calls.delete_many(self._txn, keys))

    def scan(
        self,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncIterator[Row]:
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

    def scan_prefix(self, prefix: KeyLike, *, limit: int | None = None, reverse: bool = False) -> AsyncIterator[Row]:
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
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """The rows of the range [start, end), fetched ``batch_size`` at a time; see :meth:`scan`.

        Unlike ``scan``, ``start`` alone is the first key of an open range, not a prefix.
        """
        return self._scan(scan_range(start, end, limit=limit, reverse=reverse, batch=batch_size, prefix=False))

    async def execute_sql(self, sql: str, params: SqlParameters = None) -> SQLQueryResult:
        """Run one SQL statement, outside a transaction in one of its own; see :meth:`Store.execute_sql`."""
        return calls.sql_result(await self._call(calls.sql(self._txn, sql, params)))

    async def execute(self, sql: str, params: SqlParameters = None) -> SQLQueryResult:
        """The same as :meth:`execute_sql`."""
        return await self.execute_sql(sql, params)

    async def executemany(self, sql: str, params: Iterable[SqlParameters]) -> SQLQueryResult:
        """Run one SQL statement for each set of values, all or none; see :meth:`Store.executemany`."""
        return calls.sql_result(await self._run(calls.sql_many(self._txn, sql, params)))

    async def execute_script(self, sql: str) -> SQLQueryResult:
        """Run any number of SQL statements, all or none; see :meth:`Store.execute_script`."""
        return calls.sql_result(await self._call(calls.sql_script(self._txn, sql)))

    def stream_sql(self, sql: str, params: SqlParameters = None) -> AsyncIterator[dict[str, Any]]:
        """The rows of one SQL statement, read as they are asked for; see :meth:`Store.stream_sql`."""
        return self._stream_sql(calls.sql_start(self._txn, sql, params, calls.FIRST_WINDOW))

    async def _stream_sql(self, call: calls.Call) -> AsyncIterator[dict[str, Any]]:
        columns: list[str] | None = None
        batches = self._batches(call)
        try:
            async for flat in batches:
                if columns is None:
                    columns = flat
                    continue
                for row in calls.sql_rows(columns, flat):
                    yield dict(zip(columns, row, strict=True))
        finally:
            await batches.aclose()

    def query(
        self,
        prefix: KeyLike,
        *,
        columns: Iterable[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> AsyncQueryBuilder:
        """A query over a table or the JSON objects under a key prefix; see :class:`AsyncQueryBuilder`."""
        return AsyncQueryBuilder(self._answer_query, prefix, columns, limit, offset)

    async def _answer_query(self, body: Mapping[str, Any]) -> QueryAnswer:
        answer: QueryAnswer = await self._call(calls.query(self._txn, body))
        return answer

    async def create_table(self, name: str, columns: Columns) -> None:
        """Create a SQL table whose columns hold just one type each.

        Args:
            name: Its name.
            columns: ``{"id": "int64", "name": "text"}`` or rows ``(name, type[, nullable])``; types are
                int64, uint64, float64, text, binary and bool.

        Raises:
            TableExistsError: There is one of that name.
        """
        await self._call(calls.create_table(self._txn, name, columns))
