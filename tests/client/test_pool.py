"""Connections given out: to one user at a time, never more than allowed, none lost."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from tests.server.raw import Raw, settled, until
from tests.support.blocking import make_runner
from tests.support.daemon import Daemon
from toondb_client import AsyncIpcClient, IpcClient
from toondb_protocol.errors import DatabaseClosedError, PoolTimeoutError, ToonDBError

from .conftest import Connect

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("size", [1, 3, 32])
def test_threads_never_get_each_others_results(server: Daemon, size: int) -> None:
    failures: list[BaseException] = []

    def work(number: int, client: IpcClient) -> None:
        rng = random.Random(number)
        try:
            for turn in range(40):
                key, value = f"{number}/{turn % 5}", b"%d:%d" % (number, turn) * rng.randrange(1, 300)
                client.put(key, value)
                assert client.get(key) == value
                assert client.exists(key)
                if turn % 10 == 0:
                    assert all(k.startswith(b"%d/" % number) for k, _ in client.scan(f"{number}/"))
                    assert client.pipeline().get(key).exists(key).execute() == [value, True]
                    with client.transaction() as transaction:
                        transaction.put(key, b"t")
                        assert transaction.get(key) == b"t"
                    assert client.get_many([key]) == {key: b"t"}
        except BaseException as error:
            failures.append(error)

    with IpcClient.connect(server.socket, max_connections=size) as client:
        threads = [threading.Thread(target=work, args=(number, client)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert client.stats()["connections_active"] <= size
    with Raw(server.socket) as observer:
        settled(observer)


@pytest.mark.parametrize("kind", ["uvloop", "asyncio", "debug"])
def test_tasks_never_get_each_others_results(server: Daemon, kind: str) -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        async with await AsyncIpcClient.connect(server.socket, max_connections=3) as client:

            async def work(number: int) -> None:
                for turn in range(15):
                    key, value = f"{number}/{turn % 5}", b"%d:%d" % (number, turn)
                    await client.put(key, value)
                    assert await client.get(key) == value
                    if turn % 5 == 0:
                        async with client.transaction() as transaction:
                            await transaction.put(key, b"t")
                            assert await transaction.get(key) == b"t"
                        assert [row async for row in client.scan(key)] == [(key.encode(), b"t")]

            await asyncio.gather(*map(work, range(32)))
            assert (await client.stats())["connections_active"] <= 3

    with make_runner(kind, errors) as runner:
        runner.run(main())
    assert errors == []


def test_waiting_for_a_connection(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket, max_connections=2, timeout=0.1)
    held = [client.begin_transaction(), client.begin_transaction()]
    with pytest.raises(PoolTimeoutError):
        client.get("a")
    held[0].abort()
    assert client.get("a") is None
    rows = client.scan()
    assert list(rows) == []
    held[1].abort()
    client.close()


def test_a_waiter_gets_what_is_given_back(server: Daemon) -> None:
    with IpcClient.connect(server.socket, max_connections=1) as client:
        client.put("a", b"1")
        transaction = client.begin_transaction()
        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(client.get("a"))) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: len(client._pool._waiting) == 5, "all wait")
        transaction.commit()
        for thread in threads:
            thread.join()
        assert results == [b"1"] * 5


def test_closing_ends_the_waiting(server: Daemon) -> None:
    client = IpcClient.connect(server.socket, max_connections=1)
    transaction = client.begin_transaction()
    results: list[BaseException] = []

    def wait() -> None:
        try:
            client.get("a")
        except ToonDBError as error:
            results.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(client._pool._waiting) == 3, "all wait")
    client.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in results] == [DatabaseClosedError] * 3
    transaction.abort()
    with Raw(server.socket) as observer:
        settled(observer)


def test_closing_while_threads_work(server: Daemon) -> None:
    for _ in range(5):
        client = IpcClient.connect(server.socket, max_connections=4)
        results: list[BaseException] = []
        running = threading.Barrier(9)

        def work(client: IpcClient = client, results: list[BaseException] = results, running: Any = running) -> None:
            client.get("a")
            running.wait()
            try:
                while True:
                    client.put("a", b"1")
            except BaseException as failure:
                results.append(failure)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        running.wait()
        client.close()
        for thread in threads:
            thread.join()
        assert {type(error) for error in results} == {DatabaseClosedError}
    with Raw(server.socket) as observer:
        settled(observer)


def test_async_waiters_are_served_in_order(server: Daemon) -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        client = await AsyncIpcClient.connect(server.socket, max_connections=1, timeout=5)
        transaction = await client.begin_transaction()
        order: list[int] = []

        async def wait(number: int) -> None:
            await client.get("a")
            order.append(number)

        tasks = [asyncio.ensure_future(wait(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert len(client._pool._waiters) == 5
        tasks[1].cancel()
        transaction._end("lost")  # frees a slot rather than a connection
        tasks.append(asyncio.ensure_future(wait(5)))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2, 3, 4, 5]
        transaction = await client.begin_transaction()
        waiting = asyncio.ensure_future(client.get("a"))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(DatabaseClosedError):
            await waiting
        await transaction.abort()
        assert client._pool._slots == 1

    with make_runner("asyncio", errors) as runner:
        runner.run(main())
    assert errors == []


def test_many_connects_leave_nothing(connect: Connect, server: Daemon) -> None:
    for _ in range(50):
        client = connect(server.socket)
        client.put("a", b"1")
        client.close()
    with Raw(server.socket) as observer:
        settled(observer)
