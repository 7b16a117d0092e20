"""Plugins fire on the rows that SQL changes: what they see, change and refuse, and that nothing else is different."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.daemon import child_environ
from toondb import Database
from toondb.plugins import PluginError, PythonPlugin, TriggerAbort, TriggerEvent
from toondb.sql.row_statement import Kind, parse, statements
from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    SqlInterruptedError,
    TransactionConflictError,
    TransactionError,
)

SHARED: dict[str, Any] = {}
"""What a test and the code of its plugins have in common."""

HEAD = "from tests.sql.test_row_triggers import SHARED\nLOG = SHARED.setdefault('log', [])\n"
EVERY = [event for event in TriggerEvent if event is not TriggerEvent.ON_BATCH]
WATCH = HEAD + "".join(
    f"def {event.handler}(row):\n    LOG.append(({str(event)!r}, dict(row)))\n" for event in TriggerEvent
).replace("(row):\n    LOG.append(('ON BATCH', dict(row)))", "(rows):\n    LOG.append(('ON BATCH', rows))")
LOWER = """
def on_before_insert(row):
    row["email"] = (row.get("email") or row["name"] + "@x").strip().lower()
    return row

on_before_update = on_before_insert
"""
UPPER = """
def on_before_insert(row):
    row["a"] = row["a"].upper()
    return row

on_before_update = on_before_insert
"""


@pytest.fixture(autouse=True)
def shared() -> Iterator[None]:
    SHARED.clear()
    SHARED["log"] = []
    yield
    SHARED.clear()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "db", {"sync_mode": "off", "foreign_keys": True}) as db:
        SHARED["db"] = db
        yield db


def plugin(code: str, *events: TriggerEvent | str, table: str = "t", name: str = "p") -> PythonPlugin:
    return PythonPlugin(name, HEAD + code, triggers={table: events})


def before_insert(body: str, table: str = "t", name: str = "p") -> PythonPlugin:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return plugin(f"def on_before_insert(row):\n{lines}\n    return row\n", "BEFORE INSERT", table=table, name=name)


def watch(db: Database, *events: TriggerEvent | str, table: str = "*") -> list[tuple[str, Any]]:
    """The log of all events, from now on."""
    db.plugins.register(PythonPlugin("watch", WATCH, triggers={table: events or EVERY}))
    log: list[tuple[str, Any]] = SHARED["log"]
    return log


def users(db: Database) -> None:
    db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, email TEXT NOT NULL UNIQUE, age INTEGER)")
    db.plugins.register(PythonPlugin("lower", LOWER, triggers={"users": ["BEFORE INSERT", "BEFORE UPDATE"]}))


def test_the_plugin_of_the_guides(db: Database) -> None:
    db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, email TEXT, age INTEGER, created_at REAL)")
    db.plugins.register(
        PythonPlugin(
            "user_validator",
            HEAD
            + """
def on_before_insert(row: dict) -> dict:
    if "email" in row:
        row["email"] = row["email"].lower().strip()
    if row.get("age", 0) < 0:
        raise TriggerAbort("Age cannot be negative", code="INVALID_AGE")
    import time
    row["created_at"] = time.time()
    return row

def on_after_delete(row: dict) -> dict:
    LOG.append(row["name"])
    return row
""",
            triggers={"users": ["BEFORE INSERT", "AFTER DELETE"]},
        )
    )
    # What a statement does not name is not in the row.
    db.execute("INSERT INTO users (name) VALUES ('Ann')")
    done = db.execute("INSERT INTO users (name, email, age) VALUES (?, ?, ?)", ["Bob", "  BOB@X ", 3])
    assert (done.rows_affected, done.last_row_id, done.rows) == (1, 2, [])
    assert db.execute("SELECT name, email, age, created_at > 0 FROM users").tuples == [
        ("Ann", None, None, 1),
        ("Bob", "bob@x", 3, 1),
    ]
    with pytest.raises(TriggerAbort, match="Age cannot be negative") as caught:
        db.execute("INSERT INTO users (name, age) VALUES ('Eve', 5), ('Joe', -1)")
    assert caught.value.code == "INVALID_AGE"
    place = {"plugin": "user_validator", "handler": "on_before_insert", "table": "users", "event": "BEFORE INSERT"}
    assert caught.value.details.items() >= place.items()
    assert db.execute("DELETE FROM users WHERE id = 1").rows_affected == 1
    assert SHARED["log"] == ["Ann"]
    assert db.execute("SELECT name FROM users").tuples == [("Bob",)]


def test_all_events_in_their_order(db: Database) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT DEFAULT 'd', b AS (a || '!'))")
    log = watch(db, *TriggerEvent)
    db.execute("INSERT INTO t (a) VALUES ('x'), ('y')")
    x, y = ({"id": at, "a": a, "b": a + "!"} for at, a in ((1, "x"), (2, "y")))
    before = [{name: row[name] for name in ("a", "b")} for row in (x, y)]
    assert log == [
        ("ON BATCH", before),
        ("BEFORE INSERT", before[0]),
        ("AFTER INSERT", x),
        ("BEFORE INSERT", before[1]),
        ("AFTER INSERT", y),
    ]
    log.clear()
    db.execute("UPDATE t SET a = a || '1' WHERE id = 2")
    y = {"id": 2, "a": "y1", "b": "y1!"}
    assert log == [("BEFORE UPDATE", y), ("AFTER UPDATE", y)]
    log.clear()
    db.execute("DELETE FROM t")
    assert log == [(f"{when} DELETE", row) for row in (x, y) for when in ("BEFORE", "AFTER")]
    log.clear()
    db.execute("INSERT INTO t DEFAULT VALUES")
    db.execute("INSERT INTO t SELECT 7, NULL")
    assert [row for event, row in log if event == "BEFORE INSERT"] == [
        {"id": None, "a": "d", "b": "d!"},
        {"id": 7, "a": None, "b": None},
    ]


def test_names_of_tables_are_those_of_sql(db: Database) -> None:
    for name in ('a "quoted" [name]', "Mixed", "table"):
        quoted = '"' + name.replace('"', '""') + '"'
        db.execute(f'CREATE TABLE {quoted} ("select" INTEGER PRIMARY KEY, "a ""b""", "c?" NOT NULL)')
        db.plugins.register(before_insert("row['C?'] = 'filled'", name.upper(), name))
        text = f'INSERT INTO main.{quoted} AS x ("a ""b""") VALUES (?) RETURNING *'
        assert db.execute(text, [5]).tuples == [(1, 5, "filled")]
    assert db.execute('INSERT INTO [mixed] ("SELECT") VALUES (9) RETURNING *').tuples == [(9, None, "filled")]


