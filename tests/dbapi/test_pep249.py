"""What PEP 249 asks of a module, a connection and a cursor."""

from __future__ import annotations

import copy
import datetime
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toondb
from tests.dbapi.conftest import Place
from tests.support.children import in_child
from toondb import dbapi

# The module


def test_the_globals() -> None:
    assert (dbapi.apilevel, dbapi.threadsafety, dbapi.paramstyle) == ("2.0", 2, "qmark")
    assert dbapi.sqlite_version == ".".join(map(str, dbapi.sqlite_version_info))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dbapi.no_such_name


def test_the_exceptions() -> None:
    assert issubclass(dbapi.Warning, Exception)
    assert issubclass(dbapi.Error, toondb.ToonDBError)
    assert issubclass(dbapi.InterfaceError, dbapi.Error)
    assert not issubclass(dbapi.InterfaceError, dbapi.DatabaseError)
    for name in ("Data", "Operational", "Integrity", "Internal", "Programming", "NotSupported"):
        kind = getattr(dbapi, f"{name}Error")
        assert issubclass(kind, dbapi.DatabaseError)
        assert getattr(dbapi.Connection, f"{name}Error") is kind


def test_constructors_and_type_objects(connection: dbapi.Connection) -> None:
    now = time.time()
    local = datetime.datetime.fromtimestamp(now)
    assert dbapi.Date(2024, 2, 29) == datetime.date(2024, 2, 29)
    assert dbapi.Time(23, 59, 1) == datetime.time(23, 59, 1)
    assert dbapi.Timestamp(2024, 2, 29, 23, 59, 1) == datetime.datetime(2024, 2, 29, 23, 59, 1)
    assert dbapi.DateFromTicks(now) == local.date()
    assert dbapi.TimeFromTicks(now) == local.time()
    assert dbapi.TimestampFromTicks(now) == local
    assert dbapi.Binary(bytearray(b"\0x")) == b"\0x"
    with pytest.raises(TypeError):
        dbapi.Binary(5)  # type: ignore[arg-type]
    kinds = [dbapi.STRING, dbapi.BINARY, dbapi.NUMBER, dbapi.DATETIME, dbapi.ROWID]
    examples: list[type] = [str, bytes, float, datetime.date, int]
    for kind, example in zip(kinds, examples, strict=True):
        assert kind == example
        assert kind != kind.name
        assert kind.name in repr(kind)
    assert len(set(kinds)) == 5

    given = [dbapi.Date(2024, 2, 29), dbapi.Time(1, 2, 3), dbapi.Timestamp(2024, 2, 29, 1, 2), dbapi.Binary(b"x")]
    row = connection.execute("SELECT ?, ?, ?, ?, typeof(?4), date(?1, '+1 day')", given).fetchone()
    assert row == ("2024-02-29", "01:02:03", "2024-02-29 01:02:00", b"x", "blob", "2024-03-01")
    assert connection.execute("SELECT :d", {"d": dbapi.Date(2024, 1, 1)}).fetchall() == [("2024-01-01",)]
    connection.execute("CREATE TABLE t (d)")
    connection.executemany("INSERT INTO t VALUES (?)", ([dbapi.Date(2024, 1, n)] for n in (1, 2)))
    assert connection.execute("SELECT max(d) FROM t").fetchone() == ("2024-01-02",)


# Connecting


def test_connect_takes_a_store_and_leaves_it_open(tmp_path: Path) -> None:
    with toondb.Database.open(tmp_path / "db") as db:
        connection = dbapi.connect(db)
        assert connection.store is db
        connection.execute("CREATE TABLE t (a)")
        connection.commit()
        connection.close()
        assert db.execute("SELECT count(*) AS n FROM t").rows == [{"n": 0}]
        with db.transaction() as transaction, pytest.raises(dbapi.ProgrammingError, match="not a Transaction"):
            dbapi.connect(transaction)  # type: ignore[arg-type]
        with pytest.raises(dbapi.ProgrammingError, match="mode and config"):
            dbapi.connect(db, mode="embedded")


@pytest.mark.parametrize(
    ("target", "options", "error", "told"),
    [
        (5, {}, dbapi.ProgrammingError, "not int"),
        ("db", {"mode": "udp"}, dbapi.ProgrammingError, "'udp'"),
        ("db", {"config": {"colour": 1}}, dbapi.ProgrammingError, "'colour'"),
        ("db", {"config": {"create_if_missing": False}}, dbapi.OperationalError, "db"),
        ("no.sock", {}, dbapi.OperationalError, "no.sock"),
        ("db", {"isolation": "none"}, dbapi.ProgrammingError, "'none'"),
        ("db", {"autocommit": 1}, dbapi.ProgrammingError, "autocommit is True or False, got 1"),
    ],
)
def test_connect_tells_what_is_wrong(
    tmp_path: Path, target: Any, options: dict[str, Any], error: type[dbapi.Error], told: str
) -> None:
    with pytest.raises(error, match=told):
        dbapi.connect(tmp_path / target if isinstance(target, str) else target, **options)


