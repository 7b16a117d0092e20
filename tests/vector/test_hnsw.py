"""The index by label: filters, removal, rebuilding, and the parts below it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.vector.data import METRICS, nearest, recall, sample
from toondb.errors import InternalError
from toondb.vector.graph import by_distance
from toondb.vector.hnsw import CHUNK_ROWS, HnswIndex
from toondb.vector.metrics import Floats, Labels
from toondb.vector.row_table import RowTable, row_hashes
from toondb.vector.shared_lock import SharedLock

ROWS = 6000


def built(metric: str = "euclidean", rows: int = ROWS) -> tuple[HnswIndex, Floats]:
    vectors = sample(rows)
    index = HnswIndex(32, metric)
    index.add(np.arange(rows), index.prepare(vectors))
    return index, vectors


# Filters


@pytest.mark.parametrize("metric", METRICS)
def test_filters_of_every_selectivity(metric: str) -> None:
    index, vectors = built(metric)
    queries = sample(40, seed=1)
    rows = index.prepare(queries)
    choice = np.random.default_rng(2)
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.9):
        allowed = choice.choice(ROWS, int(ROWS * share), replace=False)
        _, found = index.search(rows, 10, 64, allowed=allowed)
        assert found.shape == (40, min(10, len(allowed)))
        assert np.isin(found, allowed).all()
        truth = np.sort(allowed)[nearest(queries, vectors[np.sort(allowed)], metric, 10)]
        assert recall(found.tolist(), truth) >= 0.95, share


def test_a_filter_that_lets_only_the_farthest_through() -> None:
    # The graph search ends near the query, where nothing is allowed: the results come from a scan.
    vectors = np.concatenate([sample(4000), sample(2500, seed=1) + 1000]).astype(np.float32)
    index = HnswIndex(32, "euclidean")
    index.add(np.arange(6500), index.prepare(vectors))
    far = np.arange(4000, 6500)
    _, found = index.search(index.prepare(vectors[:3]), 10, 10, allowed=far)
    assert found.shape == (3, 10)
    np.testing.assert_array_equal(found, 4000 + nearest(vectors[:3], vectors[4000:], "euclidean", 10))


def test_a_filter_may_name_labels_that_are_not_there() -> None:
    index, vectors = built()
    query = index.prepare(vectors[:1])
    index.remove(0)
    _, found = index.search(query, 10, allowed=np.array([5, 0, -3, 10**15, 5, 4000]))
    assert sorted(found[0].tolist()) == [5, 4000]
    distances, found = index.search(query, 10, allowed=np.array([0, 10**15]))
    assert found.shape == distances.shape == (1, 0)
    assert index.search(query, 10, allowed=np.empty(0, np.int64))[1].shape == (1, 0)


@pytest.mark.parametrize("ascending", [True, False])
def test_labels_in_any_order(ascending: bool) -> None:
    vectors = sample(3000)
    labels = np.arange(3000) * 7 - 9000
    if not ascending:
        labels = labels[::-1].copy()
    index = HnswIndex(32, "euclidean")
    for start in range(0, 3000, 1500):
        index.add(labels[start : start + 1500], index.prepare(vectors[start : start + 1500]))
    query = index.prepare(vectors[17:18])
    assert index.search(query, 1)[1][0, 0] == labels[17]
    assert labels[17] in index
    allowed = labels[[3, 17, 2000]]
    assert sorted(index.search(query, 5, allowed=allowed)[1][0].tolist()) == sorted(allowed.tolist())
    assert index.remove(int(labels[17]))
    assert not index.remove(int(labels[17]))
    assert labels[17] not in index
    assert index.rebuild()
    np.testing.assert_array_equal(index.labels(), np.sort(np.delete(labels, 17)))


def test_filters_of_equal_vectors() -> None:
    index = HnswIndex(4, "euclidean")
    rows = np.repeat(sample(10, 4), 300, axis=0)
    index.add(np.arange(3000), index.prepare(rows))
    assert index._graph.nodes == 10
    assert index.remove(0)
    assert index.remove(5)
    query = index.prepare(rows[:1])
    assert index.search(query, 1000)[1].shape == (1, 1000)
    assert sorted(index.search(query, 298)[1][0].tolist()) == sorted({*range(300)} - {0, 5})
    allowed = np.array([0, 5, 7, 299, 2000, 2001])
    distances, found = index.search(query, 10, allowed=allowed)
    assert found[0].tolist()[:2] == [7, 299]
    assert sorted(found[0].tolist()) == [7, 299, 2000, 2001]
    assert (np.diff(distances[0]) >= 0).all()


# Removing and rebuilding


def test_removed_ones_are_in_no_result_and_their_room_comes_back() -> None:
    index, vectors = built()
    gone = np.arange(0, ROWS, 2)
    for label in gone.tolist():
        assert index.remove(label)
    assert index.tombstones == len(gone)
    assert index.wants_rebuild
    assert not index.needs_rebuild
    queries = sample(40, seed=1)
    truth = 1 + 2 * nearest(queries, vectors[1::2], "euclidean", 10)

    def found() -> Labels:
        return index.search(index.prepare(queries), 10)[1]

    assert recall(found().tolist(), truth) >= 0.95
    assert index.rebuild()
    assert (index.tombstones, index._graph.nodes, len(index)) == (0, ROWS // 2, ROWS // 2)
    assert recall(found().tolist(), truth) >= 0.95


def test_almost_all_removed() -> None:
    index, vectors = built()
    for label in range(ROWS - 3):
        index.remove(label)
    assert index.needs_rebuild
    _, found = index.search(index.prepare(vectors[:2]), 10)
    assert np.sort(found, axis=1).tolist() == [[ROWS - 3, ROWS - 2, ROWS - 1]] * 2
    index.remove(ROWS - 1)
    index.remove(ROWS - 2)
    index.remove(ROWS - 3)
    assert index.search(index.prepare(vectors[:2]), 10)[1].shape == (2, 0)
    assert index.rebuild()
    assert index._graph.nodes == 0


def test_changes_during_a_rebuild_are_kept() -> None:
    index, vectors = built()
    steps: list[int] = []

    def change() -> bool:
        """Asked between the parts of the rebuild: the moment for others to come in between."""
        steps.append(len(steps))
        if len(steps) == 2:
            for label in range(1000):
                index.remove(label)  # some are copied already
            fresh = sample(CHUNK_ROWS + 2000, seed=5)
            index.add(np.arange(ROWS, ROWS + len(fresh)), index.prepare(fresh))
            index.add(np.array([10**6]), index.prepare(vectors[:1]))  # what a removed one was
            assert not index.rebuild()  # one at a time
        return False

    assert index.rebuild(change)
    assert len(steps) >= 4
    labels = [*range(1000, ROWS), *range(ROWS, ROWS + CHUNK_ROWS + 2000), 10**6]
    assert index.labels().tolist() == labels
    assert index.search(index.prepare(vectors[:1]), 1)[1].tolist() == [[10**6]]
    assert index.search(index.prepare(vectors[2000:2001]), 1)[1].tolist() == [[2000]]
    assert index.tombstones == 1000  # they were copied already


def test_a_cancelled_rebuild_changes_nothing() -> None:
    index, _ = built()
    index.remove(0)
    assert not index.rebuild(lambda: True)
    assert (index.tombstones, len(index)) == (1, ROWS - 1)


def test_exact_search() -> None:
    index, vectors = built()
    queries = sample(20, seed=1)
    found = index.search(index.prepare(queries), 10, 10, exact=True)[1]
    np.testing.assert_array_equal(found, nearest(queries, vectors, "euclidean", 10))


# Parts


def test_results_are_merged_by_distance_then_label() -> None:
    one = (np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]]))
    other = (np.array([[1, 2.5]], np.float32), np.array([[5, 6]]))
    distances, labels = by_distance([one, other], 4)
    assert labels.tolist() == [[5, 10, 20, 6]]
    assert distances.tolist() == [[1, 1, 2, 2.5]]


def test_the_row_table_finds_what_was_added() -> None:
    table = RowTable()
    rows = sample(5000, 7)
    hashes = row_hashes(rows)
    assert len(np.unique(hashes)) == 5000
    np.testing.assert_array_equal(row_hashes(rows[100:200]), hashes[100:200])
    at = 0
    for size in (1, 3, 1000, 10, 0, 2000, 1):
        table.add(hashes[at : at + size], np.arange(at, at + size))
        at += size
        expected = np.where(np.arange(5000) < at, np.arange(5000), -1)
        np.testing.assert_array_equal(table.find(hashes), expected)
    assert len(table._runs) <= 4


def test_a_row_hash_sees_every_number() -> None:
    row = np.zeros((1, 70_000), np.float32)
    seen = {int(row_hashes(row)[0])}
    for place in (0, 1, 69_999):
        row[0, place] = 1
        seen.add(int(row_hashes(row)[0]))
    assert len(seen) == 4


# The lock


def test_readers_share_and_a_writer_is_alone() -> None:
    lock = SharedLock()
    inside: list[str] = []
    both = threading.Barrier(2)

    def read() -> None:
        with lock.reading():
            both.wait(30)  # passes only when both are in
            inside.append("reader")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    counter = 0

    def write() -> None:
        nonlocal counter
        for _ in range(500):
            with lock.writing(), lock.writing(), lock.reading():
                seen = counter
                with lock.reading():
                    counter = seen + 1

    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert (inside, counter) == (["reader"] * 2, 2000)


def test_readers_and_writers_take_turns() -> None:
    """While writers come without end a reader gets in, and the other way round."""
    lock = SharedLock()
    ended = threading.Event()

    def endlessly(writing: bool) -> None:
        while not ended.is_set():
            with lock.writing() if writing else lock.reading():
                pass

    for writing in (True, False):
        ended.clear()
        others = [threading.Thread(target=endlessly, args=(writing,)) for _ in range(3)]
        for thread in others:
            thread.start()
        for _ in range(50):
            with lock.reading() if writing else lock.writing():
                pass
        ended.set()
        for thread in others:
            thread.join()


def test_a_reader_that_wants_to_write_is_told() -> None:
    lock = SharedLock()
    with lock.reading(), pytest.raises(InternalError, match="cannot become a writer"):
        with lock.writing():
            pass
    with lock.writing():
        pass
