"""Clients of the ToonDB daemon: :class:`IpcClient` and :class:`AsyncIpcClient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toondb_protocol.rows import Row as Row

    from .aio import AsyncIpcClient as AsyncIpcClient
    from .aio import AsyncTransaction as AsyncTransaction
    from .ipc import IpcClient as IpcClient
    from .ipc import Transaction as Transaction

__all__ = ["AsyncIpcClient", "AsyncTransaction", "IpcClient", "Row", "Transaction"]

_HOMES = {
    "AsyncIpcClient": ".aio",
    "AsyncTransaction": ".aio",
    "IpcClient": ".ipc",
    "Row": "toondb_protocol.rows",
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
