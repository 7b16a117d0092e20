"""What a hostile review of the engine found: each test failed before its mend."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import lmdb
import pytest

from tests.engine.clock import Clock
from toondb import Database
from toondb.engine import change_log, maintenance, owner_lock
from toondb.engine.change_log import changes_from
from toondb.engine.engine import Engine
from toondb.engine.environment import DATA_FILE
from toondb.engine.file_check import check_file
from toondb.engine.options import EngineOptions, SyncMode
from toondb.engine.owner_lock import LOCK_FILE, wait_for_lock
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb.engine.write_batch import Reclaim
from toondb.engine.writer import Writer, WriteRequest
from toondb_protocol.changes import Change
from toondb_protocol.errors import (
    CorruptionError,
    DatabaseClosedError,
    DatabaseLockedError,
    HistoryTrimmedError,
    StorageFullError,
    ToonDBError,
    TransactionConflictError,
)
from toondb_protocol.record import Expiring, now_ms

SECONDS = 30.0
OPTIONS = EngineOptions(sync_mode=SyncMode.OFF)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        yield engine


def history(engine: Engine, since: int) -> list[Change]:
    return [change for step in engine.read_changes(since) for change in step]


# Reading history while the database is closed


def test_no_transaction_is_ended_while_its_history_is_read(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB reads without the lock of Python: to end the transaction meanwhile is a crash of the process."""
    engine.put(b"k", b"v" * 5000)  # by reference: it is looked up in the store
    about_to, ended = threading.Event(), threading.Event()
    close, is_intact = Snapshot.close, change_log.is_intact

    def closing(snapshot: Snapshot, why: ToonDBError | None = None) -> None:
        about_to.set()
        close(snapshot, why)

    def close_engine() -> None:
        engine.close()
        ended.set()

    closer = threading.Thread(target=close_engine)

    def in_the_middle(key: bytes, value: bytes) -> bool:
        closer.start()
        assert about_to.wait(SECONDS)
        assert not ended.wait(0.1), "the transaction was ended under its reader"
        return is_intact(key, value)

    monkeypatch.setattr(Snapshot, "close", closing)
    monkeypatch.setattr(change_log, "is_intact", in_the_middle)
    pages = engine.read_changes(0)
    assert [change.key for change in next(pages)] == [b"k"]
    closer.join(SECONDS)
    assert ended.is_set()
    with pytest.raises(DatabaseClosedError):
        next(pages)


# Reclaiming


@pytest.fixture
def reclaim(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], float]:
    """The writer's own step of reclaiming, on the thread of the test alone; the seconds to the next."""
    step = Writer._reclaim
    Clock(monkeypatch)
    return lambda engine: step(engine.writer)


def test_reclaiming_in_a_full_store_neither_spins_nor_gives_up(
    tmp_path: Path, reclaim: Callable[[Engine], float]
) -> None:
    options = EngineOptions(sync_mode=SyncMode.OFF, map_size=4 << 20, change_history_bytes=1 << 16)
    with Engine(tmp_path / "db", options) as engine:
        reader = engine.snapshot()  # so that what is freed cannot be used again
        count = 0
        with pytest.raises(StorageFullError):
            while True:
                engine.write([])
                transaction = engine.begin()
                for n in range(count, count + 50):
                    transaction.put(b"%06d" % (n * 7919 % 1_000_000), Expiring(b"v" * 100, 1))
                engine.commit(transaction)
                count += 50
        assert count > 1000
        pauses: list[float] = []
        stuck = threading.Thread(target=lambda: pauses.extend(iter(lambda: reclaim(engine), 1.0)), daemon=True)
        stuck.start()
        stuck.join(SECONDS)
        assert not stuck.is_alive(), "it tries for ever what cannot be done now"
        assert len(pauses) < 10 + count
        reader.close()
        while engine.stats()["keys_count"]:
            reclaim(engine)
        engine.put(b"there is", b"room")


