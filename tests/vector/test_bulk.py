"""Bulk: index files from arrays and files of vectors, through the functions and through the command."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import SECONDS, child_environ
from tests.support.documents import ROOT
from tests.vector.data import METRICS, nearest, recall, sample
from toondb import VectorIndex, bulk, bulk_cli
from toondb.bulk import (
    bulk_build_index,
    bulk_convert,
    bulk_info,
    bulk_query_batch,
    bulk_query_index,
)
from toondb.errors import ConfigurationError, DimensionMismatchError, ValidationError
from toondb.vector import vector_files
from toondb.vector.metrics import Floats

COMMAND = [sys.executable, "-c", "from toondb.bulk_cli import main; main()"]


def run(*args: str | Path, folder: Path) -> tuple[int, str, str]:
    """The command in this process, which saves the time to start one: its status and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["toondb-bulk", *map(str, args)])
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            with pytest.raises(SystemExit) as ended:
                bulk_cli.main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def process(*args: str, folder: Path) -> str:
    """The command as a process of its own, which must succeed; its output."""
    done = subprocess.run(
        [*COMMAND, *args], cwd=folder, env=child_environ(), capture_output=True, text=True, timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def ok(*args: str | Path, folder: Path) -> str:
    """Run a command that must succeed; its output."""
    status, out, err = run(*args, folder=folder)
    assert (status, err) == (0, "")
    return out


def fvecs(rows: Floats, kind: str = "<f4") -> bytes:
    return b"".join(struct.pack("<i", rows.shape[1]) + row.astype(kind).tobytes() for row in rows)


def write(path: Path, rows: Floats) -> Path:
    """Vectors in the format that the suffix names."""
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        path.write_bytes(fvecs(rows) if path.suffix == ".fvecs" else rows.astype("<f4").tobytes())
    return path


# As the guides show it


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    embeddings = np.random.default_rng(0).standard_normal((2000, 48)).astype(np.float32)
    stats = bulk_build_index(embeddings, output="my_index.hnsw", m=16, ef_construction=100, metric="cosine")
    print(f"Built {stats.vectors} vectors at {stats.rate:.0f} vec/s")
    assert stats.vectors == 2000
    assert stats.rate == stats.vectors / stats.seconds
    assert 0 < stats.build_seconds <= stats.seconds
    assert stats.size_bytes == (tmp_path / "my_index.hnsw").stat().st_size
    results = bulk_query_index(index="my_index.hnsw", query=embeddings[42], k=10, ef_search=64)
    print(f"Top {len(results)} nearest neighbors:")
    for i, neighbor in enumerate(results):
        print(f"{i + 1}. ID: {neighbor.id}, Distance: {neighbor.distance:.4f}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Built 2000 vectors at ")
    assert lines[1:3] == ["Top 10 nearest neighbors:", "1. ID: 42, Distance: 0.0000"]
    info = bulk_info("my_index.hnsw")
    assert (info.dimension, info.vectors, info.max_connections, info.metric) == (48, 2000, 16, "cosine")
    assert (info.ef_construction, info.tombstones, info.size_bytes) == (100, 0, stats.size_bytes)


def test_the_guides_commands(tmp_path: Path) -> None:
    vectors = sample(1500, 24)
    write(tmp_path / "embeddings.npy", vectors)
    write(tmp_path / "query_vector.raw", vectors[7])
    options = "--input embeddings.npy --output index.hnsw --dimension 24 --max-connections 16 --ef-construction 100"
    built = process("build-index", *options.split(), "--metric", "cosine", folder=tmp_path).splitlines()
    assert built[0].startswith("Built 1500 vectors at ")
    assert built[1].startswith("Index size: 0.")
    options = "--index index.hnsw --query query_vector.raw --k 10 --ef 64"
    found = process("query", *options.split(), folder=tmp_path)
    assert found.splitlines()[0] == "1. ID: 7, Distance: 0.0000"
    assert len(found.splitlines()) == 10
    shown = process("info", "--index", "index.hnsw", folder=tmp_path)
    assert shown.startswith("Dimension: 24\nVectors: 1500\nMax connections: 16\n")
    options = "--input embeddings.npy --output vectors.raw --to-format raw_f32 --dimension 24"
    process("convert", *options.split(), folder=tmp_path)
    assert (tmp_path / "vectors.raw").read_bytes() == vectors.tobytes()


# Building


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [0, 1, 500, 3000])
def test_what_is_built_is_found(tmp_path: Path, metric: str, rows: int) -> None:
    vectors, queries = sample(rows), sample(20, seed=1)
    path = tmp_path / "index"
    assert bulk_build_index(vectors, path, metric=metric).vectors == rows
    ids, distances = bulk_query_batch(path, queries, 10, 200)
    assert ids.shape == distances.shape == (20, min(10, rows))
    assert (np.diff(distances, axis=1) >= 0).all()
    if rows:
        truth = nearest(queries, vectors, metric, 10)
        assert recall(ids.tolist(), truth) >= 0.95
        exact, _ = bulk_query_batch(path, queries, 10, exact=True)
        np.testing.assert_array_equal(exact, truth)
        assert bulk.recall(ids, truth, min(10, rows)) == recall(ids.tolist(), truth)
    # A VectorIndex is the same file, and can be changed.
    index = VectorIndex.load(path)
    assert index.ids() == list(range(rows))
    index.insert("another", queries[0])
    index.save(path)
    assert ("another" in [one.id for one in bulk_query_index(path, queries[0], k=rows + 1)]) is True
    assert bulk_info(path, verify=True).vectors == rows + 1


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.fvecs", "vectors.raw", "vectors.f32", "vectors.bin"])
def test_every_format_gives_the_same_index(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read in many parts, the last of them short.
    monkeypatch.setattr(vector_files, "_rows_at_a_time", lambda dimension: 1100)
    vectors = sample(2500)
    bulk_build_index(vectors, tmp_path / "from array", threads=1)  # with more, a graph may differ from the next
    source = write(tmp_path / name, vectors)
    raw = source.suffix not in (".npy", ".fvecs")
    seen: list[tuple[int, int]] = []
    bulk_build_index(
        source,
        tmp_path / "index",
        dimension=32 if raw else None,
        threads=1,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(1100, 2500), (2200, 2500), (2500, 2500)]
    assert (tmp_path / "index").read_bytes() == (tmp_path / "from array").read_bytes()
    # The format may be named, too.
    odd = source.rename(tmp_path / "odd.suffix")
    kind = "raw_f32" if raw else source.suffix[1:]
    bulk_build_index(str(odd), tmp_path / "index 2", dimension=32, format=kind, threads=1)
    assert (tmp_path / "index 2").read_bytes() == (tmp_path / "index").read_bytes()


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".u64"])
def test_ids(tmp_path: Path, suffix: str) -> None:
    vectors = sample(300)
    ids = (np.arange(300, dtype=np.uint64) * 10**15 + 2**63)[::-1].copy()
    file = tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(file, ids)
    else:
        file.write_bytes(ids.tobytes() if suffix == ".u64" else "\n".join(map(str, ids)).encode())
    source = write(tmp_path / "v.npy", vectors)
    ok("build-index", "-i", source, "-o", "index", "--ids", file, "--threads", "1", "--quiet", folder=tmp_path)
    bulk_build_index(vectors, tmp_path / "index 2", ids=ids.tolist(), threads=1)
    assert (tmp_path / "index 2").read_bytes() == (tmp_path / "index").read_bytes()
    assert bulk_query_index(tmp_path / "index", vectors[33], k=1)[0].id == int(ids[33])
    found, _ = bulk_query_batch(tmp_path / "index", vectors[:50], k=1)
    np.testing.assert_array_equal(found[:, 0], ids[:50])
    assert VectorIndex.load(tmp_path / "index").search(vectors[33], 1)[0][0] == int(ids[33])


