"""The writer thread: group commit, error isolation, nothing lost and nothing hanging."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, SyncMode
from toondb.engine.write_batch import WriteBatch
from toondb.engine.writer import Checkpoint, Unit, Writer, WriteRequest
from toondb_protocol.errors import (
    DatabaseClosedError,
    InternalError,
    InvalidKeyError,
    StorageFullError,
    ToonDBError,
    TransactionConflictError,
    TransactionOutcomeUnknownError,
    ValidationError,
)

SECONDS = 30.0


class Refuses:
    def apply(self, batch: WriteBatch, lsn: int) -> int:
        raise ValidationError("refused")


class Defect:
    """A unit that writes and then fails in a way nobody foresaw."""

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        batch.put(b"defect", b"x" * 20, lsn + 1)
        raise ZeroDivisionError("a defect")


class Gate:
    """A unit that holds the writer until it is opened, so that what is queued meanwhile is one batch."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        self.reached.set()
        assert self.open.wait(SECONDS)
        return lsn


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        yield engine


class Batch:
    """Requests that the writer takes together."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[WriteRequest] = []
        self.gate = Gate()
        self.done = threading.Semaphore(0)
        self.order: list[WriteRequest] = []
        self._submit([self.gate])
        assert self.gate.reached.wait(SECONDS)
        self.commits = engine.writer.commits

    def _submit(self, units: list[Unit]) -> WriteRequest:
        request = WriteRequest(units, self._finished)
        self.engine.writer.submit(request)
        return request

    def _finished(self, request: WriteRequest) -> None:
        self.order.append(request)
        self.done.release()

    def add(self, *units: Unit) -> None:
        self.requests.append(self._submit(list(units)))

    def run(self) -> list[list[int | ToonDBError]]:
        self.gate.open.set()
        for _ in range(1 + len(self.requests)):
            assert self.done.acquire(timeout=SECONDS)
        assert self.order[1:] == self.requests
        return [request.results for request in self.requests]


def test_a_batch_is_one_commit_in_order(engine: Engine) -> None:
    batch = Batch(engine)
    for n in range(50):
        batch.add((b"k", b"%d" % n), (b"%02d" % n, b""))
    batch.add((b"00", None), (b"absent", None), Checkpoint())
    results = batch.run()
    assert [lsn for result in results for lsn in result] == [*range(1, 101), 101, 101, 101]
    assert engine.writer.commits == batch.commits + 1
    assert engine.get(b"k") == b"49"
    stats = engine.stats()
    assert (stats["lsn"], stats["keys_count"], stats["transactions_committed"]) == (101, 50, 101)


def test_units_that_are_refused_do_not_touch_the_others(engine: Engine) -> None:
    stale = engine.begin()
    stale.put(b"b", b"stale")
    engine.put(b"b", b"0")
    stale.start_commit()
    batch = Batch(engine)
    batch.add((b"a", b"1"), Refuses(), (b"b", b"2"))
    batch.add(stale)
    batch.add((b"c", b"3"))
    first, second, third = batch.run()
    assert (first[0], first[2], third) == (2, 3, [4])
    assert isinstance(first[1], ValidationError)
    assert isinstance(second[0], TransactionConflictError)
    assert [engine.get(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", b"3"]
    engine.settle(stale, second[0])


def test_a_defect_in_one_unit_does_not_touch_the_others(engine: Engine) -> None:
    batch = Batch(engine)
    for n in range(10):
        batch.add((b"%d" % n, b""))
    batch.add((b"before", b""), Defect(), (b"after", b""))
    batch.add((b"", b"a key that LMDB refuses"))
    batch.add((b"last", b""))
    results = batch.run()
    assert [result[0] for result in results[:10]] == [*range(1, 11)]
    assert (results[10][0], results[10][2], results[12][0]) == (11, 12, 13)
    assert isinstance(results[10][1], InternalError)
    assert "ZeroDivisionError" in str(results[10][1])
    assert isinstance(results[11][0], InvalidKeyError)
    assert engine.get(b"defect") is None
    assert engine.writer.failed is None
    assert engine.stats()["keys_count"] == 13


def test_a_transaction_in_a_batch_that_is_tried_again_is_applied_once(engine: Engine) -> None:
    engine.put(b"n", b"0")
    txn = engine.begin()
    txn.put(b"n", b"1")
    txn.start_commit()
    batch = Batch(engine)
    batch.add((b"x", b""))
    batch.add(txn)
    batch.add(Defect())
    results = batch.run()
    assert results[:2] == [[2], [3]]
    engine.settle(txn, 3)
    assert (engine.get(b"n"), engine.stats()["lsn"]) == (b"1", 3)


def test_the_bytes_written_are_those_of_the_commits(engine: Engine) -> None:
    def written() -> int:
        total: int = engine.stats()["bytes_written"]
        return total

    engine.put(b"key", b"value")
    assert written() == 8
    txn = engine.begin()
    txn.put(b"k1", b"1234")
    txn.delete(b"key")
    engine.commit(txn)
    assert written() == 8 + 9
    lost = engine.begin()
    lost.put(b"k1", b"lost")
    engine.put(b"k1", b"")
    with pytest.raises(TransactionConflictError):
        engine.commit(lost)
    engine.delete(b"absent")
    assert written() == 8 + 9 + 2


def test_a_callback_that_raises_harms_nobody_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    def broken(request: WriteRequest) -> None:
        raise ZeroDivisionError("in a callback")

    batch = Batch(engine)
    engine.writer.submit(WriteRequest([(b"a", b"1")], broken))
    batch.add((b"b", b"2"))
    assert batch.run() == [[2]]
    assert [args.exc_type for args in reported] == [ZeroDivisionError]
    assert engine.put(b"c", b"3") == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_writer_dies_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tmp_path / "db")
    batch = Batch(engine)
    batch.add((b"a", b"1"))
    batch.add((b"b", b"2"))

    def dies(batch: list[WriteRequest]) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(engine.writer, "_commit", dies)
    assert all(isinstance(result[0], InternalError) for result in batch.run())
    with pytest.raises(InternalError, match="a defect"):
        engine.put(b"c", b"3")
    with pytest.raises(InternalError, match="a defect"):
        engine.checkpoint()
    assert engine.get(b"a") is None
    assert "KeyError" in str(engine.stats()["storage_failed"])
    engine.close()
    with Engine(tmp_path / "db") as again:
        assert again.put(b"a", b"1") == 1


def _put_until_closed(engine: Engine, name: bytes, acknowledged: list[bytes], start: threading.Barrier) -> None:
    start.wait(SECONDS)
    with contextlib.suppress(DatabaseClosedError):
        for n in range(1_000_000):
            key = b"%b-%d" % (name, n)
            engine.put(key, b"")
            acknowledged.append(key)


def test_closing_while_threads_submit(tmp_path: Path) -> None:
    """Whoever is answered with an LSN finds the write after a reopen, and everybody is answered."""
    for turn in range(5):
        engine = Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF))
        acknowledged: list[bytes] = []
        started = threading.Barrier(5)

        threads = [
            threading.Thread(target=_put_until_closed, args=(engine, b"%d-%d" % (turn, n), acknowledged, started))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        started.wait(SECONDS)
        while len(acknowledged) < 20:
            engine.checkpoint()
        engine.close()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        with Engine(tmp_path / "db") as again:
            assert all(again.get(key) == b"" for key in acknowledged)


class TestMapFull:
    """``map_size`` reached: large writes are refused, the rest goes on, and room comes back with deletes."""

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Engine]:
        with Engine(tmp_path / "small", EngineOptions(map_size=1 << 20)) as engine:
            yield engine

    def fill(self, engine: Engine) -> list[bytes]:
        keys: list[bytes] = []
        with pytest.raises(StorageFullError, match="--map-size"):
            while True:
                key = b"%04d" % len(keys)
                engine.put(key, bytes(10_000))
                keys.append(key)
        return keys

    def test_one_large_write_does_not_take_small_ones_down(self, small: Engine) -> None:
        batch = Batch(small)
        batch.add((b"a", b"1"), (b"large", bytes(2 << 20)), (b"b", b"2"))
        batch.add((b"c", b"3"))
        first, second = batch.run()
        assert (first[0], first[2], second) == (1, 2, [3])
        assert isinstance(first[1], StorageFullError)
        assert small.get(b"large") is None
        assert small.writer.failed is None

    def test_reads_and_deletes_work_when_full_and_make_room(self, small: Engine) -> None:
        keys = self.fill(small)
        assert small.get(keys[0]) == bytes(10_000)
        with contextlib.closing(small.scan()) as scan:
            assert len(scan.batch(1000, 1 << 30)) == 2 * len(keys)
        for key in keys[:20]:
            small.delete(key)
        txn = small.begin()
        txn.delete(keys[20])
        txn.put(b"new", bytes(50_000))
        small.commit(txn)
        assert small.get(b"new") == bytes(50_000)
        assert small.stats()["storage_failed"] is None

    def test_a_transaction_that_does_not_fit_leaves_nothing(self, small: Engine) -> None:
        keys = self.fill(small)
        before = small.stats()
        txn = small.begin()
        for n in range(40):
            txn.put(b"t%d" % n, bytes(5_000))
        with pytest.raises(StorageFullError):
            small.commit(txn)
        after = small.stats()
        assert (after["lsn"], after["keys_count"]) == (before["lsn"], before["keys_count"])
        assert small.get(b"t0") is None
        assert len(keys) == after["keys_count"]

    def test_a_larger_map_after_a_restart(self, tmp_path: Path) -> None:
        with Engine(tmp_path / "db", EngineOptions(map_size=1 << 20)) as engine:
            keys = self.fill(engine)
        with Engine(tmp_path / "db", EngineOptions(map_size=4 << 20)) as engine:
            assert engine.put(b"more", bytes(1 << 20)) == len(keys) + 1
        with Engine(tmp_path / "db", EngineOptions(map_size=1 << 20)) as engine:  # smaller than the data
            assert engine.get(b"more") == bytes(1 << 20)
            with pytest.raises(StorageFullError, match="--map-size"):
                engine.put(b"again", bytes(1 << 20))


class TestFileSize:
    """Old pages are used again, unless a view from before is still open."""

    def churn(self, engine: Engine, times: int) -> int:
        for n in range(times):
            engine.write([(b"%d" % key, b"%d" % n * 500) for key in range(5)])
        size: int = engine.stats()["storage_used_bytes"]
        return size

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        # Its history is full at once, and does not grow meanwhile.
        options = EngineOptions(sync_mode=SyncMode.OFF, change_history_bytes=1 << 16)
        with Engine(tmp_path / "db", options) as engine:
            yield engine

    def test_it_is_bounded_beside_a_reader(self, engine: Engine) -> None:
        reader = engine.reader()
        sizes = []
        for _ in range(20):
            sizes.append(self.churn(engine, 100))
            assert reader.get(b"0") is not None
            reader.release()
        assert sizes[-1] <= 2 * sizes[1]

    def test_a_snapshot_makes_it_grow_until_it_expires(self, tmp_path: Path) -> None:
        options = EngineOptions(sync_mode=SyncMode.OFF, transaction_age_seconds=1e-9, change_history_bytes=1 << 16)
        with Engine(tmp_path / "aged", options) as engine:
            steady = self.churn(engine, 100)
            snapshot, txn = engine.snapshot(), engine.begin()
            grown = self.churn(engine, 100)
            assert grown > 2 * steady
            assert engine.expire() == 2
            assert snapshot.closed
            assert txn.snapshot.closed
            assert self.churn(engine, 500) < 2 * grown


class Interrupts:
    """A unit that is met by Ctrl-C."""

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        batch.put(b"interrupted", b"", lsn + 1)
        raise KeyboardInterrupt


class TestCommitNow:
    """Committing on the caller's thread, beside the writer thread."""

    def test_it_waits_for_nobody(self, engine: Engine) -> None:
        assert engine.commit_now([(b"a", b"1")]) == [1]
        batch = Batch(engine)
        batch.add((b"b", b"2"))
        assert engine.commit_now([(b"c", b"3")]) is None
        assert batch.run() == [[2]]
        assert engine.get(b"c") is None

    def test_what_the_thread_has_taken_comes_first(self, engine: Engine) -> None:
        """A caller that commits again and again would otherwise keep all the others waiting."""
        writer = engine.writer
        gate = Gate()
        done = threading.Event()
        with writer._turn:
            writer.submit(WriteRequest([gate], lambda _: done.set()))
            # It takes the request, and then waits for its turn.
            wait_until(lambda: writer._taken)
        for _ in range(100):
            assert engine.commit_now([(b"a", b"1")]) is None
        gate.open.set()
        assert done.wait(SECONDS)
        assert engine.put(b"a", b"1") == 1

    def test_group_commit_of_many_threads(self, tmp_path: Path) -> None:
        """Each waits for its own write; together they need far fewer commits than writes."""
        with Engine(tmp_path / "full", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
            count, threads_count = 60, 8
            started = threading.Barrier(threads_count)
            # As a device that syncs slowly: whoever commits lets the others come.
            slow = threading.Semaphore(0)
            engine.writer.on_commit.append(lambda _: slow.acquire(timeout=0.002))  # type: ignore[arg-type]

            def put(name: int) -> None:
                started.wait(SECONDS)
                for n in range(count):
                    engine.put(b"%d/%d" % (name, n), b"")

            threads = [threading.Thread(target=put, args=(name,)) for name in range(threads_count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SECONDS)
                assert not thread.is_alive()
            assert engine.stats()["keys_count"] == count * threads_count
            assert engine.writer.commits < count * threads_count // 2

    def test_interrupted_before_the_commit(self, engine: Engine) -> None:
        engine.put(b"a", b"1")
        with pytest.raises(KeyboardInterrupt):
            engine.write([(b"b", b"2"), Interrupts()])
        assert [engine.get(key) for key in (b"a", b"b", b"interrupted")] == [b"1", None, None]
        assert engine.put(b"c", b"3") == 2
        assert engine.writer.failed is None

    def test_interrupted_after_the_commit(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is there for every reader, and whoever waits for it is told."""
        reader = engine.reader()
        assert reader.get(b"a") is None
        environment = engine.environment
        real = environment.announce

        def interrupted(lsn: int) -> None:
            monkeypatch.setattr(environment, "announce", real)
            raise KeyboardInterrupt

        monkeypatch.setattr(environment, "announce", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.put(b"a", b"1")
        raw = reader.get(b"a")
        assert raw is not None
        assert raw[13:] == b"1" == engine.get(b"a")
        assert environment.announced_lsn == 1
        engine.wait_for_commit(0, SECONDS)
        reader.release()
        assert engine.put(b"b", b"2") == 2

    def test_an_interrupted_commit_ends_the_transaction(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        environment = engine.environment
        real = environment.announce

        def interrupted(lsn: int) -> None:
            monkeypatch.setattr(environment, "announce", real)
            raise KeyboardInterrupt

        transaction = engine.begin()
        transaction.put(b"a", b"1")
        monkeypatch.setattr(environment, "announce", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.commit(transaction)
        assert engine.active_transactions == 0
        assert transaction.snapshot.closed
        with pytest.raises(TransactionOutcomeUnknownError):
            transaction.get(b"a")

    def test_interrupted_when_the_outcome_is_known(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Engine.settle

        def interrupted(self: Engine, *args: object) -> None:
            monkeypatch.setattr(Engine, "settle", real)
            raise KeyboardInterrupt

        transaction = engine.begin()
        transaction.put(b"a", b"1")
        monkeypatch.setattr(Engine, "settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.commit(transaction)
        assert transaction.snapshot.closed
        assert engine.active_transactions == 0

    def test_closing_beside_it(self, tmp_path: Path) -> None:
        """close() waits for whoever is committing, and nobody commits after it."""
        for _ in range(10):
            engine = Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF))
            gate = Gate()
            results: list[list[int | ToonDBError] | None] = []

            def commit(engine: Engine = engine, gate: Gate = gate, results: Any = results) -> None:
                results.append(engine.commit_now([(b"k", b""), gate]))

            committing = threading.Thread(target=commit)
            committing.start()
            assert gate.reached.wait(SECONDS)
            closing = threading.Thread(target=engine.close)
            closing.start()
            wait_until(lambda: engine.writer._closing)  # noqa: B023
            assert engine.writer.commit_now([(b"late", b"")]) is None
            gate.open.set()
            committing.join(SECONDS)
            closing.join(SECONDS)
            assert not closing.is_alive()
            (result,) = results
            assert result is not None
            with pytest.raises(DatabaseClosedError):
                engine.put(b"late", b"")


def wait_until(condition: Callable[[], object]) -> None:
    """Poll for what no event announces, for so long at the most."""
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_checkpoint_beside_processes_with_lazier_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has synced says nothing of what the others have written since."""
    synced: list[int] = []
    real = Writer._sync

    def sync(self: Writer) -> ToonDBError | None:
        synced.append(1)
        return real(self)

    monkeypatch.setattr(Writer, "_sync", sync)
    for shared in (False, True):
        with Engine(tmp_path / "db", shared=shared) as engine:
            engine.checkpoint()
            engine.put(b"a", b"1")
            synced.clear()
            engine.checkpoint()
            assert bool(synced) is shared
