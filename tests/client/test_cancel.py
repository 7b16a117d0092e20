"""Cancelling the async client anywhere: nothing is mixed up afterwards, nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.server.raw import Raw, settled
from tests.support.blocking import LOOPS, make_runner
from tests.support.daemon import Daemon
from tests.support.proxy import Proxy
from toondb_client import AsyncIpcClient, IpcClient
from toondb_protocol.errors import OperationTimeoutError, ToonDBError

from .conftest import open_fds

pytestmark = pytest.mark.usefixtures("no_leftovers")

Operation = Callable[[AsyncIpcClient], Awaitable[Any]]


async def _scan(client: AsyncIpcClient) -> Any:
    return [key async for key, _ in client.scan("n/")]


async def _transaction(client: AsyncIpcClient) -> Any:
    async with client.transaction() as transaction:
        # A cancelled commit may still be applied: writing the same key again could be a conflict with it.
        await transaction.put(f"t/{next(NUMBERS)}", b"1")
        return await transaction.get("n/00001")


async def _transaction_scan(client: AsyncIpcClient) -> Any:
    async with client.transaction() as transaction:
        return [key async for key, _ in transaction.scan("n/")]


async def _run(client: AsyncIpcClient) -> Any:
    return await client.run_transaction(lambda transaction: transaction.get("n/00001"))


NUMBERS = itertools.count()
NAMES = [b"n/%05d" % n for n in range(1500)]
OPERATIONS: dict[str, tuple[Operation, Any]] = {
    "get": (lambda c: c.get("n/00001"), b"x" * 100),
    "put": (lambda c: c.put("p", b"1"), None),
    "scan": (_scan, NAMES),
    "exchange": (lambda c: c.pipeline().get("n/00001").get("p").execute(), None),
    "put_many": (lambda c: c.put_many({f"m/{n}": b"x" * 1000 for n in range(600)}), 600),
    "get_many": (lambda c: c.get_many(["n/00001"]), {"n/00001": b"x" * 100}),
    "transaction": (_transaction, b"x" * 100),
    "transaction_scan": (_transaction_scan, NAMES),
    "run_transaction": (_run, b"x" * 100),
}


@pytest.fixture
def filled(server: Daemon) -> Daemon:
    with IpcClient.connect(server.socket) as client:
        client.put_many((name, b"x" * 100) for name in NAMES)
    return server


async def _cancelled_after(task: asyncio.Future[Any], turns: int) -> bool:
    """Cancel ``task`` after so many turns of the loop; whether that stopped it."""
    for _ in range(turns):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("fresh", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_cancel_at_every_turn(filled: Daemon, kind: str, name: str, fresh: bool) -> None:
    operation, expected = OPERATIONS[name]
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        client = await AsyncIpcClient.connect(filled.socket, max_connections=1, timeout=20)
        stopped = 0
        for turns in [*range(12), 16, 24, 40]:
            if fresh:
                client._pool.drop_idle()  # so that connecting is cancelled as well
            if await _cancelled_after(asyncio.ensure_future(operation(client)), turns):
                stopped += 1
            # The only slot is free again and its replies are this call's own.
            assert await client.get("n/00002") == b"x" * 100
            assert await client.get("missing") is None
        assert stopped
        result = await operation(client)
        assert expected is None or result == expected
        assert client._pool._slots + len(client._pool._all) == 1
        await client.close()

    with make_runner(kind, errors) as runner:
        runner.run(main())
        gc.collect()
    assert errors == []
    with Raw(filled.socket) as observer:
        settled(observer)


@pytest.mark.parametrize("kind", LOOPS)
def test_cancel_while_waiting_for_a_connection(filled: Daemon, kind: str) -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        client = await AsyncIpcClient.connect(filled.socket, max_connections=1, timeout=20)
        for lost in (False, True):
            for turns in range(6):
                transaction = await client.begin_transaction()
                waiting = [asyncio.ensure_future(client.get("n/00001")) for _ in range(3)]
                await asyncio.sleep(0)
                if lost:
                    transaction._end("lost")  # a slot is handed over
                else:
                    await transaction.abort()  # a connection is handed over
                await _cancelled_after(waiting[0], turns)
                assert await asyncio.gather(*waiting[1:]) == [b"x" * 100] * 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await client.get("n/00001")
        assert client._pool._slots + len(client._pool._all) == 1
        assert not client._pool._waiters
        await client.close()

    with make_runner(kind, errors) as runner:
        runner.run(main())
    assert errors == []


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_cancel_while_the_reply_is_held(filled: Daemon, kind: str) -> None:
    errors: list[dict[str, Any]] = []

    async def main(proxy: Proxy) -> None:
        client = await AsyncIpcClient.connect(proxy.path, max_connections=1, timeout=20)
        for name, (operation, _) in OPERATIONS.items():
            before = proxy.bytes_up
            proxy.hold()
            task = asyncio.ensure_future(operation(client))
            await asyncio.to_thread(proxy.wait_up, before + 1)
            assert await _cancelled_after(task, 3), name
            proxy.let_go()
            assert await client.get("n/00002") == b"x" * 100
            assert await client.get("missing") is None
        await client.close()

    with Proxy(filled.socket) as proxy, make_runner(kind, errors) as runner:
        runner.run(main(proxy))
    assert errors == []


def test_cancel_connect_at_every_turn(server: Daemon) -> None:
    for kind in LOOPS:
        errors: list[dict[str, Any]] = []
        with make_runner(kind, errors) as runner:

            async def main() -> None:
                await (await AsyncIpcClient.connect(server.socket)).close()
                await asyncio.sleep(0)
                before = open_fds()
                for turns in range(12):
                    task = asyncio.ensure_future(AsyncIpcClient.connect(server.socket))
                    if not await _cancelled_after(task, turns):
                        await task.result().close()
                    for _ in range(20):  # transports close in turns of the loop
                        await asyncio.sleep(0)
                    assert open_fds() == before

            runner.run(main())
        assert errors == []


@pytest.mark.parametrize("kind", LOOPS)
def test_iterations_given_up(filled: Daemon, kind: str) -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        client = await AsyncIpcClient.connect(filled.socket, max_connections=1, timeout=20)
        for _ in range(5):
            async for _row in client.scan():
                break
            gc.collect()
            assert await client.get("n/00001") == b"x" * 100
        await client.close()

    with make_runner(kind, errors) as runner:
        runner.run(main())
    assert errors == []


def test_another_loop_is_refused(server: Daemon) -> None:
    async def opened() -> AsyncIpcClient:
        return await AsyncIpcClient.connect(server.socket)

    async def used(client: AsyncIpcClient) -> None:
        for call in (client.get("a"), client.put_many({"a": b"1"}), client.begin_transaction()):
            with pytest.raises(ToonDBError, match="another event loop"):
                await call

    errors: list[dict[str, Any]] = []
    with make_runner("asyncio", errors) as first:
        client = first.run(opened())
        with make_runner("asyncio", errors) as second:
            second.run(used(client))
        first.run(client.close())
    assert errors == []


def test_a_time_out_closes_the_connection(server: Daemon) -> None:
    async def main(proxy: Proxy) -> None:
        client = await AsyncIpcClient.connect(proxy.path, timeout=0.1, max_connections=2)
        proxy.hold()
        results = await asyncio.gather(*(client.get("a") for _ in range(2)), return_exceptions=True)
        assert {type(error) for error in results} == {OperationTimeoutError}
        proxy.let_go()
        assert await client.get("a") is None
        await client.close()

    errors: list[dict[str, Any]] = []
    with Proxy(server.socket) as proxy, make_runner("uvloop", errors) as runner:
        runner.run(main(proxy))
    assert errors == []
