"""The change log: replaying it from any commit gives the newest state; it is bounded, and says what it lost."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import lmdb
import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.clock import Clock
from tests.support.daemon import SECONDS, child_environ
from toondb.engine import change_log, maintenance
from toondb.engine.change_log import INLINE_COMMIT_BYTES, INLINE_VALUE_BYTES, changes_from
from toondb.engine.engine import Engine
from toondb.engine.environment import DATA_FILE, Space
from toondb.engine.options import DEFAULT_CHANGE_HISTORY, MIN_CHANGE_HISTORY, EngineOptions, SyncMode
from toondb.engine.write_batch import Reclaim
from toondb_protocol.changes import Change, ChangeKind
from toondb_protocol.errors import (
    CorruptionError,
    DatabaseClosedError,
    DatabaseError,
    HistoryTrimmedError,
    ValidationError,
)
from toondb_protocol.record import FORMAT_VERSION, META_CHANGES_FROM, Expiring, encode_record

OPTIONS = EngineOptions(sync_mode=SyncMode.OFF)
SMALL = EngineOptions(sync_mode=SyncMode.OFF, change_history_bytes=MIN_CHANGE_HISTORY)

State = dict[bytes, bytes]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        yield engine


def steps_of(
    engine: Engine, since: int | None, start: bytes = b"", end: bytes | None = None, max_bytes: int = 1 << 18
) -> tuple[list[list[Change]], int]:
    pages = engine.read_changes(since, start, end, max_bytes=max_bytes)
    steps: list[list[Change]] = []
    while True:
        try:
            steps.append(next(pages))
        except StopIteration as stop:
            return steps, stop.value


def history(
    engine: Engine, since: int, start: bytes = b"", end: bytes | None = None, max_bytes: int = 1 << 18
) -> list[Change]:
    """All changes since a commit, read again and again until there are no more."""
    changes: list[Change] = []
    while True:
        steps, lsn = steps_of(engine, since, start, end, max_bytes)
        found = [change for step in steps for change in step]
        assert all(since < change.lsn <= lsn for change in found)
        changes += found
        if lsn == since:
            return changes
        since = lsn


def replayed(state: State, changes: list[Change]) -> State:
    state = dict(state)
    for change in changes:
        if change.kind is ChangeKind.PUT:
            assert change.value is not None
            state[change.key] = change.value
        else:
            assert change.value is None
            state.pop(change.key, None)
    return state


def content(engine: Engine) -> State:
    scan = engine.scan()
    flat: list[bytes] = []
    while not scan.exhausted:
        flat += scan.batch(1000, 1 << 24)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def oldest(engine: Engine) -> int:
    with engine.environment.lmdb.begin() as txn:
        return changes_from(engine.environment, txn)


def log_entries(engine: Engine) -> list[tuple[int, int]]:
    with engine.environment.lmdb.begin() as txn:
        return [struct.unpack(">QI", key) for key in txn.cursor(db=engine.environment.changes).iternext(values=False)]


# Replay

KEYS = st.sampled_from([b"a", b"ab", b"b", b"c/1", b"c/2", b"\xff" * 511])
VALUES = st.one_of(
    st.sampled_from([b"", b"1", b"v" * INLINE_VALUE_BYTES, b"v" * (INLINE_VALUE_BYTES + 1), b"w" * 9000]),
    st.binary(max_size=5),
)
SINGLE = st.tuples(st.just("single"), st.lists(st.tuples(KEYS, st.none() | VALUES), min_size=1, max_size=4))
ATOMIC = st.tuples(st.just("atomic"), st.dictionaries(KEYS, st.none() | VALUES, min_size=1))
# More keys than are written one by one, with more bytes than are copied.
BULK = st.tuples(
    st.just("bulk"), st.integers(1, 60), st.sampled_from([0, 5, 3000]), st.sampled_from([b"a", b"c/", b"z"])
)
EXPIRING = st.tuples(st.just("expiring"), KEYS, VALUES, st.integers(1, 20))
WAIT = st.tuples(st.just("wait"), st.integers(1, 20))
HISTORY = st.lists(st.one_of(SINGLE, ATOMIC, BULK, EXPIRING, WAIT), min_size=1, max_size=12)


def perform(engine: Engine, clock: Clock, operation: tuple[object, ...]) -> None:
    match operation:
        case ("single", list() as units):  # several commits in one LMDB transaction
            engine.write(units)
        case ("atomic", dict() as writes):
            transaction = engine.begin()
            for key, value in writes.items():
                transaction.put(key, value)
            engine.commit(transaction)
        case ("bulk", int() as count, int() as size, bytes() as prefix):
            transaction = engine.begin()
            transaction.put_all({prefix + b"%04d" % n: b"%d" % n * size for n in range(count)})
            engine.commit(transaction)
        case ("expiring", bytes() as key, bytes() as value, int() as ttl):
            engine.write([(key, Expiring(value, clock.now + ttl))])
        case ("wait", int() as wait):
            clock.now += wait
            engine.write([Reclaim()])
        case _:
            raise AssertionError(operation)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=HISTORY, max_bytes=st.sampled_from([1, 3000, 1 << 18]), start=KEYS, end=st.none() | KEYS)
def test_replay_from_any_commit(
    operations: list[tuple[object, ...]], max_bytes: int, start: bytes, end: bytes | None
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="toondb-"))
    patch = pytest.MonkeyPatch()
    clock = Clock(patch)
    try:
        with Engine(folder / "db", OPTIONS) as engine:
            states: dict[int, State] = {0: {}}
            for operation in operations:
                perform(engine, clock, operation)
                states[engine.checkpoint()] = content(engine)
            newest = max(states)
            for lsn, state in states.items():
                changes = history(engine, lsn, max_bytes=max_bytes)
                assert replayed(state, changes) == states[newest]
                check_order(changes)
                part = [change for change in changes if change.key >= start and (end is None or change.key < end)]
                found = history(engine, lsn, start, end, max_bytes)
                assert [change[:4] for change in found] == [change[:4] for change in part]
                check_order(found)
    finally:
        patch.undo()
        shutil.rmtree(folder)


def check_order(changes: list[Change]) -> None:
    """LSNs never go back, and only the last change of each commit says that it is."""
    for before, after in pairwise([*changes, None]):
        assert before is not None
        assert before.last is (after is None or after.lsn > before.lsn)
        assert after is None or after.lsn >= before.lsn


def test_each_kind(engine: Engine) -> None:
    long = b"x" * (INLINE_VALUE_BYTES + 1)
    engine.write([(b"a", b"1"), (b"b", long), (b"a", None), (b"absent", None)])
    transaction = engine.begin()
    transaction.put(b"c", b"2")
    transaction.put(b"d", b"")
    transaction.delete(b"absent")
    engine.commit(transaction)
    assert history(engine, 0) == [
        Change(1, ChangeKind.PUT, b"a", b"1", True),
        Change(2, ChangeKind.PUT, b"b", long, True),
        Change(3, ChangeKind.DELETE, b"a", None, True),
        Change(4, ChangeKind.PUT, b"c", b"2", False),
        Change(4, ChangeKind.PUT, b"d", b"", True),
    ]
    assert steps_of(engine, None) == ([], 4)
    assert steps_of(engine, 4) == ([], 4)
    engine.put(b"b", b"short")
    # The long value is no longer anywhere; what replaced it follows.
    assert [change.lsn for change in history(engine, 0) if change.key == b"b"] == [5]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 100])
def test_small_values_are_copied_whatever_becomes_of_them(engine: Engine, count: int) -> None:
    """Also the last of a transaction that is written without Python code for each."""
    values = {b"%04d" % n: b"%d" % n for n in range(count)}
    transaction = engine.begin()
    transaction.put_all(values)
    engine.commit(transaction)
    engine.write([(key, None) for key in values])
    puts = [change for change in history(engine, 0) if change.kind is ChangeKind.PUT]
    assert {change.key: change.value for change in puts} == values


def test_so_much_of_a_commit_is_copied(engine: Engine) -> None:
    count = 2 * INLINE_COMMIT_BYTES // INLINE_VALUE_BYTES
    values = {b"%04d" % n: bytes([n % 256]) * INLINE_VALUE_BYTES for n in range(count)}
    for write in (self_by_one, all_at_once):
        since = engine.checkpoint()
        write(engine, values)
        assert replayed({}, history(engine, since)) == values
        engine.write([(key, None) for key in values])
        copied = [change for change in history(engine, since) if change.kind is ChangeKind.PUT]
        assert len(copied) == count // 2


def self_by_one(engine: Engine, values: State) -> None:
    transaction = engine.begin()
    for key, value in values.items():
        transaction.put(key, value)
    transaction.delete(b"absent")  # one delete, and it is written key by key
    engine.commit(transaction)


def all_at_once(engine: Engine, values: State) -> None:
    transaction = engine.begin()
    transaction.put_all(values)
    engine.commit(transaction)


@pytest.mark.parametrize("prefix", [b"z", b"a"])
def test_a_large_commit_in_many_steps(engine: Engine, prefix: bytes) -> None:
    """At the end of all keys it is logged as a range; between others as so many references, in several parts."""
    engine.write([(b"m%05d" % n, b"") for n in range(50_000)])
    since = engine.checkpoint()
    values = {prefix + b"%05d" % n + b"k" * 200: b"%d" % n for n in range(0, 12_000, 2)}
    all_at_once(engine, values)
    many = {prefix + b"%05d" % n + b"k" * 200: b"odd" for n in range(1, 12_000, 2)}
    self_by_one(engine, many)
    engine.delete(prefix + b"00002" + b"k" * 200)
    steps, lsn = steps_of(engine, since, max_bytes=1 << 30)
    assert lsn == since + 3
    assert len(steps) > 3
    changes = [change for step in steps for change in step]
    check_order(changes)
    del values[prefix + b"00002" + b"k" * 200]
    assert replayed({}, changes) == values | many
    assert {change.lsn for change in changes} == {since + 1, since + 2, since + 3}
    inside = history(engine, since, prefix + b"003", prefix + b"004")
    assert [change.key[:4] for change in inside] == [prefix + b"003"] * 100
    check_order(inside)
    if prefix == b"a":
        assert max(part for _, part in log_entries(engine)) > 1


def test_a_bulk_load_is_not_logged_key_by_key(engine: Engine) -> None:
    values = {b"%06d" % n: b"v" * 100 for n in range(20_000)}
    all_at_once(engine, values)
    assert replayed({}, history(engine, 0)) == values
    with engine.environment.lmdb.begin() as txn:
        assert sum(len(value) for _, value in txn.cursor(db=engine.environment.changes)) < 2 * INLINE_COMMIT_BYTES
    # Written between the keys of the range later: not of that commit.
    engine.put(b"010000x", b"later")
    assert [change.lsn for change in history(engine, 0, b"010000", b"010001")] == [1, 2]


def test_other_spaces_are_not_logged(engine: Engine) -> None:
    engine.put(b"a", b"1")
    transaction = engine.begin()
    transaction.put(b"t", b"a page", Space.SQL)
    engine.commit(transaction)
    engine.put(b"b", b"2")
    assert [change.lsn for change in history(engine, 0)] == [1, 3]


# What is asked wrongly


def test_since_a_commit_that_is_to_come(engine: Engine) -> None:
    engine.put(b"a", b"1")
    with pytest.raises(ValidationError, match="since_lsn is 2, the newest commit is 1") as caught:
        steps_of(engine, 2)
    assert caught.value.details == {"since_lsn": 2, "lsn": 1}
    assert "watch from now" in caught.value.remediation


def test_reading_when_the_database_is_closed(engine: Engine) -> None:
    engine.write([(b"%d" % n, b"v" * 1000) for n in range(1000)])
    pages = engine.read_changes(0, max_bytes=1 << 30)
    next(pages)
    engine.close()
    with pytest.raises(DatabaseClosedError):
        list(pages)
    with pytest.raises(DatabaseClosedError):
        engine.read_changes(0)


def test_a_reader_that_is_dropped_leaves_no_view(engine: Engine) -> None:
    engine.write([(b"%d" % n, b"v" * 1000) for n in range(1000)])
    for _ in range(3):
        pages = engine.read_changes(0, max_bytes=1 << 30)
        next(pages)
        del pages
    # Every view has given its slot back: none sees the commit before.
    engine.put(b"a", b"")
    slots = {line.split()[2] for line in engine.environment.lmdb.readers().splitlines()[1:]}
    assert slots <= {"-"}


# Trimming


def log_bytes(engine: Engine) -> int:
    with engine.environment.lmdb.begin() as txn:
        stat = txn.stat(engine.environment.changes)
    return int((stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"])


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_its_size_is_bounded_and_its_begin_exact(tmp_path: Path, size: int) -> None:
    with Engine(tmp_path / "db", SMALL) as engine:
        trimmed = 0
        for turn in range(60):
            engine.write([(b"%d" % (n % 50), b"%03d" % turn * (size // 3 or 1)) for n in range(100)])
            assert log_bytes(engine) <= 3 * MIN_CHANGE_HISTORY
            first, newest = oldest(engine), engine.checkpoint()
            assert first >= trimmed
            trimmed = first
            assert [change.lsn for change in history(engine, first)] == list(range(first + 1, newest + 1))
            if first:
                with pytest.raises(HistoryTrimmedError) as caught:
                    steps_of(engine, first - 1)
                assert caught.value.details == {"since_lsn": first - 1, "oldest_lsn": first, "lsn": newest}
                assert str(first) in caught.value.message
        assert trimmed
        # In the end it is still worth something.
        assert engine.checkpoint() - trimmed >= MIN_CHANGE_HISTORY // 4 // (size + 50)


def test_one_commit_at_a_time_keeps_a_good_share_of_it(tmp_path: Path) -> None:
    """Entries that are large beside the history: trimming never takes all of them at once."""
    options = EngineOptions(sync_mode=SyncMode.OFF, change_history_bytes=1 << 20)
    with Engine(tmp_path / "db", options) as engine:
        largest = 0
        for turn in range(120):
            transaction = engine.begin()
            for n in range(12):
                transaction.put(b"%d" % n, b"%02d" % (turn % 100) * 500)
            lsn = engine.commit(transaction)
            largest = max(largest, log_bytes(engine))
            kept = lsn - oldest(engine)
            assert kept >= min(lsn, 40), "a watcher that is hardly behind would have lost its place"
        assert oldest(engine) > 0
        assert largest <= 1.25 * (1 << 20)


def test_several_processes_of_trimming_agree(tmp_path: Path) -> None:
    """The bound is of whoever commits; a larger one does not bring anything back."""
    with Engine(tmp_path / "db", SMALL) as engine:
        engine.write([(b"%d" % n, b"v" * 500) for n in range(1000)])
        first = oldest(engine)
        assert first
    with Engine(tmp_path / "db", OPTIONS) as engine:
        assert oldest(engine) == first
        engine.write([(b"%d" % n, b"v" * 500) for n in range(1000)])
        assert oldest(engine) == first
        assert replayed(content(engine), history(engine, first)) == content(engine)
    with Engine(tmp_path / "db", SMALL) as engine:
        for n in range(1000):
            engine.put(b"x", b"%d" % n)
        assert oldest(engine) > first
        assert log_bytes(engine) <= 3 * MIN_CHANGE_HISTORY


@pytest.mark.parametrize("write", [self_by_one, all_at_once])
def test_a_giant_commit_forgets_all(tmp_path: Path, write: object) -> None:
    with Engine(tmp_path / "db", SMALL) as engine:
        engine.put(b"m", b"1")
        # Not the last keys, so that it is no range.
        engine.put(b"\xff", b"1")
        values = {b"%05d" % n + b"k" * 100: b"v" for n in range(4000)}
        write(engine, values)  # type: ignore[operator]
        assert oldest(engine) == 3
        assert log_entries(engine) == []
        with pytest.raises(HistoryTrimmedError):
            steps_of(engine, 2)
        assert steps_of(engine, 3) == ([], 3)
        engine.put(b"after", b"1")
        assert [change.key for change in history(engine, 3)] == [b"after"]
        assert content(engine) == {b"m": b"1", b"\xff": b"1", b"after": b"1"} | values


def test_a_giant_commit_among_others_of_one_batch(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", SMALL) as engine:
        giant = engine.begin()
        for n in range(4000):
            giant.put(b"%05d" % n + b"k" * 100, b"v")
        giant.start_commit()
        assert engine.write([(b"a", b"1"), giant, (b"b", b"2"), (b"c", b"3")]) == [1, 2, 3, 4]
        engine.settle(giant, 2)
        assert oldest(engine) == 2
        assert [change.key for change in history(engine, 2)] == [b"b", b"c"]


def test_the_oldest_of_a_new_store(engine: Engine) -> None:
    assert oldest(engine) == 0
    assert engine.options.change_history_bytes == DEFAULT_CHANGE_HISTORY


# What it outlives


KILLED = """
import sys
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions
engine = Engine(sys.argv[1], EngineOptions(change_history_bytes=1 << 16, sync_mode="off"))
n = 0
while True:
    transaction = engine.begin()
    for key in range(n % 40):
        transaction.put(b"%d" % key, b"%d" % n * (n % 300))
    transaction.put(b"n", b"%d" % n)
    print(engine.commit(transaction), flush=True)
    n += 1