@pytest.mark.parametrize(
    ("text", "bindings", "returned", "affected", "last"),
    [
        ("INSERT INTO users (name) VALUES ('N') RETURNING id, email AS e", None, [(3, "n@x")], 1, 3),
        ("INSERT INTO users (name, age) VALUES (?, 1), ('M', ?) RETURNING id + ?", ["N", 2, 10], [(13,), (14,)], 2, 4),
        ("INSERT INTO users (name, age) VALUES (?2, ?1) RETURNING ?1, age, ?3", [7, "N", 8], [(7, 7, 8)], 1, 3),
        ("INSERT INTO users (name, age) VALUES (:n, :a) RETURNING :a + 1", {"n": "N", "a": 7}, [(8,)], 1, 3),
        ("INSERT INTO users (name, age) VALUES (:n, :a) RETURNING :a + 1", ["N", 7], [(8,)], 1, 3),
        ("INSERT INTO users (name) VALUES ('ANN') ON CONFLICT DO NOTHING RETURNING id", None, [], 0, 0),
        (
            "INSERT INTO users (name) VALUES ('ANN') ON CONFLICT (email) DO UPDATE SET name = excluded.name || ?, "
            "email = upper(excluded.email) || name WHERE age IS NULL RETURNING id, name, email",
            ["!"],
            [(1, "ANN!", "ann@xann")],
            1,
            0,
        ),
        ("INSERT OR IGNORE INTO users (name) VALUES ('ANN'), ('N')", None, [], 1, 3),
        ("REPLACE INTO users (name) VALUES ('ANN') RETURNING id", None, [(3,)], 1, 3),
        (
            "INSERT OR REPLACE INTO users (id, name) VALUES (2, 'ANN') RETURNING *",
            None,
            [(2, "ANN", "ann@x", None)],
            1,
            2,
        ),
        ("INSERT INTO users (id, name) VALUES (-1, 'N'), (NULL, 'M') RETURNING id", None, [(-1,), (3,)], 2, 3),
        ("INSERT INTO users VALUES (-1, 'N', NULL, 1), (NULL, 'M', NULL, 2) RETURNING id", None, [(-1,), (3,)], 2, 3),
        ("INSERT INTO users (rowid, name) VALUES (-1, ?) RETURNING id", ["N"], [(-1,)], 1, -1),
        (
            "WITH w(a) AS (VALUES (?), (?)) INSERT INTO users (name, id) SELECT a, NULL FROM w RETURNING "
            "(SELECT count(*) FROM w), id -- comment",
            ["N", "M"],
            [(2, 3), (2, 4)],
            2,
            4,
        ),
        (
            "WITH w AS (SELECT -1 AS i) INSERT INTO users (id, name) SELECT i, 'N' FROM w RETURNING id",
            None,
            [(-1,)],
            1,
            -1,
        ),
        (
            "INSERT INTO users (name) SELECT name || 'x' FROM users RETURNING email",
            None,
            [("annx@x",), ("bobx@x",)],
            2,
            4,
        ),
        (
            "UPDATE users SET name = 'N', email = ' NEW' WHERE id = ? RETURNING ?, *",
            [1, 9],
            [(9, 1, "N", "new", None)],
            1,
            0,
        ),
        (
            "UPDATE users AS u SET email = NULL WHERE u.name LIKE ? RETURNING email",
            ["%"],
            [("ann@x",), ("bob@x",)],
            2,
            0,
        ),
        ("UPDATE users SET id = id + 10 RETURNING id", None, [(11,), (12,)], 2, 0),
        ("UPDATE OR REPLACE users SET email = 'ANN@x' WHERE id = 2 RETURNING id, email", None, [(2, "ann@x")], 1, 0),
        ("UPDATE OR IGNORE users SET email = 'ANN@x' WHERE id = 2 RETURNING id, email", None, [], 0, 0),
        (
            "UPDATE users SET (name, age) = (w.b, w.a) FROM (SELECT 1 AS a, 'Z' AS b) AS w WHERE id = w.a "
            "RETURNING name, age",
            None,
            [("Z", 1)],
            1,
            0,
        ),
        ("UPDATE users SET age = name IS DISTINCT FROM 'Ann' RETURNING age", None, [(0,), (1,)], 2, 0),
        ("DELETE FROM users WHERE id = 1 RETURNING name", None, [("Ann",)], 1, 0),
    ],
)
def test_what_a_statement_answers(
    db: Database, text: str, bindings: Any, returned: list[Any], affected: int, last: int
) -> None:
    users(db)
    db.execute("INSERT INTO users (name) VALUES ('Ann'), ('Bob')")
    assert db.execute("SELECT email FROM users").tuples == [("ann@x",), ("bob@x",)]
    for _ in range(2):
        transaction = db.transaction()
        done = transaction.execute(text, bindings)
        assert (done.tuples, done.rows_affected, done.last_row_id) == (returned, affected, last)
        assert list(transaction.execute("SELECT email FROM users WHERE email <> lower(email)")) == []
        transaction.abort()
    done = db.execute(text, bindings)
    assert (done.tuples, done.rows_affected, done.last_row_id) == (returned, affected, last)
    assert db.execute("PRAGMA integrity_check").tuples == [("ok",)]


