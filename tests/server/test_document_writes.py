"""Writes of documents that wait for their turn without a thread each, and the queue that they wait in."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.server.raw import END_STREAM, ERROR, QUERY, Raw, frame, settled
from tests.server.rig import serving
from tests.support.daemon import SECONDS, Daemon
from toondb.sql import write_queue
from toondb.sql.write_queue import Write, WriteQueue
from toondb_client import IpcClient
from toondb_protocol.errors import CollectionNotFoundError, DimensionMismatchError

DIMENSION = 4


class Patron:
    """Submits writes and does not wait; turns run on threads, which are joined."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.answers: list[Write[int, int]] = []
        self.changed = threading.Condition()

    def run_elsewhere(self, turns: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=turns))
        self.threads[-1].start()

    def answered(self, write: Write[int, int]) -> None:
        with self.changed:
            self.answers.append(write)
            self.changed.notify_all()

    def wait(self, count: int) -> list[Write[int, int]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.answers) >= count, SECONDS)
        for thread in self.threads:
            thread.join(SECONDS)
        assert len(self.answers) == count
        return self.answers


class Turns:
    """Runs turns: the first waits to be let go."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def run(self, turn: list[Write[int, int]]) -> None:
        self.sizes.append(len(turn))
        self.begun.set()
        assert self.go_on.wait(SECONDS)
        for write in turn:
            if write.action < 0:
                raise ValueError(write.action)
            write.result, write.done = write.action + 1, True


def results(writes: list[Write[int, int]]) -> dict[int, Any]:
    return {write.action: write.error or write.result for write in writes}


def waiting(queue: WriteQueue[int, int], count: int) -> None:
    while len(queue._waiting) < count:
        pass


def test_those_who_come_during_a_turn_share_the_next_one() -> None:
    turns, patron = Turns(), Patron()
    queue = WriteQueue(turns.run, SECONDS)
    queue.submit_later(1, patron)
    assert turns.begun.wait(SECONDS)
    for action in (2, 3, 4):
        queue.submit_later(action, patron)
    assert patron.answers == []
    turns.go_on.set()
    assert results(patron.wait(4)) == {1: 2, 2: 3, 3: 4, 4: 5}
    assert turns.sizes == [1, 3]
    assert len(patron.threads) == 1
    queue.submit_later(5, patron)
    assert results(patron.wait(5))[5] == 6
    assert turns.sizes == [1, 3, 1]


def test_a_turn_waits_for_those_who_were_answered_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those who write one after the other would stay in two groups that take turns."""
    monkeypatch.setattr(write_queue, "_PATIENCE", 1e6)
    turns = Turns()
    queue = WriteQueue(turns.run, SECONDS)

    class Busy(Patron):
        """Has the next write ready when the one before it is answered."""

        def answered(self, write: Write[int, int]) -> None:
            super().answered(write)
            # All end with the same turn: the first one has begun a turn earlier.
            if write.action < (60 if write.action % 10 == 1 else 50):
                self.threads.append(threading.Thread(target=queue.submit_later, args=(write.action + 10, self)))
                self.threads[-1].start()

    patron = Busy()
    queue.submit_later(1, patron)
    assert turns.begun.wait(SECONDS)
    for action in (2, 3, 4):
        queue.submit_later(action, patron)
    turns.go_on.set()
    done = results(patron.wait(25))
    assert all(result == action + 1 for action, result in done.items())
    assert turns.sizes == [1, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("thread_first", [True, False])
def test_threads_and_patrons_hand_over_to_each_other(thread_first: bool) -> None:
    turns, patron = Turns(), Patron()
    queue = WriteQueue(turns.run, SECONDS)
    given: list[int] = []
    threads: list[threading.Thread] = []

    def by_thread(action: int) -> None:
        threads.append(threading.Thread(target=lambda: given.append(queue.submit(action))))
        threads[-1].start()

    def by_patron(action: int) -> None:
        queue.submit_later(action, patron)

    first, second = (by_thread, by_patron) if thread_first else (by_patron, by_thread)
    first(10)
    assert turns.begun.wait(SECONDS)
    second(20)
    waiting(queue, 1)
    first(30)
    waiting(queue, 2)
    turns.go_on.set()
    by_threads = 2 if thread_first else 1
    done = results(patron.wait(3 - by_threads))
    for thread in threads:
        thread.join(SECONDS)
    assert sorted([*given, *done.values()]) == [11, 21, 31]
    assert turns.sizes == [1, 2]
    assert queue.submit_later(40, patron).patron is patron
    assert results(patron.wait(4 - by_threads))[40] == 41
    assert queue.submit(50) == 51


def test_a_turn_that_fails_is_for_who_leads_it_and_the_others_have_another() -> None:
    turns, patron = Turns(), Patron()
    queue = WriteQueue(turns.run, SECONDS)
    queue.submit_later(1, patron)
    assert turns.begun.wait(SECONDS)
    for action in (-1, 2, 3):
        queue.submit_later(action, patron)
    turns.go_on.set()
    done = results(patron.wait(4))
    assert (done[1], done[2], done[3]) == (2, 3, 4)
    assert isinstance(done[-1], ValueError)
    assert turns.sizes == [1, 3, 2]


def test_a_write_is_withdrawn_until_its_turn_begins() -> None:
    turns, patron = Turns(), Patron()
    queue = WriteQueue(turns.run, SECONDS)
    first = queue.submit_later(1, patron)
    assert turns.begun.wait(SECONDS)
    second, third = queue.submit_later(2, patron), queue.submit_later(3, patron)
    for write in (first, second, second):
        queue.withdraw(write)
    turns.go_on.set()
    assert results(patron.wait(2)) == {1: 2, 3: 4}
    queue.withdraw(third)
    assert queue.submit(4) == 5


# In a server


async def test_writes_of_many_share_turns_and_threads(tmp_db: Path) -> None:
    """Nobody has a thread to itself: while one turn runs, the others wait for the next one."""
    async with serving(tmp_db.parent) as rig, await rig.client() as client:
        collection = await (await client.create_namespace("ns")).create_collection("docs", dimension=DIMENSION)
        engine = rig.server.collections()
        sizes: list[int] = []
        begun, go_on = threading.Event(), threading.Event()
        run = engine._commit

        def commit(actions: list[Any]) -> list[Any]:
            sizes.append(len(actions))
            begun.set()
            assert go_on.wait(SECONDS)
            return run(actions)

        engine._commit = commit  # type: ignore[method-assign]
        others = [await rig.client() for _ in range(6)]
        try:
            inserts = [asyncio.ensure_future(collection.insert([1.0, 0, 0, 0], None, "first"))]
            assert await asyncio.to_thread(begun.wait, SECONDS)
            for number, other in enumerate(others):
                place = await other.collection("ns", "docs")
                inserts.append(asyncio.ensure_future(place.insert([0.0, 1, 0, number], None, str(number))))
            queue = next(iter(engine._queues.values()))
            while len(queue._waiting) < len(others):
                await client.ping()
            assert rig.server.writing_workers._unfinished == 1
            go_on.set()
            await asyncio.gather(*inserts)
            assert sizes == [1, 6]
            assert await collection.count() == 7
        finally:
            go_on.set()
            for other in others:
                await other.close()


# With a daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "--sync-mode", "off") as daemon:
        yield daemon
        assert "internal error" not in daemon.log


def put(id: str, numbers: int = DIMENSION, **options: Any) -> bytes:
    """The frame of a write of one document."""
    arguments = {
        "namespace": "ns",
        "collection": "docs",
        "ids": [id],
        "vectors": struct.pack(f"<{numbers}f", *[1.0] * numbers),
        "dimension": numbers,
        "metadatas": [{}],
        "contents": [None],
        **options,
    }
    return operation("document_put", arguments)


def operation(name: str, arguments: dict[str, Any]) -> bytes:
    return frame(QUERY, msgpack.packb({"op": name, "args": msgpack.packb(arguments)}), txn=0)


def made(client: IpcClient, **options: Any) -> Any:
    return client.create_namespace("ns").create_collection("docs", dimension=DIMENSION, **options)


@pytest.mark.parametrize("words", [False, True])
def test_many_clients_insert_and_those_with_mistakes_are_told(daemon: Daemon, words: bool) -> None:
    failures: list[BaseException] = []

    def insert(own: int) -> None:
        try:
            with IpcClient.connect(daemon.socket) as client:
                collection = client.collection("ns", "docs")
                for number in range(25):
                    assert collection.insert([1.0, own, number, 1], {"own": own}, f"{own}-{number}", "some words")
                    assert collection.get(f"{own}-{number}") is not None
                    if number % 5 == 0:
                        with pytest.raises(DimensionMismatchError):
                            collection.insert([1.0], None, "never")
                        assert collection.delete(f"{own}-{number}") is True
                        assert collection.delete(f"{own}-{number}") is False
        except BaseException as error:
            failures.append(error)

    with IpcClient.connect(daemon.socket) as client:
        collection = made(client, enable_hybrid_search=words)
        threads = [threading.Thread(target=insert, args=(own,)) for own in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * SECONDS)
        assert failures == []
        assert collection.count() == 8 * 20
        assert collection.get("never") is None
        if words:
            assert len(collection.keyword_search("words", 200)) == 8 * 20


def test_large_and_small_writes_wait_in_one_queue(daemon: Daemon) -> None:
    """What is large is checked on a thread, which then waits for its turn beside those without one."""
    with IpcClient.connect(daemon.socket) as client:
        collection = made(client)
        failures: list[BaseException] = []

        def insert(own: int) -> None:
            try:
                with IpcClient.connect(daemon.socket) as mine:
                    place = mine.collection("ns", "docs")
                    for number in range(20):
                        count = 1 if (own + number) % 2 else 100
                        place.insert_batch([[1.0] * DIMENSION] * count, None, [f"{own} {at}" for at in range(count)])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=insert, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * SECONDS)
        assert failures == []
        assert collection.count() == 400


