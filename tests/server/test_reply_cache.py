"""The reply cache: never older than what was acknowledged, bounded, and off the path of transactions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.daemon import Daemon
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, SyncMode
from toondb_client import IpcClient
from toondb_protocol.frames import encode_frame
from toondb_protocol.messages import encode_request
from toondb_protocol.opcodes import Opcode
from toondb_server.reply_cache import ENTRY_OVERHEAD, MAX_CACHED_BYTES, ReplyCache, is_cacheable


def get_frame(key: bytes, *, txn: int | None) -> bytes:
    code, payload = encode_request(Opcode.GET, {"key": key}, txn=txn)
    return encode_frame(code, payload)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        yield engine


def test_only_gets_outside_transactions_are_kept() -> None:
    for txn, expected in ((None, True), (0, True), (1, False), (1 << 63, False)):
        frame = get_frame(b"k", txn=txn)
        assert is_cacheable(frame[0], frame) is expected
    for opcode in Opcode:
        if opcode is not Opcode.GET:
            assert not is_cacheable(opcode, encode_frame(opcode))


def test_both_forms_of_a_written_key_are_dropped_from_both_generations(engine: Engine) -> None:
    cache = ReplyCache(engine.environment, 2 * 3 * (ENTRY_OVERHEAD + 50))
    engine.writer.on_commit.append(cache.committed)
    frames = [get_frame(b"a", txn=None), get_frame(b"a", txn=0), get_frame(b"b", txn=0)]
    for frame in frames:
        cache.fill(frame, b"old", engine.environment.mark)
    for number in range(4):
        cache.fill(get_frame(b"filler%d" % number, txn=0), b"x", engine.environment.mark)
    assert cache.entries
    engine.put(b"a", b"new")
    assert cache.find(frames[0]) is None
    assert cache.find(frames[1]) is None
    transaction = engine.begin()
    transaction.put(b"b", b"new")
    engine.commit(transaction)
    assert cache.find(frames[2]) is None


def test_a_fill_that_was_overtaken_by_a_commit_is_taken_back(engine: Engine) -> None:
    cache = ReplyCache(engine.environment, 1 << 20)
    engine.writer.on_commit.append(cache.committed)
    mark = engine.environment.mark
    engine.put(b"a", b"new")
    cache.fill(get_frame(b"a", txn=0), b"read before the commit", mark)
    assert cache.find(get_frame(b"a", txn=0)) is None
    assert cache.entries == 0


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, MAX_CACHED_BYTES + 10)), max_size=200), st.integers(0, 20_000)
)
@settings(max_examples=50, deadline=None)
def test_it_stays_within_its_bound(fills: list[tuple[int, int]], bound: int) -> None:
    class Marked:
        mark = object()

    cache = ReplyCache(Marked(), bound)  # type: ignore[arg-type]
    kept: dict[bytes, bytes] = {}
    for number, size in fills:
        frame = get_frame(b"key%d" % number, txn=0)
        found = cache.find(frame)
        assert found is None or found == kept[frame]
        # Without a commit the same request has the same answer.
        cache.fill(frame, kept.setdefault(frame, bytes(size)), Marked.mark)
        total = sum(
            len(frame) + len(reply) + ENTRY_OVERHEAD
            for generation in (cache._young, cache._old)
            for frame, reply in generation.items()
        )
        assert total <= max(bound, 0)


def test_what_was_acknowledged_is_always_seen(engine: Engine) -> None:
    """A thread writes ever larger numbers; another reads through the cache as the daemon's loop does."""
    cache = ReplyCache(engine.environment, 4 * (ENTRY_OVERHEAD + 60))
    engine.writer.on_commit.append(cache.committed)
    reader = engine.reader()
    acknowledged = 0
    failures: list[str] = []
    done = threading.Event()
    keys = [b"k%d" % number for number in range(6)]

    def read() -> None:
        while not done.is_set():
            for key in keys:
                least = acknowledged
                frame = get_frame(key, txn=0)
                reply = cache.find(frame)
                if reply is None:
                    mark = engine.environment.mark
                    raw = reader.get(key)
                    reply = raw[13:] if raw is not None else b"0"
                    cache.fill(frame, reply, mark)
                if int(reply) < least:
                    failures.append(f"read {int(reply)} of {key!r} after {least} was acknowledged")
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(1, 1500):
            transaction = engine.begin()
            for key in keys:
                transaction.put(key, b"%d" % number)
            engine.commit(transaction)
            acknowledged = number
    finally:
        done.set()
        thread.join()
        reader.release()
    assert not failures