def test_stream_many_and_script(db: Database) -> None:
    users(db)
    assert list(db.stream_sql("INSERT INTO users (name) VALUES ('A') RETURNING email")) == [{"email": "a@x"}]
    many = db.executemany("INSERT INTO users (name, age) VALUES (?, ?)", [("B", 1), ("C", 2), ("D", 3)])
    assert (many.rows_affected, many.last_row_id) == (3, 4)
    many = db.executemany(
        "INSERT INTO users (name) VALUES (:n) ON CONFLICT (email) DO UPDATE SET age = :a",
        [{"n": "b", "a": 10}, {"n": "e", "a": 11}, {"n": "c", "a": 12}],
    )
    assert (many.rows_affected, many.last_row_id) == (3, 5)
    done = db.execute_script(
        """
        INSERT INTO users (name) VALUES ('semi;colon'); -- and; a comment
        CREATE TRIGGER older AFTER INSERT ON users BEGIN UPDATE users SET age = 1 WHERE id = NEW.id; SELECT 1; END;
        INSERT INTO users (name) VALUES ('F');
        SAVEPOINT s; DELETE FROM users; ROLLBACK TO s; RELEASE s;
        DROP TRIGGER older
        """
    )
    assert done.last_row_id == 7
    assert db.execute("SELECT email, age FROM users ORDER BY id").tuples == [
        ("a@x", None),
        ("b@x", 10),
        ("c@x", 12),
        ("d@x", 3),
        ("e@x", None),
        ("semi;colon@x", None),
        ("f@x", 1),
    ]
    with pytest.raises(SqlConstraintError, match="UNIQUE"):
        db.executemany("INSERT INTO users (name, email) VALUES (?, ?)", [("G", "G"), ("H", "A@X")])
    with pytest.raises(SqlConstraintError, match="UNIQUE"):
        db.execute_script("DELETE FROM users; INSERT INTO users (name) VALUES ('i'), ('I')")
    assert db.execute("SELECT count(*) FROM users").tuples == [(7,)]


def test_a_batch_is_what_one_call_inserts(db: Database) -> None:
    db.execute("CREATE TABLE t (a, b)")
    db.plugins.register(
        plugin(
            """
def on_batch(rows):
    LOG.append(len(rows))
    return [{**row, "b": at} for at, row in enumerate(rows) if row["a"] != "drop"] + [{"A": "added"}]
""",
            "ON BATCH",
        )
    )
    assert db.execute("INSERT INTO t (a) VALUES (1), ('drop'), (2) RETURNING a, b").tuples == [
        (1, 0),
        (2, 2),
        ("added", None),
    ]
    assert db.executemany("INSERT INTO t (a) VALUES (?)", [(3,), ("drop",), (4,)]).rows_affected == 3
    # Here the rows of each run go with values of their own.
    db.executemany("INSERT INTO t (a) VALUES (?) ON CONFLICT DO UPDATE SET b = ?", [(5, 1), ("drop", 2)])
    assert SHARED["log"] == [3, 3, 1, 1]
    assert db.execute("SELECT a, b FROM t WHERE a <> 'added'").tuples == [(1, 0), (2, 2), (3, 0), (4, 2), (5, 0)]
    assert db.execute("INSERT INTO t SELECT 1, 1 WHERE 0").rows_affected == 0
    assert len(SHARED["log"]) == 4


def test_rows_without_a_row_id_and_with_one_of_their_own(db: Database) -> None:
    db.execute("CREATE TABLE w (a TEXT, b INTEGER, c, PRIMARY KEY (b, a)) WITHOUT ROWID")
    db.execute("CREATE TABLE r (rowid TEXT, a)")
    db.execute("CREATE TABLE n (oid TEXT, _rowid_ TEXT, rowid TEXT)")
    db.execute("CREATE TABLE d (id INTEGER PRIMARY KEY DESC, a)")
    db.plugins.register(
        PythonPlugin(
            "upper",
            "def on_before_insert(row):\n"
            "    return {k: v.upper() if isinstance(v, str) else v for k, v in row.items()}\n"
            "on_before_update = on_before_insert\n",
            triggers={"*": ["BEFORE INSERT", "BEFORE UPDATE"]},
        )
    )
    db.execute("INSERT INTO w VALUES ('a', 1, 'c'), ('b', 1, 'c')")
    assert db.execute("UPDATE w SET a = 'x', c = 'y' WHERE a = 'B' RETURNING *").tuples == [("X", 1, "Y")]
    assert db.execute("INSERT INTO w VALUES ('x', 1, 0) ON CONFLICT DO UPDATE SET c = 'z' RETURNING c").tuples == [
        ("Z",)
    ]
    db.execute("INSERT INTO r (_rowid_, rowid, a) VALUES (-1, 'a', 'b'), (9, 'c', 'd'), (NULL, 'e', 'f')")
    db.execute("UPDATE r SET _rowid_ = 20, a = 'g' WHERE a = 'D'")
    assert db.execute("SELECT _rowid_, rowid, a FROM r").tuples == [
        (-1, "A", "B"),
        (10, "E", "F"),
        (20, "C", "g".upper()),
    ]
    db.execute("INSERT INTO n VALUES ('a', 'b', 'c'), ('d', NULL, 'f')")
    db.execute("UPDATE n SET oid = 'new' WHERE _rowid_ IS NULL")
    assert db.execute("SELECT * FROM n").tuples == [("A", "B", "C"), ("NEW", None, "F")]
    assert db.execute("INSERT INTO d VALUES (NULL, 'a'), (3, 'b') RETURNING *").tuples == [(None, "A"), (3, "B")]


def test_many_columns(db: Database) -> None:
    names = [f"c{n}" for n in range(1500)]
    db.execute(f"CREATE TABLE t ({', '.join(names)})")
    log = watch(db)
    db.execute(f"INSERT INTO t VALUES ({', '.join(map(str, range(1500)))})")
    db.execute("UPDATE t SET c7 = 'seven'")
    row = dict(zip(names, range(1500), strict=True))
    assert [event for event, _ in log] == ["BEFORE INSERT", "AFTER INSERT", "BEFORE UPDATE", "AFTER UPDATE"]
    assert [each for _, each in log] == [row, row, {**row, "c7": "seven"}, {**row, "c7": "seven"}]


