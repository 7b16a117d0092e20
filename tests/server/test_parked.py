"""Jobs that sleep until a commit: who counts them, what wakes them, and what is left of those that vanish."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.server.raw import END_STREAM, ROW, frame, put, scan
from tests.server.rig import Rig, serving
from toondb.engine.conditional import Expire
from toondb.engine.writer import WriteRequest


@pytest.fixture(autouse=True)
def quick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the device of a busy machine takes: a slow commit keeps the next ones off the loop for a while."""
    monkeypatch.setattr("toondb_server.server._LONE_WRITER_SECONDS", 3600.0)


@pytest.fixture
def folder(tmp_db: Path) -> Path:
    return tmp_db.parent


async def until(condition: Callable[[], object], what: str) -> None:
    """Let the loop turn until something is so; bounded."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
    assert condition(), what


class Peer:
    """One raw connection to the server of a rig."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, rig: Rig) -> Peer:
        return cls(*await asyncio.open_unix_connection(rig.path))

    async def answer(self) -> tuple[int, bytes, list[Any]]:
        """The next complete reply."""
        rows: list[Any] = []
        async with asyncio.timeout(30):
            while True:
                head = await self.reader.readexactly(5)
                payload = await self.reader.readexactly(int.from_bytes(head[1:], "little"))
                if head[0] != ROW:
                    return head[0], payload, rows
                rows += msgpack.unpackb(payload)

    async def call(self, data: bytes) -> tuple[int, bytes, list[Any]]:
        self.writer.write(data)
        return await self.answer()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def asleep(rig: Rig) -> int:
    return len(rig.server._parked)


async def test_sleepers_count_as_nobody_and_all_wake(folder: Path) -> None:
    async with serving(folder) as rig, await rig.client() as writer:
        peers = [await Peer.connect(rig) for _ in range(90)]
        for round_ in range(3):
            lsn = await writer.checkpoint()
            for peer in peers:
                peer.writer.write(scan(prefix=b"watched", since_lsn=lsn, wait_ms=15_000))
            await until(lambda: asleep(rig) == len(peers), "all sleep")
            assert rig.server.jobs == 0
            before = len(rig.inline)
            for number in range(20):
                await writer.put(b"elsewhere", b"%d" % number)
            assert len(rig.inline) > before, "sleepers keep a lone writer from the quick way"
            await until(lambda: asleep(rig) == len(peers), "all sleep again")
            assert rig.server.jobs == 0
            await writer.put(b"watched", b"%d" % round_)
            for peer in peers:
                code, _, rows = await peer.answer()
                assert code == END_STREAM
                assert rows[2:4] == [b"watched", b"%d" % round_]
            assert (asleep(rig), rig.server.jobs) == (0, 0)
        for peer in peers:
            await peer.close()


@pytest.mark.parametrize("how", ["close", "abort", "with requests behind"])
async def test_nothing_is_left_of_sleepers_that_vanish(folder: Path, how: str) -> None:
    async with serving(folder) as rig, await rig.client() as writer:
        lsn = await writer.checkpoint()
        peers = [await Peer.connect(rig) for _ in range(30)]
        for peer in peers:
            peer.writer.write(scan(prefix=b"none", since_lsn=lsn, wait_ms=15_000))
            if how == "with requests behind":
                peer.writer.write(put(b"never", b"x") * 10)
        await until(lambda: asleep(rig) == len(peers), "all sleep")
        timers = list(rig.server._parked.values())
        for peer in peers:
            peer.writer.transport.abort() if how == "abort" else peer.writer.close()
        await until(lambda: len(rig.server.sessions) == 1, "all are gone")
        assert (asleep(rig), rig.server.jobs, rig.server.turns_due) == (0, 0, 0)
        assert all(timer.cancelled() for timer in timers)
        assert await writer.get(b"never") is None
        before = len(rig.inline)
        for _ in range(10):
            await writer.put(b"k", b"v")
        assert len(rig.inline) > before


async def test_any_number_of_wake_ups_is_one(folder: Path) -> None:
    async with serving(folder) as rig, await rig.client() as writer:
        lsn = await writer.checkpoint()
        peer = await Peer.connect(rig)
        peer.writer.write(scan(prefix=b"watched", since_lsn=lsn, wait_ms=15_000))
        await until(lambda: asleep(rig), "it sleeps")
        (session,) = rig.server._parked
        for _ in range(5):
            session.resume_writing()
            session.step_soon()
            rig.server._wake_parked()
            await asyncio.sleep(0)
        await until(lambda: asleep(rig), "it sleeps again")
        assert rig.server.jobs == 0
        await writer.put(b"watched", b"1")
        assert (await peer.answer())[2][2:4] == [b"watched", b"1"]
        assert (asleep(rig), rig.server.jobs) == (0, 0)
        assert (await peer.call(frame(14)))[0] == 0x87
        await peer.close()


async def test_a_stop_wakes_all_at_once(folder: Path) -> None:
    async with serving(folder) as rig:
        lsn = rig.server.engine.environment.announced_lsn
        peers = [await Peer.connect(rig) for _ in range(10)]
        for peer in peers:
            peer.writer.write(scan(prefix=b"none", since_lsn=lsn, wait_ms=15_000) * 3)
        await until(lambda: asleep(rig) == len(peers), "all sleep")
        async with asyncio.timeout(30):
            await rig.server.drain(3600)
        assert (asleep(rig), rig.server.jobs) == (0, 0)
        for peer in peers:
            assert [(await peer.answer())[0] for _ in range(3)] == [END_STREAM] * 3
            await peer.close()


async def test_who_heard_of_a_commit_reads_nothing_older(folder: Path) -> None:
    """A commit is in the store a moment before it is announced, and until then kept replies hold the old value."""
    async with serving(folder) as rig, await rig.client() as client:
        environment, loop = rig.server.engine.environment, asyncio.get_running_loop()
        await client.put(b"k", b"old", ttl=60)
        await client.put(b"k", b"old")
        for _ in range(3):
            assert await client.get(b"k") == b"old"
        committed, go = threading.Event(), threading.Event()
        announce = environment.announce

        def held(lsn: int) -> None:
            committed.set()
            assert go.wait(30)
            announce(lsn)

        environment.announce = held  # type: ignore[method-assign]
        done: asyncio.Future[None] = loop.create_future()

        def finish(request: WriteRequest) -> None:
            loop.call_soon_threadsafe(done.set_result, None)

        lsn = environment.announced_lsn
        try:
            rig.server.engine.submit([(b"k", b"new"), Expire(b"k", 60_000)], finish)
            assert await loop.run_in_executor(None, committed.wait, 30)
            changes = [change async for change in client.watch(since_lsn=lsn, timeout=0)]
            assert [change.value for change in changes] == [b"new", b"new"]
            assert await client.get(b"k") == b"new"
        finally:
            go.set()
            environment.announce = announce  # type: ignore[method-assign]
            await done


async def test_another_time_to_live_of_a_large_value_is_not_written_on_the_loop(folder: Path) -> None:
    async with serving(folder) as rig, await rig.client() as client:
        await client.put(b"large", bytes(4 << 20))
        for _ in range(10):
            assert await client.expire(b"large", 60)
        assert not [unit for units in rig.inline for unit in units if isinstance(unit, Expire)]
        # It is taken when nothing else is under way, such as a look for what has expired.
        for _ in range(2000):
            await client.increment(b"small")
            if rig.inline:
                break
        assert rig.inline, "a small write still takes the quick way"