def test_reclaiming_while_writes_never_pause(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        engine.write([(b"gone/%04d" % n, Expiring(b"v", now_ms())) for n in range(3000)])
        enough = threading.Event()
        idle = threading.Semaphore(0)

        def again(request: WriteRequest) -> None:
            if enough.is_set():
                idle.release()
            else:
                engine.submit(request.units, again)

        for n in range(64):
            engine.submit([(b"busy/%02d" % n, b"v")], again)
        give_up = time.monotonic() + SECONDS
        while engine.stats()["keys_count"] > 64 and time.monotonic() < give_up:
            engine.environment.wait_for_commit(engine.environment.announced_lsn, SECONDS)
        left = engine.stats()["keys_count"]
        enough.set()
        for _ in range(64):
            assert idle.acquire(timeout=SECONDS)
        assert left == 64, "what has expired stays for as long as others write"


@pytest.mark.parametrize("read", ["get", "scan"])
def test_what_was_seen_because_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """A record that had expired when the transaction began, was seen alive all the same, and is gone at its end."""
    clock = Clock(monkeypatch)
    with Engine(tmp_path / "db", OPTIONS) as engine:
        engine.write([(b"k", Expiring(b"v", clock.now + 10)), (b"l", b"v")])
        clock.now += 20
        transaction = engine.begin()
        clock.now -= 15
        seen = transaction.get(b"k") if read == "get" else transaction.scan(b"k", b"l").batch(9, 999)[1]
        assert seen == b"v"
        clock.now += 15
        engine.write([Reclaim()])
        transaction.put(b"k", b"of " + seen)
        with pytest.raises(TransactionConflictError):
            engine.commit(transaction)


# The bound of the change log


def test_large_commits_after_very_many_small_ones(tmp_path: Path) -> None:
    """What is trimmed follows what is logged, not only how many entries that is."""
    bound = 1 << 20
    options = EngineOptions(sync_mode=SyncMode.OFF, change_history_bytes=bound)
    with Engine(tmp_path / "db", options) as engine:

        def taken() -> int:
            with engine.environment.lmdb.begin() as txn:
                return change_log._bytes(txn.stat(engine.environment.changes))

        for _ in range(30):
            engine.write([(b"k%d" % n, b"v") for n in range(1000)])
        for at in range(20):
            transaction = engine.begin()
            for n in range(1000):
                transaction.put(b"%d/%05d" % (at % 2, n) + b"k" * 400, b"" if n % 2 else None)
            engine.commit(transaction)
            assert taken() < 1.5 * bound


def test_a_commit_that_the_log_refuses_is_not_left_out_in_silence(engine: Engine) -> None:
    for n in range(3):
        engine.put(b"%d" % n, b"v")
    _append_later_commit(engine.environment.lmdb)
    engine.put(b"k", b"v")
    with pytest.raises(HistoryTrimmedError):
        history(engine, 3)
    engine.put(b"l", b"v")
    assert [change.key for change in history(engine, 4)] == [b"l"]
    transaction = engine.begin()
    transaction.put(b"m", b"v")
    transaction.put(b"n", b"v")
    assert [change.key for change in history(engine, engine.commit(transaction) - 1)] == [b"m", b"n"]
    assert maintenance.check(engine.folder, environment=engine.environment.lmdb).damages == []


# Damage


def _append_later_commit(environment: lmdb.Environment) -> None:
    key = (500).to_bytes(8, "big") + bytes(4)
    entry = bytes(7)
    database = environment.open_db(b"changes", create=False)
    with environment.begin(write=True) as txn:
        txn.put(key, crc32(entry, crc32(key)).to_bytes(4, "little") + entry, db=database)


def _drop(name: bytes) -> Callable[[lmdb.Environment], None]:
    def damage(environment: lmdb.Environment) -> None:
        database = environment.open_db(name, create=False)
        with environment.begin(write=True) as txn:
            txn.drop(database)

    return damage


def _meta(key: bytes, value: bytes | None) -> Callable[[lmdb.Environment], None]:
    def damage(environment: lmdb.Environment) -> None:
        database = environment.open_db(b"meta", create=False)
        with environment.begin(write=True) as txn:
            if value is None:
                txn.delete(key, db=database)
            else:
                txn.put(key, value, db=database)

    return damage


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_drop(b"changes"), "tree"),
        (_drop(b"expiry"), "tree"),
        (_drop(b"catalog"), "tree"),
        (_meta(b"format", None), "format"),
        (_meta(b"format", b"\xc1"), "format"),
        (_meta(b"changes_from", b"abc"), "lsn"),
        (_meta(b"changes_from", (99).to_bytes(8, "little")), "changes"),
        (_append_later_commit, "changes"),
    ],
    ids=["changes", "expiry", "catalog", "no-format", "bad-format", "short-begin", "late-begin", "late-commit"],
)
def test_check_finds_it(tmp_path: Path, damage: Callable[[lmdb.Environment], None], kind: str) -> None:
    """A store that check calls sound can be opened, and its history read."""
    folder = tmp_path / "db"
    with Engine(folder, OPTIONS) as engine:
        engine.put(b"k", b"v")
    assert check_file(folder / DATA_FILE).ok
    with lmdb.open(str(folder), max_dbs=16, map_size=1 << 24) as environment:
        damage(environment)
    assert {found.kind for found in check_file(folder / DATA_FILE).damages} == {kind}


