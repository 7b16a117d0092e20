"""Cases after CPython's own tests of ``sqlite3``, with that module beside ToonDB as the oracle.

What its tests of the DB-API, of types, of regressions and of transactions look at is looked at here: each statement
runs on both, by itself and inside a transaction. Left out is what ToonDB has not: cursors, converters and adapters,
isolation levels, blobs opened by row, functions, aggregates and hooks in Python, and files to back up or attach.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sql_corpus.twins import Twins
from toondb import Database
from toondb_protocol.errors import SqlConstraintError, SqlError, SqlForbiddenError, ToonDBError, ValidationError


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "db", {"sync_mode": "off"}) as db:
        yield db


@pytest.fixture
def lite() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as lite:
        yield lite


@pytest.fixture(params=["plain", "transaction"])
def twins(request: pytest.FixtureRequest, db: Database, lite: sqlite3.Connection) -> Iterator[Twins]:
    """Both, each statement by itself or all in one transaction, which commits at the end."""
    if request.param == "plain":
        yield Twins(db, lite)
        Twins(db, lite).same_tables()
        return
    with db.transaction() as txn:
        lite.execute("BEGIN")
        yield Twins(txn, lite)
        lite.execute("COMMIT")
    Twins(db, lite).same_tables()


class Words(Sequence[str]):
    """A sequence that is neither a list nor a tuple."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]


class Defaults(dict[str, Any]):
    """A mapping that answers for every name."""

    def __missing__(self, name: str) -> str:
        return f"no {name}"


class Text(str):
    """A str of another class."""


class Number(int):
    """An int of another class."""


# Statements and their values


def test_a_statement_needs_no_values(twins: Twins) -> None:
    assert twins.run("SELECT 1 + 1").values == [(2,)]


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT", "SELECT FROM x", "INSERT INTO nowhere VALUES (1)", "1", "'a'"])
def test_what_is_not_sql_is_refused(twins: Twins, sql: str) -> None:
    assert twins.attempt(sql).error == "refused"
    twins.run("SELECT 1")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; SELECT 2;",
        "SELECT 1; -- one\nSELECT 2",
        "SELECT 1; /* one */ CREATE TABLE u (a)",
        "CREATE TABLE u (a); SELECT 1",
        "SELECT 1; x",
    ],
)
def test_more_than_one_statement_is_refused_and_none_runs(twins: Twins, sql: str) -> None:
    assert twins.attempt(sql).error == "refused"
    twins.same_tables()


@pytest.mark.parametrize(
    "rest", [";", " ; ", "\n", "; -- the end", "; /* the end */", ";\n\t /* a */ -- b\n /* c", "-- no line feed"]
)
def test_comments_and_blanks_may_follow(twins: Twins, rest: str) -> None:
    assert twins.run(f"SELECT 5 + 4{rest}").values == [(9,)]


def test_empty_statements_may_follow(twins: Twins) -> None:
    """sqlite3 takes only one semicolon."""
    assert twins.ours("SELECT 5 + 4;;;").values == [(9,)]


@pytest.mark.parametrize("sql", ["", " ", ";"])
def test_an_empty_text_is_refused(twins: Twins, sql: str) -> None:
    """sqlite3 does nothing; here it is most likely a mistake."""
    assert twins.theirs(sql).error == ""
    assert twins.ours(sql).error == "refused"
    with pytest.raises(SqlError, match="empty"):
        twins.store.execute_script(sql)


@pytest.mark.parametrize("sql", ["-- nothing\n", "/* nothing */", "/* not closed"])
def test_a_comment_does_nothing(twins: Twins, sql: str) -> None:
    assert twins.run(sql).values == []


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT ?", (42,)),
        ("SELECT ?", [2500.5]),
        ("SELECT ?", ("Hugo",)),
        ("SELECT ?", ("Hu\x00go",)),
        ("SELECT ?, typeof(?2), ?1", (1, b"x")),
        ("SELECT ?3, ?1, ?2", (1, 2, 3)),
        ("SELECT ? || ?", Words("a", "b")),
        ("SELECT :a, @b, $c", {"a": 1, "b": None, "c": "x"}),
        ("SELECT :a, :a", {"a": 1}),
        ("SELECT :a", {"a": 1, "not used": 2}),
        ("SELECT :naïve, :数", {"naïve": 1, "数": 2}),
        ("SELECT 1", ()),
        ("SELECT 1", {}),
        ("SELECT ?, ?", (Text("a"), Number(7))),
        ("SELECT ?, ?", (True, False)),
    ],
)
def test_values_come_back(twins: Twins, sql: str, params: Any) -> None:
    twins.run(sql, params)


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT ?", ()),
        ("SELECT ?", (1, 2)),
        ("SELECT ?, ?", (1,)),
        ("SELECT 1", (1,)),
        ("SELECT ?", None),
        ("SELECT ?2", (1,)),
        ("SELECT :a", {}),
        ("SELECT :a", {"A": 1}),
        ("SELECT :a, :b", {"a": 1}),
        ("SELECT :a", None),
        ("SELECT ?", {"a": 1}),
        ("SELECT ?", 42),
        ("SELECT ?", (object(),)),
        ("SELECT ?", ([1],)),
        ("SELECT ?", ({"a": 1},)),
        ("SELECT ?", (1j,)),
        ("SELECT ?", (2**63,)),
        ("SELECT ?", (-(2**63) - 1,)),
        ("SELECT ?", ("\ud8ff",)),
        ("SELECT ?", ("a\udcff",)),
    ],
)
def test_values_that_do_not_fit_are_refused(twins: Twins, sql: str, params: Any) -> None:
    assert twins.attempt(sql, params).error == "refused"
    assert twins.run("SELECT ?", ("after",)).values == [("after",)]


