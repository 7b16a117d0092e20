"""SQL and keys in one transaction, conflicts, savepoints and writers at once, in every mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    TableExistsError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
)

from .conftest import Places
from .sql_tables import drop_all, one


@pytest.fixture
def client(places: Places, mode: str) -> Iterator[Any]:
    """A store, plain; it has no keys, and an empty table."""
    with places.open(mode) as client:
        drop_all(client)
        client.execute_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, n UNIQUE)")
        yield client


def ids(store: Any) -> list[int]:
    return [value for (value,) in store.execute_sql("SELECT id FROM t ORDER BY id").tuples]


def test_rows_and_keys_commit_together(client: Any, other: Any, end: str) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"1")
    transaction.execute_sql("INSERT INTO t VALUES (1, 'a')")
    transaction.executemany("INSERT INTO t VALUES (?, ?)", [(2, "b"), (3, "c")])
    transaction.execute_script("CREATE TABLE u (x); INSERT INTO u VALUES (1)")
    transaction.create_table("typed", {"a": "int64"})
    assert (transaction.get("k"), ids(transaction), one(transaction, "SELECT x FROM u")) == (b"1", [1, 2, 3], 1)
    # Nobody else sees any of it yet.
    assert (client.get("k"), ids(client)) == (None, [])
    with pytest.raises(SqlError, match="no such table: u"):
        client.execute_sql("SELECT * FROM u")
    assert other.execute_sql("SELECT * FROM t")[:] == []
    getattr(transaction, end)()
    committed = end == "commit"
    assert (client.get("k"), ids(client)) == ((b"1", [1, 2, 3]) if committed else (None, []))
    assert len(other.execute_sql("SELECT * FROM t")) == (3 if committed else 0)
    assert len(client.execute_sql("SELECT 1 FROM sqlite_schema WHERE name IN ('u', 'typed')")) == 2 * committed
    with pytest.raises(TransactionClosedError):
        transaction.execute_sql("SELECT 1")
    assert one(client, "PRAGMA integrity_check") == "ok"


def test_a_transaction_reads_one_snapshot(client: Any, other: Any) -> None:
    transaction = client.begin_transaction()
    other.execute_sql("INSERT INTO t VALUES (1, 'a')")
    other.put("k", b"1")
    for _ in range(2):
        assert (ids(transaction), transaction.get("k")) == ([], None)
        other.execute_sql("DELETE FROM t")
    assert transaction.query("t").count() == 0
    transaction.commit()
    other.execute_sql("INSERT INTO t VALUES (2, 'b')")
    assert ids(client) == [2]


def test_a_conflict_over_rows_takes_the_keys_with_it(client: Any, other: Any) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"1")
    transaction.execute_sql("INSERT INTO t VALUES (1, 'mine')")
    other.execute_sql("INSERT INTO t VALUES (2, 'yours')")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    assert (client.get("k"), ids(client)) == (None, [2])
    with pytest.raises(TransactionClosedError):
        transaction.execute_sql("SELECT 1")


def test_a_conflict_over_keys_takes_the_rows_with_it(client: Any, other: Any) -> None:
    transaction = client.begin_transaction()
    transaction.execute_sql("INSERT INTO t VALUES (1, 'mine')")
    transaction.put("k", b"mine")
    other.put("k", b"yours")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    assert (client.get("k"), ids(client)) == (b"yours", [])
    # What SQLite keeps of the pages that were never committed is not used.
    client.execute_sql("INSERT INTO t VALUES (5, 'next')")
    assert ids(client) == [5]
    assert one(client, "PRAGMA integrity_check") == "ok"


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.execute_sql("INSERT INTO t VALUES (9, 'late')"),
        lambda t: t.executemany("INSERT INTO t VALUES (?, ?)", [(9, "late")]),
        lambda t: t.execute_script("INSERT INTO t VALUES (9, 'late')"),
        lambda t: list(t.stream_sql("INSERT INTO t VALUES (9, 'late') RETURNING id")),
        lambda t: t.create_table("late", {"a": "text"}),
    ],
    ids=["execute_sql", "executemany", "execute_script", "stream_sql", "create_table"],
)
def test_the_first_write_of_a_stale_transaction_is_a_conflict(
    client: Any, other: Any, write: Callable[[Any], Any]
) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"1")
    assert ids(transaction) == []
    other.execute_sql("INSERT INTO t VALUES (1, 'a')")
    with pytest.raises(TransactionConflictError):
        write(transaction)
    # It can still be read, and its keys are as good as before.
    assert (ids(transaction), transaction.get("k")) == ([], b"1")
    transaction.commit()
    assert (client.get("k"), ids(client)) == (b"1", [1])


def test_a_failed_statement_leaves_the_transaction_as_it_was(client: Any) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"1")
    transaction.execute_sql("INSERT INTO t VALUES (1, 'a')")
    for wrong in (
        lambda: transaction.execute_sql("INSERT INTO t VALUES (2, 'b'), (3, 'c'), (4, 'a')"),
        lambda: transaction.execute_sql("INSERT OR FAIL INTO t VALUES (2, 'b'), (3, 'c'), (4, 'a')"),
        lambda: transaction.executemany("INSERT INTO t VALUES (?, ?)", [(2, "b"), (1, "c")]),
        lambda: transaction.execute_script("INSERT INTO t VALUES (2, 'b'); DELETE FROM t; SELEC"),
        lambda: transaction.execute_sql("UPDATE t SET n = n || (SELECT abs(-9223372036854775808))"),
        lambda: transaction.execute_sql("SELEC"),
        lambda: transaction.execute_sql("COMMIT"),
        lambda: transaction.create_table("t", {"a": "text"}),
        lambda: list(transaction.stream_sql("INSERT INTO t VALUES (2, 'b'), (3, 'a') RETURNING id")),
    ):
        with pytest.raises((SqlError, SqlConstraintError, SqlForbiddenError, TableExistsError)):
            wrong()
        assert (ids(transaction), transaction.get("k")) == ([1], b"1")
    transaction.execute_sql("INSERT INTO t VALUES (2, 'b')")
    transaction.commit()
    assert (ids(client), client.get("k")) == ([1, 2], b"1")


def test_what_undoes_the_whole_transaction_ends_it(client: Any) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"1")
    transaction.execute_sql("INSERT INTO t VALUES (1, 'a')")
    with pytest.raises(SqlConstraintError):
        transaction.execute_sql("INSERT OR ROLLBACK INTO t VALUES (2, 'b'), (3, 'a')")
    # Its keys alone must not be committed.
    with pytest.raises(TransactionError):
        transaction.commit()
    assert (client.get("k"), ids(client)) == (None, [])


def test_savepoints(client: Any) -> None:
    with client.transaction() as transaction:
        transaction.execute_sql("INSERT INTO t VALUES (1, 'a')")
        transaction.execute_sql("SAVEPOINT one")
        transaction.execute_sql("INSERT INTO t VALUES (2, 'b')")
        transaction.execute_sql("SAVEPOINT two")
        transaction.execute_sql("DELETE FROM t")
        with pytest.raises(SqlError):
            transaction.execute_sql("INSERT INTO missing VALUES (1)")
        transaction.execute_sql("ROLLBACK TO two")
        assert ids(transaction) == [1, 2]
        transaction.execute_sql("RELEASE two")
        transaction.execute_sql("ROLLBACK TRANSACTION TO SAVEPOINT one")
        assert ids(transaction) == [1]
        with pytest.raises(SqlError, match="no such savepoint"):
            transaction.execute_sql("RELEASE two")
        with pytest.raises(SqlForbiddenError):
            transaction.execute_sql("ROLLBACK")
        transaction.execute_sql("INSERT INTO t VALUES (3, 'c')")
        # It ends with the transaction.
    assert ids(client) == [1, 3]
    for text in ("SAVEPOINT one", "BEGIN", "COMMIT", "END", "ROLLBACK"):
        with pytest.raises(SqlForbiddenError):
            client.execute_sql(text)


def test_read_only(client: Any) -> None:
    client.execute_sql("INSERT INTO t VALUES (1, 'a')")
    transaction = client.begin_transaction(read_only=True)
    assert ids(transaction) == [1]
    assert [row["id"] for row in transaction.stream_sql("SELECT id FROM t")] == [1]
    for wrong in (
        lambda: transaction.execute_sql("DELETE FROM t"),
        lambda: transaction.executemany("INSERT INTO t VALUES (?, ?)", [(2, "b")]),
        lambda: transaction.execute_script("DELETE FROM t"),
        lambda: list(transaction.stream_sql("DELETE FROM t RETURNING id")),
        lambda: transaction.create_table("u", {"a": "text"}),
    ):
        with pytest.raises(TransactionError, match="read-only"):
            wrong()
    assert ids(transaction) == [1]
    transaction.commit()
    assert ids(client) == [1]


def test_serializable(client: Any, other: Any) -> None:
    # Each reads what the other writes: one of them has to give way.
    transaction = client.begin_transaction(isolation="serializable")
    assert one(transaction, "SELECT count(*) FROM t") == 0
    transaction.put("count", b"0")
    other.execute_sql("INSERT INTO t VALUES (1, 'a')")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    assert client.get("count") is None
    transaction = client.begin_transaction(isolation="serializable")
    assert transaction.get("limit") is None
    transaction.execute_sql("INSERT INTO t VALUES (2, 'b')")
    other.put("limit", b"1")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    assert ids(client) == [1]
    # Under snapshot isolation both go through.
    transaction = client.begin_transaction()
    assert ids(transaction) == [1]
    transaction.put("count", b"1")
    other.execute_sql("DELETE FROM t")
    transaction.commit()
    assert client.get("count") == b"1"


def test_statements_of_their_own_never_conflict(places: Places, mode: str, client: Any, other: Any) -> None:
    rounds, failed = 20, list[BaseException]()
    client.execute_sql("INSERT INTO t VALUES (1, 0)")
    client.put("n", b"0")

    def alone(store: Any) -> None:
        for at in range(rounds):
            store.execute_sql("UPDATE t SET n = n + 1 WHERE id = 1")
            if at % 5 == 0:
                store.execute_sql("INSERT INTO t (n) VALUES (?)", [f"{id(store)}/{threading.get_ident()}/{at}"])

    def together(store: Any) -> None:
        def step(transaction: Any) -> None:
            transaction.execute_sql("UPDATE t SET n = n + 1 WHERE id = 1")
            transaction.increment("n")

        for _ in range(rounds // 4):
            store.run_transaction(step, attempts=1000)

    def guarded(work: Callable[[Any], None], store: Any) -> None:
        try:
            work(store)
        except BaseException as error:
            failed.append(error)

    # An async client is one thread's.
    shared = [client] * 3 if mode in ("embedded", "concurrent", "sync", "direct") else []
    threads = [threading.Thread(target=guarded, args=(alone, store)) for store in [other, *shared]]
    for thread in threads:
        thread.start()
    guarded(together, client)
    for thread in threads:
        thread.join()
    assert failed == []
    counted = one(client, "SELECT n FROM t WHERE id = 1")
    assert counted == rounds * len(threads) + rounds // 4
    assert client.get("n") == b"%d" % (rounds // 4)
    assert len(ids(client)) == 1 + len(threads) * (rounds // 5)
    assert one(client, "PRAGMA integrity_check") == "ok"
