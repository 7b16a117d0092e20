"""Vectors like those of texts, and the plain way to compare them."""

from __future__ import annotations

import numpy as np

from toondb.vector.metrics import Floats, Labels

__all__ = ["METRICS", "distances", "nearest", "recall", "sample"]

METRICS = ("cosine", "euclidean", "dot_product")


def sample(rows: int, dimension: int = 32, seed: int = 0) -> Floats:
    """Vectors of fewer degrees of freedom than numbers, as embeddings are. The seed does not change the space."""
    directions = np.random.default_rng(12345).standard_normal((8, dimension))
    noise = np.random.default_rng(seed)
    return (noise.standard_normal((rows, 8)) @ directions + 0.3 * noise.standard_normal((rows, dimension))).astype(
        np.float32
    )


def distances(queries: Floats, rows: Floats, metric: str) -> Floats:
    """All distances, in float64."""
    a, b = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "euclidean":
        far = np.sqrt(((a[:, np.newaxis] - b[np.newaxis]) ** 2).sum(axis=2))
    elif metric == "dot_product":
        far = -(a @ b.T)
    else:
        far = 1 - (a @ b.T) / np.linalg.norm(a, axis=1)[:, np.newaxis] / np.linalg.norm(b, axis=1)
    result: Floats = far.astype(np.float32)
    return result


def nearest(queries: Floats, rows: Floats, metric: str, k: int) -> Labels:
    """The numbers of the nearest rows of each query."""
    found: Labels = np.argsort(distances(queries, rows, metric), axis=1, kind="stable")[:, :k]
    return found


def recall(found: list[list[int]], truth: Labels) -> float:
    """The mean share of the true ones that were found."""
    shares = [len(set(row) & set(true)) / len(true) for row, true in zip(found, truth.tolist(), strict=True)]
    return sum(shares) / len(shares)
