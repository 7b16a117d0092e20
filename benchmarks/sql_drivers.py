"""How the contestants of the SQL rows are driven: ToonDB embedded and through its daemon, plain SQLite, and sochdb.

SQLite is driven through ``apsw``, the binding that ToonDB uses: the same engine of the same version, on its own file
with a write-ahead log and ``synchronous=FULL``. ``sqlite-tuned`` has ToonDB's page size and cache, the other one has
SQLite's own defaults.

Operations: ``point`` (and ``point_new``, of rows that were not asked for before), ``insert`` (durable, one at a time),
``bulk`` (as many new rows as the run has records, in one transaction; counts rows), ``aggregate`` and ``stream`` (over
the large table; count its rows), ``join``, ``search``, ``mixed`` (a transaction of one row and one key), ``heavy``
(long statements of two kinds), and ``fill`` and ``refill`` for what only looks at the result. A table is made and
filled before the first operation that needs it, and every answer is looked at before anything is timed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, cycle
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, TypeVar

from benchmarks.drivers import DriverError, Loop, scans
from benchmarks.sql_tables import AGGREGATE, CREATE, INSERT, JOIN, POINT, SEARCH, Person, SqlTables
from benchmarks.workload import Workload

__all__ = ["SQL_DRIVERS", "WrongAnswerError"]

T = TypeVar("T")

_TIMEOUT = 60
_RETRY_SECONDS = 0.01
_HEAVY_COUNT = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n"
)
_HEAVY_GROUP = "SELECT city, count(*), avg(length(name)) FROM big GROUP BY city ORDER BY 3"
_KEY_TABLE = "CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"

_bulk_numbers = count()
_new_ids = count(1 << 40)


class WrongAnswerError(DriverError):
    """A contestant answers a statement wrongly, or refuses it."""


def each(call: Callable[[T], object], items: Sequence[T]) -> Loop:
    """Call with one item after the other."""
    endless = cycle(items)

    def loop(deadline: float) -> int:
        clock, done = perf_counter, 0
        for item in endless:
            call(item)
            done += 1
            if clock() >= deadline:
                break
        return done

    return loop


def bulks(store: Callable[[list[Person]], object], tables: SqlTables, size: int) -> Loop:
    """Bulk inserts of new rows in the order of their ids; making the rows is not part of the time."""

    def loop(deadline: float) -> int:
        done, spent = 0, 0.0
        started = perf_counter()
        while True:
            rows = list(tables.people(next(_bulk_numbers) * size, size))
            begun = perf_counter()
            store(rows)
            spent += perf_counter() - begun
            done += size
            if perf_counter() >= deadline:
                # The caller divides by the time of the whole loop.
                return round(done * (perf_counter() - started) / spent)

    return loop


class _SqlStore:
    """A connection to a store that knows SQL."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        self._workload, self._seed = workload, seed
        self._tables = SqlTables(workload)
        self._made: set[str] = set()
        self._unasked: Iterator[int] | None = None
        self._open(address)

    # What a contestant has to say

    def _open(self, address: str) -> None:
        raise NotImplementedError

    def _rows(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a statement."""
        raise NotImplementedError

    def _change(self, sql: str, params: Sequence[object] = ()) -> object:
        """A statement that writes, durable when it returns."""
        raise NotImplementedError

    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> object:
        """A statement for each set of values, in one durable transaction."""
        raise NotImplementedError

    def _stream(self, sql: str) -> Iterable[object]:
        """Rows of a statement as they come."""
        raise NotImplementedError

    def _both(self, sql: str, params: Sequence[object], key: bytes, value: bytes) -> object:
        """A row and a key in one durable transaction."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    # What is the same for all

    def load(self, workload: Workload) -> None:
        """Tables are filled when they are first needed."""

    def _need(self, table: str) -> None:
        """Make a table and fill it, unless it is there."""
        if table in self._made:
            return
        self._change(CREATE[table])
        if self._tables.size(table) and not self._rows(f"SELECT 1 FROM {table} LIMIT 1"):
            for batch in self._tables.batches(table):
                self._many(INSERT[table], batch)
        self._made.add(table)

    def _expect(self, sql: str, params: Sequence[object], given: object, expected: object) -> None:
        if given != expected:
            raise WrongAnswerError(f"{sql} {tuple(params)} gave {given!r} instead of {expected!r}"[:300])

    def loop(self, operation: str) -> Loop:
        """The loop for an operation."""
        make: Callable[[], Loop] | None = getattr(self, f"_loop_{operation}", None)
        if make is None:
            raise DriverError(f"{type(self).__name__} has no operation {operation!r}")
        return make()

    def _loop_point(self) -> Loop:
        self._need("people")
        rows, ids = self._rows, self._tables.sample(self._seed)
        self._expect(POINT, (ids[0],), rows(POINT, (ids[0],)), [self._tables.person(ids[0])[1:4]])
        return each(lambda number: rows(POINT, (number,)), ids)

    def _loop_point_new(self) -> Loop:
        """Rows that were not asked for before, as long as there are any: no cache of replies has them."""
        self._need("people")
        rows, tables = self._rows, self._tables
        if self._unasked is None:
            ids = list(range(tables.size("people")))
            random.Random(self._seed).shuffle(ids)
            self._unasked = cycle(ids)
        ids_left = self._unasked

        def loop(deadline: float) -> int:
            clock, done = perf_counter, 0
            for number in ids_left:
                rows(POINT, (number,))
                done += 1
                if clock() >= deadline:
                    break
            return done

        return loop

    def _loop_insert(self) -> Loop:
        self._need("events")
        change, text, (_, *values) = self._change, INSERT["events"], self._tables.person(0)
        # Without an id: SQLite gives the next, whoever inserts.
        return each(lambda params: change(text, params), [(None, *values)])

    def _loop_bulk(self) -> Loop:
        self._need("bulk")
        return bulks(lambda rows: self._many(INSERT["bulk"], rows), self._tables, self._workload.keys)

    def _loop_aggregate(self) -> Loop:
        self._need("big")
        rows, size = self._rows, self._tables.size("big")
        total = self._tables.score_sum(size)
        given = [round(value, 3) for value in rows(AGGREGATE)[0]]
        self._expect(AGGREGATE, (), given, [size, round(total, 3), round(total / size, 3), 0.0, 99.9])
        return self._counting(lambda: rows(AGGREGATE), size)

    @staticmethod
    def _counting(call: Callable[[], object], size: int) -> Loop:
        once = each(lambda _: call(), (None,))
        return lambda deadline: once(deadline) * size

    def _loop_join(self) -> Loop:
        self._need("people")
        self._need("cities")
        rows = self._rows
        given = rows(JOIN)
        self._expect(JOIN, (), (len(given), sum(row[1] for row in given)), (10, self._tables.size("people")))
        return each(lambda text: rows(text), (JOIN,))

    def _loop_search(self) -> Loop:
        self._need("documents")
        rows, questions = self._rows, self._tables.searches(self._seed)
        if not any(rows(SEARCH, (question,)) for question in questions[:50]):
            raise WrongAnswerError(f"{SEARCH} found nothing for 50 questions")
        return each(lambda question: rows(SEARCH, (question,)), questions)

    def _loop_stream(self) -> Loop:
        self._need("big")
        return scans(lambda: self._stream("SELECT id, name, city, score, note FROM big"), self._tables.size("big"))

    def _loop_stream_part(self) -> Loop:
        self._need("big")
        size = self._tables.size("people")
        text = f"SELECT id, name, city, score, note FROM big WHERE id < {size}"
        return scans(lambda: self._stream(text), size)

    def _loop_mixed(self) -> Loop:
        self._need("events")
        both, text, (_, *values) = self._both, INSERT["events"], self._tables.person(0)
        params, value = (None, *values), self._workload.value
        return each(lambda key: both(text, params, key, value), self._workload.sample(self._seed))

    def _loop_heavy(self) -> Loop:
        self._need("big")
        rows = self._rows
        return each(lambda text: rows(text), (_HEAVY_COUNT if self._seed % 2 else _HEAVY_GROUP,))

    def _loop_fill(self) -> Loop:
        self._need("big")
        return lambda deadline: self._tables.size("big")

    def _loop_refill(self) -> Loop:
        self._need("big")
        size, step = self._tables.size("big"), self._workload.keys
        for start in range(0, size, step):
            self._change("UPDATE big SET score = score + 1 WHERE id >= ? AND id < ?", (start, start + step))
        return lambda deadline: size


class EmbeddedSqlDriver(_SqlStore):
    """``Database.open``; results as tuples, as the peers give them."""

    def _open(self, address: str) -> None:
        from toondb import Database

        self._db: Any = Database.open(address)

    def _rows(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._db.execute_sql(sql, params).tuples
        return rows

    def _change(self, sql: str, params: Sequence[object] = ()) -> object:
        return self._db.execute_sql(sql, params)

    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> object:
        return self._db.executemany(sql, rows)

    def _stream(self, sql: str) -> Iterable[object]:
        rows: Iterable[object] = self._db.stream_sql(sql)
        return rows

    def _both(self, sql: str, params: Sequence[object], key: bytes, value: bytes) -> object:
        with self._db.transaction() as txn:
            txn.execute(sql, params)
            txn.put(key, value)
        return None

    def close(self) -> None:
        self._db.close()


class IpcSqlDriver(EmbeddedSqlDriver):
    """The public synchronous client."""

    def _open(self, address: str) -> None:
        from toondb_client import IpcClient

        self._db = IpcClient.connect(address, timeout=_TIMEOUT)


class SqliteDriver(_SqlStore):
    """SQLite on a file of its own, with its defaults; a key is a row of a table."""

    pragmas: tuple[str, ...] = ()

    def _open(self, address: str) -> None:
        import apsw

        Path(address).mkdir(exist_ok=True)
        self._db: Any = apsw.Connection(f"{address}/sql.sqlite")
        self._db.setbusytimeout(_TIMEOUT * 1000)
        deadline = perf_counter() + _TIMEOUT
        for pragma in (*self.pragmas, "journal_mode=WAL", "synchronous=FULL"):
            while True:
                try:
                    self._db.execute(f"PRAGMA {pragma}").fetchall()
                    break
                except apsw.BusyError:
                    # To change the journal SQLite does not wait for others that do the same.
                    if perf_counter() >= deadline:
                        raise
                    sleep(_RETRY_SECONDS)
        self._db.execute(_KEY_TABLE)

    def _rows(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._db.execute(sql, params).fetchall()
        return rows

    def _change(self, sql: str, params: Sequence[object] = ()) -> object:
        return self._db.execute(sql, params).fetchall()

    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> object:
        with self._db:
            return self._db.executemany(sql, rows).fetchall()

    def _stream(self, sql: str) -> Iterable[object]:
        rows: Iterable[object] = self._db.execute(sql)
        return rows

    def _both(self, sql: str, params: Sequence[object], key: bytes, value: bytes) -> object:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.execute(sql, params)
        db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))
        return db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


class TunedSqliteDriver(SqliteDriver):
    """SQLite with the page size and the cache that ToonDB gives it."""

    pragmas = ("page_size=8192", "cache_size=-32768")


class SochDbSqlDriver(_SqlStore):
    """``sochdb.Database``: no parameters, so values are written into the text, and one INSERT for each row.

    All of its tables have a tenth of the rows: it reads the whole table for a point select too. It is asked for a
    sum, a join and a search on very few rows first, before large tables are filled for an answer that it cannot give.
    """

    def _open(self, address: str) -> None:
        import sochdb

        self._db: Any = sochdb.Database.open(address)
        self._few = Workload(max(1, self._workload.keys // 10), self._workload.value_size)
        self._tables = SqlTables(self._few)

    @staticmethod
    def _text(sql: str, params: Sequence[object]) -> str:
        for value in params:
            sql = sql.replace("?", f"'{value}'" if isinstance(value, str) else str(value), 1)
        return sql

    def _rows(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self._db.execute(self._text(sql, params)).rows]

    def _change(self, sql: str, params: Sequence[object] = ()) -> object:
        return self._db.execute(self._text(sql.replace("IF NOT EXISTS ", ""), params))

    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> object:
        with self._db.transaction() as txn:
            for row in rows:
                txn.execute(self._text(sql, row))
        return None

    def _both(self, sql: str, params: Sequence[object], key: bytes, value: bytes) -> object:
        with self._db.transaction() as txn:
            txn.execute(self._text(sql, params))
            txn.put(key, value)
        return None

    def _loop_bulk(self) -> Loop:
        self._need("bulk")
        return bulks(lambda rows: self._many(INSERT["bulk"], rows), self._tables, self._few.keys)

    def _loop_insert(self) -> Loop:
        self._need("events")
        person = self._tables.person
        return each(lambda text: self._change(text, person(next(_new_ids))), (INSERT["events"],))

    def _loop_mixed(self) -> Loop:
        self._need("events")
        person, value = self._tables.person, self._workload.value
        keys = self._workload.sample(self._seed)
        return each(lambda key: self._both(INSERT["events"], person(next(_new_ids)), key, value), keys)

    def _ask(self, sql: str, expected: list[tuple[object, ...]]) -> None:
        """A question whose answer tells whether to fill large tables."""
        try:
            given = self._rows(sql)
        except Exception as error:
            raise WrongAnswerError(f"{sql} is refused: {error}") from None
        self._expect(sql, (), given, expected)

    def _loop_aggregate(self) -> Loop:
        self._change(CREATE["people"])
        for person in self._tables.people(0, 3):
            self._change(INSERT["people"], person)
        self._ask("SELECT count(*), sum(score) FROM people", [(3, 11.1)])
        return super()._loop_aggregate()

    def _loop_join(self) -> Loop:
        self._change(CREATE["cities"])
        self._change(CREATE["people"])
        self._change(INSERT["cities"], ("city 0", "country 0"))
        self._change(INSERT["people"], self._tables.person(0))
        self._ask("SELECT c.country FROM people p JOIN cities c ON c.name = p.city WHERE p.id = 0", [("country 0",)])
        return super()._loop_join()

    def _loop_search(self) -> Loop:
        try:
            self._change(CREATE["documents"])
        except Exception as error:
            raise WrongAnswerError(f"{CREATE['documents']} is refused: {error}") from None
        return super()._loop_search()

    def close(self) -> None:
        self._db.close()


SQL_DRIVERS: dict[str, type[_SqlStore]] = {
    "sql-embedded": EmbeddedSqlDriver,
    "sql-ipc": IpcSqlDriver,
    "sql-sqlite": SqliteDriver,
    "sql-sqlite-tuned": TunedSqliteDriver,
    "sql-sochdb": SochDbSqlDriver,
}
"""Drivers by name."""
