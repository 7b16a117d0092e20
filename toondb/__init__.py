"""ToonDB: one shared, durable, transactional store for the Python processes of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toondb_client import AsyncIpcClient as AsyncIpcClient
    from toondb_client import IpcClient as IpcClient

    from . import errors as errors

__version__ = "0.1.0"

__all__ = ["AsyncIpcClient", "IpcClient", "__version__", "errors"]

_CLIENTS = ("AsyncIpcClient", "IpcClient")


def __getattr__(name: str) -> Any:
    # PEP 562: importing toondb stays light; each name brings in what it needs when first used.
    from importlib import import_module

    if name in _CLIENTS:
        value = getattr(import_module("toondb_client"), name)
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

    return sorted([*globals(), *_CLIENTS, *errors.__all__])