def test_a_changed_file_is_opened_again(tmp_path: Path) -> None:
    vectors = sample(50)
    for at in range(5):
        bulk_build_index(vectors, tmp_path / "index", ids=np.arange(50) + 1000 * at)
        assert bulk_query_index(tmp_path / "index", vectors[3], k=1)[0].id == 1000 * at + 3
        assert bulk_query_index(tmp_path / "index", vectors[4], k=1)[0].id == 1000 * at + 4
    (tmp_path / "index").unlink()
    with pytest.raises(ValidationError, match="there is no file"):
        bulk_query_index(tmp_path / "index", vectors[3])


# Bad input


def bad_files(folder: Path) -> list[tuple[Path, dict[str, Any], str]]:
    rows = sample(10, 4)
    good = write(folder / "good.npy", rows).read_bytes()

    def file(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "text.npy", np.array([["a"]]))
    np.save(folder / "line.npy", np.arange(5.0))
    np.save(folder / "cube.npy", np.zeros((2, 2, 2)))
    np.save(folder / "wide.npy", np.zeros((1, 65_537), np.float32))
    np.save(folder / "nan.npy", np.array([[1, 2], [3, np.nan]]))
    np.save(folder / "zero.npy", np.array([[1, 2], [0, 0]]))
    vecs = fvecs(rows)
    uneven = vecs[:20] + struct.pack("<i", 5) + vecs[24:]
    return [
        (folder / "missing.npy", {}, "there is no file"),
        (folder, {}, "is not a regular file"),
        (file("empty.npy", b""), {}, "is not a whole .npy file"),
        (file("raw.npy", rows.tobytes()), {}, "is not a whole .npy file: the magic string is not correct"),
        (file("cut.npy", good[:-1]), {}, "it has 159 bytes of data, and 160 are announced"),
        (file("long.npy", good + b"\0"), {}, "it has 161 bytes of data"),
        (file("head.npy", good[:40]), {}, "is not a whole .npy file"),
        (file("version.npy", good[:6] + b"\x09" + good[7:]), {}, "is not a whole .npy file"),
        (folder / "objects.npy", {}, "has values of the type object"),
        (folder / "text.npy", {}, "has values of the type <U1"),
        (folder / "line.npy", {}, "the shape is (5,)"),
        (folder / "cube.npy", {}, "the shape is (2, 2, 2)"),
        (folder / "wide.npy", {}, "the vectors have 65,537 dimensions"),
        (folder / "nan.npy", {}, "row 1 has nan at place 1"),
        (folder / "zero.npy", {}, "row 1 has length 0"),
        (folder / "good.npy", {"dimension": 5}, "the vectors have 4 dimensions where 5 are expected"),
        (folder / "good.npy", {"dimension": 0}, "dimension is 0"),
        (folder / "good.npy", {"format": "csv"}, "the format is 'csv'. Choose one of npy, fvecs, raw_f32"),
        (folder / "good.npy", {"format": "fvecs"}, "is a .npy file, not fvecs"),
        (file("text.fvecs", b"some text that is long"), {}, "the first vector announces 1,701,670,771 numbers"),
        (file("good.parquet", good[1:]), {}, "the suffix of"),
        (file("a.raw", rows.tobytes()), {}, "is a raw file, which does not say how many numbers"),
        (folder / "a.raw", {"dimension": 3}, "has 160 bytes, no multiple of the 12 of a vector of 3 float32"),
        (file("cut.fvecs", vecs[:-1]), {}, "199 bytes are no multiple of the 20 of a vector of 4 numbers"),
        (file("short.fvecs", vecs[:3]), {}, "it has 3 bytes"),
        (file("uneven.fvecs", uneven), {}, "vector 1 announces 5 numbers, the first 4"),
        (folder / "good.npy", {"metric": "l1"}, "metric is 'l1'"),
        (folder / "good.npy", {"m": 0}, "m is 0"),
        (folder / "good.npy", {"ef_construction": 0}, "ef_construction is 0"),
        (folder / "good.npy", {"threads": -1}, "threads is -1"),
        (folder / "good.npy", {"ids": [1, 2]}, "there are 2 ids and 10 vectors"),
        (folder / "good.npy", {"ids": [1] * 10}, "the id 1 is there twice"),
        (folder / "good.npy", {"ids": range(-1, 9)}, "the id -1 is below 0"),
        (folder / "good.npy", {"ids": [0.5] * 10}, "the ids are an array of float64"),
        (folder / "good.npy", {"ids": ["a"] * 10}, "the ids are an array of <U1"),
        (folder / "good.npy", {"ids": [2**64, *range(9)]}, "the ids are an array of object"),
        (folder / "good.npy", {"ids": folder / "nan.npy"}, "has numbers of type float64"),
        (folder / "good.npy", {"ids": file("ids.txt", b"1\ntwo\n")}, "ids.txt has 'two'"),
        (folder / "good.npy", {"ids": file("ids.csv", b"1")}, "does not tell what it is"),
        (folder / "good.npy", {"ids": file("ids.u64", b"1")}, "has 1 bytes, no multiple of 8"),
    ]


