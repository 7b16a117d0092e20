"""The store's methods of the sync clients, shared by :class:`IpcClient` and its transactions."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from toondb_protocol.arguments import Items, ScanRange, ms_or_none, new_ttl_ms, ttl_to_ms, value_or_none
from toondb_protocol.collections import HasCollections
from toondb_protocol.columns import Columns
from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_value
from toondb_protocol.paths import path_key
from toondb_protocol.query_builder import QueryAnswer
from toondb_protocol.rows import Row, pair_rows
from toondb_protocol.sql_result import SQLQueryResult
from toondb_protocol.sql_values import SqlParameters
from toondb_protocol.store import Store

from . import calls

__all__ = ["SyncStore"]

T = TypeVar("T")


class SyncStore(Store, HasCollections):
    """A store at the other end of a connection; see :class:`Store` for its methods."""

    _txn: int = 0

    @property
    def _max_frame(self) -> int:
        """The frame cap of the server."""
        raise NotImplementedError

    def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        call = calls.read_operation(self._txn, operation, arguments, self._max_frame)
        if call is not None:
            return self._call(call)
        return self._run(calls.operate(self._txn, operation, arguments, self._max_frame))

    def _call(self, call: calls.Call) -> Any:
        raise NotImplementedError

    def _run(self, operation: calls.Operation[T]) -> T:
        raise NotImplementedError

    def _batches(self, call: calls.Call) -> Iterator[list[Any]]:
        """The batches of a stream that is read window by window."""
        raise NotImplementedError

    def _scan(self, scan: ScanRange) -> Iterator[Row]:
        for batch in self._batches(calls.scan_start(self._txn, scan, calls.FIRST_WINDOW)):
            yield from pair_rows(batch)

    def get(self, key: KeyLike) -> bytes | None:
        value: bytes | None = self._call(calls.get(self._txn, as_key(key)))
        return value

    def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> None:
        if ttl is None:
            self._call(calls.put(self._txn, as_key(key), as_value(value)))
        else:
            self._call(calls.put_for(self._txn, as_key(key), as_value(value), ttl_to_ms(ttl)))

    def delete(self, key: KeyLike) -> None:
        self._call(calls.delete(self._txn, as_key(key)))

    def exists(self, key: KeyLike) -> bool:
        found: bool = self._call(calls.exists(self._txn, as_key(key)))
        return found

    def compare_and_set(
        self, key: KeyLike, expected: BytesLike | None, new: BytesLike | None, *, ttl: float | None = None
    ) -> bool:
        call = calls.compare_and_set(
            self._txn, as_key(key), value_or_none(expected), value_or_none(new), new_ttl_ms(new, ttl)
        )
        return bool(self._call(call))

    def increment(self, key: KeyLike, by: int = 1) -> int:
        return int(self._call(calls.increment(self._txn, as_key(key), by)))

    def expire(self, key: KeyLike, ttl: float | None) -> bool:
        return bool(self._call(calls.expire(self._txn, as_key(key), ms_or_none(ttl))))

    def ttl(self, key: KeyLike) -> float | None:
        seconds: float | None = self._call(calls.ttl(self._txn, as_key(key)))
        return seconds

    def delete_path(self, path: str | Sequence[str], *, recursive: bool = False) -> None:
        key = as_key(path_key(path))
        if recursive:
            self._run(calls.delete_tree(self._txn, key))
        else:
            self.delete(key)

    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        return self._run(calls.get_many(self._txn, keys))

    def put_many(self, items: Items, *, ttl: float | None = None) -> int:
        return self._run(calls.put_many(self._txn, items, ms_or_none(ttl)))

    def delete_many(self, keys: Iterable[KeyLike]) -> int:
        return self._run(calls.delete_many(self._txn, keys))

    def _answer_query(self, body: Mapping[str, Any]) -> QueryAnswer:
        answer: QueryAnswer = self._call(calls.query(self._txn, body))
        return answer

    def create_table(self, name: str, columns: Columns) -> None:
        self._call(calls.create_table(self._txn, name, columns))

    def execute_sql(self, sql: str, params: SqlParameters = None) -> SQLQueryResult:
        return calls.sql_result(self._call(calls.sql(self._txn, sql, params)))

    def executemany(self, sql: str, params: Iterable[SqlParameters]) -> SQLQueryResult:
        return calls.sql_result(self._run(calls.sql_many(self._txn, sql, params)))

    def execute_script(self, sql: str) -> SQLQueryResult:
        return calls.sql_result(self._call(calls.sql_script(self._txn, sql)))

    def _sql_batches(self, sql: str, params: SqlParameters) -> Generator[list[Any], None, None]:
        return self._row_batches(calls.sql_start(self._txn, sql, params, calls.FIRST_WINDOW))

    def _row_batches(self, call: calls.Call) -> Generator[list[Any], None, None]:
        batches = self._batches(call)
        columns: list[str] = next(batches, [])
        yield columns
        for flat in batches:
            yield list(calls.sql_rows(columns, flat))
