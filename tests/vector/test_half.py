"""An index in half precision: its candidates hold the true nearest, whatever is done to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.vector.data import nearest, recall, sample
from toondb.vector.hnsw import HnswIndex
from toondb.vector.hnsw_file import read_index, write_index
from toondb.vector.huge_pages import use_huge_pages
from toondb.vector.metrics import Floats
from toondb.vector.sections import SectionReader, SectionWriter
from toondb_protocol.errors import CorruptionError

ROWS = 6000
DIMENSION = 32


def built(rows: Floats) -> HnswIndex:
    index = HnswIndex(rows.shape[1], "cosine", half=True)
    index.add(np.arange(len(rows)), index.prepare(rows))
    return index


def close_together(rows: int, spread: float, seed: int = 0) -> Floats:
    """Vectors around one direction; the smaller the spread, the less half precision tells them apart."""
    random = np.random.default_rng(seed)
    centre = random.standard_normal(DIMENSION)
    return (centre + spread * random.standard_normal((rows, DIMENSION))).astype(np.float32)


def exact(queries: Floats, rows: Floats, k: int) -> list[set[int]]:
    wide, asked = rows.astype(np.float64), queries.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    order = np.argsort(-(asked @ wide.T), axis=1, kind="stable")
    return [set(row[:k].tolist()) for row in order]


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01, 0.001, 0.0001])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_a_scan_finds_all_of_the_true_nearest(spread: float, k: int) -> None:
    vectors = close_together(2000, spread)
    index = built(vectors)
    queries = close_together(20, spread, seed=1)
    rows = index.prepare(queries)
    allowed = np.arange(0, 2000, 3)
    for at, truth in enumerate(exact(queries, vectors, k)):
        one = rows[at : at + 1]
        _, found = index.search(one, k, 64, exact=True)
        assert truth <= set(found[0].tolist())
        assert len(set(found[0].tolist())) == found.shape[1] >= k
    for at, truth in enumerate(exact(queries, vectors[allowed], k)):
        one = rows[at : at + 1]
        for given in (allowed, allowed[:400]):
            _, found = index.search(one, k, 64, allowed=given)
            assert np.isin(found, given).all()
        _, found = index.search(one, k, 64, allowed=allowed, exact=True)
        assert {int(allowed[row]) for row in truth} <= set(found[0].tolist())


def test_distances_are_within_what_rounding_makes_of_them() -> None:
    vectors = sample(ROWS)
    index = built(vectors)
    queries = sample(50, seed=1)
    rows, stored = index.prepare(queries), index.prepare(vectors).astype(np.float64)
    distances, found = index.search(rows, 10, 64)
    true = 1 - np.einsum("ij,ikj->ik", rows.astype(np.float64), stored[found])
    with index.parts() as (graph, _):
        low, high = graph.how_near(distances)
    assert (low <= true + 1e-6).all()
    assert (true <= high + 1e-6).all()
    assert (high - low).max() < 0.01


def test_recall_is_that_of_single_precision() -> None:
    vectors, queries = sample(ROWS), sample(100, seed=1)
    half, single = built(vectors), HnswIndex(DIMENSION, "cosine")
    single.add(np.arange(ROWS), single.prepare(vectors))
    rows = half.prepare(queries)
    truth = nearest(queries, vectors, "cosine", 10)
    ranked = []
    for at in range(len(rows)):
        labels = half.candidates(rows[at : at + 1], 10, 64)
        order = np.argsort(1 - half.prepare(vectors[labels]) @ rows[at], kind="stable")
        ranked.append([labels[place] for place in order[:10]])
    _, others = single.search(rows, 10, 64)
    assert recall(ranked, truth) >= recall(others.tolist(), truth) - 0.01


def test_candidates_are_those_of_a_search() -> None:
    vectors = sample(ROWS)
    index = built(vectors)
    rows = index.prepare(sample(30, seed=1))

    def check() -> None:
        for at in range(len(rows)):
            one = rows[at : at + 1]
            _, found = index.search(one, 10, 64)
            assert set(index.candidates(one, 10, 64)) == set(found[0].tolist())

    check()
    # Rows aside, tombstones, twins, a filter: the general case.
    index.add(np.arange(ROWS, ROWS + 5), index.prepare(sample(5, seed=3)), aside=True)
    check()
    index.flush()
    for label in range(0, ROWS, 7):
        index.remove(label)
    check()
    index.add(np.arange(ROWS + 5, ROWS + 8), index.prepare(vectors[1:4]), aside=True)
    index.flush()
    check()
    allowed = np.arange(1, 300)
    assert set(index.candidates(rows[:1], 10, 64, allowed)) <= set(allowed.tolist())


def test_what_is_equal_when_rounded_is_one_node_and_all_are_found() -> None:
    vectors = sample(3000)
    again = np.concatenate([vectors, vectors[:100] * np.float32(3), vectors[:100]])
    index = built(again)
    with index.parts() as (graph, _):
        assert graph.nodes < len(again) - 100
    rows = index.prepare(vectors[:100])
    for at in range(100):
        found = set(index.candidates(rows[at : at + 1], 3, 64))
        assert {at, 3000 + at, 3100 + at} <= found
    assert len(index) == 3200
    index.remove(0)
    index.remove(3000)
    assert 3100 in index.candidates(rows[:1], 1, 64)
    assert not {0, 3000} & set(index.candidates(rows[:1], 1, 64))


def test_it_is_saved_rebuilt_and_grows(tmp_path: Path) -> None:
    vectors = sample(ROWS)
    index = built(vectors[:5000])
    rows = index.prepare(sample(30, seed=1))

    def found(of: HnswIndex) -> list[list[int]]:
        return [of.candidates(rows[at : at + 1], 10, 64) for at in range(len(rows))]

    index.add(np.arange(5000, ROWS), index.prepare(vectors[5000:]), aside=True)
    assert index.grow()
    truth = exact(sample(30, seed=1), vectors, 10)
    assert np.mean([len(true & set(near)) for true, near in zip(truth, found(index), strict=True)]) >= 9.5
    path = tmp_path / "index"
    with path.open("wb+") as file:
        write_index(SectionWriter(file), index)
    with path.open("rb") as saved:
        reader = SectionReader(saved, "the index")
    reader.verify()
    restored = read_index(reader)
    assert restored.half
    assert found(restored) == found(index)
    # Rebuilt of rounded rows it is the same again.
    for label in range(0, ROWS, 2):
        restored.remove(label)
    assert restored.rebuild()
    assert restored.tombstones == 0
    left = exact(sample(30, seed=1), vectors[1::2], 10)
    near = [{label // 2 for label in labels if label % 2} for labels in found(restored)]
    assert np.mean([len(true & of) for true, of in zip(left, near, strict=True)]) >= 9.5


def test_a_file_of_the_other_precision_is_refused(tmp_path: Path) -> None:
    for half in (False, True):
        index = HnswIndex(DIMENSION, "cosine", half=half)
        index.add(np.arange(2000), index.prepare(sample(2000)))
        index.half = not half  # so its header lies
        path = tmp_path / "index"
        with path.open("wb+") as file:
            write_index(SectionWriter(file), index)
        with path.open("rb") as saved:
            reader = SectionReader(saved, "the index")
        with pytest.raises(CorruptionError):
            read_index(reader)


def test_vectors_of_any_length_and_tiny_numbers() -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((2000, DIMENSION)).astype(np.float32)
    vectors[:, 5:] *= np.float32(1e-9)  # lost in half precision
    vectors *= random.choice(np.array([1e-15, 1.0, 1e15], np.float32), (2000, 1))
    index = built(vectors)
    queries = random.standard_normal((20, DIMENSION)).astype(np.float32)
    rows = index.prepare(queries)
    for at, truth in enumerate(exact(queries, vectors, 10)):
        _, found = index.search(rows[at : at + 1], 10, 64, exact=True)
        assert truth <= set(found[0].tolist())


def test_large_pages_change_nothing() -> None:
    memory = np.arange(6 << 20, dtype=np.uint8)
    copy = memory.copy()
    use_huge_pages(memory.ctypes.data, memory.nbytes)
    assert (memory == copy).all()
    assert not use_huge_pages(memory.ctypes.data, 4096)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_filter_that_is_remembered_follows_every_change(half: bool, share: float) -> None:
    vectors = sample(ROWS)
    index = HnswIndex(DIMENSION, "cosine", half=half)
    index.add(np.arange(ROWS), index.prepare(vectors))
    random = np.random.default_rng(3)
    allowed = np.sort(random.choice(2 * ROWS, int(share * 2 * ROWS), replace=False))
    allowed.flags.writeable = False  # else nothing is remembered
    rows = index.prepare(sample(20, seed=1))
    living = set(range(ROWS))
    for step in range(6):
        for at in range(len(rows)):
            found = index.search(rows[at : at + 1], 10, 64, allowed=allowed)[1][0].tolist()
            again = index.search(rows[at : at + 1], 10, 64, allowed=allowed.copy())[1][0].tolist()
            assert found == again
            assert set(found) <= living & set(allowed.tolist())
            assert len(found) >= 10
        gone = found[:5]
        for label in gone:
            assert index.remove(label)
        living -= set(gone)
        # Some of the new labels are allowed: nearer than all that was there.
        new = [int(label) for label in allowed if label >= ROWS + 100 * step][:5]
        index.add(np.array(new), rows[: len(new)], aside=step % 2 == 0)
        index.flush()
        living |= set(new)
        for at, label in enumerate(new):
            assert label in index.search(rows[at : at + 1], 10, 64, allowed=allowed)[1][0]
