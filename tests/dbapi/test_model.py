"""The driver beside the ``sqlite3`` module of the standard library: the same calls give the same rows and errors."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dbapi.conftest import drop_all
from tests.support.daemon import Daemon
from toondb import Database, dbapi

SCHEMA = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b TEXT UNIQUE CHECK (b <> 'bad'), c REAL NOT NULL DEFAULT 0)",
    "CREATE TABLE log (id, what)",
)

VALUES = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    | st.binary(max_size=8)
)
IDS = st.integers(1, 6) | st.none()
NAMES = st.sampled_from(["x", "y", "z", "bad"]) | st.none()

RUN = st.one_of(
    st.tuples(st.just("INSERT INTO t (id, a, b) VALUES (?, ?, ?)"), st.tuples(IDS, VALUES, NAMES)),
    st.tuples(st.just("INSERT OR IGNORE INTO t (id, a, b) VALUES (?, ?, ?)"), st.tuples(IDS, VALUES, NAMES)),
    st.tuples(st.just("REPLACE INTO t (id, b) VALUES (:id, :b)"), st.fixed_dictionaries({"id": IDS, "b": NAMES})),
    st.tuples(st.just("UPDATE t SET a = ?, c = c + 1 WHERE id >= ?"), st.tuples(VALUES, IDS)),
    st.tuples(st.just("UPDATE t SET b = ? WHERE id = ?"), st.tuples(NAMES, IDS)),
    st.tuples(st.just("UPDATE t SET c = NULL WHERE id = ?"), st.tuples(IDS)),
    st.tuples(st.just("DELETE FROM t WHERE b = :b"), st.fixed_dictionaries({"b": NAMES})),
    st.tuples(st.just("INSERT INTO t (a) VALUES (?) RETURNING id, a, typeof(a)"), st.tuples(VALUES)),
    st.tuples(
        st.just("WITH w AS (SELECT max(id) AS m FROM t) DELETE FROM t WHERE id = (SELECT m FROM w)"), st.just(())
    ),
    st.tuples(st.just("SELECT *, typeof(a) FROM t ORDER BY id"), st.just(())),
    st.tuples(st.just("SELECT count(*) AS n, sum(c) FROM t WHERE a IS ?"), st.tuples(VALUES)),
    st.tuples(st.just("SELECT ?1 AS a, ?2 AS b, ?1 AS c"), st.tuples(VALUES, VALUES)),
    st.tuples(st.just("INSERT INTO nowhere VALUES (?)"), st.tuples(VALUES)),
    st.tuples(st.just("SELECT id FROM t WHERE id = ?"), st.just(())),
    st.tuples(st.just("CREATE TABLE more (a)"), st.just(())),
    st.tuples(st.just("DROP TABLE more"), st.just(())),
)
STEPS = st.one_of(
    st.tuples(st.just("execute"), RUN),
    st.tuples(
        st.just("executemany"),
        st.tuples(
            st.just("INSERT INTO t (id, a, b) VALUES (?, ?, ?)"),
            st.lists(st.tuples(IDS, VALUES, NAMES), max_size=4),
        ),
    ),
    st.tuples(st.sampled_from(["commit", "rollback"]), st.none()),
    st.tuples(st.just("savepoint"), st.sampled_from(["SAVEPOINT s", "ROLLBACK TO s", "RELEASE s"])),
)


class Twin:
    """One driver; what a step gives, in terms that both share."""

    def __init__(self, connection: Any, module: Any) -> None:
        self.connection = connection
        self.module = module
        self.cursor = connection.cursor()

    def step(self, what: str, argument: Any) -> Any:
        try:
            return self._step(what, argument)
        except self.module.IntegrityError:
            return "integrity"
        except self.module.DatabaseError:
            return "refused"

    def _step(self, what: str, argument: Any) -> Any:
        cursor = self.cursor
        if what in ("commit", "rollback"):
            return getattr(self.connection, what)()
        if what == "savepoint":
            cursor.execute(argument)
            return None
        if what == "executemany":
            # All or nothing, which sqlite3 leaves to its caller.
            cursor.execute("SAVEPOINT many")
            try:
                return cursor.executemany(*argument).rowcount
            except self.module.DatabaseError:
                cursor.execute("ROLLBACK TO many")
                raise
            finally:
                cursor.execute("RELEASE many")
        cursor.execute(*argument)
        if cursor.description is None:
            changes = argument[0].split()[0] in ("INSERT", "REPLACE", "UPDATE", "DELETE")
            return (cursor.rowcount if changes else None, inserted(argument[0], cursor))
        # How many rows RETURNING changed is known to sqlite3 only when they have been fetched; after WITH it never is.
        return [column[0] for column in cursor.description], [(*row, *map(type, row)) for row in cursor]

    def contents(self) -> Any:
        rows = self.connection.execute("SELECT * FROM t ORDER BY id").fetchall()
        tables = self.connection.execute("SELECT name FROM sqlite_schema ORDER BY name").fetchall()
        return rows, tables


def inserted(sql: str, cursor: Any) -> Any:
    """The new row id, where there is one: after another statement it differs between drivers."""
    return cursor.lastrowid if sql.startswith(("INSERT", "REPLACE")) and cursor.rowcount == 1 else None


@pytest.fixture(scope="module", params=["embedded", "daemon"])
def store(request: pytest.FixtureRequest) -> Any:
    with contextlib.ExitStack() as stack:
        if request.param == "daemon":
            daemon: Daemon = request.getfixturevalue("served")
            yield daemon.socket
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="toondb-"))
        yield stack.enter_context(Database.open(Path(folder) / "db", {"sync_mode": "off"}))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=15))
def test_the_same_calls_give_the_same(store: Any, steps: list[tuple[str, Any]]) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.closing(dbapi.connect(store, autocommit=True)) as cleaner:
            drop_all(cleaner)
        ours = Twin(stack.enter_context(contextlib.closing(dbapi.connect(store))), dbapi)
        theirs = Twin(
            stack.enter_context(contextlib.closing(sqlite3.connect(":memory:", isolation_level=None))), sqlite3
        )
        for twin in (ours, theirs):
            for table in SCHEMA:
                twin.cursor.execute(table)
            twin.connection.commit()
        begun = False
        for what, argument in steps:
            # A transaction begins with the first statement here, and when it is told to there.
            if what in ("commit", "rollback"):
                begun = False
            elif not begun:
                theirs.cursor.execute("BEGIN")
                begun = True
            assert ours.step(what, argument) == theirs.step(what, argument), (what, argument)
        assert ours.contents() == theirs.contents()
        for twin in (ours, theirs):
            twin.connection.rollback()
        assert ours.contents() == theirs.contents()