@pytest.mark.parametrize("sql", ["SELECT '\ud8ff'", "\ud8ff", "SELECT 1\x00", "\x00SELECT 1", "SELECT '\x00'"])
def test_statements_with_characters_that_no_statement_has(twins: Twins, sql: str) -> None:
    assert twins.attempt(sql).error == "refused"


@pytest.mark.parametrize("sql", [42, None, b"SELECT 1", ["SELECT 1"]])
def test_a_statement_is_a_text(twins: Twins, sql: Any) -> None:
    assert twins.attempt(sql).error == "refused"


def test_a_mapping_may_make_up_its_values(twins: Twins) -> None:
    """sqlite3 asks the mapping for each name; so must ToonDB, or refuse."""
    assert twins.theirs("SELECT :a", Defaults()).values == [("no a",)]
    ours = twins.ours("SELECT :a", Defaults())
    assert ours.error == "refused" or ours.values == [("no a",)]


def test_a_list_that_changes_while_it_is_bound(twins: Twins) -> None:
    """The values of a row are those it had; nothing of the list is used after it is freed."""

    class Emptied(Words):
        def __getitem__(self, at: Any) -> Any:
            words, self._words = self._words, ()
            return words[at]

    assert twins.ours("SELECT ?, ?, ?", Emptied("a", "b", "c")).error == "refused"
    twins.run("SELECT 1")


# Types


VALUES: list[Any] = [
    None,
    0,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    0.0,
    -0.0,
    0.1,
    3.14,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "Österreich",
    "a\x00b",
    "\U0001f600",
    "\uffff\ue000",
    b"",
    b"\x00\xff",
    bytearray(b"ab"),
    memoryview(b"abc"),
    memoryview(b"abcdef")[1:3],
    True,
    "1",
    " 1 ",
    "1e3",
    "0x10",
    "9223372036854775808",
    "x",
]


@pytest.mark.parametrize("declared", ["", "INTEGER", "REAL", "TEXT", "BLOB", "NUMERIC", "BOOLEAN", "TIMESTAMP"])
def test_a_column_gives_what_sqlite_makes_of_a_value(twins: Twins, declared: str) -> None:
    twins.run(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
    for at, value in enumerate(VALUES):
        twins.run("INSERT INTO t VALUES (?, ?)", (at, value))
        twins.run("SELECT v, typeof(v) FROM t WHERE id = ?", (at,))
        twins.run("SELECT id FROM t WHERE v = ? ORDER BY id", (value,))
    twins.run("SELECT typeof(v), count(*), min(v), max(v) FROM t GROUP BY 1 ORDER BY 1")
    twins.run("SELECT id FROM t ORDER BY v, id")


def test_more_values_than_a_statement_takes(twins: Twins) -> None:
    twins.run(f"SELECT {' + '.join('?' * 400)}", [1] * 400)
    assert twins.attempt("SELECT ?40000", [1]).error == "refused"


def test_too_large_values_are_refused(twins: Twins) -> None:
    twins.run("CREATE TABLE t (v)")
    twins.lite.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 256 * 1024 * 1024)
    assert twins.attempt("SELECT zeroblob(?)", (256 * 1024 * 1024 + 1,)).error == "refused"
    assert twins.attempt("INSERT INTO t VALUES (zeroblob(3000000000))").error == "refused"
    twins.run("SELECT length(zeroblob(1000000))")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS a",
        'SELECT 1 AS "a b"',
        "SELECT 1 AS 'a [b]'",
        'SELECT 1 AS ""',
        "SELECT 1 + 2",
        "SELECT  max( 1,2 )",
        "SELECT a, t.b, t.a + 1 FROM t",
        "SELECT * FROM t",
        "SELECT t.* FROM t AS t",
        "SELECT b AS a, a AS b FROM t WHERE 0",
        "WITH w AS (SELECT 1 AS one) SELECT * FROM w",
        "WITH w (one, two) AS (SELECT 1, 2) SELECT two, one FROM w",
        "VALUES (1, 2), (3, 4)",
        "PRAGMA table_info(t)",
        "EXPLAIN QUERY PLAN SELECT * FROM t",
    ],
)
def test_names_of_columns(twins: Twins, sql: str) -> None:
    twins.run("CREATE TABLE t (a INTEGER, b TEXT)")
    twins.run("INSERT INTO t VALUES (1, 'x')")
    if "EXPLAIN" in sql:
        assert twins.ours(sql).columns == twins.theirs(sql).columns
        return
    twins.run(sql)
    twins.run(sql)


