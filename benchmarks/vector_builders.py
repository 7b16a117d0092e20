"""How the contestants of the build rows are driven: from a ``.npy`` file of vectors to an index file, all processors.

Operation: ``build*real`` (the embeddings) and ``build*random``; counts vectors. An index is built with the same M and
efConstruction by everybody, and scales the vectors to length 1 where the library does not do so by itself.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.drivers import DriverError, Loop
from benchmarks.servers import sochdb_bulk
from benchmarks.vector_data import K, VectorData, recall
from benchmarks.workload import Workload

__all__ = ["BUILDERS", "EF_CONSTRUCTION", "M"]

M, EF_CONSTRUCTION, EF_SEARCH = 16, 100, 64

_FEW_QUERIES = 30
_COMMAND_SECONDS = 250
_FOUND = re.compile(r"ID:\s*(\d+)")


def _run(arguments: Sequence[str]) -> str:
    """What a command writes."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    if done.returncode:
        raise DriverError(f"{Path(arguments[0]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


class _Builder:
    """Builds index files in a folder of its own."""

    queries: int | None = None
    """Queries that the recall is taken from; all when None."""
    modules: tuple[str, ...] = ()
    """Loaded before anything is timed."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        self._data = VectorData(workload)
        Path(address).mkdir(exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=address))
        self._index = str(self._folder / "index")
        self._sources: dict[str, str] = {}
        self._built = ""

    def load(self, workload: Workload) -> None:
        """A file of vectors is written when it is first needed."""

    def _source(self, name: str) -> str:
        path = self._sources.get(name)
        if path is None:
            path = self._sources[name] = str(self._folder / f"{name}.npy")
            np.save(path, self._data.of(name)[0])
        return path

    def _build(self, source: str) -> None:
        raise NotImplementedError

    def _found(self, queries: Any) -> list[list[int]]:
        """The numbers of the vectors that the index built last finds for queries."""
        raise NotImplementedError

    def loop(self, operation: str) -> Loop:
        """The loop for an operation."""
        kind, _, name = operation.partition("*")
        if kind != "build":
            raise DriverError(f"{type(self).__name__} has no operation {operation!r}")
        source, rows = self._source(name), len(self._data.of(name)[0])
        for module in self.modules:
            importlib.import_module(module)

        def loop(deadline: float) -> int:
            built = 0
            while True:
                self._build(source)
                self._built = name
                built += rows
                if perf_counter() >= deadline:
                    return built

        return loop

    def recall(self, operation: str) -> float:
        """The recall of the index built last, with 64 candidates."""
        name = operation.partition("*")[2]
        if self._built != name:
            raise DriverError(f"the index of {name} was not built")
        vectors, queries = self._data.of(name)
        return recall(self._found(queries[: self.queries]), vectors, queries)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class BulkBuilder(_Builder):
    """``toondb.bulk.bulk_build_index``; the file is on the disk when it returns."""

    modules = ("toondb.bulk",)

    def _build(self, source: str) -> None:
        from toondb.bulk import bulk_build_index

        bulk_build_index(source, self._index, m=M, ef_construction=EF_CONSTRUCTION)

    def _found(self, queries: Any) -> list[list[int]]:
        from toondb.bulk import bulk_query_batch

        found: list[list[int]] = bulk_query_batch(self._index, queries, K, EF_SEARCH)[0].tolist()
        return found


class BulkCommandBuilder(BulkBuilder):
    """``toondb-bulk build-index``, with the start of its process."""

    def _build(self, source: str) -> None:
        options = ("-m", str(M), "--ef-construction", str(EF_CONSTRUCTION), "--quiet")
        module = "import sys; sys.argv[0] = 'toondb-bulk'; from toondb.bulk_cli import main; main()"
        _run([sys.executable, "-c", module, "build-index", "-i", source, "-o", self._index, *options])


class FaissBuilder(_Builder):
    """``faiss.IndexHNSWFlat``, written with ``write_index``."""

    modules = ("toondb.vector.faiss_library",)

    def _build(self, source: str) -> None:
        # In the same way as ToonDB: threads that wait for each other sleep.
        from toondb.vector.faiss_library import faiss

        vectors = np.load(source)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._graph: Any = faiss.IndexHNSWFlat(vectors.shape[1], M, faiss.METRIC_L2)
        self._graph.hnsw.efConstruction = EF_CONSTRUCTION
        self._graph.add(vectors)
        faiss.write_index(self._graph, self._index)

    def _found(self, queries: Any) -> list[list[int]]:
        from toondb.vector.faiss_library import faiss

        parameters = faiss.SearchParametersHNSW(efSearch=EF_SEARCH)
        found: list[list[int]] = self._graph.search(queries, K, params=parameters)[1].tolist()
        return found


class HnswlibBuilder(_Builder):
    """``hnswlib.Index`` of the space ``cosine``, which scales by itself, written with ``save_index``."""

    modules = ("hnswlib",)

    def _build(self, source: str) -> None:
        import hnswlib

        vectors = np.load(source)
        self._graph: Any = hnswlib.Index("cosine", vectors.shape[1])
        self._graph.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
        self._graph.add_items(vectors)
        self._graph.save_index(self._index)

    def _found(self, queries: Any) -> list[list[int]]:
        self._graph.set_ef(EF_SEARCH)
        found: list[list[int]] = self._graph.knn_query(queries, K)[0].tolist()
        return found


class SochDbBuilder(_Builder):
    """``sochdb-bulk build-index``, with the start of its process. It takes one query for each run."""

    queries = _FEW_QUERIES

    def _build(self, source: str) -> None:
        options = ("-m", str(M), "-e", str(EF_CONSTRUCTION), "--quiet")
        _run([sochdb_bulk() or "sochdb-bulk", "build-index", "-i", source, "-o", self._index, *options])

    def _found(self, queries: Any) -> list[list[int]]:
        tool, path = sochdb_bulk() or "sochdb-bulk", str(self._folder / "query.raw")
        found: list[list[int]] = []
        for query in queries:
            query.tofile(path)
            said = _run([tool, "query", "-i", self._index, "-q", path, "-k", str(K), "-e", str(EF_SEARCH)])
            found.append([int(number) for number in _FOUND.findall(said)])
        return found


BUILDERS: dict[str, Any] = {
    "vector-bulk": BulkBuilder,
    "vector-bulk-command": BulkCommandBuilder,
    "vector-build-faiss": FaissBuilder,
    "vector-build-hnswlib": HnswlibBuilder,
    "vector-build-sochdb": SochDbBuilder,
}
"""Drivers by name."""