def test_a_closed_connection_refuses_everything(place: Place) -> None:
    connection = place.connect()
    cursor = connection.execute("SELECT 1")
    connection.close()
    connection.close()
    assert connection.closed
    uses: list[Callable[[], Any]] = [
        connection.cursor,
        connection.commit,
        connection.rollback,
        lambda: connection.execute("SELECT 1"),
        lambda: connection.transaction,
        lambda: connection.run_transaction(lambda _: None),
        lambda: setattr(connection, "autocommit", True),
        lambda: cursor.execute("SELECT 1"),
        cursor.fetchone,
        cursor.fetchall,
    ]
    for use in uses:
        with pytest.raises(dbapi.ProgrammingError, match=r"the connection is closed\.") as caught:
            use()
        assert isinstance(caught.value, toondb.DatabaseClosedError)
    cursor.close()


def test_closing_rolls_back(place: Place) -> None:
    connection = place.connect()
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    assert place.connect().execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


def test_a_store_that_was_closed_below_is_told(tmp_path: Path) -> None:
    with toondb.Database.open(tmp_path / "db") as db:
        connection = dbapi.connect(db)
    with pytest.raises(dbapi.ProgrammingError, match="closed") as caught:
        connection.execute("SELECT 1")
    assert isinstance(caught.value, toondb.DatabaseClosedError)
    connection.close()


# Cursors


def test_a_cursor_before_its_first_statement(connection: dbapi.Connection) -> None:
    cursor = connection.cursor()
    assert cursor.connection is connection
    assert (cursor.description, cursor.rowcount, cursor.arraysize, cursor.lastrowid) == (None, -1, 1, None)
    for fetch in (cursor.fetchone, cursor.fetchmany, cursor.fetchall, lambda: next(cursor)):
        with pytest.raises(dbapi.ProgrammingError, match="no rows to fetch"):
            fetch()
    cursor.setinputsizes([1])
    cursor.setoutputsize(1)
    cursor.setoutputsize(1, 0)


def names(cursor: dbapi.Cursor) -> list[str] | None:
    return None if cursor.description is None else [column[0] for column in cursor.description]


def test_description(connection: dbapi.Connection) -> None:
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    assert names(cursor) is None
    for query in (
        "SELECT id, name FROM t",
        "SELECT id, name FROM t WHERE 0",
        "WITH w AS (SELECT * FROM t) SELECT * FROM w",
    ):
        cursor.execute(query)
        assert cursor.description == tuple((name, None, None, None, None, None, None) for name in ("id", "name"))
        assert cursor.fetchall() == []
    cursor.execute("INSERT INTO t (name) VALUES ('a'), ('b') RETURNING id AS i, name")
    assert names(cursor) == ["i", "name"]
    assert cursor.fetchall() == [(1, "a"), (2, "b")]
    assert cursor.rowcount == 2
    cursor.execute("SELECT a.name, b.name FROM t a, t b LIMIT 1")
    assert names(cursor) == ["name", "name:1"]
    cursor.execute("PRAGMA table_info(t)")
    assert [row[1] for row in cursor] == ["id", "name"]
    cursor.execute("UPDATE t SET name = 'c'")
    assert names(cursor) is None
    with pytest.raises(dbapi.ProgrammingError, match="no rows to fetch"):
        cursor.fetchall()


def test_rowcount_and_lastrowid(connection: dbapi.Connection) -> None:
    cursor = connection.cursor()
    assert cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name UNIQUE)").rowcount == -1
    assert cursor.execute("INSERT INTO t VALUES (7, 'a'), (8, 'b')").rowcount == 2
    assert cursor.lastrowid == 8
    assert cursor.execute("INSERT OR IGNORE INTO t VALUES (20, 'a')").rowcount == 0
    assert cursor.lastrowid == 8
    assert cursor.execute("UPDATE t SET name = name || '!'").rowcount == 2
    assert cursor.execute("SELECT * FROM t").rowcount == -1
    assert cursor.executemany("INSERT INTO t (name) VALUES (:n)", [{"n": "x"}, {"n": "y"}, {"n": "z"}]).rowcount == 3
    assert cursor.executemany("INSERT INTO t (name) VALUES (?)", []).rowcount == 0
    assert cursor.lastrowid == 8
    assert cursor.execute("WITH w AS (SELECT 9) DELETE FROM t WHERE id IN w").rowcount == 1
    assert cursor.execute("DELETE FROM t WHERE 0").rowcount == 0
    # What a trigger changes is not counted.
    cursor.execute("CREATE TABLE log (a)")
    cursor.execute("CREATE TRIGGER gone AFTER DELETE ON t BEGIN INSERT INTO log VALUES (1), (2); END")
    assert cursor.execute("DELETE FROM t WHERE id = 7").rowcount == 1
    assert cursor.execute("SELECT count(*) FROM log").fetchone() == (2,)
    cursor.execute("DELETE FROM t")
    cursor.close()
    assert (cursor.rowcount, cursor.lastrowid) == (3, 8)


