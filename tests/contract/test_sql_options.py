"""What a store is opened with, for SQL: FOREIGN KEY, and the time of a statement; the same in every mode."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking import blocking_client, make_runner
from tests.support.daemon import Daemon
from toondb import Database, IpcClient
from toondb_protocol.errors import SqlConstraintError, SqlInterruptedError, ToonDBError, TransactionError

from .sql_tables import COUNT_UP, drop_all, one

MODES = ("embedded", "concurrent", "sync", "uvloop", "asyncio")
ENDLESS = f"{COUNT_UP} SELECT count(*) FROM n"
TABLES = """
CREATE TABLE parent (id INTEGER PRIMARY KEY);
CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent DEFERRABLE INITIALLY IMMEDIATE);
CREATE TABLE owned (parent REFERENCES parent ON DELETE CASCADE);
INSERT INTO parent VALUES (1), (2);
"""


@pytest.fixture(scope="module")
def places() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    yield parent
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def daemon(places: Path) -> Iterator[Daemon]:
    """A daemon that checks FOREIGN KEY and gives statements little time."""
    with Daemon(places / "served", "--foreign-keys", "--statement-timeout-ms", "400") as daemon:
        yield daemon


@pytest.fixture(params=MODES)
def client(places: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A store that was opened so."""
    with contextlib.ExitStack() as stack:
        mode = request.param
        if mode in ("embedded", "concurrent"):
            config = {"foreign_keys": True, "statement_timeout_ms": 400}
            opened = Database.open if mode == "embedded" else Database.open_concurrent
            store: Any = stack.enter_context(opened(places / mode, config=config))
        else:
            daemon: Daemon = request.getfixturevalue("daemon")
            if mode == "sync":
                store = stack.enter_context(IpcClient.connect(daemon.socket))
            else:
                runner = stack.enter_context(make_runner(mode, []))
                store = stack.enter_context(contextlib.closing(blocking_client(runner, daemon.socket)))
        for table in ("owned", "child", "parent"):
            store.execute_sql(f"DROP TABLE IF EXISTS {table}")
        drop_all(store)
        store.execute_script(TABLES)
        yield store


@pytest.fixture(params=["plain", "transaction"])
def store(client: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "plain":
        yield client
        return
    transaction = client.begin_transaction()
    yield transaction
    with contextlib.suppress(ToonDBError):
        transaction.abort()


def test_foreign_keys_are_enforced(store: Any) -> None:
    assert one(store, "PRAGMA foreign_keys") == 1
    store.execute_sql("INSERT INTO child VALUES (1, 1), (2, NULL)")
    store.executemany("INSERT INTO owned VALUES (?)", [(2,), (2,), (2,)])
    for wrong in (
        lambda: store.execute_sql("INSERT INTO child VALUES (3, 99)"),
        lambda: store.execute_sql("DELETE FROM parent WHERE id = 1"),
        lambda: store.execute_sql("UPDATE parent SET id = 5 WHERE id = 1"),
        lambda: store.executemany("INSERT INTO child VALUES (?, ?)", [(3, 1), (4, 99)]),
        lambda: store.execute_script("INSERT INTO child VALUES (3, 1); INSERT INTO child VALUES (4, 99)"),
        lambda: list(store.stream_sql("INSERT INTO child VALUES (3, 99) RETURNING id")),
    ):
        with pytest.raises(SqlConstraintError, match="FOREIGN KEY"):
            wrong()
    assert one(store, "SELECT count(*) FROM child") == 2
    # What a cascade deletes beside is not counted.
    assert store.execute_sql("DELETE FROM parent WHERE id = 2").rows_affected == 1
    assert one(store, "SELECT count(*) FROM owned") == 0
    assert store.execute_sql("PRAGMA foreign_key_check").tuples == []


def test_deferred_foreign_keys_are_looked_at_when_the_transaction_commits(client: Any) -> None:
    for mended in (True, False):
        transaction = client.begin_transaction()
        transaction.put("k", b"%d" % mended)
        transaction.execute_sql("PRAGMA defer_foreign_keys = ON")
        transaction.execute_sql("INSERT INTO child VALUES (?, 77)", [10 + mended])
        if mended:
            transaction.execute_sql("INSERT INTO parent VALUES (77)")
            transaction.commit()
        else:
            transaction.execute_sql("INSERT INTO child VALUES (20, 78)")
            with pytest.raises(SqlConstraintError, match="FOREIGN KEY"):
                transaction.commit()
            assert not transaction.active
    assert client.get("k") == b"1"
    assert client.execute_sql("SELECT id FROM child").tuples == [(11,)]
    assert client.execute_sql("PRAGMA foreign_key_check").tuples == []


def test_a_statement_has_its_time(client: Any) -> None:
    for late in (
        lambda: client.execute_sql(ENDLESS),
        lambda: list(client.stream_sql(f"{COUNT_UP} SELECT x FROM n WHERE x < 0 OR x = 5")),
        lambda: client.execute_script(
            f"INSERT INTO parent VALUES (9); INSERT INTO child {COUNT_UP} SELECT x, 1 FROM n"
        ),
    ):
        with pytest.raises(SqlInterruptedError, match="longer than it may"):
            late()
        assert one(client, "SELECT count(*) FROM parent") == 2
    assert one(client, "PRAGMA integrity_check") == "ok"


def test_a_statement_of_a_transaction_has_its_time(client: Any) -> None:
    client.delete("k")
    transaction = client.begin_transaction()
    transaction.put("k", b"1")
    transaction.execute_sql("INSERT INTO parent VALUES (3)")
    with pytest.raises(SqlInterruptedError, match="longer than it may"):
        transaction.execute_sql(ENDLESS)
    assert one(transaction, "SELECT count(*) FROM parent") == 3
    # SQLite may undo all of a transaction whose statement it interrupts while it writes: its keys go with it.
    with pytest.raises((SqlInterruptedError, TransactionError)):
        transaction.execute_sql(f"INSERT INTO parent {COUNT_UP} SELECT x + 100 FROM n WHERE x < 50 OR x < 0")
    try:
        assert one(transaction, "SELECT count(*) FROM parent") == 3
        transaction.commit()
    except TransactionError:
        transaction.abort()
    assert (client.get("k") == b"1") == (one(client, "SELECT count(*) FROM parent") == 3)
    assert one(client, "PRAGMA integrity_check") == "ok"
