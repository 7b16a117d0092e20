"""Mistakes in SQL: every mode tells them alike, with the same class, code, message, remedy and details."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from typing import Any

import pytest

from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    TableExistsError,
    ToonDBError,
    TransactionClosedError,
    ValidationError,
)

from .conftest import Places
from .sql_tables import drop_all, one
from .test_mistakes import Action, Told, compared, ended, told

HALF = "\ud800"
INSERT = "INSERT INTO t VALUES (?, ?)"

Mistakes = dict[str, tuple[type[ToonDBError], Action]]


def _sql(text: Any, params: Any = None) -> Action:
    return lambda s: s.execute_sql(text, params)


STORE: Mistakes = {
    "no text": (ValidationError, _sql(5)),
    "none": (ValidationError, _sql(None)),
    "bytes": (ValidationError, _sql(b"SELECT 1")),
    "empty": (SqlError, _sql("")),
    "only a semicolon": (SqlError, _sql(" ;\n")),
    "NUL": (ValidationError, _sql("SELECT 1\0")),
    "no Unicode": (ValidationError, _sql(f"SELECT '{HALF}'")),
    "syntax": (SqlError, _sql("SELEC 1")),
    "incomplete": (SqlError, _sql("SELECT * FROM")),
    "an unknown table": (SqlError, _sql("SELECT * FROM missing")),
    "an unknown column": (SqlError, _sql("SELECT missing FROM t")),
    "an unknown function": (SqlError, _sql("SELECT missing(1)")),
    "a table that is there": (SqlError, _sql("CREATE TABLE t (a)")),
    "two statements": (SqlError, _sql("SELECT 1; SELECT 2")),
    "overflow": (SqlError, _sql("SELECT abs(-9223372036854775808)")),
    "no UTF-8": (SqlError, _sql("SELECT CAST(x'ff' AS TEXT)")),
    "too deep": (SqlError, _sql("SELECT 1" + "+1" * 1000)),
    "many columns": (SqlError, _sql("SELECT " + "1," * 2000 + "1")),
    "wrong JSON": (SqlError, _sql("SELECT json('{')")),
    "wrong MATCH": (SqlError, _sql("SELECT * FROM t WHERE n MATCH 'x'")),
    "UNIQUE": (SqlConstraintError, _sql(INSERT, [9, "there"])),
    "PRIMARY KEY": (SqlConstraintError, _sql(INSERT, [1, "other"])),
    "NOT NULL": (SqlConstraintError, _sql(INSERT, [9, None])),
    "CHECK": (SqlConstraintError, _sql(INSERT, [9, "bad"])),
    "datatype": (SqlError, _sql(INSERT, ["x", "y"])),
    "RAISE": (SqlConstraintError, _sql("DELETE FROM t")),
    "BEGIN": (SqlForbiddenError, _sql("BEGIN")),
    "COMMIT": (SqlForbiddenError, _sql("COMMIT")),
    "ROLLBACK": (SqlForbiddenError, _sql("ROLLBACK")),
    "ATTACH": (SqlForbiddenError, _sql("ATTACH ':memory:' AS x")),
    "VACUUM": (SqlForbiddenError, _sql("VACUUM")),
    "a temporary table": (SqlForbiddenError, _sql("CREATE TEMP TABLE x (a)")),
    "a table in temp": (SqlForbiddenError, _sql("CREATE TABLE temp.x (a)")),
    "a PRAGMA": (SqlForbiddenError, _sql("PRAGMA journal_mode = WAL")),
    "PRAGMA foreign_keys": (SqlForbiddenError, _sql("PRAGMA foreign_keys = ON")),
    "load_extension": (SqlForbiddenError, _sql("SELECT load_extension('x')")),
    "no values": (ValidationError, _sql("SELECT ?, ?")),
    "too few values": (ValidationError, _sql("SELECT ?, ?", [1])),
    "too many values": (ValidationError, _sql("SELECT ?, ?", [1, 2, 3])),
    "values for none": (ValidationError, _sql("SELECT 1", [1])),
    "a name without a value": (ValidationError, _sql("SELECT :a, :b", {"a": 1})),
    "a mapping for a sequence": (ValidationError, _sql("SELECT ?", {"a": 1})),
    "values as text": (ValidationError, _sql("SELECT ?", "a")),
    "values as bytes": (ValidationError, _sql("SELECT ?", b"a")),
    "values as a number": (ValidationError, _sql("SELECT ?", 5)),
    "values as a set": (ValidationError, _sql("SELECT ?", {1})),
    "values as a generator": (ValidationError, _sql("SELECT ?", (value for value in [1]))),
    "a name that is none": (ValidationError, _sql("SELECT :a", {1: 1})),
    "a list as a value": (ValidationError, _sql("SELECT ?", [[1]])),
    "a date as a value": (ValidationError, _sql("SELECT ?", [datetime.date(2026, 1, 1)])),
    "a decimal as a value": (ValidationError, _sql("SELECT :a", {"a": decimal.Decimal("1.5")})),
    "a complex number as a value": (ValidationError, _sql("SELECT ?", [1j])),
    "a value that is no Unicode": (ValidationError, _sql("SELECT ?", [HALF])),
    "a name that is no Unicode": (ValidationError, _sql("SELECT ?", {HALF: 1})),
    "a large integer": (ValidationError, _sql("SELECT ?", [1 << 63])),
    "a small integer": (ValidationError, _sql("SELECT :a", {"a": -(1 << 63) - 1})),
    "a huge integer": (ValidationError, _sql("SELECT ?", [1 << 80])),
    "executemany, no text": (ValidationError, lambda s: s.executemany(5, [])),
    "executemany, one string": (ValidationError, lambda s: s.executemany(INSERT, "ab")),
    "executemany, a number": (ValidationError, lambda s: s.executemany(INSERT, 5)),
    "executemany, none": (ValidationError, lambda s: s.executemany(INSERT, None)),
    "executemany, a mapping": (ValidationError, lambda s: s.executemany(INSERT, {"a": 1})),
    "executemany, numbers": (ValidationError, lambda s: s.executemany(INSERT, [1, 2])),
    "executemany, different widths": (ValidationError, lambda s: s.executemany(INSERT, [(8, "a"), (9,)])),
    "executemany, different names": (
        ValidationError,
        lambda s: s.executemany("INSERT INTO t VALUES (:a, :b)", [{"a": 8, "b": "a"}, {"a": 9, "c": "b"}]),
    ),
    "executemany, both": (ValidationError, lambda s: s.executemany(INSERT, [(8, "a"), {"a": 9}])),
    "executemany, too few": (ValidationError, lambda s: s.executemany(INSERT, [(8,), (9,)])),
    "executemany, too many": (ValidationError, lambda s: s.executemany(INSERT, [(8, "a", 1)])),
    "executemany, a bad value": (ValidationError, lambda s: s.executemany(INSERT, [(8, "a"), (9, [])])),
    "executemany, a large integer": (ValidationError, lambda s: s.executemany(INSERT, [(8, "a"), (1 << 63, "b")])),
    "executemany, no Unicode": (ValidationError, lambda s: s.executemany(INSERT, [(8, "a"), (9, HALF)])),
    "executemany, UNIQUE": (SqlConstraintError, lambda s: s.executemany(INSERT, [(8, "a"), (9, "a")])),
    "executemany, syntax": (SqlError, lambda s: s.executemany("INSER", [()])),
    "executemany, two statements": (SqlError, lambda s: s.executemany("SELECT 1; SELECT 2", [()])),
    "executemany, BEGIN": (SqlForbiddenError, lambda s: s.executemany("BEGIN", [()])),
    "script, no text": (ValidationError, lambda s: s.execute_script(5)),
    "script, empty": (SqlError, lambda s: s.execute_script(" ")),
    "script, syntax": (SqlError, lambda s: s.execute_script("DELETE FROM u; SELEC")),
    "script, parameters": (ValidationError, lambda s: s.execute_script("DELETE FROM u WHERE a = ?")),
    "script, COMMIT": (SqlForbiddenError, lambda s: s.execute_script("DELETE FROM u; COMMIT")),
    "script, UNIQUE": (SqlConstraintError, lambda s: s.execute_script("DELETE FROM u; INSERT INTO t VALUES (1, 'a')")),
    "stream, no text": (ValidationError, lambda s: list(s.stream_sql(5))),
    "stream, syntax": (SqlError, lambda s: list(s.stream_sql("SELEC"))),
    "stream, a bad value": (ValidationError, lambda s: list(s.stream_sql("SELECT ?", [[]]))),
    "stream, no values": (ValidationError, lambda s: list(s.stream_sql("SELECT ?"))),
    "stream, overflow": (SqlError, lambda s: list(s.stream_sql("VALUES (1), (abs(-9223372036854775808))"))),
    "stream, UNIQUE": (SqlConstraintError, lambda s: list(s.stream_sql("INSERT INTO t VALUES (1, 'a') RETURNING 1"))),
    "create_table that is there": (TableExistsError, lambda s: s.create_table("t", {"a": "text"})),
    "create_table called as a view": (TableExistsError, lambda s: s.create_table("v", {"a": "text"})),
    "create_table, own name": (SqlError, lambda s: s.create_table("sqlite_x", {"a": "text"})),
    "create_table, no columns": (ValidationError, lambda s: s.create_table("new", {})),
    "create_table, a column twice": (
        ValidationError,
        lambda s: s.create_table("new", [("a", "text"), ("A", "text")]),
    ),
    "create_table, unknown type": (ValidationError, lambda s: s.create_table("new", {"a": "varchar"})),
    "create_table, a slash": (ValidationError, lambda s: s.create_table("a/b", {"a": "text"})),
    "query, an unknown filter": (ValidationError, lambda s: s.query("t").where({"id": {"$like": 1}}).count()),
}

CLIENT: Mistakes = {
    "SAVEPOINT": (SqlForbiddenError, _sql("SAVEPOINT s")),
    "RELEASE": (SqlForbiddenError, _sql("RELEASE s")),
    "execute_sql after commit": (TransactionClosedError, ended("commit", _sql("SELECT 1"))),
    "execute_sql after abort": (TransactionClosedError, ended("abort", _sql("INSERT INTO t VALUES (8, 'a')"))),
    "executemany after commit": (TransactionClosedError, ended("commit", lambda t: t.executemany(INSERT, [(8, "a")]))),
    "execute_script after abort": (TransactionClosedError, ended("abort", lambda t: t.execute_script("SELECT 1"))),
    "stream_sql after commit": (TransactionClosedError, ended("commit", lambda t: list(t.stream_sql("SELECT 1")))),
    "create_table after abort": (TransactionClosedError, ended("abort", lambda t: t.create_table("x", {"a": "text"}))),
    "query after commit": (TransactionClosedError, ended("commit", lambda t: t.query("t").count())),
}

TABLES = """
CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT NOT NULL UNIQUE CHECK (n != 'bad'));
CREATE TABLE u (a);
CREATE VIEW v AS SELECT a FROM u;
CREATE TRIGGER kept BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'rows are kept'); END;
INSERT INTO t VALUES (1, 'there');
INSERT INTO u VALUES (1);
"""


def prepare(client: Any) -> None:
    drop_all(client)
    client.execute_script(TABLES)


@pytest.fixture(scope="module")
def as_told_here(places: Places) -> Iterator[dict[str, Any]]:
    """What an embedded database tells of each mistake."""
    with places.open("embedded") as client:
        prepare(client)
        yield {name: told(action, client) for name, (_, action) in {**STORE, **CLIENT}.items()}


@pytest.fixture
def client(places: Places, mode: str, as_told_here: dict[str, Any]) -> Iterator[Any]:
    """A store, plain, with a few tables."""
    with places.open(mode) as client:
        prepare(client)
        yield client


def test_of_a_store(store: Any, as_told_here: dict[str, Any]) -> None:
    assert compared(STORE, store, as_told_here) == {}
    # None of them did anything, and a transaction goes on.
    assert store.execute_sql("SELECT * FROM t, u").tuples == [(1, "there", 1)]
    store.execute_sql(INSERT, [8, "a"])
    assert one(store, "SELECT count(*) FROM t") == 2


def test_of_a_client(client: Any, as_told_here: dict[str, Any]) -> None:
    assert compared(CLIENT, client, as_told_here) == {}
    assert client.stats()["active_transactions"] == 0


def test_messages_name_what_is_wrong(as_told_here: dict[str, Any]) -> None:
    said = {name: found.message for name, found in as_told_here.items() if isinstance(found, Told)}
    assert len(said) == len(STORE) + len(CLIENT)
    for name, words in {
        "an unknown table": "missing",
        "UNIQUE": "t.n",
        "CHECK": "n != 'bad'",
        "RAISE": "rows are kept",
        "load_extension": "load_extension",
        "a PRAGMA": "journal_mode",
        "a temporary table": "'x'",
        "a name without a value": "'b'",
        "executemany, different widths": "run 2",
        "executemany, different names": "run 2",
        "executemany, a bad value": "2 of run 2",
        "a date as a value": "date",
        "create_table that is there": "'t'",
    }.items():
        assert words in said[name], (name, said[name])