def test_parameters_by_position_and_by_name(connection: dbapi.Connection) -> None:
    assert connection.execute("SELECT ?, ?", (1, "a")).fetchall() == [(1, "a")]
    assert connection.execute("SELECT ?2, ?1", [1, None]).fetchall() == [(None, 1)]
    assert connection.execute("SELECT :a, :b, :a", {"a": 1.5, "b": b"x", "more": 0}).fetchall() == [(1.5, b"x", 1.5)]
    assert connection.execute("SELECT 1", ()).fetchall() == [(1,)]
    mistakes: list[tuple[str, Any]] = [
        ("SELECT ?", ()),
        ("SELECT ?", None),
        ("SELECT ?", (1, 2)),
        ("SELECT :a", {}),
        ("SELECT ?", ({},)),
        ("SELECT ?", "a"),
        ("SELECT ?", 5),
        ("SELECT ?", (1 << 63,)),
        ("SELECT :a", {1: 2}),
    ]
    for sql, parameters in mistakes:
        with pytest.raises(dbapi.ProgrammingError) as caught:
            connection.execute(sql, parameters)
        assert isinstance(caught.value, ValueError)


def test_fetching(connection: dbapi.Connection) -> None:
    connection.execute("CREATE TABLE t (a)")
    connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(1000)])
    cursor = connection.cursor()
    query = "SELECT a FROM t ORDER BY a"
    cursor.execute(query)
    assert cursor.fetchone() == (0,)
    assert cursor.fetchmany() == [(1,)]
    assert cursor.fetchmany(3) == [(2,), (3,), (4,)]
    assert cursor.fetchmany(0) == []
    cursor.arraysize = 100
    assert [row[0] for row in cursor.fetchmany()] == list(range(5, 105))
    assert next(cursor) == (105,)
    assert [row[0] for row in cursor.fetchall()] == list(range(106, 1000))
    assert cursor.fetchone() is None
    assert cursor.fetchmany(5) == []
    assert cursor.fetchall() == []
    assert [row[0] for row in cursor.execute(query)] == list(range(1000))
    for size in (-1, "3", True):
        with pytest.raises(dbapi.ProgrammingError, match="0 or more"):
            cursor.fetchmany(size)  # type: ignore[arg-type]


def test_a_closed_cursor(connection: dbapi.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    cursor.close()
    for use in (cursor.fetchone, lambda: cursor.execute("SELECT 1"), lambda: cursor.executescript("SELECT 1")):
        with pytest.raises(dbapi.ProgrammingError, match="the cursor is closed"):
            use()
    assert connection.execute("SELECT 2").fetchone() == (2,)


def test_executemany_changes_rows_only(connection: dbapi.Connection) -> None:
    connection.execute("CREATE TABLE t (a UNIQUE)")
    for sql in ("SELECT ?", "CREATE TABLE u (a)", "BEGIN", "PRAGMA table_info(t)"):
        with pytest.raises(dbapi.ProgrammingError, match=r"executemany\(\) runs DELETE, INSERT, REPLACE, UPDATE, not"):
            connection.executemany(sql, [(1,)])
    with pytest.raises(dbapi.IntegrityError):
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,), (1,)])
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    for sets in ([(1,), (1, 2)], [5], "ab", 5, [{"a": 1}]):
        with pytest.raises(dbapi.ProgrammingError):
            connection.executemany("INSERT INTO t VALUES (?)", sets)  # type: ignore[arg-type]


def test_executemany_reads_what_the_connection_gives(connection: dbapi.Connection) -> None:
    connection.execute("CREATE TABLE t (a)")
    connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(700)])
    connection.executemany("INSERT INTO t VALUES (?)", connection.execute("SELECT a + 700 FROM t"))
    assert connection.execute("SELECT count(*), max(a) FROM t").fetchone() == (1400, 1399)


def test_any_number_of_rows_is_fetched_a_part_at_a_time(connection: dbapi.Connection) -> None:
    # It would not end, and not fit.
    cursor = connection.execute("WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT a FROM n")
    assert [row[0] for row in cursor.fetchmany(5000)] == list(range(1, 5001))
    assert cursor.fetchone() == (5001,)
    cursor.execute("SELECT 'another'")
    assert cursor.fetchall() == [("another",)]


