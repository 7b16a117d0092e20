"""What users write, for the type checker alone: never run, see ``test_typing.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import toondb
from toondb import Change, Database, Store
from toondb import Transaction as EmbeddedTransaction
from toondb_client import AsyncIpcClient, AsyncTransaction, IpcClient, Row, Transaction


def sync_client() -> None:
    with IpcClient.connect("path", timeout=1, direct_reads=True) as client:
        assert_type(client, IpcClient)
        assert_type(client.get("k"), bytes | None)
        assert_type(client.exists(b"k"), bool)
        assert_type(client.ping(), float)
        assert_type(client.scan("p"), Iterator[Row])
        assert_type(client.get_many(["k"]), dict[Any, bytes])
        assert_type(client.put_many({"k": b"v"}), int)
        assert_type(client.checkpoint(), int)
        assert_type(client.stats(), dict[str, Any])
        assert_type(client.query("p").select(["a"]).limit(1).offset(1).execute(), str)
        assert_type(client.query("p").to_list(), list[Row])
        assert_type(client.query("p").first(), Row | None)
        assert_type(client.query("p").count(), int)
        assert_type(client.run_transaction(lambda txn: txn.get("k")), bytes | None)
        assert_type(client.begin_transaction().commit(), int)
        assert_type(client.pipeline().execute(), list[Any])
        for key, value in client.scan():
            assert_type(key, bytes)
            assert_type(value, bytes)
        for row in client.scan_prefix("k"):
            assert_type(row["key"], bytes)
            assert_type(row.value, bytes)
            assert_type(row[0], bytes)
        for pair in client.scan_batched(batch_size=10):
            assert_type(pair, tuple[bytes, bytes])
        assert_type(client.increment("n"), int)
        assert_type(client.compare_and_set("k", None, b"v", ttl=5), bool)
        assert_type(client.expire("k", None), bool)
        assert_type(client.ttl("k"), float | None)
        assert_type(client.watch("p", since_lsn=1, timeout=0.5), Iterator[Change])
        assert_type(client.query("p").where({"price": {"$gt": 1}}, name="a").count(), int)
        with client.transaction() as transaction:
            assert_type(transaction, Transaction)
            assert_type(transaction.get("k"), bytes | None)
            assert_type(client.commit(transaction), int)


async def async_client() -> None:
    async with await AsyncIpcClient.connect("path") as client:
        assert_type(client, AsyncIpcClient)
        assert_type(await client.get("k"), bytes | None)
        assert_type(await client.exists(b"k"), bool)
        assert_type(await client.ping(), float)
        assert_type(client.scan("p"), AsyncIterator[Row])
        assert_type(await client.put_many([("k", b"v")]), int)
        assert_type(await client.query("p").select(["a"]).execute(), str)
        assert_type(await client.query("p").first(), Row | None)
        async for key, _ in client.scan_prefix("p"):
            assert_type(key, bytes)
        async with client.transaction() as transaction:
            assert_type(transaction, AsyncTransaction)
            assert_type(await transaction.commit(), int)
        assert_type(await client.begin_transaction(), AsyncTransaction)

        async def count(transaction: AsyncTransaction) -> int:
            return 1

        assert_type(await client.run_transaction(count), int)
        assert_type(await client.increment("n", 2), int)
        assert_type(await client.compare_and_set("k", b"a", None), bool)
        assert_type(await client.ttl("k"), float | None)
        assert_type(client.watch(), AsyncIterator[Change])


def embedded() -> None:
    with Database.open("path", {"sync_mode": "off"}) as db:
        assert_type(db, Database)
        assert_type(db.get("k"), bytes | None)
        assert_type(db.scan("p"), Iterator[Row])
        assert_type(db.scan_batched(), Iterator[tuple[bytes, bytes]])
        assert_type(db.increment("n"), int)
        assert_type(db.watch(timeout=0), Iterator[Change])
        assert_type(db.query("p").first(), Row | None)
        assert_type(db.run_transaction(lambda txn: txn.increment("n")), int)
        assert_type(db.pipeline().put("k", b"v", ttl=1).increment("n").execute(), list[Any])
        assert_type(Database.to_toon("t", [{"a": 1}]), str)
        assert_type(Database.from_toon("t[0]{}:"), tuple[str, list[str], list[dict[str, Any]]])
        with db.transaction() as transaction:
            assert_type(transaction, EmbeddedTransaction)
            assert_type(db.commit(transaction), int)
        any_mode(db)
        any_mode(transaction)
    assert_type(Database.open_concurrent("path"), Database)
    assert_type(toondb.connect("path"), Database | IpcClient)
    any_mode(toondb.connect("path"))


def any_mode(store: Store) -> None:
    assert_type(store.get("k"), bytes | None)
    store.put("k", b"v", ttl=1.5)
    assert_type(store.get_many(["k"]), dict[Any, bytes])


def mistakes(client: IpcClient) -> None:
    client.put("k", "text")  # type: ignore[arg-type]
    client.get(5)  # type: ignore[arg-type]
    client.scan(limit="1")  # type: ignore[arg-type]
