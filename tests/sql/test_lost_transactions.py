"""A transaction that an interrupted statement has ended must not look committed, in any mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from toondb import Database, IpcClient
from toondb.errors import SqlInterruptedError, TransactionError

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


@pytest.fixture(params=["embedded", "ipc"])
def db(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Any]:
    if request.param == "embedded":
        with Database.open(tmp_db, {"statement_timeout_ms": 50}) as db:
            yield db
    else:
        with Daemon(tmp_db, "--statement-timeout-ms", "50") as daemon, IpcClient.connect(daemon.socket) as client:
            yield client


def test_after_an_interrupted_write_the_block_cannot_end_as_if_committed(db: Any) -> None:
    db.execute("CREATE TABLE t (a)")
    with pytest.raises(TransactionError, match="could not be undone alone"), db.transaction() as txn:
        txn.put("key", b"value")
        with pytest.raises(SqlInterruptedError):
            txn.execute(f"{ENDLESS} INSERT INTO t SELECT x FROM n")
    assert db.get("key") is None
    assert db.execute("SELECT count(*) AS n FROM t").rows == [{"n": 0}]


def test_after_an_interrupted_read_it_goes_on(db: Any) -> None:
    with db.transaction() as txn:
        txn.put("key", b"value")
        with pytest.raises(SqlInterruptedError):
            txn.execute(f"{ENDLESS} SELECT count(*) FROM n")
    assert db.get("key") == b"value"