def test_statements_without_rows_have_no_columns(twins: Twins) -> None:
    assert twins.run("CREATE TABLE t (a)").columns == []
    assert twins.run("INSERT INTO t VALUES (1)").columns == []
    assert twins.run("SELECT a FROM t WHERE a > 1").columns == ["a"]
    assert twins.run("UPDATE t SET a = 2").columns == []
    assert twins.run("DELETE FROM t").columns == []
    assert twins.run("DROP TABLE t").columns == []


def test_columns_follow_the_schema(twins: Twins) -> None:
    """A statement that was run before sees the columns of now."""
    twins.run("CREATE TABLE t (a)")
    twins.run("INSERT INTO t VALUES (1)")
    for change in (
        "ALTER TABLE t ADD COLUMN b DEFAULT 'x'",
        "ALTER TABLE t RENAME COLUMN a TO c",
        "ALTER TABLE t DROP COLUMN c",
        "DROP TABLE t",
        "CREATE TABLE t (x, y, z)",
        "INSERT INTO t VALUES (1, 2, 3)",
        "DROP TABLE t",
        "CREATE VIEW t AS SELECT 1 AS one",
        "DROP VIEW t",
    ):
        twins.attempt("SELECT * FROM t")
        twins.run(change)
        twins.attempt("SELECT * FROM t")


def test_a_text_that_is_not_utf8_is_refused(twins: Twins) -> None:
    assert twins.attempt("SELECT CAST(X'ff' AS TEXT)").error == "refused"
    assert twins.run("SELECT CAST(CAST(X'ff' AS TEXT) AS BLOB)").values == [(b"\xff",)]


# How many rows