def test_the_begin_of_the_history_is_damaged(engine: Engine) -> None:
    engine.put(b"k", b"v")
    _meta(b"changes_from", b"abc")(engine.environment.lmdb)
    with pytest.raises(CorruptionError):
        history(engine, 0)
    with engine.environment.lmdb.begin() as txn, pytest.raises(CorruptionError):
        changes_from(engine.environment, txn)


# Who owns the folder


def test_what_a_killed_daemon_wrote_is_not_taken_for_the_next_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / LOCK_FILE
    lock.write_text(json.dumps({"pid": 1, "role": "daemon", "socket": "/run/socket"}) + "\n")
    with open(lock) as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)

        def sleep(_: float) -> None:
            lock.write_text(json.dumps({"pid": 2, "role": "embedded"}) + "\n")

        monkeypatch.setattr(owner_lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep, time=time.time))
        with pytest.raises(DatabaseLockedError):
            wait_for_lock(tmp_path, "concurrent", time.monotonic())


# A tree of paths


def test_a_tree_is_deleted_with_a_whole_commit_beside_it_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database.open(tmp_path / "db", {"sync_mode": "off"}) as db:
        db.put_path("tree/a", b"1")
        scan = Transaction.scan
        others = [{"tree/a": b"2", "tree/b": b"2"}]

        def scan_and_be_overtaken(transaction: Transaction, *args: object, **options: object) -> object:
            found = scan(transaction, *args, **options)  # type: ignore[arg-type]
            if others:
                db.put_many(others.pop())
            return found

        monkeypatch.setattr(Transaction, "scan", scan_and_be_overtaken)
        db.delete_path("tree", recursive=True)
        assert dict(db.scan("tree")) in ({}, {b"tree/a": b"2", b"tree/b": b"2"})


@pytest.mark.parametrize("size", [1, 509, 510, 511])
def test_a_tree_with_a_path_of_any_length(tmp_path: Path, size: int) -> None:
    path = "p" * size
    with Database.open(tmp_path / "db", {"sync_mode": "off"}) as db:
        beside = [path[:-1] + "q", "q"] + ([path + "!"] if size < 511 else [])
        below = [path + "/x"] if size < 510 else []
        db.put_many(dict.fromkeys([path, *below, *beside], b"v"))
        since = db.checkpoint()
        db.delete_path(path, recursive=True)
        assert dict(db.scan("")) == {key.encode(): b"v" for key in sorted(beside)}
        assert [change.key.decode() for change in db.watch(since_lsn=since, timeout=0)] == [path, *below]
        db.delete_path(path, recursive=True)
        assert db.checkpoint() == since + 1  # nothing to delete is no commit
