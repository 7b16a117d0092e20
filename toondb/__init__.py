"""ToonDB: one shared, durable, transactional store for the Python processes of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toondb_client import AsyncIpcClient as AsyncIpcClient
    from toondb_client import IpcClient as IpcClient
    from toondb_protocol.changes import Change as Change
    from toondb_protocol.changes import ChangeKind as ChangeKind
    from toondb_protocol.rows import Row as Row
    from toondb_protocol.search import Aggregation as Aggregation
    from toondb_protocol.search import CollectionConfig as CollectionConfig
    from toondb_protocol.search import DistanceMetric as DistanceMetric
    from toondb_protocol.search import Document as Document
    from toondb_protocol.search import NamespaceConfig as NamespaceConfig
    from toondb_protocol.search import SearchRequest as SearchRequest
    from toondb_protocol.search import SearchResult as SearchResult
    from toondb_protocol.store import Store as Store

    from . import errors as errors
    from .connecting import connect as connect
    from .context import AsyncContextQuery as AsyncContextQuery
    from .context import ContextQuery as ContextQuery
    from .context import ContextResult as ContextResult
    from .context import DeduplicationStrategy as DeduplicationStrategy
    from .context import TruncationStrategy as TruncationStrategy
    from .database import Database as Database
    from .database import Transaction as Transaction
    from .plugins import PluginRegistry as PluginRegistry
    from .plugins import PythonPlugin as PythonPlugin
    from .plugins import TriggerEvent as TriggerEvent
    from .vector import VectorIndex as VectorIndex

__version__ = "0.1.0"

_HOMES = {
    "Aggregation": "toondb_protocol.search",
    "AsyncContextQuery": "toondb.context",
    "AsyncIpcClient": "toondb_client",
    "Change": "toondb_protocol.changes",
    "ChangeKind": "toondb_protocol.changes",
    "CollectionConfig": "toondb_protocol.search",
    "ContextQuery": "toondb.context",
    "ContextResult": "toondb.context",
    "Database": "toondb.database",
    "DeduplicationStrategy": "toondb.context",
    "DistanceMetric": "toondb_protocol.search",
    "Document": "toondb_protocol.search",
    "IpcClient": "toondb_client",
    "NamespaceConfig": "toondb_protocol.search",
    "PluginRegistry": "toondb.plugins",
    "PythonPlugin": "toondb.plugins",
    "Row": "toondb_protocol.rows",
    "SearchRequest": "toondb_protocol.search",
    "SearchResult": "toondb_protocol.search",
    "Store": "toondb_protocol.store",
    "Transaction": "toondb.database",
    "TriggerEvent": "toondb.plugins",
    "TruncationStrategy": "toondb.context",
    "VectorIndex": "toondb.vector",
    "connect": "toondb.connecting",
}

__all__ = [
    "Aggregation",
    "AsyncContextQuery",
    "AsyncIpcClient",
    "Change",
    "ChangeKind",
    "CollectionConfig",
    "ContextQuery",
    "ContextResult",
    "Database",
    "DeduplicationStrategy",
    "DistanceMetric",
    "Document",
    "IpcClient",
    "NamespaceConfig",
    "PluginRegistry",
    "PythonPlugin",
    "Row",
    "SearchRequest",
    "SearchResult",
    "Store",
    "Transaction",
    "TriggerEvent",
    "TruncationStrategy",
    "VectorIndex",
    "__version__",
    "connect",
    "errors",
]


def __getattr__(name: str) -> Any:
    # PEP 562: importing toondb stays light; each name brings in what it needs when first used.
    from importlib import import_module

    home = _HOMES.get(name)
    if home is not None:
        value = getattr(import_module(home), name)
    else:
        errors = import_module("toondb.errors")
        if name == "errors":
            return errors
        if name not in errors.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(errors, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from . import errors

    return sorted([*globals(), *_HOMES, *errors.__all__])