def test_rows_affected(twins: Twins) -> None:
    twins.run("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    assert twins.run("INSERT INTO t (name) VALUES ('a'), ('b'), ('c')").changed == 3
    assert twins.run("UPDATE t SET name = 'x'").changed == 3
    assert twins.run("UPDATE t SET name = 'y' WHERE id > 9").changed == 0
    assert twins.run("SELECT * FROM t").changed == 0
    assert twins.run("REPLACE INTO t VALUES (1, 'z')").changed == 1
    assert twins.run("INSERT OR IGNORE INTO t VALUES (1, 'z'), (9, 'n')").changed == 1
    assert twins.run("INSERT INTO t VALUES (1, 'q') ON CONFLICT DO UPDATE SET name = excluded.name").changed == 1
    assert twins.run("INSERT INTO t VALUES (1, 'q') ON CONFLICT DO NOTHING").changed == 0
    assert twins.run("/* a comment first */ UPDATE t SET name = 'c' WHERE id < 3").changed == 2
    assert twins.run("-- a comment first\nDELETE FROM t WHERE id = 1").changed == 1
    assert twins.run("DELETE FROM t").changed == 3
    assert twins.run("CREATE INDEX i ON t (name)").changed == 0
    assert twins.run("REINDEX").changed == 0


def test_rows_affected_after_with(twins: Twins) -> None:
    """sqlite3 does not say: it looks at the first word."""
    twins.run("CREATE TABLE t (a)")
    insert = "WITH w (a) AS (VALUES (1), (2), (3)) INSERT INTO t SELECT a FROM w"
    delete = "WITH w (a) AS (VALUES (1), (2), (9)) DELETE FROM t WHERE a IN (SELECT a FROM w)"
    for sql, changed in ((insert, 3), (delete, 2)):
        assert twins.ours(sql).changed == changed
        twins.theirs(sql)
    assert twins.run("SELECT a FROM t").values == [(3,)]


def test_rows_affected_are_not_those_of_triggers(twins: Twins) -> None:
    twins.run("CREATE TABLE t (a)")
    twins.run("CREATE TABLE log (a)")
    twins.run("CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.a), (new.a); END")
    assert twins.run("INSERT INTO t VALUES (1), (2)").changed == 2
    assert twins.run_many("INSERT INTO t VALUES (?)", [(3,), (4,), (5,)]).changed == 3
    assert twins.run("SELECT count(*) FROM log").values == [(10,)]


def test_returning(twins: Twins) -> None:
    twins.run("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
    done = twins.run("INSERT INTO t (a) VALUES (1), (2), (3) RETURNING id, a * 10 AS tenfold")
    assert (done.columns, done.values, done.changed) == (["id", "tenfold"], [(1, 10), (2, 20), (3, 30)], 3)
    assert twins.run("UPDATE t SET a = a + 1 WHERE id > 1 RETURNING id").changed == 2
    assert twins.run("DELETE FROM t RETURNING *").changed == 3
    assert twins.run("DELETE FROM t RETURNING *").values == []


def test_the_last_row_id(twins: Twins) -> None:
    """Only inserts are compared: sqlite3 repeats an old one after other statements."""
    twins.run("CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE)")
    for sql, params in (
        ("INSERT INTO t (a) VALUES (?)", ("a",)),
        ("INSERT INTO t (a) VALUES (?)", ("b",)),
        ("INSERT INTO t VALUES (?, ?)", (500, "c")),
        ("INSERT INTO t VALUES (?, ?)", (-7, "d")),
        ("REPLACE INTO t VALUES (?, ?)", (500, "e")),
        ("REPLACE INTO t (a) VALUES (?)", ("b",)),
        ("INSERT OR REPLACE INTO t (a) VALUES (?)", ("a",)),
        ("INSERT INTO t (a) VALUES (?) RETURNING id", ("f",)),
    ):
        theirs = twins.lite.execute(sql, params)
        theirs.fetchall()
        assert twins.store.execute_sql(sql, params).last_row_id == theirs.lastrowid, sql
    with pytest.raises(SqlConstraintError):
        twins.store.execute_sql("INSERT OR ABORT INTO t (a) VALUES ('a')")


# Many runs


def test_executemany(twins: Twins) -> None:
    twins.run("CREATE TABLE t (a, b)")
    assert twins.run_many("INSERT INTO t VALUES (?, ?)", [(1, "x"), [2, None], Words("3", "z")]).changed == 3
    assert twins.run_many("INSERT INTO t VALUES (:a, :b)", [{"a": 4, "b": 1.5}, {"b": b"5", "a": 5}]).changed == 2
    assert twins.run_many("INSERT INTO t VALUES (?, ?)", []).changed == 0
    assert twins.run_many("UPDATE t SET b = ? WHERE a > ?", [("n", 1), ("m", 100), ("o", 2)]).changed > 3
    assert twins.run_many("DELETE FROM t WHERE a = ?", [(1,), (1,), (2,)]).changed == 2
    assert twins.run_many("INSERT INTO t VALUES (?, ?)", [(n, n) for n in range(1000)]).changed == 1000


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("INSERT INTO t VALUES (?)", [(1,), (2, 3)]),
        ("INSERT INTO t VALUES (?)", [(1,), ()]),
        ("INSERT INTO t VALUES (?)", [(1,), (object(),)]),
        ("INSERT INTO t VALUES (?)", [(1,), 2]),
        ("INSERT INTO t VALUES (?)", [(1,), (1,)]),
        ("INSERT INTO t VALUES (:a)", [{"a": 1}, {"b": 2}]),
        ("INSERT INTO nowhere VALUES (?)", [(1,)]),
        ("INSERT INTO t VALUES (?); SELECT 1", [(1,)]),
    ],
)
def test_executemany_that_fails_keeps_nothing(twins: Twins, sql: str, params: Any) -> None:
    twins.run("CREATE TABLE t (a UNIQUE)")
    twins.run("INSERT INTO t VALUES (0)")
    assert twins.run_many(sql, params).error
    assert twins.run("SELECT a FROM t").values == [(0,)]


@pytest.mark.parametrize("params", [42, None, "abc", {"a": 1}])
def test_executemany_takes_an_iterable(twins: Twins, params: Any) -> None:
    twins.run("CREATE TABLE t (a)")
    with pytest.raises(ValidationError):
        twins.store.executemany("INSERT INTO t VALUES (?)", params)


def test_executemany_passes_on_what_its_iterable_raises(twins: Twins) -> None:
    twins.run("CREATE TABLE t (a)")

    def values() -> Iterator[tuple[int]]:
        yield (1,)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        twins.store.executemany("INSERT INTO t VALUES (?)", values())
    assert twins.run("SELECT * FROM t").values == []


# Scripts