# Errors


@pytest.mark.parametrize(
    ("sql", "kind", "cause"),
    [
        ("INSERT INTO t VALUES (1, 1)", dbapi.IntegrityError, toondb.SqlConstraintError),
        ("INSERT INTO t VALUES (2, NULL)", dbapi.IntegrityError, toondb.SqlConstraintError),
        ("INSERT INTO t VALUES ('x', 1)", dbapi.IntegrityError, toondb.SqlError),
        ("SELEC", dbapi.ProgrammingError, toondb.SqlError),
        ("", dbapi.ProgrammingError, toondb.SqlError),
        ("SELECT 1; SELECT 2", dbapi.ProgrammingError, toondb.SqlError),
        ("SELECT * FROM nowhere", dbapi.ProgrammingError, toondb.SqlError),
        ("SELECT zeroblob(400000000)", dbapi.DataError, toondb.SqlError),
        ("VACUUM", dbapi.NotSupportedError, toondb.SqlForbiddenError),
        ("ATTACH 'x' AS y", dbapi.NotSupportedError, toondb.SqlForbiddenError),
        ("SELECT '\0'", dbapi.ProgrammingError, toondb.ValidationError),
        (5, dbapi.ProgrammingError, toondb.ValidationError),
        ("SAVEPOINT toondb_statement", dbapi.NotSupportedError, toondb.SqlForbiddenError),
    ],
)
def test_an_error_is_of_both_hierarchies(
    connection: dbapi.Connection, sql: Any, kind: type[dbapi.Error], cause: type[toondb.ToonDBError]
) -> None:
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b NOT NULL)")
    connection.execute("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(kind) as caught:
        connection.execute(sql)
    error = caught.value
    assert isinstance(error, cause)
    assert error.code == cause.code
    assert error.message
    assert type(error).__name__ == kind.__name__
    assert str(error).startswith(error.message)
    assert "execute_script" not in str(error)
    # The transaction goes on without the statement.
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, 1)]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), again.__dict__, again.args) == (str(error), error.__dict__, error.args)


def test_an_error_while_rows_are_fetched(connection: dbapi.Connection) -> None:
    # One that is far behind what was fetched first.
    sql = (
        "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < 100000) "
        "SELECT json(iif(a = 99999, '{', '1')), zeroblob(100) FROM n"
    )
    cursor = connection.execute(sql)
    with pytest.raises(dbapi.ProgrammingError, match="malformed JSON"):
        cursor.fetchall()
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_every_error_of_toondb_has_a_place() -> None:
    from toondb.dbapi.errors import translated

    for name in toondb.errors.__all__:
        cls = getattr(toondb.errors, name)
        if isinstance(cls, type) and issubclass(cls, toondb.ToonDBError):
            error = translated(cls("what", details={"a": 1}))
            assert isinstance(error, cls)
            assert isinstance(error, dbapi.Error)
            assert (error.message, error.details["a"]) == ("what", 1)
            assert translated(error) is error
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), again.__dict__) == (type(error), error.__dict__)
    abort = translated(toondb.TriggerAbort("no", code="INVALID_AGE"))
    assert isinstance(abort, dbapi.IntegrityError)
    assert abort.code == "INVALID_AGE"


# Threads and processes


def test_threads_share_a_connection(place: Place) -> None:
    connection = place.connect(autocommit=True)
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                connection.execute("INSERT INTO t (b) VALUES (?)", [f"{number}.{step}"])
                assert connection.execute("SELECT count(*) FROM t WHERE b = ?", [f"{number}.{step}"]).fetchone() == (1,)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert connection.execute("SELECT count(*), count(DISTINCT b) FROM t").fetchone() == (80, 80)


def test_a_connection_of_the_parent_is_refused_in_a_forked_child(place: Place) -> None:
    connection = place.connect()
    connection.execute("CREATE TABLE t (a)")
    cursor = connection.execute("WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT a FROM n")

    def child() -> Any:
        for use in (connection.commit, connection.cursor, cursor.fetchone, lambda: cursor.execute("SELECT 1")):
            with pytest.raises(dbapi.OperationalError, match="parent process") as caught:
                use()
            assert isinstance(caught.value, toondb.ForkedProcessError)
        cursor.close()
        connection.close()
        assert connection.closed
        return "done"

    held = threading.Event()
    free = threading.Event()

    def hold() -> None:
        with connection._lock:
            held.set()
            free.wait()

    # In the child the thread is gone, and never gives the lock back.
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert in_child(child) == "done"
    finally:
        free.set()
        thread.join()
    assert cursor.fetchone() == (1,)
    cursor.close()
    connection.commit()
    assert place.connect().execute("SELECT count(*) FROM t").fetchone() == (0,)
