"""Arguments that cannot be are refused before anything is sent, and the connection stays usable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

Case = tuple[type[ToonDBError], Callable[[Any], Any]]


def _cases() -> list[Case]:
    cases: list[Case] = []
    for key in BAD_KEYS:
        for name in ("get", "exists", "delete"):
            cases.append((InvalidKeyError, lambda s, name=name, key=key: getattr(s, name)(key)))
            cases.append((InvalidKeyError, lambda s, name=name, key=key: getattr(s.pipeline(), name)(key)))
        cases.append((InvalidKeyError, lambda s, key=key: s.put(key, b"")))
        cases.append((InvalidKeyError, lambda s, key=key: s.pipeline().put(key, b"")))
        cases.append((InvalidKeyError, lambda s, key=key: s.get_many(["a", key])))
        cases.append((InvalidKeyError, lambda s, key=key: s.delete_many(["a", key])))
        cases.append((InvalidKeyError, lambda s, key=key: s.put_many([("a", b""), (key, b"")])))
    for name in ("get", "exists", "delete"):
        cases.append((KeyTooLargeError, lambda s, name=name: getattr(s, name)(b"x" * 512)))
    cases.append((KeyTooLargeError, lambda s: s.put("é" * 256, b"")))
    cases.append((KeyTooLargeError, lambda s: s.put_path("a/" + "b" * 600, b"")))
    cases.append((KeyTooLargeError, lambda s: s.delete_path("a/" + "b" * 600, recursive=True)))
    for path in BAD_PATHS:
        cases.append((InvalidPathError, lambda s, path=path: s.get_path(path)))
        cases.append((InvalidPathError, lambda s, path=path: s.put_path(path, b"")))
        cases.append((InvalidPathError, lambda s, path=path: s.delete_path(path)))
        cases.append((InvalidPathError, lambda s, path=path: s.pipeline().put_path(path, b"")))
        if path != ["\ud800"]:
            cases.append((InvalidPathError, lambda s, path=path: s.delete_path(path, recursive=True)))
    cases.append((ValidationError, lambda s: s.delete_path(["\ud800"], recursive=True)))
    for value in BAD_VALUES:
        cases.append((ValidationError, lambda s, value=value: s.put("a", value)))
        cases.append((ValidationError, lambda s, value=value: s.put_path("a", value)))
        cases.append((ValidationError, lambda s, value=value: s.put_many({"a": value})))
        cases.append((ValidationError, lambda s, value=value: s.pipeline().put("a", value)))
    for items in (None, 5, "ab", b"ab", bytearray(b"ab"), memoryview(b"ab")):
        cases.append((ValidationError, lambda s, items=items: s.get_many(items)))
        cases.append((ValidationError, lambda s, items=items: s.put_many(items)))
        cases.append((ValidationError, lambda s, items=items: s.delete_many(items)))
    for item in (5, "ab", b"ab", ("a",), ("a", b"", 1), None):
        cases.append((ValidationError, lambda s, item=item: s.put_many([item])))
    for number in BAD_NUMBERS:
        cases.append((ValidationError, lambda s, number=number: s.scan(limit=number)))
        cases.append((ValidationError, lambda s, number=number: s.scan_prefix("", limit=number)))
        cases.append((ValidationError, lambda s, number=number: s.scan_batched(limit=number)))
        cases.append((ValidationError, lambda s, number=number: s.scan_batched(batch_size=number)))
        cases.append((ValidationError, lambda s, number=number: s.query("a").limit(number)))
        cases.append((ValidationError, lambda s, number=number: s.query("a").offset(number)))
        cases.append((ValidationError, lambda s, number=number: s.query("a", limit=number)))
        cases.append((ValidationError, lambda s, number=number: s.query("a", offset=number)))
    cases.append((ValidationError, lambda s: s.scan_batched(batch_size=0)))
    for bound in (5, [], 1.5, "\ud800"):
        cases.append((InvalidKeyError, lambda s, bound=bound: s.scan(bound)))
        cases.append((InvalidKeyError, lambda s, bound=bound: s.scan("a", bound)))
        cases.append((InvalidKeyError, lambda s, bound=bound: s.scan_prefix(bound)))
        cases.append((InvalidKeyError, lambda s, bound=bound: s.query(bound)))
    for columns in BAD_COLUMNS:
        cases.append((ValidationError, lambda s, columns=columns: s.query("a").select(columns)))
        cases.append((ValidationError, lambda s, columns=columns: s.query("a", columns=columns)))
    for table in BAD_TABLES:
        cases.append((ValidationError, lambda s, table=table: s.create_table("t", table)))
    for name in (5, None, b"t", "\ud800", "x" * 70_000):
        cases.append((ValidationError, lambda s, name=name: s.create_table(name, {"id": "int64"})))
    return cases


def _client_cases() -> list[Case]:
    cases: list[Case] = []
    for isolation in ("bogus", "", None, 5):
        cases.append((ValidationError, lambda s, i=isolation: s.begin_transaction(i)))
        cases.append((ValidationError, lambda s, i=isolation: s.run_transaction(print, isolation=i)))
    for number in [*BAD_NUMBERS, 0]:
        cases.append((ValidationError, lambda s, n=number: s.run_transaction(print, attempts=n)))
    for wrong in (None, "1", 1.5, True, b"", object()):
        cases.append((ValidationError, lambda s, w=wrong: s.commit(w)))
        cases.append((ValidationError, lambda s, w=wrong: s.abort(w)))
    return cases




@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
@pytest.mark.parametrize("mode", ["plain", "transaction", "direct"])
def test_every_wrong_argument_is_refused_before_it_is_sent(connect: Connect, server: Daemon, mode: str) -> None:
    client = connect(server.socket, max_connections=1, timeout=5, direct_reads=mode == "direct")
    cases = _cases() + ([] if mode == "transaction" else _client_cases())
    store = client.begin_transaction() if mode == "transaction" else client
    with IpcClient.connect(server.socket) as observer:
        before = observer.stats()["requests_total"]
        for number, (expected, call) in enumerate(cases):
            with pytest.raises(expected) as caught:
                result = call(store)
                raise AssertionError(f"case {number} gave {result!r}")
            assert isinstance(caught.value, ValueError)
            assert caught.value.message
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
        for call in (
            lambda: client.put("a", large),
            lambda: client.put_path("a", large),
            lambda: client.put_many({"a": b"1", "b": large, "c": b"2"}),
            lambda: client.pipeline().put("a", large).execute(),
        ):
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