def test_a_script(twins: Twins) -> None:
    twins.script(
        """
        -- a comment; with a semicolon
        CREATE TABLE t (a, b); /* and; another */
        INSERT INTO t VALUES (5, 'a;b');
        CREATE TRIGGER tr AFTER INSERT ON t BEGIN
            UPDATE t SET b = 'end;' WHERE a = new.a;
            DELETE FROM t WHERE a = 5;
        END;
        SELECT * FROM t; SELECT 1;
        INSERT INTO t SELECT 6, b FROM t
        """
    )
    assert twins.run("SELECT * FROM t").values == [(6, "end;")]


@pytest.mark.parametrize("sql", ["-- only a comment", "/* and\n another */\n"])
def test_a_script_may_have_no_statement(twins: Twins, sql: str) -> None:
    twins.script(sql)
    assert twins.store.execute_script(sql).rows_affected == 0


def test_a_long_script(twins: Twins) -> None:
    twins.script("CREATE TABLE t (a); " + "".join(f"INSERT INTO t VALUES ({n});\n" for n in range(2000)))
    assert twins.run("SELECT count(*), sum(a) FROM t").values == [(2000, 1999000)]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE u (a); asdf; CREATE TABLE v (a)",
        "CREATE TABLE u (a); SELECT nothing FROM u",
        "INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)",
        "INSERT INTO t VALUES (1); INSERT INTO t",
        "INSERT INTO t VALUES (1); INSERT INTO t VALUES (?)",
        "INSERT INTO t VALUES (1); SELECT '\ud8ff'",
        "INSERT INTO t VALUES (1);\x00 INSERT INTO t VALUES (2)",
    ],
)
def test_a_script_that_fails_keeps_nothing(twins: Twins, sql: str) -> None:
    """sqlite3 keeps what came before the failure, unless the caller has a transaction; ToonDB never does."""
    twins.run("CREATE TABLE t (a UNIQUE)")
    if "?" in sql:
        # sqlite3 binds NULL to the parameters of a script; here they are not said to have a value.
        with contextlib.suppress(SqlError, ValidationError):
            twins.store.execute_script(sql)
            pytest.fail("a script has no values for its parameters")
    else:
        with pytest.raises((SqlError, ValidationError)):
            twins.store.execute_script(sql)
    twins.same_tables()


# Conflicts and what they undo


@pytest.mark.parametrize("action", ["ABORT", "FAIL", "IGNORE", "REPLACE"])
def test_what_to_do_on_a_conflict(twins: Twins, action: str) -> None:
    twins.run("CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, b DEFAULT 'new')")
    twins.run("INSERT INTO t VALUES (1, 'x', 'old')")
    if action == "FAIL":
        # sqlite3 keeps the rows before the failure; here a statement is kept whole or not at all.
        assert twins.ours(f"INSERT OR {action} INTO t (a) VALUES ('y'), ('x'), ('z')").error == "constraint"
        assert twins.run("SELECT a FROM t").values == [("x",)]
        return
    twins.attempt(f"INSERT OR {action} INTO t (a) VALUES ('y'), ('x'), ('z')")
    twins.attempt(f"UPDATE OR {action} t SET a = 'z'")
    twins.run("SELECT * FROM t ORDER BY id")


@pytest.mark.parametrize("then", ["SELECT a FROM t", "INSERT INTO t VALUES ('second')", ""])
@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES ('before')",
        "INSERT OR ROLLBACK INTO u VALUES ('before')",
        "UPDATE OR ROLLBACK u SET a = 'before'",
        "INSERT INTO guarded VALUES (1)",
    ],
)
def test_a_conflict_that_rolls_back_is_all_or_nothing(db: Database, sql: str, then: str) -> None:
    """sqlite3 undoes the whole transaction. Here it has keys, too: it goes on as before, or all of it is lost."""
    db.execute_script(
        """
        CREATE TABLE t (a UNIQUE ON CONFLICT ROLLBACK);
        CREATE TABLE u (a UNIQUE);
        CREATE TABLE guarded (a);
        CREATE TRIGGER g BEFORE INSERT ON guarded BEGIN SELECT raise(ROLLBACK, 'no'); END;
        INSERT INTO t VALUES ('before');
        INSERT INTO u VALUES ('before');
        """
    )
    txn = db.begin_transaction()
    txn.put(b"key", b"value")
    txn.execute_sql("INSERT INTO t VALUES ('first')")
    txn.execute_sql("INSERT INTO u VALUES ('first')")
    with pytest.raises(SqlError):
        txn.execute_sql(sql)
    try:
        if then:
            txn.execute_sql(then)
        txn.commit()
    except ToonDBError:
        txn.abort()
        assert db.get(b"key") is None
        assert db.execute_sql("SELECT a FROM t").tuples == [("before",)]
    else:
        assert db.get(b"key") == b"value"
        assert db.execute_sql("SELECT a FROM t").tuples[:2] == [("before",), ("first",)]


