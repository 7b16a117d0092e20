"""Direct reads: a client on the same machine reads the database file itself, without a socket.

LMDB lets readers of several processes share the file with the daemon that writes it. Every read takes a new
snapshot, so a write that the daemon has acknowledged is always seen. The reader registers in LMDB's lock
file, for which it needs write permission on ``lock.mdb``.

While the daemon is stopped reads go on, from what it committed last. When a restore or a compaction puts
other files in the place of these, reads follow.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Generator, Iterable
from typing import Any, NoReturn

import msgpack

from toondb_protocol.arguments import ScanRange, answer_by_given, given_keys
from toondb_protocol.errors import (
    ConfigurationError,
    DatabaseClosedError,
    DatabaseError,
    ForkedProcessError,
    SnapshotExpiredError,
    ToonDBError,
)
from toondb_protocol.hello import ServerHello
from toondb_protocol.keys import KeyLike, as_key
from toondb_protocol.record import (
    FORMAT_VERSION,
    HEADER_SIZE,
    KV_DATABASE,
    META_DATABASE,
    META_FORMAT,
    RECORD_V1,
    decode_expiry,
    live_value,
    now_ms,
)
from toondb_protocol.rows import Row

from . import forks

__all__ = ["DirectReader"]

_monotonic = time.monotonic

_RECHECK_SECONDS = 0.05
_AGE_PER_TIMEOUT = 10
_ROWS_PER_CHECK = 256

_Identity = tuple[int, ...]

_shared_lock = threading.Lock()
_shared: weakref.WeakValueDictionary[_Identity, _SharedEnvironment] = weakref.WeakValueDictionary()
_forked_from_reader = False


class _BeingReplaced(Exception):
    """A restore or a compaction is exchanging the files at this moment."""


class _SharedEnvironment:
    """LMDB forbids opening one file twice in a process, so all readers of a file share this.

    It is never closed by hand: whoever reads holds a reference, and the last one to go closes it. Closing it
    under a running scan, or opening the file again beside one, would take the process's registration as a
    reader away from those that still read.
    """

    __slots__ = ("__weakref__", "env", "identity", "kv")

    def __init__(self, folder: str) -> None:
        import lmdb

        data, lock = _paths(folder)
        try:
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _inaccessible(folder, error.strerror or str(error)) from None
        try:
            try:
                # An opener creates a missing lock file. In the middle of an exchange it would belong to the old
                # data file but lie beside the new one; whoever exchanges the files holds this lock alone.
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _BeingReplaced from None
            if not os.path.samestat(os.fstat(fd), os.stat(data)):
                raise _BeingReplaced
            # LMDB would read a lock file on a read-only mount without registering, unprotected from the writer.
            if os.path.exists(lock) and not os.access(lock, os.R_OK | os.W_OK, effective_ids=True):
                raise _inaccessible(folder, f"no write permission on {lock}")
            self.env: Any = lmdb.open(
                folder,
                map_size=1 << 40,
                readonly=True,
                create=False,
                max_dbs=16,
                max_spare_txns=16,
                lock=True,
            )
            self.identity = _identity(folder)
            _check_format(folder, self.env)
            self.kv = self.env.open_db(KV_DATABASE, create=False)
        except lmdb.Error as error:
            if _forked_from_reader:
                raise ConfigurationError(
                    f"the database in {folder} cannot be read directly by this process: it was forked from one that "
                    "already does.",
                    remediation="Connect without direct_reads here, or start this process by spawn.",
                ) from None
            raise _inaccessible(folder, str(error)) from None
        except FileNotFoundError:
            raise _BeingReplaced from None
        finally:
            os.close(fd)


def _paths(folder: str) -> tuple[str, str]:
    return os.path.join(folder, "data.mdb"), os.path.join(folder, "lock.mdb")


def _inaccessible(folder: str, why: str) -> ConfigurationError:
    data, lock = _paths(folder)
    return ConfigurationError(
        f"the database in {folder} cannot be read directly: {why}.",
        remediation=f"Direct reads need read permission on {data} and read and write permission on {lock}; "
        "connect without direct_reads otherwise.",
    )


def _check_format(folder: str, env: Any) -> None:
    meta = env.open_db(META_DATABASE, create=False)
    with env.begin(meta) as txn:
        raw = txn.get(META_FORMAT)
    try:
        version = msgpack.unpackb(raw)["version"]
    except (TypeError, KeyError, ValueError, msgpack.UnpackException):
        version = None
    if version != FORMAT_VERSION:
        raise ConfigurationError(
            f"the database in {folder} has format {version}, this client reads format {FORMAT_VERSION}.",
            remediation="Connect without direct_reads, or use the client of the server's version.",
        )


def _identity(folder: str) -> _Identity:
    """Which files these are: a restore or compaction puts others in their place. Empty when one is missing."""
    data_path, lock_path = _paths(folder)
    try:
        data, lock = os.stat(data_path), os.stat(lock_path)
    except OSError:
        return ()
    return (data.st_dev, data.st_ino, lock.st_ino)


def _share(folder: str) -> _SharedEnvironment:
    with _shared_lock:
        shared = _shared.get(_identity(folder))
        if shared is None:
            shared = _SharedEnvironment(folder)
            _shared[shared.identity] = shared
        return shared


class _ForkGuard:
    """An LMDB environment must not be used, closed or collected in a forked child.

    Any of these would take away the reader slots of the parent, whose snapshots would then be overwritten
    under it.
    """

    def _reset_in_child(self) -> None:
        global _shared_lock, _shared, _forked_from_reader
        _shared_lock = threading.Lock()
        inherited = list(_shared.values())
        _shared = weakref.WeakValueDictionary()
        if inherited:
            _forked_from_reader = True
            import ctypes

            for shared in inherited:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(shared))


_guard = _ForkGuard()
forks.reset_in_child(_guard)


def _closed(*_: object) -> NoReturn:
    raise DatabaseClosedError("the client is closed.", remediation="Connect again.")


def _forked(*_: object) -> NoReturn:
    raise ForkedProcessError("direct reads of the parent process cannot be used in its child.")


class DirectReader:
    """Reads of the newest commit from the database file. Safe to share between threads, not with a forked child.

    Args:
        hello: What the daemon said of itself; it names the folder.

    Raises:
        ConfigurationError: The files are not accessible to this user, or not on this machine.
    """

    def __init__(self, hello: ServerHello) -> None:
        self._folder = os.path.realpath(hello.database)
        self._max_age = _AGE_PER_TIMEOUT * hello.timeout_ms / 1000
        if "direct-reads" not in hello.features:
            raise ConfigurationError(
                "the server does not offer direct reads.", remediation="Connect without direct_reads."
            )
        if not hello.database or not os.path.isdir(self._folder):
            raise ConfigurationError(
                f"the server's database folder {hello.database!r} is not visible to this process.",
                remediation="Connect without direct_reads.",
            )
        self._lock = threading.Lock()
        self._end: Any = None
        try:
            self._shared: _SharedEnvironment | None = _share(self._folder)
        except _BeingReplaced:
            raise ConfigurationError(
                f"the database files in {self._folder} are being replaced.", remediation="Connect again."
            ) from None
        # One attribute, so that no thread ever combines an old environment with a new database handle.
        self._view: tuple[Any, Any] = (self._shared.env.begin, self._shared.kv)
        self._check_at = time.monotonic() + _RECHECK_SECONDS
        forks.reset_in_child(self)

    def get(self, key: KeyLike) -> bytes | None:
        """The value of a key, or None."""
        if type(key) is not bytes or not 0 < len(key) <= 511:
            key = as_key(key)
        if _monotonic() >= self._check_at:
            self._recheck()
        begin, kv = self._view
        try:
            # The snapshot ends with its only reference.
            raw: bytes | None = begin(kv).get(key)
        except Exception as error:
            raise _failed(error) from None
        if raw is None or raw[0] == RECORD_V1:
            return None if raw is None else raw[HEADER_SIZE:]
        return live_value(raw)

    def exists(self, key: KeyLike) -> bool:
        """Whether a key exists."""
        name = as_key(key)
        begin, kv = self._current()
        try:
            # As a buffer: the value is not copied.
            with begin(kv, buffers=True) as txn:
                raw = txn.get(name)
                expires = None if raw is None else decode_expiry(raw)
                return raw is not None and (expires is None or expires > now_ms())
        except Exception as error:
            raise _failed(error) from None

    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        """The values of those keys that exist, from one snapshot."""
        given = given_keys(keys)
        begin, kv = self._current()
        found: dict[bytes, bytes] = {}
        try:
            with begin(kv) as txn:
                for name, _ in given:
                    value = live_value(txn.get(name))
                    if value is not None:
                        found[name] = value
        except Exception as error:
            raise _failed(error) from None
        return answer_by_given(given, found)

    def scan(self, scan: ScanRange) -> Generator[Row, None, None]:
        """The rows of a range from one snapshot, taken when iteration begins."""
        start, end = scan.start, scan.end
        begin, kv = self._current()
        shared = self._shared  # keeps the environment, whatever becomes of this reader meanwhile
        if end is not None and start >= end:
            return
        generation = forks.generation()
        try:
            txn = begin(kv)
        except Exception as error:
            raise _failed(error) from None
        try:
            give_up = time.monotonic() + self._max_age
            cursor = txn.cursor()
            if scan.reverse:
                found = cursor.last() if end is None or not cursor.set_range(end) else cursor.prev()
                pairs = cursor.iterprev() if found else iter(())
            else:
                found = cursor.set_range(start) if start else cursor.first()
                pairs = cursor.iternext() if found else iter(())
            count, left = 0, scan.limit or -1
            check = 1
            for key, raw in pairs:
                if (key < start) if scan.reverse else (end is not None and key >= end):
                    return
                if raw[0] == RECORD_V1:
                    yield Row((key, raw[HEADER_SIZE:]))
                else:
                    value = live_value(raw)
                    if value is None:
                        continue
                    yield Row((key, value))
                count += 1
                if generation != forks.generation():
                    raise ForkedProcessError("this scan was started by the parent process.", remediation="Scan again.")
                if count == left:
                    return
                if count == check:
                    # Often at first, so that a slow reader is found out as well as a long scan.
                    check += min(count, _ROWS_PER_CHECK)
                    if time.monotonic() > give_up:
                        raise SnapshotExpiredError(f"the scan was open for more than {self._max_age:g} s.")
        except Exception as error:
            raise _failed(error) from None
        finally:
            # In a forked child the slot of this snapshot is the parent's.
            if generation == forks.generation():
                txn.abort()
            del shared

    def _current(self) -> tuple[Any, Any]:
        if time.monotonic() >= self._check_at:
            self._recheck()
        return self._view

    def _recheck(self) -> None:
        """Follow replaced files.

        Between two looks nobody can have acknowledged a write to new files: that takes a daemon that was
        started since.
        """
        with self._lock:
            shared = self._shared
            if shared is None:
                self._end()
                return
            identity = _identity(self._folder)
            # A missing file: the daemon is down and they are being exchanged. The old ones are still readable.
            if identity and identity != shared.identity:
                try:
                    self._shared = shared = _share(self._folder)
                except _BeingReplaced:
                    pass
                self._view = (shared.env.begin, shared.kv)
            self._check_at = time.monotonic() + _RECHECK_SECONDS

    def _stop(self, why: Any) -> None:
        self._end = why
        self._shared = None
        self._view = (why, None)
        self._check_at = 0.0

    def close(self) -> None:
        """Give the file up; scans that are under way keep it until they end. Idempotent."""
        with self._lock:
            if self._shared is not None:
                self._stop(_closed)

    def _reset_in_child(self) -> None:
        """In a forked child: the environment is the parent's."""
        self._lock = threading.Lock()
        if self._shared is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._shared))
            self._stop(_forked)


def _failed(error: Exception) -> Exception:
    import lmdb

    if isinstance(error, ToonDBError):
        return error
    if isinstance(error, lmdb.ReadersFullError):
        return DatabaseError("too many snapshots are open on this database.", remediation="End open scans.")
    if isinstance(error, lmdb.Error):
        return DatabaseError(f"the database file cannot be read: {error}.", remediation="Connect again.")
    return error