def test_bad_input_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out" / "index"
    output.parent.mkdir()
    output.write_text("as before")
    for source, options, message in bad_files(tmp_path):
        with pytest.raises((ValidationError, ConfigurationError)) as caught:
            bulk_build_index(source, output, **options)
        assert message in str(caught.value), source
        assert caught.value.remediation, message
        assert output.read_text() == "as before"
        assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(5), "the shape is (5,)"),
        ([[1, 2], [3]], "rows of equal length"),
        ([["a", "b"]], "the type of the numbers is <U1"),
        (None, "the type of the numbers is object"),
    ],
)
def test_arrays_that_are_no_vectors(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        bulk_build_index(source, tmp_path / "index")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_queries_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "index"
    bulk_build_index(sample(100), path)
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: bulk_query_index(path, sample(2)), "there are 2 queries"),
        (lambda: bulk_query_index(path, np.zeros(32)), "has length 0"),
        (lambda: bulk_query_index(path, np.full(32, np.nan)), "has nan at place 0"),
        (lambda: bulk_query_index(path, np.ones(32), k=0), "k is 0"),
        (lambda: bulk_query_index(path, np.ones(32), ef_search=-1), "ef_search is -1"),
        (lambda: bulk_query_index(path, write(tmp_path / "q.raw", sample(1)[:, :31])), "no multiple of the 128"),
        (lambda: bulk.recall(np.zeros((2, 3)), np.zeros((2, 3)), 3), "the truth is a matrix of float64"),
        (lambda: bulk.recall(np.zeros((2, 3)), np.zeros((2, 2), int), 3), "shape (2, 3) or wider"),
        (lambda: bulk.recall(np.zeros((2, 3)), np.zeros((1, 3), int), 3), "For 2 queries"),
    ]
    for attempt, message in attempts:
        with pytest.raises(ValidationError) as caught:
            attempt()
        assert message in str(caught.value)
    with pytest.raises(DimensionMismatchError) as mismatch:
        bulk_query_index(path, np.ones(31))
    assert (mismatch.value.expected, mismatch.value.actual) == (32, 31)
    # A file of one vector, in any form.
    for query in (write(tmp_path / "q.npy", sample(1)), write(tmp_path / "q.fvecs", sample(1)), sample(1)):
        assert bulk_query_index(path, query, k=1)[0].id == 0


