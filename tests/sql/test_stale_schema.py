"""Connections to SQLite are used again: none may go by a schema that is not that of the snapshot it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from toondb import Database, TransactionConflictError

# More than are kept for the next: each transaction that is open has one of its own.
OPEN = 5


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "db", {"sync_mode": "off"}) as db:
        yield db


def insert_in_open_transactions(db: Database, values: int) -> None:
    with ExitStack() as stack:
        for _ in range(OPEN):
            transaction = db.begin_transaction()
            stack.callback(transaction.abort)
            transaction.execute(f"INSERT INTO t VALUES ({', '.join('?' * values)})", [1] * values)
            assert len(transaction.execute("SELECT * FROM t").columns) == values


def test_a_table_that_was_made_anew_with_fewer_columns(db: Database) -> None:
    db.execute("CREATE TABLE t (a, b)")
    insert_in_open_transactions(db, 2)
    db.execute("DROP TABLE t")
    db.execute("CREATE TABLE t (a)")
    insert_in_open_transactions(db, 1)


def test_a_table_of_a_transaction_that_lost_was_never_there(db: Database) -> None:
    db.execute("CREATE TABLE first (a)")
    lost = db.begin_transaction()
    lost.execute("CREATE TABLE t (a, b, c)")
    # The version of the schema is the same after both.
    db.execute("CREATE TABLE t (a)")
    with pytest.raises(TransactionConflictError):
        lost.commit()
    insert_in_open_transactions(db, 1)
    assert db.execute("PRAGMA integrity_check").tuples == [("ok",)]
