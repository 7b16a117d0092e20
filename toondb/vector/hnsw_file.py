"""Saving an HNSW index, and reading it again: into memory, or as a view of the file.

Sections, in the container of ``sections``:

======== =========================================================================================================
graph    what faiss writes for its ``IndexHNSWFlat``, in half precision for its ``IndexHNSWSQ``
labels   int64, the owner of each node; left out when they are 0, 1, 2, ...
dead     bits, the lowest first: the owner of this node is removed; left out when all live
twins    int64 pairs: position of a node, a living label whose row equals that of the node
aside    int64, labels that are not in the graph yet
rows     float32, their rows
======== =========================================================================================================

Callers add sections and facts of their own, such as ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toondb_protocol.errors import ToonDBError

from .faiss_library import faiss
from .graph import Graph, is_graph_index, living_bits
from .hnsw import HnswIndex
from .metrics import Labels, Metric
from .sections import Bytes, SectionReader, SectionWriter

__all__ = ["read_index", "write_index"]


def write_index(writer: SectionWriter, index: HnswIndex, about: Mapping[str, Any] | None = None) -> None:
    """Write an index, and the header of its file. It is held still meanwhile; searches go on.

    Args:
        writer: With the caller's own sections written already, or none.
        about: Facts of the caller's own, at most about 3 KiB: :attr:`SectionReader.about` has them.
    """
    with index.parts() as (graph, tail):
        aside, rows = tail.living()
        if graph.nodes:
            writer.add("graph", lambda write: faiss.write_index(graph.index, faiss.PyCallbackIOWriter(write)))
            if not np.array_equal(graph.labels, np.arange(graph.nodes)):
                writer.add_array("labels", graph.labels)
            if not graph.alive.all():
                writer.add_array("dead", living_bits(~graph.alive))
            writer.add_array("twins", graph.twins)
        writer.add_array("aside", aside)
        writer.add_array("rows", rows)
        facts = {
            "dimension": index.dimension,
            "metric": index.metric.value,
            "m": index.m,
            "ef_construction": index.ef_construction,
            "half": index.half,
            "vectors": len(graph) + len(aside),
            "nodes": graph.nodes,
            "tombstones": graph.tombstones,
        }
    writer.finish({**(about or {}), **facts})


def read_index(reader: SectionReader, threads: int | None = None, *, mapped: bool = False) -> HnswIndex:
    """Read an index that :func:`write_index` wrote.

    Args:
        reader: The file, verified; what faiss reads unverified could end the process.
        threads: As for :class:`HnswIndex`.
        mapped: Leave the vectors and the graph in the file, from where the system reads what searches look at. The
            index must not be changed then.

    Raises:
        CorruptionError: The content contradicts itself.
    """
    about = reader.about
    try:
        dimension, nodes = int(about["dimension"]), int(about["nodes"])
        metric = Metric.named(about["metric"])
        m, ef_construction = int(about["m"]), int(about["ef_construction"])
        half = about.get("half", False) is True and metric is Metric.COSINE
        index = HnswIndex(dimension, metric, m, ef_construction, threads, half=half)
    except (KeyError, TypeError, ValueError, ToonDBError) as error:
        raise reader.damaged(f"its header is not that of an index ({error})") from None
    if nodes:
        graph = _graph(reader, index, nodes, mapped)
        index = HnswIndex.restored(dimension, metric, m, ef_construction, threads, graph)
    aside: Labels = reader.array("aside", "<i8")
    if len(aside):
        rows = reader.array("rows", "<f4", len(aside) * dimension).reshape(-1, dimension)
        index.keep(aside, rows)
    if len(index) != about.get("vectors"):
        raise reader.damaged(f"it has {len(index):,} vectors, its header says {about.get('vectors')}")
    return index


def _graph(reader: SectionReader, index: HnswIndex, nodes: int, mapped: bool) -> Graph:
    data = reader.section("graph")
    try:
        found = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data)) if mapped else _copying(data))
    except RuntimeError as error:
        raise reader.damaged(f"faiss cannot read its graph ({error})") from None
    if not is_graph_index(found, index.dimension, index.metric, nodes, half=index.half):
        raise reader.damaged("its graph is of another index")
    labels = reader.array("labels", "<i8", nodes).copy() if len(reader.section("labels")) else np.arange(nodes)
    alive = np.ones(nodes, np.bool_)
    if len(reader.section("dead")):
        dead = reader.array("dead", np.uint8, (nodes + 7) // 8)
        alive = ~np.unpackbits(dead, count=nodes, bitorder="little").astype(np.bool_)
    pairs = reader.array("twins", "<i8")
    twins = pairs[: len(pairs) // 2 * 2].reshape(-1, 2)
    if len(pairs) % 2 or not np.all((twins[:, 0] >= 0) & (twins[:, 0] < nodes)):
        raise reader.damaged("a twin belongs to no node")
    return Graph(index.metric, found, labels, alive, twins, source=data if mapped else None)


def _copying(data: Bytes) -> Any:
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        part = data[at : at + size].tobytes()
        at += len(part)
        return part

    return faiss.PyCallbackIOReader(read, 1 << 20)
