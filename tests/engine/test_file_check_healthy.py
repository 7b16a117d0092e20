"""The page checker is silent on every healthy file, also beside a writer: a false alarm is a defect."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.engine.file_images import MAP_SIZE, Store, small_store
from toondb.engine.engine import Engine
from toondb.engine.file_check import FileReport, SnapshotMovedError, check_file, check_live
from toondb_protocol.errors import DatabaseError
from toondb_protocol.record import encode_record

# --- healthy files -------------------------------------------------------------------------------------


def assert_clean(store: Store) -> FileReport:
    report = check_file(store.path)
    assert report.ok, report.damages
    assert report.pages_used + report.pages_free == report.pages_total
    with store.environment.begin() as txn:
        assert report.records == sum(
            txn.stat(store.databases[name])["entries"] for name in (b"kv", b"catalog") if name in store.databases
        )
        assert report.txn_id == txn.id()
    assert report.pages_total == store.environment.info()["last_pgno"] + 1
    assert report.page_size == store.environment.stat()["psize"]
    return report


def test_a_fresh_environment_is_clean(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path), map_size=MAP_SIZE).close()
    report = check_file(tmp_path / "data.mdb")
    assert report.ok
    assert (report.lsn, report.records, report.pages_total, report.pages_used) == (None, 0, 2, 2)


def test_a_small_store_is_clean(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    report = assert_clean(store)
    assert report.lsn == store.lsn == 5
    assert report.pages_free > 0
    store.close()


def test_deep_trees_of_long_keys_are_clean(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit({(b"%07d" % i).rjust(511, b"k"): b"" for i in range(3000)})
    with store.environment.begin() as txn:
        assert txn.stat(store.databases[b"kv"])["depth"] >= 4
    assert_clean(store)
    store.commit(deletes=[(b"%07d" % i).rjust(511, b"k") for i in range(0, 3000, 3)])
    assert_clean(store)
    store.commit(deletes=[(b"%07d" % i).rjust(511, b"k") for i in range(3000)])
    assert_clean(store)
    store.close()


def test_a_free_list_of_many_pages_is_clean(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit({b"%05d" % i: bytes(3000) for i in range(4000)})
    store.commit(deletes=[b"%05d" % i for i in range(4000)])  # its free-list record needs overflow pages
    assert assert_clean(store).pages_free > 2000
    for i in range(20):
        store.commit({b"%d" % i: bytes(50_000)})
        assert_clean(store)
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_churn_is_clean_after_each_commit(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = Store(tmp_path / "store")
    pinned: list[lmdb.Transaction] = []
    for round_ in range(40):
        puts = {
            (b"%04d" % rng.randrange(1500)).ljust(rng.choice((4, 4, 200, 511)), b"."): rng.randbytes(
                rng.choice((0, 1, 50, 500, 2000, 2100, 9000))
            )
            for _ in range(rng.choice((1, 10, 200)))
        }
        deletes = [b"%04d" % rng.randrange(1500) for _ in range(rng.choice((0, 5, 300)))]
        store.commit(puts, deletes, database=rng.choice((b"kv", b"catalog")))
        if round_ % 7 == 0:  # old readers keep pages in the free list
            pinned.append(store.environment.begin())
        assert_clean(store)
    for txn in pinned:
        txn.abort()
    for compact in (False, True):
        copy = tmp_path / f"copy-{compact}"
        copy.mkdir()
        store.environment.copy(str(copy), compact=compact)
        report = check_file(copy / "data.mdb")
        assert report.ok, report.damages
        assert report.records == check_file(store.path).records
    store.close()


def test_large_transactions_that_spill_and_nested_ones_are_clean(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kv, catalog = store.databases[b"kv"], store.databases[b"catalog"]
    with store.environment.begin(write=True) as txn:
        for i in range(150):  # far more than the dirty pages that LMDB keeps in memory, rewritten in parts
            for j in range(0, 9000, 150):
                key = b"%d" % (i + j)
                txn.put(key, encode_record(key, bytes(1500), 1), db=kv)
        for commit in (True, False):
            with store.environment.begin(write=True, parent=txn) as child:
                key = b"nested-%d" % commit
                child.put(key, encode_record(key, bytes(100_000), 1), db=catalog)
                child.put(key, encode_record(key, b"shrunk in the same transaction", 1), db=catalog)
                if not commit:
                    child.abort()
        txn.put(b"lsn", struct.pack("<Q", 1), db=store.databases[b"meta"])
    assert_clean(store)
    store.close()


def test_foreign_sub_databases_of_every_kind_are_followed(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    environment, rng = store.environment, random.Random(3)
    options: dict[bytes, dict[str, Any]] = {
        b"duplicates": {"dupsort": True},
        b"fixed": {"dupsort": True, "dupfixed": True},
        b"integers": {"dupsort": True, "dupfixed": True, "integerdup": True},
        b"reverse": {"reverse_key": True},
        b"integer keys": {"integerkey": True},
    }
    for name, flags in options.items():
        database = environment.open_db(name, **flags)
        with environment.begin(write=True) as txn:
            for i in range(3000):
                number = struct.pack("<Q", rng.randrange(1 << 40))
                key = number if name == b"integer keys" else b"key %d" % (i % 3 if "dupsort" in flags else i)
                txn.put(key, number, db=database)
            if "dupsort" in flags:
                txn.put(b"few", b"12345678", db=database)
                txn.put(b"few", b"abcdefgh", db=database)
    assert_clean(store)
    store.close()


def test_a_sub_database_may_have_any_name(tmp_path: Path) -> None:
    store = Store(tmp_path, databases=(b"kv", b"meta", b"main", b"free", b"\xff\x00"))
    for name in (b"main", b"free", b"\xff\x00"):
        store.commit({b"%d" % i: bytes(i * 20) for i in range(300)}, database=name)
    assert_clean(store)
    store.close()


def test_progress_is_reported_to_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit({b"%06d" % i: bytes(1500) for i in range(5000)})
    seen: list[tuple[int, int]] = []
    report = check_file(store.path, progress=lambda done, total: seen.append((done, total)))
    store.close()
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == (report.pages_total, report.pages_total)


# --- beside a writer -----------------------------------------------------------------------------------


def test_a_pinned_snapshot_is_checked_as_it_was(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    with store.environment.begin() as reader:
        store.commit({b"new": b"value"}, deletes=[b"user/%04d" % i for i in range(50)])
        pinned = check_file(store.path, txn_id=reader.id())
        newest = check_file(store.path)
        assert pinned.ok
        assert newest.ok
        assert (pinned.txn_id, pinned.lsn) == (newest.txn_id - 1, 5)
        assert pinned.records == newest.records + 49
        store.commit({b"newer": b"value"})
        with pytest.raises(SnapshotMovedError, match="read transaction and run the check again"):
            check_file(store.path, txn_id=reader.id())
    store.close()


def test_a_folder_that_this_process_has_open_is_refused(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    with pytest.raises(DatabaseError, match="has not opened it"):
        check_live(tmp_path)
    store.close()
    report = check_live(tmp_path)
    assert report.ok
    assert report.lsn == 5


def test_a_copy_without_a_lock_file_is_left_as_it_is(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    (tmp_path / "copy").mkdir()
    store.environment.copy(str(tmp_path / "copy"))
    store.close()
    report = check_live(tmp_path / "copy")
    assert report.ok
    assert report.lsn == 5
    assert [entry.name for entry in (tmp_path / "copy").iterdir()] == ["data.mdb"]


def test_a_store_of_the_engine_is_clean_in_use_and_after(tmp_path: Path) -> None:
    with Engine(tmp_path) as engine:
        for i in range(300):
            engine.put(b"key/%03d" % i, b"v" * (i * 40))
        for i in range(0, 300, 2):
            engine.delete(b"key/%03d" % i)
        with engine.environment.lmdb.begin() as txn:
            report = check_file(tmp_path / "data.mdb", txn_id=txn.id())
        assert report.ok, report.damages
        assert (report.records, report.lsn) == (150, 450)
    report = check_live(tmp_path)
    assert report.ok, report.damages
    assert (report.records, report.lsn) == (150, 450)


WRITER = """
import random, struct, sys, threading
import lmdb
from toondb_protocol.record import encode_record

