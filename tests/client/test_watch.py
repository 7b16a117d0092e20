"""Watches of the clients: restarts, ends, cancellation, and servers that answer nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.server.raw import OK, Raw, fill, put, settled, until
from tests.support.blocking import LOOPS, make_runner
from tests.support.daemon import Daemon
from toondb_client import AsyncIpcClient, IpcClient, calls
from toondb_protocol.changes import Change
from toondb_protocol.client_core import ReplyFrame
from toondb_protocol.errors import HistoryTrimmedError, ProtocolError
from toondb_protocol.layout import encode_map
from toondb_protocol.opcodes import Reply

from .conftest import Connect


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    errors: list[dict[str, Any]] = []
    with make_runner("uvloop", errors) as runner:
        yield runner
    assert errors == []


def whole_commits(client: Any, after: int, rng: random.Random) -> Iterator[list[Change]]:
    """The commits after ``after``, by watches that are given up at any change and resumed after the last whole one."""
    while True:
        pending: list[Change] = []
        for change in client.watch("k/", since_lsn=after):
            pending.append(change)
            if change.last:
                after = change.lsn
                yield pending
                pending = []
            if rng.random() < 0.01:
                break


@pytest.mark.parametrize("connect", ["sync", "uvloop", "asyncio"], indirect=True)
def test_every_change_comes_once_however_often_the_daemon_is_killed(connect: Connect, tmp_db: Path) -> None:
    rounds, writes, acknowledged_at_least = 4, 600, 150
    acknowledged: list[bytes] = []
    failures: list[BaseException] = []
    running = [Daemon(tmp_db)]

    def work() -> None:
        try:
            for number in range(rounds):
                with Raw(running[0].socket) as raw:
                    keys = [b"k/%d/%05d" % (number, at) for at in range(writes)]
                    txn = raw.begin()
                    raw.send(*(put(key + b"/never", b"", txn=txn) for key in keys[:100]))
                    assert {got.code for got in raw.answers(100)} == {OK}
                    raw.send(*(put(key, key) for key in keys))
                    for key in keys[:acknowledged_at_least]:
                        assert raw.answer().code == OK
                        acknowledged.append(key)
                    running[0].stop(signal.SIGKILL)  # with the rest on its way
                running[0] = Daemon(tmp_db)
            with IpcClient.connect(running[0].socket) as last:
                last.put_many({"k/end/1": b"", "k/end/2": b""})
        except BaseException as error:
            failures.append(error)
            with contextlib.suppress(Exception), IpcClient.connect(running[0].socket) as last:
                last.put("k/end/2", b"")  # lets the watcher end

    try:
        client = connect(running[0].socket, reconnect_timeout=25)
        thread = threading.Thread(target=work)
        thread.start()
        seen: list[Change] = []
        try:
            for commit in whole_commits(client, 0, random.Random(1)):
                assert len({change.lsn for change in commit}) == 1
                seen += commit
                if commit[-1].key == b"k/end/2":
                    break
        finally:
            thread.join(60)
        assert not failures, failures
        lsns = [change.lsn for change in seen]
        assert lsns == sorted(lsns)
        assert len({(change.lsn, change.key) for change in seen}) == len(seen)
        assert {change.key: change.value for change in seen} == dict(client.scan("k/"))
        assert len(seen) == len({change.key for change in seen})
        assert {change.key for change in seen} >= set(acknowledged)
    finally:
        running[0].stop()


def test_close_from_another_thread_ends_a_watch(server: Daemon, no_leftovers: None) -> None:
    client = IpcClient.connect(server.socket)
    started, seen = threading.Event(), list[bytes]()

    def watch() -> None:
        for change in client.watch("w"):
            seen.append(change.key)
            started.set()

    thread = threading.Thread(target=watch)
    with IpcClient.connect(server.socket) as other:
        thread.start()

        def tell() -> bool:
            other.put("w1", b"")
            return started.is_set()

        until(tell, "the watch began")
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert seen
    with Raw(server.socket) as observer:
        settled(observer)


def test_close_ends_a_watch_that_waits_for_a_connection(server: Daemon, no_leftovers: None) -> None:
    client = IpcClient.connect(server.socket, max_connections=1)
    watch = client.watch(since_lsn=0)
    transaction = client.begin_transaction()
    ended = threading.Event()

    def step() -> None:
        assert list(watch) == []
        ended.set()

    thread = threading.Thread(target=step)
    thread.start()
    until(lambda: client._pool._waiting, "the watch waits")
    client.close()
    thread.join(30)
    assert ended.is_set()
    with contextlib.suppress(Exception):
        transaction.abort()


def test_close_ends_async_watches(server: Daemon, runner: asyncio.Runner) -> None:
    async def body() -> None:
        client = await AsyncIpcClient.connect(server.socket, max_connections=2)
        transaction = await client.begin_transaction()
        lsn = await client.checkpoint()
        await client.put("w", b"")
        first = asyncio.Event()

        async def watch() -> list[Change]:
            seen = []
            async for change in client.watch("w", since_lsn=lsn):
                seen.append(change)
                first.set()
            return seen

        # One of them sleeps in the server, the others wait for its connection.
        tasks = [asyncio.create_task(watch()) for _ in range(3)]
        await first.wait()
        async with asyncio.timeout(30):
            while not client._pool._waiters:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
            await client.close()
            for seen in await asyncio.gather(*tasks):
                assert len(seen) in (0, 1)
        with contextlib.suppress(Exception):
            await transaction.abort()

    runner.run(body())
    with Raw(server.socket) as observer:
        settled(observer)


@pytest.mark.parametrize("loop", LOOPS)
def test_cancelled_watches_leave_nothing(server: Daemon, loop: str, no_leftovers: None) -> None:
    async def body() -> None:
        async with await AsyncIpcClient.connect(server.socket) as client:

            async def watch() -> None:
                async for _ in client.watch("none"):
                    raise AssertionError("nothing was written there")

            for turns in range(12):
                tasks = [asyncio.create_task(watch()) for _ in range(10)]
                for _ in range(turns * 3):
                    await asyncio.sleep(0)
                if turns % 3 == 0:
                    async with asyncio.timeout(30):
                        while len(client._pool._all) < len(tasks):  # noqa: ASYNC110 - no event tells of it
                            await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert {type(result) for result in results} == {asyncio.CancelledError}
                await client.put("x", b"1")
                assert await client.get("x") == b"1"

    errors: list[dict[str, Any]] = []
    with make_runner(loop, errors) as runner:
        runner.run(body())
    assert errors == []
    with Raw(server.socket) as observer:
        settled(observer)


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
def test_a_watch_holds_no_connection_between_its_steps(server: Daemon, connect: Connect) -> None:
    client = connect(server.socket, max_connections=1)
    lsn = client.checkpoint()
    client.put_many({"w/1": b"1", "w/2": b"2"})
    watch = client.watch("w/", since_lsn=lsn)
    assert next(watch).key == b"w/1"
    assert client.get("w/1") == b"1"
    assert next(watch).key == b"w/2"
    client.put("w/3", b"3")
    assert next(watch).key == b"w/3"
    watch.close()
    assert client.get("w/3") == b"3"


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
def test_a_watcher_that_lags_is_told(connect: Connect, tmp_db: Path) -> None:
    with Daemon(tmp_db, "--sync-mode", "off") as daemon:
        client = connect(daemon.socket)
        client.put("first", b"")
        watch = client.watch(since_lsn=0)
        assert next(watch).key == b"first"
        with Raw(daemon.socket) as raw:
            fill(raw, ((b"k/%06d" % at, bytes(900)) for at in range(24_000)))
        with pytest.raises(HistoryTrimmedError) as told:
            list(watch)
        assert told.value.details["since_lsn"] == 1
        assert 1 < told.value.details["oldest_lsn"] < told.value.details["lsn"] == client.checkpoint()
        client.close()


NONSENSE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "no lsn": ([], {"rows": 0}),
    "lsn of text": ([], {"lsn": "1"}),
    "lsn of a bool": ([], {"lsn": True}),
    "four items": ([1, "put", b"k", b"v"], {"lsn": 1}),
    "unknown kind": ([1, "merge", b"k", b"v", True], {"lsn": 1}),
    "kind of bytes": ([1, b"put", b"k", b"v", True], {"lsn": 1}),
    "lsn of a change of text": (["1", "put", b"k", b"v", True], {"lsn": 1}),
    "key of text": ([1, "put", "k", b"v", True], {"lsn": 1}),
    "value of a number": ([1, "put", b"k", 5, True], {"lsn": 1}),
    "put without a value": ([1, "put", b"k", None, True], {"lsn": 1}),
    "delete with a value": ([1, "delete", b"k", b"v", True], {"lsn": 1}),
    "last of a number": ([1, "put", b"k", b"v", 1], {"lsn": 1}),
    "a list": ([1, "put", b"k", [b"v"], True], {"lsn": 1}),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_changes_that_are_none_are_a_protocol_error(name: str) -> None:
    items, end = NONSENSE[name]
    reply = ReplyFrame(int(Reply.END_STREAM), encode_map(end), [msgpack.packb(items)] if items else [])
    with pytest.raises(ProtocolError):
        calls.changes(0, b"", None, 0).decode(reply)


@pytest.mark.parametrize("items", [[b"k"], [b"k", b"5"], [b"k", 5, b"l", 5], [b"k", "5"], [b"k", -1], [5, 5]])
def test_a_time_to_live_that_is_none_is_a_protocol_error(items: list[Any]) -> None:
    reply = ReplyFrame(int(Reply.END_STREAM), encode_map({"rows": 1}), [msgpack.packb(items)])
    with pytest.raises(ProtocolError):
        calls.ttl(0, b"k").decode(reply)


@pytest.mark.parametrize("end", [{}, {"result": None}, {"result": "1"}, {"result": b""}, {"result": 1.5}])
def test_a_result_that_is_none_is_a_protocol_error(end: dict[str, Any]) -> None:
    for call in (calls.increment(0, b"k", 1), calls.expire(0, b"k", None), calls.put_for(0, b"k", b"v", 5)):
        with pytest.raises(ProtocolError):
            call.decode(ReplyFrame(int(Reply.END_STREAM), encode_map(end), ()))
        with pytest.raises(ProtocolError):
            call.decode(ReplyFrame(int(Reply.OK), b"", ()))