def test_requests_of_one_connection_keep_their_order(daemon: Daemon) -> None:
    with IpcClient.connect(daemon.socket) as client:
        made(client)
        where = {"namespace": "ns", "collection": "docs"}
        with Raw(daemon.socket) as raw:
            frames = []
            for number in range(30):
                frames += [
                    put(str(number)),
                    operation("document_count", where),
                    put("refused", numbers=2),
                    operation("document_delete", {**where, "ids": [str(number)]}),
                ]
            raw.send(*frames)
            for answer, expected in zip(raw.answers(len(frames)), [None, 1, ERROR, 1] * 30, strict=True):
                if expected == ERROR:
                    assert answer.error == "DIMENSION_MISMATCH"
                else:
                    assert answer.code == END_STREAM
                    assert msgpack.unpackb(answer.rows[0]) == expected


def test_a_collection_that_is_deleted_meanwhile(daemon: Daemon) -> None:
    with IpcClient.connect(daemon.socket) as client:
        collection = made(client)
        namespace = client.namespace("ns")
        for _ in range(5):
            collection.insert([1.0] * DIMENSION, None, "there")
            namespace.delete_collection("docs")
            with pytest.raises(CollectionNotFoundError):
                collection.insert([1.0] * DIMENSION)
            with pytest.raises(CollectionNotFoundError):
                collection.delete("there")
            namespace.create_collection("docs", dimension=DIMENSION)
            assert collection.count() == 0


def test_clients_that_vanish_with_writes_under_way(daemon: Daemon) -> None:
    with IpcClient.connect(daemon.socket) as client:
        collection = made(client)
        for number in range(40):
            with Raw(daemon.socket) as gone:
                gone.send(*[put(f"{number}-{at}") for at in range(1 + number % 4)])
            collection.insert([1.0] * DIMENSION, None, f"mine {number}")
            assert collection.get(f"mine {number}") is not None
    with Raw(daemon.socket) as observer:
        settled(observer)