def test_a_failed_statement_leaves_the_rest(twins: Twins) -> None:
    twins.run("CREATE TABLE t (a INTEGER CHECK (a < 10), b NOT NULL DEFAULT 0)")
    twins.run("INSERT INTO t (a) VALUES (1), (2), (9)")
    assert twins.attempt("UPDATE t SET a = a + 1").error == "constraint"
    assert twins.attempt("INSERT INTO t (a, b) SELECT a, nullif(a, 9) FROM t").error == "constraint"
    assert twins.attempt("CREATE TABLE t (x)").error == "refused"
    assert twins.run("SELECT * FROM t").values == [(1, 0), (2, 0), (9, 0)]


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("INSERT INTO t VALUES (1, 'x', 5)", "constraint"),
        ("INSERT INTO t VALUES (2, 'a', 5)", "constraint"),
        ("INSERT INTO t VALUES (2, NULL, 5)", "constraint"),
        ("INSERT INTO t VALUES (2, 'x', -5)", "constraint"),
        ("INSERT INTO t VALUES ('text', 'x', 5)", "constraint|refused"),
        ("INSERT INTO s VALUES ('text')", "constraint"),
        ("INSERT INTO t VALUES (1)", "refused"),
        ("INSERT INTO t (nothing) VALUES (1)", "refused"),
        ("UPDATE v SET id = 1", "refused"),
        ("SELECT raise(ABORT, 'no')", "refused"),
        ("INSERT INTO guarded VALUES (1)", "constraint"),
        ("SELECT abs(-9223372036854775808)", "refused"),
        ("SELECT sum(9223372036854775807) FROM (VALUES (1), (2))", "refused"),
        ("SELECT json('{')", "refused"),
        ("SELECT a FROM t GROUP BY sum(a)", "refused"),
    ],
)
def test_errors_are_of_the_same_kind(twins: Twins, sql: str, error: str) -> None:
    for setup in (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, a CHECK (a > 0))",
        "CREATE TABLE s (a INTEGER) STRICT",
        "CREATE TABLE guarded (a)",
        "CREATE TRIGGER g BEFORE INSERT ON guarded BEGIN SELECT raise(ABORT, 'no'); END",
        "CREATE VIEW v AS SELECT id FROM t",
        "INSERT INTO t VALUES (1, 'a', 1)",
    ):
        twins.run(setup)
    if "|" in error:
        # A mismatch of a row id: sqlite3 calls it IntegrityError, SQLite itself has a code of its own for it.
        assert twins.ours(sql).error in error.split("|")
        assert twins.theirs(sql).error
        return
    assert twins.attempt(sql).error == error


def test_constraints_say_which(db: Database, lite: sqlite3.Connection) -> None:
    """The message and the extended code are SQLite's."""
    twins = Twins(db, lite)
    twins.run("CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, b NOT NULL, c CONSTRAINT positive CHECK (c > 0))")
    twins.run("INSERT INTO t VALUES (1, 1, 1, 1)")
    for values in ("(1, 2, 2, 2)", "(2, 1, 2, 2)", "(2, 2, NULL, 2)", "(2, 2, 2, 0)"):
        with pytest.raises(sqlite3.IntegrityError) as theirs:
            lite.execute(f"INSERT INTO t VALUES {values}")
        with pytest.raises(SqlConstraintError) as ours:
            db.execute_sql(f"INSERT INTO t VALUES {values}")
        assert str(theirs.value) in ours.value.message
        assert ours.value.details["extended_code"] == theirs.value.sqlite_errorcode


# Transactions


def test_tables_are_made_and_dropped_with_the_transaction(db: Database, lite: sqlite3.Connection) -> None:
    twins = Twins(db, lite)
    twins.run("CREATE TABLE old (a)")
    twins.run("INSERT INTO old VALUES (1)")
    for kept in (False, True):
        txn = db.begin_transaction()
        lite.execute("BEGIN")
        inside = Twins(txn, lite)
        inside.run("CREATE TABLE new (a)")
        inside.run("INSERT INTO new SELECT a + 1 FROM old")
        inside.run("DROP TABLE old")
        inside.run("ALTER TABLE new ADD COLUMN b DEFAULT 'b'")
        inside.same_tables()
        assert db.execute_sql("SELECT * FROM old").tuples == [(1,)]
        if kept:
            txn.commit()
            lite.execute("COMMIT")
        else:
            txn.abort()
            lite.execute("ROLLBACK")
        twins.same_tables()
        assert twins.attempt("SELECT * FROM new").values == ([(2, "b")] if kept else [])


