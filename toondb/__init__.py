"""ToonDB: one shared, durable, transactional store for the Python processes of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toondb_client import AsyncIpcClient as AsyncIpcClient
    from toondb_client import IpcClient as IpcClient
    from toondb_protocol.changes import Change as Change
    from toondb_protocol.changes import ChangeKind as ChangeKind
    from toondb_protocol.rows import Row as Row
    from toondb_protocol.store import Store as Store

    from . import errors as errors
    from .connecting import connect as connect
    from .database import Database as Database
    from .database import Transaction as Transaction
    from .plugins import PluginRegistry as PluginRegistry
    from .plugins import PythonPlugin as PythonPlugin
    from .plugins import TriggerEvent as TriggerEvent
    from .vector import VectorIndex as VectorIndex

__version__ = "0.1.0"

_HOMES = {
    "AsyncIpcClient": "toondb_client",
    "Change": "toondb_protocol.changes",
    "ChangeKind": "toondb_protocol.changes",
    "Database": "toondb.database",
    "IpcClient": "toondb_client",
    "PluginRegistry": "toondb.plugins",
    "PythonPlugin": "toondb.plugins",
    "Row": "toondb_protocol.rows",
    "Store": "toondb_protocol.store",
    "Transaction": "toondb.database",
    "TriggerEvent": "toondb.plugins",
    "VectorIndex": "toondb.vector",
    "connect": "toondb.connecting",
}

__all__ = [
    "AsyncIpcClient",
    "Change",
    "ChangeKind",
    "Database",
    "IpcClient",
    "PluginRegistry",
    "PythonPlugin",
    "Row",
    "Store",
    "Transaction",
    "TriggerEvent",
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