# Converting


@pytest.mark.parametrize("to", ["npy", "fvecs", "raw_f32"])
@pytest.mark.parametrize("name", ["v.npy", "v.fvecs", "v.raw"])
def test_convert(tmp_path: Path, name: str, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_files, "_rows_at_a_time", lambda dimension: 40)
    vectors = sample(100)
    source = write(tmp_path / name, vectors)
    output = tmp_path / {"npy": "o.npy", "fvecs": "o.fvecs", "raw_f32": "o.raw"}[to]
    stats = bulk_convert(source, output, to, dimension=32)
    assert (stats.vectors, stats.dimension, stats.size_bytes) == (100, 32, output.stat().st_size)
    if to == "npy":
        np.testing.assert_array_equal(np.load(output), vectors)
    else:
        assert output.read_bytes() == (fvecs(vectors) if to == "fvecs" else vectors.tobytes())


def test_convert_rounds_and_reads_columns(tmp_path: Path) -> None:
    rows = np.asfortranarray(np.arange(12, dtype=">f8").reshape(4, 3) / 3)
    np.save(tmp_path / "v.npy", rows)
    bulk_convert(tmp_path / "v.npy", tmp_path / "v.raw", "raw_f32")
    assert (tmp_path / "v.raw").read_bytes() == rows.astype("<f4").tobytes()
    with pytest.raises(ConfigurationError, match="the format is 'csv'"):
        bulk_convert(tmp_path / "v.npy", tmp_path / "v.csv", "csv")
    assert not (tmp_path / "v.csv").exists()
    # Into itself: the source is read to its end before it is replaced.
    bulk_convert(tmp_path / "v.npy", tmp_path / "v.npy", "npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), rows.astype("<f4"))


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With v.npy, q.npy, truth.npy and an index of the first."""
    vectors, queries = sample(2000), sample(30, seed=1)
    write(tmp_path / "v.npy", vectors)
    write(tmp_path / "q.npy", queries)
    np.save(tmp_path / "truth.npy", nearest(queries, vectors, "cosine", 20))
    bulk_build_index(vectors, tmp_path / "index")
    return tmp_path


def test_query_of_many(folder: Path) -> None:
    ids, distances = bulk_query_batch(folder / "index", folder / "q.npy", 3)
    lines = ok("query", "--index", "index", "--query", "q.npy", "-k", "3", folder=folder).splitlines()
    assert lines[4] == "Query 1:"
    assert lines[5] == f"1. ID: {ids[1, 0]}, Distance: {distances[1, 0]:.4f}"
    quiet = ok("query", "--index", "index", "--query", "q.npy", "-k", "3", "--quiet", folder=folder)
    parts = [line.split("\t") for line in quiet.splitlines()]
    assert [int(one[1]) for one in parts] == ids.ravel().tolist()
    assert parts[3][0] == "1"
    shown = json.loads(ok("query", "--index", "index", "--query", "q.npy", "-k", "3", "--json", folder=folder))
    assert shown["queries"] == 30
    assert [[one["id"] for one in row] for row in shown["results"]] == ids.tolist()


def test_query_measures_recall(folder: Path) -> None:
    arguments = ["query", "--index", "index", "--query", "q.npy", "--truth", "truth.npy", "--threads", "1"]
    lines = ok(*arguments, folder=folder).splitlines()
    assert lines[0] == "Queries: 30"
    assert float(lines[1].removeprefix("recall@10: ")) >= 0.9
    assert lines[2].startswith("Rate: ")
    assert lines[2].endswith(" queries/s")
    shown = json.loads(ok(*arguments, "--exact", "--json", folder=folder))
    assert shown["recall"] == 1.0
    assert shown["rate"] > 0
    # Truth that the command itself made, and truth in the format of the corpora.
    ok("query", "--index", "index", "--query", "q.npy", "--exact", "--output", "own.npy", folder=folder)
    np.testing.assert_array_equal(np.load(folder / "own.npy"), np.load(folder / "truth.npy")[:, :10])
    (folder / "truth.ivecs").write_bytes(fvecs(np.load(folder / "truth.npy"), "<i4"))
    for truth in ("own.npy", "truth.ivecs"):
        found = ok(
            "query", "--index", "index", "--query", "q.npy", "--truth", truth, "--exact", "--quiet", folder=folder
        )
        assert found == "recall@10: 1.0000\n"


def test_json_of_the_others(folder: Path) -> None:
    built = json.loads(ok("build-index", "-i", "v.npy", "-o", "new", "--threads", "1", "--json", folder=folder))
    assert built["vectors"] == 2000
    assert built["size_bytes"] == (folder / "new").stat().st_size
    info = json.loads(ok("info", "-i", "new", "--verify", "--json", folder=folder))
    assert (info["dimension"], info["vectors"], info["max_connections"]) == (32, 2000, 16)
    converted = json.loads(ok("convert", "-i", "v.npy", "-o", "v.fvecs", "--json", folder=folder))
    assert converted["vectors"] == 2000
    assert ok("convert", "-i", "v.npy", "-o", "v.raw", "--quiet", folder=folder) == ""


def test_mistakes_end_in_one_clear_line(folder: Path) -> None:
    (folder / "text").write_text("hello")
    for arguments, status, message in (
        (["query", "--index", "text", "--query", "q.npy"], 1, "Error: text is not a ToonDB vector index"),
        (["query", "--index", "none", "--query", "q.npy"], 1, "Error: the index: there is no file none"),
        (["query", "--index", "index", "--query", "none.npy"], 1, "there is no file none.npy"),
        (["query", "--index", "index", "--query", "q.npy", "--k", "0"], 1, "Error: k is 0"),
        (["query", "--index", "index", "--query", "q.npy", "--truth", "text"], 1, "does not tell what it is"),
        (["info", "--index", "v.npy"], 1, "Error: v.npy is not a ToonDB vector index"),
        (["build-index", "-i", "v.npy", "-o", "no/such/folder"], 1, "there is no folder"),
        (["build-index", "-i", "v.npy", "-o", "new", "-d", "31"], 1, "the vectors have 32 dimensions"),
        (["build-index", "-i", "v.npy", "-o", "new", "--m", "1"], 1, "Error: m is 1"),
        (["build-index", "-i", "v.npy", "-o", "new", "--metric", "l1"], 2, "'l1' is not one of"),
        (["convert", "-i", "v.npy", "-o", "new.csv"], 1, "the suffix of new.csv does not tell its format"),
        (["build-index", "-i", "v.npy"], 2, "Missing option '--output'"),
    ):
        ended, out, err = run(*arguments, folder=folder)
        assert (ended, out) == (status, ""), err
        assert message in err
        assert "Traceback" not in err
    assert not (folder / "new").exists()


def test_a_bar_on_a_terminal_only(folder: Path) -> None:
    outer, inner = pty.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, "build-index", "-i", "v.npy", "-o", "new"],
            cwd=folder,
            env=child_environ(),
            stdout=subprocess.PIPE,
            stderr=inner,
            timeout=SECONDS,
            check=True,
        )
        os.close(inner)
        shown = b""
        try:
            while part := os.read(outer, 4096):
                shown += part
        except OSError:
            pass  # the end of a terminal
    finally:
        os.close(outer)
    assert b"Building" in shown
    assert b"100%" in shown
    assert done.stdout.startswith(b"Built 2000 vectors at ")


def test_ctrl_c_leaves_nothing(folder: Path) -> None:
    write(folder / "large.npy", sample(60_000, 64))
    code = """
import os, signal, threading
from toondb import bulk, bulk_cli
from toondb.vector import vector_files

vector_files._rows_at_a_time = lambda dimension: 2000
build = bulk.bulk_build_index

def interrupted(*args, progress, **options):
    # After the first part, as a person would.
    return build(*args, progress=lambda done, of: os.kill(os.getpid(), signal.SIGINT), **options)

bulk.bulk_build_index = interrupted
bulk_cli.main()
"""
    before = sorted(folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", code, "build-index", "-i", "large.npy", "-o", "new"],
        cwd=folder,
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")
    assert sorted(folder.iterdir()) == before


def test_help_is_quick_to_load() -> None:
    code = "import sys; from toondb import bulk_cli; print(*{'numpy', 'faiss', 'lmdb'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.split() == []


# The document


def test_every_option_and_method_is_documented() -> None:
    text = (ROOT / "docs" / "vectors.md").read_text(encoding="utf-8")
    for name, command in bulk_cli.cli.commands.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        documented = re.findall(r"`--([\w-]+)`", line)
        assert documented == [option.opts[0].removeprefix("--") for option in command.params if option.opts]
    for method in [name for name in vars(VectorIndex) if not name.startswith("_")]:
        assert f"`{method}" in text, method
    for function in bulk.__all__:
        if function[0].islower():
            assert f"`{function}(" in text, function
    for kind in (bulk.BuildStats, bulk.IndexInfo, bulk.ConvertStats):
        for attribute in [name for name in dir(kind) if not name.startswith("_")]:
            assert f"`.{attribute}`" in text, attribute
