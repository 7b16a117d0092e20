"""The saved index is never believed: killed, cut, damaged, deleted, old or foreign, searches are those of the store."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pytest

from tests.collections import child
from tests.collections.brute import by_id, nearest, unit
from tests.support.daemon import child_environ
from toondb import Database
from toondb.collections import vector_caches
from toondb.collections.index_file import load
from toondb.engine import maintenance
from toondb.engine.maintenance import check
from toondb_protocol.collections import Collection

DIMENSION = 8
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def save_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_caches, "_SAVED_FROM", 1)


def made(folder: Path, count: int = 200) -> dict[str, Any]:
    """A store with a saved index; answers its documents."""
    rows = unit(np.random.default_rng(1), count, DIMENSION)
    model = {f"{at:03}": (rows[at], {"n": at}) for at in range(count)}
    with Database.open(folder) as db:
        docs = db.create_namespace("n").create_collection("c")
        docs.insert_batch([(id, *row) for id, row in model.items()])
        docs.vector_search(rows[0])
    assert saved(folder).exists()
    return model


def saved(folder: Path) -> Path:
    (file,) = (folder / "indexes").glob("*.vectors")
    return file


def agrees(docs: Collection, model: dict[str, Any], rounds: int = 5) -> None:
    """Whether searches are those of brute force."""
    assert len(docs) == len(model)
    for query in unit(np.random.default_rng(2), rounds, DIMENSION):
        for filter in (None, {"n": {"$gte": 100}}):
            there = {id: row for id, row in model.items() if filter is None or row[1]["n"] >= 100}
            assert by_id(docs.vector_search(query, 7, filter)) == [id for id, _ in nearest("cosine", query, there, 7)]
            assert len(docs.vector_search(query, 1000, filter)) == len(there)


def is_used(folder: Path) -> bool:
    """Whether the saved index is of use to the store as it is."""
    with Database.open(folder) as db, db.transaction() as txn:
        from toondb.collections.catalog import collection_named

        collection = collection_named(txn._inner, "n", "c")
        return load(folder, db._engine.format["id"], collection, txn._inner.snapshot) is not None


def test_it_is_used_and_caught_up(folder: Path) -> None:
    model = made(folder)
    assert is_used(folder)
    before = saved(folder).read_bytes()
    with Database.open(folder) as db:
        docs = db.collection("n", "c")
        row = unit(np.random.default_rng(3), 1, DIMENSION)[0]
        docs.insert("new", row, {"n": 500})
        model["new"] = (row, {"n": 500})
        docs.delete("000")
        del model["000"]
        docs.insert("001", -row, {"n": 1})
        model["001"] = (-row, {"n": 1})
        agrees(docs, model)
    assert saved(folder).read_bytes() != before
    assert is_used(folder)
    saved(folder).write_bytes(before)  # an old one of the same store
    assert is_used(folder)
    with Database.open(folder) as db:
        agrees(db.collection("n", "c"), model)


def damages(raw: bytes) -> Iterator[bytes]:
    rng = random.Random(4)
    for size in (0, 1, 100, 4095, 4096, len(raw) // 2, len(raw) - 1):
        yield raw[:size]
    for _ in range(25):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        yield bytes(damaged)
    yield raw + b"more"
    yield rng.randbytes(len(raw))
    yield bytes(len(raw))


def test_cut_and_damaged(folder: Path) -> None:
    model = made(folder)
    raw = saved(folder).read_bytes()
    path = saved(folder)
    for damaged in damages(raw):
        path.write_bytes(damaged)
        with Database.open(folder) as db:
            agrees(db.collection("n", "c"), model, 1)
    path.unlink()
    path.mkdir()
    with Database.open(folder) as db:
        agrees(db.collection("n", "c"), model, 1)
    shutil.rmtree(folder / "indexes")
    (folder / "indexes").write_text("a file where the folder was")
    with Database.open(folder) as db:
        agrees(db.collection("n", "c"), model, 1)
        db.collection("n", "c").insert("new", model["000"][0], {"n": 1})
    (folder / "indexes").unlink()
    with Database.open(folder) as db:
        model["new"] = (model["000"][0], {"n": 1})
        assert len(db.collection("n", "c").vector_search(model["000"][0], 1000)) == len(model)


def test_a_store_that_went_back(folder: Path, tmp_path: Path) -> None:
    """A restored store reuses LSNs: an index that saw the other history must not be taken for its own."""
    model = made(folder)
    maintenance.backup(folder, tmp_path / "backup")
    rows = unit(np.random.default_rng(5), 40, DIMENSION)
    with Database.open(folder) as db:  # one history
        docs = db.collection("n", "c")
        for at in range(20):
            docs.insert(f"{at:03}", rows[at], {"n": at})
        docs.vector_search(rows[0])
    other = saved(folder).read_bytes()
    maintenance.restore(tmp_path / "backup", folder, force=True)
    with Database.open(folder) as db:  # another one, with the same LSNs and ids
        docs = db.collection("n", "c")
        for at in range(20):
            docs.insert(f"{at:03}", rows[20 + at], {"n": at})
            model[f"{at:03}"] = (rows[20 + at], {"n": at})
        docs.insert("more", rows[0], {"n": 0})
        model["more"] = (rows[0], {"n": 0})
        agrees(docs, model)
    saved(folder).write_bytes(other)
    assert not is_used(folder)
    saved(folder).write_bytes(other)
    with Database.open(folder) as db:
        agrees(db.collection("n", "c"), model)


def test_of_another_store(folder: Path, tmp_path: Path) -> None:
    model = made(folder)
    made(tmp_path / "other")
    saved(folder).write_bytes(saved(tmp_path / "other").read_bytes())
    assert not is_used(folder)
    with Database.open(folder) as db:
        agrees(db.collection("n", "c"), model)


def test_a_damaged_log(folder: Path) -> None:
    """Without the log the documents are read; the check names the damage, and commits go on."""
    model = made(folder)
    for damage in (b"", b"\0" * 100, b"x" * 22):
        with lmdb.open(str(folder), max_dbs=16, map_size=1 << 30) as environment:
            log = environment.open_db(b"document_log")
            with environment.begin(write=True) as txn:
                for key, _ in list(txn.cursor(log)):
                    txn.put(key, damage, db=log)
        assert {found.kind for found in check(folder).damages} == {"document_log"}
        with Database.open(folder) as db:
            docs = db.collection("n", "c")
            row = unit(np.random.default_rng(6), 1, DIMENSION)[0]
            docs.insert("new", row, {"n": 7})
            model["new"] = (row, {"n": 7})
            agrees(docs, model)


def test_maintenance(folder: Path, tmp_path: Path) -> None:
    model = made(folder)
    with Database.open(folder) as db:
        docs = db.namespace("n").create_collection("words", enable_hybrid_search=True)
        docs.insert_batch([(f"{at}", [1.0, at], {}, f"word{at}") for at in range(300)])
        docs.delete_batch([f"{at}" for at in range(0, 300, 2)])
        db.namespace("n").put("k", b"v")
        report = check(folder, environment=db._engine.environment.lmdb)
        assert report.damages == []
    maintenance.backup(folder, tmp_path / "backup", compact=True)
    maintenance.compact(folder)
    maintenance.restore(tmp_path / "backup", tmp_path / "restored")
    for name in (folder, tmp_path / "restored", tmp_path / "backup"):
        assert check(name).damages == []
        with Database.open(name) as db:
            agrees(db.collection("n", "c"), model)
            assert by_id(db.collection("n", "words").keyword_search("word7 word8")) == ["7"]
            assert db.namespace("n").get("k") == b"v"


def test_a_store_of_format_2(folder: Path) -> None:
    """Opening it adds what it lacks, and keeps its history."""
    with Database.open(folder) as db:
        db.put("a", b"1")
        db.execute("CREATE TABLE t (a)")
    with lmdb.open(str(folder), max_dbs=16, map_size=1 << 30) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as txn:
            for name in (b"documents", b"document_log", b"namespace_kv", b"text"):
                txn.drop(environment.open_db(name, txn=txn))
            form = msgpack.unpackb(txn.get(b"format", db=meta))
            assert form["version"] == 3
            txn.put(b"format", msgpack.packb({**form, "version": 2}), db=meta)
    assert check(folder).damages == []
    with Database.open(folder) as db:
        assert db.get("a") == b"1"
        assert [change.key for change in db.watch(since_lsn=0, timeout=0)] == [b"a"]
        docs = db.create_namespace("n").create_collection("c", enable_hybrid_search=True)
        docs.insert([1, 2], {}, "a", "word")
        assert by_id(docs.keyword_search("word")) == by_id(docs.vector_search([1, 2])) == ["a"]
    assert check(folder).damages == []


# Killed processes


def start(folder: Path, seed: int, kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.collections.child", str(folder), str(seed), kind],
        env=child_environ({}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def prepared(folder: Path) -> None:
    with Database.open(folder) as db:
        db.create_namespace("n").create_collection("c", dimension=child.DIMENSION, enable_hybrid_search=True)
        db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, n)")


Event = tuple[str, str, int]


def replay(lines: list[str], model: dict[str, int], pairs: dict[str, int]) -> Event | None:
    """Apply what was acknowledged to a model; answers what was on its way."""
    pending: Event | None = None
    for line in lines:
        if line == "done":
            assert pending is not None
            apply(pending, model, pairs)
            pending = None
        elif line != "ready":
            kind, id, number = line.split()
            pending = kind, id, int(number)
    return pending


def apply(event: Event, model: dict[str, int], pairs: dict[str, int]) -> None:
    kind, id, number = event
    if kind == "delete":
        model.pop(id, None)
        return
    model[id] = number
    if kind == "both":
        pairs[id] = number


def consistent(db: Database, model: dict[str, int], pairs: dict[str, int]) -> None:
    """Documents, vectors, words, keys and SQL all tell the same."""
    docs = db.collection("n", "c")
    assert {each.id: each.metadata["n"] for each in docs.iterate()} == model
    assert {key.decode()[4:]: int(value) for key, value in db.scan("key/")} == pairs
    assert {row["id"]: row["n"] for row in db.execute("SELECT id, n FROM t")} == pairs
    rows = {id: (np.array(child.vector_of(number), np.float32), {"odd": number % 2}) for id, number in model.items()}
    for seed in range(5):
        query = np.array(child.vector_of(seed), np.float32)
        best = [id for id, _ in nearest("cosine", query, rows, 10)]
        assert by_id(docs.vector_search(query, 10)) == best
        odd = nearest("cosine", query, rows, 10, lambda metadata: metadata["odd"] == 1)
        assert by_id(docs.vector_search(query, 10, {"odd": 1})) == [id for id, _ in odd]
    assert set(by_id(docs.keyword_search("common", 1000))) == set(model)
    for id, number in list(model.items())[:5]:
        assert by_id(docs.keyword_search(f"word{number}")) == [id]


def test_kill_9(folder: Path) -> None:
    prepared(folder)
    rng = random.Random(11)
    model: dict[str, int] = {}
    pairs: dict[str, int] = {}
    for seed in range(1, 6):
        process = start(folder, seed, "alone")
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(rng.randrange(10, 200))]
        process.kill()
        lines += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait()
        pending = replay([line for line in lines if line], model, pairs)
        assert check(folder).damages == []
        with Database.open(folder) as db:
            now = {each.id: each.metadata["n"] for each in db.collection("n", "c").iterate()}
            if pending is not None and now != model:
                apply(pending, model, pairs)
            consistent(db, model, pairs)


def test_processes_see_each_other(folder: Path) -> None:
    """Two write, one of them is killed; a third one sees all of both, at once and at the end."""
    prepared(folder)
    with Database.open_concurrent(folder) as db:
        workers = [start(folder, seed, "shared") for seed in (1, 2)]
        docs = db.collection("n", "c")
        logs: list[list[str]] = [[], []]
        for at in range(120):
            for worker, log in zip(workers, logs, strict=True):
                assert worker.stdout is not None
                log.append(worker.stdout.readline().strip())
                if log[-1] == "done" and log[-2].startswith("put") and at % 5 == 0:
                    _, _, number = log[-2].split()
                    # It may have gone on since, but not have forgotten what it had put, unless under the same id.
                    assert len(docs.vector_search(child.vector_of(int(number)), 5)) > 0
        for worker in workers:
            worker.kill()
        model: dict[str, int] = {}
        pairs: dict[str, int] = {}
        for worker, log in zip(workers, logs, strict=True):
            assert worker.stdout is not None
            log += worker.stdout.read().splitlines()
            worker.stdout.close()
            worker.wait()
            pending = replay([line for line in log if line], model, pairs)
            if pending is not None:
                stored = docs.get(pending[1])
                if (None if stored is None else stored.metadata["n"]) != model.get(pending[1]):
                    apply(pending, model, pairs)
        consistent(db, model, pairs)
    assert check(folder).damages == []
