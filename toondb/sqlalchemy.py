"""The dialect of SQLAlchemy for ToonDB: its dialect for SQLite, over :mod:`toondb.dbapi`.

URLs::

    toondb:////var/lib/app/data             a folder, absolute
    toondb:///data                          a folder, relative to the working directory
    toondb:////run/toondb/app.sock          the socket of a daemon
    toondb+unix:///run/toondb/app.sock      the same, as ToonDB itself writes it: always absolute
    toondb:///data?mode=ipc&timeout=5       the daemon that serves a folder, and an option of its client

The query of a URL has ``mode`` and the keys of ``config`` of ``toondb.connect``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import exc, pool
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from toondb_protocol.errors import ConnectionError, DatabaseClosedError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ConnectArgsType, DBAPIConnection, DBAPICursor, DBAPIModule, IsolationLevel
    from sqlalchemy.engine.url import URL
    from sqlalchemy.pool import PoolProxiedConnection

__all__ = ["ToonDialect", "ToonUnixDialect"]

_AUTOCOMMIT: Final = "AUTOCOMMIT"
_SWITCHES = {"true": True, "false": False}


class ToonDialect(SQLiteDialect):
    """SQLite's dialect for the folders and daemons of ToonDB.

    It keeps the name ``sqlite``, by which types, options (``sqlite_where``) and other libraries choose what fits
    SQLite. Isolation levels: ``SNAPSHOT`` (default), ``SERIALIZABLE`` and ``AUTOCOMMIT``.
    """

    driver = "toondb"
    supports_statement_cache = True
    returns_native_bytes = True

    @classmethod
    def import_dbapi(cls) -> DBAPIModule:
        """The driver."""
        from toondb import dbapi

        return cast("DBAPIModule", dbapi)

    @classmethod
    def get_pool_class(cls, url: URL) -> type[pool.Pool]:
        """Connections of one folder share an engine, so any number may be open."""
        return pool.QueuePool

    def create_connect_args(self, url: URL) -> ConnectArgsType:
        """What :func:`toondb.dbapi.connect` is called with for a URL."""
        if url.username or url.password or url.host or url.port or not url.database:
            raise exc.ArgumentError(
                f"the URL {url} does not name a folder or a socket. Write toondb:////absolute/folder, "
                "toondb:///relative/folder or toondb+unix:///absolute/path.sock."
            )
        mode = self._mode
        config: dict[str, Any] = {}
        for name, value in url.query.items():
            if not isinstance(value, str):
                raise exc.ArgumentError(f"the URL gives {name!r} more than once.")
            if name == "mode":
                mode = value
            else:
                config[name] = _typed(value)
        return [self._target(url.database)], {"mode": mode, "config": config or None}

    _mode: str | None = None

    def _target(self, database: str) -> str:
        return database

    # What the server is

    def _get_server_version_info(self, connection: Any) -> tuple[int, ...]:
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
        return tuple(map(int, str(version).split(".")))

    def is_disconnect(
        self,
        e: DBAPIModule.Error,
        connection: PoolProxiedConnection | DBAPIConnection | None,
        cursor: DBAPICursor | None,
    ) -> bool:
        """Whether an error means that the connection is of no use any more."""
        return isinstance(e, (ConnectionError, DatabaseClosedError))

    # Isolation

    def get_isolation_level_values(self, dbapi_connection: DBAPIConnection) -> list[IsolationLevel]:
        """The levels that there are."""
        return cast("list[IsolationLevel]", ["SNAPSHOT", "SERIALIZABLE", _AUTOCOMMIT])

    def get_default_isolation_level(self, dbapi_conn: DBAPIConnection) -> IsolationLevel:
        """That of a new connection."""
        return self.get_isolation_level(dbapi_conn)

    def set_isolation_level(self, dbapi_connection: DBAPIConnection, level: IsolationLevel) -> None:
        """Set the level of a connection."""
        dbapi_connection.autocommit = level == _AUTOCOMMIT
        if level != _AUTOCOMMIT:
            dbapi_connection.isolation = level.lower()

    def get_isolation_level(self, dbapi_connection: DBAPIConnection) -> IsolationLevel:
        """The level of a connection."""
        if dbapi_connection.autocommit:
            return _AUTOCOMMIT
        return cast("IsolationLevel", str(dbapi_connection.isolation).upper())

    def detect_autocommit_setting(self, dbapi_conn: DBAPIConnection) -> bool:
        """Whether a connection commits each statement by itself."""
        return bool(dbapi_conn.autocommit)


class ToonUnixDialect(ToonDialect):
    """The same for ``toondb+unix://`` URLs, whose path is that of a daemon's socket."""

    supports_statement_cache = True
    _mode = "ipc"

    def _target(self, database: str) -> str:
        # The slash that ends the host is the first one of the path, as in ToonDB's own URLs.
        return "/" + database.lstrip("/")


def _typed(value: str) -> bool | int | float | str:
    """An option as the kind of value that it looks like."""
    switch = _SWITCHES.get(value.lower())
    if switch is not None:
        return switch
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
