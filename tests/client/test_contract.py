"""The features that every mode offers, with the same results: one suite, run in each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon
from toondb_protocol.errors import InvalidPathError, TableExistsError
from toondb_protocol.rows import Row

from .conftest import Connect

pytestmark = pytest.mark.parametrize("connect", ["sync", "uvloop", "asyncio"], indirect=True)

MODES = ("plain", "transaction", "direct")


class Store:
    """A store to read and write, and the client behind it."""

    def __init__(self, client: Any, view: Any, mode: str) -> None:
        self.client, self.view, self.mode = client, view, mode


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(connect: Connect, server: Daemon, mode: str) -> Iterator[Any]:
    client = connect(server.socket, direct_reads=mode == "direct")
    if mode != "transaction":
        yield client
        return
    transaction = client.begin_transaction()
    yield transaction
    transaction.abort()


def keys(rows: Any) -> list[bytes]:
    return [key for key, _ in rows]


def test_put_get_delete_exists(store: Any) -> None:
    assert store.get("k") is None
    assert store.exists("k") is False
    assert store.put("k", b"v") is None
    assert store.get(b"k") == store.get(bytearray(b"k")) == store.get(memoryview(b"k")) == b"v"
    assert store.exists("k") is True
    store.put("k", bytearray(b"w"))
    assert store.get("k") == b"w"
    assert store.delete("k") is None
    assert store.delete("k") is None
    assert store.get("k") is None


def test_an_empty_value_is_a_value(store: Any) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.exists("empty")
    assert store.get_many(["empty", "missing"]) == {"empty": b""}
    assert list(store.scan("empty")) == [(b"empty", b"")]


def test_extreme_keys_and_values(store: Any) -> None:
    longest = b"\xff" * 511
    big = bytes(range(256)) * 4096
    for key in (b"\0", b"\0\0", longest, "ключ", b"\xff\xfe"):
        store.put(key, big)
        assert store.get(key) == big
        assert store.exists(key)
    assert store.exists(b"\xff" * 510) is False
    assert keys(store.scan(b"\xff" * 511)) == [longest]
    assert keys(store.scan(b"\xff" * 600)) == []
    assert keys(store.scan(b"\xff" * 510, b"\xff" * 600)) == [longest]
    assert keys(store.scan(b"a" * 600, None)) == []


def test_paths(store: Any) -> None:
    store.put_path("users/alice/email", b"1")
    store.put_path(["users", "alice", "name"], b"2")
    store.put("users/alice", b"3")
    store.put("users/alicex", b"4")
    assert store.get_path(["users", "alice", "email"]) == store.get("users/alice/email") == b"1"
    assert store.get_path("users/alice/name") == b"2"
    with pytest.raises(InvalidPathError):
        store.put_path("users//x", b"")
    store.delete_path("users/alice/name")
    assert keys(store.scan("users")) == [b"users/alice", b"users/alice/email", b"users/alicex"]
    store.delete_path("users/alice", recursive=True)
    assert keys(store.scan("users")) == [b"users/alicex"]
    store.delete_path(["users"], recursive=True)
    store.delete_path("users", recursive=True)
    assert keys(store.scan("")) == []


def test_scans(store: Any) -> None:
    names = [b"a", b"a\xff", b"a\xff\xff", b"a\xffb", b"b", b"b\xff", b"c", b"\xff", b"\xff\xff"]
    store.put_many((name, name + b"!") for name in names)
    everything = [(name, name + b"!") for name in sorted(names)]
    assert list(store.scan()) == list(store.scan("")) == list(store.scan(b"")) == everything
    assert keys(store.scan("a")) == keys(store.scan_prefix(b"a")) == [b"a", b"a\xff", b"a\xffb", b"a\xff\xff"]
    assert keys(store.scan(b"a\xff")) == [b"a\xff", b"a\xffb", b"a\xff\xff"]
    assert keys(store.scan(b"\xff")) == [b"\xff", b"\xff\xff"]
    assert keys(store.scan("a", "b")) == [b"a", b"a\xff", b"a\xffb", b"a\xff\xff"]
    assert keys(store.scan("b", b"c")) == [b"b", b"b\xff"]
    assert keys(store.scan(None, "b")) == [b"a", b"a\xff", b"a\xffb", b"a\xff\xff"]
    assert keys(store.scan("b", "a")) == keys(store.scan("b", "b")) == keys(store.scan("x", "")) == []
    assert keys(store.scan(limit=2)) == [b"a", b"a\xff"]
    assert keys(store.scan(limit=0)) == []
    assert keys(store.scan(limit=1 << 80)) == sorted(names)
    assert keys(store.scan(reverse=True)) == sorted(names)[::-1]
    assert keys(store.scan("a", reverse=True, limit=1)) == [b"a\xff\xff"]
    assert keys(store.scan("a", "c", reverse=True, limit=3)) == [b"b\xff", b"b", b"a\xff\xff"]
    assert keys(store.scan_prefix("b", reverse=True)) == [b"b\xff", b"b"]
    assert keys(store.scan("nothing")) == []
    assert keys(store.scan_batched(batch_size=2)) == sorted(names)
    assert keys(store.scan_batched("b", batch_size=1)) == sorted(names)[4:]
    assert keys(store.scan_batched("a", "b", 3, limit=2, reverse=True)) == [b"a\xff\xff", b"a\xffb"]


def test_rows(store: Any) -> None:
    store.put("k", b"v")
    (row,) = store.scan("k")
    assert isinstance(row, Row)
    assert row["key"] == row[0] == row.key == b"k"
    assert row["value"] == row[1] == row.value == row[-1] == b"v"
    assert row[:] == (b"k", b"v")
    key, value = row
    assert (key, value) == row == (b"k", b"v")


def test_a_scan_of_many_windows(store: Any) -> None:
    count = store.put_many({f"{n:05}": b"x" * 100 for n in range(5000)})
    assert count == 5000
    assert keys(store.scan("")) == [b"%05d" % n for n in range(5000)]
    assert keys(store.scan("", reverse=True)) == [b"%05d" % n for n in reversed(range(5000))]
    assert keys(store.scan(limit=4000)) == [b"%05d" % n for n in range(4000)]
    # One that is left early gives everything back.
    for _ in range(40):
        rows = store.scan()
        assert next(rows).key == b"00000"
        rows.close()
    assert keys(store.scan_batched(batch_size=7, limit=100)) == [b"%05d" % n for n in range(100)]


def test_many(store: Any) -> None:
    assert store.put_many([]) == store.delete_many([]) == 0
    assert store.get_many([]) == {}
    assert store.put_many({"a": b"1", b"b": b"2"}) == 2
    assert store.put_many(iter([("c", b"3"), ("d", b"4")])) == 2
    found = store.get_many(iter(["d", b"a", "missing", "a", bytearray(b"b")]))
    assert list(found.items()) == [("d", b"4"), (b"a", b"1"), ("a", b"1"), (b"b", b"2")]
    assert store.delete_many(["a", "a", "missing"]) == 3
    assert keys(store.scan()) == [b"b", b"c", b"d"]
    many = {b"%06d" % n: b"%d" % n for n in range(9000)}
    store.put_many(many)
    assert store.get_many(many) == many
    store.delete_many(many)
    assert store.get_many(many) == {}


def put_products(store: Any) -> None:
    for name, price in (("Laptop", 999), ("Mouse", 25)):
        store.put(f"products/{name.lower()}", json.dumps({"name": name, "price": price, "stock": 1}).encode())


def test_query_prints_what_the_guides_print(store: Any) -> None:
    put_products(store)
    query = store.query("products/").select(["name", "price"])
    text = "result[2]{name,price}:Laptop,999;Mouse,25"
    assert str(query) == query.execute() == query.to_toon() == text
    assert store.query("products/", columns=["name", "price"], limit=10, offset=0).execute() == text
    rows = query.to_list()
    assert rows[0] == (b"products/laptop", b"result[1]{name,price}:Laptop,999")
    assert keys(rows) == [b"products/laptop", b"products/mouse"]
    assert query.first() == rows[0]
    assert query.limit(1).execute() == "result[1]{name,price}:Laptop,999"
    assert query.offset(1).limit(5).execute() == "result[1]{name,price}:Mouse,25"
    assert query.limit(0).to_list() == []
    assert query.limit(0).limit(None).count() == 2
    assert (query.count(), query.offset(1).count(), query.limit(1).count(), query.limit(0).count()) == (2, 1, 1, 0)
    assert query.exists() is True
    assert store.query("nothing/").exists() is False
    assert store.query("nothing/").first() is None
    assert store.query("products/", limit=1 << 90, offset=1 << 90).to_list() == []


def test_create_table(store: Any, request: pytest.FixtureRequest) -> None:
    name = f"t{abs(hash(request.node.name))}"
    store.create_table(name, {"id": "int64", "name": "text"})
    with pytest.raises(TableExistsError):
        store.create_table(name, [("id", "int64", False)])


def test_pipeline(store: Any) -> None:
    pipeline = store.pipeline()
    pipeline.put("a", b"1").get("a").put_path("p/q", b"2").get_path("p/q").exists("a").exists("b")
    pipeline.delete("a").get("a").delete_path("p/q").get("p/q")
    assert len(pipeline) == 10
    assert pipeline.execute() == [None, b"1", None, b"2", True, False, None, None, None, None]
    assert len(pipeline) == 0
    assert pipeline.execute() == []
    with store.pipeline() as pipeline:
        for n in range(3000):
            pipeline.put(f"{n:04}", b"x" * 500)
    assert len(keys(store.scan())) == 3000


def test_a_scan_keeps_its_snapshot(connect: Connect, server: Daemon, mode: str, store: Any) -> None:
    names = [b"%05d" % n for n in range(3000)]
    store.put_many((name, b"x" * 100) for name in names)
    rows = store.scan()
    seen = [next(rows).key]
    if mode == "transaction":
        seen += keys(rows)
    else:
        for row in rows:
            seen.append(row.key)
            if len(seen) % 100 == 0:
                store.put(row.key + b"+", b"new")
                store.delete(b"%05d" % (len(seen) + 50))
    assert seen == names


class TestClientOnly:
    """What a transaction does not have."""

    @pytest.fixture(params=["plain", "direct"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_ping_checkpoint_stats(self, store: Any) -> None:
        assert 0 < store.ping() < 30
        store.put("k", b"v")
        first = store.checkpoint()
        store.put("k", b"w")
        assert store.checkpoint() == first + 1
        stats = store.stats()
        for name in (
            "connections_active", "connections_total", "requests_success", "requests_error", "requests_total",
            "bytes_received", "bytes_sent", "uptime_secs", "active_transactions",
        ):  # fmt: skip
            assert stats[name] >= 0, name

    def test_transactions(self, store: Any) -> None:
        transaction = store.begin_transaction()
        transaction.put("k", b"v")
        assert transaction.get("k") == b"v"
        assert store.get("k") is None
        assert transaction.active
        first = transaction.commit()
        assert store.get("k") == b"v"
        assert not transaction.active
        second = store.transaction("serializable") if hasattr(store, "_pool") else store.begin_transaction()
        second.delete("k")
        assert store.commit(second) == first + 1
        third = store.begin_transaction(read_only=True)
        assert third.get("k") is None
        store.abort(third.id)
        fourth = store.begin_transaction()
        assert store.commit(fourth.id) >= first + 1

    def test_run_transaction(self, store: Any) -> None:
        store.put("n", b"1")
        calls: list[int] = []

        def add(transaction: Any) -> int:
            n = int(transaction.get("n"))
            if not calls:
                store_writes.put("n", b"10")
            calls.append(n)
            transaction.put("n", b"%d" % (n + 1))
            return n + 1

        store_writes = IpcWriter(store)
        try:
            assert store.run_transaction(add) == 11
        finally:
            store_writes.close()
        assert calls == [1, 10]
        assert store.get("n") == b"11"

    def test_close(self, store: Any) -> None:
        store.close()
        store.close()
        assert store.closed


class IpcWriter:
    """A second client, for writes from inside a running call."""

    def __init__(self, store: Any) -> None:
        from toondb_client import IpcClient

        self._client = IpcClient.connect(store.server.socket)

    def put(self, key: str, value: bytes) -> None:
        self._client.put(key, value)

    def close(self) -> None:
        self._client.close()
