"""Writes that depend on what is there: alone, many in one batch, and when something beside them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.clock import Clock
from tests.engine.test_writer import Batch, Defect
from tests.support.daemon import SECONDS
from toondb.engine.conditional import CompareAndSet, Conditional, Expire, Increment, PutFor
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, SyncMode
from toondb_protocol.arguments import MAX_INTEGER, MIN_INTEGER
from toondb_protocol.errors import (
    InternalError,
    StorageFullError,
    TransactionConflictError,
    TransactionTooLargeError,
    ValidationError,
)
from toondb_protocol.record import Expiring


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        yield engine


Apply = Callable[[Engine, Conditional], Any]


def alone(engine: Engine, unit: Conditional) -> Any:
    return engine.apply(unit)


def in_a_transaction(engine: Engine, unit: Conditional) -> Any:
    transaction = engine.begin()
    try:
        result = unit.apply_in(transaction)
        engine.commit(transaction)
    finally:
        engine.abort(transaction)
    return result


@pytest.fixture(params=[alone, in_a_transaction])
def apply(request: pytest.FixtureRequest) -> Apply:
    chosen: Apply = request.param
    return chosen


def test_compare_and_set(engine: Engine, clock: Clock, apply: Apply) -> None:
    steps: list[tuple[bytes | None, bytes | None, bool, bytes | None]] = [
        (b"", b"no", False, None),
        (None, None, True, None),
        (None, b"", True, b""),
        (None, b"no", False, b""),
        (b"", b"1", True, b"1"),
        (b"1", b"1", True, b"1"),
        (b"2", None, False, b"1"),
        (b"1", None, True, None),
    ]
    for expected, new, answer, value in steps:
        assert apply(engine, CompareAndSet(b"k", expected, new)) is answer
        assert engine.get(b"k") == value
    assert apply(engine, CompareAndSet(b"k", None, b"v", 10)) is True
    assert engine.get_with_expiry(b"k") == (b"v", clock.now + 10)
    assert apply(engine, CompareAndSet(b"k", b"v", b"w")) is True
    assert engine.get_with_expiry(b"k") == (b"w", None)
    assert apply(engine, CompareAndSet(b"k", b"w", b"x", 10)) is True
    clock.now += 10
    assert apply(engine, CompareAndSet(b"k", b"x", b"y")) is False
    assert apply(engine, CompareAndSet(b"k", None, b"y")) is True


def test_increment(engine: Engine, clock: Clock, apply: Apply) -> None:
    assert [apply(engine, Increment(b"n", by)) for by in (1, 0, -5, 10)] == [1, 1, -4, 6]
    assert engine.get(b"n") == b"6"
    engine.write([(b"n", Expiring(b"7", clock.now + 10))])
    assert apply(engine, Increment(b"n", 1)) == 8
    assert engine.get_with_expiry(b"n") == (b"8", clock.now + 10)
    clock.now += 10
    assert apply(engine, Increment(b"n", 1)) == 1
    assert engine.get_with_expiry(b"n") == (b"1", None)


@pytest.mark.parametrize(
    "value", [b"", b" 1", b"1 ", b"+1", b"1.0", b"0x1", b"one", b"1\n", b"1_0", b"\xd9\xa1", b"1" * 20, b"--1"]
)
def test_what_is_no_number(engine: Engine, apply: Apply, value: bytes) -> None:
    engine.put(b"n", value)
    with pytest.raises(ValidationError, match="is not a number"):
        apply(engine, Increment(b"n", 1))
    assert (engine.get(b"n"), engine.checkpoint()) == (value, 1)


def test_the_ends_of_64_bits(engine: Engine, apply: Apply) -> None:
    assert apply(engine, Increment(b"n", MAX_INTEGER)) == MAX_INTEGER
    with pytest.raises(ValidationError, match="64 bits"):
        apply(engine, Increment(b"n", 1))
    assert apply(engine, Increment(b"n", -MAX_INTEGER)) == 0
    assert apply(engine, Increment(b"n", MIN_INTEGER)) == MIN_INTEGER
    with pytest.raises(ValidationError, match="64 bits"):
        apply(engine, Increment(b"n", -1))
    assert engine.get(b"n") == b"%d" % MIN_INTEGER
    engine.put(b"n", b"9" * 19)  # decimal text, but more than 64 bits
    with pytest.raises(ValidationError, match="64 bits"):
        apply(engine, Increment(b"n", 1))
    # Back into what 64 bits hold is no mistake.
    assert apply(engine, Increment(b"n", -(10**18))) == 10**19 - 1 - 10**18


def test_expire(engine: Engine, clock: Clock, apply: Apply) -> None:
    assert apply(engine, Expire(b"k", 10)) is False
    engine.put(b"k", b"v")
    assert apply(engine, Expire(b"k", None)) is True
    assert engine.checkpoint() == 1  # it had none to take away: nothing was written
    assert apply(engine, Expire(b"k", 10)) is True
    assert engine.get_with_expiry(b"k") == (b"v", clock.now + 10)
    assert apply(engine, Expire(b"k", None)) is True
    assert engine.get_with_expiry(b"k") == (b"v", None)
    assert apply(engine, Expire(b"k", 0)) is True
    assert engine.get(b"k") is None
    assert apply(engine, Expire(b"k", None)) is False


def test_put_for(engine: Engine, clock: Clock, apply: Apply) -> None:
    assert apply(engine, PutFor(b"k", b"v", 10)) is True
    assert engine.get_with_expiry(b"k") == (b"v", clock.now + 10)
    assert apply(engine, PutFor(b"k", b"w", None)) is True
    assert engine.get_with_expiry(b"k") == (b"w", None)


def test_several_in_one_transaction_see_each_other(engine: Engine, clock: Clock) -> None:
    transaction = engine.begin()
    assert CompareAndSet(b"k", None, b"1", 10).apply_in(transaction)
    assert Increment(b"k", 4).apply_in(transaction) == 5
    assert transaction.get_with_expiry(b"k") == (b"5", clock.now + 10)
    assert Expire(b"k", None).apply_in(transaction)
    assert not CompareAndSet(b"k", b"1", b"2").apply_in(transaction)
    assert CompareAndSet(b"k", b"5", None).apply_in(transaction)
    assert not Expire(b"k", 10).apply_in(transaction)
    assert Increment(b"k", 7).apply_in(transaction) == 7
    assert engine.commit(transaction) == 1
    assert engine.get_with_expiry(b"k") == (b"7", None)


def test_a_condition_in_a_transaction_holds_when_it_commits(engine: Engine) -> None:
    transaction = engine.begin()
    assert Increment(b"n", 1).apply_in(transaction) == 1
    engine.apply(Increment(b"n", 1))
    with pytest.raises(TransactionConflictError):
        engine.commit(transaction)
    assert engine.get(b"n") == b"1"


def test_the_cap_of_a_transaction_counts(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", EngineOptions(max_transaction_bytes=10)) as engine:
        transaction = engine.begin()
        with pytest.raises(TransactionTooLargeError):
            CompareAndSet(b"k", None, b"v" * 20).apply_in(transaction)
        assert Increment(b"k", 1).apply_in(transaction) == 1
        engine.commit(transaction)


# Group commit


def test_many_in_one_batch_decide_in_order(engine: Engine) -> None:
    batch = Batch(engine)
    increments = [Increment(b"n", 1) for _ in range(40)]
    claims = [CompareAndSet(b"lock", None, b"%d" % n) for n in range(40)]
    for increment, claim in zip(increments, claims, strict=True):
        batch.add(increment, claim)
    releases = CompareAndSet(b"lock", b"0", None)
    batch.add(releases, CompareAndSet(b"lock", None, b"next"))
    results = batch.run()
    assert engine.writer.commits == batch.commits + 1
    assert [unit.result for unit in increments] == list(range(1, 41))
    assert [unit.result for unit in claims] == [True] + [False] * 39
    assert releases.result is True
    assert (engine.get(b"n"), engine.get(b"lock")) == (b"40", b"next")
    # Nothing written is no commit of its own: the LSN stays.
    assert [result[0] for result in results] == [1, *range(3, 42), 42]
    assert [result[1] for result in results] == [2, *range(3, 42), 43]


@pytest.mark.parametrize("position", [0, 1, 13, 20])
def test_results_are_right_when_a_unit_beside_them_fails(engine: Engine, position: int) -> None:
    """The batch is tried again in halves; what was decided in a try that was not kept does not count."""
    batch = Batch(engine)
    increments = [Increment(b"n", 1) for _ in range(20)]
    claims = [CompareAndSet(b"lock/%d" % (n // 2), None, b"%d" % n) for n in range(20)]
    for n in range(21):
        if n == position:
            batch.add(Defect())
        if n < 20:
            batch.add(increments[n], claims[n])
    results = batch.run()
    assert isinstance(results.pop(position)[0], InternalError)
    assert [unit.result for unit in increments] == list(range(1, 21))
    assert [unit.result for unit in claims] == [True, False] * 10
    assert (engine.get(b"n"), engine.checkpoint()) == (b"20", 30)
    assert all(isinstance(lsn, int) for result in results for lsn in result)


def test_refused_units_change_nothing_for_the_others(engine: Engine) -> None:
    engine.put(b"text", b"no number")
    batch = Batch(engine)
    units = [Increment(b"text" if n % 3 else b"n", 1) for n in range(30)]
    batch.add(*units)
    (results,) = batch.run()
    assert engine.writer.commits == batch.commits + 1
    assert [isinstance(result, ValidationError) for result in results] == [bool(n % 3) for n in range(30)]
    assert (engine.get(b"n"), engine.get(b"text")) == (b"10", b"no number")


def test_one_that_does_not_fit(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", EngineOptions(map_size=1 << 20, change_history_bytes=1 << 16)) as engine:
        batch = Batch(engine)
        large = CompareAndSet(b"large", None, bytes(2 << 20))
        counted = [Increment(b"n", 1) for _ in range(8)]
        batch.add(*counted[:4], large, *counted[4:])
        (results,) = batch.run()
        assert isinstance(results.pop(4), StorageFullError)
        assert [unit.result for unit in counted] == list(range(1, 9))
        with pytest.raises(StorageFullError):
            engine.apply(large)
        assert engine.get(b"large") is None


def test_counting_in_many_threads(engine: Engine) -> None:
    count, threads_count = 100, 6
    sums: list[int] = []
    owners: list[int] = []

    def work(name: int) -> None:
        for n in range(count):
            sums.append(engine.apply(Increment(b"n", 1)))
            if engine.apply(CompareAndSet(b"lock/%d" % n, None, b"%d" % name)):
                owners.append(n)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert sorted(sums) == list(range(1, count * threads_count + 1))
    assert sorted(owners) == list(range(count))
