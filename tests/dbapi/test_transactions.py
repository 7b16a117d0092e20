"""Transactions of the driver: begun by statements, by text, by the autocommit switch."""

from __future__ import annotations

from typing import Any

import pytest

import toondb
from tests.dbapi.conftest import Place
from toondb import dbapi

MANY = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < 3000) SELECT a FROM n"


@pytest.fixture
def other(place: Place) -> dbapi.Connection:
    """Another connection, on which each statement commits by itself; there is a table ``t``."""
    other = place.connect(autocommit=True)
    other.execute("CREATE TABLE t (a)")
    return other


def begun(connection: dbapi.Connection) -> bool:
    return connection.in_transaction


def values(connection: dbapi.Connection) -> list[Any]:
    return [row[0] for row in connection.execute("SELECT a FROM t ORDER BY a")]


def test_the_first_statement_begins_a_transaction(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    assert not begun(connection)
    assert values(connection) == []
    assert begun(connection)
    other.execute("INSERT INTO t VALUES (1)")
    assert values(connection) == []
    connection.commit()
    assert not begun(connection)
    assert values(connection) == [1]
    connection.rollback()
    connection.execute("INSERT INTO t VALUES (2)")
    assert (values(connection), values(other)) == ([1, 2], [1])
    connection.rollback()
    assert values(connection) == [1]
    connection.rollback()
    connection.executemany("INSERT INTO t VALUES (?)", [(3,), (4,)])
    assert values(other) == [1]
    connection.commit()
    assert values(other) == [1, 3, 4]
    connection.commit()
    connection.rollback()


def test_a_block(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    with connection:
        connection.execute("INSERT INTO t VALUES (1)")
    assert values(other) == [1]
    with pytest.raises(KeyError), connection:
        connection.execute("INSERT INTO t VALUES (2)")
        raise KeyError
    assert values(other) == [1]
    assert not connection.closed


def test_autocommit(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    other.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    assert not begun(other)
    other.commit()
    other.rollback()
    assert values(connection) == [1, 2]
    connection.rollback()
    connection.execute("INSERT INTO t VALUES (3)")
    connection.autocommit = True
    assert not begun(connection)
    assert values(other) == [1, 2, 3]
    connection.autocommit = False
    assert not connection.autocommit
    connection.execute("DELETE FROM t")
    assert values(other) == [1, 2, 3]
    with pytest.raises(dbapi.ProgrammingError, match="autocommit is True or False"):
        connection.autocommit = None  # type: ignore[assignment]


@pytest.mark.parametrize("begin", ["BEGIN", "begin immediate;", "/* x */ BEGIN DEFERRED TRANSACTION -- now"])
@pytest.mark.parametrize(("end", "kept"), [("COMMIT", [1]), ("end transaction", [1]), ("ROLLBACK;", [])])
def test_transactions_as_text(other: dbapi.Connection, place: Place, begin: str, end: str, kept: list[int]) -> None:
    cursor = other.cursor()
    cursor.execute(begin)
    assert begun(other)
    assert cursor.description is None
    cursor.execute("INSERT INTO t VALUES (1)")
    with place.connect() as reader:
        assert values(reader) == []
    with pytest.raises(dbapi.OperationalError, match="begun already"):
        cursor.execute("BEGIN")
    cursor.execute(end)
    assert not begun(other)
    with place.connect() as reader:
        assert values(reader) == kept
    for text in ("COMMIT", "ROLLBACK"):
        with pytest.raises(dbapi.OperationalError, match=f"{text} without a transaction"):
            cursor.execute(text)


def test_text_without_autocommit(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    connection.execute("COMMIT")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("COMMIT")
    connection.execute("INSERT INTO t VALUES (2)")
    connection.execute("ROLLBACK")
    assert values(other) == [1]
    with pytest.raises(dbapi.NotSupportedError, match="BEGIN"):
        connection.execute("BEGIN nonsense")


def test_savepoints(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("SAVEPOINT one")
    connection.execute("INSERT INTO t VALUES (2)")
    connection.execute("ROLLBACK TO SAVEPOINT one")
    connection.execute("INSERT INTO t VALUES (3)")
    connection.execute("RELEASE one")
    connection.commit()
    assert values(other) == [1, 3]
    connection.execute("SAVEPOINT first")
    assert begun(connection)
    connection.rollback()
    for text in ("SAVEPOINT a", "RELEASE a", "ROLLBACK TO a"):
        with pytest.raises(dbapi.OperationalError, match="needs a transaction around it"):
            other.execute(text)


def test_scripts(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    connection.executescript("INSERT INTO t VALUES (1); -- one;\n INSERT INTO t VALUES (2)")
    assert values(other) == []
    connection.commit()
    assert values(other) == [1, 2]
    with pytest.raises(dbapi.ProgrammingError, match="nowhere"):
        connection.executescript("INSERT INTO t VALUES (3); INSERT INTO nowhere VALUES (1)")
    connection.commit()
    assert values(other) == [1, 2]
    connection.executescript(" ; -- nothing")
    other.executescript(
        """
        BEGIN TRANSACTION;
        CREATE TABLE log (a);
        CREATE TRIGGER noted AFTER INSERT ON t BEGIN
            INSERT INTO log VALUES (CASE WHEN new.a THEN ';' END);
            DELETE FROM log WHERE a IS NULL;
        END;
        INSERT INTO t VALUES (3);
        COMMIT;
        BEGIN; INSERT INTO t VALUES (4); ROLLBACK;
        INSERT INTO t VALUES (5)
        """
    )
    assert not begun(other)
    assert values(other) == [1, 2, 3, 5]
    assert other.execute("SELECT a FROM log").fetchall() == [(";",), (";",)]
    with pytest.raises(dbapi.ProgrammingError, match="a script is text"):
        other.executescript(5)  # type: ignore[arg-type]


def test_a_transaction_that_lost_tells_what_to_do(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    values(connection)
    other.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(dbapi.OperationalError, match=r"Call rollback\(\) and run the transaction again") as early:
        connection.execute("INSERT INTO t VALUES (2)")
    assert isinstance(early.value, toondb.TransactionConflictError)
    connection.rollback()
    connection.execute("INSERT INTO t VALUES (2)")
    other.execute("INSERT INTO t VALUES (3)")
    with pytest.raises(dbapi.OperationalError) as late:
        connection.commit()
    assert isinstance(late.value, toondb.TransactionConflictError)
    # It is over: the next statement begins another one.
    assert not begun(connection)
    assert values(connection) == [1, 3]


def test_run_transaction_runs_again(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    other.execute("INSERT INTO t VALUES (0)")
    tries = []

    def add(given: dbapi.Connection) -> int:
        (a,) = given.execute("SELECT a FROM t").fetchone() or (None,)
        tries.append(a)
        if len(tries) < 3:
            other.execute("UPDATE t SET a = a + 10")
        given.execute("UPDATE t SET a = ?", [a + 1])
        return int(a) + 1

    assert connection.run_transaction(add) == 21
    assert tries == [0, 10, 20]
    assert values(other) == [21]
    tries.clear()
    with pytest.raises(dbapi.OperationalError) as caught:
        connection.run_transaction(add, attempts=1)
    assert isinstance(caught.value, toondb.TransactionConflictError)
    assert not begun(connection)
    with pytest.raises(KeyError):
        other.run_transaction(lambda given: [given.execute("DELETE FROM t"), dict[str, int]()["nothing"]])
    assert values(other) == [31]
    values(connection)
    with pytest.raises(dbapi.OperationalError, match="begun already"):
        connection.run_transaction(add)
    with pytest.raises(dbapi.ProgrammingError, match="attempts"):
        other.run_transaction(add, attempts=0)


def test_a_serializable_transaction_has_read_what_is_still_so(other: dbapi.Connection, place: Place) -> None:
    connection = place.connect(isolation="serializable")
    assert connection.isolation == "serializable"
    values(connection)
    other.execute("INSERT INTO t VALUES (1)")
    connection.transaction.put("key", b"1")
    with pytest.raises(dbapi.OperationalError) as caught:
        connection.commit()
    assert isinstance(caught.value, toondb.TransactionConflictError)
    connection.isolation = "snapshot"
    values(connection)
    other.execute("INSERT INTO t VALUES (2)")
    connection.transaction.put("key", b"1")
    connection.commit()
    with pytest.raises(dbapi.ProgrammingError, match="'none'"):
        connection.isolation = "none"


def test_keys_commit_with_rows(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    connection.transaction.put("a", b"1")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.rollback()
    assert other.store.get("a") is None
    connection.transaction.put("a", b"2")
    connection.execute("INSERT INTO t VALUES (2)")
    connection.commit()
    assert (other.store.get("a"), values(other)) == (b"2", [2])
    with pytest.raises(dbapi.OperationalError, match="Execute BEGIN first"):
        _ = other.transaction
    other.execute("BEGIN")
    other.transaction.put("a", b"3")
    other.execute("COMMIT")
    assert other.store.get("a") == b"3"


def test_rows_outlive_a_commit_and_not_a_rollback(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    cursor = connection.execute(MANY)
    seen = []
    for (a,) in cursor:
        connection.execute("INSERT INTO t VALUES (?)", [a])
        if a % 500 == 0:
            connection.commit()
        seen.append(a)
    assert seen == list(range(1, 3001))
    assert len(values(other)) == 3000
    wide = MANY.replace("SELECT a FROM n", "SELECT a, zeroblob(2000) FROM n")
    cursor.execute(wide)
    assert cursor.fetchone() == (1, bytes(2000))
    connection.rollback()
    for fetch in (cursor.fetchone, cursor.fetchall, cursor.fetchmany):
        with pytest.raises(dbapi.OperationalError, match="was rolled back"):
            fetch()
    short = connection.execute("SELECT 1")
    connection.rollback()
    assert short.fetchall() == [(1,)]
    # Outside a transaction rows are nobody's.
    cursor = other.execute(wide)
    other.execute("BEGIN")
    other.execute("DELETE FROM t")
    other.execute("ROLLBACK")
    assert len(cursor.fetchall()) == 3000


def test_a_commit_keeps_so_many_rows_only(other: dbapi.Connection, connection: dbapi.Connection) -> None:
    endless = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT a, zeroblob(100000) FROM n"
    cursor = connection.execute(endless)
    connection.execute("INSERT INTO t VALUES (1)")
    connection.commit()
    assert values(other) == [1]
    fetched = 0
    with pytest.raises(dbapi.OperationalError, match="more rows than are kept"):
        for fetched, (a, _) in enumerate(cursor, 1):
            assert a == fetched
    assert 100 < fetched < 1000


def test_what_fails_while_a_commit_keeps_rows_is_told_when_they_are_fetched(
    other: dbapi.Connection, connection: dbapi.Connection
) -> None:
    connection.execute("INSERT INTO t VALUES (1)")
    failing = MANY.replace("SELECT a FROM n", "SELECT json(iif(a = 2999, '{', '1')), zeroblob(2000) FROM n")
    cursor = connection.execute(failing)
    connection.commit()
    assert values(other) == [1]
    fetched = 0
    with pytest.raises(dbapi.ProgrammingError, match="malformed JSON"):
        while cursor.fetchone() is not None:
            fetched += 1
    assert 0 < fetched < 2999


def test_statements_after_the_end_of_a_transaction_do_not_begin_another(tmp_path: Any) -> None:
    with toondb.Database.open(tmp_path / "db") as db:
        connection = dbapi.connect(db)
        connection.execute("CREATE TABLE t (a)")
        # As when it expired: what was written is gone, so the rest must not be committed alone.
        db.abort(connection.transaction.id)
        for _ in range(2):
            with pytest.raises(dbapi.OperationalError):
                connection.execute("CREATE TABLE u (a)")
        with pytest.raises(dbapi.OperationalError):
            connection.commit()
        connection.execute("CREATE TABLE u (a)")
        connection.commit()
        assert [row["name"] for row in db.execute("SELECT name FROM sqlite_schema")] == ["u"]
        connection.close()