environment = lmdb.open(sys.argv[1], map_size=1 << 30, max_dbs=8, sync=False)
kv, meta = environment.open_db(b"kv"), environment.open_db(b"meta")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
rng, lsn = random.Random(1), 0
while not stop.is_set():
    lsn += 1
    with environment.begin(write=True) as txn:
        for _ in range(rng.choice((1, 1, 1, 40))):
            key = b"%05d" % rng.randrange(3000)
            if rng.random() < 0.4:
                txn.delete(key, db=kv)
            else:
                txn.put(key, encode_record(key, rng.randbytes(rng.choice((5, 300, 9000))), lsn), db=kv)
        txn.put(b"lsn", struct.pack("<Q", lsn), db=meta)
    if lsn == 100:
        print("ready", flush=True)
print(lsn, flush=True)
"""


def test_a_check_beside_a_busy_writer_process_is_always_clean(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    with writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        reports = [check_live(tmp_path) for _ in range(25)]
        writer.stdin.close()
        last_lsn = int(writer.stdout.readline())
    assert writer.returncode == 0
    for report in reports:
        assert report.ok, report.damages
        assert report.lsn is not None
        assert report.pages_used + report.pages_free == report.pages_total
    snapshots = [report.txn_id for report in reports]
    assert snapshots == sorted(snapshots)
    assert snapshots[0] < snapshots[-1]
    final = check_live(tmp_path)
    assert final.ok, final.damages
    assert final.lsn == last_lsn
