"""What a hostile reading of the index files and of bulk found."""

from __future__ import annotations

import os
import stat
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vector.data import sample
from tests.vector.test_bulk import run
from toondb import VectorIndex
from toondb.bulk import bulk_build_index, bulk_query_index, recall
from toondb.errors import ConfigurationError, DimensionMismatchError, ValidationError
from toondb.vector.atomic_file import replacing

HUGE = 10**5000
"""Python refuses to write it in decimal."""


def test_ids_of_any_size_in_errors_too(tmp_path: Path) -> None:
    index = VectorIndex(2)
    index.insert(HUGE, [1, 0])
    index.save(tmp_path / "index")
    assert VectorIndex.load(os.fsencode(tmp_path / "index")).search([1, 0], 1)[0][0] == HUGE  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="an integer of 16610 bits is there twice"):
        index.insert_batch([HUGE, HUGE], [[1, 0], [0, 1]])
    with pytest.raises(DimensionMismatchError, match="the vector of an integer of 16610 bits"):
        index.insert(HUGE, [1])
    with pytest.raises(ConfigurationError, match="dimension is an integer of 16610 bits"):
        VectorIndex(HUGE)
    with pytest.raises(ConfigurationError) as told:
        VectorIndex(2, "x" * 100_000)
    assert len(str(told.value)) < 200


def header(shape: Any, data: bytes, *, text: str | None = None) -> bytes:
    said = text if text is not None else repr({"descr": "<f4", "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        header((-2, -3), bytes(24)),
        header((-1, -3), bytes(12)),
        header((10**30, 0), b""),
        header((True, 2), bytes(8)),
        header((), b"", text="(" * 8000),
        header((), b"", text="{" * 16),
        header((), b"", text="{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)"),
        header((), b"", text="[]"),
        header((), b"", text=" " * 64),
    ],
)
def test_a_header_that_lies(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValidationError, match=r"is not a whole \.npy file"):
        bulk_build_index(tmp_path / "x.npy", tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("name", ["x.bin", "x.raw", "x.fvecs"])
def test_a_numpy_file_by_another_name(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "x.npy", sample(50))
    (tmp_path / "x.npy").rename(tmp_path / name)
    with pytest.raises(ValidationError, match=r"is a \.npy file"):
        bulk_build_index(tmp_path / name, tmp_path / "index", dimension=32)
    assert bulk_build_index(tmp_path / name, tmp_path / "index", dimension=32, format="npy").vectors == 50


def test_ids_below_and_above_the_half(tmp_path: Path) -> None:
    vectors = sample(3)
    bulk_build_index(vectors, tmp_path / "index", ids=[1, (1 << 64) - 1, 1 << 63])
    assert [bulk_query_index(tmp_path / "index", one, 1)[0].id for one in vectors] == [1, (1 << 64) - 1, 1 << 63]
    for wrong in ([1, 1 << 64, 2], [1, -1, 1 << 63], [1.0, 2.0, 3.0], [1, [2], 3]):
        with pytest.raises(ValidationError):
            bulk_build_index(vectors, tmp_path / "other", ids=wrong)


@pytest.mark.parametrize("wrong", ["18446744073709551616", "x", "1.0", "-9223372036854775809", "\u0663"])
def test_a_wrong_line_of_ids_is_named(tmp_path: Path, wrong: str) -> None:
    np.save(tmp_path / "x.npy", sample(2))
    (tmp_path / "ids.txt").write_text(f"7\n{wrong}\n", encoding="utf-8")
    status, printed, complained = run("build-index", "-i", "x.npy", "-o", "index", "--ids", "ids.txt", folder=tmp_path)
    assert (status, printed) == (1, "")
    assert "ids.txt has" in complained
    assert "from 0 to 2^64 - 1" in complained
    assert wrong in complained


@pytest.mark.parametrize("k", [0, -1, True, 1.5])
def test_recall_at_nothing(k: Any) -> None:
    with pytest.raises(ValidationError, match="k is"):
        recall(np.ones((1, 3), np.int64), np.ones((1, 3), np.int64), k)


def test_a_build_goes_in_small_steps(tmp_path: Path) -> None:
    """Between two of them Ctrl-C is heard and the bar moves: the whole input may be one part of the file."""
    told: list[tuple[int, int]] = []

    def build(progress: Any) -> None:
        bulk_build_index(sample(9000, 8), tmp_path / "index", m=2, ef_construction=2000, progress=progress)

    build(lambda done, of: told.append((done, of)))
    assert told == [(4096, 9000), (8192, 9000), (9000, 9000)]

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    before = (tmp_path / "index").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build(stop)
    assert (tmp_path / "index").read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["index"]


def test_where_the_answer_cannot_go_is_told_before_the_search(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample(20))
    bulk_build_index(tmp_path / "x.npy", tmp_path / "index")
    (tmp_path / "folder").mkdir()
    # The query is wrong, too: what is told first was looked at first.
    for output, words in {"folder": "not a regular file", "none/x.npy": "there is no folder"}.items():
        status, printed, complained = run("query", "-i", "index", "-q", "none.npy", "-o", output, folder=tmp_path)
        assert (status, printed) == (1, "")
        assert words in complained


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    """None takes the file of another, which is not locked yet, for a leftover."""
    path = tmp_path / "file"
    failed: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(150):
                with replacing(path) as file:
                    file.write(content)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(bytes([at]) * 1000,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    content = path.read_bytes()
    assert len(content) == 1000
    assert len(set(content)) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".index.notes.tmp", ".index.backup-2026.tmp", ".index.other.0123abcd.tmp")]
    for one in mine:
        one.write_text("mine")
    left = tmp_path / ".index.0123abcd.tmp"
    left.write_text("a leftover")
    VectorIndex(2).save(tmp_path / "index")
    assert [one.read_text() for one in mine] == ["mine"] * 3
    assert not left.exists()


def test_permissions_of_a_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        VectorIndex(2).save(tmp_path / "index")
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o640
    (tmp_path / "index").chmod(0o600)
    VectorIndex(2).save(tmp_path / "index")
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o600


@pytest.mark.parametrize("path", ["", b""])
def test_an_empty_name_of_a_file(path: Any) -> None:
    with pytest.raises(ValidationError, match=r"the path is b?''"):
        VectorIndex(2).save(path)
