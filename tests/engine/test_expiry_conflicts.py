"""A key that expires while a transaction is open: what was seen alive must not be taken for unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from toondb.engine import conditional, snapshot, transaction, write_batch
from toondb.engine.conditional import CompareAndSet
from toondb.engine.engine import Engine
from toondb.engine.options import Isolation
from toondb.engine.write_batch import Reclaim
from toondb_protocol import record
from toondb_protocol.errors import TransactionConflictError
from toondb_protocol.record import Expiring


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000
        for module in (conditional, snapshot, transaction, write_batch, record):
            monkeypatch.setattr(module, "now_ms", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_taken_and_given_back_after_it_expired(tmp_path: Path, clock: Clock) -> None:
    with Engine(tmp_path / "db") as engine:
        engine.write([(b"lock", Expiring(b"late", clock.now + 50))])
        late = engine.begin()
        assert CompareAndSet(b"lock", b"late", b"late", 30_000).apply_in(late) is True
        clock.now += 60
        assert engine.apply(CompareAndSet(b"lock", None, b"other", 30_000)) is True
        assert engine.apply(CompareAndSet(b"lock", b"other", None)) is True
        with pytest.raises(TransactionConflictError):
            engine.commit(late)


def test_reclaimed_after_it_was_seen_alive(tmp_path: Path, clock: Clock) -> None:
    with Engine(tmp_path / "db") as engine:
        engine.write([(b"k", Expiring(b"v", clock.now + 50))])
        reader = engine.begin(Isolation.SERIALIZABLE)
        assert reader.get(b"k") == b"v"
        reader.put(b"other", b"")
        ranger = engine.begin(Isolation.SERIALIZABLE)
        assert ranger.scan(b"a", b"z").batch(10, 1000) == [b"k", b"v"]
        ranger.put(b"another", b"")
        clock.now += 60
        engine.write([Reclaim()])
        for transaction_ in (reader, ranger):
            with pytest.raises(TransactionConflictError):
                engine.commit(transaction_)


def test_reclaimed_after_it_was_never_seen(tmp_path: Path, clock: Clock) -> None:
    with Engine(tmp_path / "db") as engine:
        engine.write([(b"k", Expiring(b"v", clock.now + 50))])
        clock.now += 60
        writer = engine.begin(Isolation.SERIALIZABLE)
        assert writer.get(b"k") is None
        assert writer.scan(b"a", b"z").batch(10, 1000) == []
        writer.put(b"k", b"new")
        engine.write([Reclaim()])
        engine.commit(writer)
        assert engine.get(b"k") == b"new"
