"""The store's methods of the async clients, shared by :class:`AsyncIpcClient` and its transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_value
from toondb_protocol.paths import path_key

from . import calls
from .query import AsyncQueryBuilder
from .rows import Row

__all__ = ["AsyncStore"]

T = TypeVar("T")


class AsyncStore:
    """Reads and writes, either each on its own or all inside one transaction.

    Keys are 1 to 511 bytes; text is taken as UTF-8. Values are bytes-like. Every method raises
    ``ValidationError`` for an argument that cannot be, ``ConnectionError`` when the server is lost and
    ``OperationTimeoutError`` after the client's timeout.
    """

    _txn: int = 0

    async def _call(self, call: calls.Call) -> Any:
        raise NotImplementedError

    async def _run(self, operation: calls.Operation[T]) -> T:
        raise NotImplementedError

    def _scan(self, scan: calls.ScanRange) -> AsyncIterator[Row]:
        raise NotImplementedError

    async def get(self, key: KeyLike) -> bytes | None:
        """The value of a key; None when there is none (an empty value is ``b""``)."""
        value: bytes | None = await self._call(calls.get(self._txn, as_key(key)))
        return value

    async def put(self, key: KeyLike, value: BytesLike) -> None:
        """Store a value. Outside a transaction it is committed when this returns."""
        await self._call(calls.put(self._txn, as_key(key), as_value(value)))

    async def delete(self, key: KeyLike) -> None:
        """Delete a key; no error when it is absent."""
        await self._call(calls.delete(self._txn, as_key(key)))

    async def exists(self, key: KeyLike) -> bool:
        """Whether a key exists, without moving its value."""
        found: bool = await self._call(calls.exists(self._txn, as_key(key)))
        return found

    async def get_path(self, path: str | Sequence[str]) -> bytes | None:
        """The value of a path such as ``users/alice/email`` or its list of segments."""
        return await self.get(path_key(path))

    async def put_path(self, path: str | Sequence[str], value: BytesLike) -> None:
        """Store a value under a path; its key is the segments joined by ``/``."""
        await self.put(path_key(path), value)

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

    async def put_many(self, items: Mapping[Any, BytesLike] | Iterable[tuple[KeyLike, BytesLike]]) -> int:
        """Store all pairs atomically; answers how many."""
        return await self._run(calls.put_many(self._txn, items))

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
        return self._scan(calls.scan_range(start, end, limit=limit, reverse=reverse))

    def scan_prefix(self, prefix: KeyLike, *, limit: int | None = None, reverse: bool = False) -> AsyncIterator[Row]:
        """The rows whose keys start with ``prefix``; see :meth:`scan`."""
        return self._scan(calls.scan_range(prefix, None, limit=limit, reverse=reverse, prefix=True))

    def scan_batched(
        self,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        batch_size: int = 1000,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncIterator[Row]:
        """The rows of the range [start, end), fetched ``batch_size`` at a time; see :meth:`scan`.

        Unlike ``scan``, ``start`` alone is the first key of an open range, not a prefix.
        """
        return self._scan(calls.scan_range(start, end, limit=limit, reverse=reverse, batch=batch_size, prefix=False))

    def query(
        self,
        prefix: KeyLike,
        *,
        columns: Iterable[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> AsyncQueryBuilder:
        """A query over a table or the JSON objects under a key prefix; see :class:`AsyncQueryBuilder`."""
        builder = AsyncQueryBuilder(self._txn, prefix, columns, limit, offset)
        builder._run = self._call
        return builder

    async def create_table(self, name: str, columns: Mapping[str, str] | Sequence[Sequence[Any]]) -> None:
        """Create a table.

        Args:
            name: Its name.
            columns: ``{"id": "int64", "name": "text"}`` or rows ``(name, type[, nullable])``; types are
                int64, uint64, float64, text, binary and bool.

        Raises:
            TableExistsError: There is one of that name.
        """
        await self._call(calls.create_table(self._txn, name, columns))
