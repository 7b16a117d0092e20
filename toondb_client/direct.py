"""Direct reads: a client on the same machine reads the database file itself, without a socket.

LMDB lets readers of several processes share the file with the daemon that writes it. Every read takes a new
snapshot, so a write that the daemon has acknowledged is always seen. The reader registers in LMDB's lock
file, for which it needs write permission on ``lock.mdb``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from toondb_protocol.errors import (
    ConfigurationError,
    DatabaseClosedError,
    DatabaseError,
    SnapshotExpiredError,
)
from toondb_protocol.hello import ServerHello
from toondb_protocol.keys import KeyLike, as_key
from toondb_protocol.record import HEADER_SIZE, KV_DATABASE

from . import forks
from .calls import ScanRange
from .rows import Row

__all__ = ["DirectReader"]

_RECHECK_SECONDS = 0.05
_AGE_PER_TIMEOUT = 10
_ROWS_PER_CHECK = 256

_shared_lock = threading.Lock()
_shared: dict[str, _SharedEnvironment] = {}
_kept_after_fork: list[Any] = []


class _SharedEnvironment:
    """LMDB forbids opening one file twice in a process, so all readers of a folder share this."""

    def __init__(self, folder: str) -> None:
        import lmdb

        self.folder = folder
        self.users = 0
        self.identity = _identity(folder)
        try:
            self.env: Any = lmdb.open(
                folder,
                map_size=1 << 40,
                readonly=True,
                create=False,
                max_dbs=16,
                max_spare_txns=16,
                lock=True,
            )
            self.kv = self.env.open_db(KV_DATABASE, create=False)
        except lmdb.Error as error:
            raise ConfigurationError(
                f"the database in {folder} cannot be read directly: {error}.",
                remediation="Direct reads need read permission on data.mdb and write permission on lock.mdb; "
                "connect without direct_reads otherwise.",
            ) from None


def _identity(folder: str) -> tuple[int, ...]:
    """Which files these are: a restore or compaction puts others in their place."""
    try:
        data, lock = os.stat(Path(folder, "data.mdb")), os.stat(Path(folder, "lock.mdb"))
    except OSError:
        return ()
    return (data.st_dev, data.st_ino, lock.st_ino)


def _share(folder: str) -> _SharedEnvironment:
    with _shared_lock:
        shared = _shared.get(folder)
        if shared is None or shared.identity != _identity(folder):
            # An environment of replaced files stays open for whoever still reads it.
            shared = _shared[folder] = _SharedEnvironment(folder)
        shared.users += 1
        return shared


def _unshare(shared: _SharedEnvironment) -> None:
    with _shared_lock:
        shared.users -= 1
        if shared.users == 0:
            if _shared.get(shared.folder) is shared:
                del _shared[shared.folder]
            shared.env.close()


class _ForkGuard:
    """An LMDB environment must not be used or closed in a forked child: keep it, untouched, for ever."""

    def reset_in_child(self) -> None:
        global _shared_lock
        _shared_lock = threading.Lock()
        _kept_after_fork.extend(_shared.values())
        _shared.clear()


_guard = _ForkGuard()
forks.reset_in_child(_guard)


class DirectReader:
    """Reads of the newest commit from the database file. Safe to share between threads.

    Args:
        hello: What the daemon said of itself; it names the folder.

    Raises:
        ConfigurationError: The files are not accessible to this user, or not on this machine.
    """

    def __init__(self, hello: ServerHello) -> None:
        self._folder = os.path.realpath(hello.database)
        self._max_age = _AGE_PER_TIMEOUT * hello.timeout_ms / 1000
        if not hello.database or not os.path.exists(os.path.join(self._folder, "data.mdb")):
            raise ConfigurationError(
                f"the server's database folder {hello.database!r} is not visible to this process.",
                remediation="Connect without direct_reads.",
            )
        self._shared: _SharedEnvironment | None = _share(self._folder)
        self._begin: Any = self._shared.env.begin
        self._kv: Any = self._shared.kv
        self._generation = forks.generation()
        self._check_at = time.monotonic() + _RECHECK_SECONDS
        self._lock = threading.Lock()

    def get(self, key: KeyLike) -> bytes | None:
        """The value of a key, or None."""
        if type(key) is not bytes or not 0 < len(key) <= 511:
            key = as_key(key)
        if time.monotonic() >= self._check_at or self._generation != forks.generation():
            self._recheck()
        try:
            txn = self._begin(self._kv)
        except Exception as error:
            raise _failed(error) from None
        raw: bytes | None = txn.get(key)
        txn.abort()
        return None if raw is None else raw[HEADER_SIZE:]

    def exists(self, key: KeyLike) -> bool:
        """Whether a key exists."""
        name = as_key(key)
        with self._transaction() as txn:
            return bool(txn.cursor(self._kv).set_key(name))

    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        """The values of those keys that exist, from one snapshot."""
        found: dict[Any, bytes] = {}
        wanted = [(as_key(key), key) for key in keys]
        with self._transaction() as txn:
            for name, key in wanted:
                raw = txn.get(name, db=self._kv)
                if raw is not None:
                    found[key] = raw[HEADER_SIZE:]
        return found

    def scan(self, scan: ScanRange) -> Iterator[Row]:
        """The rows of a range from one snapshot, taken when iteration begins."""
        start, end = scan.start, scan.end
        if end is not None and start >= end:
            return
        left = scan.limit or -1
        with self._transaction() as txn:
            give_up = time.monotonic() + self._max_age
            cursor = txn.cursor(self._kv)
            if scan.reverse:
                found = cursor.last() if end is None or not cursor.set_range(end) else cursor.prev()
                pairs = cursor.iterprev() if found else iter(())
            else:
                found = cursor.set_range(start) if start else cursor.first()
                pairs = cursor.iternext() if found else iter(())
            generation = self._generation
            count = 0
            for key, raw in pairs:
                if (key < start) if scan.reverse else (end is not None and key >= end):
                    return
                yield Row((key, raw[HEADER_SIZE:]))
                count += 1
                if count == left:
                    return
                if count % _ROWS_PER_CHECK == 0 and time.monotonic() > give_up:
                    raise SnapshotExpiredError(f"the scan was open for more than {self._max_age:g} s.")
                if generation != forks.generation():
                    raise DatabaseError("this scan was started by the parent process.", remediation="Scan again.")

    def _transaction(self) -> Any:
        self._recheck()
        try:
            return self._begin()
        except Exception as error:
            raise _failed(error) from None

    def _recheck(self) -> None:
        """Follow a replaced file, and start afresh in a forked child."""
        with self._lock:
            if self._generation != forks.generation():
                self._shared = _share(self._folder)
                self._generation = forks.generation()
            shared = self._shared
            if shared is None:
                raise DatabaseClosedError("the client is closed.", remediation="Connect again.")
            if shared.identity != _identity(self._folder):
                fresh = _share(self._folder)
                self._shared = fresh
                # Scans that are under way keep the old environment alive through their transactions; it is
                # closed when nothing refers to it any more.
                with _shared_lock:
                    shared.users -= 1
                shared = fresh
            self._begin, self._kv = shared.env.begin, shared.kv
            self._check_at = time.monotonic() + _RECHECK_SECONDS

    def close(self) -> None:
        """Give the file up. Idempotent."""
        with self._lock:
            shared, self._shared = self._shared, None
            self._check_at = 0.0
            if shared is not None and self._generation == forks.generation():
                _unshare(shared)


def _failed(error: Exception) -> Exception:
    import lmdb

    if isinstance(error, lmdb.ReadersFullError):
        return DatabaseError("too many snapshots are open on this database.", remediation="End open scans.")
    if isinstance(error, lmdb.Error):
        return DatabaseError(f"the database file cannot be read: {error}.", remediation="Connect again.")
    return error
