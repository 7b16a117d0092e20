"""Graphs that are linked by distances in 8 bits: as good as others, and sound whatever happens on the way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vector.data import recall, sample
from toondb.vector import linking
from toondb.vector.faiss_library import faiss
from toondb.vector.graph import Graph, graph_index
from toondb.vector.hnsw import HnswIndex
from toondb.vector.hnsw_file import read_index, write_index
from toondb.vector.linking import is_worth_it, link_roughly, make_whole
from toondb.vector.metrics import Floats, Metric
from toondb.vector.sections import SectionReader, SectionWriter

ROWS = 2200
DIMENSION = 64
ODD = 73
KINDS = [("euclidean", False), ("cosine", True)]
Shape = Callable[[int, int, np.random.Generator], Any]


@pytest.fixture(autouse=True)
def _any_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows so short gain nothing from 8 bits; for what is tested here they do as well, in less time."""
    monkeypatch.setattr(linking, "_LEAST_DIMENSION", 48)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What ``link_roughly`` answered, each time that it was asked."""
    given: list[bool] = []

    def noted(*arguments: Any) -> bool:
        given.append(link_roughly(*arguments))
        return given[-1]

    monkeypatch.setattr("toondb.vector.graph.link_roughly", noted)
    return given


def built(rows: Floats, metric: str, half: bool = False, step: int = ROWS) -> HnswIndex:
    index = HnswIndex(rows.shape[1], metric, half=half, ef_construction=60)
    prepared = index.prepare(rows)
    for start in range(0, len(rows), step):
        labels = np.arange(start, min(start + step, len(rows)))
        index.add(labels, prepared[labels])
    index.flush()
    return index


def recall_of(index: HnswIndex, queries: Floats) -> float:
    prepared = index.prepare(queries)
    truth = index.search(prepared, 10, exact=True)[1][:, :10]
    return recall(index.search(prepared, 10, 64)[1][:, :10].tolist(), truth)


def sizes(index: Any) -> set[int]:
    """The number of nodes, as each part of the index of faiss has it."""
    hnsw, nodes = index.hnsw, index.ntotal
    assert hnsw.neighbors.size() == hnsw.offsets.at(nodes)
    return {nodes, index.storage.ntotal, hnsw.levels.size(), hnsw.offsets.size() - 1}


def check(index: HnswIndex, rows: Floats, labels: list[int]) -> None:
    """The index has the rows as they are, and finds each where it is."""
    prepared = index.prepare(rows)
    with index.parts() as (graph, tail):
        assert len(tail) == 0
        assert sizes(graph.index) == {graph.nodes}
        kind = faiss.IndexScalarQuantizer if index.half else faiss.IndexFlat
        assert isinstance(faiss.downcast_index(graph.index.storage), kind)
        assert graph.index.d == rows.shape[1]
        living, kept = graph.rows(np.array(labels))
        order = np.argsort(living)
        assert living[order].tolist() == labels
        expected = prepared.astype(np.float16).astype(np.float32) if index.half else prepared
        np.testing.assert_array_equal(kept[order], expected)
    some = slice(None, None, 17)
    found = index.search(prepared[some], 1, 64)[1][:, 0]
    assert np.mean(found == np.array(labels)[some]) >= 0.98
    exact = index.search(prepared[some], 3, exact=True)[1]
    apart = 2 - 2 * prepared[some] @ prepared.T if index.metric is Metric.COSINE else _squares(prepared[some], prepared)
    nearest = np.array(labels)[np.argsort(apart, axis=1, kind="stable")[:, :3]]
    assert all(set(true) <= set(near) for true, near in zip(nearest.tolist(), exact.tolist(), strict=True))


def _squares(queries: Floats, rows: Floats) -> Any:
    wide = rows.astype(np.float64)
    return np.array([((wide - query) ** 2).sum(axis=1) for query in queries.astype(np.float64)])


# Recall


def _gaussian(rows: int, dimension: int, random: np.random.Generator) -> Any:
    return random.standard_normal((rows, dimension))


def _clusters(spread: float, share: float = 1.0, clusters: int = 40) -> Shape:
    """Some of the rows, and all of the queries, are around a few places."""

    def make(rows: int, dimension: int, random: np.random.Generator) -> Any:
        centres = np.random.default_rng(7).standard_normal((clusters, dimension))
        made = random.standard_normal((rows, dimension))
        inside = random.permutation(rows)[: rows if rows < ROWS else int(share * rows)]
        made[inside] = centres[random.integers(0, clusters, len(inside))] + spread * made[inside]
        return made

    return make


def _unequal(rows: int, dimension: int, random: np.random.Generator) -> Any:
    return random.standard_normal((rows, dimension)) / np.sqrt(1 + np.arange(dimension))


def _one_wide(rows: int, dimension: int, random: np.random.Generator) -> Any:
    made = random.standard_normal((rows, dimension))
    made[:, 3] *= 4
    return made


DONE: dict[str, Shape] = {
    "gaussian": _gaussian,
    "clusters": _clusters(0.2),
    "one wide dimension": _one_wide,
    "dimensions of unequal width": _unequal,
    "large means": lambda rows, dimension, random: random.standard_normal((rows, dimension)) + 1000,
    "no multiple of 16 numbers": lambda rows, dimension, random: sample(rows, ODD, int(random.integers(1000))),
    "integers": lambda rows, dimension, random: random.integers(0, 10, (rows, dimension)),
    "tiny": lambda rows, dimension, random: 1e-16 * random.standard_normal((rows, dimension)),
    "huge": lambda rows, dimension, random: 1e16 * random.standard_normal((rows, dimension)),
}
REFUSED: dict[str, Shape] = {
    "tight clusters": _clusters(0.01),
    "clusters of almost equal rows": _clusters(1e-5),
    "a third in tight clusters": _clusters(0.01, 0.3, 8),
    "a twentieth in one tight cluster": _clusters(0.01, 0.05, 1),
    "a fiftieth almost equal": _clusters(1e-5, 0.02, 1),
    "two small groups almost equal": _clusters(1e-5, 0.03, 2),
}


def vectors(shape: Shape, rows: int, dimension: int, seed: int) -> Floats:
    made: Floats = np.asarray(shape(rows, dimension, np.random.default_rng(seed)), dtype=np.float32)
    return made


@pytest.mark.parametrize(("metric", "half", "step"), [("euclidean", False, ROWS), ("cosine", True, ROWS // 2)])
@pytest.mark.parametrize("name", DONE)
def test_recall_is_that_of_a_graph_linked_by_the_rows(
    name: str, metric: str, half: bool, step: int, answers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = DONE[name]
    if metric == "cosine" and name == "large means":
        return  # all of them point one way
    rows, queries = vectors(shape, ROWS, DIMENSION, 0), vectors(shape, 150, DIMENSION, 1)
    rough = recall_of(built(rows, metric, half, step), queries)
    assert answers == [True] * len(answers)
    assert answers
    monkeypatch.setattr("toondb.vector.graph.is_worth_it", lambda *_: False)
    assert rough >= recall_of(built(rows, metric, half, step), queries) - 0.03


@pytest.mark.parametrize("dimension", [2, 8, 50])
@pytest.mark.parametrize(("metric", "half"), KINDS)
def test_any_number_of_dimensions(
    dimension: int, metric: str, half: bool, answers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linking, "_LEAST_DIMENSION", 1)
    rows, queries = sample(ROWS, dimension), sample(150, dimension, seed=1)
    rough = built(rows, metric, half)
    assert answers == [dimension >= 50] or dimension == 8
    monkeypatch.setattr("toondb.vector.graph.is_worth_it", lambda *_: False)
    assert recall_of(rough, queries) >= recall_of(built(rows, metric, half), queries) - 0.03


@pytest.mark.parametrize("half", [False, True])
def test_rows_of_few_numbers_are_not_worth_it(half: bool, answers: list[bool]) -> None:
    built(sample(ROWS, 32), "cosine", half)
    assert answers == [False]
    built(sample(ROWS, 40), "cosine", half)
    assert answers == [False, half]  # faiss is slow with forty numbers in half precision


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(("metric", "half"), KINDS)
def test_rows_that_8_bits_do_not_tell_apart_change_nothing(name: str, metric: str, half: bool) -> None:
    kind = Metric.named(metric)
    index = graph_index(DIMENSION, kind, 16, 40, half=half)
    earlier = HnswIndex(DIMENSION, metric).prepare(sample(1500, DIMENSION))
    graph = Graph(kind, index)
    graph.add(np.arange(1500), earlier, 1)
    before = faiss.vector_to_array(index.hnsw.levels)
    links = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size()).copy()
    rows = HnswIndex(DIMENSION, metric).prepare(vectors(REFUSED[name], ROWS, DIMENSION, 0))
    done = link_roughly(index, graph._matrix(), rows)
    assert not done
    assert sizes(index) == {1500}
    np.testing.assert_array_equal(faiss.vector_to_array(index.hnsw.levels), before)
    after = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    np.testing.assert_array_equal(after, links)
    graph.add(np.arange(1500, 1500 + ROWS), rows, 2)
    assert sizes(index) == {graph.nodes}
    assert len(graph) == 1500 + ROWS


def test_sparse_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    made = (random.random((ROWS + 100, 400)) * (random.random((ROWS + 100, 400)) < 0.1)).astype(np.float32)
    rough = built(made[:ROWS], "cosine")
    monkeypatch.setattr("toondb.vector.graph.is_worth_it", lambda *_: False)
    plain = built(made[:ROWS], "cosine")
    assert recall_of(rough, made[ROWS:]) >= recall_of(plain, made[ROWS:]) - 0.03


@pytest.mark.parametrize("factor", [1e2, 1e16])
def test_one_row_far_away(factor: float, answers: list[bool]) -> None:
    rows = sample(ROWS, DIMENSION)
    rows[5] *= np.float32(factor)
    index = built(rows, "euclidean")
    assert answers == [False]
    assert recall_of(index, sample(100, DIMENSION, seed=1)) >= 0.95
    check(index, rows, list(range(ROWS)))


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-30, 3e-19])
def test_numbers_too_close_for_single_precision(scale: float, answers: list[bool]) -> None:
    # Rows of different bits whose distances are 0 when squared, or that differ in the sign of a zero alone.
    rows = np.zeros((1200, DIMENSION), np.float32)
    flips = np.random.default_rng(0).random(rows.shape) < 0.5
    rows[flips] = np.float32(-scale)
    index = built(rows, "euclidean")
    assert answers == [False]
    assert len(index) == len(rows)
    assert index.search(rows[:1], 5)[1].shape == (1, 5)


def test_when_it_is_worth_it() -> None:
    assert is_worth_it(5000, 0)
    assert is_worth_it(5000, 20_000)
    assert not is_worth_it(100, 0)
    assert not is_worth_it(5000, 1_000_000)


# What it leaves behind


@pytest.mark.parametrize(
    ("metric", "half", "dimension"), [("euclidean", False, ODD), ("cosine", False, DIMENSION), ("cosine", True, ODD)]
)
def test_the_rows_stay_as_they_are(
    metric: str, half: bool, dimension: int, answers: list[bool], tmp_path: Path
) -> None:
    rows = sample(2 * ROWS, dimension)
    index = built(rows, metric, half)
    assert answers == [True, True]
    check(index, rows, list(range(2 * ROWS)))

    with (tmp_path / "index").open("wb+") as file:
        write_index(SectionWriter(file), index)
    with (tmp_path / "index").open("rb") as saved:
        reader = SectionReader(saved, "the index")
    reader.verify()
    check(read_index(reader), rows, list(range(2 * ROWS)))

    # Removed, there again under another label, and twins of others.
    for label in range(1000):
        index.remove(label)
    again = np.concatenate([rows[:1000], rows[2000:3000]])
    index.add(np.arange(2 * ROWS, 2 * ROWS + 2000), index.prepare(again))
    found = index.search(index.prepare(again[::50]), 2, 64)[1]
    for at, labels in enumerate(found.tolist()):
        new = 2 * ROWS + 50 * at
        assert new in labels
        assert at < 20 or 2000 + 50 * (at - 20) in labels
    answers.clear()
    assert index.rebuild()
    assert answers
    assert all(answers)
    assert index.labels().tolist() == list(range(1000, 2 * ROWS + 2000))
    assert index.search(index.prepare(rows[5:6]), 1)[1][0, 0] == 2 * ROWS + 5


@pytest.mark.parametrize(("metric", "half"), KINDS)
def test_a_copy_has_its_own_rows(metric: str, half: bool, answers: list[bool]) -> None:
    rows = sample(2 * ROWS, DIMENSION)
    index = built(rows[:ROWS], metric, half)
    with index.parts() as (graph, _):
        copy = graph.copy()
    copy.add(np.arange(ROWS, 2 * ROWS), index.prepare(rows[ROWS:]), 2)
    assert answers == [True, True]
    assert sizes(copy.index) == {2 * ROWS}
    check(index, rows[:ROWS], list(range(ROWS)))
    index._graph = copy
    check(index, rows, list(range(2 * ROWS)))


def test_searches_while_it_grows(answers: list[bool]) -> None:
    rows = sample(3 * ROWS, DIMENSION)
    index = built(rows[:ROWS], "cosine", True)
    index.add(np.arange(ROWS, 3 * ROWS), index.prepare(rows[ROWS:]), aside=True)
    asked = index.prepare(rows[::97])
    grown: list[bool] = []
    thread = threading.Thread(target=lambda: grown.append(index.grow()))
    thread.start()
    while True:
        last = not thread.is_alive()
        found = index.search(asked, 1, 64)[1]
        assert np.mean([97 * at in labels for at, labels in enumerate(found.tolist())]) >= 0.98
        if last:
            break
    thread.join()
    assert grown == [True]
    assert all(answers)
    assert len(answers) > 1
    check(index, rows, list(range(3 * ROWS)))


# When there is no memory

Stage = str
STAGES: list[Stage] = ["nothing", "rows", "some levels", "some offsets", "no neighbours", "all"]


def failing(stage: Stage, original: Any, times: list[int]) -> Callable[[Any, Floats], None]:
    """``add`` of faiss, which ends where memory does: the steps of ``hnsw_add_vertices``, then MemoryError."""

    def add(index: Any, rows: Floats) -> None:
        if not times:
            original(index, rows)
            return
        times.pop()
        reached = STAGES.index(stage)
        hnsw, count = index.hnsw, len(rows)
        if stage == "all":
            original(index, rows)
        elif reached:
            index.storage.add_c(count, faiss.swig_ptr(np.ascontiguousarray(rows)))
            index.ntotal = index.storage.ntotal
            if reached > 1:
                for _ in range(count if reached > 2 else count // 2):
                    hnsw.levels.push_back(1)
            if reached > 2:
                for _ in range(count if reached > 3 else count // 2):
                    hnsw.offsets.push_back(hnsw.offsets.at(hnsw.offsets.size() - 1) + 32)
        raise MemoryError(stage)

    return add


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("half", "earlier", "roughly"), [(False, 1100, True), (True, 0, True), (False, 1100, False)])
def test_an_index_outlives_a_lack_of_memory(
    stage: Stage, half: bool, earlier: int, roughly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not roughly:
        monkeypatch.setattr("toondb.vector.graph.is_worth_it", lambda *_: False)
    rows = sample(earlier + 2200, DIMENSION)
    index = HnswIndex(DIMENSION, "cosine", half=half, ef_construction=24)
    prepared = index.prepare(rows)
    index.add(np.arange(earlier), prepared[:earlier])
    kind = faiss.IndexHNSWSQ if half else faiss.IndexHNSWFlat
    times = [0, 0]
    with monkeypatch.context() as patched:
        patched.setattr(kind, "add", failing(stage, kind.add, times))
        with pytest.raises(MemoryError):
            index.add(np.arange(10_000, 11_100), prepared[earlier : earlier + 1100])
    assert len(times) == (1 if stage == "all" or not roughly else 0)  # what is rough is tried again by the rows
    with index.parts() as (graph, _):
        assert sizes(graph.index) == {graph.nodes}
        assert graph.nodes == earlier + (1100 if stage == "all" else 0)
    if earlier:
        assert index.labels().tolist() == list(range(earlier))
        found = index.search(prepared[:earlier:50], 1, 64)[1]
        assert all(50 * at in labels for at, labels in enumerate(found.tolist()))
    index.add(np.arange(earlier, earlier + 2200), prepared[earlier:])
    check(index, rows, list(range(earlier + 2200)))


def test_a_lack_of_memory_for_8_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(ROWS, DIMENSION)
    for times in ([0], []):
        with monkeypatch.context() as patched:
            if times:
                patched.setattr(faiss.IndexHNSWFlat, "add", failing("rows", faiss.IndexHNSWFlat.add, times))
            else:
                patched.setattr(linking, "_cells", _no_memory)
            check(built(rows, "euclidean"), rows, list(range(ROWS)))
        assert not times


def _no_memory(_: Any) -> Any:
    raise MemoryError


def test_a_whole_graph_stays_as_it_is() -> None:
    rows = sample(1200, DIMENSION)
    index = graph_index(DIMENSION, Metric.EUCLIDEAN, 16, 40, half=False)
    make_whole(index, 0)
    assert sizes(index) == {0}
    index.add(rows)
    make_whole(index, 0)
    assert sizes(index) == {1200}


# Who owns what

_LIVES = """
import gc, resource, sys
import numpy as np
from toondb.vector import graph
from toondb.vector.hnsw import HnswIndex

rows = np.random.default_rng(0).standard_normal((2400, 768)).astype(np.float32)
answers = []
link = graph.link_roughly
graph.link_roughly = lambda *arguments: answers.append(link(*arguments)) or answers[-1]


def once():
    index = HnswIndex(768, "euclidean", m=4, ef_construction=8, threads=2)
    index.add(np.arange(1200), rows[:1200])
    gc.collect()
    index.add(np.arange(1200, 2400), rows[1200:])
    gc.collect()
    assert (index.search(rows[::100], 1, exact=True)[1][:, 0] == np.arange(0, 2400, 100)).all()


def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "linux" else 1024)


for _ in range(8):
    once()
before = most()
for _ in range(22):
    once()
assert all(answers) and len(answers) == 60, answers
print(most() - before)
"""


def test_codes_are_freed_once() -> None:
    done = subprocess.run([sys.executable, "-c", _LIVES], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    # The codes of one index take 1 MiB and then 2, those of 22 take 60.
    assert int(done.stdout) < 20 * 1024
