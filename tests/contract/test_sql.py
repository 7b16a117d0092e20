"""SQL in every mode: results, parameters, several runs, scripts and streams, plain and inside a transaction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from toondb_protocol.errors import SqlConstraintError, SqlError, SqlForbiddenError, ToonDBError, TransactionClosedError

from .conftest import Places
from .sql_tables import COUNT_UP, drop_all, names, one


@pytest.fixture
def client(places: Places, mode: str) -> Iterator[Any]:
    """A store, plain; it has no keys and no tables."""
    with places.open(mode) as client:
        drop_all(client)
        yield client


@pytest.fixture
def table(store: Any) -> Any:
    """A store with an empty table."""
    store.execute_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, data)")
    return store


def test_results(store: Any) -> None:
    made = store.execute_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, data)")
    assert (made.rows, made.columns, made.rows_affected) == ([], [], 0)
    done = store.execute_sql("INSERT INTO t (name) VALUES ('Ann'), ('Bob'), ('Cyd')")
    assert (done.rows, done.columns, done.rows_affected, done.last_row_id) == ([], [], 3, 3)
    assert store.execute("INSERT INTO t (id, name) VALUES (-7, 'Dee')").last_row_id == -7
    found = store.execute_sql("SELECT id, name FROM t WHERE id > ? ORDER BY id", [1])
    assert found.columns == ["id", "name"]
    assert found.tuples == [(2, "Bob"), (3, "Cyd")]
    assert found.rows == list(found) == [{"id": 2, "name": "Bob"}, {"id": 3, "name": "Cyd"}]
    assert (len(found), found[0], found[-1], found[:1]) == (2, found.rows[0], found.rows[1], found.rows[:1])
    assert (found.rows_affected, found.last_row_id) == (0, 0)
    nothing = store.execute_sql("SELECT id, name AS n, 1 + 1 FROM t WHERE 0")
    assert (nothing.columns, nothing.rows, bool(nothing)) == (["id", "n", "1 + 1"], [], False)
    joined = store.execute_sql("SELECT a.id, b.id, a.name, b.* FROM t a JOIN t b ON a.id = b.id WHERE a.id = 1")
    assert joined.columns == ["id", "id:1", "name", "id:2", "name:1", "data"]
    assert joined.rows == [{"id": 1, "id:1": 1, "name": "Ann", "id:2": 1, "name:1": "Ann", "data": None}]
    back = store.execute_sql("INSERT INTO t (name) VALUES ('Eve'), ('Fay') RETURNING id, upper(name) AS n")
    assert (back.tuples, back.columns, back.rows_affected, back.last_row_id) == (
        [(4, "EVE"), (5, "FAY")],
        ["id", "n"],
        2,
        5,
    )
    assert store.execute_sql("UPDATE t SET data = id WHERE id > 0").rows_affected == 5
    assert store.execute_sql("UPDATE t SET data = 0 WHERE id = 99").rows_affected == 0
    assert store.execute_sql("SELECT count(*) FROM t").rows_affected == 0
    upsert = "INSERT INTO t (id, name) VALUES (1, 'x') ON CONFLICT DO UPDATE SET name = 'Ann II' RETURNING name"
    assert store.execute_sql(upsert).tuples == [("Ann II",)]
    assert store.execute_sql("INSERT OR IGNORE INTO t (name) VALUES ('Bob')").rows_affected == 0
    assert store.execute_sql("REPLACE INTO t (id, name) VALUES (1, 'Ann')").rows_affected == 1
    assert store.execute_sql("DELETE FROM t").rows_affected == 6
    assert store.execute_sql("/* a comment */ SELECT 1 AS one; -- and another").rows == [{"one": 1}]
    assert store.execute_sql("DROP TABLE t").rows_affected == 0


VALUES = [
    *(None, 0, 1, -1, (1 << 63) - 1, -(1 << 63), 0.0, -2.5, 1e300, math.inf, -math.inf),
    *("", "text", "a\0b", "Größe 日本 \U0001f600", "x" * 70_000, b"", b"\x00\xff", b"y" * 70_000),
]
CONVERTED: list[tuple[Any, Any]] = [
    *((True, 1), (False, 0), (math.nan, None), (bytearray(b"ab"), b"ab"), (memoryview(b"ab"), b"ab")),
    *((np.int64(5), 5), (np.uint8(5), 5), (np.float64(0.5), 0.5), (np.float32(0.5), 0.5), (np.bool_(True), 1)),
]


def test_values_of_every_type(table: Any) -> None:
    for at, value in enumerate(VALUES):
        table.execute_sql("INSERT INTO t (id, data) VALUES (?, ?)", (at, value))
    found = [value for (value,) in table.execute_sql("SELECT data FROM t ORDER BY id").tuples]
    assert found == VALUES
    assert list(map(type, found)) == list(map(type, VALUES))
    marks = ", ".join(["?"] * len(VALUES))
    for given in (VALUES, tuple(VALUES)):
        assert table.execute_sql(f"SELECT {marks}", given).tuples == [tuple(VALUES)]
    by_name = {f"v{at}": value for at, value in enumerate(VALUES)}
    named = ", ".join(f":{name}" for name in by_name)
    assert table.execute_sql(f"SELECT {named}", {**by_name, "more": 1}).tuples == [tuple(VALUES)]
    assert table.execute_sql("SELECT :a, @a, $a, :b", {"a": 1, "b": 2}).tuples == [(1, 1, 1, 2)]
    assert table.execute_sql("SELECT ?2, ?1, ?2", ["a", "b"]).tuples == [("b", "a", "b")]
    for value, stored in CONVERTED:
        assert table.execute_sql("SELECT ?", [value]).tuples == [(stored,)], value
        assert type(one(table, "SELECT ?", [value])) is type(stored)
    assert table.execute_sql("SELECT 1", []).tuples == table.execute_sql("SELECT 1", {}).tuples == [(1,)]


# Many runs


def test_executemany(table: Any) -> None:
    insert = "INSERT INTO t (name, data) VALUES (?, ?)"
    done = table.executemany(insert, [("a", 1), ("b", 2), ("c", 3)])
    assert (done.rows_affected, done.last_row_id, done.rows, done.columns) == (3, 3, [], [])
    assert table.executemany(insert, ([f"g{at}", at] for at in range(5))).rows_affected == 5
    assert table.executemany(insert, []).rows_affected == 0
    named = "UPDATE t SET data = :data WHERE name = :name"
    assert table.executemany(named, [{"name": "a", "data": 9}, {"data": 8, "name": "b"}]).rows_affected == 2
    assert table.executemany("INSERT INTO t DEFAULT VALUES", [()] * 4).rows_affected == 4
    assert table.executemany("INSERT INTO t (data) VALUES (?) RETURNING id", [(b"x",), (None,)]).rows == []
    assert one(table, "SELECT count(*) FROM t") == 14
    assert table.execute_sql("SELECT data FROM t WHERE name IN ('a', 'b') ORDER BY name").tuples == [(9,), (8,)]
    assert table.executemany("SELECT ?", [(1,), (2,)]).rows == []


@pytest.mark.parametrize(
    ("count", "size"), [(70_000, 1), (150, 20_000)], ids=["more values than one frame takes", "more bytes"]
)
def test_executemany_is_atomic(table: Any, count: int, size: int) -> None:
    insert = "INSERT INTO t (id, name) VALUES (?, ?)"
    text = "x" * size
    runs = [(at, f"{at}{text}") for at in range(count)]
    for wrong in ((0, "again"), (count, f"0{text}"))[: 1 if size == 1 else 2]:
        with pytest.raises(SqlConstraintError):
            table.executemany(insert, [*runs, wrong])
        assert one(table, "SELECT count(*) FROM t") == 0
    with pytest.raises(SqlError, match="overflow"):
        table.executemany("INSERT INTO t VALUES (?, ?, abs(?))", [(1, "1", 1), (2, "2", -(1 << 63))])
    assert table.executemany(insert, runs).rows_affected == count
    assert one(table, "SELECT count(*) FROM t") == count
    assert one(table, "SELECT sum(length(name)) FROM t") == sum(len(name) for _, name in runs)


# Scripts


SCRIPT = """
CREATE TABLE a (x INTEGER);  -- a comment; with a semicolon
INSERT INTO a VALUES (1), (2);
CREATE TRIGGER counted AFTER INSERT ON a BEGIN UPDATE a SET x = x + 10 WHERE x < 10; SELECT 1; END;
INSERT INTO a VALUES (3);
SELECT * FROM a;
SAVEPOINT s; DELETE FROM a; ROLLBACK TO s; RELEASE s
"""


def test_execute_script(store: Any) -> None:
    done = store.execute_script(SCRIPT)
    assert (done.rows, done.columns) == ([], [])
    assert store.execute_sql("SELECT x FROM a").tuples == [(11,), (12,), (13,)]
    for text, error in (
        ("CREATE TABLE b (x); INSERT INTO b VALUES (1); INSERT INTO missing VALUES (1)", SqlError),
        ("DELETE FROM a; DROP TABLE a; SELECT abs(-9223372036854775808)", SqlError),
        ("DELETE FROM a; COMMIT; DELETE FROM a", SqlForbiddenError),
        ("DELETE FROM a; BEGIN", SqlForbiddenError),
        ("DELETE FROM a; ATTACH ':memory:' AS x", SqlForbiddenError),
        ("DELETE FROM a; SAVEPOINT s; DELETE FROM nothing", SqlError),
        ("DELETE FROM a; SELEC", SqlError),
    ):
        with pytest.raises(error):
            store.execute_script(text)
        assert (names(store), one(store, "SELECT count(*) FROM a")) == (["a"], 3), text
    assert store.execute_script("-- nothing but a comment").rows_affected == 0
    assert store.execute_script("DELETE FROM a;;; INSERT INTO a VALUES (1);").rows_affected >= 4
    # A savepoint that a script leaves open ends with it.
    store.execute_script("SAVEPOINT left_open; INSERT INTO a VALUES (2)")
    assert one(store, "SELECT count(*) FROM a") == 2


# Streams


ROWS = 2400
NUMBERS = f"{COUNT_UP} SELECT x, 'some text that is long enough' AS text FROM n LIMIT {ROWS}"


def test_stream_sql(table: Any) -> None:
    expected = [{"x": x, "text": "some text that is long enough"} for x in range(1, ROWS + 1)]
    assert list(table.stream_sql(NUMBERS)) == expected
    assert list(table.stream_sql("SELECT ? AS a, :b AS b".replace("?", ":a"), {"a": 1, "b": 2})) == [{"a": 1, "b": 2}]
    assert list(table.stream_sql("SELECT * FROM t")) == []
    assert list(table.stream_sql("INSERT INTO t (name) VALUES ('a')")) == []
    assert list(table.stream_sql("INSERT INTO t (name) VALUES ('b'), ('c') RETURNING id, name")) == [
        {"id": 2, "name": "b"},
        {"id": 3, "name": "c"},
    ]
    assert one(table, "SELECT count(*) FROM t") == 3
    # Long rows, of different lengths, one of them longer than any window.
    sizes = [0, 5_000_000, 10, 70_000, 300_000, 1]
    table.executemany("INSERT INTO t (id, data) VALUES (?, ?)", [(100 + at, b"x" * n) for at, n in enumerate(sizes)])
    rows = table.stream_sql("SELECT data FROM t WHERE id >= 100 ORDER BY id")
    assert [len(row["data"]) for row in rows] == sizes
    with pytest.raises(SqlError, match="no such table"):
        next(table.stream_sql("SELECT * FROM missing"))
    late = f"{COUNT_UP} SELECT CASE WHEN x < {ROWS} THEN x ELSE abs(-9223372036854775807 - 1) END FROM n"
    with pytest.raises(SqlError, match="overflow"):
        list(table.stream_sql(late))


def test_a_stream_that_is_given_up(client: Any, store: Any) -> None:
    store.execute_sql("CREATE TABLE t (a)")
    # More than may be open at once: each must be closed.
    for _ in range(20):
        rows = store.stream_sql(NUMBERS)
        assert next(rows)["x"] == 1
        rows.close()
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            for row in store.stream_sql(NUMBERS):
                1 // (row["x"] - 3)
    for _ in range(3):
        store.stream_sql(NUMBERS)  # never begun
    store.execute_sql("INSERT INTO t VALUES (1)")
    assert one(store, "SELECT count(*) FROM t") == 1
    # An async transaction closes what was given up when it opens the next.
    assert client.stats().get("open_cursors", 0) <= 1


def test_several_streams_at_once(store: Any) -> None:
    streams = [store.stream_sql(NUMBERS) for _ in range(3)]
    for x in range(1, ROWS + 1):
        assert [next(stream)["x"] for stream in streams] == [x] * 3
        if x % 800 == 0:
            assert one(store, "SELECT ?", [x]) == x
            store.put(f"k{x}", b"v")
    assert [list(stream) for stream in streams] == [[], [], []]
    assert store.exists("k800")


def test_writes_while_a_stream_is_read(client: Any, store: Any, view: str) -> None:
    store.execute_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, data)")
    store.execute_sql("CREATE TABLE other (a)")
    store.executemany("INSERT INTO t VALUES (?, ?)", [(at, b"x" * 1000) for at in range(1000)])
    seen = []
    for row in store.stream_sql("SELECT id FROM t, (SELECT 1) WHERE length(data) = 1000 ORDER BY id"):
        seen.append(row["id"])
        if row["id"] % 250 == 1:
            store.execute_sql("INSERT INTO other VALUES (?)", [row["id"]])
            with pytest.raises(SqlError):
                store.execute_sql("INSERT INTO missing VALUES (1)")
            if view == "plain":
                # It reads one snapshot.
                store.execute_sql("DELETE FROM t WHERE id > ?", [row["id"] + 2])
    assert seen == list(range(1000))
    assert one(store, "SELECT count(*) FROM other") == 4
    assert one(store, "SELECT count(*) FROM t") == (1000 if view == "transaction" else 4)


def test_a_stream_of_a_transaction_ends_with_it(client: Any, end: str) -> None:
    client.execute_sql("CREATE TABLE t (a)")
    transaction = client.begin_transaction()
    transaction.execute_sql("INSERT INTO t VALUES (1)")
    rows = transaction.stream_sql(f"{COUNT_UP} SELECT x, zeroblob(1000) AS b FROM n")
    begun = transaction.stream_sql(NUMBERS)
    assert next(rows)["x"] == 1
    getattr(transaction, end)()
    with pytest.raises(TransactionClosedError):
        for _ in range(100_000):
            next(rows)
    with pytest.raises(TransactionClosedError):
        next(begun)
    assert one(client, "SELECT count(*) FROM t") == (end == "commit")


def test_after_close(client: Any) -> None:
    client.execute_sql("CREATE TABLE t (a)")
    rows = client.stream_sql(f"{COUNT_UP} SELECT x, zeroblob(1000) AS b FROM n")
    next(rows)
    transaction = client.begin_transaction()
    transaction.execute_sql("INSERT INTO t VALUES (1)")
    client.close()
    rows.close()
    for call in (
        lambda: client.execute_sql("SELECT 1"),
        lambda: client.executemany("INSERT INTO t VALUES (?)", [(1,)]),
        lambda: client.execute_script("SELECT 1"),
        lambda: list(client.stream_sql("SELECT 1")),
        lambda: transaction.execute_sql("SELECT 1"),
    ):
        with pytest.raises(ToonDBError):
            call()
    transaction.abort()


# Tables by other means


def test_tables_and_queries(store: Any) -> None:
    store.create_table("p", [("id", "int64"), ("name", "text", True), ("sold", "bool", True)])
    store.put("p/1", b'{"id": 99}')
    store.executemany("INSERT INTO p VALUES (?, ?, ?)", [(1, "Laptop", True), (2, "Mouse", False), (3, None, None)])
    assert store.query("p").execute() == "result[3]{id,name,sold}:1,Laptop,true;2,Mouse,false;3,null,null"
    assert store.query("p").select(["name"]).limit(1).offset(1).execute() == "result[1]{name}:Mouse"
    assert store.query("p").where({"id": {"$gt": 1}}).count() == 2
    assert [row.key for row in store.query("p").where(name="Mouse").to_list()] == [b"p/2"]
    assert store.query("p/").execute() == "result[1]{id}:99"
    store.execute_sql("CREATE VIEW cheap AS SELECT name FROM p WHERE id < 2")
    assert store.query("cheap").execute() == "result[1]{name}:Laptop"
    for wrong in (("x", None, None), (4, b"x", None), (4, "a", 7)):
        with pytest.raises(SqlConstraintError):
            store.execute_sql("INSERT INTO p VALUES (?, ?, ?)", wrong)
    store.execute_sql('CREATE TABLE "a b" ("c d" TEXT)')
    store.execute_sql('INSERT INTO "a b" VALUES (?)', ["x"])
    assert store.query("a b").execute().endswith(":x")
    store.execute_sql("DROP TABLE p")
    assert store.query("p").count() == 1
    assert store.query("p").execute() == "result[1]{id}:99"


def test_what_sqlite_has(store: Any) -> None:
    store.execute_script(
        """
        CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL, price REAL CHECK (price >= 0), tags TEXT);
        INSERT INTO books (title, price, tags) VALUES
            ('Red', 5, '["a", "b"]'), ('Blue', 7.5, '["b"]'), ('Tan', 1, '[]');
        CREATE INDEX by_price ON books (price);
        CREATE VIRTUAL TABLE words USING fts5(body);
        INSERT INTO words VALUES ('the quick brown fox'), ('the lazy dog'), ('a fox and a dog');
        """
    )
    assert store.execute_sql("SELECT title, rank() OVER (ORDER BY price DESC) AS r FROM books ORDER BY r").tuples == [
        ("Blue", 1),
        ("Red", 2),
        ("Tan", 3),
    ]
    each = "SELECT title, value FROM books, json_each(tags) ORDER BY title, value"
    assert store.execute_sql(each).tuples == [("Blue", "b"), ("Red", "a"), ("Red", "b")]
    matching = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid"
    assert sorted(store.execute_sql(matching, ["fox"]).tuples) == [(1,), (3,)]
    assert one(store, "SELECT sum(price) FROM books GROUP BY price > 4 HAVING count(*) > 1") == 12.5
    store.execute_sql("ALTER TABLE books ADD COLUMN year INTEGER DEFAULT 2000")
    assert store.execute_sql("SELECT * FROM books").columns[-1] == "year"
    assert one(store, "PRAGMA integrity_check") == "ok"
    assert [row["name"] for row in store.execute_sql("PRAGMA table_info(books)")][:2] == ["id", "title"]
