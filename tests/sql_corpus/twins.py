"""ToonDB and Python's ``sqlite3`` side by side: each statement runs on both, and must do the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from toondb_protocol.errors import SqlConstraintError, SqlError, SqlForbiddenError, SqlInterruptedError, ValidationError
from toondb_protocol.store import Store

__all__ = ["Done", "Twins"]

# What sqlite3 raises where ToonDB refuses a statement or its values.
_REFUSALS = (sqlite3.Error, sqlite3.Warning, TypeError, ValueError, OverflowError, LookupError)


class Done(NamedTuple):
    """What a statement did.

    Attributes:
        error: ``constraint``, ``refused`` or, when it succeeded, empty.
        columns: Names of the columns.
        rows: The rows, and beside each value its type.
        changed: Rows that it inserted, changed or deleted.
    """

    error: str
    columns: list[str]
    rows: list[list[tuple[str, Any]]]
    changed: int

    @property
    def values(self) -> list[tuple[Any, ...]]:
        """The rows without the types."""
        return [tuple(value for _, value in row) for row in self.rows]


class Twins:
    """A store of ToonDB and a connection of ``sqlite3`` that are told the same.

    Args:
        store: A database, a client or a transaction.
        lite: A connection that commits each statement by itself, or has a transaction open.
    """

    def __init__(self, store: Store, lite: sqlite3.Connection) -> None:
        self.store = store
        self.lite = lite

    def run(self, sql: str, params: Any = None) -> Done:
        """Run a statement on both, which must do the same, and that without an error."""
        done = self.attempt(sql, params)
        assert not done.error, f"{sql!r} is refused by both"
        return done

    def attempt(self, sql: str, params: Any = None) -> Done:
        """Run a statement on both, which must do the same or fail in the same way."""
        ours, theirs = self.ours(sql, params), self.theirs(sql, params)
        assert ours == theirs, f"{sql!r} with {params!r}"
        return ours

    def run_many(self, sql: str, params: Sequence[Sequence[Any] | Mapping[str, Any]]) -> Done:
        """Run a statement for each set of values on both, which must do the same."""
        try:
            result = self.store.executemany(sql, iter(params))
            ours = Done("", [], [], result.rows_affected)
        except (SqlError, ValidationError) as exc:
            ours = _failed(exc)
        before = self.lite.total_changes
        # ToonDB keeps nothing of one that fails; sqlite3 leaves that to the transaction of the caller.
        self.lite.execute("SAVEPOINT many")
        try:
            cursor = self.lite.executemany(sql, iter(params))
            theirs = Done("", [], [], max(cursor.rowcount, 0))
        except _REFUSALS as exc:
            theirs = _failed(exc)
            self.lite.execute("ROLLBACK TO many")
        self.lite.execute("RELEASE many")
        assert ours == theirs, f"{sql!r} with {params!r}, {self.lite.total_changes - before} changes"
        return ours

    def script(self, sql: str) -> None:
        """Run a script on both, without an error."""
        self.store.execute_script(sql)
        # Not executescript, which ends the transaction.
        statement = ""
        for piece in sql.split(";"):
            statement += f"{piece};"
            if sqlite3.complete_statement(statement):
                self.lite.execute(statement)
                statement = ""

    def ours(self, sql: str, params: Any = None) -> Done:
        """Run a statement on ToonDB."""
        try:
            result = self.store.execute_sql(sql, params)
        except (SqlError, ValidationError) as exc:
            return _failed(exc)
        return Done("", result.columns, _typed(result.tuples), result.rows_affected)

    def theirs(self, sql: str, params: Any = None) -> Done:
        """Run a statement on sqlite3."""
        try:
            cursor = self.lite.execute(sql) if params is None else self.lite.execute(sql, params)
            rows = cursor.fetchall()
        except _REFUSALS as exc:
            return _failed(exc)
        names = [column[0] for column in cursor.description or ()]
        # The one difference of names: the second of two alike is named apart.
        columns = [f"{name}:{names[:at].count(name)}" if name in names[:at] else name for at, name in enumerate(names)]
        return Done("", columns, _typed(rows), max(cursor.rowcount, 0))

    def same_tables(self) -> None:
        """Assert that all tables have the same columns and rows in both."""
        schema = self.run("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").values
        for kind, name, *_ in schema:
            if kind in ("table", "view"):
                self.run(f'SELECT * FROM "{name}"')


def _failed(exc: Exception) -> Done:
    assert not isinstance(exc, (SqlForbiddenError, SqlInterruptedError)), exc
    constraint = isinstance(exc, (SqlConstraintError, sqlite3.IntegrityError))
    return Done("constraint" if constraint else "refused", [], [], 0)


def _typed(rows: Iterable[tuple[Any, ...]]) -> list[list[tuple[str, Any]]]:
    """With types, as 1 == 1.0 == True; the zeros and NaN of floats differ in their texts."""
    return [
        [(type(value).__name__, repr(value) if isinstance(value, float) else value) for value in row] for row in rows
    ]
