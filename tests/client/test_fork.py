"""Clients in forked children: they never share a socket or a memory map with the parent."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from typing import Any

import pytest

from tests.server.raw import Raw, settled
from tests.support.blocking import make_runner
from tests.support.children import in_child
from tests.support.daemon import Daemon
from toondb_client import AsyncIpcClient, IpcClient
from toondb_protocol.errors import ConfigurationError, ForkedProcessError

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("direct", [False, True], ids=["socket", "direct"])
@pytest.mark.parametrize("exits", [True, False], ids=["_exit", "finalized"])
def test_a_client_of_the_parent_works_in_the_child(server: Daemon, direct: bool, exits: bool) -> None:
    with IpcClient.connect(server.socket, direct_reads=direct) as client:
        client.put_many({f"{n:05}": b"x" * 100 for n in range(3000)})
        rows = client.scan()
        first = next(rows)
        second: Any = client.scan()
        next(second)
        second.close()
        transaction = client.begin_transaction()
        transaction.put("t", b"1")
        assert client.get("00001") == b"x" * 100

        def child() -> Any:
            nonlocal rows, second
            assert client.get("00001") == b"x" * 100
            client.put("child", b"1")
            assert client.get("child") == b"1"
            assert client.exists("child")
            assert len(list(client.scan("0"))) == 3000
            with client.transaction() as own:
                own.put("own", b"1")
            for use in (lambda: transaction.get("t"), transaction.commit, transaction.abort):
                with pytest.raises(ForkedProcessError):
                    use()
            with pytest.raises(ForkedProcessError):
                list(rows)
            del rows, second
            gc.collect()
            return "done"

        assert in_child(child, exits=exits) == "done"
        # The parent notices nothing: its snapshots, its transaction, its connections, its reader slots.
        client.put_many({f"{n:05}": b"y" * 100 for n in range(3000)})
        assert [first, *rows] == [(b"%05d" % n, b"x" * 100) for n in range(3000)]
        transaction.commit()
        assert client.get_many(["t", "own", "child"]) == {"t": b"1", "own": b"1", "child": b"1"}
        assert client.get("00001") == b"y" * 100
        assert len(list(client.scan("0"))) == 3000
    with Raw(server.socket) as observer:
        settled(observer)


def test_a_fork_while_threads_use_the_client(server: Daemon) -> None:
    with IpcClient.connect(server.socket, direct_reads=True, max_connections=2) as client:
        client.put("a", b"1")
        transaction = client.begin_transaction()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                transaction.put("b", b"1")
                assert client.get("a") == b"1"
                client.query("a").count()
                list(client.scan())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):

                def child() -> Any:
                    with pytest.raises(ForkedProcessError):
                        transaction.get("a")
                    client.put("c", b"1")
                    return client.get("a")

                assert in_child(child) == b"1"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        transaction.commit()
        assert client.get("b") == b"1"


def test_direct_reads_cannot_be_opened_again_in_the_child(server: Daemon) -> None:
    with IpcClient.connect(server.socket, direct_reads=True) as client:

        def child() -> Any:
            with pytest.raises(ConfigurationError, match="forked"):
                IpcClient.connect(server.socket, direct_reads=True)
            with IpcClient.connect(server.socket) as own:
                own.put("a", b"1")
            return client.get("a")

        assert in_child(child) == b"1"
        assert client.get("a") == b"1"

    def other_child() -> Any:
        with IpcClient.connect(server.socket, direct_reads=True) as own:
            return own.get("a")

    assert in_child(other_child) == b"1"


_global: IpcClient | None = None


def _use_global(number: int) -> bytes | None:
    assert _global is not None
    _global.put(f"p/{number}", b"%d" % number)
    with _global.transaction() as transaction:
        transaction.put(f"q/{number}", b"%d" % number)
    return _global.get(f"p/{number}")


@pytest.mark.parametrize("direct", [False, True], ids=["socket", "direct"])
def test_a_pool_of_forked_workers_with_a_global_client(server: Daemon, direct: bool) -> None:
    global _global
    with IpcClient.connect(server.socket, direct_reads=direct) as client:
        _global = client
        client.put("a", b"1")
        assert client.get("a") == b"1"
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(_use_global, range(60)) == [b"%d" % n for n in range(60)]
            pool.close()
            pool.join()
        assert len(list(client.scan("p/"))) == len(list(client.scan("q/"))) == 60
        _global = None


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_an_async_client_is_refused_in_the_child(server: Daemon, kind: str) -> None:
    errors: list[dict[str, Any]] = []
    with make_runner(kind, errors) as runner:
        client = runner.run(AsyncIpcClient.connect(server.socket, direct_reads=True))
        transaction = runner.run(client.begin_transaction())
        runner.run(transaction.put("t", b"1"))
        assert runner.run(client.get("t")) is None

        def child() -> Any:
            async def use() -> str:
                for call in (
                    client.get("a"), client.put("a", b"1"), client.put_many({"a": b"1"}), client.get_many(["a"]),
                    client.exists("a"), client.ping(), client.begin_transaction(), transaction.get("a"),
                    transaction.commit(), transaction.abort(),
                ):  # fmt: skip
                    with pytest.raises(ForkedProcessError):
                        await call
                with pytest.raises(ForkedProcessError):
                    async for _ in client.scan():
                        pass
                await client.close()
                async with await AsyncIpcClient.connect(server.socket) as own:
                    await own.put("child", b"1")
                return "done"

            with make_runner("asyncio", []) as inner:
                return inner.run(use())

        assert in_child(child) == "done"
        runner.run(transaction.commit())
        assert runner.run(client.get_many(["t", "child"])) == {"t": b"1", "child": b"1"}
        runner.run(client.close())
    assert errors == []


def test_the_child_does_not_keep_the_parents_connections_open(server: Daemon) -> None:
    errors: list[dict[str, Any]] = []
    context = multiprocessing.get_context("fork")
    with make_runner("asyncio", errors) as runner:
        sync_client = IpcClient.connect(server.socket)
        client = runner.run(AsyncIpcClient.connect(server.socket))
        here, there = context.Pipe()
        child = context.Process(target=there.recv)
        child.start()
        try:
            runner.run(client.close())
            sync_client.close()
            with Raw(server.socket) as observer:
                settled(observer)
        finally:
            here.send(None)
            child.join()
            child.close()
            here.close()
            there.close()
    assert errors == []
