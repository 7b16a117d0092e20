"""Building HNSW index files from many vectors at once, and asking them.

An index file is mapped into memory: a query reads what its search looks at, and the system keeps that in its cache.
The same files are written by ``VectorIndex.save`` and read by ``VectorIndex.load``. ``toondb-bulk`` is this module as a
command.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toondb_protocol.errors import ValidationError

from .vector.atomic_file import Name, open_regular, replacing, target
from .vector.hnsw import CHUNK_ROWS, HnswIndex, check_ef, check_k
from .vector.hnsw_file import read_index, write_index
from .vector.ids import Id, Numbers, read_ids, write_numbers
from .vector.linking import MOST_BEFORE
from .vector.metrics import DEFAULT_EF_CONSTRUCTION, DEFAULT_M, Floats, Labels
from .vector.sections import VERSION, SectionReader, SectionWriter
from .vector.vector_files import Format, convert_to, parts, read_integers, vectors_of

__all__ = [
    "BuildStats",
    "ConvertStats",
    "IndexInfo",
    "Neighbor",
    "Progress",
    "bulk_build_index",
    "bulk_convert",
    "bulk_info",
    "bulk_query_batch",
    "bulk_query_index",
    "recall",
]

_STEP_WORK = 1 << 30
_ROW_WORK = 128
"""A step has so many rows that candidates times numbers in a row are this many: 2 or 3 seconds on two processors.
Several threads lose a fifth of their time where small steps take the place of a large one. A row costs as much as so
many numbers more."""

Progress = Callable[[int, int], object]
"""Called with how many vectors are done, and of how many."""


@dataclass(frozen=True, slots=True)
class BuildStats:
    """What :func:`bulk_build_index` did.

    Attributes:
        vectors: Vectors in the index.
        dimension: Numbers in each.
        seconds: From the first read to the durable file.
        build_seconds: Of these, for the graph: reading, checking and linking.
        size_bytes: Size of the file.
        output: The file.
    """

    vectors: int
    dimension: int
    seconds: float
    build_seconds: float
    size_bytes: int
    output: Path

    @property
    def rate(self) -> float:
        """Vectors per second, over all of ``seconds``."""
        return self.vectors / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A vector near a query.

    Attributes:
        id: Its id.
        distance: Lower is nearer: 1 - cos, the Euclidean length, or the negated inner product.
    """

    id: Id
    distance: float


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index file says about itself.

    Attributes:
        dimension: Numbers in each vector.
        vectors: How many vectors.
        metric: ``"cosine"``, ``"euclidean"`` or ``"dot_product"``.
        max_connections: Neighbours of a node of the graph (M); twice as many on the lowest level.
        ef_construction: Candidates that an insertion looked at.
        tombstones: Nodes whose vectors were deleted.
        size_bytes: Size of the file.
        version: Of the file's format.
    """

    dimension: int
    vectors: int
    metric: str
    max_connections: int
    ef_construction: int
    tombstones: int
    size_bytes: int
    version: int


@dataclass(frozen=True, slots=True)
class ConvertStats:
    """What :func:`bulk_convert` did.

    Attributes:
        vectors: Vectors written.
        dimension: Numbers in each.
        size_bytes: Size of the new file.
        output: The new file.
    """

    vectors: int
    dimension: int
    size_bytes: int
    output: Path


def bulk_build_index(
    embeddings: Any,
    output: Name,
    *,
    ids: Any = None,
    dimension: int | None = None,
    format: str | None = None,
    metric: str = "cosine",
    m: int = DEFAULT_M,
    ef_construction: int = DEFAULT_EF_CONSTRUCTION,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BuildStats:
    """Build an index file, which appears whole or not at all.

    The input may be larger than memory; the index with its vectors must fit in it while it is built.

    Args:
        embeddings: A matrix of shape ``(n, dimension)``, or the path of a file of vectors.
        output: The file; one that exists is replaced.
        ids: An integer from 0 to 2^64 - 1 for each vector, or the path of a file of them; 0, 1, 2, ... when omitted.
        dimension: Numbers in each vector. Only raw files need it; others must have it when it is given.
        format: Of the input file: ``"npy"``, ``"fvecs"`` or ``"raw_f32"``; by default its suffix tells.
        metric: ``"cosine"``, ``"euclidean"`` or ``"dot_product"``.
        m: Neighbours of a node of the graph, 2 to 512.
        ef_construction: Candidates that an insertion looks at: more is slower and finds better neighbours.
        threads: None or 0: one for each processor.
        progress: Called after each part.

    Raises:
        ValidationError: A file is missing or not what its name says; NaN, infinity or a vector without direction
            (cosine); ids that are not as many, not in range, or there twice.
        DimensionMismatchError: The vectors have another dimension than ``dimension``.
        ConfigurationError: An option is unknown or out of bounds.
        StorageFullError: The disk is full.
    """
    started = time.perf_counter()
    place = target(output)
    vectors = vectors_of(embeddings, "the input", dimension, format)
    index = HnswIndex(vectors.dimension, metric, m, ef_construction, threads)
    numbers = None if ids is None else _numbers(ids, vectors.rows)
    least = max(CHUNK_ROWS, _STEP_WORK // (index.ef_construction * (vectors.dimension + _ROW_WORK)))
    for first, part in parts(vectors):
        # Between two steps the progress is told, and Ctrl-C is heard. Few rows are not linked roughly to many.
        step = max(least, first // MOST_BEFORE)
        for start in range(first, first + len(part), step):
            rows = part[start - first : start - first + step]
            stop = start + len(rows)
            index.add(np.arange(start, stop), index.prepare(rows, vectors.name, start))
            if progress is not None:
                progress(stop, vectors.rows)
    index.flush()
    built = time.perf_counter()
    labels = np.arange(vectors.rows)
    with replacing(place) as file:
        writer = SectionWriter(file)
        kind = "label" if numbers is None else write_numbers(writer, numbers, labels)
        write_index(writer, index, {"ids": kind, "next": vectors.rows})
        size = file.seek(0, os.SEEK_END)
    ended = time.perf_counter()
    return BuildStats(vectors.rows, vectors.dimension, ended - started, built - started, size, Path(output))


def bulk_query_index(
    index: Name, query: Any, k: int = 10, ef_search: int | None = None, *, format: str | None = None
) -> list[Neighbor]:
    """The nearest vectors of one query.

    The file last asked stays mapped, so further queries do not check and open it again.

    Args:
        index: The index file.
        query: A vector, or the path of a file with one.
        k: How many; fewer are returned only when there are no more.
        ef_search: Candidates that the search keeps, ``k`` at the least; 64 when omitted. More is slower and finds more
            of the true nearest.
        format: Of a query file, as for :func:`bulk_build_index`.

    Returns:
        Neighbours, nearest first.

    Raises:
        ValidationError: A file is missing or not what its name says; ``k`` or ``ef_search`` is not 1 or more; NaN,
            infinity or no direction (cosine); there is more than one query.
        DimensionMismatchError: The query has another dimension than the index.
        CorruptionError: The index file is damaged or cut short.
    """
    opened = _open(index)
    queries = opened.queries(query, format)
    if len(queries) != 1:
        raise ValidationError(
            f"there are {len(queries):,} queries.", remediation="Give one vector, or use bulk_query_batch for several."
        )
    ids, distances = opened.search(queries, k, ef_search, exact=False, threads=1)
    return [Neighbor(one, distance) for one, distance in zip(ids.tolist()[0], distances.tolist()[0], strict=True)]


def bulk_query_batch(
    index: Name,
    queries: Any,
    k: int = 10,
    ef_search: int | None = None,
    *,
    format: str | None = None,
    exact: bool = False,
    threads: int | None = None,
) -> tuple[NDArray[Any], Floats]:
    """The nearest vectors of many queries, searched in parallel.

    Args:
        index: The index file.
        queries: A matrix, or the path of a file of vectors.
        k: As for :func:`bulk_query_index`.
        ef_search: As for :func:`bulk_query_index`.
        format: As for :func:`bulk_query_index`.
        exact: Compare each query with every vector: the true nearest, slowly.
        threads: None or 0: one for each processor.

    Returns:
        Ids and distances, two matrices of shape ``(n, min(k, vectors))``. Ids are uint64, or objects when they are not
        all numbers.

    Raises:
        ToonDBError: As for :func:`bulk_query_index`.
    """
    opened = _open(index)
    return opened.search(opened.queries(queries, format), k, ef_search, exact=exact, threads=threads)


def bulk_info(index: Name, *, verify: bool = False) -> IndexInfo:
    """What an index file says about itself.

    Args:
        index: The index file.
        verify: Read all of it and compare its checksums; otherwise only the header is read.

    Raises:
        ValidationError: There is no such file, or it is another kind of file.
        CorruptionError: It is damaged or cut short.
    """
    with open_regular(index, "the index") as file:
        reader = SectionReader(file, os.fspath(index))
        if verify:
            reader.verify()
    about = reader.about
    try:
        return IndexInfo(
            dimension=int(about["dimension"]),
            vectors=int(about["vectors"]),
            metric=str(about["metric"]),
            max_connections=int(about["m"]),
            ef_construction=int(about["ef_construction"]),
            tombstones=int(about["tombstones"]),
            size_bytes=reader.size,
            version=VERSION,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise reader.damaged(f"its header is not that of an index ({error})") from None


def bulk_convert(
    source: Any,
    output: Name,
    to_format: str,
    *,
    dimension: int | None = None,
    format: str | None = None,
    progress: Progress | None = None,
) -> ConvertStats:
    """Write vectors in another format, a part at a time.

    Args:
        source: The path of a file of vectors, or a matrix.
        output: The new file, which appears whole or not at all.
        to_format: ``"npy"``, ``"fvecs"`` or ``"raw_f32"``; all float32.
        dimension: As for :func:`bulk_build_index`.
        format: Of the source, as for :func:`bulk_build_index`.
        progress: Called after each part.

    Raises:
        ValidationError: The source is missing, not what its name says, or has NaN or infinity.
        DimensionMismatchError: The vectors have another dimension than ``dimension``.
        ConfigurationError: A format is unknown.
        StorageFullError: The disk is full.
    """
    kind = Format.named(to_format)
    place = target(output)
    vectors = vectors_of(source, "the input", dimension, format)
    with replacing(place) as file:
        convert_to(file, vectors, kind, progress or (lambda done, rows: None))
        size = file.seek(0, os.SEEK_END)
    return ConvertStats(vectors.rows, vectors.dimension, size, Path(output))


def recall(found: NDArray[Any], truth: Any, k: int) -> float:
    """How much of the true nearest was found.

    That is recall@k: the mean share of the first ``k`` true ids that are among the first ``k`` found.

    Args:
        found: Ids, a row for each query.
        truth: The ids of the true nearest, nearest first: a matrix, or the path of a ``.npy`` or ``.ivecs`` file.
        k: How many of each row.

    Raises:
        ValidationError: Truth is not a matrix of integers with as many rows, and ``k`` columns; ``k`` is not 1 or more.
    """
    k = check_k(k)
    matrix = read_integers(truth, "the truth") if isinstance(truth, str | Path) else np.asarray(truth)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iu" or len(matrix) != len(found) or matrix.shape[1] < k:
        raise ValidationError(
            f"the truth is a matrix of {matrix.dtype} of shape {matrix.shape}.",
            remediation=f"For {len(found):,} queries and k = {k} give integers of shape ({len(found)}, {k}) or wider.",
        )
    if not len(found):
        raise ValidationError("there are no queries.", remediation="Give one at the least.")
    shares = [len({*row[:k]} & {*true[:k]}) for row, true in zip(found.tolist(), matrix.tolist(), strict=True)]
    return sum(shares) / (k * len(shares))


class _Opened:
    """An index file, mapped."""

    def __init__(self, path: Name) -> None:
        with open_regular(path, "the index") as file:
            self.state = _state(os.fstat(file.fileno()))
            reader = SectionReader(file, os.fspath(path))
        reader.verify()
        self._hnsw = read_index(reader, mapped=True)
        labels = self._hnsw.labels()
        ids = read_ids(reader, labels)
        self._labels = labels
        self._ids: NDArray[Any] = ids if isinstance(ids, np.ndarray) else _objects(ids)

    def queries(self, source: Any, format: str | None) -> Floats:
        """Queries from an array or a file, checked and prepared."""
        vectors = vectors_of(source, "the query", self._hnsw.dimension, format, one_is_enough=True)
        return self._hnsw.prepare(vectors.read(0, vectors.rows), vectors.name)

    def search(
        self, queries: Floats, k: int, ef: int | None, *, exact: bool, threads: int | None
    ) -> tuple[NDArray[Any], Floats]:
        """Ids and distances."""
        distances, labels = self._hnsw.search(queries, check_k(k), check_ef(ef), exact=exact, threads=threads)
        return self._ids_of(labels), distances

    def _ids_of(self, labels: Labels) -> NDArray[Any]:
        found: NDArray[Any] = self._ids[np.searchsorted(self._labels, labels)]
        return found


_opening = threading.Lock()
_last: list[tuple[str, _Opened]] = []


def _open(path: Name) -> _Opened:
    """The mapped index; the last one again while its file is the same."""
    name = os.path.abspath(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""
    with _opening:
        for known, opened in _last:
            if known == name and opened.state == _state_of(name):
                return opened
        opened = _Opened(path)
        _last[:] = [(name, opened)]
        return opened


def _state_of(name: str) -> tuple[int, ...] | None:
    try:
        return _state(os.stat(name))
    except OSError:
        return None


def _state(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _forget() -> None:
    global _opening
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _objects(ids: Sequence[Id]) -> NDArray[Any]:
    array = np.empty(len(ids), dtype=object)
    array[:] = ids
    return array


def _as_integers(ids: Any) -> NDArray[Any]:
    try:
        found = np.asarray(ids)
        if found.dtype.kind not in "iu":
            # Of numbers below and above 2^63 NumPy makes floats.
            exact = np.asarray(ids, dtype=object)
            if exact.ndim == 1 and all(type(one) is int and 0 <= one < 1 << 64 for one in exact.tolist()):
                found = exact.astype(np.uint64)
    except (ValueError, OverflowError):
        found = np.empty(len(ids), dtype=object)
    return found


def _numbers(ids: Any, rows: int) -> Numbers:
    if isinstance(ids, str | Path) or hasattr(ids, "__fspath__"):
        found = read_integers(ids, "the ids")
    else:
        found = _as_integers(ids)
    if found.size == 0 and rows == 0:
        found = np.empty(0, np.uint64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValidationError(
            f"the ids are an array of {found.dtype} of shape {found.shape}.",
            remediation="Give one integer from 0 to 2^64 - 1 for each vector; VectorIndex takes other ids.",
        )
    if len(found) != rows:
        raise ValidationError(
            f"there are {len(found):,} ids and {rows:,} vectors.", remediation="Give one id for each vector."
        )
    if found.dtype.kind == "i" and (found < 0).any():
        raise ValidationError(f"the id {int(found[found < 0][0])} is below 0.", remediation="Ids are 0 to 2^64 - 1.")
    numbers: Numbers = found.astype(np.uint64)
    ordered = np.sort(numbers)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if twice.size:
        raise ValidationError(f"the id {int(ordered[twice[0]])} is there twice.", remediation="Give each id once.")
    return numbers