def test_what_is_left_out_of_a_row(db: Database) -> None:
    db.execute("CREATE TABLE t (a DEFAULT 'da', b DEFAULT (1 + 1), c DEFAULT \"dc\", d DEFAULT de)")
    db.execute("CREATE TABLE log (n)")
    db.execute("CREATE TRIGGER inner AFTER INSERT ON log BEGIN INSERT INTO t VALUES (1, 2, 3, 4); END")
    db.execute("CREATE TRIGGER change AFTER UPDATE ON log BEGIN UPDATE t SET a = 5, b = 6; END")
    db.plugins.register(
        plugin(
            "def on_before_insert(row):\n    return {'a': row['a']} if SHARED['keep'] else {}\n"
            "on_before_update = on_before_insert",
            "BEFORE INSERT",
            "BEFORE UPDATE",
        )
    )
    for keep in (True, False):
        SHARED["keep"] = keep
        db.execute("INSERT INTO t VALUES (1, 2, 3, 4)")
        db.execute("INSERT INTO log VALUES (1)")
        a = 1 if keep else "da"
        assert db.execute("SELECT * FROM t").tuples == [(a, 2, "dc", "de")] * 2
        assert db.execute("UPDATE t SET a = 5, b = 6").rows_affected == 2
        a = 5 if keep else "da"
        assert db.execute("SELECT * FROM t").tuples == [(a, 2, "dc", "de")] * 2
        db.execute("UPDATE log SET n = 2")
        assert db.execute("SELECT * FROM t").tuples == [(a, 2, "dc", "de")] * 2
        db.plugins.unregister("none")
        db.execute("DELETE FROM t")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("row['created'] = 1", "plugin 'p' gave a column 'created', which the table does not have"),
        ("row[5] = 1", "gave a column 5"),
        ("row['A'] = 1", "gave the column 'a' twice"),
        ("row['g'] = 1", "changed the column 'g', which is generated"),
        ("row['a'] = [1]", "gave a value that no column holds: parameter a is of type list"),
        ("row['a'] = 2 ** 63", "gave 'a' an int of more than 64 bits"),
        ("row['a'] = chr(0xd800)", "gave 'a' text that is not valid Unicode"),
        ("row['a'] = {}['x']", r"on_before_insert\(\) failed at line 4 of the plugin: KeyError: 'x'"),
        ("return 5", "must return the row"),
        ("SHARED['db'].execute('INSERT INTO t (a) VALUES (1)')", "a plugin cannot write SQL tables"),
        ("SHARED['db'].execute_script('DELETE FROM t')", "a plugin cannot write SQL tables"),
        ("SHARED['other'].execute('DELETE FROM t')", "a plugin cannot write SQL tables"),
        ("SHARED['late'].execute('DELETE FROM t')", "a plugin cannot write SQL tables"),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_mistakes_of_plugins(db: Database, body: str, says: str, inner: bool) -> None:
    db.execute("CREATE TABLE t (a, g AS (a || 'g'))")
    db.execute("CREATE TABLE log (n)")
    db.execute("CREATE TRIGGER inner AFTER INSERT ON log BEGIN INSERT INTO t (a) VALUES (1); END")
    text = "INSERT INTO log VALUES (1)" if inner else "INSERT INTO t (a) VALUES (1)"
    db.plugins.register(before_insert(body))
    with Database.open(db.path, {"sync_mode": "off", "foreign_keys": True}) as other, db.transaction() as late:
        SHARED["other"], SHARED["late"] = other, late
        with pytest.raises(PluginError, match=says) as caught:
            db.execute(text)
        if "failed" in caught.value.message:
            assert caught.value.__cause__ is not None
        with db.transaction() as transaction:
            transaction.execute("CREATE TABLE kept (a)")
            with pytest.raises(PluginError, match=says):
                transaction.execute(text)
    assert db.execute("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM log)").tuples == [(0, 0)]
    assert db.execute("SELECT count(*) FROM kept").tuples == [(0,)]
    db.plugins.unregister("p")
    db.execute(text)
    assert db.execute("SELECT count(*) FROM t").tuples == [(1,)]


