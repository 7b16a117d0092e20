"""Rows that are kept aside and put into the graph in the background, while others search and change."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from toondb.vector.hnsw import HnswIndex

DIMENSION = 24


def _rows(index: HnswIndex, count: int, seed: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return index.prepare(np.random.default_rng(seed).standard_normal((count, DIMENSION)))


def _nearest(index: HnswIndex, row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    _, labels = index.search(row.reshape(1, -1), 1, exact=True)
    return int(labels[0][0])


def test_rows_aside_are_found_and_grow_into_the_graph() -> None:
    index = HnswIndex(DIMENSION, "euclidean")
    rows = _rows(index, 6000)
    for start in range(0, 6000, 500):
        index.add(np.arange(start, start + 500), rows[start : start + 500], aside=True)
    with index.parts() as (graph, tail):
        assert (len(graph), len(tail)) == (0, 6000)
    wanted = [index.wants_growth]
    for label in range(0, 6000, 7):
        index.remove(label)
    assert all(_nearest(index, rows[label]) == label for label in range(1, 6000, 700))
    assert index.grow()
    wanted.append(index.wants_growth)
    with index.parts() as (graph, tail):
        assert (len(graph), len(tail)) == (len(index), 0)
    expected = [label for label in range(6000) if label % 7]
    assert index.labels().tolist() == expected
    assert all(_nearest(index, rows[label]) == label for label in expected[::397])
    index.add(np.arange(6000, 6003), _rows(index, 3, seed=2), aside=True)
    assert [*wanted, index.wants_growth] == [True, False, False]
    assert index.remove(6001)
    assert not index.remove(6001)
    assert len(index) == len(expected) + 2


def test_changes_while_it_grows() -> None:
    index = HnswIndex(DIMENSION, "cosine")
    rows = _rows(index, 9000)
    index.add(np.arange(4500), rows[:4500], aside=True)
    began, go_on = threading.Event(), threading.Event()

    def cancelled() -> bool:
        began.set()
        go_on.wait(60)
        return False

    grown: list[bool] = []
    thread = threading.Thread(target=lambda: grown.append(index.grow(cancelled)))
    thread.start()
    assert began.wait(60)
    assert not index.grow()  # one at a time
    index.add(np.arange(4500, 9000), rows[4500:], aside=True)
    for label in range(0, 9000, 3):
        assert index.remove(label)
    assert _nearest(index, rows[8999]) == 8999
    go_on.set()
    thread.join()
    assert grown == [True]
    expected = [label for label in range(9000) if label % 3]
    assert index.labels().tolist() == expected
    with index.parts() as (graph, tail):
        assert (len(graph), len(tail)) == (3000, 3000)
    assert all(_nearest(index, rows[label]) == label for label in expected[::291])
    assert index.grow()
    assert index.labels().tolist() == expected


def test_one_that_is_cancelled_changes_nothing() -> None:
    index = HnswIndex(DIMENSION)
    rows = _rows(index, 2000)
    index.add(np.arange(2000), rows, aside=True)
    assert not index.grow(lambda: True)
    with index.parts() as (graph, tail):
        assert (len(graph), len(tail)) == (0, 2000)
    assert index.remove(5)
    assert index.grow()
    assert len(index) == 1999


def test_a_large_tail_is_saved_and_read(tmp_path: Path) -> None:
    index = HnswIndex(DIMENSION)
    rows = _rows(index, 3000)
    index.add(np.arange(3000), rows, aside=True)
    other = HnswIndex(DIMENSION)
    with index.parts() as (_, tail):
        labels, kept = tail.living()
    other.keep(labels, kept)
    assert other.labels().tolist() == index.labels().tolist()
    assert _nearest(other, rows[77]) == 77
