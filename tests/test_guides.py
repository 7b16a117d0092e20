"""What users of the product have learned to type, with the output that they expect: exactly that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toondb
from tests.conftest import Printed
from tests.support.daemon import Daemon
from tests.support.stores import KINDS, open_store
from toondb import Database, IpcClient, ToonDBError
from toondb.errors import DatabaseLockedError, LockTimeoutError
from toondb.plugins import PluginRegistry, PythonPlugin, TriggerAbort, TriggerEvent


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Any]:
    """The guides show one store; the same lines work on both kinds."""
    with open_store(request.param, tmp_db) as store:
        yield store


# Key-value


def test_quick_start(tmp_db: Path, printed: Printed) -> None:
    with Database.open(str(tmp_db)) as db:
        db.put(b"user:7", b'{"name":"Ines","age":41}')
        value = db.get(b"user:7")
        assert value is not None
        print(value.decode())
    assert printed() == '{"name":"Ines","age":41}\n'


def test_put_get_delete(db: Any, printed: Printed) -> None:
    def show() -> None:
        value = db.get(b"key")
        if value:
            print(value.decode())
        else:
            print("Key not found")

    db.put(b"key", b"value")
    show()
    db.delete(b"key")
    show()
    assert printed() == "value\nKey not found\n"


def test_json_data(db: Any, printed: Printed) -> None:
    user = {"name": "Ines", "email": "ines@example.org", "age": 41}
    db.put(b"users/ines", json.dumps(user).encode())
    value = db.get(b"users/ines")
    if value:
        user = json.loads(value.decode())
        print(f"Name: {user['name']}, Age: {user['age']}")
    assert printed() == "Name: Ines, Age: 41\n"


def test_a_missing_key_is_no_error(tmp_db: Path, printed: Printed) -> None:
    try:
        with Database.open(str(tmp_db)) as db:
            value = db.get(b"key")
            if value is None:
                print("Key not found (not an error)")
    except ToonDBError as error:
        print(f"Database error: {error}")
    assert printed() == "Key not found (not an error)\n"


def test_paths(db: Any, printed: Printed) -> None:
    db.put_path("users/ines/email", b"ines@example.org")
    db.put_path("users/ines/age", b"41")
    db.put_path("users/ines/settings/theme", b"dark")
    db.put_path("users/joao/email", b"joao@example.org")
    email = db.get_path("users/ines/email")
    print(f"Ines's email: {email.decode()}")
    assert printed() == "Ines's email: ines@example.org\n"
    db.delete_path("users/ines/email")
    assert db.get_path("users/ines/email") is None
    assert db.get_path(["users", "ines", "age"]) == b"41"


# Scans


def put_tenants(db: Any) -> None:
    db.put(b"tenants/acme/users/1", b'{"name":"Alice"}')
    db.put(b"tenants/acme/users/2", b'{"name":"Bob"}')
    db.put(b"tenants/acme/orders/1", b'{"total":100}')
    db.put(b"tenants/globex/users/1", b'{"name":"Charlie"}')


def test_scan_of_one_tenant(db: Any, printed: Printed) -> None:
    put_tenants(db)
    results = list(db.scan(b"tenants/acme/", b"tenants/acme;"))
    print(f"ACME Corp has {len(results)} items:")
    for key, value in results:
        print(f"  {key.decode()}: {value.decode()}")
    assert printed() == (
        "ACME Corp has 3 items:\n"
        '  tenants/acme/orders/1: {"total":100}\n'
        '  tenants/acme/users/1: {"name":"Alice"}\n'
        '  tenants/acme/users/2: {"name":"Bob"}\n'
    )


def test_scan_prefix(db: Any, printed: Printed) -> None:
    put_tenants(db)
    for key, value in db.scan_prefix(b"tenants/globex/"):
        print(key, value)
    for row in db.scan("tenants/globex/"):
        print(row["key"], row["value"])
    assert printed() == 2 * "b'tenants/globex/users/1' b'{\"name\":\"Charlie\"}'\n"


def test_batched_scans(db: Any, printed: Printed) -> None:
    with db.transaction() as txn:
        for i in range(10000):
            txn.put(f"item:{i:05d}".encode(), f"value:{i}".encode())

    txn = db.transaction()
    count = sum(1 for _ in txn.scan(b"item:", b"item;"))
    txn.abort()
    print(f"Regular scan: {count} items")

    txn = db.transaction()
    count = sum(1 for _ in txn.scan_batched(start=b"item:", end=b"item;", batch_size=1000))
    txn.abort()
    print(f"Batched scan: {count} items (much faster!)")

    count = 0
    for _key, _value in db.scan_batched(start=b"item:", end=b"item:\xff", batch_size=1000):
        count += 1
    print(f"Scanned {count} items")
    assert printed() == ("Regular scan: 10000 items\nBatched scan: 10000 items (much faster!)\nScanned 10000 items\n")


def test_the_users_of_each_tenant(db: Any, printed: Printed) -> None:
    db.put(b"tenants/1/users/alice", b'{"role":"admin","email":"alice@acme.com"}')
    db.put(b"tenants/1/users/bob", b'{"role":"user","email":"bob@acme.com"}')
    db.put(b"tenants/2/users/charlie", b'{"role":"admin","email":"charlie@globex.com"}')
    for tenant_id, tenant_name in ((1, "ACME Corp"), (2, "Globex Inc")):
        prefix = f"tenants/{tenant_id}/".encode()
        end = f"tenants/{tenant_id};".encode()
        users = list(db.scan(prefix, end))
        print(f"\n{tenant_name} ({len(users)} users):")
        for key, value in users:
            user_data = json.loads(value.decode())
            print(f"  {key.decode()}: {user_data['email']} ({user_data['role']})")
    assert printed() == (
        "\nACME Corp (2 users):\n"
        "  tenants/1/users/alice: alice@acme.com (admin)\n"
        "  tenants/1/users/bob: bob@acme.com (user)\n"
        "\nGlobex Inc (1 users):\n"
        "  tenants/2/users/charlie: charlie@globex.com (admin)\n"
    )


# Transactions


def test_transactions_by_with(db: Any) -> None:
    with db.transaction() as txn:
        txn.put(b"account:1:balance", b"1000")
        txn.put(b"account:2:balance", b"500")
    assert db.get(b"account:1:balance") == b"1000"
    with pytest.raises(ZeroDivisionError), db.transaction() as txn:
        txn.put(b"account:1:balance", b"0")
        raise ZeroDivisionError
    assert db.get(b"account:1:balance") == b"1000"


def test_transactions_by_hand(db: Any, printed: Printed) -> None:
    txn = db.begin_transaction()
    try:
        txn.put(b"key1", b"value1")
        txn.put(b"key2", b"value2")
        for key, value in txn.scan(b"key", b"key~"):
            print(f"{key.decode()}: {value.decode()}")
        txn.commit()
    except Exception:
        txn.abort()
        raise
    assert printed() == "key1: value1\nkey2: value2\n"
    assert db.get(b"key2") == b"value2"


def test_transaction_ids_and_lsns(db: Any, printed: Printed) -> None:
    txn = db.transaction()
    print(f"Transaction ID: {txn.id}")
    txn.put(b"key", b"value")
    lsn = txn.commit()
    print(f"Committed at LSN: {lsn}")
    assert printed() == "Transaction ID: 1\nCommitted at LSN: 1\n"
    txn = db.begin_transaction()
    txn.put(b"key", b"other")
    assert db.commit(txn.id) == 2
    txn = db.begin_transaction()
    txn.put(b"key", b"never")
    db.abort(txn.id)
    assert db.get(b"key") == b"other"


# Queries


def put_products(db: Any) -> None:
    db.put(b"products/laptop", b'{"name":"Laptop","price":999,"stock":5}')
    db.put(b"products/mouse", b'{"name":"Mouse","price":25,"stock":20}')


def test_query_builder(db: Any, printed: Printed) -> None:
    put_products(db)
    results = db.query("products/").select(["name", "price"]).limit(10).to_list()
    for key, value in results:
        print(f"{key.decode()}: {value.decode()}")
    assert printed() == (
        "products/laptop: result[1]{name,price}:Laptop,999\nproducts/mouse: result[1]{name,price}:Mouse,25\n"
    )


def test_other_query_methods(db: Any, printed: Printed) -> None:
    put_products(db)
    first = db.query("products/").first()
    count = db.query("products/").count()
    exists = db.query("products/").exists()
    print(first, count, exists)
    print(db.query("products/").select(["name", "price"]))
    assert printed() == (
        "(b'products/laptop', b'result[1]{name,price,stock}:Laptop,999,5') 2 True\n"
        "result[2]{name,price}:Laptop,999;Mouse,25\n"
    )


# TOON


RECORDS = [
    {"id": 1, "name": "Alice", "email": "alice@example.com"},
    {"id": 2, "name": "Bob", "email": "bob@example.com"},
]


def test_toon(printed: Printed) -> None:
    toon_str = Database.to_toon("users", RECORDS, ["name", "email"])
    print(toon_str)
    table_name, fields, records = Database.from_toon(toon_str)
    print(table_name, fields)
    print(records)
    assert printed() == (
        "users[2]{name,email}:Alice,alice@example.com;Bob,bob@example.com\n"
        "users ['name', 'email']\n"
        "[{'name': 'Alice', 'email': 'alice@example.com'}, {'name': 'Bob', 'email': 'bob@example.com'}]\n"
    )


def test_toon_that_a_model_wrote(printed: Printed) -> None:
    table_name, fields, records = Database.from_toon("users[2]{name,email}:Alice,alice@ex.com;Bob,bob@ex.com")
    print(table_name)
    print(fields)
    print(records)
    assert printed() == (
        "users\n"
        "['name', 'email']\n"
        "[{'name': 'Alice', 'email': 'alice@ex.com'}, {'name': 'Bob', 'email': 'bob@ex.com'}]\n"
    )


# Statistics and checkpoints


def test_statistics(db: Any, printed: Printed) -> None:
    for i in range(1000):
        db.put(f"key:{i}".encode(), f"value:{i}".encode())
    list(db.scan("key:"))
    stats = db.stats()
    print(f"Keys: {stats['keys_count']:,}")
    print(f"Bytes written: {stats['bytes_written']:,}")
    print(f"Transactions: {stats['transactions_committed']}")
    print(f"Transactions aborted: {stats['transactions_aborted']}")
    print(f"Queries: {stats['queries_executed']}")
    hits = stats["cache_hits"]
    misses = stats["cache_misses"]
    hit_rate = (hits / (hits + misses) * 100) if (hits + misses) > 0 else 0
    print(f"Cache hit rate: {hit_rate:.1f}%")
    assert printed() == (
        "Keys: 1,000\nBytes written: 15,780\nTransactions: 1000\nTransactions aborted: 0\nQueries: 0\n"
        "Cache hit rate: 0.0%\n"
    )
    assert stats["bytes_read"] >= 0


def test_bytes_read_embedded(tmp_db: Path) -> None:
    with Database.open(tmp_db) as db:
        db.put(b"k", b"12345")
        db.get(b"k")
        list(db.scan())
        with db.transaction() as txn:
            txn.get(b"k")
            list(txn.scan_batched())
        db.get_many([b"k"])
        assert db.stats()["bytes_read"] == 25


def test_checkpoint(db: Any, printed: Printed) -> None:
    with db.transaction() as txn:
        for i in range(10000):
            txn.put(f"bulk:{i}".encode(), f"data:{i}".encode())
    lsn = db.checkpoint()
    print(f"Checkpoint complete at LSN {lsn}")
    assert printed() == "Checkpoint complete at LSN 1\n"


# Plugins


def test_plugins(printed: Printed) -> None:
    plugin = PythonPlugin(
        name="user_validator",
        code='''
def on_before_insert(row: dict) -> dict:
    """Validate and transform data before insert."""
    if "email" in row:
        row["email"] = row["email"].lower().strip()
    if row.get("age", 0) < 0:
        raise TriggerAbort("Age cannot be negative", code="INVALID_AGE")
    import time
    row["created_at"] = time.time()
    return row

def on_after_delete(row: dict) -> dict:
    """Audit log on delete."""
    print(f"[AUDIT] Deleted: {row}")
    return row
''',
        version="1.0.0",
        triggers={"users": ["BEFORE INSERT", "AFTER DELETE"]},
    )
    registry = PluginRegistry()
    registry.register(plugin)
    row = {"name": "Ines", "email": "  INES@EXAMPLE.ORG  ", "age": 41}
    result = registry.fire("users", TriggerEvent.BEFORE_INSERT, row)
    print(result["email"])
    assert result["created_at"] > 1_700_000_000
    with pytest.raises(TriggerAbort, match="Age cannot be negative") as caught:
        registry.fire("users", TriggerEvent.BEFORE_INSERT, {"age": -1})
    assert caught.value.code == "INVALID_AGE"
    registry.fire("users", TriggerEvent.AFTER_DELETE, {"name": "Ines"})
    assert printed() == "ines@example.org\n[AUDIT] Deleted: {'name': 'Ines'}\n"


# Several processes


def test_ipc(tmp_db: Path, printed: Printed) -> None:
    with Daemon(tmp_db):
        client = IpcClient.connect(f"{tmp_db}/toondb.sock")
        client.put(b"key", b"value")
        value = client.get(b"key")
        assert value is not None
        print(value.decode())
        stats = client.stats()
        print(f"Connections: {stats['connections_active']}/{stats['connections_total']}")
        print(f"Active transactions: {stats['active_transactions']}")
        assert stats["requests_success"] >= 2
        assert stats["requests_error"] == 0
        assert stats["bytes_received"] > 0
        assert stats["bytes_sent"] > 0
        assert stats["uptime_secs"] >= 0
        assert 0 < client.ping() < 30
        client.close()
    assert printed() == "value\nConnections: 1/1\nActive transactions: 0\n"


def test_concurrent_mode(tmp_db: Path, printed: Printed) -> None:
    db = Database.open_concurrent(str(tmp_db))
    print(f"Concurrent mode: {db.is_concurrent}")
    db.close()
    assert printed() == "Concurrent mode: True\n"


def test_a_locked_database(tmp_db: Path, printed: Printed) -> None:
    with Daemon(tmp_db) as daemon:
        try:
            db = Database.open(str(tmp_db))
        except DatabaseLockedError as error:
            print(f"Database locked by another process: {error.details['pid'] == daemon.pid}")
            db = Database.open_concurrent(str(tmp_db))
        except LockTimeoutError as error:
            print(f"Timed out waiting for lock: {error}")
        assert db.get(b"key") is None
        db.close()
    assert printed() == "Database locked by another process: True\n"


def test_connect(tmp_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_db.parent)
    with toondb.connect("./db") as db:
        assert isinstance(db, Database)
    with toondb.connect("./db", mode="embedded", config={"sync_mode": "full"}) as db:
        assert isinstance(db, Database)
    with Daemon(tmp_db):
        with toondb.connect("./db/toondb.sock") as client:
            assert isinstance(client, IpcClient)
            assert client.get("key") is None


def test_configuration(tmp_db: Path) -> None:
    db = Database.open(
        str(tmp_db),
        config={
            "create_if_missing": True,
            "wal_enabled": True,
            "sync_mode": "normal",
            "memtable_size_bytes": 64 * 1024 * 1024,
        },
    )
    assert db.stats()["sync_mode"] == "normal"
    db.close()
