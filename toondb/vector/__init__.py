"""Vectors: nearest neighbours by HNSW (faiss), indexes in memory and in files.

Importing this package brings in NumPy and faiss; ``import toondb`` does not.
"""

from .index import VectorIndex
from .metrics import Metric

__all__ = ["Metric", "VectorIndex"]
