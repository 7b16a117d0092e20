"""The HNSW graph of an index: faiss ``IndexHNSWFlat`` or ``IndexHNSWSQ``, with labels, removal and filters around it.

HNSW: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
World graphs", 2016.

A node of the graph has a position, 0, 1, 2, ... in order of arrival, which never changes. The label of the row that
made the node is its owner; labels of equal rows that came later are its twins (see ``row_table``). A node without a
living label is a tombstone: it still leads searches on, and is in no result.

A graph may keep its rows in half precision (IEEE 754 binary16): half the memory, which is most of what a search waits
for. Distances are then a little off, so such a graph answers a few candidates more than it is asked for, and whoever
has the rows in full compares these again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from toondb_protocol.errors import InternalError

from .faiss_library import faiss
from .huge_pages import use_huge_pages
from .linking import is_worth_it, link_roughly, make_whole
from .metrics import Floats, Labels, Metric
from .row_table import RowTable, row_hashes
from .threads import in_parallel

__all__ = ["Found", "Graph", "ascending", "by_distance", "faiss_metric", "graph_index", "is_graph_index", "living_bits"]

Scalar = TypeVar("Scalar", bound=np.generic)
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Found = tuple[Floats, Labels]
"""Distances and labels, a row for each query; behind the last found one, infinity and -1."""

EXACT_FACTOR = 20
"""A step of a graph search costs about as much as this many rows of a scan (measured at 384 dimensions)."""

_SPARE = 8
"""Candidates beyond ``k`` in half precision. With 4 of them, recall is that of single precision (20,000 embeddings)."""

_HALF_ROUNDING = 2.0**-11 + 2.0**-16
"""How far a row of length 1 may be off in half precision: 2^-11 of its length, and 2^-25 for each tiny number."""

_HASHED_ROWS = 1 << 16
_LINK_SIZE = 4
_PART_OF = 4
"""Fewer than one in so many rows are copied out to be compared, rather than passed by."""

_KEPT_FILTERS = 32
_MOST_KEPT_ROWS = 4096
"""Rows of one filter that are kept copied out."""


class _Permitted:
    """What a graph makes of the labels that a search may answer, as of one state of the graph.

    Attributes:
        labels: The labels.
        positions: Their nodes, ascending.
        among: How many of the labels live here.
        selector: Of faiss, for its graph; made when it is needed.
        part: The rows alone, in half precision; made when they are needed.
    """

    __slots__ = ("among", "labels", "part", "positions", "selector")

    def __init__(self, labels: Labels, positions: Labels, among: int) -> None:
        self.labels = labels
        self.positions = positions
        self.among = among
        self.selector: Any = None
        self.part: Any = None


class Graph:
    """Rows by label, in a graph. The caller keeps writers apart from everybody else.

    Args:
        metric: How distances are measured.
        index: The faiss index; its nodes must have ``labels``.
        labels: The owner of each node.
        alive: Which owners live; all when omitted.
        twins: Living twins, ``[[position, label], ...]``.
        source: The mapped file that the index is a view of, if it is one: nothing can be added to it then.

    Attributes:
        half: The rows are kept in half precision; they have length 1.
    """

    def __init__(
        self,
        metric: Metric,
        index: Any,
        labels: Labels | None = None,
        alive: Bools | None = None,
        twins: Labels | None = None,
        *,
        source: Any = None,
    ) -> None:
        self.metric = metric
        self.index = index
        self._storage = faiss.downcast_index(index.storage)
        self.half = isinstance(index, faiss.IndexHNSWSQ)
        # Kept alive here: the C++ object points into it. Adding to it would end the process.
        self._source = source
        owners = np.empty(0, np.int64) if labels is None else labels
        living = np.ones(len(owners), np.bool_) if alive is None else alive
        self._labels: _Grown[np.int64] = _Grown(owners)
        self._alive: _Grown[np.bool_] = _Grown(living)
        self._ascending = bool(np.all(owners[1:] > owners[:-1]))
        self._positions: dict[int, int] | None = None
        self._twins: dict[int, list[int]] = {}
        self._twin_position: dict[int, int] = {}
        self._table: RowTable | None = None if len(owners) else RowTable()
        for position, label in [] if twins is None else twins.tolist():
            self._twins.setdefault(position, []).append(label)
            self._twin_position[label] = position
        nodes = living.copy()
        if self._twins:
            nodes[list(self._twins)] = True
        self._bits: _Grown[np.uint8] = _Grown(np.packbits(nodes, bitorder="little"))
        self._permitted: dict[int, _Permitted] = {}
        self._live_owners = int(np.count_nonzero(living))
        self._live_nodes = int(np.count_nonzero(nodes))

    def __len__(self) -> int:
        """The number of living labels."""
        return self._live_owners + len(self._twin_position)

    @property
    def nodes(self) -> int:
        """The number of nodes, tombstones among them."""
        return len(self._labels.view)

    @property
    def tombstones(self) -> int:
        """The number of nodes without a living label."""
        return self.nodes - self._live_nodes

    @property
    def labels(self) -> Labels:
        """The owner of each node, living or not."""
        return self._labels.view

    @property
    def alive(self) -> Bools:
        """Whether the owner of each node lives."""
        return self._alive.view

    @property
    def twins(self) -> Labels:
        """Living twins, ``[[position, label], ...]``."""
        pairs = [(position, label) for position, labels in self._twins.items() for label in labels]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    @property
    def max_neighbours(self) -> int:
        """M: the neighbours of a node on the upper levels; on level 0 it has twice as many."""
        return int(self.index.hnsw.nb_neighbors(1))

    def living_labels(self) -> Labels:
        """All living labels, ascending."""
        owners = self.labels[self.alive]
        twins = np.fromiter(self._twin_position, np.int64, len(self._twin_position))
        return np.sort(np.concatenate([owners, twins]))

    def rows(self, labels: Labels) -> tuple[Labels, Floats]:
        """The given labels that live, and a copy of their rows, as precise as they are here."""
        positions = np.array([self._living_position(label) for label in labels.tolist()], dtype=np.int64)
        there = positions >= 0
        return labels[there], _single(self._matrix()[positions[there]])

    # Changes

    def copy(self) -> Graph:
        """One that can be changed by itself."""
        index = faiss.clone_index(self.index)
        other = Graph(self.metric, index, self.labels.copy(), self.alive.copy(), self.twins)
        other._table = None if self._table is None else self._table.copy()
        return other

    def settle(self) -> None:
        """Prepare for many searches: called when nothing is added for a while."""
        if self._source is not None or not self.nodes:
            return
        for numbers, size in ((self._storage.codes, 1), (self.index.hnsw.neighbors, _LINK_SIZE)):
            use_huge_pages(int(numbers.data()), size * numbers.size())

    def add(self, labels: Labels, rows: Floats, threads: int) -> None:
        """Add rows under labels that are not there yet, all of them or none."""
        if self._source is not None:
            raise InternalError("an index that is mapped from a file cannot be changed.")
        if self.half:
            rows = _single(rows.astype(np.float16))  # what is equal when it is rounded is kept once
        in_parallel(lambda: self._add(labels, rows), threads)

    def _add(self, labels: Labels, rows: Floats) -> None:
        self._permitted.clear()
        hashes = row_hashes(rows)
        base, table = self.nodes, self._row_table()
        positions = table.find(hashes)
        known = np.flatnonzero(positions >= 0)
        if known.size:
            # A hash is no proof.
            differ = (self._matrix()[positions[known]] != rows[known]).any(axis=1)
            positions[known[differ]] = -1
        unknown = np.flatnonzero(positions < 0)
        _, first, group = np.unique(hashes[unknown], return_index=True, return_inverse=True)
        leader = unknown[first[group]]  # the first row of the batch with the same hash
        follows = leader != unknown
        follows[follows] = (rows[unknown[follows]] == rows[leader[follows]]).all(axis=1)
        makes = unknown[~follows]
        positions[makes] = np.arange(base, base + len(makes))
        positions[unknown[follows]] = positions[leader[follows]]

        if len(makes):
            try:
                self._link(rows if len(makes) == len(rows) else rows[makes])
            except BaseException:
                make_whole(self.index, base)
                self._bury(self.index.ntotal - base)
                raise
        table.add(hashes[makes], positions[makes])
        owners = labels[makes]
        last = self.labels[-1] if base else None
        if len(owners) and self._ascending:
            first_fits = last is None or owners[0] > last
            self._ascending = bool(first_fits and np.all(owners[1:] > owners[:-1]))
        self._labels.extend(owners)
        self._alive.extend(np.ones(len(owners), np.bool_))
        self._live_owners += len(owners)
        self._live_nodes += len(owners)
        self._grow_bits()
        self._set_bits(np.arange(base, base + len(owners)))
        if self._positions is not None:
            self._positions.update(zip(owners.tolist(), range(base, base + len(owners)), strict=True))
        joins = np.ones(len(rows), np.bool_)
        joins[makes] = False
        for position, label in zip(positions[joins].tolist(), labels[joins].tolist(), strict=True):
            self._join(position, label)

    def _link(self, rows: Floats) -> None:
        euclidean = self.metric is not Metric.DOT_PRODUCT
        if euclidean and is_worth_it(len(rows), self.nodes) and link_roughly(self.index, self._matrix(), rows):
            return
        self.index.add(rows)

    def _bury(self, nodes: int) -> None:
        """Make tombstones of nodes that faiss added and then had no memory to link."""
        self._ascending, self._positions = self._ascending and not nodes, None
        self._labels.extend(np.full(nodes, np.iinfo(np.int64).min))
        self._alive.extend(np.zeros(nodes, np.bool_))
        self._grow_bits()

    def _join(self, position: int, label: int) -> None:
        if not self._alive.view[position] and position not in self._twins:
            self._live_nodes += 1
            self._bits.view[position >> 3] |= 1 << (position & 7)
        self._twins.setdefault(position, []).append(label)
        self._twin_position[label] = position

    def remove(self, label: int) -> bool:
        """Remove a label; whether it was there."""
        self._permitted.clear()
        position = self._twin_position.pop(label, -1)
        if position >= 0:
            others = self._twins[position]
            others.remove(label)
            if others:
                return True
            del self._twins[position]
            if self._alive.view[position]:
                return True
        else:
            position = self._owner_position(label)
            if position < 0 or not self._alive.view[position]:
                return False
            self._alive.view[position] = False
            self._live_owners -= 1
            if position in self._twins:
                return True
        self._live_nodes -= 1
        self._bits.view[position >> 3] &= 0xFF ^ (1 << (position & 7))
        return True

    def __contains__(self, label: int) -> bool:
        """Whether a label lives here."""
        return self._living_position(label) >= 0

    # Searches

    def search(
        self, queries: Floats, k: int, ef: int, allowed: Labels | None, threads: int, *, exact: bool = False
    ) -> Found:
        """The ``k`` nearest living labels, or all there are; in half precision some more, see :meth:`how_near`.

        Args:
            queries: Rows.
            k: How many labels.
            ef: How many candidates a search keeps; ``k`` at the least is used.
            allowed: Only these labels, ascending and each once; all when omitted.
            threads: At the most, for several queries.
            exact: Compare with every row.
        """
        permitted = None if allowed is None else self._permit(allowed)
        among = len(self) if permitted is None else permitted.among
        # Each node has one label at least, so k nodes are enough for k labels.
        nodes = self._live_nodes if permitted is None else len(permitted.positions)
        spare = _SPARE if self.half else 0
        wanted = min(k + spare, nodes)
        if wanted == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        effort = max(ef, wanted)
        widened = min(self.nodes, math.ceil(effort * self.nodes / nodes))
        if exact or nodes <= EXACT_FACTOR * widened:
            raw, found = self._scan(queries, wanted, permitted, threads)
            while wanted < nodes and self.half and not self._is_enough(raw, k):
                wanted = min(2 * wanted, nodes)
                raw, found = self._scan(queries, wanted, permitted, threads)
        else:
            selector = self._selector(permitted)
            if selector is None:
                parameters = _parameters(widened)
            else:
                parameters = faiss.SearchParametersHNSW(efSearch=widened, sel=selector)
            raw, found = _run(self.index, queries, wanted, parameters, threads)
            # The graph need not be connected, and what the filter lets through may lie far away.
            short = np.flatnonzero(found[:, -1] < 0)
            if short.size:
                raw[short], found[short] = self._scan(queries[short], wanted, permitted, threads)
        distances = self.metric.distances(raw)
        if not self._twins:
            return distances, self.labels[found]
        return self._with_twins(distances, found, min(k + spare, among), allowed)

    def candidates(self, query: Floats, k: int, ef: int) -> Labels | None:
        """The labels that may be among the ``k`` nearest of one query; None = :meth:`search` has to look for them.

        What is there in most searches, without the general case: that takes a third as long as the graph itself.
        """
        wanted = k + _SPARE if self.half else k
        if self._twins or self.tombstones or self.nodes <= EXACT_FACTOR * max(ef, wanted):
            return None
        raw, found = _run(self.index, query, wanted, _parameters(max(ef, wanted)), 1)
        near = raw[0].tolist()
        if found[0, -1] < 0:
            return None
        if self.half:
            within = math.sqrt(max(near[k - 1], 0.0)) + 2 * _HALF_ROUNDING  # see how_near; these are squares
            wanted = bisect_right(near, within * within)
        return self.labels[found[0, :wanted]]

    def how_near(self, distances: Floats) -> tuple[Floats, Floats]:
        """The least and the greatest that the true distances may be, for those that a search in half precision gave."""
        # | |q-x| - |q-x'| | <= |x-x'|, x' being the rounded x. The distance is half of the square.
        lengths, rounding = np.sqrt(np.float32(2) * distances), np.float32(_HALF_ROUNDING)
        low, high = np.maximum(lengths - rounding, np.float32(0)), lengths + rounding
        return low * low * np.float32(0.5), high * high * np.float32(0.5)

    def _is_enough(self, raw: Floats, k: int) -> bool:
        """Whether all of the true ``k`` nearest are among what a scan found."""
        distances = self.metric.distances(raw)
        low, _ = self.how_near(distances[:, -1])
        _, high = self.how_near(distances[:, k - 1])
        return bool((low > high).all())

    def _scan(self, queries: Floats, k: int, permitted: _Permitted | None, threads: int) -> tuple[Floats, Labels]:
        if permitted is None:
            selector = self._selector(None)
        elif not self.half:
            # The C++ object only points to the array; the Python object keeps it alive.
            selector = faiss.IDSelectorArray(permitted.positions)
        elif len(permitted.positions) * _PART_OF < self.nodes:
            raw, found = _run(self._part(permitted), queries, k, None, threads)
            return raw, permitted.positions[found]
        else:
            selector = self._selector(permitted)
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        return _run(self._storage, queries, k, parameters, threads)

    def _part(self, permitted: _Permitted) -> Any:
        """An index of some rows alone."""
        part = permitted.part
        if part is None:
            part = faiss.IndexScalarQuantizer(self.index.d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
            part.add_sa_codes(self._matrix()[permitted.positions].view(np.uint8))
            if len(permitted.positions) <= _MOST_KEPT_ROWS:
                permitted.part = part
        return part

    def _selector(self, permitted: _Permitted | None) -> Any:
        """What faiss is told to answer; None = any node."""
        if permitted is None:
            return faiss.IDSelectorBitmap(self._bits.view) if self.tombstones else None
        if permitted.selector is None:
            permitted.selector = faiss.IDSelectorBitmap(_bits(permitted.positions, self.nodes))
        return permitted.selector

    def _permit(self, labels: Labels) -> _Permitted:
        """The nodes of these labels; remembered for labels that nobody can change, until the graph does."""
        known = self._permitted.get(id(labels))
        if known is not None and known.labels is labels:
            return known
        made = _Permitted(labels, *self._allowed(labels))
        if not labels.flags.writeable:
            if len(self._permitted) >= _KEPT_FILTERS:
                self._permitted.clear()
            self._permitted[id(labels)] = made
        return made

    def _allowed(self, labels: Labels) -> tuple[Labels, int]:
        """The positions of the nodes of these labels, ascending, and how many of the labels live here."""
        if not self.nodes:
            return np.empty(0, np.int64), 0
        if self._ascending:
            at = np.minimum(np.searchsorted(self.labels, labels), self.nodes - 1)
            owned = (self.labels[at] == labels) & self.alive[at]
            positions = at[owned].astype(np.int64)
        else:
            found = np.array([self._owner_position(label) for label in labels.tolist()], dtype=np.int64)
            positions = found[found >= 0]
            positions = positions[self.alive[positions]]
        among = len(positions)
        if self._twin_position:
            places = [self._twin_position[label] for label in labels.tolist() if label in self._twin_position]
            among += len(places)
            positions = np.concatenate([positions, np.array(places, dtype=np.int64)])
        return ascending(positions), among

    def _with_twins(self, distances: Floats, found: Labels, k: int, allowed: Labels | None) -> Found:
        far = np.full((len(found), k), np.inf, np.float32)
        labels = np.full((len(found), k), -1, np.int64)
        permitted = None if allowed is None else set(allowed.tolist())
        for row, positions in enumerate(found.tolist()):
            pairs: list[tuple[float, int]] = []
            for distance, position in zip(distances[row].tolist(), positions, strict=True):
                if len(pairs) >= k:
                    break
                here = list(self._twins.get(position, ()))
                if self._alive.view[position]:
                    here.append(int(self._labels.view[position]))
                pairs += [(distance, label) for label in sorted(here) if permitted is None or label in permitted]
            del pairs[k:]
            far[row, : len(pairs)] = [distance for distance, _ in pairs]
            labels[row, : len(pairs)] = [label for _, label in pairs]
        return far, labels

    # Positions

    def _matrix(self) -> NDArray[Any]:
        """The rows of all nodes, where faiss has them: valid until the next is added."""
        count, dimension = self.nodes, self.index.d
        if self.half:
            size = 2 * dimension
            codes: Bytes = np.empty(0, np.uint8)
            if count:
                codes = faiss.rev_swig_ptr(self._storage.codes.data(), count * size)
            return codes.view(np.float16).reshape(count, dimension)
        if count == 0:
            return np.empty((0, dimension), np.float32)
        flat: Floats = faiss.rev_swig_ptr(self._storage.get_xb(), count * dimension)
        return flat.reshape(count, dimension)

    def _row_table(self) -> RowTable:
        if self._table is None:
            table = RowTable()
            matrix = self._matrix()
            for start in range(0, self.nodes, _HASHED_ROWS):
                hashes = row_hashes(_single(matrix[start : start + _HASHED_ROWS]))
                table.add(hashes, np.arange(start, start + len(hashes)))
            self._table = table
        return self._table

    def _owner_position(self, label: int) -> int:
        labels = self._labels.view
        if self._ascending:
            at = int(np.searchsorted(labels, label))
            return at if at < len(labels) and labels[at] == label else -1
        if self._positions is None:
            self._positions = dict(zip(labels.tolist(), range(len(labels)), strict=True))
        return self._positions.get(label, -1)

    def _living_position(self, label: int) -> int:
        position = self._twin_position.get(label, -1)
        if position < 0:
            position = self._owner_position(label)
            if position >= 0 and not self._alive.view[position]:
                return -1
        return position

    def _grow_bits(self) -> None:
        missing = (self.nodes + 7) // 8 - len(self._bits.view)
        self._bits.extend(np.zeros(missing, np.uint8))

    def _set_bits(self, positions: Labels) -> None:
        np.bitwise_or.at(self._bits.view, positions >> 3, np.left_shift(1, positions & 7).astype(np.uint8))


def ascending(numbers: Labels) -> Labels:
    """The numbers in ascending order, each once. To look whether they are costs far less than to make them so."""
    if (numbers[1:] > numbers[:-1]).all():
        return numbers
    return np.unique(numbers)


def graph_index(dimension: int, metric: Metric, m: int, ef_construction: int, *, half: bool) -> Any:
    """An empty index of faiss for a graph; ``half`` goes with the metric cosine alone."""
    if half:
        index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_fp16, m, faiss.METRIC_L2)
    else:
        index = faiss.IndexHNSWFlat(dimension, m, faiss_metric(metric))
    index.hnsw.efConstruction = ef_construction
    return index


def is_graph_index(index: Any, dimension: int, metric: Metric, nodes: int, *, half: bool) -> bool:
    """Whether an index that faiss has read is one that :func:`graph_index` made."""
    kind = faiss.IndexHNSWSQ if half else faiss.IndexHNSWFlat
    if (type(index), index.d, index.ntotal, index.metric_type) != (kind, dimension, nodes, faiss_metric(metric)):
        return False
    storage = faiss.downcast_index(index.storage)
    if not half:
        return isinstance(storage, faiss.IndexFlat) and storage.ntotal == nodes
    return (
        isinstance(storage, faiss.IndexScalarQuantizer)
        and storage.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and (storage.d, storage.ntotal, storage.codes.size()) == (dimension, nodes, 2 * dimension * nodes)
    )


def faiss_metric(metric: Metric) -> int:
    """The metric of faiss that an index of this one uses."""
    return int(faiss.METRIC_INNER_PRODUCT if metric is Metric.DOT_PRODUCT else faiss.METRIC_L2)


@lru_cache(64)
def _parameters(ef: int) -> Any:
    """Parameters of a search without a filter. Nobody changes them."""
    return faiss.SearchParametersHNSW(efSearch=ef)


def _single(rows: NDArray[Any]) -> Floats:
    return rows.astype(np.float32, copy=False)


def living_bits(alive: Bools) -> Bytes:
    """Flags as bits, the first in the lowest."""
    return np.packbits(alive, bitorder="little")


def by_distance(parts: list[Found], k: int) -> Found:
    """The ``k`` nearest of several results, in the order of distance; equal ones in the order of label."""
    distances = np.concatenate([part[0] for part in parts], axis=1)
    labels = np.concatenate([part[1] for part in parts], axis=1)
    order = np.lexsort((labels, distances), axis=1)[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(labels, order, axis=1)


def _bits(positions: Labels, size: int) -> Bytes:
    flags = np.zeros(size, np.bool_)
    flags[positions] = True
    return living_bits(flags)


def _run(index: Any, queries: Floats, k: int, parameters: Any, threads: int) -> tuple[Floats, Labels]:
    # Parameters go with the call: what is set on the index itself would hold for every other thread, too.
    found: tuple[Floats, Labels]
    if len(queries) == 1 and isinstance(index, faiss.IndexHNSW):
        # Faiss makes no team of threads for it. Without the checks of its Python layer, which cost as much as the
        # search of a small graph; the query is float32 in one piece.
        found = np.empty((1, k), np.float32), np.empty((1, k), np.int64)
        raw, labels = map(faiss.swig_ptr, found)
        index.search_c(1, faiss.swig_ptr(queries), k, raw, labels, parameters)
        return found
    several = max(1, min(threads, len(queries)))
    found = in_parallel(lambda: index.search(queries, k, params=parameters), several)
    return found


class _Grown(Generic[Scalar]):
    """An array that grows at its end, with room to spare.

    Attributes:
        view: What it holds.
    """

    def __init__(self, values: NDArray[Scalar]) -> None:
        self._all = values
        self.view = values

    def extend(self, values: NDArray[Scalar]) -> None:
        """Append values; views taken before may not see later changes."""
        size = len(self.view)
        if size + len(values) > len(self._all):
            room = np.zeros(max(64, 2 * size, size + len(values)), dtype=self._all.dtype)
            room[:size] = self.view
            self._all = room
        self._all[size : size + len(values)] = values
        self.view = self._all[: size + len(values)]
