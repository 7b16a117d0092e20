"""Which store the shell talks to: the daemon that serves the folder, or the folder itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from toondb_protocol.errors import ConfigurationError, DatabaseLockedError, DatabaseNotFoundError

from ..control import NotRunningError, find_daemon

if TYPE_CHECKING:
    from toondb.database import Database, Transaction
    from toondb_client import IpcClient
    from toondb_client import Transaction as IpcTransaction

__all__ = ["AnyStore", "AnyTransaction", "StoreOptions", "open_store"]

AnyStore: TypeAlias = "Database | IpcClient"
AnyTransaction: TypeAlias = "Transaction | IpcTransaction"

_ANSWER_SECONDS = 5.0
_NO_TIMEOUT_SECONDS = 1e8
_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What to open.

    Args:
        database: The database folder.
        socket: The daemon's socket; then there must be a daemon.
        create: Make the database when there is none.
        timeout: Seconds that a statement may take; None = any.
        foreign_keys: Enforce FOREIGN KEY constraints.
    """

    database: str
    socket: str | None = None
    create: bool = False
    timeout: float | None = None
    foreign_keys: bool = False


def open_store(options: StoreOptions) -> tuple[AnyStore, str]:
    """Open a store.

    Returns:
        The store, and in words what it is.

    Raises:
        NotRunningError: A socket is named, and nobody listens there.
        DatabaseNotFoundError: There is no database, and none is to be made.
        DatabaseLockedError: Another process has it open for itself.
        ConfigurationError: The daemon does not enforce foreign keys, as was asked for.
    """
    try:
        return _connected(options)
    except NotRunningError:
        if options.socket:
            raise
    try:
        return _opened(options, "embedded")
    except DatabaseLockedError as error:
        role = error.details.get("role")
        if role == "concurrent":
            return _opened(options, "concurrent")
        if role != "daemon":
            raise
        # One that has just started.
        try:
            return _connected(options)
        except NotRunningError:
            raise error from None


def _connected(options: StoreOptions) -> tuple[AnyStore, str]:
    import toondb

    with find_daemon(
        options.database, options.socket, min(options.timeout or _ANSWER_SECONDS, _ANSWER_SECONDS)
    ) as found:
        path = found.path
    timeout = options.timeout or _NO_TIMEOUT_SECONDS
    client = toondb.connect(path, "ipc", {"timeout": timeout, "max_connections": _CONNECTIONS})
    try:
        if options.foreign_keys and not client.execute_sql("PRAGMA foreign_keys").tuples[0][0]:
            raise ConfigurationError(
                "--foreign-keys is given, but the daemon does not enforce them.",
                remediation="Start it with: toondb-server --foreign-keys",
            )
    except BaseException:
        client.close()
        raise
    return client, f"the daemon on {path}"


def _opened(options: StoreOptions, mode: str) -> tuple[AnyStore, str]:
    import toondb

    config = {
        "create_if_missing": options.create,
        "foreign_keys": options.foreign_keys,
        "statement_timeout_ms": max(1, round(options.timeout * 1000)) if options.timeout else 0,
    }
    try:
        store = toondb.connect(options.database, mode, config)
    except DatabaseNotFoundError as error:
        raise DatabaseNotFoundError(error.message, remediation="Check --db, or make one with --create.") from None
    return store, options.database
