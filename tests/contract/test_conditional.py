"""Time to live, compare and set, and counters, in every mode."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from toondb_protocol.changes import ChangeKind
from toondb_protocol.errors import TransactionConflictError, ValidationError

MOST, LEAST = (1 << 63) - 1, -(1 << 63)


def expired(client: Any, key: str, since: int) -> None:
    """Wait until a key that has a short time to live is deleted; the history tells when it was."""
    for change in client.watch(key, since_lsn=since, timeout=30):
        if change.kind is ChangeKind.EXPIRE:
            return
    raise AssertionError(f"{key} has not expired")


def pass_by(moment: float) -> None:
    """Let the wall clock reach a moment: the one event that only time brings."""
    while (left := moment - time.time()) > 0:
        time.sleep(left)


# Time to live


def test_ttl(store: Any) -> None:
    assert store.ttl("k") is None
    store.put("k", b"v")
    assert store.ttl("k") is None
    store.put("k", b"w", ttl=100)
    assert 99 < store.ttl("k") <= 100
    assert store.get("k") == b"w"
    assert store.exists("k")
    store.put("k", b"x")
    assert store.ttl("k") is None
    store.put_path("a/b", b"v", ttl=0.5e9)
    assert 0.49e9 < store.ttl("a/b") <= 0.5e9
    store.put("for ever", b"v", ttl=1e300)
    assert store.ttl("for ever") > 1e9
    assert store.put_many({"m/1": b"1", "m/2": b""}, ttl=50) == 2
    assert store.put_many(iter([("m/3", b"3")]), ttl=50.5) == 1
    assert all(49 < store.ttl(key) <= 50.5 for key, _ in store.scan("m/"))
    assert store.get_many(["m/1", "m/2", "m/3"]) == {"m/1": b"1", "m/2": b"", "m/3": b"3"}
    store.put_many({"m/1": b"1"})
    assert store.ttl("m/1") is None
    store.delete("m/2")
    assert store.ttl("m/2") is None


def test_expire(store: Any) -> None:
    assert store.expire("k", 10) is False
    assert store.expire("k", None) is False
    assert store.get("k") is None
    store.put("k", b"v")
    assert store.expire("k", None) is True
    assert store.ttl("k") is None
    assert store.expire("k", 10) is True
    assert 9 < store.ttl("k") <= 10
    assert store.get("k") == b"v"
    assert store.expire("k", 1000) is True
    assert 999 < store.ttl("k") <= 1000
    assert store.expire("k", None) is True
    assert store.ttl("k") is None
    assert store.get("k") == b"v"


def test_what_has_expired_is_gone_from_every_read(store: Any) -> None:
    store.put("stays/a", b"1")
    store.put_many({f"goes/{n}": b'{"n": 1}' for n in range(3)}, ttl=0.05)
    store.put("goes/3", b"1")
    assert store.expire("goes/3", 0.05)
    pass_by(time.time() + 0.06)
    assert store.get("goes/0") is None
    assert not store.exists("goes/1")
    assert store.ttl("goes/1") is None
    assert store.expire("goes/1", 10) is False
    assert store.get_many(["goes/0", "goes/3", "stays/a"]) == {"stays/a": b"1"}
    assert list(store.scan()) == list(store.scan(reverse=True)) == [(b"stays/a", b"1")]
    assert list(store.scan_batched("goes", batch_size=1)) == [(b"stays/a", b"1")]
    assert store.query("goes/").count() == 0
    assert store.query("goes/").execute() == "result[0]{}:"
    assert store.compare_and_set("goes/0", b'{"n": 1}', b"x") is False
    assert store.compare_and_set("goes/0", None, b"new") is True
    assert store.increment("goes/3", 5) == 5
    assert store.ttl("goes/3") is None
    pipeline = store.pipeline().get("goes/1").exists("goes/1").get("goes/0")
    assert pipeline.execute() == [None, False, b"new"]


def test_a_key_expires_under_an_open_transaction(client: Any) -> None:
    client.put("k", b"v", ttl=0.05)
    with client.begin_transaction() as transaction:
        pass_by(time.time() + 0.06)
        assert transaction.get("k") is None
        assert list(transaction.scan()) == []
        transaction.put("k", b"anew")
    assert client.get("k") == b"anew"
    assert client.ttl("k") is None


def test_the_store_forgets_what_has_expired(client: Any) -> None:
    since = client.checkpoint()
    client.put("k", b"v", ttl=0.001)
    client.put("l", b"v")
    expired(client, "k", since)
    assert client.stats()["keys_count"] == 1


def test_a_time_to_live_counts_from_the_write(client: Any, end: str) -> None:
    transaction = client.begin_transaction()
    transaction.put("k", b"v", ttl=100)
    transaction.put("keeps", b"v")
    assert client.ttl("k") is None
    getattr(transaction, end)()
    if end == "commit":
        assert 90 < client.ttl("k") <= 100
    assert client.exists("k") is (end == "commit")


# Compare and set


def test_compare_and_set(store: Any) -> None:
    assert store.compare_and_set("k", b"", b"x") is False
    assert store.compare_and_set("k", None, b"") is True
    assert store.get("k") == b""
    assert store.compare_and_set("k", None, b"x") is False
    assert store.compare_and_set("k", bytearray(b""), memoryview(b"1")) is True
    assert store.compare_and_set("k", b"2", None) is False
    assert store.get("k") == b"1"
    assert store.compare_and_set("k", b"1", b"2", ttl=100) is True
    assert 99 < store.ttl("k") <= 100
    assert store.compare_and_set("k", b"2", b"2") is True
    assert store.ttl("k") is None
    assert store.compare_and_set("k", b"2", None) is True
    assert store.exists("k") is False
    assert store.compare_and_set("k", None, None) is True


@pytest.mark.parametrize("size", [60_000, 1_000_000])
def test_compare_and_set_of_long_values(store: Any, size: int) -> None:
    key, big = b"\xff" * 511, bytes(size)
    assert store.compare_and_set(key, None, big) is True
    assert store.compare_and_set(key, big + b"1", b"") is False
    assert store.compare_and_set(key, big, big + b"1") is True
    assert store.get(key) == big + b"1"


def test_one_of_many_gets_the_lock(client: Any, other: Any) -> None:
    for n in range(30):
        won = [client.compare_and_set("lock", None, b"me")]
        if hasattr(other, "call"):
            won.append(other.call("compare_and_set", "lock", None, "you"))
        else:
            won.append(other.compare_and_set("lock", None, b"you"))
        assert sum(won) == 1, n
        client.delete("lock")


# Counters


def test_increment(store: Any) -> None:
    assert store.increment("n") == 1
    assert store.get("n") == b"1"
    assert store.increment("n", 41) == 42
    assert store.increment("n", -50) == -8
    assert store.increment("n", by=0) == -8
    assert store.get("n") == b"-8"
    store.put("n", b"007")
    assert store.increment("n") == 8
    store.put("n", b"%d" % (MOST - 1), ttl=100)
    assert store.increment("n") == MOST
    assert 99 < store.ttl("n") <= 100
    with pytest.raises(ValidationError, match="64 bits"):
        store.increment("n")
    assert store.get("n") == b"%d" % MOST
    assert store.increment("n", LEAST) == -1
    assert store.increment("low", LEAST) == LEAST
    with pytest.raises(ValidationError, match="64 bits"):
        store.increment("low", -1)
    for wrong in (b"", b"1.5", b"x", b" 1", b"1 ", b"+1", "١".encode(), b"1" * 20):
        store.put("n", wrong)
        with pytest.raises(ValidationError, match="not a number"):
            store.increment("n")
        assert store.get("n") == wrong


def test_no_count_is_lost(client: Any, other: Any) -> None:
    def count() -> None:
        for _ in range(100):
            other.call("increment", "n", 2) if hasattr(other, "call") else other.increment("n", 2)

    thread = threading.Thread(target=count)
    thread.start()
    for _ in range(100):
        client.increment("n")
    thread.join(30)
    assert client.get("n") == b"300"


def test_in_a_transaction_they_count_when_it_commits(client: Any, end: str) -> None:
    client.put_many({"n": b"1", "state": b"old", "t": b"v"})
    transaction = client.begin_transaction()
    assert transaction.increment("n") == 2
    assert transaction.increment("n", 2) == 4
    assert transaction.compare_and_set("state", b"old", b"new") is True
    assert transaction.compare_and_set("state", b"old", b"other") is False
    assert transaction.expire("t", 100) is True
    assert (client.get("n"), client.get("state"), client.ttl("t")) == (b"1", b"old", None)
    getattr(transaction, end)()
    if end == "commit":
        assert (client.get("n"), client.get("state")) == (b"4", b"new")
        assert 90 < client.ttl("t") <= 100
    else:
        assert (client.get("n"), client.get("state"), client.ttl("t")) == (b"1", b"old", None)


def test_in_a_transaction_they_conflict(client: Any, other: Any) -> None:
    client.put("n", b"1")
    with pytest.raises(TransactionConflictError), client.begin_transaction() as transaction:
        transaction.increment("n")
        other.put("n", b"7")
    assert client.get("n") == b"7"
    with pytest.raises(TransactionConflictError), client.begin_transaction() as transaction:
        assert transaction.compare_and_set("free", None, b"mine")
        other.put("free", b"theirs")
    assert client.get("free") == b"theirs"


# Pipelines


def test_a_pipeline_of_them(store: Any) -> None:
    pipeline = store.pipeline()
    pipeline.put("a", b"1", ttl=100).put_path("p/q", b"2", ttl=100).put("b", b"3").increment("n").increment("n", 4)
    pipeline.get("n").increment("a", -3).get("a")
    assert pipeline.execute() == [None, None, None, 1, 5, b"5", -2, b"-2"]
    assert 99 < store.ttl("a") <= 100
    assert 99 < store.ttl("p/q") <= 100
    assert store.ttl("b") is None
    pipeline = store.pipeline().increment("n").increment("b").put("word", b"x").increment("word").increment("n")
    results = pipeline.execute(raise_on_error=False)
    assert results[:3] == [6, 4, None]
    assert isinstance(results[3], ValidationError)
    assert results[4] == 7
    with pytest.raises(ValidationError, match="not a number"):
        store.pipeline().increment("word").put("after", b"1").execute()
    assert store.get("after") == b"1"


def test_in_a_pipeline_a_time_to_live_counts_from_its_execution(store: Any) -> None:
    pipeline = store.pipeline().put("k", b"v", ttl=0.5)
    pass_by(time.time() + 0.2)
    pipeline.execute()
    assert 0.35 < store.ttl("k") <= 0.5
