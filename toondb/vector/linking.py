"""Linking rows into a graph by distances in 8 bits.

To build a graph is to measure distances, thousands for each row, and in 8 bits faiss measures them in whole numbers
and reads a quarter of the memory: with 384 numbers in a row a graph is made in two thirds of the time, with 768 in
half. The graph keeps its rows as they are, and searches measure these; only which rows are linked was decided roughly.
Recall is the same (20,000 embeddings of 384 numbers, and 10,000 random ones of 768).

The numbers become ``round((x - lowest) * scale)``, ``lowest`` for each dimension and one scale for all of them, so that
squared distances are those of the rows but for a factor and the rounding.

Rows that lie together more closely than 8 bits can tell would be linked at random. So it is looked at first whether
the nearest of some rows are the same in 8 bits; where they are not, rows are linked by what they are. Clusters of such
rows that are few among many are found by random projections (Datar et al., "Locality-sensitive hashing scheme based on
p-stable distributions", 2004), and looked at by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faiss_library import faiss
from .metrics import Floats, Labels

__all__ = ["MOST_BEFORE", "is_worth_it", "link_roughly", "make_whole"]

Bytes = NDArray[np.uint8]
Cells = NDArray[np.uint64]
Rows = NDArray[Any]
"""In single or half precision."""

_FEWEST = 1000
MOST_BEFORE = 16
"""Rows that are there for each new one at the most: they are brought into 8 bits for each call. With 20 nothing is won
in half precision, with 30 nothing in single precision."""

_LEAST_DIMENSION = 256
"""With fewer numbers in a row distances take too little of the time."""

_LANES = 16
"""With a multiple of so many numbers in a row faiss measures in whole numbers; otherwise slower than without 8 bits."""

_HIGHEST = 255
_NARROWEST, _WIDEST = 1e-18, 1e19
"""Squares of differences are numbers of single precision within this."""

_AT_ONCE = 4096
_ASKED = 32
_COMPARED = 16_384
_NEAREST = 16
_SAME = 0.9
"""Of the true nearest, so many must be among the nearest in 8 bits. Embeddings of texts reach 0.99."""

_DIRECTIONS = 8
_CELL = 8
"""Two rows whose numbers differ by a half in 8 bits share a cell of this size in two cases of three."""

_CROWD = 24
"""Fewer rows than a node has neighbours are linked all to each other, however rough their distances."""
_MOST_OF_CROWD = 1024
_LOST = 0.002
"""Of the new rows, so many may lie in crowds that are not told apart. Their recall is lower by 0.03 to 0.2."""


def is_worth_it(new: int, before: int) -> bool:
    """Whether so many new rows beside those that are there are linked faster in 8 bits."""
    return new >= _FEWEST and before <= MOST_BEFORE * new


def link_roughly(index: Any, before: Rows, rows: Floats) -> bool:
    """Add rows to a graph of faiss that measures Euclidean distances.

    Until it is done it takes a byte for each number of all rows, and four for each number of the new ones.

    Args:
        index: ``IndexHNSWFlat`` or ``IndexHNSWSQ``.
        before: The rows that it has.
        rows: The new ones, all of them different.

    Returns:
        Whether it was done; False = these rows need more than 8 bits or nothing is won, and nothing was changed.

    Raises:
        MemoryError: There is not enough, and some of the new rows may be linked already: they stay in the graph.
    """
    nodes = index.ntotal
    try:
        return _is_faster(index) and _link(index, before, rows)
    except MemoryError:
        if index.ntotal > nodes:
            raise
        return False  # without 8 bits less is needed


def _link(index: Any, before: Rows, rows: Floats) -> bool:
    grid = _Grid(before, rows)
    if not grid.is_possible:
        return False
    rough = faiss.IndexScalarQuantizer(grid.dimension, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2)
    cells = []
    for part in _parts(before):
        codes = grid.codes(part)
        cells.append(_cells(codes))
        rough.add_sa_codes(codes.astype(np.uint8))
    codes = grid.codes(rows)
    cells += [_cells(part) for part in _parts(codes)]
    coded = _Coded(before, rows, _codes_of(rough), codes)
    if not (coded.tells_apart() and coded.tells_crowds_apart(np.concatenate(cells))):
        return False
    nodes, dimension = index.ntotal, index.d
    precise = faiss.downcast_index(index.storage)
    try:
        precise.add(rows)
        index.storage, index.d = rough, grid.dimension
        index.add(codes)
    finally:
        index.storage, index.d = precise, dimension
        # To assign it was to give it away, and the graph frees only what it has in the end.
        rough.thisown = True
        make_whole(index, nodes)
    return True


def make_whole(index: Any, nodes: int) -> None:
    """Make the parts of a graph of faiss agree again when an addition had no memory for some of them.

    Adding takes memory for the rows, then for levels, offsets and neighbours, and only then links. Without this the
    next addition would end the process, or write beyond the end of an array.

    Args:
        index: ``IndexHNSWFlat`` or ``IndexHNSWSQ``, and its own storage.
        nodes: The nodes that it had before. There may be more afterwards: these may be linked, so they stay.
    """
    hnsw, storage = index.hnsw, faiss.downcast_index(index.storage)
    total = storage.ntotal
    have_places = hnsw.levels.size() == total and hnsw.offsets.size() == total + 1
    if have_places and hnsw.neighbors.size() == hnsw.offsets.at(total):
        index.ntotal = total
        return
    hnsw.levels.resize(nodes)
    hnsw.offsets.resize(nodes + 1)
    hnsw.neighbors.resize(hnsw.offsets.at(nodes))
    if total > nodes:
        storage.remove_ids(faiss.IDSelectorRange(nodes, total))
    index.ntotal = nodes


def _is_faster(index: Any) -> bool:
    # In half precision faiss takes one number at a time where they are not a multiple of 16.
    return bool(index.d >= _LEAST_DIMENSION or (index.d % _LANES and isinstance(index, faiss.IndexHNSWSQ)))


class _Grid:
    """Where the numbers of 8 bits lie.

    Attributes:
        is_possible: Whether the rows are of a size that can be brought there.
        dimension: Numbers in a row of codes; those that the rows do not have are 0.
    """

    def __init__(self, *rows: Rows) -> None:
        bounds = [_bounds(part) for each in rows for part in _parts(each)]
        self._lowest: Floats = np.min([lowest for lowest, _ in bounds], axis=0)
        highest = np.max([highest for _, highest in bounds], axis=0)
        width = float((highest - self._lowest).max())
        self.is_possible = _NARROWEST < width < _WIDEST
        self.dimension = -(-len(highest) // _LANES) * _LANES
        self._scale = np.float32(_HIGHEST / width if self.is_possible else 1.0)

    def codes(self, rows: Rows) -> Floats:
        """Whole numbers of 0 to 255."""
        codes = np.zeros((len(rows), self.dimension), np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            part = codes[start : start + _AT_ONCE, : rows.shape[1]]
            np.subtract(rows[start : start + _AT_ONCE], self._lowest, out=part)
            part *= self._scale
            np.rint(part, out=part)
            np.minimum(part, _HIGHEST, out=part)
        return codes


class _Coded:
    """Rows and their codes, those that a graph has and new ones."""

    def __init__(self, before: Rows, rows: Floats, codes_before: Bytes, codes: Floats) -> None:
        self._rows: list[Rows] = [before, rows]
        self._codes: list[Rows] = [codes_before, codes]
        self._before, self._new = len(before), len(rows)

    def tells_apart(self) -> bool:
        """Whether the nearest of some of the new rows are the same by their codes."""
        step = -(-(self._before + self._new) // min(_COMPARED, 2 * self._new))
        asked = np.linspace(0, self._new - 1, _ASKED).astype(np.int64)
        true, rough = (
            _nearest(of[1][asked], [part for each in of for part in _parts(each[::step])])
            for of in (self._rows, self._codes)
        )
        return _share(true, rough) >= _SAME

    def tells_crowds_apart(self, cells: Cells) -> bool:
        """Whether the same holds where rows are close together, but for a few.

        Args:
            cells: The cell of each row.
        """
        order = np.argsort(cells, kind="stable")
        _, starts, counts = np.unique(cells[order], return_index=True, return_counts=True)
        of_crowds = np.repeat(counts >= _CROWD, counts) & (order >= self._before)
        crowded = np.flatnonzero(of_crowds)
        if len(crowded) <= _LOST * self._new:
            return True
        asked = crowded[np.linspace(0, len(crowded) - 1, min(_ASKED, len(crowded))).astype(np.int64)]
        crowds, here = np.unique(np.searchsorted(starts, asked, side="right") - 1, return_inverse=True)
        lost = 0
        for number, crowd in enumerate(crowds.tolist()):
            start, count = starts[crowd], counts[crowd]
            members = order[start : start + count : -(-count // _MOST_OF_CROWD)]
            queries = order[asked[here == number]]
            true, rough = (_nearest(_taken(of, queries), [_taken(of, members)]) for of in (self._rows, self._codes))
            if _share(true, rough) < _SAME:
                lost += len(queries)
        return lost / len(asked) * len(crowded) <= _LOST * self._new


def _bounds(rows: Rows) -> tuple[Floats, Floats]:
    rows = rows.astype(np.float32, copy=False)  # a tenth of the time that half precision takes
    return rows.min(axis=0), rows.max(axis=0)


def _taken(of: list[Rows], places: Labels) -> Floats:
    first = len(of[0])
    early, late = places[places < first], places[places >= first]
    return np.concatenate([of[0][early].astype(np.float32), of[1][late - first]])


def _nearest(queries: Floats, parts: list[Rows]) -> Labels:
    """The numbers of the rows that are nearest to each query."""
    # Far from the origin the squares would swallow the differences.
    origin = queries.mean(axis=0)
    queries = queries - origin
    squares = []
    for part in parts:
        moved = part - origin
        squares.append(np.einsum("ij,ij->i", moved, moved) - 2 * (queries @ moved.T))
    distances = np.concatenate(squares, axis=1)
    count = min(_NEAREST, distances.shape[1] // 2)
    return np.argpartition(distances, count - 1, axis=1)[:, :count]


def _share(true: Labels, rough: Labels) -> float:
    """How many of the true ones were found."""
    return sum(int(np.isin(one, other).sum()) for one, other in zip(true, rough, strict=True)) / true.size


def _cells(codes: Floats) -> Cells:
    """In which cell of some random projections each row lies, one byte for each projection."""
    directions = np.random.default_rng(0).standard_normal((codes.shape[1], _DIRECTIONS)).astype(np.float32)
    directions /= np.float32(_CELL * codes.shape[1] ** 0.5)
    places = np.floor(codes @ directions).astype(np.int64).astype(np.uint8)  # so the farthest come around
    cells: Cells = places.view(np.uint64)[:, 0]
    return cells


def _parts(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def _codes_of(rough: Any) -> Bytes:
    if not rough.ntotal:
        return np.empty((0, rough.d), np.uint8)
    codes: Bytes = faiss.rev_swig_ptr(rough.codes.data(), rough.ntotal * rough.d)
    return codes.reshape(rough.ntotal, rough.d)
