"""kill -9 of the daemon while several processes write documents, keys and rows together: all are there, or none."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.writers import kill_amid_writes
from toondb import Database, IpcClient
from toondb.engine import maintenance

WRITERS = 3
ROUNDS = 3

WRITER = """
import sys
from toondb_client import IpcClient
from toondb_protocol.errors import ToonDBError, TransactionConflictError
socket, name = sys.argv[1:]
with IpcClient.connect(socket, reconnect_timeout=0.1) as client:
    own = client.namespace("ns")
    print(own.get(name).decode() if own.exists(name) else 0, flush=True)
    def step(transaction):
        own, docs = transaction.namespace("ns"), transaction.collection("ns", "docs")
        count = int(own.get(name) or b"0") + 1
        own.put(name, b"%d" % count)
        transaction.put(f"{name}/{count}", b"x" * (count * 13 % 3000))
        transaction.execute_sql("INSERT INTO log VALUES (?, ?)", [name, count])
        vectors = [[1.0, float(count), float(at)] for at in range(3)]
        ids = [f"{name}/{count}/{at}" for at in range(3)]
        docs.insert_batch(vectors, [{"by": name, "n": count}] * 3, ids, [f"word{count} of writer{name}"] * 3)
        docs.delete(f"{name}/{count - 1}/0")
        return count
    try:
        while True:
            print(client.run_transaction(step, attempts=1000), flush=True)
            client.collection("ns", "docs").insert([1.0, 0.0, 0.0], {"by": name}, f"latest of {name}", f"plain{name}")
            client.collection("ns", "docs").vector_search([1.0, 1.0, 1.0], k=3)
    except TransactionConflictError:
        raise
    except ToonDBError:
        pass  # the daemon was killed
"""


def check(db: Database, name: str, least: int) -> int:
    """Check that what a writer has written together is there together; answers how often it has."""
    docs = db.collection("ns", "docs")
    count = int(db.namespace("ns").get(name) or b"0")
    assert least <= count <= least + 1
    assert sum(1 for _ in db.scan(f"{name}/")) == count
    rows = db.execute_sql("SELECT count(*), coalesce(max(n), 0) FROM log WHERE writer = ?", [name])
    assert rows.tuples == [(count, count)]
    expected = {f"{name}/{at}/{part}" for at in range(1, count + 1) for part in range(3) if part or at == count}
    filter = {"by": name, "n": {"$exists": True}}
    assert {each.id for each in docs.iterate(filter=filter)} == expected
    assert docs.count(filter) == len(expected)
    assert {each.id for each in docs.vector_search([1.0, 1.0, 1.0], k=10_000, filter=filter)} == expected
    assert {each.id for each in docs.keyword_search(f"writer{name}", k=10_000)} == expected
    if count:
        newest = {each.id for each in docs.keyword_search(f"word{count}", k=100, filter={"by": name})}
        assert newest == {f"{name}/{count}/{part}" for part in range(3)}
    latest = docs.get(f"latest of {name}") is not None
    assert len(docs.keyword_search(f"plain{name}")) == latest
    return count


def test_documents_keys_and_rows_survive_together(tmp_db: Path) -> None:
    draw = random.Random(7)
    with Database.open(tmp_db) as db:
        db.execute_sql("CREATE TABLE log (writer TEXT, n INTEGER, PRIMARY KEY (writer, n))")
        db.create_namespace("ns").create_collection("docs", enable_hybrid_search=True)
    told = dict.fromkeys(map(str, range(WRITERS)), 0)
    for _ in range(ROUNDS):
        with Daemon(tmp_db) as daemon:
            kill_amid_writes(WRITER, daemon, told, draw, range(2, 6))
        with Database.open(tmp_db) as db:
            assert db.execute_sql("PRAGMA integrity_check").tuples == [("ok",)]
            for name, least in told.items():
                told[name] = check(db, name, least)
        assert maintenance.check(tmp_db).ok
    assert sum(told.values()) >= ROUNDS


def test_namespaces_that_are_deleted_when_the_daemon_is_killed(tmp_db: Path) -> None:
    """What is deleted stays deleted, is reclaimed after the crash, and the same names begin anew."""
    draw = random.Random(9)
    for round in range(3):
        with Daemon(tmp_db) as daemon:
            with IpcClient.connect(daemon.socket) as client:
                made = client.create_namespace("ns").create_collection("docs", enable_hybrid_search=True)
                made.insert_batch([[1.0, float(at)] for at in range(2000)], contents=[f"word{round}"] * 2000)
                made.vector_search([1.0, 1.0])
                assert client.delete_namespace("ns") is True
                for _ in range(draw.randrange(5)):
                    client.ping()
            daemon.kill()
        with Database.open(tmp_db) as db:
            assert db.list_namespaces() == []
            docs = db.create_namespace("ns").create_collection("docs", enable_hybrid_search=True)
            assert (docs.count(), docs.vector_search([1.0, 1.0, 1.0]), docs.keyword_search(f"word{round}")) == (
                0,
                [],
                [],
            )
            docs.insert([1.0, 2.0, 3.0], id="a", content="word")
            assert [each.id for each in docs.vector_search([1.0, 1.0, 1.0])] == ["a"]
            db.delete_namespace("ns")
    assert maintenance.check(tmp_db).ok
