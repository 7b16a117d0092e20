"""Index files: whole or not there, and never believed when they are damaged."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.children import in_child
from tests.support.daemon import child_environ
from tests.vector.data import sample
from toondb import VectorIndex
from toondb.bulk import bulk_info, bulk_query_index
from toondb.errors import (
    CorruptionError,
    StorageFullError,
    ToonDBError,
    UnsupportedFeatureError,
    ValidationError,
)
from toondb.vector.sections import HEADER_BYTES, MAGIC, VERSION, SectionReader


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An index with everything that a file can have: a graph, removed ones, equal ones, rows aside, names."""
    index = VectorIndex(16, "euclidean", m=8, ef_construction=40)
    vectors = sample(1500, 16)
    vectors[100:110] = vectors[0]
    index.insert_batch([f"name {at}" for at in range(1500)], vectors)
    for at in range(50, 105):
        index.delete(f"name {at}")
    index.insert_batch(range(200), sample(200, 16, seed=1))
    path = tmp_path / "index.hnsw"
    index.save(path)
    return path


def leftovers(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir() if one.name.endswith(".tmp")]


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    index = VectorIndex.load(saved)
    assert (len(index), index.dimension, index.metric, index.m) == (1500 - 55 + 200, 16, "euclidean", 8)
    assert index.ef_construction == 40
    again = saved.with_name("again")
    index.save(again)
    assert again.read_bytes() == saved.read_bytes()
    queries = sample(5, 16, seed=3)
    assert VectorIndex.load(again).search_batch(queries) == index.search_batch(queries)
    # The mapped file answers the same.
    for query in queries:
        found = [(one.id, one.distance) for one in bulk_query_index(saved, query)]
        assert found == index.search(query)
    # Ids are not used again.
    index.insert("new", queries[0])
    assert index.search(queries[0], 1) == [("new", 0.0)]
    assert index.delete("name 0")
    assert index.search(sample(1500, 16)[0], 1)[0][0] in {f"name {at}" for at in range(105, 110)}


def test_an_empty_index_can_be_saved(tmp_path: Path) -> None:
    VectorIndex(3).save(tmp_path / "empty")
    index = VectorIndex.load(str(tmp_path / "empty"))
    assert len(index) == 0
    assert bulk_query_index(tmp_path / "empty", [1, 2, 3]) == []
    index.insert(1, [1, 2, 3])
    assert len(index) == 1


def refused(path: Path, kind: type[ToonDBError], message: str) -> None:
    for read in (VectorIndex.load, lambda path: bulk_query_index(path, np.ones(16)), bulk_info):
        with pytest.raises(kind) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert message in str(caught.value)
        assert caught.value.remediation


def test_every_truncation_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    cut = saved.with_name("cut")
    for size in (8, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        refused(cut, CorruptionError, "is damaged: it has")
    cut.write_bytes(whole + b"\0")
    refused(cut, CorruptionError, "is damaged: it has")
    for size in range(8):
        cut.write_bytes(whole[:size])
        refused(cut, ValidationError, "is not a ToonDB vector index")


def test_every_damage_is_found(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    with saved.open("rb") as file:
        reader = SectionReader(file, "it")
    assert sorted(reader._sections) == ["aside", "dead", "graph", "ids", "labels", "rows", "twins"]
    places = [
        place
        for start, length, _ in reader._sections.values()
        for place in (start, start + length // 2, start + length - 1)
    ]
    damaged = saved.with_name("damaged")
    for place in [*range(8, 60), *places]:
        for bit in (0, 7):
            whole[place] ^= 1 << bit
            damaged.write_bytes(whole)
            with pytest.raises((CorruptionError, UnsupportedFeatureError)):
                VectorIndex.load(damaged)
            with pytest.raises((CorruptionError, UnsupportedFeatureError)):
                bulk_query_index(damaged, np.ones(16))
            if place >= HEADER_BYTES:
                bulk_info(damaged)
                with pytest.raises(CorruptionError, match="the checksum of its section"):
                    bulk_info(damaged, verify=True)
            whole[place] ^= 1 << bit


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"SQLite format 3\0" * 1000)
    refused(other, ValidationError, "is not a ToonDB vector index: it begins with b'SQLite f'")
    other.write_bytes(b"")
    refused(other, ValidationError, "is not a ToonDB vector index")
    later = MAGIC + struct.pack("<III", VERSION + 1, 0, 0) + bytes(HEADER_BYTES)
    other.write_bytes(later)
    refused(other, UnsupportedFeatureError, f"has version {VERSION + 1} of the format")
    refused(tmp_path / "missing", ValidationError, "there is no file")
    refused(tmp_path, ValidationError, "is not a regular file")
    refused(other / "below", ValidationError, "there is no file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", ValidationError, "is not a regular file")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    index = VectorIndex(2)
    for path, message in (
        (tmp_path, "is not a regular file"),
        (tmp_path / "no" / "such" / "folder", "there is no folder"),
        (Path("/dev/null"), "is not a regular file"),
    ):
        with pytest.raises(ValidationError, match=message):
            index.save(path)
    with pytest.raises(ValidationError, match="the path is 7"):
        index.save(7)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link_and_a_mode_a_mode(tmp_path: Path) -> None:
    index = VectorIndex(2)
    (tmp_path / "real").touch(0o640)
    (tmp_path / "link").symlink_to("real")
    index.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    assert len(VectorIndex.load(tmp_path / "real")) == 0
    umask = os.umask(0o027)
    try:
        index.save(tmp_path / "new")
    finally:
        os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()

    def child() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        index = VectorIndex.load(saved)
        index.insert("more", np.ones(16))
        try:
            index.save(saved)
        except StorageFullError as error:
            return error.message
        return "saved"

    assert in_child(child).startswith(f"Writing {saved} failed")
    assert saved.read_bytes() == before
    assert leftovers(saved.parent) == []


KILLED = """
import sys
import numpy as np
from toondb import VectorIndex

index = VectorIndex(16, "euclidean")
vectors = np.random.default_rng(0).standard_normal((1200, 16))
turn = 0
while True:
    index.insert_batch(range(1200), vectors + turn)
    index.save(sys.argv[1])
    turn += 1
    print(turn, flush=True)
"""


def test_kill_9_while_saving(tmp_path: Path) -> None:
    path = tmp_path / "index"
    vectors = np.random.default_rng(0).standard_normal((1200, 16))
    for turns in range(1, 5):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=child_environ()
        )
        assert child.stdout is not None
        last = 0
        for _ in range(turns):
            last = int(child.stdout.readline())
        child.kill()
        rest = child.stdout.read().split()
        child.stdout.close()
        child.wait()
        last = int(rest[-1]) if rest else last
        index = VectorIndex.load(path)
        assert len(index) == 1200
        # It is what was saved last, or the one that was being saved.
        found = [index.search(vectors[3] + turn, 1)[0] for turn in (last - 1, last)]
        assert (3, 0.0) in [(id, round(distance, 3)) for id, distance in found]
    VectorIndex.load(path).save(path)
    assert leftovers(tmp_path) == []


def test_the_file_of_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    from toondb.vector.atomic_file import replacing

    path = tmp_path / "index"
    stale = tmp_path / ".index.0123abcd.tmp"
    stale.touch()
    with replacing(path) as file:
        assert not stale.exists()
        VectorIndex(2).save(path)
        file.write(b"the later one wins")
    assert path.read_bytes() == b"the later one wins"
    assert leftovers(tmp_path) == []
    with pytest.raises(RuntimeError, match="stopped"):
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError("stopped")
    assert path.read_bytes() == b"the later one wins"
    assert leftovers(tmp_path) == []
