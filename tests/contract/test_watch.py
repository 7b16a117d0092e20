"""The history of changes, in every mode."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from toondb_protocol.changes import Change, ChangeKind
from toondb_protocol.errors import ValidationError

PUT, DELETE, EXPIRE = ChangeKind.PUT, ChangeKind.DELETE, ChangeKind.EXPIRE


def what(changes: Any) -> list[tuple[str, bytes, bytes | None]]:
    return [(str(change.kind), change.key, change.value) for change in changes]


def test_history_from_a_commit_on(client: Any) -> None:
    start = client.checkpoint()
    client.put("a", b"1")
    client.put("b", b"")
    client.delete("a")
    client.delete("missing")
    client.put("a", b"2", ttl=100)
    client.increment("n")
    assert client.compare_and_set("n", b"1", None)
    assert not client.compare_and_set("n", b"1", b"x")
    assert client.expire("b", 100)
    assert list(client.watch(since_lsn=start, timeout=0)) == [
        Change(start + 1, PUT, b"a", b"1", True),
        Change(start + 2, PUT, b"b", b"", True),
        Change(start + 3, DELETE, b"a", None, True),
        Change(start + 4, PUT, b"a", b"2", True),
        Change(start + 5, PUT, b"n", b"1", True),
        Change(start + 6, DELETE, b"n", None, True),
        Change(start + 7, PUT, b"b", b"", True),
    ]
    assert client.checkpoint() == start + 7
    assert list(client.watch(since_lsn=start + 7, timeout=0)) == []
    assert what(client.watch("a", since_lsn=start + 3, timeout=0)) == [("put", b"a", b"2")]
    assert what(client.watch(b"b", since_lsn=start, timeout=0.0)) == [("put", b"b", b""), ("put", b"b", b"")]
    assert list(client.watch("c", since_lsn=start, timeout=0)) == []


def test_now_is_the_default(client: Any) -> None:
    client.put("a", b"1")
    assert list(client.watch(timeout=0)) == list(client.watch("a", timeout=0)) == []


def test_several_keys_of_one_commit(client: Any) -> None:
    start = client.checkpoint()
    with client.begin_transaction() as transaction:
        transaction.put("x/2", b"2")
        transaction.put("x/1", b"1")
        transaction.put("y", b"3")
        transaction.put("gone", b"")
        transaction.delete("gone")
        assert transaction.increment("x/3", 3) == 3
    client.put_many({"x/1": b"4", "x/2": b"5"})
    changes = list(client.watch("x/", since_lsn=start, timeout=0))
    assert [(c.lsn - start, c.key, c.value, c.last) for c in changes] == [
        (1, b"x/1", b"1", False),
        (1, b"x/2", b"2", False),
        (1, b"x/3", b"3", True),
        (2, b"x/1", b"4", False),
        (2, b"x/2", b"5", True),
    ]
    client.begin_transaction().abort()
    aborted = client.begin_transaction()
    aborted.put("x/1", b"never")
    aborted.abort()
    assert list(client.watch(since_lsn=start + 2, timeout=0)) == []
    # After a change that is the last of its commit a watch may go on.
    assert list(client.watch("x/", since_lsn=changes[2].lsn, timeout=0)) == changes[3:]


def test_long_values(client: Any) -> None:
    start = client.checkpoint()
    values = [b"%d" % n * size for n, size in enumerate((1, 1000, 1025, 5000, 2_000_000))]
    for n, value in enumerate(values):
        client.put(f"long/{n}", value)
    assert [c.value for c in client.watch("long/", since_lsn=start, timeout=0)] == values
    # The value of a long one is that of now: one that was overwritten is left out, and what overwrote it follows.
    client.put("long/4", b"short")
    assert what(client.watch("long/4", since_lsn=start, timeout=0)) == [("put", b"long/4", b"short")]


def test_many_changes(client: Any) -> None:
    start = client.checkpoint()
    rows = {b"%05d" % n: b"x" * 100 for n in range(6000)}
    client.put_many(rows)
    changes = list(client.watch(since_lsn=start, timeout=0))
    assert changes == [Change(start + 1, PUT, key, value, key == b"05999") for key, value in rows.items()]
    client.delete_many(rows)
    deleted = list(client.watch(since_lsn=start + 1, timeout=0))
    assert deleted == [Change(start + 2, DELETE, key, None, key == b"05999") for key in rows]
    # Of a commit as large as the first only so many values are kept beside those that the store has.
    assert len(list(client.watch(since_lsn=start, timeout=0))) > len(deleted)
    # Left early.
    watch = client.watch(since_lsn=start, timeout=0)
    assert next(watch) == changes[0]
    watch.close()


def test_what_expires_is_told(client: Any) -> None:
    start = client.checkpoint()
    client.put("k", b"v", ttl=0.001)
    client.put("stays", b"v", ttl=1000)
    watch = client.watch(since_lsn=start, timeout=30)
    changes = [next(watch), next(watch), next(watch)]
    watch.close()
    assert sorted(what(changes)) == [("expire", b"k", None), ("put", b"k", b"v"), ("put", b"stays", b"v")]
    assert [c.kind for c in changes if c.key == b"k"] == [PUT, EXPIRE]


def in_thread(action: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_it_waits_for_others(client: Any, other: Any) -> None:
    start = client.checkpoint()
    watch = client.watch("news/", since_lsn=start, timeout=30)

    def write(n: int) -> None:
        other.put("other", b"%d" % n)
        other.put(f"news/{n}", b"%d" % n)

    for n in range(5):
        thread = in_thread(partial(write, n))
        assert next(watch) == Change(start + 2 * n + 2, PUT, b"news/%d" % n, b"%d" % n, True)
        thread.join(30)
    watch.close()
    # Our own writes, too.
    client.put("news/x", b"x")
    assert what(client.watch("news/x", since_lsn=start, timeout=0)) == [("put", b"news/x", b"x")]


def test_it_ends_when_nothing_comes(client: Any) -> None:
    start = client.checkpoint()
    client.put("a", b"1")
    assert what(client.watch(since_lsn=start, timeout=0.05)) == [("put", b"a", b"1")]
    assert list(client.watch("b", since_lsn=start, timeout=0.05)) == []


@pytest.mark.parametrize("mode", ["embedded", "concurrent", "sync", "direct"])
def test_plain_calls_watch_from_when_they_are_made(client: Any, other: Any) -> None:
    watch = client.watch("k", timeout=30)
    other.put("k", b"1")
    client.put("k", b"2")
    assert [next(watch).value, next(watch).value] == [b"1", b"2"]
    watch.close()


def test_a_commit_that_is_not_there_yet(client: Any) -> None:
    now = client.checkpoint()
    with pytest.raises(ValidationError) as caught:
        list(client.watch(since_lsn=now + 1, timeout=0))
    assert caught.value.details == {"since_lsn": now + 1, "lsn": now}


def test_the_history_is_the_store(client: Any, other: Any) -> None:
    """Replayed on an empty map, the changes give what is in the store."""
    start = client.checkpoint()
    thread = in_thread(lambda: [other.put(f"k{n % 7}", b"%d" % n) for n in range(100)])
    for n in range(100):
        if n % 3 == 0:
            client.delete(f"k{n % 5}")
        elif n % 3 == 1:
            client.put(f"k{n % 5}", b"mine%d" % n)
        else:
            client.put_many({f"k{k}": b"many%d" % n for k in range(3)})
    thread.join(30)
    replayed: dict[bytes, bytes | None] = {}
    before = start
    for change in client.watch(since_lsn=start, timeout=0):
        assert change.lsn >= before
        before = change.lsn
        replayed[change.key] = change.value
    assert {key: value for key, value in replayed.items() if value is not None} == dict(client.scan())
