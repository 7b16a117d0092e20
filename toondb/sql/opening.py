"""The SQL of a store, made when it is first used: whoever uses keys alone never loads SQLite."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from toondb.engine.engine import Engine
from toondb_protocol.errors import DatabaseClosedError

from .options import SqlOptions

if TYPE_CHECKING:
    from toondb.plugins import PluginRegistry

    from .engine import SqlEngine

__all__ = ["LazySql"]


class LazySql:
    """Opens a :class:`SqlEngine` on demand.

    Args:
        engine: The open engine.
        options: See :class:`SqlOptions`.
    """

    def __init__(self, engine: Engine, options: SqlOptions) -> None:
        self._engine = engine
        self._options = options
        self._lock = threading.Lock()
        self._sql: SqlEngine | None = None
        self._closed = False
        self._plugins: PluginRegistry | None = None

    def __call__(self) -> SqlEngine:
        """The SQL of the store.

        Raises:
            DatabaseClosedError: The store is closed.
        """
        sql = self._sql
        if sql is None:
            from .engine import SqlEngine

            self._engine.check_open()  # before the lock, which a thread that is not in a forked child may hold
            with self._lock:
                self._engine.check_open()
                if self._closed:
                    raise DatabaseClosedError("the database is closed.")
                if self._sql is None:
                    self._sql = SqlEngine(self._engine, self._options)
                    self._attach()
                sql = self._sql
        return sql

    def fire(self, plugins: PluginRegistry) -> None:
        """From now on, changes of rows fire these plugins."""
        with self._lock:
            self._plugins = plugins
            self._attach()

    def _attach(self) -> None:
        if self._sql is not None and self._plugins is not None:
            from .firing import RowPlugins

            self._sql.plugins = RowPlugins(self._plugins, self._engine)

    def close(self) -> None:
        """Close it, if it was ever opened. Idempotent."""
        with self._lock:
            self._closed = True
            sql, self._sql = self._sql, None
        if sql is not None:
            sql.close()
