"""What a hostile review of SQL found: statements that were not atomic, and what one left to the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from toondb import Database
from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb.errors import (
    DatabaseClosedError,
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    SqlInterruptedError,
    TransactionConflictError,
    TransactionError,
)
from toondb.sql.connection import Outcome, SqlConnection
from toondb.sql.engine import Action, SqlEngine
from toondb.sql.write_queue import Write, WriteQueue

SECONDS = 30.0


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "db", {"sync_mode": "off"}) as db:
        yield db


def alone(text: str) -> Write[Action, Outcome]:
    """A write that waits, as of a client that runs one statement."""

    def run(connection: SqlConnection) -> Outcome:
        return connection.run(text, None, reading_only=False, in_transaction=False, seconds=None)

    return Write(run)


# What a connection knows of a schema that was undone


def test_columns_of_a_table_whose_change_was_aborted(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    db.execute("INSERT INTO t VALUES (1)")
    transaction = db.begin_transaction()
    transaction.execute("ALTER TABLE t ADD COLUMN b")
    assert transaction.execute("SELECT * FROM t").columns == ["a", "b"]
    transaction.abort()
    assert db.execute("SELECT * FROM t").rows == [{"a": 1}]


def test_columns_of_a_table_whose_change_was_rolled_back(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    db.execute("INSERT INTO t VALUES (1)")
    with db.transaction() as txn:
        txn.execute("SAVEPOINT s")
        txn.execute("ALTER TABLE t ADD COLUMN b")
        assert txn.execute("SELECT * FROM t").columns == ["a", "b"]
        txn.execute("ROLLBACK TO s")
        assert txn.execute("SELECT * FROM t").rows == [{"a": 1}]


def test_columns_after_a_script_that_was_aborted(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    transaction = db.begin_transaction()
    transaction.execute_script("ALTER TABLE t ADD COLUMN b; INSERT INTO t VALUES (1, 2)")
    assert transaction.execute("SELECT * FROM t").columns == ["a", "b"]
    transaction.abort()
    db.execute("INSERT INTO t VALUES (1)")
    assert db.execute("SELECT * FROM t").rows == [{"a": 1}]


# Row ids


def test_the_last_row_id_is_there_for_the_next_statement(db: Database) -> None:
    db.execute_script("CREATE TABLE t (id INTEGER PRIMARY KEY, a); CREATE TABLE u (t, a)")
    with db.transaction() as txn:
        assert txn.execute("INSERT INTO t VALUES (7, 'x')").last_row_id == 7
        assert txn.execute("SELECT last_insert_rowid()").tuples == [(7,)]
        assert txn.execute("UPDATE t SET a = 'y'").last_row_id == 0
        assert txn.execute("INSERT INTO u VALUES (last_insert_rowid(), 'z')").last_row_id == 1
        assert txn.execute("UPDATE t SET a = last_insert_rowid()").last_row_id == 0
        assert txn.execute("SELECT a FROM t").tuples == [(1,)]
        assert txn.executemany("INSERT INTO t (a) VALUES (?)", [(1,), (2,)]).last_row_id == 9
        txn.execute_script("INSERT INTO u VALUES (last_insert_rowid(), 'script')")
        assert txn.execute("SELECT t FROM u ORDER BY rowid").tuples == [(7,), (9,)]
        with pytest.raises(SqlConstraintError):
            txn.execute("INSERT INTO t VALUES (100, 1), (7, 2)")
        txn.execute("DELETE FROM u WHERE t = 100")
        assert txn.execute("SELECT last_insert_rowid()").tuples == [(2,)]


def test_row_ids_of_others_are_not_told(db: Database) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    db.execute("INSERT INTO t VALUES (77)")
    assert db.execute("SELECT last_insert_rowid()").tuples == [(0,)]
    assert db.execute_script("CREATE TABLE u (a)").last_row_id == 0
    with db.transaction() as txn:
        assert txn.execute("SELECT last_insert_rowid()").tuples == [(0,)]
        assert txn.execute("CREATE TABLE v AS SELECT last_insert_rowid() AS a").last_row_id == 0
        assert txn.execute("SELECT a FROM v").tuples == [(0,)]
    sql = db._sql()
    turn = [alone("INSERT INTO t VALUES (5)"), alone("INSERT INTO u VALUES (last_insert_rowid())")]
    sql._run_turn(turn)
    assert db.execute("SELECT a FROM u").tuples == [(0,)]


# Statements that are undone as a whole


def test_a_conflict_inside_a_trigger_that_would_keep_rows(db: Database) -> None:
    db.execute_script(
        """
        CREATE TABLE seen (a UNIQUE ON CONFLICT FAIL);
        CREATE TABLE t (a);
        CREATE TRIGGER note BEFORE INSERT ON t BEGIN INSERT INTO seen VALUES (1), (2), (1); END;
        """
    )
    with db.transaction() as txn:
        with pytest.raises(SqlConstraintError):
            txn.execute("INSERT INTO t VALUES (5)")
        assert txn.execute("SELECT a FROM seen").tuples == []
    with pytest.raises(SqlConstraintError):
        db.execute("INSERT INTO t VALUES (5)")
    assert db.execute("SELECT a FROM seen").tuples == []
    turn = [alone("INSERT INTO t VALUES (5)"), alone("INSERT INTO seen VALUES (9)")]
    db._sql()._run_turn(turn)
    assert isinstance(turn[0].error, SqlConstraintError)
    assert db.execute("SELECT a FROM seen").tuples == [(9,)]


@pytest.mark.parametrize("way", ["trigger", "cascade", "raise"])
def test_what_fails_after_rows_of_triggers_leaves_the_transaction(tmp_path: Path, way: str) -> None:
    """SQLite counts the rows that triggers changed also when the statement was undone."""
    with Database.open(tmp_path / "db", {"sync_mode": "off", "foreign_keys": True}) as db:
        db.execute_script(
            """
            CREATE TABLE t (a PRIMARY KEY);
            CREATE TABLE notes (a);
            CREATE TABLE children (parent REFERENCES t ON DELETE CASCADE);
            CREATE TABLE strict (parent REFERENCES t ON DELETE RESTRICT);
            INSERT INTO t VALUES (1), (2), (3);
            INSERT INTO children VALUES (1), (2);
            INSERT INTO strict VALUES (3);
            """
        )
        if way == "trigger":
            db.execute("CREATE TRIGGER note AFTER INSERT ON t BEGIN INSERT INTO notes VALUES (new.a); END")
        if way == "raise":
            db.execute(
                "CREATE TRIGGER note AFTER INSERT ON t BEGIN INSERT INTO notes VALUES (new.a); "
                "SELECT RAISE(FAIL, 'no') WHERE new.a = 8; END"
            )
        text = "DELETE FROM t" if way == "cascade" else "INSERT INTO t VALUES (7), (8), (1)"
        with db.transaction() as txn:
            txn.put("key", b"value")
            txn.execute("INSERT INTO notes VALUES ('before')")
            with pytest.raises(SqlConstraintError):
                txn.execute(text)
            assert txn.execute("SELECT a FROM notes").tuples == [("before",)]
            assert txn.execute("SELECT count(*) FROM children").tuples == [(2,)]
            txn.execute("INSERT INTO notes VALUES ('after')")
        assert db.execute("SELECT a FROM notes").tuples == [("before",), ("after",)]
        assert db.execute("SELECT count(*) FROM t").tuples == [(3,)]
        assert db.get("key") == b"value"


@pytest.mark.parametrize("word", ["ROLLBACK TO", "RELEASE"])
def test_a_script_cannot_undo_or_keep_what_came_before_it(db: Database, word: str) -> None:
    db.execute("CREATE TABLE t (a)")
    with db.transaction() as txn:
        txn.execute("SAVEPOINT outer")
        txn.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(SqlForbiddenError, match="'outer'"):
            txn.execute_script(f"INSERT INTO t VALUES (2); {word} outer; INSERT INTO t VALUES (3); SELECT nothing")
        assert txn.execute("SELECT a FROM t").tuples == [(1,)]
        with pytest.raises(SqlForbiddenError, match="execute_script"):
            txn.executemany(f"{word} outer", [()])
        txn.execute_script(
            f"SAVEPOINT outer; INSERT INTO t VALUES (4); SAVEPOINT Inner; INSERT INTO t VALUES (5); {word} inner; "
            f"INSERT INTO t VALUES (6); {word} outer"
        )
        kept = [(1,)] if word == "ROLLBACK TO" else [(1,), (4,), (5,), (6,)]
        assert txn.execute("SELECT a FROM t").tuples == kept
        txn.execute("ROLLBACK TO outer")
        assert txn.execute("SELECT a FROM t").tuples == []


def test_a_savepoint_of_any_name(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    with db.transaction() as txn:
        txn.execute("SAVEPOINT fail")
        txn.execute("INSERT INTO t VALUES (1)")
        txn.execute("ROLLBACK TO fail")
        txn.execute("RELEASE fail")
        assert txn.execute("SELECT a FROM t").tuples == []


def test_a_writer_is_not_helped_by_others_of_its_turn(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db", {"sync_mode": "off", "foreign_keys": True}) as db:
        db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        db.execute("CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
        turn = [alone("INSERT INTO children VALUES (1)"), alone("INSERT INTO parents VALUES (1)")]
        db._sql()._run_turn(turn)
        assert isinstance(turn[0].error, SqlConstraintError)
        assert turn[1].error is None
        assert db.execute("SELECT count(*) FROM children").tuples == [(0,)]


# Statements that write and look as if they did not


def test_what_optimize_writes_is_written(db: Database) -> None:
    db.execute_script("CREATE TABLE t (a); CREATE INDEX i ON t (a)")
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(500)])
    stats = "SELECT name FROM sqlite_schema WHERE name = 'sqlite_stat1'"
    reader = db.begin_transaction(read_only=True)
    with pytest.raises(TransactionError, match="read-only"):
        reader.execute("PRAGMA optimize = 0x10002")
    reader.abort()
    assert db.execute(stats).tuples == []
    db.execute("PRAGMA optimize = 0x10002")
    assert db.execute(stats).tuples == [("sqlite_stat1",)]
    transaction = db.begin_transaction()
    assert transaction.execute(stats).tuples == [("sqlite_stat1",)], "only one connection knew of it"
    transaction.abort()


def test_the_fts3_function_optimize_is_a_write(db: Database) -> None:
    db.execute("CREATE VIRTUAL TABLE f USING fts3 (a)")
    for _ in range(3):
        db.execute("INSERT INTO f VALUES ('some words')")
    with db.transaction() as txn:
        txn.execute("SELECT optimize(f) FROM f LIMIT 1")
    assert db.execute("SELECT count(*) FROM f_segdir").tuples == [(1,)]
    assert db.execute("INSERT INTO f (f) VALUES ('integrity-check')").rows == []


# Pages


def test_a_transaction_that_skips_validation_still_validates_pages(db: Database) -> None:
    """``blind`` is an option of BEGIN on the wire, for plain writes of keys."""
    db.execute("CREATE TABLE t (a)")
    engine, sql = db._engine, db._sql()
    blind = engine.begin()
    blind.blind = True
    sql.session(blind).execute("INSERT INTO t VALUES ('blind')")
    db.execute("INSERT INTO t VALUES ('other')")
    with pytest.raises(TransactionConflictError):
        engine.commit(blind)
    assert db.execute("SELECT a FROM t").tuples == [("other",)]


def test_pages_that_a_rollback_left_behind_are_not_stored(db: Database) -> None:
    """What does not fit into SQLite's cache is in the write set, also when SQLite does not need it any more."""
    db.execute("CREATE TABLE t (a, b)")
    with db.transaction() as txn:
        txn.execute("SAVEPOINT s")
        txn.execute(
            "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 6000) "
            "SELECT x, zeroblob(7500) FROM n"
        )
        txn.execute("ROLLBACK TO s")
        txn.execute("INSERT INTO t VALUES (1, 'after')")
    assert db.execute("SELECT * FROM t").tuples == [(1, "after")]
    ((pages,),) = db.execute("PRAGMA page_count").tuples
    transaction = db._engine.begin()
    stored = transaction.scan(space=Space.SQL, values=False).batch(100_000, 1 << 30)[::2]
    db._engine.abort(transaction)
    assert len(stored) == pages


