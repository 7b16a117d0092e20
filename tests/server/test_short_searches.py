"""Searches that are answered on the event loop: the same answers as threads give, never old, and nobody waits long."""

from __future__ import annotations

import asyncio
import random
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.server.raw import Raw
from tests.server.rig import Rig, serving
from tests.support.daemon import SECONDS, Daemon
from toondb.collections.vector_cache import VectorCache
from toondb_client import AsyncIpcClient, IpcClient
from toondb_protocol.collections import HasCollections
from toondb_protocol.errors import CollectionNotFoundError, DimensionMismatchError, ValidationError
from toondb_protocol.frames import pack_header
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply
from toondb_protocol.search import SearchRequest, SearchResult
from toondb_server import short_searches
from toondb_server.short_searches import MOST_IN_A_TURN

DIMENSION, COUNT = 8, 300


def some_vector(number: int) -> list[float]:
    return [random.Random(number * DIMENSION + at).uniform(-1, 1) for at in range(DIMENSION)]


def request(number: int, **options: Any) -> bytes:
    """The frame of a search."""
    arguments = {
        "namespace": "ns",
        "collection": "docs",
        "vector": struct.pack(f"<{DIMENSION}f", *some_vector(number)),
        "k": 3,
        **options,
    }
    body: bytes = msgpack.packb({"op": "search", "args": msgpack.packb(arguments)})
    return pack_header(Opcode.QUERY | EXTENDED, 8 + len(body)) + bytes(8) + body


async def fill(client: AsyncIpcClient) -> Any:
    """A collection whose index is made; the search that made it ran on a thread."""
    collection = await (await client.create_namespace("ns")).create_collection("docs", dimension=DIMENSION)
    await collection.insert_batch(
        [some_vector(number) for number in range(COUNT)],
        [{"number": number} for number in range(COUNT)],
        [str(number) for number in range(COUNT)],
    )
    await collection.vector_search(some_vector(0))
    return collection


