"""What namespaces and collections are configured with, what they are asked, and what they answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeGuard

from .arguments import plain_number, shown, text
from .errors import CollectionConfigError, NamespaceError, ValidationError
from .vectors import MAX_DIMENSION

__all__ = [
    "Aggregation",
    "CollectionConfig",
    "DistanceMetric",
    "Document",
    "NamespaceConfig",
    "SearchRequest",
    "SearchResult",
    "check_name",
    "is_number",
]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_LABELS = 64


def check_name(what: str, name: object) -> str:
    """A name of a namespace or collection: 1 to 64 of letters, digits, ``_``, ``-`` and ``.``.

    Raises:
        ValidationError: It is not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValidationError(f"a {what} is named with 1 to 64 of letters, digits, _, - and ., got {shown(name)}.")
    return name


class DistanceMetric(StrEnum):
    """How near two vectors are; see ``docs/vectors.md``."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT_PRODUCT = "dot_product"


class Aggregation(StrEnum):
    """How the scores of several vectors of a document become one."""

    MAX_POOLING = "max_pooling"
    MEAN_POOLING = "mean_pooling"
    WEIGHTED_SUM = "weighted_sum"


@dataclass(frozen=True, slots=True)
class NamespaceConfig:
    """What a namespace is created with.

    Args:
        name: See :func:`check_name`.
        display_name: A name for people.
        labels: Text by text, 64 at the most.

    Raises:
        ValidationError, NamespaceError: One of them cannot be.
    """

    name: str
    display_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("namespace", self.name)
        if self.display_name is not None and not isinstance(self.display_name, str):
            raise NamespaceError(f"display_name is text, got {shown(self.display_name)}.")
        text("display_name", self.display_name or "")
        labels = self.labels
        if not isinstance(labels, Mapping) or len(labels) > _MOST_LABELS:
            raise NamespaceError(f"labels are a mapping of {_MOST_LABELS} at the most, got {shown(labels)}.")
        for name, value in labels.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise NamespaceError(f"labels are text by text, got {shown(name)}: {shown(value)}.")
            text("the name of a label", name)
            text(f"the label {name!r}", value)
        object.__setattr__(self, "labels", dict(labels))

    def to_wire(self) -> dict[str, Any]:
        """It as a map of plain values."""
        return {"name": self.name, "display_name": self.display_name, "labels": dict(self.labels)}


@dataclass(frozen=True, slots=True)
class CollectionConfig:
    """What a collection is created with; it stays so.

    Args:
        name: See :func:`check_name`.
        dimension: Numbers in each vector, 1 to 65,536; None = that of the first vector.
        metric: A :class:`DistanceMetric` or its name.
        m: Neighbours of a vector in the index, 2 to 512.
        ef_construction: Candidates looked at when a vector is added, 1 to 1,000,000.
        enable_hybrid_search: Keep an index of the words of each document, for keyword and hybrid search.
        content_field: The field of the metadata that is the text of a document which is given no ``content``.

    Raises:
        ValidationError, CollectionConfigError: One of them cannot be.
    """

    name: str
    dimension: int | None = None
    metric: DistanceMetric = DistanceMetric.COSINE
    m: int = 16
    ef_construction: int = 100
    enable_hybrid_search: bool = False
    content_field: str | None = None

    def __post_init__(self) -> None:
        check_name("collection", self.name)
        for name in ("dimension", "m", "ef_construction"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        if self.dimension is not None:
            _in_range("dimension", self.dimension, 1, MAX_DIMENSION)
        try:
            object.__setattr__(self, "metric", DistanceMetric(str(self.metric)))
        except ValueError:
            raise CollectionConfigError(
                f"the metric {shown(self.metric)} is unknown; known: {', '.join(DistanceMetric)}."
            ) from None
        _in_range("m", self.m, 2, 512)
        _in_range("ef_construction", self.ef_construction, 1, 1_000_000)
        if not isinstance(self.enable_hybrid_search, bool):
            raise CollectionConfigError(
                f"enable_hybrid_search is True or False, got {shown(self.enable_hybrid_search)}."
            )
        if self.content_field is not None and not isinstance(self.content_field, str):
            raise CollectionConfigError(f"content_field is the name of a field, got {shown(self.content_field)}.")
        text("content_field", self.content_field or "")


def _in_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CollectionConfigError(f"{name} is a number of {low} to {high}, got {shown(value)}.")


@dataclass(slots=True)
class SearchRequest:
    """What a collection is asked.

    Args:
        vector: Find documents near this vector.
        text_query: Find documents with these words; needs ``enable_hybrid_search``. With both, it is a hybrid search.
        k: How many documents, 1 to 100,000.
        filter: Only documents whose metadata meets this filter, see ``docs/filters.md``.
        alpha: Weight of the vector in a hybrid search, 0 to 1; the words weigh the rest.
        rrf_fusion: Fuse the two results by their ranks (reciprocal rank fusion, Cormack et al., SIGIR 2009); False =
            by their scores, each scaled to 0 to 1.
        k_rrf: The constant of the rank fusion.
        ef_search: Candidates that the vector search keeps; None = 64, and ``k`` at the least. More finds more.
        min_score: Only documents with this score at the least; None = any.
        include_vectors: Answer the vectors, too.
        include_content: Answer the text.

    Raises:
        ValidationError: One of them cannot be.
    """

    vector: Any = None
    text_query: str | None = None
    k: int = 10
    filter: Mapping[str, Any] | None = None
    alpha: float = 0.5
    rrf_fusion: bool = True
    k_rrf: int = 60
    ef_search: int | None = None
    min_score: float | None = None
    include_vectors: bool = False
    include_content: bool = True

    def __post_init__(self) -> None:
        if self.vector is None and self.text_query is None:
            raise ValidationError("a search needs a vector, a text_query or both.")
        if self.text_query is not None:
            text("text_query", self.text_query)
        for name in ("k", "k_rrf", "ef_search", "alpha", "min_score"):
            given = getattr(self, name)
            if type(given) is not int and type(given) is not float and given is not None:
                setattr(self, name, plain_number(given))
        _check_count("k", self.k, 100_000)
        _check_count("k_rrf", self.k_rrf, 1_000_000)
        if self.ef_search is not None:
            _check_count("ef_search", self.ef_search, 1_000_000)
        if not is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise ValidationError(f"alpha is a number of 0 to 1, got {shown(self.alpha)}.")
        if self.min_score is not None and not is_number(self.min_score):
            raise ValidationError(f"min_score is a number, got {shown(self.min_score)}.")
        if self.filter is not None and not isinstance(self.filter, Mapping):
            raise ValidationError(f"filter is a mapping, got {shown(self.filter)}.")
        for name in ("rrf_fusion", "include_vectors", "include_content"):
            if not isinstance(getattr(self, name), bool):
                raise ValidationError(f"{name} is True or False, got {shown(getattr(self, name))}.")


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValidationError(f"{name} is a number of 1 to {most}, got {shown(value)}.")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number that a float can hold; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(slots=True)
class SearchResult:
    """A document that was found.

    Attributes:
        id: Its id.
        score: How well it fits, higher is better: for a vector 1 - distance (cosine), 1 / (1 + distance) (euclidean) or
            the product (dot_product); for words the BM25 score; for both the fused score.
        metadata: Its metadata.
        content: Its text, None when it has none or it was not asked for.
        vector: Its vector, when it was asked for.
        distance: Its distance from the query vector, lower is nearer; None when none was given.
    """

    id: str
    score: float
    metadata: dict[str, Any]
    content: str | None = None
    vector: list[float] | None = None
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a collection.

    Attributes:
        id: Its id.
        metadata: Its metadata.
        content: Its text, if it has one.
        vector: Its vector; None for one of several vectors or of none.
        vectors: Its vectors by name, empty unless it has several.
    """

    id: str
    metadata: dict[str, Any]
    content: str | None = None
    vector: list[float] | None = None
    vectors: dict[str, list[float]] = field(default_factory=dict)