# Ctrl-C


CTRL_C = """
import os, signal, threading
from toondb import Database
from toondb.errors import TransactionError

with Database.open({path!r}, {{"sync_mode": "off"}}) as db:
    db.execute("CREATE TABLE t (a)")
    txn = db.begin_transaction()
    txn.put("key", b"value")
    txn.execute("INSERT INTO t VALUES ('first')")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        txn.execute(
            "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n WHERE x < 0"
        )
    except KeyboardInterrupt:
        pass
    timer.join()
    for call in (lambda: txn.execute("INSERT INTO t VALUES ('second')"), txn.commit):
        try:
            call()
        except TransactionError as error:
            print("ended" if "could not be undone" in str(error) else error)
    print(db.get("key"), db.execute("SELECT a FROM t").tuples)
"""


def test_ctrl_c_in_a_statement_ends_the_transaction(tmp_path: Path) -> None:
    """SQLite undoes the whole transaction then; what came before must not be missing from a commit that succeeds."""
    code = textwrap.dedent(CTRL_C.format(path=os.fspath(tmp_path / "db")))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True, cwd=tmp_path
    )
    assert done.stdout.split("\n")[:3] == ["ended", "ended", "None []"], done


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


def test_a_leader_that_is_interrupted_repeats_nothing_of_others(tmp_path: Path) -> None:
    """It runs the statements of others; when Ctrl-C meets it after the commit, theirs are not run again."""
    with Database.open(tmp_path / "db", {"sync_mode": "off"}) as db:
        db.execute("CREATE TABLE t (a)")
        queue = db._sql()._writes
        began, go_on = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def slow(connection: SqlConnection) -> Outcome:
            began.set()
            assert go_on.wait(SECONDS)
            return connection.run("SELECT 1", None, reading_only=False, in_transaction=False, seconds=None)

        def insert(value: int) -> None:
            try:
                db.execute("INSERT INTO t VALUES (?)", [value])
            except BaseException as error:
                failures.append(error)

        def arrange() -> None:
            # The main thread waits first, so it leads the others.
            while not queue._waiting:
                assert first.is_alive()
            for thread in others:
                thread.start()
            while len(queue._waiting) < 1 + len(others):
                assert first.is_alive()
            db._engine.writer.on_commit.append(interrupt)
            go_on.set()

        def interrupt(keys: object) -> None:
            # The commit of SELECT 1 is none; the next one is that of the main thread and perhaps of others.
            db._engine.writer.on_commit.remove(interrupt)
            os.kill(os.getpid(), signal.SIGINT)

        def raises(*_: object) -> None:
            raise Interrupted

        first = threading.Thread(target=queue.submit, args=(slow,))
        others = [threading.Thread(target=insert, args=(value,)) for value in range(3)]
        helper = threading.Thread(target=arrange)
        before = signal.signal(signal.SIGINT, raises)
        try:
            first.start()
            assert began.wait(SECONDS)
            helper.start()
            with pytest.raises(Interrupted):
                db.execute("INSERT INTO t VALUES (99)")
                first.join(SECONDS)  # the signal may be noticed late
        finally:
            signal.signal(signal.SIGINT, before)
        for thread in (first, helper, *others):
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert failures == []
        assert db.execute("SELECT a FROM t WHERE a < 99 ORDER BY a").tuples == [(0,), (1,), (2,)]
        assert db.execute("SELECT count(*) FROM t WHERE a = 99").tuples in ([(0,)], [(1,)])