@pytest.fixture(autouse=True)
def as_short_as_they_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a busy machine is: a search that took long keeps the next ones off the loop for a while."""
    monkeypatch.setattr(short_searches, "_SECONDS", 3600.0)


@pytest.fixture
async def rig(tmp_db: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_db.parent) as rig:
        yield rig


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncIpcClient]:
    async with await rig.client() as client:
        yield client


async def idle(rig: Rig) -> None:
    """Wait until no thread is busy: one that has answered may not have come to its end."""

    def wait() -> None:
        while rig.server.threads_busy:
            pass

    await asyncio.to_thread(wait)


async def found_here(rig: Rig, search: Any) -> tuple[Any, bool]:
    """What a search finds, and whether it was answered on the event loop."""
    await idle(rig)
    before = rig.server.short_searches.answered
    return await search, rig.server.short_searches.answered > before


def cache_of(rig: Rig) -> VectorCache:
    (cache,) = rig.server.collections()._caches._caches.values()
    return cache


REQUESTS = [
    SearchRequest(some_vector(1000)),
    SearchRequest(some_vector(1001), k=1, ef_search=300),
    SearchRequest(some_vector(1002), k=128, include_vectors=True),
    SearchRequest(some_vector(1003), k=20, min_score=0.3, include_content=False),
]


async def test_the_loop_answers_as_threads_do(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    for asked in REQUESTS:
        here, on_loop = await found_here(rig, collection.search(asked))
        assert on_loop
        async with client.transaction(read_only=True) as txn:
            there, on_loop = await found_here(rig, (await txn.collection("ns", "docs")).search(asked))
        assert not on_loop
        assert here == there
        assert here


@pytest.mark.parametrize(
    "asked",
    [
        SearchRequest(some_vector(7), k=100_000),
        SearchRequest(some_vector(7), k=129),
        SearchRequest(some_vector(7), ef_search=1_000_000),
        SearchRequest(some_vector(7), filter={"number": {"$lt": 200}}),
    ],
)
async def test_what_may_take_long_goes_to_a_thread(rig: Rig, client: AsyncIpcClient, asked: SearchRequest) -> None:
    collection = await fill(client)
    for _ in range(2):
        found, on_loop = await found_here(rig, collection.search(asked))
        assert not on_loop
        assert found[0].id == "7"
        assert len(found) == min(asked.k, 200 if asked.filter else COUNT)


async def test_many_dimensions_go_to_a_thread(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await (await client.create_namespace("ns")).create_collection("docs")
    await collection.insert([1.0] * 10_000, None, "one")
    for _ in range(2):
        found, on_loop = await found_here(rig, collection.vector_search([1.0] * 10_000))
        assert not on_loop
        assert [each.id for each in found] == ["one"]


async def test_mistakes_are_told_as_on_a_thread(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    with pytest.raises(DimensionMismatchError, match="numbers"):
        await collection.vector_search([1.0])
    with pytest.raises(ValidationError, match="no angle"):
        await collection.vector_search([0.0] * DIMENSION)
    reader, writer = await asyncio.open_unix_connection(rig.path)
    refused: list[dict[str, Any]] = [
        {"k": 0},
        {"k": True},
        {"vector": b"123"},
        {"namespace": "none"},
        {"namespace": 7},
        {"ef_search": -1},
    ]
    for options in [*refused, {"other": 1}]:
        await idle(rig)
        writer.write(request(0, **options))
        header = await reader.readexactly(5)
        assert header[0] == Reply.ERROR, options
        await reader.readexactly(int.from_bytes(header[1:], "little"))
    writer.close()
    assert await collection.vector_search(some_vector(0))


async def test_commits_elsewhere_do_not_keep_searches_from_the_loop(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    for number in range(5):
        await client.put(b"k", b"%d" % number)
        found, on_loop = await found_here(rig, collection.vector_search(some_vector(number), 1))
        assert on_loop
        assert found[0].id == str(number)


async def test_a_collection_that_is_deleted_and_made_again(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    namespace = await client.namespace("ns")
    for round in range(3):
        _, on_loop = await found_here(rig, collection.vector_search(some_vector(1)))
        assert on_loop
        assert await namespace.delete_collection("docs") is True
        for _ in range(2):
            await idle(rig)
            with pytest.raises(CollectionNotFoundError):
                await collection.vector_search(some_vector(1))
        await namespace.create_collection("docs", dimension=DIMENSION)
        assert await collection.vector_search(some_vector(1)) == []
        await collection.insert(some_vector(1), None, f"new {round}")
        assert [each.id for each in await collection.vector_search(some_vector(1))] == [f"new {round}"]


async def test_the_loop_does_not_wait_for_who_changes_the_index(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    cache = cache_of(rig)
    for lock in (cache._lock, cache.hnsw._lock):
        changing, go_on = threading.Event(), threading.Event()

        def change(lock: Any = lock, changing: threading.Event = changing, go_on: threading.Event = go_on) -> None:
            with lock.writing():
                changing.set()
                assert go_on.wait(SECONDS)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            assert await asyncio.to_thread(changing.wait, SECONDS)
            await idle(rig)
            before = rig.server.short_searches.answered
            search = asyncio.ensure_future(collection.vector_search(some_vector(5), 1))
            # Answered while the search has to wait.
            for _ in range(20):
                await client.ping()
                await client.put(b"k", b"v")
                assert await client.get(b"k") == b"v"
            assert not search.done()
        finally:
            go_on.set()
            await asyncio.to_thread(thread.join)
        assert (await search)[0].id == "5"
        assert rig.server.short_searches.answered == before
        found, on_loop = await found_here(rig, collection.vector_search(some_vector(6), 1))
        assert on_loop
        assert found[0].id == "6"


async def test_nor_for_who_brings_it_up_to_date(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    with cache_of(rig).updating:
        await collection.insert(some_vector(5000), None, "new")
        found, on_loop = await found_here(rig, collection.vector_search(some_vector(5000), 1))
    assert not on_loop
    assert found[0].id == "new"


async def test_a_busy_thread_keeps_searches_from_the_loop(rig: Rig, client: AsyncIpcClient) -> None:
    collection = await fill(client)
    for workers in (rig.server.workers, rig.server.writing_workers):
        await idle(rig)
        done = threading.Event()
        workers.submit(lambda done=done: done.wait(SECONDS))  # type: ignore[misc]
        before = rig.server.short_searches.answered
        try:
            assert (await collection.vector_search(some_vector(5), 1))[0].id == "5"
        finally:
            done.set()
        assert rig.server.short_searches.answered == before
    _, on_loop = await found_here(rig, collection.vector_search(some_vector(5), 1))
    assert on_loop


async def test_a_search_that_took_long_is_followed_by_a_pause(
    rig: Rig, client: AsyncIpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = await fill(client)
    monkeypatch.setattr(short_searches, "_SECONDS", 0.0)
    monkeypatch.setattr(short_searches, "_PAUSES", 1e9)
    for on_loop in (True, False, False):
        assert (await found_here(rig, collection.vector_search(some_vector(5), 1)))[1] is on_loop


async def test_few_are_answered_in_one_turn(rig: Rig, client: AsyncIpcClient) -> None:
    await fill(client)
    many = [await asyncio.open_unix_connection(rig.path) for _ in range(3 * MOST_IN_A_TURN)]
    reader, writer = await asyncio.open_unix_connection(rig.path)
    await idle(rig)
    answered, in_turns = rig.server.short_searches.answered, []
    for number, (_, each) in enumerate(many):
        each.write(request(number))
    writer.write(pack_header(Opcode.PING, 0))

    def count() -> None:
        in_turns.append(rig.server.short_searches.answered - answered)

    pong = asyncio.ensure_future(reader.readexactly(5))
    while not pong.done():
        count()
        await asyncio.sleep(0)
    assert (await pong)[0] == Reply.PONG
    # The step from one turn to the next.
    assert max(after - before for before, after in pairwise(in_turns)) <= MOST_IN_A_TURN
    for number, (source, each) in enumerate(many):
        rows = await whole_answer(source)
        assert rows[0][0] == str(number)
        each.close()
    writer.close()


async def whole_answer(reader: asyncio.StreamReader) -> list[Any]:
    """The result of a search in frames."""
    result = b""
    while True:
        header = await reader.readexactly(5)
        payload = await reader.readexactly(int.from_bytes(header[1:], "little"))
        if header[0] == Reply.END_STREAM:
            rows: list[Any] = msgpack.unpackb(result)
            return rows
        assert header[0] == Reply.ROW
        result += msgpack.unpackb(payload)[0]


async def test_many_requests_at_once_go_to_threads_and_others_come_between(rig: Rig, client: AsyncIpcClient) -> None:
    await fill(client)
    await idle(rig)
    before, flood = rig.server.short_searches.answered, 200
    reader, writer = await asyncio.open_unix_connection(rig.path)
    requests = rig.server.requests_total
    writer.write(b"".join(map(request, range(flood))))
    await client.ping()
    assert rig.server.requests_total - requests < flood
    for number in range(flood):
        assert (await whole_answer(reader))[0][0] == str(number)
    assert rig.server.short_searches.answered == before
    writer.close()


# With a daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "--sync-mode", "off") as daemon:
        yield daemon
        assert "internal error" not in daemon.log


def made(store: HasCollections) -> Any:
    collection = store.create_namespace("ns").create_collection("docs", dimension=DIMENSION)
    collection.insert_batch([some_vector(at) for at in range(COUNT)], None, [str(at) for at in range(COUNT)])
    collection.vector_search(some_vector(0))
    return collection


def test_a_write_shows_in_the_next_search_of_every_client(daemon: Daemon) -> None:
    with IpcClient.connect(daemon.socket) as one, IpcClient.connect(daemon.socket) as two:
        mine = made(one)
        yours = two.collection("ns", "docs")
        for number in range(60):
            writer, reader = (mine, yours) if number % 2 else (yours, mine)
            vector = some_vector(5000 + number)
            writer.insert(vector, {"number": number}, "new")
            for searcher in (writer, reader, reader):
                best: SearchResult = searcher.vector_search(vector, 1)[0]
                assert (best.id, best.metadata) == ("new", {"number": number})
            if number % 3 == 0:
                assert writer.delete("new")
                for searcher in (reader, writer, writer):
                    assert searcher.vector_search(vector, 1)[0].id != "new"


def test_searches_beside_inserts_find_what_was_acknowledged(daemon: Daemon) -> None:
    failures: list[BaseException] = []
    newest = [0]
    over = threading.Event()

    def search() -> None:
        try:
            with IpcClient.connect(daemon.socket) as client:
                collection = client.collection("ns", "docs")
                while not over.is_set():
                    known = newest[0]
                    found = collection.vector_search(some_vector(9000 + known), 1)[0]
                    assert found.id == f"new {known}"
        except BaseException as error:
            failures.append(error)

    with IpcClient.connect(daemon.socket) as client:
        collection = made(client)
        collection.insert(some_vector(9000), None, "new 0")
        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1, 200):
                collection.insert(some_vector(9000 + number), None, f"new {number}")
                newest[0] = number
        finally:
            over.set()
            for thread in threads:
                thread.join(SECONDS)
    assert failures == []


def test_clients_that_vanish_after_a_search(daemon: Daemon) -> None:
    with IpcClient.connect(daemon.socket) as client:
        collection = made(client)
        for number in range(30):
            with Raw(daemon.socket) as gone:
                gone.send(*[request(number)] * (1 + number % 3))
            assert collection.vector_search(some_vector(number), 1)[0].id == str(number)