def test_what_a_plugin_may_do_with_its_database(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    db.execute("CREATE TABLE prices (name, price)")
    db.execute("INSERT INTO prices VALUES ('tea', 3)")
    db.plugins.register(
        before_insert(
            "row['a'] = SHARED['db'].execute('SELECT price FROM prices WHERE name = ?', [row['a']]).tuples[0][0]\n"
            "SHARED['db'].put(b'last', b'%d' % row['a'])"
        )
    )
    db.execute("INSERT INTO t VALUES ('tea')")
    with db.transaction() as transaction:
        SHARED["db"] = transaction
        with pytest.raises(PluginError, match="cannot be run inside another one"):
            transaction.execute("INSERT INTO t VALUES ('tea')")
        SHARED["db"] = db
        transaction.execute("INSERT INTO t VALUES ('tea')")
    assert db.execute("SELECT a FROM t").tuples == [(3,), (3,)]
    assert db.get(b"last") == b"3"


@pytest.mark.parametrize("end", ["abort", "commit"])
@pytest.mark.parametrize("event", ["BEFORE INSERT", "AFTER INSERT"])
def test_a_plugin_that_ends_the_transaction(db: Database, end: str, event: str) -> None:
    db.execute("CREATE TABLE t (a)")
    db.plugins.register(
        plugin(f"def {TriggerEvent.parse(event).handler}(row):\n    SHARED['transaction'].{end}()", event)
    )
    SHARED["transaction"] = transaction = db.transaction()
    with pytest.raises(TransactionError if end == "abort" else PluginError, match=r"abort|cannot be committed"):
        transaction.execute("INSERT INTO t VALUES (1), (2)")
    assert not transaction.active
    db.plugins.unregister("p")
    db.execute("INSERT INTO t VALUES (3)")
    assert db.execute("SELECT a FROM t").tuples == [(3,)]


def test_a_statement_that_is_run_again_fires_again(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    SHARED["late"] = late = db.transaction()
    late.execute("INSERT INTO t VALUES ('late')")
    db.plugins.register(before_insert("LOG.append(row['a'])\nif len(LOG) == 1:\n    SHARED['late'].commit()"))
    assert db.execute("INSERT INTO t VALUES ('x')").rows_affected == 1
    assert SHARED["log"] == ["x", "x"]
    assert db.execute("SELECT a FROM t").tuples == [("late",), ("x",)]


def test_triggers_of_the_user_see_what_plugins_gave(db: Database) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, n INTEGER DEFAULT 0)")
    db.execute("CREATE TABLE log (event, a)")
    for when in ("BEFORE", "AFTER"):
        for event in ("INSERT", "UPDATE", "UPDATE OF n"):
            db.execute(
                f'CREATE TRIGGER "{when} {event}" {when} {event} ON t '
                f"BEGIN INSERT INTO log VALUES ('{when} {event}', NEW.a); END"
            )
    db.plugins.register(plugin(UPPER, "BEFORE INSERT", "BEFORE UPDATE"))
    db.execute("INSERT INTO t (a) VALUES ('x')")
    assert db.execute("SELECT * FROM log").tuples == [("BEFORE INSERT", "X"), ("AFTER INSERT", "X")]
    db.execute("DELETE FROM log")
    db.execute("UPDATE t SET a = 'y'")
    assert db.execute("SELECT * FROM log").tuples == [("BEFORE UPDATE", "Y"), ("AFTER UPDATE", "Y")]
    db.execute("DELETE FROM log")
    db.execute("INSERT INTO t (id, a) VALUES (1, 'z') ON CONFLICT DO UPDATE SET n = n, a = excluded.a")
    assert sorted(db.execute("SELECT * FROM log").tuples) == sorted(
        [
            ("BEFORE INSERT", "Z"),
            ("BEFORE UPDATE", "Z"),
            ("BEFORE UPDATE OF n", "Z"),
            ("AFTER UPDATE", "Z"),
            ("AFTER UPDATE OF n", "Z"),
        ]
    )


def test_rows_that_triggers_of_the_user_change(db: Database) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL UNIQUE)")
    db.execute("CREATE TABLE orders (a)")
    db.execute("CREATE VIEW v AS SELECT a FROM t")
    db.execute("CREATE TRIGGER one AFTER INSERT ON orders BEGIN INSERT OR IGNORE INTO t (a) VALUES (NEW.a); END")
    db.execute("CREATE TRIGGER two AFTER UPDATE ON orders BEGIN UPDATE t SET a = NEW.a WHERE a = OLD.a; END")
    db.execute("CREATE TRIGGER three AFTER DELETE ON orders BEGIN DELETE FROM t WHERE a = OLD.a; END")
    db.execute("CREATE TRIGGER four INSTEAD OF INSERT ON v BEGIN INSERT INTO t (a) VALUES (NEW.a); END")
    # The same table again, from inside: each row is changed by itself.
    db.execute(
        "CREATE TRIGGER five AFTER INSERT ON t WHEN length(NEW.a) < 3 "
        "BEGIN INSERT INTO t (a) VALUES (lower(NEW.a) || 'z'); END"
    )
    db.plugins.register(plugin(UPPER, "BEFORE INSERT", "BEFORE UPDATE"))
    log = watch(db, "AFTER INSERT", "AFTER UPDATE", "BEFORE DELETE", "AFTER DELETE", table="t")
    done = db.execute("INSERT INTO orders VALUES ('a') RETURNING a")
    assert (done.tuples, done.rows_affected, done.last_row_id) == ([("a",)], 1, 1)
    assert [row for _, row in log] == [{"id": 1, "a": "A"}, {"id": 2, "a": "AZ"}, {"id": 3, "a": "AZZ"}]
    assert db.execute("INSERT INTO orders VALUES ('azz'), ('AZ')").rows_affected == 2
    assert db.execute("SELECT count(*) FROM t").tuples == [(3,)]
    log.clear()
    db.execute("UPDATE orders SET a = 'AZ' WHERE a = 'a'")
    db.execute("UPDATE orders SET a = 'other' WHERE a = 'AZ'")
    assert log == [("AFTER UPDATE", {"id": 2, "a": "OTHER"})]
    log.clear()
    db.execute("INSERT INTO v VALUES ('view')")
    db.execute("INSERT INTO orders VALUES ('VIEW')")
    db.execute("DELETE FROM orders WHERE a = 'VIEW'")
    assert [event for event, _ in log] == ["AFTER INSERT", "BEFORE DELETE", "AFTER DELETE"]
    assert db.execute("PRAGMA integrity_check").tuples == [("ok",)]


def test_rows_that_foreign_keys_change(db: Database) -> None:
    db.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    db.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, p REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE, n DEFAULT 0)"
    )
    db.execute("INSERT INTO parents VALUES (1), (2)")
    db.execute("INSERT INTO t (p) VALUES (1), (2)")
    db.plugins.register(
        plugin("def on_before_update(row):\n    row['n'] += 1\n    return row\n", "BEFORE UPDATE", name="count")
    )
    log = watch(db, "AFTER UPDATE", "BEFORE DELETE", "AFTER DELETE")
    assert db.execute("UPDATE parents SET id = 10 WHERE id = 1").rows_affected == 1
    assert ("AFTER UPDATE", {"id": 1, "p": 10, "n": 1}) in log
    log.clear()
    assert db.execute("DELETE FROM parents WHERE id = 2").rows_affected == 1
    row = {"id": 2, "p": 2, "n": 0}
    assert [each for each in log if "p" in each[1]] == [("BEFORE DELETE", row), ("AFTER DELETE", row)]
    db.plugins.register(
        plugin("def on_before_delete(row):\n    raise TriggerAbort('kept')\n", "BEFORE DELETE", name="keep")
    )
    with pytest.raises(TriggerAbort, match="kept"):
        db.execute("DELETE FROM parents")
    with pytest.raises(SqlConstraintError, match="FOREIGN KEY"):
        db.execute("UPDATE t SET p = 99")
    assert db.execute("SELECT * FROM t").tuples == [(1, 10, 1)]
    assert db.execute("PRAGMA foreign_key_check").tuples == []


def test_what_is_replaced_is_deleted(db: Database) -> None:
    users(db)
    db.execute("INSERT INTO users (name) VALUES ('a'), ('b')")
    log = watch(db, "BEFORE DELETE", "AFTER DELETE")
    db.execute("INSERT OR REPLACE INTO users (id, name) VALUES (1, 'B')")
    assert sorted((event, row["id"]) for event, row in log) == [
        ("AFTER DELETE", 1),
        ("AFTER DELETE", 2),
        ("BEFORE DELETE", 1),
        ("BEFORE DELETE", 2),
    ]
    db.plugins.register(
        plugin("def on_before_delete(row):\n    raise TriggerAbort('no')", "BEFORE DELETE", table="users")
    )
    with pytest.raises(TriggerAbort, match="no"):
        db.execute("REPLACE INTO users (id, name) VALUES (1, 'C')")
    assert db.execute("SELECT id, name FROM users").tuples == [(1, "B")]