"""


def test_killed_anywhere_and_reopened(tmp_path: Path) -> None:
    acknowledged = 0
    for turn in range(5):
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path / "db")],
            env=child_environ(),
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            for _ in range(20 + 37 * turn):
                line = child.stdout.readline()
                assert line
                acknowledged = int(line)
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout.read().splitlines(keepends=True):
                if line.endswith("\n"):
                    acknowledged = int(line)
            assert child.wait(SECONDS) == -signal.SIGKILL
        assert maintenance.check(tmp_path / "db").damages == []
        with Engine(tmp_path / "db", SMALL) as engine:
            newest = engine.checkpoint()
            assert newest >= acknowledged
            first = oldest(engine)
            changes = history(engine, first)
            assert sorted({change.lsn for change in changes}) == list(range(first + 1, newest + 1))
            state = content(engine)
            assert replayed(state, changes) == state


def test_backup_restore_and_compact_keep_it(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        engine.write([(b"%d" % (n % 30), b"v" * n) for n in range(100)])
        engine.write([(b"e", Expiring(b"v", 1 << 60)), (b"5", None)])
        expected, state = history(engine, 0), content(engine)
        maintenance.backup(tmp_path / "db", tmp_path / "plain", environment=engine.environment.lmdb)
    maintenance.backup(tmp_path / "db", tmp_path / "small", compact=True)
    maintenance.restore(tmp_path / "plain", tmp_path / "restored")
    maintenance.compact(tmp_path / "db")
    for name in ("plain", "small", "restored", "db"):
        assert maintenance.check(tmp_path / name).damages == []
        with Engine(tmp_path / name, OPTIONS) as engine:
            assert history(engine, 0) == expected
            assert content(engine) == state
            engine.put(b"more", b"1")
            assert [change.key for change in history(engine, 102)] == [b"more"]
            assert engine.get_with_expiry(b"e") == (b"v", 1 << 60)


# A store of format 1


def old_store(folder: Path) -> State:
    """As version 1 wrote it: without the index of what expires and without a change log."""
    folder.mkdir()
    values = {b"key/%02d" % n: b"value %d" % n for n in range(20)}
    with lmdb.open(str(folder), map_size=1 << 24, max_dbs=16) as environment:
        names = {name: environment.open_db(name) for name in (b"kv", b"catalog", b"meta")}
        with environment.begin(write=True) as txn:
            for lsn, (key, value) in enumerate(values.items(), 1):
                txn.put(key, encode_record(key, value, lsn), db=names[b"kv"])
            txn.put(b"lsn", struct.pack("<Q", 20), db=names[b"meta"])
            form = {"version": 1, "id": "0" * 32, "created": 1_700_000_000}
            txn.put(b"format", msgpack.packb(form), db=names[b"meta"])
    return values


@pytest.mark.parametrize("shared", [False, True])
def test_an_older_store_is_brought_up_to_date(tmp_path: Path, shared: bool) -> None:
    values = old_store(tmp_path / "db")
    assert maintenance.check(tmp_path / "db").damages == []
    with Engine(tmp_path / "db", OPTIONS, shared=shared) as engine:
        assert engine.format == {"version": FORMAT_VERSION, "id": "0" * 32, "created": 1_700_000_000}
        assert content(engine) == values
        assert oldest(engine) == 20
        assert steps_of(engine, None) == ([], 20)
        with pytest.raises(HistoryTrimmedError):
            steps_of(engine, 19)
        engine.write([(b"e", Expiring(b"v", 1 << 60)), (b"key/03", None)])
        assert [(change.lsn, change.kind) for change in history(engine, 20)] == [
            (21, ChangeKind.PUT),
            (22, ChangeKind.DELETE),
        ]
    with Engine(tmp_path / "db", OPTIONS) as engine:  # once, not again
        assert oldest(engine) == 20
        assert len(history(engine, 20)) == 2
    assert maintenance.check(tmp_path / "db").damages == []


def test_a_backup_of_an_older_store(tmp_path: Path) -> None:
    values = old_store(tmp_path / "db")
    maintenance.backup(tmp_path / "db", tmp_path / "backup", compact=True)
    maintenance.restore(tmp_path / "backup", tmp_path / "restored")
    maintenance.compact(tmp_path / "db")
    for name in ("restored", "db", "backup"):
        with Engine(tmp_path / name, OPTIONS) as engine:
            assert content(engine) == values
            assert oldest(engine) == 20


def test_an_older_store_is_not_opened_beside_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader changes nothing, so it can only refuse."""
    from toondb.engine import engine as engine_module
    from toondb.engine.owner_lock import OwnerLock

    monkeypatch.setattr(engine_module, "_WAIT_FOR_OWNER_SECONDS", 0.0)
    old_store(tmp_path / "db")
    lock = OwnerLock(tmp_path / "db", "daemon", "/run/socket")
    with pytest.raises(DatabaseError, match="format 1"):
        Engine(tmp_path / "db", OPTIONS, shared=True)
    lock.release()


