"""The features that every mode offers, with the same results: one suite, run in each of them."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from toondb_protocol.errors import InvalidPathError, TableExistsError, TransactionConflictError
from toondb_protocol.rows import Row


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


def test_a_scan_keeps_its_snapshot(view: str, store: Any) -> None:
    names = [b"%05d" % n for n in range(3000)]
    store.put_many((name, b"x" * 100) for name in names)
    rows = store.scan()
    seen = [next(rows).key]
    if view == "transaction":
        seen += keys(rows)
    else:
        for row in rows:
            seen.append(row.key)
            if len(seen) % 100 == 0:
                store.put(row.key + b"+", b"new")
                store.delete(b"%05d" % (len(seen) + 50))
    assert seen == names


def test_checkpoint_and_ping(client: Any) -> None:
    assert 0 < client.ping() < 30
    client.put("k", b"v")
    first = client.checkpoint()
    client.put("k", b"w")
    assert client.checkpoint() == first + 1
    client.delete("k")
    client.delete("k")
    assert client.checkpoint() == first + 2


STATS = {
    "keys_count", "bytes_written", "bytes_read", "transactions_committed", "transactions_aborted", "queries_executed",
    "cache_hits", "cache_misses",
}  # fmt: skip
SERVER_STATS = {
    "connections_active", "connections_total", "requests_success", "requests_error", "requests_total",
    "bytes_received", "bytes_sent", "uptime_secs", "active_transactions",
}  # fmt: skip


def test_stats(client: Any, mode: str) -> None:
    client.put("k", b"v" * 100)
    before = client.stats()
    names = STATS if mode in ("embedded", "concurrent") else STATS | SERVER_STATS
    assert {name: before[name] for name in names if not isinstance(before.get(name), (int, float))} == {}
    assert all(before[name] >= 0 for name in names)
    client.put("l", b"v" * 1000)
    with client.begin_transaction() as transaction:
        transaction.put("m", b"v" * 100)
    client.begin_transaction().abort()
    client.query("").count()
    len(list(client.scan()))
    after = client.stats()
    assert after["keys_count"] == before["keys_count"] + 2 == 3
    assert after["transactions_committed"] == before["transactions_committed"] + 2
    assert after["transactions_aborted"] == before["transactions_aborted"] + 1
    assert after["bytes_written"] == before["bytes_written"] + 1102
    assert after["queries_executed"] == before["queries_executed"] + 1


def test_transactions(client: Any) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"v")
    assert transaction.get("k") == b"v"
    assert client.get("k") is None
    assert transaction.active
    first = transaction.commit()
    assert client.get("k") == b"v"
    assert not transaction.active
    second = client.begin_transaction("serializable")
    second.delete("k")
    assert client.commit(second) == first + 1
    third = client.begin_transaction(read_only=True)
    assert third.get("k") is None
    client.abort(third.id)
    fourth = client.begin_transaction()
    assert client.commit(fourth.id) == first + 1
    fifth = client.begin_transaction()
    client.abort(fifth)
    client.abort(fifth)
    assert not fifth.active


def test_with_commits_or_aborts(client: Any) -> None:
    with client.begin_transaction() as transaction:
        transaction.put("a", b"1")
    assert client.get("a") == b"1"
    with pytest.raises(KeyError), client.begin_transaction() as transaction:
        transaction.put("a", b"2")
        raise KeyError
    assert not transaction.active
    with client.begin_transaction() as transaction:
        transaction.put("a", b"3")
        transaction.abort()
    with client.begin_transaction() as transaction:
        transaction.put("b", b"4")
        transaction.commit()
    assert (client.get("a"), client.get("b")) == (b"1", b"4")


def test_first_committer_wins(client: Any, other: Any) -> None:
    client.put_many({"a": b"1", "b": b"1"})
    with pytest.raises(TransactionConflictError) as caught, client.begin_transaction() as transaction:
        transaction.put("a", b"mine")
        transaction.put("c", b"mine")
        other.put("a", b"theirs")
        assert transaction.get("a") == b"mine"
    assert caught.value.details == {"key": b"a"}
    assert not transaction.active
    assert (client.get("a"), client.get("c")) == (b"theirs", None)


def test_serializable_prevents_write_skew(client: Any, other: Any) -> None:
    client.put_many({"on-call/alice": b"1", "on-call/bob": b"1"})
    with client.begin_transaction() as transaction:  # a snapshot only checks what it wrote
        assert len(list(transaction.scan("on-call/"))) == 2
        other.put("on-call/bob", b"0")
        transaction.put("on-call/alice", b"0")
    for look in (lambda t: t.get("on-call/bob"), lambda t: list(t.scan("on-call/"))):
        with pytest.raises(TransactionConflictError), client.begin_transaction("serializable") as transaction:
            look(transaction)
            other.put("on-call/bob", b"0")
            transaction.put("on-call/alice", b"1")
        assert client.get("on-call/alice") == b"0"


def test_run_transaction(client: Any, other: Any) -> None:
    client.put("n", b"1")
    calls: list[int] = []

    def add(transaction: Any) -> int:
        n = int(transaction.get("n"))
        if not calls:
            other.put("n", b"10")
        calls.append(n)
        transaction.put("n", b"%d" % (n + 1))
        return n + 1

    assert client.run_transaction(add) == 11
    assert calls == [1, 10]
    assert client.get("n") == b"11"

    def always(transaction: Any) -> None:
        transaction.put("n", b"mine")
        other.put("n", b"theirs")

    with pytest.raises(TransactionConflictError):
        client.run_transaction(always, attempts=3)
    assert client.get("n") == b"theirs"


def test_close(client: Any) -> None:
    assert not client.closed
    client.close()
    client.close()
    assert client.closed


def test_writes_of_others_are_seen_at_once(client: Any, other: Any) -> None:
    for n in range(50):
        other.put("k", b"%d" % n)
        assert client.get("k") == b"%d" % n
        assert list(client.scan("k")) == [(b"k", b"%d" % n)]
        assert client.get_many(["k"]) == {"k": b"%d" % n}


def test_plain_writes_of_several_keys_never_conflict(client: Any, other: Any) -> None:
    """To the caller ``put_many`` is one write: it is run again when others write the same keys."""
    stop = threading.Event()

    def disturb() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            other.put(f"many/{n % 10}", b"theirs")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for n in range(20):
            client.put_many({f"many/{k}": b"%d" % n for k in range(10)})
        client.delete_path("many", recursive=True)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
