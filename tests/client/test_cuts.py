"""A connection that is cut, held or damaged: a typed error or the right result, never a wrong one, never a hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.proxy import Proxy
from toondb_client import IpcClient
from toondb_protocol.errors import (
    ConnectionLostError,
    OperationTimeoutError,
    ToonDBError,
    TransactionError,
    TransactionOutcomeUnknownError,
)

from .conftest import Connect

BOTH = pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
ALL = pytest.mark.parametrize("connect", ["sync", "uvloop", "asyncio"], indirect=True)


def commit(client: Any) -> Any:
    transaction = client.begin_transaction()
    try:
        transaction.put("b", b"2")
        return transaction.commit() > 0
    finally:
        transaction.abort() if transaction.active else None


CONVERSATIONS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "get": (lambda client: client.get("a"), b"1"),
    "put": (lambda client: client.put("b", b"2"), None),
    "commit": (commit, True),
    "scan": (lambda client: list(client.scan("a")), [(b"a", b"1"), (b"aa", b"11")]),
    "get_many": (lambda client: client.get_many(["a", "aa"]), {"a": b"1", "aa": b"11"}),
    "put_many": (lambda client: client.put_many({"b": b"2", "c": b"3"}), 2),
    "pipeline": (lambda client: client.pipeline().get("a").put("b", b"2").execute(), [b"1", None]),
}


@BOTH
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("way", ["cut_up", "cut_down"])
def test_a_cut_at_every_byte(connect: Connect, server: Daemon, proxy: Proxy, name: str, way: str) -> None:
    talk, expected = CONVERSATIONS[name]
    with IpcClient.connect(server.socket) as direct:
        direct.put_many({"a": b"1", "aa": b"11"})
        # What the conversation takes, and where the hello before it ends.
        client = connect(proxy.path, max_connections=1, timeout=20, reconnect_timeout=0.001)
        count = "bytes_up" if way == "cut_up" else "bytes_down"
        hello = getattr(proxy, count)
        assert talk(client) == expected
        end = getattr(proxy, count)
        client.close()
        # The hello is the same each time: its first, middle and last bytes stand for it.
        for at in [0, 1, 4, 5, hello // 2, hello - 1, *range(hello, end)]:
            direct.delete_many(["b", "c"])
            setattr(proxy, way, at)
            try:
                client = connect(proxy.path, max_connections=1, timeout=20, reconnect_timeout=0.001)
                assert at >= hello
            except ToonDBError:
                assert at < hello
                proxy.heal()
                continue
            with pytest.raises(ToonDBError) as caught:
                talk(client)
            maybe_applied = getattr(caught.value, "details", {}).get("maybe_applied")
            match name:
                case "put" | "pipeline":
                    assert caught.type is ConnectionLostError
                    assert maybe_applied is True
                case "put_many":
                    assert caught.type is ConnectionLostError
                    assert maybe_applied in (True, False)
                    assert maybe_applied or direct.get_many(["b", "c"]) == {}
                case "commit":
                    lost = isinstance(caught.value, TransactionError)
                    assert lost or isinstance(caught.value, ConnectionLostError)
                    assert caught.type is TransactionOutcomeUnknownError or direct.get("b") is None
                case _:
                    assert isinstance(caught.value, ConnectionLostError)
                    assert not maybe_applied
            assert direct.get("b") in (None, b"2")
            assert (direct.get("c") is None) or direct.get("b") == b"2"
            proxy.heal()
            assert client.get("a") == b"1"
            assert talk(client) == expected
            client.close()


@BOTH
@pytest.mark.parametrize("name", ["get", "put", "commit", "scan", "get_many"])
def test_a_damaged_byte_never_hangs_and_never_raises_anything_untyped(
    connect: Connect, server: Daemon, proxy: Proxy, name: str
) -> None:
    talk, expected = CONVERSATIONS[name]
    with IpcClient.connect(server.socket) as direct:
        direct.put_many({"a": b"1", "aa": b"11"})
    client = connect(proxy.path, timeout=20, reconnect_timeout=0.001)
    hello = proxy.bytes_down
    talk(client)
    end = proxy.bytes_down
    client.close()
    for at in range(0, end, 1 if end - hello < 60 else 2):
        if at < hello and at % 16:
            continue
        for mask in (0x01, 0x80):
            proxy.corrupt_down, proxy.corrupt_mask = at, mask
            try:
                # A length that grew is waited for: that is the only thing here that takes time.
                client = connect(proxy.path, max_connections=1, timeout=0.05, reconnect_timeout=0.001)
                talk(client)
            except ToonDBError:
                pass
            finally:
                proxy.heal()
    client = connect(proxy.path)
    assert talk(client) == expected


@ALL
def test_a_held_reply_is_never_read_as_the_next_one(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    with IpcClient.connect(server.socket) as direct:
        direct.put_many({f"k{n}": b"%d" % n for n in range(4)})
    client = connect(proxy.path, timeout=0.1, max_connections=1)
    calls: list[Callable[[], Any]] = [
        lambda: client.get("k0"),
        lambda: client.put("k9", b"9"),
        lambda: list(client.scan("k")),
        lambda: client.get_many(["k0"]),
        lambda: client.put_many({"k9": b"9"}),
        lambda: client.pipeline().get("k0").get("k1").execute(),
        lambda: client.begin_transaction(),
        lambda: client.query("k").to_list(),
        lambda: client.ping(),
    ]
    for call in calls:
        client.get("k1")
        proxy.hold()
        with pytest.raises(OperationTimeoutError):
            call()
        proxy.let_go()
        for n in (1, 2, 3):
            assert client.get(f"k{n}") == b"%d" % n


@ALL
def test_a_held_reply_in_a_transaction(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    client = connect(proxy.path, timeout=0.1, max_connections=1)
    transaction = client.begin_transaction()
    proxy.hold()
    with pytest.raises(OperationTimeoutError):
        transaction.put("k", b"v")
    proxy.let_go()
    with pytest.raises(TransactionError):
        transaction.get("k")
    transaction.abort()
    assert client.get("k") is None

    transaction = client.begin_transaction()
    transaction.put("k", b"v")
    proxy.hold()
    with pytest.raises(TransactionOutcomeUnknownError):
        transaction.commit()
    proxy.let_go()
    with pytest.raises(TransactionError):
        transaction.commit()
    assert client.get("k") in (None, b"v")


@ALL
def test_a_lost_transaction_does_not_look_committed(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    client = connect(proxy.path, timeout=20)
    with pytest.raises(TransactionError, match="lost"):
        with client.begin_transaction() as transaction:
            transaction.put("k", b"v")
            proxy.cut()
            with pytest.raises(TransactionError, match="lost"):
                transaction.put("k", b"w")
    assert client.get("k") is None


@ALL
def test_a_cut_in_a_scan(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    with IpcClient.connect(server.socket) as direct:
        direct.put_many({f"{n:05}": b"x" * 100 for n in range(5000)})
    client = connect(proxy.path, max_connections=1)
    rows = client.scan()
    first = next(rows)
    proxy.cut()
    with pytest.raises(ConnectionLostError):
        list(rows)
    assert next(client.scan()) == first
    rows = client.scan()
    next(rows)
    proxy.cut()
    rows.close()
    assert client.get("00001") == b"x" * 100


@ALL
def test_a_large_pipeline_that_is_cut_in_the_middle(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    client = connect(proxy.path, max_connections=1)
    proxy.cut_up = 3_000_000
    pipeline = client.pipeline()
    for n in range(5000):
        pipeline.put(f"{n:05}", b"x" * 1000)
    with pytest.raises(ConnectionLostError) as caught:
        pipeline.execute()
    assert caught.value.details["maybe_applied"] is True
    proxy.heal()
    # In order: what was applied is the beginning.
    keys = [key for key, _ in client.scan()]
    assert keys == [b"%05d" % n for n in range(len(keys))]


@ALL
def test_retry_writes(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    client = connect(proxy.path, max_connections=1, retry_writes=True)
    client.put("a", b"1")
    with proxy.losing_the_reply():
        assert client.put("a", b"2") is None
    assert client.get("a") == b"2"


@ALL
def test_a_write_whose_reply_is_lost_is_not_repeated(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    client = connect(proxy.path, max_connections=1)
    client.get("a")
    before = proxy.bytes_up
    with proxy.losing_the_reply(), pytest.raises(ConnectionLostError) as caught:
        client.put("a", b"2")
    assert caught.value.details["maybe_applied"] is True
    assert proxy.bytes_up < before + 40


@ALL
def test_reads_are_repeated_when_their_reply_is_lost(connect: Connect, server: Daemon, proxy: Proxy) -> None:
    client = connect(proxy.path, max_connections=1)
    client.put("a", b"1")
    for call, expected in (
        (lambda: client.get("a"), b"1"),
        (lambda: client.exists("a"), True),
        (lambda: client.get_many(["a"]), {"a": b"1"}),
        (lambda: list(client.scan()), [(b"a", b"1")]),
        (lambda: client.begin_transaction().abort(), None),
        (lambda: client.query("a").count(), 1),
    ):
        with proxy.losing_the_reply():
            assert call() == expected
