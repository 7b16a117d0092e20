"""Commits on the event loop: only for a client that nobody shares the daemon with, and only what is quick."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.server.rig import Rig, serving
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, SyncMode
from toondb.engine.writer import Writer, WriteRequest
from toondb_client import AsyncIpcClient
from toondb_protocol.errors import InternalError, ToonDBError


@pytest.fixture(autouse=True)
def quick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the device of a busy machine takes: a slow commit keeps the next ones off the loop for a while."""
    monkeypatch.setattr("toondb_server.server._LONE_WRITER_SECONDS", 3600.0)


@pytest.fixture
def folder(tmp_db: Path) -> Path:
    return tmp_db.parent


async def write_until(rig: Rig, client: AsyncIpcClient, count: int) -> None:
    """Write until so many commits were made on the loop: none is while the writer thread syncs, which may take long."""
    number = 0
    async with asyncio.timeout(60):
        while len(rig.inline) < count:
            number += 1
            await client.put(b"k", b"%d" % number)
            assert await client.get(b"k") == b"%d" % number


async def test_a_lone_writer_commits_on_the_loop(folder: Path) -> None:
    async with serving(folder) as rig, await rig.client() as client:
        await write_until(rig, client, 10)


async def test_who_shares_the_daemon_goes_to_the_thread(folder: Path) -> None:
    async with serving(folder) as rig, await rig.client() as one, await rig.client() as two:
        for number in range(20):
            await one.put(b"k", b"%d" % number)
            assert await two.get(b"k") == b"%d" % number
        assert not rig.inline


async def test_two_bursts_do_not_add_up_to_a_lone_writer(folder: Path) -> None:
    """Held input is worked off without new data: each session must still be told from the other."""
    async with serving(folder) as rig, await rig.client() as one, await rig.client() as two:

        async def burst(client: AsyncIpcClient, name: bytes) -> None:
            pipeline = client.pipeline()
            for number in range(200):
                pipeline.put(name, b"%d" % number).get(name)
            results = await pipeline.execute()
            assert results[1::2] == [b"%d" % number for number in range(200)]

        await asyncio.gather(burst(one, b"one"), burst(two, b"two"))
        # The one that goes on after the other has ended is a lone writer by then.
        both = [units for units in rig.inline if len(units) > 1]
        assert not both
        assert len(rig.inline) < 200


async def test_what_may_take_long_goes_to_the_thread(folder: Path) -> None:
    async with serving(folder) as rig, await rig.client() as client:
        await write_until(rig, client, 3)
        before = len(rig.inline)
        await client.checkpoint()
        await client.put(b"large", bytes(100_000))
        await client.put_many({b"%d" % number: b"v" for number in range(1000)})
        async with client.transaction(isolation="serializable") as transaction:
            assert len([row async for row in transaction.scan()]) == 1002
            await transaction.put(b"k", b"v")
        assert len(rig.inline) == before
        await write_until(rig, client, before + 1)


async def test_a_slow_device_ends_it_for_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toondb_server.server._LONE_WRITER_SECONDS", 0.0)
    monkeypatch.setattr("toondb_server.server._LONE_WRITER_PAUSE", 1000.0)
    async with serving(folder) as rig, await rig.client() as client:
        await write_until(rig, client, 1)
        for number in range(20):
            await client.put(b"k", b"%d" % number)
        assert len(rig.inline) == 1


class SlowSync:
    """An LMDB environment whose first sync waits until told."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.syncs = 0
        self.inside, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sync(self, force: bool) -> None:
        self.syncs += 1
        self._real.sync(force)
        if self.syncs == 1:
            self.inside.set()
            assert self.go.wait(30)


@pytest.fixture
def lazy(tmp_db: Path) -> Iterator[tuple[Engine, SlowSync]]:
    engine = Engine(tmp_db, EngineOptions(sync_mode=SyncMode.OFF))
    slow = SlowSync(engine.environment.lmdb)
    engine.environment.lmdb = slow
    yield engine, slow
    slow.go.set()
    engine.close()


def test_no_commit_slips_into_a_running_sync(lazy: tuple[Engine, SlowSync]) -> None:
    """It would be taken for synced, and neither a checkpoint nor the end would sync it."""
    engine, slow = lazy
    engine.put(b"k", b"0")
    assert slow.inside.wait(30), "the writer thread did not flush"
    assert engine.commit_now([(b"k", b"1")]) is None
    slow.go.set()
    lsn = engine.put(b"k", b"2")
    before = slow.syncs
    assert engine.checkpoint() == lsn
    assert slow.syncs > before


def test_the_end_of_the_writer_is_named(tmp_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes after a defect ended the thread must hear of it, and not that somebody closed the database."""

    def fail(self: Writer, batch: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(Writer, "_commit", fail)
    engine = Engine(tmp_db)

    def write() -> list[int | ToonDBError]:
        done: SimpleQueue[WriteRequest] = SimpleQueue()
        engine.submit([(b"k", b"v")], done.put)
        return done.get(timeout=30).results

    (error,) = write()
    assert isinstance(error, InternalError)
    assert "the writer ended: ValueError: a defect" in str(error)
    engine.writer._thread.join(30)
    for late in (write, lambda: engine.put(b"k", b"v")):
        with pytest.raises(InternalError, match="the writer ended: ValueError: a defect"):
            late()
    engine.close()
