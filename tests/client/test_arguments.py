"""Arguments that cannot be are refused before anything is sent, and the connection stays usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.daemon import Daemon
from toondb_client import IpcClient
from toondb_protocol.errors import (
    ConfigurationError,
    InvalidKeyError,
    InvalidPathError,
    KeyTooLargeError,
    ToonDBError,
    ValidationError,
    ValueTooLargeError,
)

from .conftest import Connect

BAD_KEYS: list[Any] = [None, 5, 1.5, [], "", b"", bytearray(), "\ud800", object()]
BAD_PATHS: list[Any] = [None, 5, b"a/b", "", "/", "a//b", "/a", "a/", [], [""], ["a", 5], ["a/b"], ["\ud800"]]
BAD_VALUES: list[Any] = [None, "text", 5, [1], object()]
BAD_NUMBERS: list[Any] = [-1, 1.5, "1", True, b"1"]
BAD_COLUMNS: list[Any] = [5, "name", b"name", [5], [None], ["\ud800"]]
BAD_TABLES: list[Any] = [
    5, "id", None, [5], ["id"], [("id",)], [("id", "int64", True, 1)], [("id", "decimal")], [("id", 99)],
    [("id", None)], [(5, "int64")], [("\ud800", "text")], {"id": 5.5}, [("id", "text", "yes")],
    [("x" * 70_000, "text")], [("c", "text")] * 70_000, [("id", True)],
]  # fmt: skip


class Case(NamedTuple):
    """A call that must be refused: ``pipeline.get`` and ``query.limit`` are methods of what those give."""

    expected: type[ToonDBError]
    path: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def call(self, store: Any) -> Any:
        first, _, second = self.path.partition(".")
        if second:
            store = store.pipeline() if first == "pipeline" else store.query("a")
        return getattr(store, second or first)(*self.arguments, **self.options)


def case(expected: type[ToonDBError], path: str, *arguments: Any, **options: Any) -> Case:
    return Case(expected, path, arguments, options)


def store_cases() -> Iterator[Case]:
    for key in BAD_KEYS:
        for name in ("get", "exists", "delete"):
            yield case(InvalidKeyError, name, key)
            yield case(InvalidKeyError, f"pipeline.{name}", key)
        yield case(InvalidKeyError, "put", key, b"")
        yield case(InvalidKeyError, "pipeline.put", key, b"")
        yield case(InvalidKeyError, "get_many", ["a", key])
        yield case(InvalidKeyError, "delete_many", ["a", key])
        yield case(InvalidKeyError, "put_many", [("a", b""), (key, b"")])
    for name in ("get", "exists", "delete"):
        yield case(KeyTooLargeError, name, b"x" * 512)
    yield case(KeyTooLargeError, "put", "\u00e9" * 256, b"")
    yield case(KeyTooLargeError, "put_path", "a/" + "b" * 600, b"")
    yield case(KeyTooLargeError, "delete_path", "a/" + "b" * 600, recursive=True)
    for path in BAD_PATHS:
        yield case(InvalidPathError, "get_path", path)
        yield case(InvalidPathError, "put_path", path, b"")
        yield case(InvalidPathError, "delete_path", path)
        yield case(InvalidPathError, "pipeline.put_path", path, b"")
        yield case(InvalidPathError, "delete_path", path, recursive=True)
    for value in BAD_VALUES:
        yield case(ValidationError, "put", "a", value)
        yield case(ValidationError, "put_path", "a", value)
        yield case(ValidationError, "put_many", {"a": value})
        yield case(ValidationError, "pipeline.put", "a", value)
    for items in (None, 5, "ab", b"ab", bytearray(b"ab"), memoryview(b"ab")):
        for name in ("get_many", "put_many", "delete_many"):
            yield case(ValidationError, name, items)
    for item in (5, "ab", b"ab", ("a",), ("a", b"", 1), None):
        yield case(ValidationError, "put_many", [item])
    for number in BAD_NUMBERS:
        for name in ("scan", "scan_batched"):
            yield case(ValidationError, name, limit=number)
        yield case(ValidationError, "scan_prefix", "", limit=number)
        yield case(ValidationError, "scan_batched", batch_size=number)
        for name in ("limit", "offset"):
            yield case(ValidationError, f"query.{name}", number)
            yield case(ValidationError, "query", "a", **{name: number})
    yield case(ValidationError, "scan_batched", batch_size=0)
    bound: Any
    for bound in (5, [], 1.5, "\ud800"):
        yield case(InvalidKeyError, "scan", bound)
        yield case(InvalidKeyError, "scan", "a", bound)
        yield case(InvalidKeyError, "scan_prefix", bound)
        yield case(InvalidKeyError, "query", bound)
    for columns in BAD_COLUMNS:
        yield case(ValidationError, "query.select", columns)
        yield case(ValidationError, "query", "a", columns=columns)
    for table in BAD_TABLES:
        yield case(ValidationError, "create_table", "t", table)
    for table in (5, None, b"t", "\ud800", "x" * 70_000):
        yield case(ValidationError, "create_table", table, {"id": "int64"})


def client_cases() -> Iterator[Case]:
    for isolation in ("bogus", "", None, 5):
        yield case(ValidationError, "begin_transaction", isolation)
        yield case(ValidationError, "run_transaction", print, isolation=isolation)
    for number in [*BAD_NUMBERS, 0]:
        yield case(ValidationError, "run_transaction", print, attempts=number)
    for wrong in (None, "1", 1.5, True, b"", object()):
        yield case(ValidationError, "commit", wrong)
        yield case(ValidationError, "abort", wrong)


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
@pytest.mark.parametrize("mode", ["plain", "transaction", "direct"])
def test_every_wrong_argument_is_refused_before_it_is_sent(connect: Connect, server: Daemon, mode: str) -> None:
    client = connect(server.socket, max_connections=1, timeout=5, direct_reads=mode == "direct")
    cases = [*store_cases(), *(() if mode == "transaction" else client_cases())]
    store = client.begin_transaction() if mode == "transaction" else client
    with IpcClient.connect(server.socket) as observer:
        before = observer.stats()["requests_total"]
        for item in cases:
            with pytest.raises(item.expected) as caught:
                result = item.call(store)
                raise AssertionError(f"{item} gave {result!r}")
            assert caught.value.message
            assert isinstance(caught.value, ValueError)
            assert len(str(caught.value)) < 400_000
        assert observer.stats()["requests_total"] == before + 1
    store.put("still", b"works")
    assert store.get("still") == b"works"
    if mode == "transaction":
        store.abort()


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
def test_a_value_over_the_frame_cap(connect: Connect, tmp_db: Path) -> None:
    with Daemon(tmp_db, "--max-frame", "100000") as daemon:
        client = connect(daemon.socket, max_connections=1, timeout=5)
        large = b"x" * 100_001
        calls: list[Callable[[], Any]] = [
            lambda: client.put("a", large),
            lambda: client.put_path("a", large),
            lambda: client.put_many({"a": b"1", "b": large, "c": b"2"}),
            lambda: client.pipeline().put("a", large).execute(),
        ]
        for call in calls:
            with pytest.raises(ValueTooLargeError) as caught:
                call()
            assert caught.value.details["limit"] == 100_000
            assert list(client.scan()) == []
        assert client.stats()["active_transactions"] == 0
        with client.begin_transaction() as transaction:
            transaction.put("a", b"1")
            with pytest.raises(ValueTooLargeError):
                transaction.put("b", large)
            transaction.put("b", b"2")
        assert client.get_many(["a", "b"]) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0}, {"timeout": -1}, {"timeout": "5"}, {"timeout": None}, {"timeout": float("nan")},
        {"timeout": float("inf")}, {"timeout": True}, {"reconnect_timeout": 0}, {"reconnect_timeout": "x"},
        {"max_connections": 0}, {"max_connections": -1}, {"max_connections": 1.5}, {"max_connections": "8"},
        {"max_connections": True}, {"retry_writes": "yes"}, {"retry_writes": 1}, {"direct_reads": None},
    ],
)  # fmt: skip
def test_wrong_options(connect: Connect, server: Daemon, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        connect(server.socket, **options)


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
@pytest.mark.parametrize(
    "target",
    [
        5, None, b"/tmp/x", "", "a\0b", "http://localhost/x", "toondb+unix://host/x", "toondb+unix:///x?y=1",
        "toondb+unix:///x#y", "toondb+unix://", "toondb+unix://[", "\ud800", "x" * 108, "toondb://x",
    ],
)  # fmt: skip
def test_wrong_targets(connect: Connect, target: Any) -> None:
    with pytest.raises(ConfigurationError):
        connect(target)


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
def test_forms_of_a_target(connect: Connect, server: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = str(server.socket).replace("t", "%74")
    monkeypatch.chdir(server.db)
    monkeypatch.setenv("HOME", str(server.db.parent))
    for target in (server.socket, str(server.socket), server.db, f"toondb+unix://{quoted}", "toondb.sock", ".", "~/db"):
        assert connect(target).ping() > 0


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
def test_extreme_timeouts_work(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket, timeout=9e8, reconnect_timeout=9e8)
    client.put_many({"a": b"x" * 1_000_000})
    assert client.get("a") == b"x" * 1_000_000
