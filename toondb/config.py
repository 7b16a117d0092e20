"""The ``config`` of an embedded database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from toondb.engine.options import EngineOptions, SyncMode
from toondb.sql.options import SqlOptions
from toondb_protocol.errors import ConfigurationError

__all__ = ["CONFIG_KEYS", "OpenOptions", "open_options"]


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"config {name!r} is True or False, got {value!r:.60}.")
    return value


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"config {name!r} is a number of bytes, got {value!r:.60}.")
    return value


def _sync_mode(name: str, value: object) -> SyncMode:
    try:
        return SyncMode(str(value))
    except ValueError:
        raise ConfigurationError(f"config {name!r} is {value!r:.60}; known: {', '.join(SyncMode)}.") from None


_OPTIONS: dict[str, tuple[str, Callable[[str, object], Any]]] = {
    "create_if_missing": ("create_if_missing", _boolean),
    "sync_mode": ("sync_mode", _sync_mode),
    "memtable_size_bytes": ("max_transaction_bytes", _size),
    "map_size_bytes": ("map_size", _size),
    "change_history_bytes": ("change_history_bytes", _size),
}

_SQL_KEYS = ("foreign_keys", "statement_timeout_ms")

CONFIG_KEYS = ("create_if_missing", "sync_mode", "wal_enabled", *list(_OPTIONS)[2:], *_SQL_KEYS)
"""The keys that ``config`` may have."""


class OpenOptions(NamedTuple):
    """What a ``config`` means.

    Attributes:
        engine: The options of the engine.
        sql: The options of SQL.
    """

    engine: EngineOptions
    sql: SqlOptions


def open_options(config: Mapping[str, Any] | None) -> OpenOptions:
    """The options that a ``config`` means.

    Args:
        config: Any of

            - ``create_if_missing`` (default True): make the folder and the database when absent.
            - ``sync_mode`` (``"full"``): ``full``, ``normal`` or ``off``, see :class:`SyncMode`.
            - ``wal_enabled`` (True): False is another way to write ``sync_mode="off"``.
            - ``memtable_size_bytes`` (256 MiB): the most that one transaction may write.
            - ``map_size_bytes`` (1 TiB): the most that the database may grow to.
            - ``change_history_bytes`` (16 MiB): what the history for ``watch`` may take.
            - ``foreign_keys`` (False): enforce the FOREIGN KEY constraints of SQL tables.
            - ``statement_timeout_ms`` (0): a SQL statement may run for so long; 0 = for ever.

    Raises:
        ConfigurationError: A key is unknown, or a value cannot be; the message lists what is known.
    """
    if config is None:
        return OpenOptions(EngineOptions(), SqlOptions())
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"config is a mapping, got {type(config).__name__}.")
    options: dict[str, Any] = {}
    for name, value in config.items():
        if name == "wal_enabled":
            if not _boolean(name, value):
                options.setdefault("sync_mode", SyncMode.OFF)
            continue
        if name in _SQL_KEYS:
            continue
        if name not in _OPTIONS:
            raise ConfigurationError(f"config {name!r} is unknown; known: {', '.join(CONFIG_KEYS)}.")
        field, check = _OPTIONS[name]
        options[field] = check(name, value)
    if config.get("wal_enabled") is False and options["sync_mode"] is not SyncMode.OFF:
        raise ConfigurationError(
            f"config wal_enabled=False means sync_mode 'off', but sync_mode is {str(options['sync_mode'])!r}.",
            remediation="Give only one of them.",
        )
    try:
        return OpenOptions(EngineOptions(**options), _sql_options(config))
    except ConfigurationError as error:
        # Told by the name that the caller wrote.
        field, _, told = error.message.partition(" ")
        names = {field: name for name, (field, _) in _OPTIONS.items()}
        raise ConfigurationError(f"config {names.get(field, field)!r} {told}") from None


def _sql_options(config: Mapping[str, Any]) -> SqlOptions:
    timeout = config.get("statement_timeout_ms", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise ConfigurationError(
            f"config 'statement_timeout_ms' is a number of milliseconds of 0 or more, got {timeout!r:.60}."
        )
    return SqlOptions(
        foreign_keys=_boolean("foreign_keys", config.get("foreign_keys", False)),
        statement_seconds=timeout / 1000 if timeout else None,
    )
