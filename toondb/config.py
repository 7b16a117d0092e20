"""The ``config`` of an embedded database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toondb.engine.options import EngineOptions, SyncMode
from toondb_protocol.errors import ConfigurationError

__all__ = ["CONFIG_KEYS", "engine_options"]


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

CONFIG_KEYS = ("create_if_missing", "sync_mode", "wal_enabled", *list(_OPTIONS)[2:])
"""The keys that ``config`` may have."""


def engine_options(config: Mapping[str, Any] | None) -> EngineOptions:
    """The options of the engine that a ``config`` means.

    Args:
        config: Any of

            - ``create_if_missing`` (default True): make the folder and the database when absent.
            - ``sync_mode`` (``"full"``): ``full``, ``normal`` or ``off``, see :class:`SyncMode`.
            - ``wal_enabled`` (True): False is another way to write ``sync_mode="off"``.
            - ``memtable_size_bytes`` (256 MiB): the most that one transaction may write.
            - ``map_size_bytes`` (1 TiB): the most that the database may grow to.
            - ``change_history_bytes`` (16 MiB): what the history for ``watch`` may take.

    Raises:
        ConfigurationError: A key is unknown, or a value cannot be; the message lists what is known.
    """
    if config is None:
        return EngineOptions()
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"config is a mapping, got {type(config).__name__}.")
    options: dict[str, Any] = {}
    for name, value in config.items():
        if name == "wal_enabled":
            if not _boolean(name, value):
                options.setdefault("sync_mode", SyncMode.OFF)
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
        return EngineOptions(**options)
    except ConfigurationError as error:
        # Told by the name that the caller wrote.
        field, _, told = error.message.partition(" ")
        names = {field: name for name, (field, _) in _OPTIONS.items()}
        raise ConfigurationError(f"config {names.get(field, field)!r} {told}") from None
