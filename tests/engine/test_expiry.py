"""Records that expire: gone from every read at once, and from the store a little later, with the index always exact."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.engine.clock import Clock
from tests.support.daemon import SECONDS
from toondb.engine import maintenance, write_batch
from toondb.engine.conditional import CompareAndSet, Expire, Increment, PutFor
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, Isolation, SyncMode
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb.engine.write_batch import Reclaim, WriteBatch, expiry_key
from toondb.engine.write_set import Scan
from toondb_protocol.changes import Change, ChangeKind
from toondb_protocol.errors import CorruptionError, ToonDBError, TransactionConflictError, ValidationError
from toondb_protocol.record import Expiring, decode_expiry, encode_record, now_ms

OPTIONS = EngineOptions(sync_mode=SyncMode.OFF)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        yield engine


def rows_by_batch(scan: Scan) -> list[tuple[bytes, bytes]]:
    rows: list[tuple[bytes, bytes]] = []
    while not scan.exhausted:
        flat = scan.batch(2, 1 << 20)
        rows += zip(flat[::2], flat[1::2], strict=True)
    scan.close()
    return rows


def rows_by_pairs(scan: Scan) -> list[tuple[bytes, bytes]]:
    rows: list[tuple[bytes, bytes]] = []
    while not scan.exhausted:
        rows += scan.pairs(2, 1 << 20)
    scan.close()
    return rows


def history(engine: Engine, since: int = 0) -> list[Change]:
    return [change for step in engine.read_changes(since) for change in step]


def index_entries(engine: Engine) -> set[tuple[bytes, bytes]]:
    environment = engine.environment
    with environment.lmdb.begin() as txn:
        return set(txn.cursor(db=environment.expiry))


def right_index(engine: Engine) -> set[tuple[bytes, bytes]]:
    """What the index must have, by the records."""
    environment = engine.environment
    found = set()
    with environment.lmdb.begin() as txn:
        for key, raw in txn.cursor(db=environment.kv):
            expires = decode_expiry(raw)
            if expires is not None:
                found.add((expiry_key(expires, key), key))
    return found


READS: dict[str, Callable[[Engine], dict[bytes, bytes | None]]] = {}


def reading(function: Callable[[Engine], dict[bytes, bytes | None]]) -> Callable[[Engine], dict[bytes, bytes | None]]:
    READS[function.__name__] = function
    return function


KEYS = (b"a", b"b", b"c", b"d", b"e")


@reading
def engine_get(engine: Engine) -> dict[bytes, bytes | None]:
    return {key: engine.get(key) for key in KEYS}


@reading
def engine_get_with_expiry(engine: Engine) -> dict[bytes, bytes | None]:
    return {key: engine.get_with_expiry(key)[0] for key in KEYS}


@reading
def snapshot_get(engine: Engine) -> dict[bytes, bytes | None]:
    with_snapshot = engine.snapshot()
    found = {key: with_snapshot.get(key) for key in KEYS}
    with_snapshot.close()
    return found


@reading
def transaction_get(engine: Engine) -> dict[bytes, bytes | None]:
    transaction = engine.begin()
    found = {key: transaction.get(key) for key in KEYS}
    engine.abort(transaction)
    return found


@reading
def transaction_get_with_expiry(engine: Engine) -> dict[bytes, bytes | None]:
    transaction = engine.begin(Isolation.SERIALIZABLE)
    found = {key: transaction.get_with_expiry(key)[0] for key in KEYS}
    engine.abort(transaction)
    return found


@reading
def conditional_by_the_newest(engine: Engine) -> dict[bytes, bytes | None]:
    def value(key: bytes) -> bytes | None:
        return next(value for value in (None, b"1", b"2", b"3", b"4", b"5") if engine.apply(guess(key, value)))

    def guess(key: bytes, value: bytes | None) -> CompareAndSet:
        # Found out by what it answers when it would store what is there.
        class Guess(CompareAndSet):
            def apply(self, batch: WriteBatch, lsn: int) -> int:
                super().apply(Discarding(batch), lsn)  # type: ignore[arg-type]
                return lsn

        return Guess(key, value, value)

    return {key: value(key) for key in KEYS}


class Discarding:
    """A batch that reads and does not write."""

    def __init__(self, batch: WriteBatch) -> None:
        self.get = batch.get

    def put(self, key: bytes, value: bytes, lsn: int) -> None:
        pass

    def delete(self, key: bytes, lsn: int) -> bool:
        return True


def _scanned(rows: list[tuple[bytes, bytes]]) -> dict[bytes, bytes | None]:
    return {key: dict(rows).get(key) for key in KEYS}


for _name, _rows in (("batch", rows_by_batch), ("pairs", rows_by_pairs)):
    for _reverse in (False, True):

        def _engine_scan(engine: Engine, rows: object = _rows, reverse: bool = _reverse) -> dict[bytes, bytes | None]:
            return _scanned(rows(engine.scan(reverse=reverse)))  # type: ignore[operator]

        def _range_scan(engine: Engine, rows: object = _rows, reverse: bool = _reverse) -> dict[bytes, bytes | None]:
            return _scanned(rows(engine.scan(b"a", b"f", reverse=reverse)))  # type: ignore[operator]

        def _transaction_scan(
            engine: Engine, rows: object = _rows, reverse: bool = _reverse
        ) -> dict[bytes, bytes | None]:
            transaction = engine.begin(Isolation.SERIALIZABLE)
            found = _scanned(rows(transaction.scan(b"a", reverse=reverse)))  # type: ignore[operator]
            engine.abort(transaction)
            return found

        def _key_scan(engine: Engine, rows: object = _rows, reverse: bool = _reverse) -> dict[bytes, bytes | None]:
            found = dict(rows(engine.scan(reverse=reverse, values=False)))  # type: ignore[operator]
            assert set(found.values()) <= {b""}
            return {key: engine.get(key) if key in found else None for key in KEYS}

        for _function in (_engine_scan, _range_scan, _transaction_scan, _key_scan):
            READS[f"{_function.__name__}-{_name}-{'reverse' if _reverse else 'forward'}"] = _function


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_read(engine: Engine, clock: Clock, read: Callable[[Engine], dict[bytes, bytes | None]]) -> None:
    engine.write(
        [
            (b"a", Expiring(b"1", clock.now + 10)),
            (b"b", b"2"),
            (b"c", Expiring(b"3", clock.now + 20)),
            (b"e", Expiring(b"5", clock.now + 10)),
        ]
    )
    assert read(engine) == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": None, b"e": b"5"}
    clock.now += 9
    assert read(engine)[b"a"] == b"1"
    clock.now += 1  # at the very millisecond it is gone
    assert read(engine) == {b"a": None, b"b": b"2", b"c": b"3", b"d": None, b"e": None}
    clock.now += 10
    assert read(engine) == {b"a": None, b"b": b"2", b"c": None, b"d": None, b"e": None}
    engine.write([Reclaim()])
    assert read(engine) == {b"a": None, b"b": b"2", b"c": None, b"d": None, b"e": None}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("rows", [rows_by_batch, rows_by_pairs])
def test_scans_merged_with_a_write_set(
    engine: Engine,
    clock: Clock,
    reverse: bool,
    values: bool,
    rows: Callable[[Scan], list[tuple[bytes, bytes]]],
) -> None:
    soon, late = clock.now + 10, clock.now + 20
    engine.write([(b"%d" % n, Expiring(b"old", soon if n % 2 else late)) for n in range(8)])
    transaction = engine.begin()
    transaction.put(b"1", Expiring(b"new", late))
    transaction.put(b"2", Expiring(b"new", soon))
    transaction.put(b"3", b"new")
    transaction.put(b"4", None)
    transaction.put(b"9", Expiring(b"new", soon))

    def expected(keys: str) -> list[tuple[bytes, bytes]]:
        pairs = [(bytes([n]), b"new" if n in b"1239" else b"old") for n in keys.encode()]
        pairs = [(key, value if values else b"") for key, value in pairs]
        return pairs[::-1] if reverse else pairs

    def scan() -> Scan:
        return transaction.scan(b"0", b"\xff", reverse=reverse, values=values)

    assert rows(scan()) == expected("01235679")
    begun = scan()
    clock.now = soon
    assert rows(scan()) == expected("0136")
    assert rows(begun) == expected("01235679")  # by the time when it began
    clock.now = late
    assert rows(scan()) == expected("3")
    assert transaction.get(b"1") is None
    assert transaction.get_with_expiry(b"1") == (None, None)
    assert transaction.get_with_expiry(b"3") == (b"new", None)
    engine.abort(transaction)


def test_overwrite_delete_expire_and_increment_keep_the_index_exact(engine: Engine, clock: Clock) -> None:
    late = clock.now + 1000
    steps: list[tuple[object, set[tuple[bytes, int]]]] = [
        ((b"k", Expiring(b"1", late)), {(b"k", late)}),
        ((b"k", Expiring(b"1", late + 1)), {(b"k", late + 1)}),
        ((b"k", Expiring(b"2", late + 1)), {(b"k", late + 1)}),
        (Increment(b"k", 5), {(b"k", late + 1)}),
        (Expire(b"k", 50), {(b"k", clock.now + 50)}),
        (Expire(b"k", None), set()),
        (Expire(b"k", 60), {(b"k", clock.now + 60)}),
        (CompareAndSet(b"k", b"7", b"8"), set()),
        (CompareAndSet(b"k", b"8", b"9", 70), {(b"k", clock.now + 70)}),
        (CompareAndSet(b"k", b"no", b"9"), {(b"k", clock.now + 70)}),
        (PutFor(b"k", b"x", 80), {(b"k", clock.now + 80)}),
        ((b"k", b"plain"), set()),
        (PutFor(b"k", b"x", 90), {(b"k", clock.now + 90)}),
        ((b"k", None), set()),
        ((b"k", None), set()),
        (Expire(b"k", 60), set()),
        ((b"k" * 511, Expiring(b"", late)), {(b"k" * 511, late)}),
        ((b"l", Expiring(b"", late)), {(b"k" * 511, late), (b"l", late)}),
    ]
    for unit, entries in steps:
        assert isinstance(engine.write([unit])[0], int)  # type: ignore[list-item]
        assert index_entries(engine) == {(expiry_key(expires, key), key) for key, expires in entries}
        assert maintenance.check(engine.folder, environment=engine.environment.lmdb).damages == []


def test_an_overwritten_record_that_had_expired_stays(engine: Engine, clock: Clock) -> None:
    engine.write([(b"k", Expiring(b"old", clock.now + 10))])
    clock.now += 20
    engine.put(b"k", b"new")
    engine.write([Reclaim()])
    assert engine.get(b"k") == b"new"
    assert index_entries(engine) == set()


def test_what_the_index_says_wrongly_deletes_nothing(engine: Engine, clock: Clock) -> None:
    """A defect elsewhere must not become a loss of data."""
    engine.write([(b"k", b"kept"), (b"other", Expiring(b"kept", clock.now + 1000))])
    environment = engine.environment
    with environment.lmdb.begin(write=True) as txn:
        for key in (b"k", b"other", b"absent"):
            txn.put(expiry_key(clock.now - 5, key), key, db=environment.expiry)
    environment.may_expire = True
    report = maintenance.check(engine.folder, environment=environment.lmdb)
    assert [damage.kind for damage in report.damages] == ["expiry"]
    assert engine.write([Reclaim()]) == [3]
    assert history(engine, 2) == []
    assert engine.get(b"k") == engine.get(b"other") == b"kept"
    assert maintenance.check(engine.folder, environment=environment.lmdb).damages == []


@pytest.mark.parametrize("wrong", ["time", "key", "missing", "form"])
def test_check_compares_the_index_with_the_records(engine: Engine, clock: Clock, wrong: str) -> None:
    engine.write([(b"k", Expiring(b"v", clock.now)), (b"l", Expiring(b"v", clock.now))])
    environment = engine.environment
    with environment.lmdb.begin(write=True) as txn:
        assert txn.delete(expiry_key(clock.now, b"k"), db=environment.expiry)
        if wrong == "time":
            txn.put(expiry_key(clock.now + 1, b"k"), b"k", db=environment.expiry)
        elif wrong == "key":
            txn.put(expiry_key(clock.now, b"m"), b"m", db=environment.expiry)
        elif wrong == "form":
            txn.put(expiry_key(clock.now, b"k"), b"m", db=environment.expiry)
    report = maintenance.check(engine.folder, environment=environment.lmdb)
    assert [damage.kind for damage in report.damages] == ["expiry"]


def test_reclaim_deletes_in_batches_and_says_so(engine: Engine, clock: Clock) -> None:
    count = 2 * write_batch.RECLAIMED_AT_ONCE + 7
    engine.write([(b"%05d" % n, Expiring(b"v", clock.now + 1 + n % 2)) for n in range(count)])
    clock.now += 1
    since = engine.checkpoint()
    unit = Reclaim()
    assert engine.write([unit]) == [since + 1]
    assert unit.unfinished
    assert engine.stats()["keys_count"] == count - write_batch.RECLAIMED_AT_ONCE
    unit = Reclaim()
    assert engine.write([unit]) == [since + 2]
    assert not unit.unfinished
    assert engine.write([Reclaim()]) == [since + 2]  # nothing to do is no commit
    clock.now += 1
    while unit.written_keys:
        unit = Reclaim()
        engine.write([unit])
    assert engine.stats()["keys_count"] == 0
    changes = history(engine, since)
    assert {(change.kind, change.value) for change in changes} == {(ChangeKind.EXPIRE, None)}
    assert sorted(change.key for change in changes) == [b"%05d" % n for n in range(count)]
    # The first to expire first.
    assert [int(change.key) % 2 for change in changes] == sorted(int(change.key) % 2 for change in changes)
    assert maintenance.check(engine.folder, environment=engine.environment.lmdb).damages == []


def test_in_the_background(engine: Engine) -> None:
    """With the real clock and the real thread; the change says when it happened."""
    engine.write([(b"stays", b"v"), *[(b"k%d" % n, Expiring(b"v", now_ms() + 1)) for n in range(50)]])
    lsn = 51
    gone: set[bytes] = set()
    while len(gone) < 50:
        engine.environment.wait_for_commit(lsn, SECONDS)
        changes = history(engine, lsn)
        assert changes, "nothing was reclaimed in time"
        assert {change.kind for change in changes} == {ChangeKind.EXPIRE}
        gone |= {change.key for change in changes}
        lsn = changes[-1].lsn
    assert engine.stats()["keys_count"] == 1
    assert index_entries(engine) == set()


def test_reclaimed_after_a_reopen(tmp_path: Path, clock: Clock) -> None:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        engine.write([(b"k", Expiring(b"v", clock.now + 10)), (b"l", b"v")])
    clock.now += 10
    with Engine(tmp_path / "db", OPTIONS) as engine:
        assert engine.environment.may_expire
        assert engine.get(b"k") is None
        assert rows_by_batch(engine.scan()) == [(b"l", b"v")]
        assert engine.stats()["keys_count"] == 2
        engine.write([Reclaim()])
        assert engine.stats()["keys_count"] == 1


def test_a_store_that_never_used_it_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(tmp_path / "db", OPTIONS) as engine:
        environment = engine.environment
        asked: list[object] = []
        monkeypatch.setattr(WriteBatch, "_forget_expiry", lambda _, key: asked.append(key))
        engine.write([(b"%d" % n, b"v") for n in range(50)])
        engine.delete(b"1")
        engine.apply(Increment(b"n", 1))
        assert rows_by_batch(engine.scan(b"2", b"3", values=False))
        with environment.lmdb.begin() as txn:
            assert not environment.has_expiring(txn)
            assert txn.stat(environment.expiry)["entries"] == 0
        assert not environment.may_expire
        assert asked == []
    with Engine(tmp_path / "db", OPTIONS) as engine:
        assert not engine.environment.may_expire


def test_the_first_one_that_expires_is_seen_by_a_scan_at_once(engine: Engine, clock: Clock) -> None:
    engine.put(b"a", b"1")
    before = engine.snapshot()
    engine.write([(b"b", Expiring(b"2", clock.now + 1))])
    clock.now += 1
    assert rows_by_batch(engine.scan()) == [(b"a", b"1")]
    assert [before.get(key) for key in (b"a", b"b")] == [b"1", None]
    before.close()


class TestConflicts:
    """See also test_expiry_conflicts."""

    def begin(self, engine: Engine, clock: Clock) -> Transaction:
        engine.write([(b"z", b"v"), *[(b"k%d" % n, Expiring(b"v", clock.now + 1)) for n in range(5)]])
        clock.now += 1
        return engine.begin(Isolation.SERIALIZABLE)

    def test_keys_that_were_reclaimed_meanwhile(self, engine: Engine, clock: Clock) -> None:
        transaction = self.begin(engine, clock)
        assert transaction.get(b"k0") is None
        assert rows_by_batch(transaction.scan()) == [(b"z", b"v")]
        assert rows_by_pairs(transaction.scan(b"k", b"l", reverse=True)) == []
        transaction.put(b"k1", b"mine")
        transaction.delete(b"k2")
        engine.write([Reclaim()])
        lsn = engine.commit(transaction)
        assert engine.get(b"k1") == b"mine"
        assert lsn == engine.checkpoint()

    def test_keys_that_were_not(self, engine: Engine, clock: Clock) -> None:
        transaction = self.begin(engine, clock)
        assert rows_by_batch(transaction.scan()) == [(b"z", b"v")]
        transaction.put(b"k1", b"mine")
        engine.put(b"\xff", b"moves the LSN, outside of what it reads")
        with pytest.raises(TransactionConflictError):  # the scan was of everything
            engine.commit(transaction)
        transaction = engine.begin(Isolation.SERIALIZABLE)
        assert rows_by_batch(transaction.scan(b"k", b"l")) == []
        transaction.put(b"k1", b"mine")
        engine.put(b"\xff", b"again")
        engine.commit(transaction)

    @pytest.mark.parametrize("alive", [True, False])
    def test_one_that_was_written_again_conflicts(self, engine: Engine, clock: Clock, alive: bool) -> None:
        transaction = self.begin(engine, clock)
        assert rows_by_batch(transaction.scan(b"k", b"l")) == []
        transaction.put(b"mine", b"1")
        engine.write([(b"k3", Expiring(b"again", clock.now + 10) if alive else b"again")])
        with pytest.raises(TransactionConflictError, match="k3"):
            engine.commit(transaction)


def test_a_record_of_another_version_is_refused(engine: Engine) -> None:
    environment = engine.environment
    raw = bytearray(encode_record(b"k", Expiring(b"v", 5), 1))
    raw[0] |= 0x02
    with environment.lmdb.begin(write=True) as txn:
        txn.put(b"k", bytes(raw), db=environment.kv)
    for read in (engine.get, lambda key: engine.get_with_expiry(key)[0]):
        with pytest.raises(CorruptionError, match="tag 0x13"):
            read(b"k")


def test_threads_that_write_expiring_and_plain_values(tmp_path: Path) -> None:
    """With the real clock, so that the writer thread reclaims in between."""
    with Engine(tmp_path / "db", OPTIONS) as engine:
        failures: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for n in range(60):
                    key = b"%d" % (n % 7)
                    engine.apply(PutFor(key, b"1", n % 3))
                    engine.write([Reclaim(), (key, None if n % 5 == 0 else b"2"), Increment(b"sum", 1)])
                    engine.apply(Expire(key, 1 if name % 2 else None))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert failures == []
        assert engine.get(b"sum") == b"240"
        assert index_entries(engine) == right_index(engine)
    assert maintenance.check(tmp_path / "db").damages == []


# The model


class Row(NamedTuple):
    value: bytes
    expires: int | None
    lsn: int


Rows = dict[bytes, Row]

NAMES = st.sampled_from([b"a", b"aa", b"b", b"c", b"k" * 511])
VALUES = st.sampled_from([b"", b"1", b"-7", b"x" * 3000])
TTLS = st.none() | st.integers(0, 30)


class ExpiryMachine(RuleBasedStateMachine):
    """Physical records in a dict, and the rule that those whose time has come are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock(self.patch)
        self.folder = Path(tempfile.mkdtemp(prefix="toondb-"))
        self.rows: Rows = {}
        self.lsn = 0
        self.snapshots: list[tuple[Snapshot, Rows]] = []
        self.open()

    def open(self) -> None:
        options = EngineOptions(sync_mode=SyncMode.OFF, map_size=64 << 20)
        self.engine = Engine(self.folder / "db", options)

    def teardown(self) -> None:
        try:
            self.replay()
            self.engine.close()
            assert maintenance.check(self.folder / "db").damages == []
        finally:
            self.engine.close()
            self.patch.undo()
            shutil.rmtree(self.folder)

    def replay(self) -> None:
        state: dict[bytes, bytes] = {}
        for change in history(self.engine):
            if change.kind is ChangeKind.PUT:
                assert change.value is not None
                state[change.key] = change.value
            else:
                state.pop(change.key, None)
        # Of one that expired and was logged by reference nothing is told until it is reclaimed.
        assert {key: state[key] for key in self.alive(self.rows)} == self.alive(self.rows)
        assert state.keys() <= self.rows.keys()

    # The model

    def alive(self, rows: Rows) -> dict[bytes, bytes]:
        now = self.clock.now
        return {key: row.value for key, row in rows.items() if row.expires is None or row.expires > now}

    def until(self, ttl: int | None) -> int | None:
        return None if ttl is None else self.clock.now + ttl

    def value(self, value: bytes, ttl: int | None) -> bytes:
        return value if ttl is None else Expiring(value, self.clock.now + ttl)

    def write(self, key: bytes, value: bytes | None, expires: int | None = None) -> None:
        if value is None and key not in self.rows:
            return
        self.lsn += 1
        self.rows = dict(self.rows)
        if value is None:
            del self.rows[key]
        else:
            self.rows[key] = Row(value, expires, self.lsn)

    # Writes

    @rule(key=NAMES, value=VALUES, ttl=TTLS)
    def put(self, key: bytes, value: bytes, ttl: int | None) -> None:
        self.write(key, value, self.until(ttl))
        assert self.engine.write([(key, self.value(value, ttl))]) == [self.lsn]

    @rule(key=NAMES, value=VALUES, ttl=TTLS)
    def put_for(self, key: bytes, value: bytes, ttl: int | None) -> None:
        self.write(key, value, self.until(ttl))
        assert self.engine.apply(PutFor(key, value, ttl)) is True

    @rule(key=NAMES)
    def delete(self, key: bytes) -> None:
        self.write(key, None)
        assert self.engine.delete(key) == self.lsn

    @rule(key=NAMES, ttl=TTLS)
    def expire(self, key: bytes, ttl: int | None) -> None:
        value = self.alive(self.rows).get(key)
        if value is not None and not (ttl is None and self.rows[key].expires is None):
            self.write(key, value, self.until(ttl))
        assert self.engine.apply(Expire(key, ttl)) is (value is not None)

    @rule(key=NAMES, by=st.integers(-3, 3))
    def increment(self, key: bytes, by: int) -> None:
        value = self.alive(self.rows).get(key)
        if value is None or value in (b"1", b"-7"):
            total = int(value or 0) + by
            self.write(key, b"%d" % total, None if value is None else self.rows[key].expires)
            assert self.engine.apply(Increment(key, by)) == total
            # Only what the strategy of values knows can be counted again.
            self.put(key, b"1", None)
        else:
            with pytest.raises(ValidationError, match="not a number"):
                self.engine.apply(Increment(key, by))

    @rule(key=NAMES, expected=st.none() | VALUES, new=st.none() | VALUES, ttl=TTLS)
    def compare_and_set(self, key: bytes, expected: bytes | None, new: bytes | None, ttl: int | None) -> None:
        matches = self.alive(self.rows).get(key) == expected
        if matches:
            self.write(key, new, self.until(ttl))
        assert self.engine.apply(CompareAndSet(key, expected, new, ttl)) is matches

    @rule(
        writes=st.dictionaries(NAMES, st.none() | st.tuples(VALUES, TTLS), min_size=1),
        reads=NAMES,
        wait=st.integers(0, 15),
        reverse=st.booleans(),
    )
    def transaction(
        self, writes: dict[bytes, tuple[bytes, int | None] | None], reads: bytes, wait: int, reverse: bool
    ) -> None:
        transaction = self.engine.begin(Isolation.SERIALIZABLE)
        seen = dict(self.rows)
        for key, write in writes.items():
            if write is None:
                transaction.delete(key)
                seen.pop(key, None)
            else:
                transaction.put(key, self.value(*write))
                seen[key] = Row(write[0], self.until(write[1]), 0)
        began = transaction.scan(b"", b"\xff", reverse=reverse)
        expected = sorted(self.alive(seen).items(), reverse=reverse)
        self.clock.now += wait
        assert rows_by_batch(began) == expected
        alive = self.alive(seen)
        assert transaction.get(reads) == alive.get(reads)
        expires = seen[reads].expires if reads in alive else None
        assert transaction.get_with_expiry(reads) == (alive.get(reads), expires)
        assert rows_by_pairs(transaction.scan()) == sorted(alive.items())
        assert self.engine.commit(transaction) == self.lsn + 1
        self.lsn += 1
        self.rows = {key: row._replace(lsn=row.lsn or self.lsn) for key, row in seen.items()}

    @rule()
    def reclaim(self) -> None:
        gone = self.rows.keys() - self.alive(self.rows).keys()
        if gone:
            self.lsn += 1
            self.rows = {key: row for key, row in self.rows.items() if key not in gone}
        unit = Reclaim()
        assert self.engine.write([unit]) == [self.lsn]
        assert set(unit.written_keys) == gone

    @rule(wait=st.integers(1, 20))
    def wait(self, wait: int) -> None:
        self.clock.now += wait

    # Reads

    @rule(start=NAMES, end=st.none() | NAMES, reverse=st.booleans(), values=st.booleans())
    def scan(self, start: bytes, end: bytes | None, reverse: bool, values: bool) -> None:
        pairs = [(key, value) for key, value in sorted(self.alive(self.rows).items()) if key >= start]
        pairs = [(key, value if values else b"") for key, value in pairs if end is None or key < end]
        for rows in (rows_by_batch, rows_by_pairs):
            scan = self.engine.scan(start, end, reverse=reverse, values=values)
            assert rows(scan) == (pairs[::-1] if reverse else pairs)

    @rule()
    def take_a_snapshot(self) -> None:
        self.snapshots.append((self.engine.snapshot(), self.rows))

    @rule()
    def reopen(self) -> None:
        for snapshot, _ in self.snapshots:
            snapshot.close()
        self.snapshots.clear()
        self.engine.close()
        self.open()

    @invariant()
    def reads_agree(self) -> None:
        alive = self.alive(self.rows)
        for key in (b"a", b"aa", b"b", b"c", b"k" * 511):
            assert self.engine.get(key) == alive.get(key)
            expires = self.rows[key].expires if key in alive else None
            assert self.engine.get_with_expiry(key) == (alive.get(key), expires)
        for snapshot, rows in self.snapshots:
            now_alive = self.alive(rows)
            assert all(snapshot.get(key) == now_alive.get(key) for key in rows)

    @invariant()
    def the_index_is_exact(self) -> None:
        assert index_entries(self.engine) == right_index(self.engine)
        assert len(right_index(self.engine)) == sum(row.expires is not None for row in self.rows.values())
        stats = self.engine.stats()
        assert (stats["lsn"], stats["keys_count"]) == (self.lsn, len(self.rows))


ExpiryMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestExpiryModel = ExpiryMachine.TestCase


def test_the_batch_that_fails_leaves_no_trace(engine: Engine, clock: Clock) -> None:
    class Fails:
        def apply(self, batch: WriteBatch, lsn: int) -> int:
            batch.put(b"k", Expiring(b"v", clock.now), lsn + 1)
            raise ZeroDivisionError

    results = engine.write([(b"a", b"1"), Fails(), (b"b", Expiring(b"2", clock.now + 1))])
    assert [isinstance(result, ToonDBError) for result in results] == [False, True, False]
    assert {key for _, key in index_entries(engine)} == {b"b"}