@pytest.mark.parametrize("size", ["0", "4KiB", "64MiB"])
def test_the_daemon_reads_what_anybody_wrote(tmp_path: Path, size: str, loop: str) -> None:
    with Daemon(tmp_path / "db", "--cache-size", size, "--sync-mode", "off", loop=loop) as daemon:
        with IpcClient.connect(daemon.socket) as one, IpcClient.connect(daemon.socket) as two:
            for number in range(300):
                key = b"k%d" % (number % 7)
                value = b"%d" % number
                assert two.get(key) == one.get(key)
                match number % 5:
                    case 0:
                        one.delete(key)
                        expected = None
                    case 1:
                        with one.transaction() as transaction:
                            transaction.put(key, value)
                            assert transaction.get(key) == value
                            assert two.get(key) != value
                        expected = value
                    case 2:
                        one.put_many({key: value, b"other": value})
                        expected = value
                    case 3:
                        one.put_path(key.decode(), value)
                        expected = value
                    case _:
                        one.put(key, value)
                        expected = value
                assert two.get(key) == one.get(key) == expected
            kept = two.stats()["cache_entries"]
            assert (kept == 0) == (size == "0")


def test_a_reopened_store_is_cached_before_its_first_write(tmp_path: Path) -> None:
    with Engine(tmp_path / "db") as engine:
        engine.put(b"k", b"v")
    with Engine(tmp_path / "db") as engine:
        cache = ReplyCache(engine.environment, 1 << 20)
        engine.writer.on_commit.append(cache.committed)
        engine.scan().close()
        engine.abort(engine.begin())
        cache.fill(get_frame(b"k", txn=0), b"v", engine.environment.mark)
        engine.scan().close()
        assert cache.find(get_frame(b"k", txn=0)) == b"v"


def test_who_saw_a_commit_early_finds_nothing_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB shows a commit before the writer can announce it; a view taken then must put the cache out of use."""
    with Engine(tmp_path / "db") as engine:
        for key in (b"a", b"b"):
            engine.put(key, b"1")
        environment = engine.environment
        cache = ReplyCache(environment, 1 << 20)
        engine.writer.on_commit.append(cache.committed)
        cache.fill(get_frame(b"b", txn=0), b"1", environment.mark)
        reader = engine.reader()
        visible, go = threading.Event(), threading.Event()
        announce = environment.announce

        def wait(lsn: int) -> None:
            visible.set()
            assert go.wait(30)
            announce(lsn)

        monkeypatch.setattr(environment, "announce", wait)
        transaction = engine.begin()
        for key in (b"a", b"b"):
            transaction.put(key, b"2")
        thread = threading.Thread(target=engine.commit, args=[transaction])
        thread.start()
        try:
            assert visible.wait(30)
            assert cache.find(get_frame(b"b", txn=0)) == b"1"  # nobody has seen the commit yet
            raw = reader.get(b"a")
            assert raw is not None
            assert raw.endswith(b"2")
            assert cache.find(get_frame(b"b", txn=0)) is None
        finally:
            go.set()
            thread.join()
            reader.release()


def test_a_large_commit_forgets_everything_at_once(engine: Engine) -> None:
    cache = ReplyCache(engine.environment, 1 << 20)
    engine.writer.on_commit.append(cache.committed)
    for number in range(10):
        cache.fill(get_frame(b"%d" % number, txn=0), b"old", engine.environment.mark)
    transaction = engine.begin()
    for number in range(100):
        transaction.put(b"%d" % number, b"new")
    engine.commit(transaction)
    assert cache.entries == 0
    cache.fill(get_frame(b"1", txn=0), b"new", engine.environment.mark)
    assert cache.find(get_frame(b"1", txn=0)) == b"new"


def test_who_asks_and_never_reads_is_dropped(tmp_path: Path, loop: str) -> None:
    """Replies of the short path must not look like progress of a client that reads nothing."""
    with Daemon(tmp_path / "db", "--timeout-ms", "300", loop=loop) as daemon:
        with IpcClient.connect(daemon.socket) as client:
            client.put(b"k", bytes(1000))
            frame = get_frame(b"k", txn=0)
            with socket.socket(socket.AF_UNIX) as mute:
                mute.connect(str(daemon.socket))
                mute.settimeout(30)
                mute.sendall(frame * 600)  # more than the kernel takes
                with pytest.raises((BrokenPipeError, ConnectionResetError)):
                    while True:
                        mute.sendall(frame)
                        client.ping()
            assert client.stats()["connections_dropped"] == 1
