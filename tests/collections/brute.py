"""Brute force: what a search must answer, from plain dicts of documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "by_id", "distances", "nearest", "unit"]

Floats = NDArray[np.float32]


def distances(metric: str, query: Floats, rows: Floats) -> NDArray[np.float64]:
    """Distances in float64, by the definitions of the documentation."""
    q, x = query.astype(np.float64), rows.astype(np.float64)
    if metric == "dot_product":
        return np.asarray(-(x @ q))
    if metric == "euclidean":
        return np.asarray(np.sqrt(((x - q) ** 2).sum(axis=1)))
    return np.asarray(1 - (x @ q) / (np.linalg.norm(x, axis=1) * np.linalg.norm(q)))


def nearest(
    metric: str,
    query: Floats,
    documents: Mapping[str, tuple[Floats, Mapping[str, Any]]],
    k: int,
    matches: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> list[tuple[str, float]]:
    """The nearest documents and their distances."""
    ids = [id for id, (_, metadata) in documents.items() if matches(metadata)]
    if not ids:
        return []
    found = distances(metric, query, np.stack([documents[id][0] for id in ids]))
    order = sorted(range(len(ids)), key=lambda at: (found[at], ids[at]))[:k]
    return [(ids[at], float(found[at])) for at in order]


def by_id(found: list[Any]) -> list[str]:
    """The ids of results."""
    return [each.id for each in found]


def unit(rng: np.random.Generator, count: int, dimension: int) -> Floats:
    """Random vectors with some structure: around a few centres, as real embeddings are."""
    centres = rng.normal(size=(max(4, count // 200), dimension))
    rows = centres[rng.integers(0, len(centres), count)] + 1.0 * rng.normal(size=(count, dimension))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
