"""What tests of namespaces and collections in every mode share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from toondb_protocol.search import CollectionConfig

__all__ = ["clear", "ids", "make", "refused", "vector"]

DIMENSION = 4


def clear(client: Any) -> None:
    """Delete every namespace."""
    for name in client.list_namespaces():
        assert client.delete_namespace(name) is True


def make(store: Any, **options: Any) -> Any:
    """A collection ``docs`` in a new namespace ``ns``."""
    given = {"dimension": DIMENSION, "enable_hybrid_search": True, **options}
    return store.create_namespace("ns").create_collection(CollectionConfig("docs", **given))


def vector(*numbers: float) -> list[float]:
    """A vector of the dimension of ``make``: the numbers, and zeros."""
    return [*map(float, numbers), *[0.0] * (DIMENSION - len(numbers))]


def ids(found: Any) -> list[str]:
    """The ids of results or documents."""
    return [each.id for each in found]


def refused(kind: type[Exception], *calls: Callable[[], Any]) -> None:
    """Check that each call raises an error of a kind."""
    for call in calls:
        with pytest.raises(kind):
            call()
