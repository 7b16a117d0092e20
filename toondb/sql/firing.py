"""The plugins of a store, and which threads are inside of their code."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from toondb.plugins import PluginRegistry, TriggerEvent

__all__ = ["RowPlugins", "fires_on"]

_thread = threading.local()


class RowPlugins:
    """Plugins that changes of rows fire.

    Args:
        registry: The plugins.
        store: What the rows are in; handles that share it share this object, too.
    """

    def __init__(self, registry: PluginRegistry, store: object) -> None:
        self.registry = registry
        self._store = store

    @overload
    def fire(self, table: str, event: TriggerEvent, row: dict[str, Any]) -> dict[str, Any]: ...

    @overload
    def fire(self, table: str, event: TriggerEvent, row: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    def fire(self, table: str, event: TriggerEvent, row: Any) -> Any:
        """See :meth:`PluginRegistry.fire`; meanwhile :func:`fires_on` tells that this thread is in a plugin."""
        stores = _thread.__dict__.setdefault("stores", [])
        stores.append(self._store)
        try:
            return self.registry.fire(table, event, row)
        finally:
            stores.pop()


def fires_on(store: object) -> bool:
    """Whether this thread runs the code of a plugin that a change of a row of this store fired."""
    return any(each is store for each in getattr(_thread, "stores", ()))