def test_views_and_virtual_tables_are_not_fired(db: Database) -> None:
    log = watch(db)
    db.execute("CREATE VIRTUAL TABLE texts USING fts5(body)")
    db.execute("CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1)")
    db.execute("INSERT INTO texts VALUES ('the quick brown fox')")
    db.execute("UPDATE texts SET body = 'lazy dogs'")
    db.execute("INSERT INTO boxes VALUES (1, 0, 2)")
    db.execute("CREATE VIEW v AS SELECT 1")
    db.execute("CREATE TABLE copied AS SELECT 1 AS a")
    assert log == []
    assert db.execute("SELECT count(*) FROM texts WHERE texts MATCH 'dogs'").tuples == [(1,)]


# Transactions


def test_in_a_transaction(db: Database) -> None:
    users(db)
    with db.transaction() as transaction:
        transaction.put(b"k", b"v")
        transaction.execute("INSERT INTO users (name) VALUES ('A')")
        transaction.execute("SAVEPOINT s")
        transaction.execute("INSERT INTO users (name) VALUES ('B')")
        transaction.execute("ROLLBACK TO s")
        with pytest.raises(SqlConstraintError):
            transaction.execute("INSERT INTO users (name) VALUES ('C'), ('a')")
        open_rows = transaction.stream_sql("SELECT id FROM users UNION ALL SELECT 100")
        assert next(open_rows) == {"id": 1}
        db.plugins.register(before_insert("row['age'] = 7", "users", "age"))
        transaction.execute("INSERT INTO users (name) VALUES ('D')")
        with pytest.raises(SqlConstraintError):
            transaction.execute("INSERT INTO users (name) VALUES ('d')")
        assert {"id": 100} in list(open_rows)
        db.plugins.unregister("age")
        transaction.execute("INSERT INTO users (name) VALUES ('E')")
    assert db.execute("SELECT id, email, age FROM users").tuples == [(1, "a@x", None), (2, "d@x", 7), (3, "e@x", None)]