def test_a_leader_that_is_interrupted_before_it_begins_leaves_the_lead() -> None:
    class Cut(WriteQueue[int, int]):
        cut = True

        def _lead(self, own: Write[int, int]) -> None:
            if self.cut:
                self.cut = False
                raise Interrupted
            super()._lead(own)

    def run(turn: list[Write[int, int]]) -> None:
        for write in turn:
            write.result, write.done = write.action + 1, True

    queue = Cut(run, 0.5)
    with pytest.raises(Interrupted):
        queue.submit(1)
    assert queue.submit(2) == 3


def test_a_leader_hands_over_to_those_who_wait_when_it_is_cut() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Cut(WriteQueue[int, int]):
        cut = True

        def _lead(self, own: Write[int, int]) -> None:
            if self.cut:
                self.cut = False
                entered.set()
                assert go_on.wait(SECONDS)
                raise Interrupted
            super()._lead(own)

    def run(turn: list[Write[int, int]]) -> None:
        for write in turn:
            write.result, write.done = write.action + 1, True

    queue = Cut(run, SECONDS)
    results: list[int] = []

    def lead() -> None:
        with pytest.raises(Interrupted):
            queue.submit(1)

    leader = threading.Thread(target=lead)
    leader.start()
    assert entered.wait(SECONDS)
    follower = threading.Thread(target=lambda: results.append(queue.submit(2)))
    follower.start()
    while len(queue._waiting) < 2:
        assert follower.is_alive()
    go_on.set()
    leader.join(SECONDS)
    follower.join(SECONDS)
    assert results == [3]