# Damage


def damage_log(engine: Engine, lsn: int) -> None:
    environment = engine.environment
    with environment.lmdb.begin(write=True) as txn:
        log_key = struct.pack(">QI", lsn, 0)
        raw = bytearray(txn.get(log_key, db=environment.changes))
        raw[5] ^= 0xFF
        txn.put(log_key, bytes(raw), db=environment.changes)


def test_damage_is_reported(engine: Engine) -> None:
    engine.write([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
    damage_log(engine, 2)
    report = maintenance.check(engine.folder, environment=engine.environment.lmdb)
    assert [(damage.kind, damage.database, damage.key) for damage in report.damages] == [
        ("changes", "changes", struct.pack(">QI", 2, 0))
    ]
    with pytest.raises(CorruptionError, match="LSN 2") as caught:
        steps_of(engine, 0)
    assert "check" in caught.value.remediation
    assert [change.key for change in history(engine, 2)] == [b"c"]
    # The data itself is not touched by it.
    assert engine.put(b"a", b"4") == 4
    assert content(engine) == {b"a": b"4", b"b": b"2", b"c": b"3"}


@pytest.mark.parametrize("raw", [b"", b"\0" * 3, b"\0" * 4, b"\0" * 100])
def test_entries_that_are_none(engine: Engine, raw: bytes) -> None:
    engine.put(b"a", b"1")
    environment = engine.environment
    for log_key in (struct.pack(">QI", 1, 1), struct.pack(">QI", 1, 1) + b"x", b"\0" * 7 + b"\1\1"):
        with environment.lmdb.begin(write=True) as txn:
            txn.put(log_key, raw, db=environment.changes)
        with pytest.raises(CorruptionError):
            steps_of(engine, 0)
        with environment.lmdb.begin(write=True) as txn:
            txn.delete(log_key, db=environment.changes)
    assert len(history(engine, 0)) == 1


def test_trimming_gets_rid_of_damage(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", SMALL) as engine:
        environment = engine.environment
        with environment.lmdb.begin(write=True) as txn:
            txn.put(b"\0", b"no entry", db=environment.changes)
        for n in range(300):
            engine.write([(b"%d" % m, b"v" * 100) for m in range(10)])
            if n == 0:
                assert maintenance.check(engine.folder, environment=environment.lmdb).damages
        assert maintenance.check(engine.folder, environment=environment.lmdb).damages == []


def test_a_store_without_a_begin_of_its_history(engine: Engine) -> None:
    """As complete as a new one; META_CHANGES_FROM is written when it is made."""
    environment = engine.environment
    with environment.lmdb.begin(write=True) as txn:
        assert txn.delete(META_CHANGES_FROM, db=environment.meta)
    engine.put(b"a", b"1")
    assert oldest(engine) == 0
    assert (engine.folder / DATA_FILE).exists()


# Waiting


def test_no_commit_is_missed_by_those_who_wait(engine: Engine) -> None:
    """Readers that wait for each next commit see every one, whoever commits it and on whichever thread."""
    count, readers = 300, 3
    seen: list[list[int]] = [[] for _ in range(readers)]
    started = threading.Barrier(readers + 2)

    def read(into: list[int]) -> None:
        lsn = 0
        started.wait(SECONDS)
        while lsn < count:
            engine.wait_for_commit(lsn, SECONDS)
            steps, lsn = steps_of(engine, lsn)
            into += [change.lsn for step in steps for change in step]

    def write(name: int) -> None:
        started.wait(SECONDS)
        for n in range(count // 2):
            engine.put(b"%d/%d" % (name, n), b"")

    threads = [threading.Thread(target=read, args=(into,)) for into in seen]
    threads += [threading.Thread(target=write, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert seen == [list(range(1, count + 1))] * readers


def test_waiting_ends_when_it_is_closed(engine: Engine) -> None:
    ended = threading.Event()

    def wait() -> None:
        engine.wait_for_commit(0, SECONDS)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    engine.close()
    assert ended.wait(SECONDS)
    thread.join(SECONDS)
    with pytest.raises(DatabaseClosedError):
        engine.wait_for_commit(0, 0)


def test_the_bound_on_its_parts() -> None:
    """The documented figures."""
    assert (INLINE_VALUE_BYTES, INLINE_COMMIT_BYTES) == (1024, 64 * 1024)
    assert change_log._KEY.size == 12
