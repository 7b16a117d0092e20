"""kill -9 of the daemon while several processes write rows and keys together: both are there, or neither."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.writers import kill_amid_writes
from toondb import Database
from toondb.engine import maintenance

WRITERS = 3
ROUNDS = 3

SCHEMA = """
CREATE TABLE writers (name TEXT PRIMARY KEY, count INTEGER NOT NULL DEFAULT 0);
CREATE TABLE log (writer TEXT REFERENCES writers, number INTEGER, data BLOB, UNIQUE (writer, number));
CREATE INDEX log_by_size ON log (length(data));
CREATE VIRTUAL TABLE words USING fts5(body);
"""

WRITER = """
import sys
from toondb_client import IpcClient
from toondb_protocol.errors import ToonDBError, TransactionConflictError
socket, name = sys.argv[1:]
with IpcClient.connect(socket, reconnect_timeout=0.1) as client:
    client.execute_sql("INSERT OR IGNORE INTO writers (name) VALUES (?)", [name])
    print(0, flush=True)
    def step(transaction):
        ((count,),) = transaction.execute_sql("SELECT count FROM writers WHERE name = ?", [name]).tuples
        count += 1
        transaction.put(f"count/{name}", b"%d" % count)
        transaction.execute_sql("UPDATE writers SET count = ? WHERE name = ?", [count, name])
        rows = [(name, count, bytes(count * 37 % 9000))]
        transaction.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)
        transaction.execute_sql("INSERT INTO words VALUES (?)", [f"word{count} of {name}"])
        transaction.put(f"log/{name}/{count}", b"x" * (count * 13 % 3000))
        return count
    try:
        while True:
            print(client.run_transaction(step, attempts=1000), flush=True)
            if client.execute_sql("UPDATE writers SET count = count + 0 WHERE name = ?", [name]).rows_affected != 1:
                raise AssertionError("a statement of its own did nothing")
    except TransactionConflictError:
        raise
    except ToonDBError:
        pass  # the daemon was killed
"""


def test_rows_and_keys_survive_together(tmp_db: Path) -> None:
    draw = random.Random(5)
    with Database.open(tmp_db) as db:
        db.execute_script(SCHEMA)
    told = dict.fromkeys(map(str, range(WRITERS)), 0)
    for _ in range(ROUNDS):
        with Daemon(tmp_db) as daemon:
            kill_amid_writes(WRITER, daemon, told, draw, range(1, 5))
        with Database.open(tmp_db) as db:
            assert db.execute_sql("PRAGMA integrity_check").tuples == [("ok",)]
            assert db.execute_sql("PRAGMA foreign_key_check").tuples == []
            db.execute_sql("INSERT INTO words (words) VALUES ('integrity-check')")
            for name, least in told.items():
                counts = db.execute_sql("SELECT count FROM writers WHERE name = ?", [name]).tuples
                count = counts[0][0] if counts else 0
                assert least <= count <= least + 1
                assert int(db.get(f"count/{name}") or b"0") == count
                assert sum(1 for _ in db.scan(f"log/{name}/")) == count
                rows = db.execute_sql("SELECT count(*), coalesce(max(number), 0) FROM log WHERE writer = ?", [name])
                assert rows.tuples == [(count, count)]
                found = db.execute_sql("SELECT count(*) FROM words WHERE words MATCH ?", [f'"of {name}"'])
                assert found.tuples == [(count,)]
        assert maintenance.check(tmp_db).ok
    assert sum(told.values()) >= ROUNDS
