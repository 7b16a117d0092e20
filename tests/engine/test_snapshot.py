"""Snapshots and scans over real LMDB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.test_write_set import rows_of
from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb.engine.options import EngineOptions, SyncMode
from toondb.engine.snapshot import SnapshotScan
from toondb_protocol.errors import DatabaseClosedError, InvalidKeyError, SnapshotExpiredError
from toondb_protocol.record import encode_record

ROWS = {b"%02d" % n: b"v%d" % n * (n % 4) for n in range(0, 40, 2)} | {b"\xff": b"", b"\xff\xff": b"x"}
BOUND = st.sampled_from(
    [b"", b"0", b"00", b"07", b"08", b"38", b"39", b"\xff", b"\xff\xff", b"\xff\xff\xff", b"z" * 600]
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("scan") / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        engine.write(list(ROWS.items()))
        yield engine


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(BOUND, st.none() | BOUND, st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 60))
def test_a_scan_is_a_slice_of_the_sorted_rows(
    engine: Engine, start: bytes, end: bytes | None, reverse: bool, values: bool, max_rows: int, max_bytes: int
) -> None:
    scan = engine.scan(start, end, reverse=reverse, values=values)
    expected = [(k, v if values else b"") for k, v in ROWS.items() if k >= start and (end is None or k < end)]
    assert rows_of(scan, max_rows, max_bytes) == sorted(expected, reverse=reverse)
    assert engine.stats()["open_snapshots"] == 0


def test_a_snapshot_does_not_move(tmp_path: Path) -> None:
    with Engine(tmp_path / "db") as engine:
        engine.put(b"a", b"1")
        snapshot = engine.snapshot()
        engine.put(b"a", b"2")
        engine.put(b"b", b"3")
        assert (snapshot.lsn, snapshot.get(b"a"), snapshot.get(b"b")) == (1, b"1", None)
        assert rows_of(SnapshotScan(snapshot, Space.KV, b"", None), 10, 1000) == [(b"a", b"1")]
        snapshot.close()
        snapshot.close()
        with pytest.raises(DatabaseClosedError, match="snapshot is closed"):
            snapshot.get(b"a")
        with pytest.raises(DatabaseClosedError, match="snapshot is closed"):
            SnapshotScan(snapshot, Space.KV, b"", None)
        with pytest.raises(DatabaseClosedError, match="snapshot is closed"):
            next(snapshot.records(Space.KV, b"", None))


def test_an_expired_snapshot_says_so(engine: Engine) -> None:
    snapshot = engine.snapshot()
    scan = SnapshotScan(snapshot, Space.KV, b"", None)
    assert scan.batch(1, 100)
    snapshot.expire("open for too long")
    for use in (lambda: snapshot.get(b"a"), lambda: scan.batch(1, 100)):
        with pytest.raises(SnapshotExpiredError, match="open for too long"):
            use()


def test_a_key_that_cannot_be_is_refused(engine: Engine) -> None:
    with closing(engine.snapshot()) as snapshot, pytest.raises(InvalidKeyError):
        snapshot.get(b"")


def test_a_scan_that_is_closed_early_releases_what_it_owns(engine: Engine) -> None:
    scan = engine.scan()
    assert scan.batch(1, 1)
    assert engine.stats()["open_snapshots"] == 1
    scan.close()
    scan.close()
    assert engine.stats()["open_snapshots"] == 0
    assert scan.batch(1, 1) == []


def test_a_reader_never_sees_less_than_a_snapshot_did(tmp_path: Path) -> None:
    # The moment between LMDB's commit and its announcement, made to last: a commit that is not announced.
    with Engine(tmp_path / "db") as engine:
        engine.put(b"a", b"old")
        reader = engine.reader()
        assert (reader.get(b"a") or b"").endswith(b"old")
        environment = engine.environment
        with environment.lmdb.begin(write=True) as txn:
            txn.put(b"a", encode_record(b"a", b"new", 2), db=environment.kv)
            txn.put(b"lsn", (2).to_bytes(8, "little"), db=environment.meta)
        with closing(engine.snapshot()) as snapshot:
            assert snapshot.get(b"a") == b"new"
        assert (reader.get(b"a") or b"").endswith(b"new")
        reader.release()


def test_several_records_are_those_of_each_key(engine: Engine) -> None:
    keys = [b"\xff", b"no", b"04", b"02", b"\xff"]
    with closing(engine.snapshot()) as snapshot:
        found = snapshot.records_of(Space.KV, keys)
        assert found == [snapshot.record(Space.KV, key) for key in keys]
        assert [raw is None for raw in found] == [False, True, False, False, False]
        assert snapshot.records_of(Space.KV, []) == []
    with pytest.raises(DatabaseClosedError):
        snapshot.records_of(Space.KV, keys)
