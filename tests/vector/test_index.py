"""VectorIndex against the plain way to find the nearest."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toondb
from tests.support.children import in_child
from tests.support.daemon import SECONDS, child_environ
from tests.vector.data import METRICS, distances, nearest, recall, sample
from toondb import VectorIndex
from toondb.errors import (
    ConfigurationError,
    DimensionMismatchError,
    ForkedProcessError,
    ValidationError,
)
from toondb.vector.faiss_library import faiss
from toondb.vector.ids import Id
from toondb.vector.metrics import Floats


def exactly(index: VectorIndex, held: dict[Id, Floats], queries: Floats, k: int) -> None:
    """A search of the whole index gives what the plain way gives."""
    ids = list(held)
    assert len(index) == len(ids)
    assert sorted(map(str, index.ids())) == sorted(map(str, ids))
    if not ids:
        assert index.search_batch(queries, k) == [[] for _ in queries]
        return
    far = distances(queries, np.stack([held[one] for one in ids]), index.metric)
    for found, true in zip(index.search_batch(queries, k, ef_search=len(ids)), far, strict=True):
        expected = np.sort(true)[:k]
        np.testing.assert_allclose([distance for _, distance in found], expected, rtol=1e-4, atol=2e-4)
        assert len({one for one, _ in found}) == len(found) == min(k, len(ids))
        by_id = dict(zip(ids, true.tolist(), strict=True))
        for one, distance in found:
            assert distance == pytest.approx(by_id[one], rel=1e-4, abs=2e-4)


# As the guides show it


def test_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    index = VectorIndex(dimension=48, metric="cosine", m=16, ef_construction=100)
    embeddings = np.random.default_rng(1).standard_normal((3000, 48)).astype(np.float32)
    for i, vec in enumerate(embeddings[:500]):
        index.insert(f"doc_{i}", vec)
    ids = [f"doc_{i}" for i in range(len(embeddings))]
    index.insert_batch(ids, embeddings)
    assert len(index) == 3000
    query = embeddings[7]
    results = index.search(query, k=10, ef_search=64)
    for id, distance in results:
        print(f"{id}: {distance:.4f}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "doc_7: 0.0000"


def test_it_is_in_the_facade() -> None:
    assert toondb.VectorIndex is VectorIndex
    index = VectorIndex(3, "euclidean")
    assert (index.dimension, index.metric, index.m, index.ef_construction) == (3, "euclidean", 16, 100)
    assert repr(index) == "VectorIndex(3, 'euclidean', m=16, vectors=0)"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("cosine", [0.0, 1.0, 2.0]), ("euclidean", [1.0, 5**0.5, 3.0]), ("dot_product", [-2.0, 0.0, 2.0])],
)
def test_distances_are_those_of_the_guides(metric: str, expected: list[float]) -> None:
    index = VectorIndex(2, metric)
    index.insert_batch(["same", "across", "opposite"], [[2, 0], [0, 2], [-2, 0]])
    found = index.search([1, 0], k=3)
    assert [id for id, _ in found] == ["same", "across", "opposite"]
    assert [distance for _, distance in found] == pytest.approx(expected)


# Against the plain way


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [1, 20, 1000, 3000])
def test_all_are_found_nearest_first(metric: str, rows: int) -> None:
    vectors, queries = sample(rows), sample(5, seed=1)
    index = VectorIndex(32, metric)
    index.insert_batch(range(rows), vectors)
    exactly(index, dict(enumerate(vectors)), queries, 10)
    assert len(index.search(queries[0], k=rows + 5)) == rows
    assert len(index.search(queries[0], k=10**12)) == rows


@pytest.mark.parametrize("metric", METRICS)
def test_recall(metric: str) -> None:
    vectors, queries = sample(4000), sample(100, seed=1)
    index = VectorIndex(32, metric)
    index.insert_batch(range(4000), vectors)
    truth = nearest(queries, vectors, metric, 10)

    def at(ef: int) -> float:
        found = index.search_batch(queries, 10, ef_search=ef)
        return recall([[int(id) for id, _ in row] for row in found], truth)

    assert at(64) >= 0.95
    # The parameter has an effect, and each call its own: the later one does not change the earlier.
    assert at(400) > at(10) == at(10)


def test_one_query_is_searched_as_in_a_batch() -> None:
    vectors = sample(4000)
    index = VectorIndex(32)
    index.insert_batch(range(4000), vectors)
    batch = index.search_batch(vectors[:20], 5)
    assert batch == [index.search(vector, 5) for vector in vectors[:20]]
    assert index.search_batch(np.empty((0, 32))) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_model(seed: int, tmp_path: Path) -> None:
    """Any sequence of changes, saves and loads, compared with a dict."""
    choice = random.Random(seed)
    metric = METRICS[seed]
    index, held = VectorIndex(8, metric, m=4, ef_construction=20), dict[Id, Floats]()
    pool = np.concatenate([sample(40, 8), np.repeat(sample(4, 8, seed=9), 10, axis=0)])
    names: list[Id] = [*range(300), *(f"name {number}" for number in range(300))]
    for _ in range(60):
        match choice.randrange(6):
            case 0 | 1:
                ids = choice.sample(names, choice.choice([1, 30, 600]))
                rows = pool[[choice.randrange(len(pool)) for _ in ids]]
                # Some of them equal to others, some of their own.
                own = np.array([choice.random() < 0.5 for _ in ids])[:, np.newaxis]
                rows = (rows + own * sample(len(ids), 8, seed=choice.randrange(1000))).astype(np.float32)
                index.insert_batch(ids, rows)
                held.update(zip(ids, rows, strict=True))
            case 2:
                for one in choice.sample(names, 200):
                    assert index.delete(one) == (held.pop(one, None) is not None)
            case 3:
                one, row = choice.choice(names), pool[choice.randrange(len(pool))]
                index.insert(one, row)
                held[one] = row
            case 4:
                index.save(tmp_path / "index")
                index = VectorIndex.load(tmp_path / "index")
            case 5:
                index._hnsw.flush() if choice.random() < 0.5 else index._hnsw.rebuild()
        exactly(index, held, pool[choice.sample(range(len(pool)), 3)], choice.choice([1, 7, 700]))
    assert held


def test_many_equal_vectors_hide_no_others() -> None:
    # In a graph of 16 neighbours, 200 copies of a vector are an island that searches from outside do not reach.
    places = sample(50)
    vectors = np.repeat(places, 200, axis=0)
    np.random.default_rng(3).shuffle(vectors)
    index = VectorIndex(32, "euclidean")
    index.insert_batch(range(len(vectors)), vectors)
    for found in index.search_batch(places, k=150):
        assert [distance for _, distance in found] == [0.0] * 150
    # And what holds them is not 10,000 nodes.
    assert index._hnsw._graph.nodes == 50


# Ids


def test_ids_are_strings_and_integers_of_any_size() -> None:
    index = VectorIndex(2)
    ids: list[Any] = [1, "1", -5, 2**64, -(2**80), "", "\ud800", np.int32(7), np.str_("text")]
    for at, one in enumerate(ids):
        index.insert(one, [1, at])
    assert len(index) == len(ids)
    assert index.ids() == ids
    assert all(one in index for one in ids)
    assert 7 in index
    assert 2 not in index
    assert None not in index
    assert {type(one) for one, _ in index.search([1, 0], k=99)} == {int, str}
    number: Any = np.int64(1)
    assert index.delete(number)
    assert 1 not in index
    assert "1" in index
    assert not index.delete(1)


@pytest.mark.parametrize("wrong", [None, 1.0, True, b"bytes", ("a",), [1], np.bool_(True), np.float32(1)])
def test_other_ids_are_refused(wrong: Any) -> None:
    index = VectorIndex(2)
    for attempt in (
        lambda: index.insert(wrong, [1, 2]),
        lambda: index.insert_batch(["a", wrong], [[1, 2], [3, 4]]),
        lambda: index.delete(wrong),
    ):
        with pytest.raises(ValidationError, match=r"id is .*strings or integers"):
            attempt()
    assert len(index) == 0


def test_the_same_id_again_replaces() -> None:
    index = VectorIndex(2, "euclidean")
    index.insert("a", [0, 0])
    index.insert("b", [5, 5])
    index.insert("a", [9, 9])
    assert len(index) == 2
    assert index.search([9, 9], k=5)[0] == ("a", 0.0)
    assert [id for id, _ in index.search([0, 0], k=5)] == ["b", "a"]


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 0}, "dimension is 0. Give an integer from 1 to 65,536"),
        ({"dimension": 65_537}, "dimension is 65,537"),
        ({"dimension": 2.5}, "dimension is 2.5, which is no integer"),
        ({"dimension": True}, "dimension is True"),
        (
            {"dimension": 2, "metric": "manhattan"},
            "metric is 'manhattan'. Choose one of cosine, euclidean, dot_product",
        ),
        ({"dimension": 2, "metric": None}, "metric is None"),
        ({"dimension": 2, "m": 1}, "m is 1. Give an integer from 2 to 512"),
        ({"dimension": 2, "ef_construction": 0}, "ef_construction is 0"),
        ({"dimension": 2, "threads": -1}, "threads is -1"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        VectorIndex(**options)
    assert message in str(caught.value)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("metric", "vector", "message"),
    [
        ("cosine", [1, NAN, 2], "has nan at place 1"),
        ("cosine", [1, 2, INFINITY], "has inf at place 2"),
        ("euclidean", [-INFINITY, NAN, 2], "has -inf at place 0"),
        ("euclidean", [1e39, 0, 0], "at place 0"),
        ("cosine", [0, 0, 0], "has length 0, so it has no angle"),
        ("euclidean", [1e20, 0, 0], "has length 1e+20"),
        ("dot_product", [0, 3e38, 3e38], "has length 4.24e+38"),
        ("cosine", ["a", "b", "c"], "no array of numbers of type <U1"),
        ("cosine", [1, 2, 1j], "no array of numbers of type complex128"),
        ("cosine", [True, False, True], "no array of numbers of type bool"),
        ("cosine", [[1, 2, 3]], "has the shape (1, 3)"),
        ("cosine", 7, "has the shape ()"),
        ("cosine", [[1], [1, 2]], "no array of numbers"),
        ("cosine", None, "None is no array of numbers"),
    ],
)
def test_vectors_that_cannot_be_compared(metric: str, vector: Any, message: str) -> None:
    index = VectorIndex(3, metric)
    index.insert("first", [1, 2, 3])
    for attempt in (
        lambda: index.insert("new", vector),
        lambda: index.insert("first", vector),
        lambda: index.search(vector),
    ):
        with pytest.raises(ValidationError) as caught:
            attempt()
        assert message in str(caught.value)
        assert caught.value.remediation
    if isinstance(vector, list) and not isinstance(vector[0], list | bool):  # True among numbers is 1
        with pytest.raises(ValidationError, match="the vectors"):
            index.insert_batch(["a", "b", "c"], [[1, 2, 3], [4, 5, 6], vector])
        with pytest.raises(ValidationError):
            index.search_batch([[1, 2, 3], vector])
    assert index.ids() == ["first"]
    assert index.search([1, 2, 3])[0][0] == "first"


def test_a_wrong_row_of_a_batch_is_named() -> None:
    rows = sample(5000)
    rows[4321, 7] = np.nan
    index = VectorIndex(32)
    with pytest.raises(ValidationError, match="row 4,321 has nan at place 7"):
        index.insert_batch(range(5000), rows)
    rows[4321] = 0
    with pytest.raises(ValidationError, match="row 4,321 has length 0"):
        index.insert_batch(range(5000), rows)
    assert len(index) == 0


@pytest.mark.parametrize("vector", [[1], [1, 2, 3, 4], []])
def test_another_dimension(vector: list[int]) -> None:
    index = VectorIndex(3)
    for attempt in (lambda: index.insert(1, vector), lambda: index.search(vector)):
        with pytest.raises(DimensionMismatchError) as caught:
            attempt()
        assert (caught.value.expected, caught.value.actual) == (3, len(vector))
    if vector:
        with pytest.raises(DimensionMismatchError):
            index.insert_batch([1], [vector])
    assert len(index) == 0


def test_batches_that_do_not_fit_together() -> None:
    index = VectorIndex(2)
    with pytest.raises(ValidationError, match="2 ids and 1 vectors"):
        index.insert_batch([1, 2], [[1, 2]])
    with pytest.raises(ValidationError, match="the id 'a' is there twice"):
        index.insert_batch(["a", "b", "a"], [[1, 2], [3, 4], [5, 6]])
    with pytest.raises(ValidationError, match="the ids are 'ab'"):
        index.insert_batch("ab", [[1, 2], [3, 4]])
    with pytest.raises(ValidationError, match="the ids cannot be listed"):
        index.insert_batch(7, [[1, 2]])
    assert index.insert_batch([], []) == 0
    assert len(index) == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "10", None, True])
def test_k_and_ef_are_positive_integers(wrong: Any) -> None:
    index = VectorIndex(2)
    index.insert(1, [1, 2])
    with pytest.raises(ValidationError, match="k is"):
        index.search([1, 2], k=wrong)
    if wrong is not None:
        with pytest.raises(ValidationError, match="ef_search is"):
            index.search_batch([[1, 2]], k=1, ef_search=wrong)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint64, ">f4"])
def test_other_types_of_numbers_are_taken(dtype: str) -> None:
    index = VectorIndex(3, "euclidean")
    index.insert_batch([1, 2], np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype)[:, ::-1])
    assert index.search(np.array([3, 2, 1], dtype=dtype))[0] == (1, 0.0)


def test_what_was_inserted_is_not_the_callers_any_more() -> None:
    index = VectorIndex(2, "euclidean")
    vector = np.array([[1, 2]], dtype=np.float32)
    index.insert_batch([1], vector)
    vector[:] = 100
    assert index.search([1, 2]) == [(1, 0.0)]


def test_tiny_and_huge_vectors_have_an_angle() -> None:
    index = VectorIndex(2, "cosine")
    index.insert_batch([1, 2], [[1e-30, 1e-30], [3e38, 0]])
    assert [id for id, _ in index.search([1, 0])] == [2, 1]
    id, distance = index.search([5e-40, 5e-40])[0]
    assert (id, round(distance, 5)) == (1, 0)


# Deleting


def test_delete_and_insert_again_does_not_grow() -> None:
    index = VectorIndex(16)
    vectors = sample(2000, 16)
    index.insert_batch(range(2000), vectors)
    for turn in range(7):
        fresh = sample(2000, 16, seed=turn + 1)
        for one in range(0, 2000, 2):
            assert index.delete(one)
        index.insert_batch(range(2000), fresh)
        if index._cleaner is not None:
            index._cleaner.join()
        assert index._hnsw._graph.nodes <= 2000 + 4096 + 1024
    assert len(index) == 2000
    exactly(index, dict(enumerate(fresh)), fresh[:3], 10)


def test_delete_and_insert_of_the_same_vectors_makes_no_tombstones() -> None:
    index = VectorIndex(16)
    vectors = sample(1500, 16)
    for _ in range(5):
        index.insert_batch(range(1500), vectors)
        for one in range(1500):
            index.delete(one)
        assert len(index) == 0
        assert index.search(vectors[0]) == []
    index.insert_batch(range(1500), vectors)
    assert index._hnsw._graph.nodes == 1500
    exactly(index, dict(enumerate(vectors)), vectors[:3], 10)


def test_single_inserts_and_deletes_stay_aside() -> None:
    index = VectorIndex(16)
    vectors = sample(5000, 16)
    for turn, vector in enumerate(vectors):
        index.insert(turn, vector)
        if turn >= 100:
            assert index.delete(turn - 100)
    assert len(index) == 100
    assert index._hnsw._graph.nodes == 0
    exactly(index, {turn: vectors[turn] for turn in range(4900, 5000)}, vectors[:2], 10)


# Threads and processes


def test_threads_search_and_change_it_together() -> None:
    index = VectorIndex(16, "euclidean")
    fixed = sample(3000, 16)
    index.insert_batch([f"fixed {at}" for at in range(3000)], fixed)
    failures: list[BaseException] = []
    ended = threading.Event()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        return run

    def search() -> None:
        while not ended.is_set():
            for at in range(0, 3000, 311):
                found = index.search(fixed[at], k=5)
                assert len(found) == 5
                assert (f"fixed {at}", 0.0) in found
            assert len(index.search_batch(fixed[:8], k=3)) == 8

    def change(number: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(2):
                own = sample(1300, 16, seed=10 * number + turn)
                index.insert_batch([f"{number} {at}" for at in range(1300)], own)
                for at in range(0, 1300, 13):
                    assert index.delete(f"{number} {at}")
                index.insert(f"{number} last", own[0])

        return run

    searchers = [threading.Thread(target=guarded(search)) for _ in range(2)]
    writers = [threading.Thread(target=guarded(change(number))) for number in range(2)]
    for thread in searchers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in searchers:
        thread.join()
    assert failures == []
    assert len(index) == 3000 + 2 * (1200 + 1)
    if index._cleaner is not None:
        index._cleaner.join()


def test_a_forked_child_has_an_index_of_its_own() -> None:
    index = VectorIndex(16)
    vectors = sample(2000, 16)
    index.insert_batch(range(2000), vectors)
    before = index.search_batch(vectors[:9], 3)  # parallel: the parent has its threads now

    def child() -> Any:
        found = index.search_batch(vectors[:9], 3)
        index.insert_batch(range(2000, 4000), sample(2000, 16, seed=1))
        return found, len(index)

    assert in_child(child, exits=False) == (before, 4000)
    assert len(index) == 2000


def test_a_child_forked_in_the_middle_of_a_change_is_told() -> None:
    index = VectorIndex(2)
    index.insert(1, [1, 2])
    changing, forked = threading.Event(), threading.Event()

    def change() -> None:
        with index._hnsw.writing():
            changing.set()
            forked.wait()

    thread = threading.Thread(target=change)
    thread.start()
    changing.wait()

    def child() -> str:
        try:
            index.search([1, 2])
        except ForkedProcessError as error:
            return error.remediation
        return "searched"

    try:
        assert in_child(child) == "Load it again in this process."
    finally:
        forked.set()
        thread.join()
    assert [id for id, _ in index.search([1, 2])] == [1]


def test_the_threads_of_the_caller_stay_as_they_were() -> None:
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        index = VectorIndex(8)
        index.insert_batch(range(2000), sample(2000, 8))
        index.search(sample(1, 8)[0])
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    index = VectorIndex(8)
    index.insert_batch(range(2000), sample(2000, 8))
    index.search_batch(sample(3, 8))
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from toondb import VectorIndex

index = VectorIndex(16, "euclidean", threads=int(sys.argv[1]))
rng = np.random.default_rng(0)
held, rows = {}, {}
for turn in range(16):
    size = (1, 1100)[turn % 2]
    new = rng.standard_normal((size, 16)).astype(np.float32)
    ids = rng.choice(3000, size, replace=False).tolist()
    # Somewhere in the middle of it.
    signal.setitimer(signal.ITIMER_REAL, rng.random() * (0.02, 0.1)[turn % 2])
    try:
        for _ in range((100, 1)[turn % 2]):
            index.insert_batch(ids, new)
            index.delete(ids[0])
        signal.setitimer(signal.ITIMER_REAL, 0)  # one that came before is raised here, and no later
    except KeyboardInterrupt:
        pass
    for at, id in enumerate(ids):
        rows.setdefault(id, []).append(new[at])
    query = rng.standard_normal(16).astype(np.float32)
    with index._hnsw.reading():  # the change may be going on still
        assert len(index) == len(index.ids()) == len(set(index.ids())) == len(index._hnsw)
        found = index.search(query, k=10000, ef_search=10000)
        assert sorted(id for id, _ in found) == sorted(index.ids())
    for id, distance in found:
        far = [np.linalg.norm(row - query) for row in rows[id]]
        assert min(abs(one - distance) for one in far) < 1e-3, (id, distance, far)
print("consistent", len(index) > 0)
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_ctrl_c_in_the_middle_leaves_it_consistent(threads: str) -> None:
    # SIGALRM with the handler of SIGINT: what Ctrl-C does, at a chosen time.
    code = INTERRUPTED.replace("index = ", "signal.signal(signal.SIGALRM, signal.default_int_handler)\nindex = ", 1)
    done = subprocess.run(
        [sys.executable, "-c", code, threads], capture_output=True, text=True, timeout=SECONDS, env=child_environ()
    )
    assert (done.stdout, done.stderr) == ("consistent True\n", "")
