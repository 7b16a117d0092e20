"""What a daemon is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toondb.engine.options import DEFAULT_CHANGE_HISTORY, DEFAULT_MAP_SIZE, EngineOptions, SyncMode
from toondb.sql.options import SqlOptions
from toondb_protocol.errors import ConfigurationError
from toondb_protocol.frames import DEFAULT_MAX_FRAME, MAX_MAX_FRAME

__all__ = ["DEFAULT_DATABASE", "SOCKET_NAME", "ServerConfig", "default_socket"]

DEFAULT_DATABASE = "./toondb_data"
SOCKET_NAME = "toondb.sock"
_MIN_FRAME = 1024
_LEAST_LONGEST_VALUE = 1024 * 1024
DEFAULT_CACHE_SIZE = 64 * 1024 * 1024
DEFAULT_STATEMENT_TIMEOUT_MS = 30_000
DEFAULT_SQL_MEMORY = 1024 * 1024 * 1024


def default_socket(database: str) -> str:
    """The socket of a database folder, as the user wrote the folder."""
    return f"{database.rstrip('/') or '/'}/{SOCKET_NAME}"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Options of the daemon; the command line has one for each.

    Args:
        database: Database folder, created when missing (its parent is not).
        socket: Socket path; None = ``toondb.sock`` in the folder.
        max_clients: Connections at the most; one more is answered with an ERROR and closed.
        timeout_ms: A partial frame must complete, a reply must drain, and an open transaction or cursor must
            be touched within so many milliseconds.
        max_transaction_age_ms: A transaction or cursor may stay open so long in all; 0 = 10 x timeout_ms.
        drain_ms: At a stop, clients that do not read their replies are cut off after so many milliseconds.
        sync_mode: What an acknowledged write survives, see ``SyncMode``.
        map_size: Upper bound of the store in bytes.
        max_frame: Cap on a frame's payload in bytes, both ways.
        change_history: Bytes of the file that the changes kept for ``watch`` may take.
        cache_size: Bytes that ready replies to recent GETs may take; 0 = none are kept.
        max_transaction_bytes: Cap on the writes of one transaction in bytes.
        socket_mode: Permission bits of the socket.
        socket_group: Group of the socket.
        allow_uids: User ids that may connect; empty = whoever the socket's mode lets in.
        foreign_keys: Enforce FOREIGN KEY constraints in SQL.
        statement_timeout_ms: A SQL statement may run for so many milliseconds; 0 = for ever.
        sql_memory: Bytes that SQLite may take in all; 0 = any.
        loop: ``auto`` (uvloop when installed), ``uvloop`` or ``asyncio``.

    Raises:
        ConfigurationError: A value is out of range.
    """

    database: str = DEFAULT_DATABASE
    socket: str | None = None
    max_clients: int = 100
    timeout_ms: int = 30_000
    max_transaction_age_ms: int = 0
    drain_ms: int = 10_000
    sync_mode: SyncMode = SyncMode.FULL
    map_size: int = DEFAULT_MAP_SIZE
    max_frame: int = DEFAULT_MAX_FRAME
    change_history: int = DEFAULT_CHANGE_HISTORY
    cache_size: int = DEFAULT_CACHE_SIZE
    max_transaction_bytes: int = 256 * 1024 * 1024
    socket_mode: int = 0o600
    socket_group: str | None = None
    allow_uids: frozenset[int] = frozenset()
    foreign_keys: bool = False
    statement_timeout_ms: int = DEFAULT_STATEMENT_TIMEOUT_MS
    sql_memory: int = DEFAULT_SQL_MEMORY
    loop: str = "auto"

    def __post_init__(self) -> None:
        if self.max_clients < 1:
            raise ConfigurationError(f"--max-clients is {self.max_clients}, it must be at least 1.")
        if self.timeout_ms < 1:
            raise ConfigurationError(f"--timeout-ms is {self.timeout_ms}, it must be at least 1.")
        if not _MIN_FRAME <= self.max_frame <= MAX_MAX_FRAME:
            raise ConfigurationError(f"--max-frame is {self.max_frame}, it must be {_MIN_FRAME} to {MAX_MAX_FRAME}.")
        if self.cache_size < 0:
            raise ConfigurationError(f"--cache-size is {self.cache_size}, it must be 0 or more.")
        for name, number in (("statement-timeout-ms", self.statement_timeout_ms), ("sql-memory", self.sql_memory)):
            if number < 0:
                raise ConfigurationError(f"--{name} is {number}, it must be 0 or more.")
        if not 0 <= self.socket_mode <= 0o777:
            raise ConfigurationError(f"--socket-mode is {self.socket_mode:o}, it must be 000 to 777 in octal.")
        if self.loop not in ("auto", "uvloop", "asyncio"):
            raise ConfigurationError(f"the event loop {self.loop!r} is unknown; known: auto, uvloop, asyncio.")

    @property
    def socket_path(self) -> str:
        """Where the socket is, as the user wrote it."""
        return self.socket if self.socket is not None else default_socket(self.database)

    @property
    def socket_file(self) -> Path:
        """The same as a path."""
        return Path(self.socket_path)

    def engine_options(self) -> EngineOptions:
        """The options of the engine behind the daemon."""
        timeout = self.timeout_ms / 1000
        age = self.max_transaction_age_ms / 1000 if self.max_transaction_age_ms else 10 * timeout
        return EngineOptions(
            sync_mode=self.sync_mode,
            map_size=self.map_size,
            change_history_bytes=self.change_history,
            max_transaction_bytes=self.max_transaction_bytes,
            transaction_idle_seconds=timeout,
            transaction_age_seconds=age,
        )

    def sql_options(self) -> SqlOptions:
        """The options of SQL."""
        seconds = self.statement_timeout_ms / 1000 if self.statement_timeout_ms else None
        # What does not fit into a frame nobody could read; and no function can be interrupted in the middle of a value.
        return SqlOptions(self.foreign_keys, seconds, self.sql_memory, max(self.max_frame, _LEAST_LONGEST_VALUE))