# Ends


def test_a_closed_handle_makes_no_sql_again(tmp_path: Path) -> None:
    """A thread that was about to use it must not open what nobody closes: other handles keep the engine open."""
    with Database.open(tmp_path / "db") as other:
        db = Database.open(tmp_path / "db")
        lazy = db._sql
        db.execute("SELECT 1")
        db.close()
        with pytest.raises(DatabaseClosedError):
            lazy()
        assert other.execute("SELECT 1").tuples == [(1,)]


def test_a_connection_with_a_statement_under_way_is_not_used_again(db: Database) -> None:
    """Its read transaction would go on, with pages of an old snapshot."""
    sql: SqlEngine = db._sql()
    db.execute("CREATE TABLE t (a)")
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(3)])
    cut, other = sql._reader(), sql._reader()
    text = "SELECT a FROM t"
    _, cursor = cut.start(text, None, reading_only=True, in_transaction=False, seconds=None)
    assert next(cursor) == (0,)
    sql._has_read(other)
    db.execute("INSERT INTO t VALUES (3)")
    # As when Ctrl-C comes before the rows are fetched, and the traceback keeps the cursor.
    sql._has_read(cut)
    transactions = [db.begin_transaction() for _ in range(4)]
    counts = [txn.execute("SELECT count(*) FROM t").tuples for txn in transactions]
    for txn in transactions:
        txn.abort()
    assert counts == [[(4,)]] * 4
    del cursor


