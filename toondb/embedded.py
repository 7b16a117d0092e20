"""The embedded store: the methods of a :class:`Store` on the engine in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from toondb.engine.conditional import CompareAndSet, Conditional, Expire, Increment, expires_in
from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction as EngineTransaction
from toondb.engine.write_set import Scan
from toondb.query import PrefixQuery, View
from toondb.sql.page_keys import FIRST_PAGE
from toondb_protocol.arguments import (
    Items,
    ScanRange,
    answer_by_given,
    given_keys,
    integer,
    ms_or_none,
    new_ttl_ms,
    pairs_as_dict,
    ttl_to_ms,
    value_or_none,
)
from toondb_protocol.collections import HasCollections
from toondb_protocol.columns import Columns, given_columns
from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_value, prefix_end
from toondb_protocol.paths import path_key
from toondb_protocol.query_builder import QueryAnswer
from toondb_protocol.record import Expiring, now_ms
from toondb_protocol.rows import Row
from toondb_protocol.sql_result import SQLQueryResult
from toondb_protocol.sql_values import SqlParameters, given_parameters, given_sql, parameter_sets
from toondb_protocol.store import Store

if TYPE_CHECKING:
    from toondb.collections.opening import LazyCollections
    from toondb.sql.connection import Outcome
    from toondb.sql.engine import SqlEngine, SqlSession
    from toondb.sql.opening import LazySql
    from toondb.sql.table import TableRows

__all__ = [
    "Counters",
    "EmbeddedStore",
    "TransactionStore",
    "answer_query",
    "check_ttl",
    "delete_below",
    "has_tables",
    "pairs_of",
    "put_pairs",
    "seconds_left",
    "timed",
]

T = TypeVar("T")

_FIRST_ROWS = 16
_BATCH_ROWS = 512
_BATCH_BYTES = 1 << 20


class Counters(Protocol):
    """What a store counts."""

    bytes_read: int
    queries_executed: int


class Answer(NamedTuple):
    """The answer to a query."""

    batches: list[list[bytes]]
    rows: int


def timed(value: bytes, ttl: float | None) -> bytes:
    """A value as one that expires, when it has a time to live."""
    return value if ttl is None else expires_in(value, ttl_to_ms(ttl))


def check_ttl(ttl: float | None) -> None:
    """Raise ValidationError for a time to live that cannot be, also when nothing is written with it."""
    ms_or_none(ttl)


def seconds_left(value: bytes | None, expires_ms: int | None) -> float | None:
    """What ``ttl()`` answers."""
    return None if value is None or expires_ms is None else max(0, expires_ms - now_ms()) / 1000


def pairs_of(scan: Scan, limit: int, batch_rows: int, counters: Counters) -> Iterator[list[tuple[bytes, bytes]]]:
    """The pairs of a scan in batches, ``limit`` 0 = all; the scan is given up when the iteration ends."""
    rows = batch_rows or _BATCH_ROWS
    left = limit
    try:
        while not scan.exhausted:
            batch = scan.pairs(min(rows, left) if limit else rows, _BATCH_BYTES)
            counters.bytes_read += sum([len(value) for _, value in batch])
            yield batch
            if limit:
                left -= len(batch)
                if not left:
                    return
    finally:
        scan.close()


def delete_below(inner: EngineTransaction, key: bytes) -> None:
    """Delete the key of a path and every key below it, inside a transaction."""
    inner.delete(key)
    scan = inner.scan(key + b"/", prefix_end(key + b"/"), values=False)
    try:
        while not scan.exhausted:
            for name in scan.batch(_BATCH_ROWS, _BATCH_BYTES)[::2]:
                inner.delete(name)
    finally:
        scan.close()


def answer_query(view: View, body: Mapping[str, Any], counters: Counters, table: TableRows | None) -> Answer:
    """Run what a query builder asks; ``body`` has the keys of an extended QUERY, ``table`` is what its prefix names."""
    counters.queries_executed += 1
    query = PrefixQuery(
        body["prefix"],
        columns=body.get("columns", ()),
        limit=body.get("limit", 0),
        offset=body.get("offset", 0),
        where=body.get("where"),
        table=table,
    )
    if body["form"] == "count":
        for _ in query.count(view):
            pass
        return Answer([], query.row_count)
    steps: Iterable[list[bytes]]
    if body["form"] == "rows":
        steps = query.rows(view)
    else:
        steps = ([] if part is None else [part] for part in query.toon(view))
    batches = [step for step in steps if step]
    return Answer(batches, query.row_count)


class EmbeddedStore(Store, HasCollections):
    """What a database and its transactions have in common."""

    def _batches(self, scan: ScanRange) -> Iterator[list[tuple[bytes, bytes]]]:
        """The pairs of a range in batches; the scan begins with the first step."""
        raise NotImplementedError

    def _scan(self, scan: ScanRange) -> Iterator[Row]:
        for batch in self._batches(scan):
            yield from map(Row, batch)

    def _scan_plain(self, scan: ScanRange) -> Iterator[tuple[bytes, bytes]]:
        for batch in self._batches(scan):
            yield from batch

    def compare_and_set(
        self, key: KeyLike, expected: BytesLike | None, new: BytesLike | None, *, ttl: float | None = None
    ) -> bool:
        unit = CompareAndSet(as_key(key), value_or_none(expected), value_or_none(new), new_ttl_ms(new, ttl))
        return bool(self._decide(unit))

    def increment(self, key: KeyLike, by: int = 1) -> int:
        return int(self._decide(Increment(as_key(key), integer("by", by))))

    def expire(self, key: KeyLike, ttl: float | None) -> bool:
        return bool(self._decide(Expire(as_key(key), ms_or_none(ttl))))

    def _decide(self, unit: Conditional) -> Any:
        """Apply a write that depends on what is there; answers its result."""
        raise NotImplementedError

    # SQL

    def _with_sql(self, action: Callable[[SqlEngine | SqlSession], T]) -> T:
        """Do something with the SQL of this store."""
        raise NotImplementedError

    def execute_sql(self, sql: str, params: SqlParameters = None) -> SQLQueryResult:
        text, values = given_sql(sql), given_parameters(params)
        return _result(self._with_sql(lambda runner: runner.execute(text, values)))

    def executemany(self, sql: str, params: Iterable[SqlParameters]) -> SQLQueryResult:
        text, values = given_sql(sql), parameter_sets(params)
        return _result(self._with_sql(lambda runner: runner.execute_many(text, values)))

    def execute_script(self, sql: str) -> SQLQueryResult:
        text = given_sql(sql)
        return _result(self._with_sql(lambda runner: runner.execute_script(text)))

    def _sql_batches(self, sql: str, params: SqlParameters) -> Generator[list[Any], None, None]:
        return self._row_batches(given_sql(sql), given_parameters(params))

    def _row_batches(self, text: str, values: Any) -> Generator[list[Any], None, None]:
        stream = self._with_sql(lambda runner: runner.stream(text, values))
        try:
            yield stream.columns
            count = _FIRST_ROWS
            while True:
                rows = stream.fetch(count)
                if rows:
                    yield rows
                if stream.ended:
                    return
                count = min(2 * count, _BATCH_ROWS)
        finally:
            stream.close()

    def create_table(self, name: str, columns: Columns) -> None:
        from toondb.sql.table import check_schema, create_table

        fields = given_columns(name, columns)
        schema = check_schema(name, [(field["name"], field["type"], field["nullable"]) for field in fields])
        self._with_sql(lambda runner: create_table(runner, schema))


def _result(outcome: Outcome) -> SQLQueryResult:
    return SQLQueryResult(*outcome)


class TransactionStore(EmbeddedStore):
    """The methods of a store inside a transaction of the engine. Safe to share between threads."""

    def __init__(
        self, inner: EngineTransaction, counters: Counters, sql: LazySql, collections: LazyCollections
    ) -> None:
        self._inner = inner
        self._counters = counters
        self._sql = sql
        self._collections = collections
        # The engine's transactions are used by one thread at a time.
        self._guard = threading.RLock()

    def get(self, key: KeyLike) -> bytes | None:
        with self._guard:
            value = self._inner.get(as_key(key))
        if value is not None:
            self._counters.bytes_read += len(value)
        return value

    def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> None:
        if type(key) is not bytes or type(value) is not bytes or ttl is not None:
            key, value = as_key(key), timed(as_value(value), ttl)
        with self._guard:
            self._inner.put(key, value)

    def delete(self, key: KeyLike) -> None:
        with self._guard:
            self._inner.delete(as_key(key))

    def exists(self, key: KeyLike) -> bool:
        with self._guard:
            return self._inner.get(as_key(key)) is not None

    def _decide(self, unit: Conditional) -> Any:
        with self._guard:
            return unit.apply_in(self._inner)

    def ttl(self, key: KeyLike) -> float | None:
        with self._guard:
            return seconds_left(*self._inner.get_with_expiry(as_key(key)))

    def delete_path(self, path: str | Sequence[str], *, recursive: bool = False) -> None:
        key = as_key(path_key(path))
        with self._guard:
            if recursive:
                delete_below(self._inner, key)
            else:
                self._inner.delete(key)

    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        given = given_keys(keys)
        with self._guard:
            found = {name: value for name, _ in given if (value := self._inner.get(name)) is not None}
        self._counters.bytes_read += sum(map(len, found.values()))
        return answer_by_given(given, found)

    def put_many(self, items: Items, *, ttl: float | None = None) -> int:
        check_ttl(ttl)
        values, count = pairs_as_dict(items)
        with self._guard:
            put_pairs(self._inner, values, ttl)
        return count

    def delete_many(self, keys: Iterable[KeyLike]) -> int:
        names = [name for name, _ in given_keys(keys)]
        with self._guard:
            for name in names:
                self._inner.delete(name)
        return len(names)

    def _batches(self, scan: ScanRange) -> Iterator[list[tuple[bytes, bytes]]]:
        with self._guard:
            opened = self._inner.scan(scan.start, scan.end, reverse=scan.reverse)
        yield from pairs_of(opened, scan.limit, scan.batch, self._counters)

    def _with_sql(self, action: Callable[[SqlEngine | SqlSession], T]) -> T:
        with self._guard:
            self._inner.check_active()
            return action(self._sql().session(self._inner))

    def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        with self._guard:
            self._inner.check_active()
            return self._collections().operate(operation, arguments, self._inner)

    def _answer_query(self, body: Mapping[str, Any]) -> QueryAnswer:
        with self._guard:
            table = None
            if self._inner.attachment is not None or has_tables(self._inner.snapshot):
                from toondb.sql.table import find_table

                table = self._with_sql(lambda runner: find_table(runner, body["prefix"]))
            return answer_query(self._inner, body, self._counters, table)


def has_tables(snapshot: Snapshot) -> bool:
    """Whether SQL has ever written anything."""
    return snapshot.record(Space.SQL, FIRST_PAGE) is not None


def put_pairs(transaction: EngineTransaction, values: dict[bytes, bytes], ttl: float | None) -> None:
    """Write pairs inside a transaction; all of them expire at the same moment."""
    if ttl is None:
        transaction.put_all(values)
        return
    expires_ms = now_ms() + ttl_to_ms(ttl)
    for key, value in values.items():
        transaction.put(key, Expiring(value, expires_ms))
