"""Clients of the ToonDB daemon: :class:`IpcClient` and :class:`AsyncIpcClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toondb_protocol.rows import Row as Row
    from toondb_protocol.search import Aggregation as Aggregation
    from toondb_protocol.search import CollectionConfig as CollectionConfig
    from toondb_protocol.search import DistanceMetric as DistanceMetric
    from toondb_protocol.search import Document as Document
    from toondb_protocol.search import NamespaceConfig as NamespaceConfig
    from toondb_protocol.search import SearchRequest as SearchRequest
    from toondb_protocol.search import SearchResult as SearchResult

    from .aio import AsyncIpcClient as AsyncIpcClient
    from .aio import AsyncTransaction as AsyncTransaction
    from .ipc import IpcClient as IpcClient
    from .ipc import Transaction as Transaction

__all__ = [
    "Aggregation",
    "AsyncIpcClient",
    "AsyncTransaction",
    "CollectionConfig",
    "DistanceMetric",
    "Document",
    "IpcClient",
    "NamespaceConfig",
    "Row",
    "SearchRequest",
    "SearchResult",
    "Transaction",
]

_HOMES = {
    "Aggregation": "toondb_protocol.search",
    "AsyncIpcClient": ".aio",
    "AsyncTransaction": ".aio",
    "CollectionConfig": "toondb_protocol.search",
    "DistanceMetric": "toondb_protocol.search",
    "Document": "toondb_protocol.search",
    "IpcClient": ".ipc",
    "NamespaceConfig": "toondb_protocol.search",
    "Row": "toondb_protocol.rows",
    "SearchRequest": "toondb_protocol.search",
    "SearchResult": "toondb_protocol.search",
    "Transaction": ".ipc",
}


def __getattr__(name: str) -> Any:
    # PEP 562: asyncio, lmdb and the rest are imported when first used.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