def test_a_registry_that_appears_in_a_transaction(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db") as db:
        db.execute("CREATE TABLE t (a)")
        for commit in (False, True):
            transaction = db.transaction()
            transaction.execute("INSERT INTO t VALUES ('plain')")
            db.plugins.register(before_insert("row['a'] = 'fired'"))
            transaction.execute("SAVEPOINT s")
            transaction.execute("INSERT INTO t VALUES (1)")
            transaction.execute("ROLLBACK TO s")
            transaction.execute("INSERT INTO t VALUES (2)")
            db.plugins.unregister("p")
            transaction.execute("INSERT INTO t VALUES ('last')")
            if commit:
                transaction.commit()
            else:
                transaction.abort()
            db.execute("INSERT INTO t VALUES ('outside')")
        assert [a for (a,) in db.execute("SELECT a FROM t").tuples] == [
            "outside",
            "plain",
            "fired",
            "last",
            "outside",
        ]
        assert db.execute("SELECT count(*) FROM sqlite_temp_schema").tuples == [(0,)]


def test_registering_between_statements(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    for n in range(3):
        db.execute("INSERT INTO t VALUES ('plain')")
        db.plugins.register(before_insert(f"row['a'] = {n}"))
        db.execute("INSERT INTO t VALUES ('plain')")
        db.plugins.register(before_insert(f"row['a'] = {n + 10}"), replace=True)
        db.execute("INSERT INTO t VALUES ('plain')")
        db.plugins.unregister("p")
    plain = "plain"
    assert [a for (a,) in db.execute("SELECT a FROM t").tuples] == [plain, 0, 10, plain, 1, 11, plain, 2, 12]


def test_tables_change_while_plugins_are_there(db: Database) -> None:
    log = watch(db, "BEFORE INSERT", "AFTER INSERT")
    db.execute("CREATE TABLE t (a)")
    db.execute("INSERT INTO t VALUES (1)")
    db.execute("ALTER TABLE t ADD COLUMN b DEFAULT 2")
    db.execute("INSERT INTO t (a) VALUES (1)")
    db.execute("ALTER TABLE t RENAME COLUMN a TO c")
    db.execute("INSERT INTO t VALUES (3, 4)")
    db.execute("ALTER TABLE t RENAME TO u")
    db.execute("INSERT INTO u VALUES (5, 6)")
    db.execute("ALTER TABLE u DROP COLUMN c")
    db.execute("INSERT INTO u VALUES (7)")
    with db.transaction() as transaction:
        transaction.execute("DROP TABLE u")
        transaction.execute("CREATE TABLE u (z)")
        transaction.execute("INSERT INTO u VALUES (8)")
        transaction.abort()
    db.execute("INSERT INTO u VALUES (9)")
    db.execute("DROP TABLE u")
    assert [row for event, row in log if event == "AFTER INSERT"] == [
        {"a": 1},
        {"a": 1, "b": 2},
        {"c": 3, "b": 4},
        {"c": 5, "b": 6},
        {"b": 7},
        {"z": 8},
        {"b": 9},
    ]
    assert db.execute("SELECT count(*) FROM sqlite_temp_schema").tuples == [(0,)]


def test_a_schema_that_was_never_committed(db: Database) -> None:
    db.execute("CREATE TABLE other (a)")
    log = watch(db, "AFTER INSERT", table="t")
    late = db.transaction()
    late.execute("CREATE TABLE t (never)")
    late.execute("INSERT INTO t VALUES (1)")
    db.execute("CREATE TABLE t (instead)")
    with pytest.raises(TransactionConflictError):
        late.commit()
    db.execute("INSERT INTO t VALUES (2)")
    with db.transaction() as transaction:
        transaction.execute("INSERT INTO t VALUES (3)")
    assert log[-2:] == [("AFTER INSERT", {"instead": 2}), ("AFTER INSERT", {"instead": 3})]


def test_connections_that_did_not_see_a_table_go(db: Database) -> None:
    log = watch(db, "AFTER INSERT")
    db.execute("CREATE TABLE t (a)")
    first, second = db.transaction(), db.transaction()
    for transaction in (first, second):
        transaction.execute("INSERT INTO t VALUES (1)")
    first.abort()
    second.abort()
    db.execute("DROP TABLE t")
    for table in ("u", "t"):
        db.execute(f"CREATE TABLE {table} (b, c)")
        log.clear()
        transactions = [db.transaction() for _ in range(3)]
        for transaction in transactions:
            transaction.execute(f"INSERT INTO {table} VALUES (1, 2)")
        for transaction in transactions:
            transaction.abort()
        assert log == [("AFTER INSERT", {"b": 1, "c": 2})] * 3


def test_what_users_cannot_do_with_the_triggers(db: Database) -> None:
    users(db)
    db.execute("INSERT INTO users (name) VALUES ('a')")
    with db.transaction() as transaction:
        transaction.execute("INSERT INTO users (name) VALUES ('b')")
        ((name,),) = transaction.execute("SELECT max(name) FROM sqlite_temp_schema").tuples
        for text in (
            "SELECT toondb_row_value(0)",
            'CREATE TRIGGER "toondb plugins x" AFTER DELETE ON users BEGIN SELECT 1; END',
            "CREATE TEMP TRIGGER x AFTER DELETE ON users BEGIN SELECT 1; END",
        ):
            with pytest.raises(SqlForbiddenError):
                transaction.execute(text)
        for text in (f'DROP TRIGGER "{name}"', "INSERT INTO users (name) VALUES (toondb_row_value(0))"):
            with pytest.raises(SqlError):
                transaction.execute(text)
    assert db.execute("SELECT email FROM users").tuples == [("a@x",), ("b@x",)]


def test_handles_have_plugins_of_their_own(db: Database) -> None:
    db.execute("CREATE TABLE t (a)")
    with Database.open(db.path, {"sync_mode": "off", "foreign_keys": True}) as other:
        db.plugins.register(before_insert("row['a'] = 'db'"))
        other.plugins.register(before_insert("row['a'] = 'other'"))
        for handle in (db, other, db):
            handle.execute("INSERT INTO t VALUES ('plain')")
        other.plugins.unregister("p")
        other.execute("INSERT INTO t VALUES ('plain')")
    assert [a for (a,) in db.execute("SELECT a FROM t").tuples] == ["db", "other", "db", "plain"]


def test_a_statement_that_takes_too_long(tmp_path: Path) -> None:
    with Database.open(tmp_path / "db", {"statement_timeout_ms": 50}) as db:
        db.execute("CREATE TABLE t (a)")
        db.plugins.register(before_insert("row['a'] = 1"))
        forever = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        for text in (
            f"{forever} INSERT INTO t SELECT max(x) FROM n",
            f"INSERT INTO t VALUES (1) RETURNING ({forever} SELECT max(x) FROM n)",
        ):
            with pytest.raises(SqlInterruptedError, match="longer than it may"):
                db.execute(text)
        db.execute("INSERT INTO t VALUES (2)")
        assert db.execute("SELECT a FROM t").tuples == [(1,)]


def test_many_threads(db: Database) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, thread, n, sum)")
    db.plugins.register(before_insert("row['sum'] = row['thread'] + row['n']", name="sum"))
    start = threading.Barrier(5)
    failures: list[BaseException] = []

    def write(number: int) -> None:
        start.wait(60)
        try:
            for n in range(30):
                done = db.execute("INSERT INTO t (thread, n) VALUES (?, ?) RETURNING sum", [number, n])
                assert done.tuples == [(number + n,)]
        except BaseException as error:
            failures.append(error)

    def change() -> None:
        start.wait(60)
        for n in range(30):
            db.plugins.register(before_insert("row['id'] = None", name=f"p{n}"))
            db.plugins.unregister(f"p{n}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=change))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert db.execute("SELECT count(*), sum(sum = thread + n) FROM t").tuples == [(120, 120)]


OTHER_PROCESS = """
import sys
from toondb import Database
with Database.open_concurrent(sys.argv[1]) as db:
    for line in sys.stdin:
        print(db.execute(line).rows_affected, flush=True)
"""


def test_beside_another_process(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with (
        Database.open_concurrent(path) as db,
        subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, str(path)],
            env=child_environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None

        def elsewhere(text: str) -> int:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(text + "\n")
            other.stdin.flush()
            return int(other.stdout.readline())

        db.execute("CREATE TABLE t (a)")
        log = watch(db, "AFTER INSERT")
        db.plugins.register(before_insert("row['a'] = row['a'] * 10"))
        db.execute("INSERT INTO t VALUES (1)")
        assert elsewhere("INSERT INTO t VALUES (2)") == 1
        elsewhere("ALTER TABLE t ADD COLUMN b DEFAULT 'b'")
        db.execute("INSERT INTO t (a) VALUES (3)")
        elsewhere("DROP TABLE t")
        elsewhere("CREATE TABLE t (z, a)")
        transaction = db.transaction()
        transaction.execute("SELECT * FROM t")
        elsewhere("INSERT INTO t VALUES (4, 4)")
        with pytest.raises(TransactionConflictError):
            transaction.execute("INSERT INTO t VALUES (5, 5)")
        transaction.abort()
        db.execute("INSERT INTO t VALUES (6, 6)")
        assert db.execute("SELECT * FROM t").tuples == [(4, 4), (6, 60)]
        assert [row for _, row in log] == [{"a": 10}, {"a": 30, "b": "b"}, {"z": 6, "a": 60}]
        other.stdin.close()
        assert other.wait(60) == 0


# Plugins that change nothing make no difference

VALUES = st.one_of(st.none(), st.integers(-3, 6), st.text("aAé'", max_size=2), st.sampled_from([b"a", 0.5, -1.5, 2.0]))
KEYS = st.one_of(st.none(), st.integers(-2, 6))
STATEMENTS = st.one_of(
    st.tuples(
        st.sampled_from(
            [
                "INSERT INTO t VALUES (?, ?, ?) RETURNING *",
                "INSERT INTO t (id, a, b) VALUES (?, ?, ?), (NULL, 5, 'x') RETURNING id",
                "INSERT OR REPLACE INTO t VALUES (?, ?, ?) RETURNING id",
                "INSERT OR IGNORE INTO t VALUES (?, ?, ?)",
                "INSERT OR FAIL INTO t (id, a, b) VALUES (NULL, 9, 9), (?, ?, ?)",
                "INSERT INTO t VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING *",
                "INSERT INTO t VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = b || 1 RETURNING *",
                "INSERT INTO t VALUES (?, ?, ?) ON CONFLICT (a) DO UPDATE SET id = id + 1 WHERE b NOT NULL RETURNING *",
            ]
        ),
        st.tuples(KEYS, VALUES, VALUES),
    ),
    st.tuples(
        st.sampled_from(
            [
                "UPDATE t SET a = ? WHERE id < ? RETURNING *",
                "UPDATE OR REPLACE t SET a = ? WHERE id < ? RETURNING id",
                "UPDATE OR IGNORE t SET a = ?, b = 'c' WHERE id < ?",
                "UPDATE t SET b = ?1 WHERE id <> ?2 RETURNING ?2, b",
                "UPDATE t SET (a, b) = (b, a) WHERE b IS NOT ? AND id > ?",
            ]
        ),
        st.tuples(VALUES, KEYS),
    ),
    st.tuples(
        st.sampled_from(
            [
                "UPDATE t SET id = id + ?",
                "DELETE FROM t WHERE id = ? RETURNING *",
                "INSERT INTO t (a, b) SELECT a || 'n', id FROM t WHERE id > ? RETURNING *",
                "INSERT INTO w SELECT ifnull(a, 0), b FROM t WHERE id > ?",
                "INSERT INTO w VALUES (?, 1) ON CONFLICT DO UPDATE SET b = excluded.b || k RETURNING *",
                "UPDATE w SET k = k || ? RETURNING *",
            ]
        ),
        st.tuples(KEYS),
    ),
)
SCHEMA = [
    "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT UNIQUE, b NOT NULL, g AS (id || b))",
    "CREATE TABLE w (k PRIMARY KEY, b TEXT) WITHOUT ROWID",
    "CREATE TABLE log (text)",
    "CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO log VALUES ('i' || NEW.id); END",
    "CREATE TRIGGER u BEFORE UPDATE OF b ON t BEGIN INSERT INTO log VALUES ('u' || quote(OLD.b) || quote(NEW.b)); END",
    "CREATE TRIGGER d AFTER DELETE ON t BEGIN INSERT INTO log VALUES ('d' || OLD.id); END",
]
SAME = "def on_before_insert(row):\n    return {**row}\non_before_update = on_before_delete = on_before_insert\n"
SAME += (
    "on_after_insert = on_after_update = on_after_delete = on_before_insert\ndef on_batch(rows):\n    return [*rows]\n"
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STATEMENTS, max_size=8), st.sampled_from([EVERY, list(TriggerEvent), ["BEFORE UPDATE"]]), st.booleans())
def test_plugins_that_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], events: list[TriggerEvent], together: bool
) -> None:
    model = sqlite3.connect(":memory:", isolation_level=None)
    model.execute("PRAGMA recursive_triggers = ON")
    with Database.open(tmp_path_factory.mktemp("model") / "db", {"sync_mode": "off"}) as db:
        for text in SCHEMA:
            model.execute(text)
            db.execute(text)
        db.plugins.register(PythonPlugin("same", SAME, triggers={"*": events}))
        transaction = db.transaction() if together else None
        for text, values in steps:
            assert _outcome(transaction or db, text, values) == _modelled(model, text, values)
            for table in ("t", "w", "log"):
                query = f"SELECT * FROM {table} ORDER BY rowid" if table != "w" else "SELECT * FROM w"
                assert (transaction or db).execute(query).tuples == model.execute(query).fetchall()
        if transaction is not None:
            transaction.commit()
        assert db.execute("PRAGMA integrity_check").tuples == [("ok",)]
    model.close()