def test_savepoints(db: Database, lite: sqlite3.Connection) -> None:
    with db.transaction() as txn:
        lite.execute("BEGIN")
        twins = Twins(txn, lite)
        twins.run("CREATE TABLE t (a)")
        for sql in (
            "SAVEPOINT one",
            "INSERT INTO t VALUES (1)",
            "SAVEPOINT two",
            "INSERT INTO t VALUES (2)",
            "ROLLBACK TO two",
            "INSERT INTO t VALUES (3)",
            "RELEASE two",
            'SAVEPOINT "two words"',
            "CREATE TABLE u (a)",
            'ROLLBACK TRANSACTION TO SAVEPOINT "two words"',
            "RELEASE one",
            "/* again */ SAVEPOINT one",
            "DELETE FROM t",
            "-- and back\nROLLBACK TO one",
        ):
            twins.run(sql)
        assert twins.attempt("RELEASE nothing").error == "refused"
        assert twins.attempt("ROLLBACK TO two").error == "refused"
        lite.execute("COMMIT")
    Twins(db, lite).same_tables()
    assert db.execute_sql("SELECT a FROM t").tuples == [(1,), (3,)]


@pytest.mark.parametrize("sql", ["SAVEPOINT s", "/* c */ SAVEPOINT s", "-- c\nSAVEPOINT s"])
def test_a_savepoint_outside_a_transaction_is_refused(db: Database, sql: str) -> None:
    """Also where the same text was allowed inside one."""
    with pytest.raises(SqlError):
        db.execute_sql(sql)
    for _ in range(2):
        with db.transaction() as txn:
            txn.execute_sql(sql)
            txn.execute_sql(sql)
        for _ in range(2):
            with pytest.raises(SqlError):
                db.execute_sql(sql)


@pytest.mark.parametrize(
    "sql", ["BEGIN", "BEGIN IMMEDIATE", "COMMIT", "END", "ROLLBACK", "/* c */ COMMIT", "-- c\nBEGIN EXCLUSIVE"]
)
def test_transactions_are_not_statements(twins: Twins, sql: str) -> None:
    """What sqlite3 leaves to statements is the caller's: ToonDB names its methods."""
    for _ in range(2):
        with pytest.raises(SqlForbiddenError, match=r"transaction\(\)"):
            twins.store.execute_sql(sql)
        with pytest.raises(SqlForbiddenError, match=r"transaction\(\)"):
            twins.store.execute_script(f"SELECT 1; {sql}")
    twins.run("SELECT 1")


def test_rows_that_are_read_while_others_are_written(db: Database) -> None:
    """The rows of a stream are those of when it began, whatever is written meanwhile."""
    db.execute_sql("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    db.executemany("INSERT INTO t VALUES (?)", ((n,) for n in range(5000)))
    seen = []
    for row in db.stream_sql("SELECT a FROM t ORDER BY a"):
        seen.append(row["a"])
        if row["a"] % 1000 == 0:
            db.execute_sql("DELETE FROM t WHERE a > ?", (row["a"],))
            db.execute_sql("INSERT INTO t VALUES (?)", (100_000 + row["a"],))
    assert seen == list(range(5000))
    assert db.execute_sql("SELECT count(*) FROM t").tuples == [(2,)]


def test_an_aborted_transaction_gives_no_more_rows(db: Database) -> None:
    db.execute_sql("CREATE TABLE t (a)")
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(50_000)])
    txn = db.begin_transaction()
    txn.execute_sql("INSERT INTO t VALUES (-1)")
    rows = iter(txn.stream_sql("SELECT a FROM t"))
    assert next(rows) == {"a": 0}
    txn.abort()
    with pytest.raises(ToonDBError):
        list(rows)
    assert db.execute_sql("SELECT count(*) FROM t").tuples == [(50_000,)]


def test_one_statement_in_several_streams(db: Database) -> None:
    db.execute_sql("CREATE TABLE t (a)")
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(2000)])
    streams = [db.stream_sql("SELECT a FROM t WHERE a >= ? ORDER BY a", (start,)) for start in (0, 500, 0)]
    for at in range(1500):
        assert [next(stream)["a"] for stream in streams] == [at, at + 500, at]
    assert len(list(streams[0])) == 500
    for stream in streams[1:]:
        assert isinstance(stream, Generator)
        stream.close()


def test_pragmas_that_may_be_set(db: Database, lite: sqlite3.Connection) -> None:
    twins = Twins(db, lite)
    assert twins.run("PRAGMA user_version").values == [(0,)]
    for number in (7, -1, 2**31 - 1):
        twins.run(f"PRAGMA user_version = {number}")
        assert twins.run("PRAGMA user_version").values == [(number,)]
    txn = db.begin_transaction()
    txn.execute_sql("PRAGMA user_version = 9")
    txn.abort()
    twins.run("PRAGMA user_version")


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMP TABLE t (a)",
        "ATTACH ':memory:' AS other",
        "VACUUM",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA synchronous = OFF",
        "SELECT load_extension('x')",
    ],
)
def test_what_sqlite3_can_and_toondb_refuses(twins: Twins, sql: str) -> None:
    with pytest.raises(SqlForbiddenError):
        twins.store.execute_sql(sql)


