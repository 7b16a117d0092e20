"""SQL on the pages of the store: results as SQLite gives them, commits with keys, conflicts, limits."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toondb.engine import maintenance
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, Isolation, SyncMode
from toondb.sql.cancel import Cancel, cancelled_by
from toondb.sql.engine import SqlEngine
from toondb.sql.options import SqlOptions
from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    SqlInterruptedError,
    TransactionConflictError,
    TransactionError,
    TransactionTooLargeError,
    ValidationError,
)

FAST = EngineOptions(sync_mode=SyncMode.OFF)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", FAST) as engine:
        yield engine


@pytest.fixture
def sql(engine: Engine) -> Iterator[SqlEngine]:
    sql = SqlEngine(engine)
    yield sql
    sql.close()


def rows(sql: Any, text: str, values: Any = None) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = sql.execute(text, values).rows
    return found


def test_what_sqlite_can_do(sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE, age INTEGER)")
    done = sql.execute("INSERT INTO users (name, email, age) VALUES ('Ann', 'a@x', 30), ('Bob', 'b@x', 25)")
    assert (done.rows_affected, done.last_row_id, done.rows, done.columns) == (2, 2, [], [])
    found = sql.execute("SELECT * FROM users WHERE age > :least ORDER BY id", {"least": 26})
    assert found.columns == ["id", "name", "email", "age"]
    assert found.rows == [(1, "Ann", "a@x", 30)]
    assert found.rows_affected == 0
    assert sql.execute("SELECT * FROM users WHERE 0").columns == ["id", "name", "email", "age"]
    assert sql.execute("SELECT u.id, v.id FROM users u JOIN users v ON u.id = v.id").columns == ["id", "id:1"]
    assert rows(sql, "INSERT INTO users (name) VALUES ('Eve') RETURNING id, name") == [(3, "Eve")]
    assert rows(sql, "SELECT sum(age) OVER (ORDER BY id) FROM users") == [(30,), (55,), (55,)]
    assert rows(sql, "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5) SELECT sum(x) FROM n")
    sql.execute("INSERT INTO users (id, name) VALUES (1, 'Anna') ON CONFLICT (id) DO UPDATE SET name = excluded.name")
    assert rows(sql, "SELECT name FROM users WHERE id = 1") == [("Anna",)]
    sql.execute("CREATE VIRTUAL TABLE texts USING fts5(body)")
    sql.execute("INSERT INTO texts VALUES ('the quick brown fox'), ('lazy dogs')")
    assert rows(sql, "SELECT rowid FROM texts WHERE texts MATCH 'fox' ORDER BY bm25(texts)") == [(1,)]
    assert rows(sql, """SELECT json_extract('{"a": [1, 2]}', '$.a[1]')""") == [(2,)]
    sql.execute("ALTER TABLE users ADD COLUMN city TEXT DEFAULT 'Rome'")
    assert sql.execute("SELECT * FROM users WHERE id = 1").columns[-1] == "city"
    assert rows(sql, "PRAGMA integrity_check") == [("ok",)]


def test_columns_follow_the_schema(sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a)")
    for _ in range(3):
        assert sql.execute("SELECT * FROM t").columns == ["a"]
    sql.execute("ALTER TABLE t ADD COLUMN b")
    assert sql.execute("SELECT * FROM t").columns == ["a", "b"]


def test_a_commit_holds_keys_and_rows(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a UNIQUE)")
    transaction = engine.begin()
    session = sql.session(transaction)
    transaction.put(b"k", b"v")
    session.execute("INSERT INTO t VALUES (1)")
    assert rows(session, "SELECT a FROM t") == [(1,)]
    assert rows(sql, "SELECT a FROM t") == []
    engine.commit(transaction)
    assert (engine.get(b"k"), rows(sql, "SELECT a FROM t")) == (b"v", [(1,)])
    transaction = engine.begin()
    sql.session(transaction).execute("INSERT INTO t VALUES (2)")
    transaction.put(b"k", b"w")
    engine.abort(transaction)
    assert (engine.get(b"k"), rows(sql, "SELECT a FROM t")) == (b"v", [(1,)])


def test_a_failed_statement_changes_nothing(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a UNIQUE)")
    transaction = engine.begin()
    session = sql.session(transaction)
    session.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(SqlConstraintError, match=r"UNIQUE constraint failed: t\.a"):
        session.execute("INSERT INTO t VALUES (2), (3), (1)")
    with pytest.raises(SqlConstraintError):
        session.execute_many("INSERT INTO t VALUES (?)", [(4,), (5,), (1,)])
    assert rows(session, "SELECT a FROM t") == [(1,)]
    session.execute("SAVEPOINT s")
    session.execute("DELETE FROM t")
    session.execute("ROLLBACK TO s")
    engine.commit(transaction)
    assert rows(sql, "SELECT a FROM t") == [(1,)]


def test_conflicts(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a)")
    late, early = engine.begin(), engine.begin()
    sql.session(late).execute("INSERT INTO t VALUES ('late')")
    sql.session(early).execute("INSERT INTO t VALUES ('early')")
    engine.commit(early)
    with pytest.raises(TransactionConflictError, match="wrote SQL tables") as caught:
        engine.commit(late)
    assert "key" not in caught.value.details
    stale = engine.begin()
    sql.execute("INSERT INTO t VALUES ('other')")
    session = sql.session(stale)
    assert rows(session, "SELECT a FROM t") == [("early",)]
    with pytest.raises(TransactionConflictError, match="SQL tables"):
        session.execute("INSERT INTO t VALUES ('stale')")
    engine.abort(stale)
    # The same pages were written by the one that failed: what SQLite keeps of them must not be used.
    assert rows(sql, "SELECT a FROM t") == [("early",), ("other",)]
    assert rows(sql, "PRAGMA integrity_check") == [("ok",)]


def test_a_serializable_transaction_depends_on_what_it_read(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a)")
    transaction = engine.begin(Isolation.SERIALIZABLE)
    assert rows(sql.session(transaction), "SELECT count(*) FROM t") == [(0,)]
    transaction.put(b"count", b"0")
    sql.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(TransactionConflictError):
        engine.commit(transaction)


def test_a_read_only_transaction(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a)")
    transaction = engine.begin(read_only=True)
    session = sql.session(transaction)
    with pytest.raises(TransactionError, match="read-only"):
        session.execute("INSERT INTO t VALUES (1)")
    assert rows(session, "SELECT * FROM t") == []
    engine.abort(transaction)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("SELECT * FROM missing", SqlError, "no such table: missing"),
        ("SELEC 1", SqlError, "syntax error"),
        ("SELECT 1; SELECT 2", SqlError, "more than one statement"),
        ("BEGIN", SqlForbiddenError, r"transaction\(\)"),
        ("COMMIT", SqlForbiddenError, r"transaction\(\)"),
        ("ROLLBACK", SqlForbiddenError, r"transaction\(\)"),
        ("SAVEPOINT s", SqlForbiddenError, "needs a transaction"),
        ("ATTACH '/tmp/x' AS x", SqlForbiddenError, "no access to files"),
        ("DETACH main", SqlForbiddenError, "DETACH"),
        ("PRAGMA journal_mode = DELETE", SqlForbiddenError, "journal_mode"),
        ("PRAGMA writable_schema = ON", SqlForbiddenError, "writable_schema"),
        ("PRAGMA foreign_keys = ON", SqlForbiddenError, "--foreign-keys"),
        ("PRAGMA case_sensitive_like = ON", SqlForbiddenError, "case_sensitive_like"),
        ("SELECT load_extension('x')", SqlError, "load_extension"),
        ("CREATE VIRTUAL TABLE v USING dbstat", SqlForbiddenError, "dbstat"),
        ("VACUUM INTO '/tmp/x'", SqlError, "VACUUM"),
        ("CREATE TEMP TABLE t (a)", SqlForbiddenError, "'t' is forbidden"),
        ("VACUUM", SqlForbiddenError, "compact"),
    ],
)
def test_what_is_refused(sql: SqlEngine, text: str, error: type[Exception], says: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=says):
            sql.execute(text)
    assert rows(sql, "SELECT 1 /* and a comment */ ; -- at the end") == [(1,)]


@pytest.mark.parametrize("values", [[1], [1, 2, 3], {"a": 1}, [object(), 1], 5, "ab"])
def test_values_that_do_not_fit(sql: SqlEngine, values: Any) -> None:
    if values == "ab":
        return  # a sequence of two
    with pytest.raises((ValidationError, SqlError)):
        sql.execute("SELECT ?, ?", values)


def test_a_statement_has_its_time(engine: Engine) -> None:
    sql = SqlEngine(engine, SqlOptions(statement_seconds=0.05))
    forever = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(SqlInterruptedError, match="longer than it may"):
        sql.execute(forever)
    assert rows(sql, "SELECT 1") == [(1,)]
    transaction = engine.begin()
    session = sql.session(transaction)
    sql.seconds = None
    timer = threading.Timer(0.05, session.interrupt)
    timer.start()
    with pytest.raises(SqlInterruptedError, match="interrupted"):
        session.execute(forever)
    timer.join()
    engine.abort(transaction)
    sql.close()


def test_a_transaction_that_is_too_large(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF, max_transaction_bytes=1 << 20)) as engine:
        sql = SqlEngine(engine)
        sql.execute("CREATE TABLE t (a)")
        with pytest.raises(TransactionTooLargeError):
            sql.execute_many("INSERT INTO t VALUES (?)", [(b"x" * 5000,) for _ in range(400)])
        assert rows(sql, "SELECT count(*) FROM t") == [(0,)]
        assert rows(sql, "PRAGMA integrity_check") == [("ok",)]
        sql.close()


def test_a_store_that_shrinks(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE t (a)")
    sql.execute_many("INSERT INTO t VALUES (?)", [("x" * 500,) for _ in range(5000)])
    sql.execute("DROP TABLE t")
    sql.execute("CREATE TABLE u (a)")
    sql.execute("INSERT INTO u VALUES (1)")
    assert rows(sql, "PRAGMA integrity_check") == [("ok",)]


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    with Engine(tmp_path / "db") as engine:
        sql = SqlEngine(engine)
        sql.execute("CREATE TABLE t (a)")
        sql.execute_many("INSERT INTO t VALUES (?)", [(n,) for n in range(1000)])
        sql.close()
    assert maintenance.check(tmp_path / "db").ok
    with Engine(tmp_path / "db") as engine:
        sql = SqlEngine(engine)
        assert rows(sql, "SELECT sum(a) FROM t") == [(499500,)]
        assert rows(sql, "PRAGMA page_size") == [(8192,)]
        sql.close()


def test_readers_and_writers_of_many_threads(engine: Engine, sql: SqlEngine) -> None:
    sql.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER)")
    sql.execute_many("INSERT INTO accounts VALUES (?, 100)", [(n,) for n in range(10)])
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(seed: int) -> None:
        try:
            for n in range(40):
                a, b = (seed + n) % 10, (seed * 3 + n * 7 + 1) % 10
                if n % 2:
                    sql.execute(
                        "UPDATE accounts SET balance = balance + CASE id WHEN ? THEN -1 ELSE 1 END WHERE id IN (?, ?) "
                        "AND ? <> ?",
                        (a, a, b, a, b),
                    )
                    continue
                while True:
                    transaction = engine.begin()
                    session = sql.session(transaction)
                    try:
                        session.execute("UPDATE accounts SET balance = balance - 1 WHERE id = ?", (a,))
                        session.execute("UPDATE accounts SET balance = balance + 1 WHERE id = ?", (b,))
                        engine.commit(transaction)
                        break
                    except TransactionConflictError:
                        engine.abort(transaction)
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            while not stop.is_set():
                assert rows(sql, "SELECT sum(balance), count(*) FROM accounts") == [(1000, 10)]
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    assert failures == []
    assert rows(sql, "SELECT sum(balance) FROM accounts") == [(1000,)]
    assert rows(sql, "PRAGMA integrity_check") == [("ok",)]


VALUES = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=4), st.binary(max_size=4), st.floats(-2, 2))
STATEMENTS = st.one_of(
    st.tuples(st.just("INSERT INTO t VALUES (?, ?)"), st.tuples(st.integers(0, 8), VALUES)),
    st.tuples(st.just("INSERT OR REPLACE INTO t VALUES (?, ?)"), st.tuples(st.integers(0, 8), VALUES)),
    st.tuples(st.just("UPDATE t SET b = ? WHERE a < ?"), st.tuples(VALUES, st.integers(0, 8))),
    st.tuples(st.just("UPDATE t SET a = a + ?"), st.tuples(st.integers(-1, 1))),
    st.tuples(st.just("DELETE FROM t WHERE a = ?"), st.tuples(st.integers(0, 8))),
    st.tuples(st.just("INSERT INTO t SELECT a + 10, b FROM t WHERE a > ?"), st.tuples(st.integers(0, 8))),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["alone", "commit", "abort"]), st.lists(STATEMENTS, max_size=4)), max_size=8))
def test_it_agrees_with_sqlite(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    model = sqlite3.connect(":memory:", isolation_level=None)
    with Engine(tmp_path_factory.mktemp("model") / "db", FAST) as engine:
        sql = SqlEngine(engine)
        for each in (model, sql):
            each.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b UNIQUE)")
        for how, statements in steps:
            if how == "alone":
                for text, values in statements:
                    _both(model, sql, text, values)
                continue
            model.execute("BEGIN")
            transaction = engine.begin()
            session = sql.session(transaction)
            for text, values in statements:
                _both(model, session, text, values)
            if how == "commit":
                model.execute("COMMIT")
                engine.commit(transaction)
            else:
                model.execute("ROLLBACK")
                engine.abort(transaction)
            assert rows(sql, "SELECT * FROM t") == model.execute("SELECT * FROM t").fetchall()
        assert rows(sql, "PRAGMA integrity_check") == [("ok",)]
        sql.close()
    model.close()


def _both(model: sqlite3.Connection, sql: Any, text: str, values: tuple[Any, ...]) -> None:
    try:
        expected: Any = model.execute(text, values).rowcount
    except sqlite3.IntegrityError as error:
        expected = str(error)
    try:
        got: Any = sql.execute(text, values).rows_affected
    except SqlConstraintError as error:
        got = error.message.rstrip(".")
    if isinstance(expected, str) or isinstance(got, str) or not text.startswith("INSERT OR REPLACE"):
        assert got == expected
    query = "SELECT * FROM t"
    assert rows(sql, query) == model.execute(query).fetchall()


def test_a_token_that_was_used_stops_nothing_later(engine: Engine, sql: SqlEngine) -> None:
    """SQLite asks whether to stop every so many steps of a statement, all its runs together: also our own BEGIN."""
    sql.execute("CREATE TABLE t (a)")
    for number in range(12_000):
        cancel = Cancel()
        with cancelled_by(cancel):
            sql.execute("INSERT INTO t VALUES (?)", [number])
        cancel.cancelled = True
    assert rows(sql, "SELECT count(*) FROM t") == [(12_000,)]


def test_rows_affected_are_those_of_the_statement(sql: SqlEngine) -> None:
    assert sql.execute("CREATE VIRTUAL TABLE texts USING fts5(body)").rows_affected == 0
    assert sql.execute_many("INSERT INTO texts VALUES (?)", [("a",), ("b",), ("c",)]).rows_affected == 3
    assert sql.execute("/* c */ -- d\n INSERT INTO texts VALUES ('e'), ('f')").rows_affected == 2
    assert sql.execute_many("DELETE FROM texts WHERE texts MATCH ?", [("a",)]).rows_affected == 1
    sql.execute("CREATE TABLE t (a)")
    assert sql.execute_many("INSERT INTO t VALUES (?)", [(n,) for n in range(10)]).rows_affected == 10
    assert sql.execute_many("DELETE FROM t WHERE a >= ?", [(8,), (100,), (5,)]).rows_affected == 5
    assert sql.execute_many("UPDATE t SET a = a WHERE a < ?", [(0,), (2,), (4,)]).rows_affected == 6
    assert sql.execute_many("INSERT INTO t VALUES (1)", []).rows_affected == 0
