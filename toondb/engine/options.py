"""Options of the storage engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from toondb_protocol.errors import ConfigurationError

__all__ = ["DEFAULT_CHANGE_HISTORY", "DEFAULT_MAP_SIZE", "Access", "EngineOptions", "Isolation", "SyncMode"]

DEFAULT_MAP_SIZE = 1 << 40
"""Address space reserved for the map: 1 TiB. The file itself grows only with the data."""

MIN_MAP_SIZE = 1 << 20
MAX_MAP_SIZE = 1 << 46

DEFAULT_CHANGE_HISTORY = 16 << 20
"""Bytes of the file that the change log may take: the last 100,000 or so changes of small values."""

MIN_CHANGE_HISTORY = 1 << 16
MAX_CHANGE_HISTORY = 1 << 40


class Access(StrEnum):
    """How an engine holds its folder.

    ``EXCLUSIVE``: alone. ``SHARED``: together with other processes that do the same. ``READ``: beside whoever
    owns the folder, without writing.
    """

    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    READ = "read"


class SyncMode(StrEnum):
    """What an acknowledged write survives.

    ``FULL``: power loss. ``NORMAL``: a crash of any process; power loss may undo the last commits but never
    damages the store. ``OFF``: a crash of any process; power loss may damage the store.
    """

    FULL = "full"
    NORMAL = "normal"
    OFF = "off"


class Isolation(StrEnum):
    """What a transaction is protected from.

    ``SNAPSHOT``: reads one snapshot, first committer wins on written keys. ``SERIALIZABLE``: also every key
    and range that it read must be unchanged when it commits.
    """

    SNAPSHOT = "snapshot"
    SERIALIZABLE = "serializable"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine opens its folder.

    Args:
        create_if_missing: Create the folder (not its parents) and the store when absent.
        sync_mode: See :class:`SyncMode`.
        map_size: Upper bound of the store in bytes, rounded up to whole pages; 1 MiB to 64 TiB.
        max_transaction_bytes: Cap on the keys and values written by one transaction.
        transaction_idle_seconds: An open transaction or cursor not touched for so long is aborted; 0 = never.
        transaction_age_seconds: An open transaction or cursor older than this is aborted; 0 = never. A long
            reader keeps LMDB from reusing freed pages, so the file grows while it is open.
        max_readers: Snapshots that can be open at once, over all processes; an eighth of them is kept for point reads
            and other processes.
        change_history_bytes: Bytes of the file that the history for ``watch`` may take; 64 KiB to 1 TiB.

    Raises:
        ConfigurationError: A value is out of range; the message names the limits.
    """

    create_if_missing: bool = True
    sync_mode: SyncMode = SyncMode.FULL
    map_size: int = DEFAULT_MAP_SIZE
    max_transaction_bytes: int = 256 * 1024 * 1024
    transaction_idle_seconds: float = 0.0
    transaction_age_seconds: float = 0.0
    max_readers: int = 8192
    change_history_bytes: int = DEFAULT_CHANGE_HISTORY

    def __post_init__(self) -> None:
        try:
            # A plain "full" must not pass for another mode, which an identity test elsewhere would make of it.
            object.__setattr__(self, "sync_mode", SyncMode(self.sync_mode))
        except ValueError:
            known = ", ".join(SyncMode)
            raise ConfigurationError(f"sync_mode {self.sync_mode!r} is unknown; known: {known}.") from None
        if not MIN_MAP_SIZE <= self.map_size <= MAX_MAP_SIZE:
            raise ConfigurationError(f"map_size is {self.map_size} bytes, it must be {MIN_MAP_SIZE} to {MAX_MAP_SIZE}.")
        if self.max_transaction_bytes < 1:
            raise ConfigurationError(f"max_transaction_bytes is {self.max_transaction_bytes}, it must be positive.")
        for seconds in (self.transaction_idle_seconds, self.transaction_age_seconds):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigurationError(f"an age limit is {seconds!r}, it must be seconds, 0 (no limit) or more.")
        if not 1 <= self.max_readers <= 1_000_000:
            raise ConfigurationError(f"max_readers is {self.max_readers}, it must be 1 to 1000000.")
        if not MIN_CHANGE_HISTORY <= self.change_history_bytes <= MAX_CHANGE_HISTORY:
            raise ConfigurationError(
                f"change_history_bytes is {self.change_history_bytes}, it must be {MIN_CHANGE_HISTORY} to "
                f"{MAX_CHANGE_HISTORY}."
            )
