"""Mistakes of users: every mode tells them alike, with the same class, code, message and remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from toondb_protocol.errors import (
    DatabaseClosedError,
    InvalidKeyError,
    InvalidPathError,
    KeyTooLargeError,
    TableExistsError,
    ToonDBError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
    ValidationError,
)

from .conftest import Places

LONG = "x" * 512
HALF = "\ud800"

Action = Callable[[Any], Any]

# What is done to a store, plain or as a transaction, and the class of what it must raise.
STORE: dict[str, tuple[type[ToonDBError], Action]] = {
    "empty key": (InvalidKeyError, lambda s: s.get("")),
    "key of another type": (InvalidKeyError, lambda s: s.get(5)),
    "key that is none": (InvalidKeyError, lambda s: s.put(None, b"")),
    "long key": (KeyTooLargeError, lambda s: s.get(LONG)),
    "key that is no Unicode": (InvalidKeyError, lambda s: s.get(HALF)),
    "put, long key": (KeyTooLargeError, lambda s: s.put(LONG, b"")),
    "put, text": (ValidationError, lambda s: s.put("k", "text")),
    "put, number": (ValidationError, lambda s: s.put("k", 5)),
    "put, none": (ValidationError, lambda s: s.put("k", None)),
    "delete, empty key": (InvalidKeyError, lambda s: s.delete(b"")),
    "exists, long key": (KeyTooLargeError, lambda s: s.exists(LONG)),
    "ttl 0": (ValidationError, lambda s: s.put("k", b"", ttl=0)),
    "ttl below 0": (ValidationError, lambda s: s.put("k", b"", ttl=-1)),
    "ttl NaN": (ValidationError, lambda s: s.put("k", b"", ttl=math.nan)),
    "ttl infinite": (ValidationError, lambda s: s.put("k", b"", ttl=math.inf)),
    "ttl True": (ValidationError, lambda s: s.put("k", b"", ttl=True)),
    "ttl text": (ValidationError, lambda s: s.put_path("k", b"", ttl="5")),
    "expire, ttl 0": (ValidationError, lambda s: s.expire("k", 0)),
    "expire, empty key": (InvalidKeyError, lambda s: s.expire("", 5)),
    "ttl of a number": (InvalidKeyError, lambda s: s.ttl(5)),
    "put_many, text": (ValidationError, lambda s: s.put_many({"k": "v"})),
    "put_many, no pairs": (ValidationError, lambda s: s.put_many([("k",)])),
    "put_many, one string": (ValidationError, lambda s: s.put_many("ab")),
    "put_many, number": (ValidationError, lambda s: s.put_many(5)),
    "put_many, pairs that are text": (ValidationError, lambda s: s.put_many(["ab"])),
    "put_many, bad key": (InvalidKeyError, lambda s: s.put_many([(b"", b"")])),
    "put_many, long key": (KeyTooLargeError, lambda s: s.put_many({LONG.encode(): b""})),
    "put_many, bad ttl": (ValidationError, lambda s: s.put_many({"k": b"v"}, ttl=-1)),
    "put_many of nothing, bad ttl": (ValidationError, lambda s: s.put_many([], ttl=-1)),
    "get_many, one string": (ValidationError, lambda s: s.get_many("abc")),
    "get_many, number": (ValidationError, lambda s: s.get_many(5)),
    "get_many, bad key": (InvalidKeyError, lambda s: s.get_many(["a", 5])),
    "delete_many, bytes": (ValidationError, lambda s: s.delete_many(b"abc")),
    "delete_many, empty key": (InvalidKeyError, lambda s: s.delete_many(["a", ""])),
    "compare_and_set, text": (ValidationError, lambda s: s.compare_and_set("k", "a", b"")),
    "compare_and_set, number": (ValidationError, lambda s: s.compare_and_set("k", None, 5)),
    "compare_and_set, bad ttl": (ValidationError, lambda s: s.compare_and_set("k", None, b"", ttl=-1)),
    "increment by a fraction": (ValidationError, lambda s: s.increment("n", 1.5)),
    "increment by True": (ValidationError, lambda s: s.increment("n", True)),
    "increment by too much": (ValidationError, lambda s: s.increment("n", 1 << 63)),
    "increment of a word": (ValidationError, lambda s: s.increment("word")),
    "increment over the end": (ValidationError, lambda s: s.increment("most")),
    "increment of a long word": (ValidationError, lambda s: s.increment("long word")),
    "empty path": (InvalidPathError, lambda s: s.get_path("")),
    "path without segments": (InvalidPathError, lambda s: s.get_path([])),
    "empty segment": (InvalidPathError, lambda s: s.put_path("a//b", b"")),
    "path from the root": (InvalidPathError, lambda s: s.put_path("/a", b"")),
    "path with an end": (InvalidPathError, lambda s: s.delete_path("a/", recursive=True)),
    "slash in a segment": (InvalidPathError, lambda s: s.get_path(["a/b"])),
    "path of bytes": (InvalidPathError, lambda s: s.get_path(b"a")),
    "path that is a number": (InvalidPathError, lambda s: s.get_path(5)),
    "segment that is a number": (InvalidPathError, lambda s: s.get_path(["a", 5])),
    "path that is no Unicode": (InvalidPathError, lambda s: s.get_path(HALF)),
    "long path": (KeyTooLargeError, lambda s: s.delete_path(LONG, recursive=True)),
    "scan, number": (InvalidKeyError, lambda s: s.scan(5)),
    "scan, bad end": (InvalidKeyError, lambda s: s.scan("a", 5)),
    "scan, limit below 0": (ValidationError, lambda s: s.scan(limit=-1)),
    "scan, limit of text": (ValidationError, lambda s: s.scan_prefix("a", limit="1")),
    "scan, limit True": (ValidationError, lambda s: s.scan(limit=True)),
    "scan, batch of 0": (ValidationError, lambda s: s.scan_batched(batch_size=0)),
    "scan, batch of text": (ValidationError, lambda s: s.scan_batched(batch_size="x")),
    "query, number": (InvalidKeyError, lambda s: s.query(5)),
    "query, columns as text": (ValidationError, lambda s: s.query("p", columns="name")),
    "query, columns as a number": (ValidationError, lambda s: s.query("p", columns=5)),
    "query, column as a number": (ValidationError, lambda s: s.query("p").select([5])),
    "query, column that is no Unicode": (ValidationError, lambda s: s.query("p").select([HALF])),
    "query, column twice": (ValidationError, lambda s: s.query("p/").select(["a", "a"]).execute()),
    "query, limit below 0": (ValidationError, lambda s: s.query("p").limit(-1)),
    "query, offset of text": (ValidationError, lambda s: s.query("p").offset("1")),
    "where, no filter": (ValidationError, lambda s: s.query("p").where(5)),
    "where, unknown operator": (ValidationError, lambda s: s.query("p/").where({"a": {"$near": 1}}).count()),
    "where, unknown operator at the top": (ValidationError, lambda s: s.query("p/").where({"$near": 1}).to_list()),
    "where, $in without a list": (ValidationError, lambda s: s.query("p/").where({"a": {"$in": 5}}).execute()),
    "where, empty $or": (ValidationError, lambda s: s.query("p/").where({"$or": []}).first()),
    "where, an object": (ValidationError, lambda s: s.query("p/").where({"a": object}).count()),
    "where, a set": (ValidationError, lambda s: s.query("p/").where({"a": {"$in": {1}}}).count()),
    "where, field that is a number": (ValidationError, lambda s: s.query("p/").where({1: 2}).count()),
    "where, field that is no Unicode": (ValidationError, lambda s: s.query("p/").where({HALF: 1}).count()),
    "where, no Unicode": (ValidationError, lambda s: s.query("p/").where({"a": HALF}).count()),
    "where, large number": (ValidationError, lambda s: s.query("p/").where({"a": 1 << 64}).count()),
    "where, two mistakes": (ValidationError, lambda s: s.query("p/").where(a={"$x": 1}).where(b=1).count()),
    "where, too deep": (ValidationError, lambda s: s.query("p/").where(deep(60)).count()),
    "where, far too deep": (ValidationError, lambda s: s.query("p/").where(deep(3000)).count()),
    "table without name": (ValidationError, lambda s: s.create_table("", {"id": "int64"})),
    "table whose name is a number": (ValidationError, lambda s: s.create_table(5, {"id": "int64"})),
    "table with a slash": (ValidationError, lambda s: s.create_table("a/b", {"id": "int64"})),
    "table with a long name": (ValidationError, lambda s: s.create_table(LONG, {"id": "int64"})),
    "table without columns": (ValidationError, lambda s: s.create_table("t", {})),
    "table of an unknown type": (ValidationError, lambda s: s.create_table("t", {"id": "varchar"})),
    "table of incomplete columns": (ValidationError, lambda s: s.create_table("t", [("id",)])),
    "table with a column twice": (ValidationError, lambda s: s.create_table("t", [("a", "text"), ("a", "text")])),
    "table with too many columns": (
        ValidationError,
        lambda s: s.create_table("t", {f"c{n}": "text" for n in range(5000)}),
    ),
    "table that is there": (TableExistsError, lambda s: [s.create_table("mistakes", {"a": "text"}) for _ in "12"]),
    "pipeline, bad key": (InvalidKeyError, lambda s: s.pipeline().get("")),
    "pipeline, text": (ValidationError, lambda s: s.pipeline().put("k", "v")),
    "pipeline, bad ttl": (ValidationError, lambda s: s.pipeline().put("k", b"v", ttl=0)),
    "pipeline, bad path": (InvalidPathError, lambda s: s.pipeline().put_path("a//b", b"")),
    "pipeline, increment by text": (ValidationError, lambda s: s.pipeline().increment("n", "1")),
    "pipeline, increment of a word": (ValidationError, lambda s: s.pipeline().increment("word").execute()),
}


def deep(levels: int) -> dict[str, Any]:
    condition: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        condition = {"$not": condition}
    return condition


def ended(how: str, then: Action) -> Action:
    def action(client: Any) -> Any:
        transaction = client.begin_transaction()
        transaction.put("ended", b"1")
        getattr(transaction, how)()
        return then(transaction)

    return action


def conflict(client: Any) -> None:
    transaction = client.begin_transaction()
    transaction.increment("n")
    client.put("n", b"5")
    try:
        transaction.commit()
    finally:
        assert not transaction.active


def after_conflict(client: Any) -> None:
    transaction = client.begin_transaction()
    transaction.put("n", b"1")
    client.put("n", b"5")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    transaction.abort()
    transaction.get("n")


# What is done to a client.
CLIENT: dict[str, tuple[type[ToonDBError], Action]] = {
    "unknown isolation": (ValidationError, lambda c: c.begin_transaction("chaos")),
    "no isolation": (ValidationError, lambda c: c.begin_transaction(None)),
    "unknown isolation to run": (ValidationError, lambda c: c.run_transaction(lambda t: 1, isolation="chaos")),
    "no attempts": (ValidationError, lambda c: c.run_transaction(lambda t: 1, attempts=0)),
    "attempts of text": (ValidationError, lambda c: c.run_transaction(lambda t: 1, attempts="3")),
    "commit of an unknown id": (TransactionClosedError, lambda c: c.commit(99_999_999)),
    "abort of an unknown id": (TransactionClosedError, lambda c: c.abort(99_999_999)),
    "commit of text": (ValidationError, lambda c: c.commit("1")),
    "commit of True": (ValidationError, lambda c: c.commit(True)),
    "commit of nothing": (ValidationError, lambda c: c.abort(None)),
    "commit twice": (TransactionClosedError, ended("commit", lambda t: t.commit())),
    "commit after abort": (TransactionClosedError, ended("abort", lambda t: t.commit())),
    "abort after commit": (TransactionClosedError, ended("commit", lambda t: t.abort())),
    "get after commit": (TransactionClosedError, ended("commit", lambda t: t.get("k"))),
    "put after abort": (TransactionClosedError, ended("abort", lambda t: t.put("k", b""))),
    "delete after abort": (TransactionClosedError, ended("abort", lambda t: t.delete("k"))),
    "exists after abort": (TransactionClosedError, ended("abort", lambda t: t.exists("k"))),
    "put_many after commit": (TransactionClosedError, ended("commit", lambda t: t.put_many({"k": b""}))),
    "get_many after commit": (TransactionClosedError, ended("commit", lambda t: t.get_many(["k"]))),
    "delete_many after commit": (TransactionClosedError, ended("commit", lambda t: t.delete_many(["k"]))),
    "delete_path after commit": (
        TransactionClosedError,
        ended("commit", lambda t: t.delete_path("k", recursive=True)),
    ),
    "scan after commit": (TransactionClosedError, ended("commit", lambda t: list(t.scan()))),
    "increment after abort": (TransactionClosedError, ended("abort", lambda t: t.increment("k"))),
    "compare_and_set after abort": (TransactionClosedError, ended("abort", lambda t: t.compare_and_set("k", b"", b""))),
    "ttl after abort": (TransactionClosedError, ended("abort", lambda t: t.ttl("k"))),
    "expire after abort": (TransactionClosedError, ended("abort", lambda t: t.expire("k", 5))),
    "query after commit": (TransactionClosedError, ended("commit", lambda t: t.query("k").count())),
    "create_table after commit": (
        TransactionClosedError,
        ended("commit", lambda t: t.create_table("never", {"a": "text"})),
    ),
    "pipeline after commit": (TransactionClosedError, ended("commit", lambda t: t.pipeline().get("k").execute())),
    "pipeline of writes after commit": (
        TransactionClosedError,
        ended("commit", lambda t: t.pipeline().put("k", b"").execute()),
    ),
    "write in a reading one": (TransactionError, lambda c: reading(c).put("k", b"")),
    "increment in a reading one": (TransactionError, lambda c: reading(c).increment("n")),
    "put_many in a reading one": (TransactionError, lambda c: reading(c).put_many({"k": b""})),
    "conflict": (TransactionConflictError, conflict),
    "use after a conflict": (TransactionClosedError, after_conflict),
    "watch, number": (InvalidKeyError, lambda c: list(c.watch(5))),
    "watch, since below 0": (ValidationError, lambda c: list(c.watch(since_lsn=-1))),
    "watch, since text": (ValidationError, lambda c: list(c.watch(since_lsn="1"))),
    "watch, timeout below 0": (ValidationError, lambda c: list(c.watch(timeout=-1))),
    "watch, timeout NaN": (ValidationError, lambda c: list(c.watch(timeout=math.nan))),
    "watch, timeout of text": (ValidationError, lambda c: list(c.watch(timeout="1"))),
    "watch, since the future": (ValidationError, lambda c: list(c.watch(since_lsn=1 << 80, timeout=0))),
}

_opened: list[Any] = []


def reading(client: Any) -> Any:
    _opened.append(client.begin_transaction(read_only=True))
    return _opened[-1]


AFTER_CLOSE: dict[str, Action] = {
    "get": lambda c: c.get("k"),
    "put": lambda c: c.put("k", b""),
    "delete": lambda c: c.delete("k"),
    "exists": lambda c: c.exists("k"),
    "get_many": lambda c: c.get_many(["k"]),
    "put_many": lambda c: c.put_many({"k": b""}),
    "delete_many": lambda c: c.delete_many(["k"]),
    "delete_path": lambda c: c.delete_path("k", recursive=True),
    "scan": lambda c: list(c.scan()),
    "query": lambda c: c.query("k").count(),
    "create_table": lambda c: c.create_table("never", {"a": "text"}),
    "increment": lambda c: c.increment("k"),
    "compare_and_set": lambda c: c.compare_and_set("k", None, b""),
    "ttl": lambda c: c.ttl("k"),
    "expire": lambda c: c.expire("k", 5),
    "begin_transaction": lambda c: c.begin_transaction(),
    "run_transaction": lambda c: c.run_transaction(lambda t: 1),
    "pipeline": lambda c: c.pipeline().get("k").execute(),
    "pipeline of writes": lambda c: c.pipeline().put("k", b"").execute(),
    "watch": lambda c: list(c.watch(timeout=0)),
    "watch since": lambda c: list(c.watch(since_lsn=0, timeout=0)),
    "checkpoint": lambda c: c.checkpoint(),
    "stats": lambda c: c.stats(),
    "ping": lambda c: c.ping(),
}


class Told(NamedTuple):
    """What a user is told of a mistake."""

    kind: type[ToonDBError]
    code: str
    message: str
    remediation: str
    details: dict[str, Any]


def told(action: Action, subject: Any) -> Told | str:
    """The error that an action raises, without the numbers that differ between runs."""
    try:
        result = action(subject)
    except ToonDBError as error:
        same = re.compile(r"(?<=transaction )\d+|(?<=newest commit is )\d+")
        details = {name: value for name, value in error.details.items() if name != "lsn"}
        return Told(type(error), error.code, same.sub("N", error.message), error.remediation, details)
    return f"no error: {result!r:.60}"


def prepare(client: Any) -> None:
    client.put_many({"word": b"x", "most": b"%d" % ((1 << 63) - 1), "long word": b"9" * 100, "p/1": b'{"a": 1}'})


@pytest.fixture(scope="session")
def as_told_here(places: Places) -> Iterator[dict[str, Any]]:
    """What an embedded database tells of each mistake."""
    with places.open("embedded") as client:
        prepare(client)
        found = {name: told(action, client) for name, (_, action) in {**STORE, **CLIENT}.items()}
        for transaction in _opened:
            transaction.abort()
        _opened.clear()
        yield found


def compared(
    table: dict[str, tuple[type[ToonDBError], Action]], subject: Any, expected: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """The mistakes that are told otherwise, each as it should be told and as it is."""
    wrong: dict[str, tuple[Any, Any]] = {}
    for name, (kind, action) in table.items():
        found = told(action, subject)
        if found != expected[name] or not isinstance(found, Told) or found.kind is not kind or not found.message:
            wrong[name] = (expected[name], found)
    return wrong


def test_of_a_store(store: Any, view: str, as_told_here: dict[str, Any]) -> None:
    prepare(store)
    assert compared(STORE, store, as_told_here) == {}
    # None of them did anything, and a transaction goes on.
    assert store.get_many(["word", "most", "k", "n"]) == {"word": b"x", "most": b"%d" % ((1 << 63) - 1)}
    store.put("k", b"v")
    assert store.get("k") == b"v"


def test_of_a_client(client: Any, as_told_here: dict[str, Any]) -> None:
    prepare(client)
    try:
        assert compared(CLIENT, client, as_told_here) == {}
    finally:
        for transaction in _opened:
            transaction.abort()
        _opened.clear()
    assert client.stats()["active_transactions"] == 0


def test_after_close(client: Any) -> None:
    transaction = client.begin_transaction()
    scan = client.scan()
    client.put_many({f"{n:05}": b"x" * 1000 for n in range(2000)})
    assert next(scan) == (b"00000", b"x" * 1000)
    client.close()
    scan.close()
    wrong = {
        name: found
        for name, action in AFTER_CLOSE.items()
        if not isinstance(found := told(action, client), Told) or found.kind is not DatabaseClosedError
    }
    assert wrong == {}
    with pytest.raises(ToonDBError):
        transaction.get("k")
    with pytest.raises(ToonDBError):
        transaction.commit()
    transaction.abort()
