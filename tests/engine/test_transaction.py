"""Transactions: what they see, what they refuse, what makes them conflict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, Isolation, SyncMode
from toondb.engine.transaction import State, Transaction
from toondb_protocol.errors import (
    DatabaseClosedError,
    InvalidKeyError,
    KeyTooLargeError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
    TransactionExpiredError,
    TransactionTooLargeError,
    ValidationError,
)

SERIALIZABLE = Isolation.SERIALIZABLE


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    options = EngineOptions(sync_mode=SyncMode.OFF, max_transaction_bytes=100)
    with Engine(tmp_path / "db", options) as engine:
        yield engine


def uses(transaction: Transaction) -> list[Callable[[], object]]:
    return [
        lambda: transaction.get(b"a"),
        lambda: transaction.put(b"a", b"1"),
        lambda: transaction.delete(b"a"),
        lambda: transaction.scan(),
        transaction.start_commit,
    ]


class TestLife:
    def test_reads_own_writes(self, engine: Engine) -> None:
        engine.write([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
        txn = engine.begin()
        txn.put(b"b", b"22")
        txn.delete(b"c")
        txn.put(b"d", b"")
        assert [txn.get(key) for key in (b"a", b"b", b"c", b"d")] == [b"1", b"22", None, b""]
        assert txn.scan().batch(9, 999) == [b"a", b"1", b"b", b"22", b"d", b""]
        assert txn.scan(values=False).batch(9, 999) == [b"a", b"", b"b", b"", b"d", b""]
        assert engine.get(b"d") is None
        assert engine.commit(txn) == 4
        assert engine.get(b"d") == b""
        assert engine.get(b"c") is None

    def test_the_end_is_the_end(self, engine: Engine) -> None:
        done, gone = engine.begin(), engine.begin()
        done.put(b"a", b"1")
        scan = done.scan()
        engine.commit(done)
        engine.abort(gone)
        engine.abort(gone)
        for txn, state in ((done, "committed"), (gone, "aborted")):
            for use in uses(txn):
                with pytest.raises(TransactionClosedError, match=state):
                    use()
            with pytest.raises(TransactionClosedError, match=state):
                engine.commit(txn)
        with pytest.raises(TransactionClosedError):
            scan.batch(1, 1)
        engine.abort(done)  # a late abort changes nothing
        assert done.state is State.COMMITTED
        assert engine.get(b"a") == b"1"
        assert engine.active_transactions == 0
        assert engine.transactions_aborted == 1

    def test_read_only(self, engine: Engine) -> None:
        engine.put(b"a", b"1")
        txn = engine.begin(SERIALIZABLE, read_only=True)
        with pytest.raises(TransactionError, match="read-only"):
            txn.put(b"a", b"2")
        with pytest.raises(TransactionError, match="read-only"):
            txn.delete(b"a")
        assert txn.get(b"a") == b"1"
        engine.put(b"a", b"3")
        assert engine.commit(txn) == 1  # the LSN of what it read; it cannot conflict

    def test_what_is_written_after_the_end_is_nowhere(self, engine: Engine) -> None:
        # Another thread may end it between the check that it is active and the write.
        txn = engine.begin()
        txn.abort()
        for writes in txn.writes:
            writes.put(b"a", b"1", 100)
            writes.put_new({b"a": b"1"}, 2)
        assert not txn.dirty
        other = engine.begin(read_only=True)
        assert (other.dirty, other.written_count, other.get(b"a")) == (False, 0, None)
        engine.abort(other)

    def test_expired(self, engine: Engine) -> None:
        txn = engine.begin()
        txn.put(b"a", b"1")
        assert txn.expire("idle for too long")
        assert not txn.expire("again")
        for use in uses(txn):
            with pytest.raises(TransactionExpiredError, match="idle for too long"):
                use()
        assert engine.get(b"a") is None

    def test_isolation_given_as_text_is_that_isolation(self, engine: Engine) -> None:
        assert engine.begin("serializable").isolation is SERIALIZABLE  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="known: snapshot, serializable"):
            engine.begin("chaos")  # type: ignore[arg-type]

    def test_the_cap(self, engine: Engine) -> None:
        txn = engine.begin()
        txn.put(b"k", bytes(99))
        for _ in range(3):
            with pytest.raises(TransactionTooLargeError) as caught:
                txn.put(b"l", b"")
            assert caught.value.details == {"limit": 100, "actual": 101}
        txn.put(b"k", bytes(9))
        txn.put(b"l", bytes(89))
        txn.delete(b"l")
        assert txn.size == 11
        engine.commit(txn)
        assert engine.get(b"k") == bytes(9)

    def test_keys_that_cannot_be(self, tmp_path: Path) -> None:
        with Engine(tmp_path / "keys") as engine:
            txn = engine.begin()
            for key, error in ((b"", InvalidKeyError), (b"x" * 512, KeyTooLargeError)):
                for read in (txn.get, engine.get):
                    with pytest.raises(error):
                        read(key)
                for delete in (txn.delete, engine.delete):
                    with pytest.raises(error):
                        delete(key)
                with pytest.raises(error):
                    txn.put(key, b"")
                with pytest.raises(error):
                    engine.put(key, b"")
            txn.put(b"x" * 511, b"")
            assert engine.commit(txn) == 1
            assert engine.put(b"a", b"") == 2  # none of it counts as a failure of the storage

    def test_a_commit_under_way_belongs_to_the_writer(self, engine: Engine) -> None:
        # Nobody else may end it: the writer would apply an emptied write set and call it a success.
        txn = engine.begin()
        txn.put(b"a", b"1")
        txn.start_commit()
        assert not txn.expire("idle")
        with pytest.raises(TransactionError, match="being committed"):
            engine.abort(txn)
        result = engine.write([txn])[0]
        engine.settle(txn, result)
        assert (result, engine.get(b"a")) == (1, b"1")
        assert isinstance(engine.write([txn])[0], TransactionClosedError)  # applied a second time: refused
        assert engine.stats()["lsn"] == 1

    def test_closing_the_engine_ends_it(self, tmp_path: Path) -> None:
        engine = Engine(tmp_path / "other")
        txn = engine.begin()
        half = engine.begin()
        half.put(b"a", b"1")
        half.start_commit()
        engine.close()
        engine.close()
        for one in (txn, half):
            with pytest.raises(DatabaseClosedError):
                one.get(b"a")
        with pytest.raises(DatabaseClosedError):
            engine.begin()

    def test_a_storage_error_is_not_counted_as_a_conflict(self, engine: Engine) -> None:
        txn = engine.begin()
        txn.put(b"a", b"1")
        txn.start_commit()
        engine.settle(txn, DatabaseClosedError("no"))
        assert (engine.conflicts, engine.transactions_aborted, engine.active_transactions) == (0, 1, 0)


class TestFirstCommitterWins:
    @pytest.mark.parametrize("before", [None, b"0"])
    @pytest.mark.parametrize("theirs", [None, b"1"])
    @pytest.mark.parametrize("mine", [None, b"2"])
    def test_both_write(self, engine: Engine, before: bytes | None, theirs: bytes | None, mine: bytes | None) -> None:
        if before is not None:
            engine.put(b"k", before)
        txn = engine.begin()
        txn.put(b"k", mine)
        engine.write([(b"k", theirs)])
        if before is None and theirs is None:  # deleting what is absent changes nothing
            engine.commit(txn)
            return
        with pytest.raises(TransactionConflictError) as caught:
            engine.commit(txn)
        assert caught.value.details == {"key": b"k"}
        assert engine.get(b"k") == theirs
        assert engine.conflicts == 1
        assert engine.active_transactions == 0

    def test_a_loser_changes_nothing(self, engine: Engine) -> None:
        txn = engine.begin()
        for key in (b"a", b"b", b"c"):
            txn.put(key, b"mine")
        engine.put(b"c", b"theirs")
        with pytest.raises(TransactionConflictError):
            engine.commit(txn)
        assert [engine.get(key) for key in (b"a", b"b", b"c")] == [None, None, b"theirs"]
        assert engine.stats()["lsn"] == 1

    def test_only_one_of_a_batch_wins(self, engine: Engine) -> None:
        txns = [engine.begin() for _ in range(3)]
        for at, txn in enumerate(txns):
            txn.put(b"k", b"%d" % at)
            txn.start_commit()
        results = engine.write(list(txns))
        assert results[0] == 1
        assert all(isinstance(result, TransactionConflictError) for result in results[1:])
        assert engine.get(b"k") == b"0"


class TestSerializable:
    """What was read must still hold: points, ranges, and nothing more than what was read."""

    @pytest.fixture(autouse=True)
    def rows(self, engine: Engine) -> None:
        engine.write([(b"%d" % n, b"x") for n in range(10)])

    def committed(
        self, engine: Engine, read: Callable[[Transaction], object], *writes: tuple[bytes, bytes | None]
    ) -> bool:
        txn = engine.begin(SERIALIZABLE)
        read(txn)
        txn.put(b"mine", b"1")
        engine.write(list(writes))
        try:
            engine.commit(txn)
        except TransactionConflictError:
            return False
        return True

    @pytest.mark.parametrize(
        ("write", "ok"),
        [((b"5", b"y"), False), ((b"5", None), False), ((b"4", b"y"), True), ((b"55", b"y"), True)],
    )
    def test_points(self, engine: Engine, write: tuple[bytes, bytes | None], ok: bool) -> None:
        assert self.committed(engine, lambda txn: txn.get(b"5"), write) is ok

    def test_an_absent_point(self, engine: Engine) -> None:
        assert not self.committed(engine, lambda txn: txn.get(b"55"), (b"55", b""))

    def test_snapshot_isolation_does_not_look_at_reads(self, engine: Engine) -> None:
        txn = engine.begin()
        txn.get(b"5")
        txn.scan().batch(99, 9999)
        txn.put(b"mine", b"1")
        engine.put(b"5", b"y")
        engine.commit(txn)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize(
        ("write", "ok"),
        [
            ((b"3", b"y"), False),  # changed
            ((b"4", None), False),  # deleted
            ((b"35", b"y"), False),  # a phantom
            ((b"55", b"y"), False),
            ((b"2", b"y"), True),
            ((b"29", b"y"), True),
            ((b"6", b"y"), True),  # the end is not in it
            ((b"7", None), True),
        ],
    )
    def test_ranges(self, engine: Engine, reverse: bool, write: tuple[bytes, bytes | None], ok: bool) -> None:
        def read(txn: Transaction) -> None:
            scan = txn.scan(b"3", b"6", reverse=reverse)
            while not scan.exhausted:
                scan.batch(2, 999)

        assert self.committed(engine, read, write) is ok

    def test_an_empty_range(self, engine: Engine) -> None:
        def read(txn: Transaction) -> None:
            assert txn.scan(b"a", b"b").batch(9, 99) == []

        assert self.committed(engine, read, (b"b", b""))
        assert not self.committed(engine, read, (b"aa", b""))

    def test_a_range_that_is_empty_by_its_bounds(self, engine: Engine) -> None:
        assert self.committed(engine, lambda txn: txn.scan(b"6", b"3").batch(9, 99), (b"4", b"y"))

    @pytest.mark.parametrize("end", [None, b"9z"])
    @pytest.mark.parametrize(
        ("reverse", "write", "ok"),
        [
            (False, (b"25", b"y"), True),
            (False, (b"15", b"y"), False),
            (False, (b"2", None), False),
            (True, (b"65", b"y"), True),
            (True, (b"85", b"y"), False),
            (True, (b"7", None), False),
        ],
    )
    def test_only_what_was_read_counts(
        self, engine: Engine, end: bytes | None, reverse: bool, write: tuple[bytes, bytes | None], ok: bool
    ) -> None:
        def read(txn: Transaction) -> None:
            assert len(txn.scan(b"", end, reverse=reverse).batch(3, 999)) == 6

        assert self.committed(engine, read, write) is ok

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_scan_that_was_never_stepped_read_nothing(self, engine: Engine, reverse: bool) -> None:
        assert self.committed(engine, lambda txn: txn.scan(reverse=reverse), (b"5", b"y"))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_own_writes_in_a_range_do_not_conflict(self, engine: Engine, reverse: bool) -> None:
        def read(txn: Transaction) -> None:
            txn.put(b"35", b"own")
            txn.delete(b"4")
            scan = txn.scan(b"3", b"6", reverse=reverse)
            keys = []
            while not scan.exhausted:
                keys += scan.batch(1, 999)[::2]
            assert sorted(keys) == [b"3", b"35", b"5"]

        assert self.committed(engine, read, (b"8", b"y"))
        assert not self.committed(engine, read, (b"36", b"y"))

    def test_write_skew_is_prevented(self, engine: Engine) -> None:
        one, two = engine.begin(SERIALIZABLE), engine.begin(SERIALIZABLE)
        for txn in (one, two):
            assert txn.scan(b"1", b"3").batch(9, 999) == [b"1", b"x", b"2", b"x"]
        one.delete(b"1")
        two.delete(b"2")
        engine.commit(one)
        with pytest.raises(TransactionConflictError, match="scanned"):
            engine.commit(two)