# Functions that SQLite has itself


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT upper('ä'), lower('ÄA'), 'a' LIKE 'A', 'ä' LIKE 'Ä', 'a' GLOB 'A'",
        "SELECT count(*), count(a), sum(a), total(a), avg(a), min(a), max(a), group_concat(a) FROM n",
        "SELECT sum(a) FILTER (WHERE a > 2), count(DISTINCT b) FROM n",
        "SELECT sum(a), total(a), avg(a) FROM n WHERE 0",
        "SELECT a, sum(a) OVER (ORDER BY a ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM n ORDER BY a",
        "SELECT b, rank() OVER w, lag(a) OVER w, ntile(2) OVER w FROM n WINDOW w AS (PARTITION BY b ORDER BY a)",
        "SELECT coalesce(NULL, 1.5), nullif(1, 1), iif(1, 'y', 'n'), ifnull(NULL, X'00')",
        "SELECT substr('häuser', 2, 3), instr('häuser', 'user'), replace('aaa', 'a', 'bb'), trim('  x ')",
        "SELECT hex(zeroblob(3)), quote('it''s'), quote(X'ff'), quote(NULL), unicode('€'), char(8364)",
        "SELECT round(2.5), round(-2.567, 2), abs(-3), sign(-2.5), 7 / 2, -7 / 2, 7 % -3, 7 / 0, 7.0 / 2",
        "SELECT date('2024-02-29', '+1 year'), datetime(0, 'unixepoch'), julianday('2000-01-01')",
        "SELECT json_extract('{\"a\": [1, 2.5, \"x\", null]}', '$.a[1]'), json('[1, 2]'), json_type('[]')",
        "SELECT value, type FROM json_each('[1, \"a\", null, 1.5]')",
        "SELECT printf('%05d|%.3f|%s|%x', 42, 1.5, 'x', 255)",
        "SELECT a FROM n ORDER BY b COLLATE NOCASE DESC, a LIMIT 3 OFFSET 1",
        "SELECT 'a' < 'B' COLLATE NOCASE, 'a ' = 'a' COLLATE RTRIM, 1 < 'a', X'00' > 'a', NULL = NULL, NULL IS NULL",
        "SELECT 9223372036854775807 + 1, -9223372036854775808, 1 << 62, ~0, 0x10, 1e1000",
        "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 10) SELECT sum(n), max(n) FROM c",
        "SELECT a FROM n WHERE (a, b) IN (SELECT 1, 'x' UNION SELECT 4, 'X') ORDER BY a",
        "SELECT DISTINCT b FROM n EXCEPT SELECT 'x' INTERSECT SELECT 'X'",
    ],
)
def test_functions(twins: Twins, sql: str) -> None:
    twins.run("CREATE TABLE n (a INTEGER, b TEXT)")
    twins.run_many("INSERT INTO n VALUES (?, ?)", [(1, "x"), (2, "y"), (3, None), (4, "X"), (None, "ä")])
    assert twins.ours(sql).values == twins.theirs(sql).values


@pytest.mark.parametrize("sql", ["CREATE INDEX i ON t (random())", "CREATE TABLE u (a CHECK (random() > 0)) STRICT"])
def test_indexes_need_functions_that_always_give_the_same(twins: Twins, sql: str) -> None:
    twins.run("CREATE TABLE t (a)")
    assert twins.attempt(sql).error == "refused"


def test_foreign_keys_are_kept_when_asked_for(tmp_path: Path, lite: sqlite3.Connection) -> None:
    lite.execute("PRAGMA foreign_keys = ON")
    with Database.open(tmp_path / "keys", {"sync_mode": "off", "foreign_keys": True}) as db:
        twins = Twins(db, lite)
        twins.run("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        twins.run("CREATE TABLE child (p REFERENCES parent ON DELETE CASCADE, q REFERENCES parent DEFERRABLE)")
        twins.run("INSERT INTO parent VALUES (1), (2)")
        twins.run("INSERT INTO child VALUES (1, NULL), (2, NULL), (1, 2)")
        assert twins.attempt("INSERT INTO child VALUES (3, NULL)").error == "constraint"
        assert twins.attempt("DELETE FROM parent WHERE id = 2").error == "constraint"
        assert twins.run("DELETE FROM parent WHERE id = 1").changed == 1
        assert twins.run("SELECT * FROM child").values == [(2, None)]