def test_an_interrupted_statement_in_a_shared_turn(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")

    def run(connection: SqlConnection) -> Outcome:
        return connection.run(
            "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
            None,
            reading_only=False,
            in_transaction=False,
            seconds=0.02,
        )

    turn: list[Write[Action, Outcome]] = [
        alone("INSERT INTO t VALUES (1)"),
        Write(run),
        alone("INSERT INTO t VALUES (2)"),
    ]
    db._sql()._run_turn(turn)
    assert [type(write.error) for write in turn] == [type(None), SqlInterruptedError, type(None)]
    assert db.execute("SELECT a FROM t").tuples == [(1,), (2,)]
    with pytest.raises(SqlError):
        db.execute("SELECT nothing")


def test_a_connection_that_ctrl_c_cut_is_not_used_again(tmp_path: Path) -> None:
    """It may be in the middle of a step: with a hook that refuses, or without one that should."""
    with Engine(tmp_path / "db") as engine:
        sql = SqlEngine(engine)
        sql.execute("CREATE TABLE t (n)")
        used: list[Any] = []

        def cut(connection: Any) -> None:
            used.append(connection)
            raise KeyboardInterrupt

        transaction = engine.begin()
        with pytest.raises(KeyboardInterrupt):
            sql.session(transaction).run(cut)
        engine.abort(transaction)

        class Values(Sequence[int]):
            def __len__(self) -> int:
                return 1

            def __getitem__(self, at: Any) -> Any:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sql.execute("SELECT n FROM t WHERE n = ?", Values())
        assert sql._idle == []
        transaction = engine.begin()
        sql.session(transaction).run(used.append)
        engine.commit(transaction)
        assert used[0] is not used[1]
        assert sql.execute("SELECT count(*) FROM t").rows == [(0,)]
        assert sql._idle != []
        sql.close()