def _outcome(store: Any, text: str, values: Any) -> Any:
    try:
        done = store.execute(text, values)
    except SqlError as error:
        return error.message.split(":")[0].rstrip(".")
    return done.tuples, done.rows_affected


def _modelled(model: sqlite3.Connection, text: str, values: Any) -> Any:
    before = model.total_changes
    model.execute("SAVEPOINT one")
    try:
        rows = model.execute(text, values).fetchall()
    except sqlite3.IntegrityError as error:
        model.execute("ROLLBACK TO one")  # INSERT OR FAIL, too
        return str(error).split(":")[0]
    finally:
        model.execute("RELEASE one")
    changed = model.total_changes != before
    return rows, model.execute("SELECT changes()").fetchone()[0] if changed else 0


# The parts of a statement


def test_parts_of_statements() -> None:
    text = (
        "/* INSERT */ WITH w AS (SELECT 'INSERT INTO z', ?) "
        'INSERT OR IGNORE INTO main."a ""b""" AS x ("c)", [d], `e`)\n'
        "SELECT a, ?7, :n FROM b JOIN c ON conflict = (RETURNING_) WHERE ? "
        "ON CONFLICT (c) DO UPDATE SET c = ?, d = :n RETURNING x, ? ; -- end"
    )
    parts = parse(text)
    assert parts is not None
    assert (parts.kind, parts.table, parts.alias, parts.columns) == (Kind.INSERT, 'a "b"', "AS x", ("c)", "d", "e"))
    assert parts.prefix.text == "WITH w AS (SELECT 'INSERT INTO z', ?)"
    assert parts.verb == "INSERT OR IGNORE INTO"
    assert parts.source.text.startswith("SELECT a")
    assert parts.source.text.endswith("WHERE ?")
    assert parts.tail.text == "ON CONFLICT (c) DO UPDATE SET c = ?, d = :n RETURNING x, ?"
    assert parts.returning.text == "RETURNING x, ?"
    assert [number for _, _, number in parts.source.parameters] == [7, 8, 9]
    assert [number for _, _, number in parts.tail.parameters] == [10, 8, 11]


@pytest.mark.parametrize(
    "text",
    ["SELECT 1", "WITH w AS (SELECT 1) SELECT * FROM w", "CREATE TABLE t (a)", "", " -- x", "VALUES (1)", "WITH", "x"],
)
def test_what_changes_no_rows(text: str) -> None:
    assert parse(text) is None


@given(st.text(alphabet="INSERTO UPDATWHVL()'\"`[];,.?:n-*/\n1", max_size=40))
def test_any_text_has_parts_or_none(text: str) -> None:
    for prefix in ("", "INSERT INTO t ", "UPDATE t SET ", "WITH w AS (", "REPLACE INTO t(a) "):
        parse(prefix + text)
        assert "".join(statements(prefix + text)).strip() in prefix + text
