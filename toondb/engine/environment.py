"""Opening the LMDB environment of a database folder, and translating its errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from toondb_protocol.errors import (
    ConfigurationError,
    CorruptionError,
    DatabaseClosedError,
    DatabaseError,
    DatabaseNotFoundError,
    ForkedProcessError,
    InvalidKeyError,
    StorageError,
    StorageFullError,
    ToonDBError,
    TransactionTooLargeError,
)
from toondb_protocol.record import (
    CATALOG_DATABASE,
    CHANGES_DATABASE,
    DOCUMENT_LOG_DATABASE,
    DOCUMENTS_DATABASE,
    EXPIRY_DATABASE,
    FORMAT_VERSION,
    KV_DATABASE,
    META_CHANGES_FROM,
    META_DATABASE,
    META_FORMAT,
    META_LSN,
    NAMESPACE_KV_DATABASE,
    SQL_DATABASE,
    TEXT_DATABASE,
)

from .options import Access, EngineOptions, SyncMode

__all__ = ["DATA_FILE", "READABLE_FORMATS", "Environment", "Space", "prepare_folder", "storage_error"]

DATA_FILE = "data.mdb"
TURN_FILE = "toondb.write"
"""Processes that share a folder take turns to write with a ``flock`` on it."""

READABLE_FORMATS = (1, 2, FORMAT_VERSION)
"""Versions of a store that opening it for writing brings up to date."""

_MAX_SUB_DATABASES = 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 1 << 20


class Space(IntEnum):
    """A sub-database whose values are records (see ``toondb_protocol.record``)."""

    KV = 0
    CATALOG = 1
    SQL = 2
    DOCUMENTS = 3
    NAMESPACE_KV = 4
    TEXT = 5


_SPACE_NAMES = {
    Space.KV: KV_DATABASE,
    Space.CATALOG: CATALOG_DATABASE,
    Space.SQL: SQL_DATABASE,
    Space.DOCUMENTS: DOCUMENTS_DATABASE,
    Space.NAMESPACE_KV: NAMESPACE_KV_DATABASE,
    Space.TEXT: TEXT_DATABASE,
}


def storage_error(error: lmdb.Error, doing: str) -> ToonDBError:
    """The typed error for what LMDB raised while ``doing`` something.

    Only a :class:`StorageError` that is not a :class:`StorageFullError` says that the device or the file is bad;
    every other class refuses one request.
    """
    text = str(error)
    if isinstance(error, lmdb.MapResizedError):
        return StorageFullError(
            f"another process let the store grow beyond the map size of this one while {doing}.",
            remediation="Open it with the same map size in every process.",
        )
    if isinstance(error, lmdb.MapFullError):
        return StorageFullError(
            f"the store reached its --map-size while {doing}.",
            remediation="Delete data, or restart with a larger --map-size.",
        )
    if _is(error, *_FULL):
        return disk_full(text, doing)
    if isinstance(error, lmdb.BadValsizeError):
        return InvalidKeyError(f"a key or value has a size that cannot be stored ({text}) while {doing}.")
    if isinstance(error, lmdb.TxnFullError):
        return TransactionTooLargeError(f"the transaction changes too many pages at once while {doing}.")
    if _is(error, errno.ENOMEM):
        return DatabaseError(f"memory ran out while {doing}.", remediation="Try again with less at once.")
    if "closed/deleted/dropped" in text:
        return DatabaseClosedError(f"the database was closed while {doing}.")
    if isinstance(error, lmdb.PanicError):
        return StorageError(f"the storage failed before and refuses to go on while {doing}.")
    if isinstance(error, lmdb.ReadersFullError):
        return DatabaseError(
            f"too many snapshots are open at once while {doing}.",
            remediation="End open transactions and scans.",
        )
    if isinstance(error, (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)):
        return CorruptionError(f"the store is damaged: {text} while {doing}.")
    return StorageError(f"the storage failed: {text} while {doing}.")


def disk_full(text: str, doing: str) -> StorageFullError:
    """The error for a full disk, where ``text`` is what LMDB said."""
    return StorageFullError(
        f"the disk is full ({text}) while {doing}.",
        remediation="Free disk space; nothing of this write was kept and reads go on.",
    )


def _is(error: lmdb.Error, *codes: int) -> bool:
    code = getattr(error, "code", None)
    if code is not None:
        return code in codes
    # Older versions of the binding give no number, only its text.
    return any(os.strerror(code) in str(error) for code in codes)


def prepare_folder(path: str | os.PathLike[str], *, create: bool) -> Path:
    """The absolute database folder, created (without its parents) when asked.

    Raises:
        ConfigurationError: It is not a folder, its parent is missing, or it cannot be created.
        DatabaseNotFoundError: It holds no database and ``create`` is off.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigurationError(f"the database path {text!r} is not usable.", remediation="Name a folder.")
    folder = Path(os.path.abspath(os.path.expanduser(text)))
    try:
        return _prepared(folder, create=create)
    except OSError as error:
        raise ConfigurationError(
            f"the database folder {folder} cannot be used: {error.strerror}.",
            remediation="Choose another folder, or mend the permissions on the way to it.",
        ) from None


def _prepared(folder: Path, *, create: bool) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"the database path {folder} is a file.", remediation="Name a folder.")
    if not create:
        if not (folder / DATA_FILE).exists():
            raise DatabaseNotFoundError(f"there is no database in {folder}.")
        return folder
    if not folder.exists():
        if not folder.parent.is_dir():
            raise ConfigurationError(
                f"the folder {folder.parent} does not exist.", remediation=f"Create it: mkdir -p {folder.parent}"
            )
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"the database folder {folder} cannot be created: {error.strerror}.",
                remediation="Choose another --db folder or mend its permissions.",
            ) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the database folder {folder} is not readable and writable for uid {os.geteuid()}.",
            remediation="Mend its owner or mode, or run as its owner.",
        )
    return folder


_environments: weakref.WeakSet[Environment] = weakref.WeakSet()


class Environment:
    """An open LMDB environment with the sub-databases of ToonDB.

    Args:
        folder: The database folder.
        options: Engine options.
        access: With ``READ`` nothing is changed; unless ``EXCLUSIVE``, other processes may write, too.

    Raises:
        CorruptionError: The files are not a usable store.
        DatabaseError: The store was written by a newer version.
        StorageError, StorageFullError, ConfigurationError: It cannot be opened; the message says why.

    Attributes:
        lmdb: The LMDB environment.
        kv: Handle of the key-value sub-database.
        may_expire: A record may expire. False as long as this process, which alone writes the store, knows of none.
        expiry: Handle of the index of records that expire, see ``expiry``.
        changes: Handle of the change log, see ``change_log``.
        document_log: Handle of the log of changed documents, see ``document_log``.
        history_bytes: What the change log may take.
        shared: Other processes may write, too.
        unchecked_history: Bytes that were logged since its size was last looked at.
        begin_read: Begins an LMDB read transaction on a sub-database; for reads that drop it at once. What it raises
            is not translated, see :meth:`begin_view`.
        forked: This process is a child of the one that opened it and must not touch it.
        last_view: After LMDB refused to go on (it could not write its root page), the last commit; None before.
        announced_lsn: The newest commit after which ``mark`` was replaced.
        mark: An object that is another one after each commit; a reader that caches a view compares it by identity
            to know when to renew. Any thread that sees a commit before it was announced here may replace it too.
    """

    def __init__(self, folder: Path, options: EngineOptions, access: Access = Access.EXCLUSIVE) -> None:
        self.folder = folder
        self.sync_mode = options.sync_mode
        self.history_bytes = options.change_history_bytes
        # So that the first commit looks at what the processes before this one have left.
        self.unchecked_history = self.history_bytes // 64
        self.shared = access is not Access.EXCLUSIVE
        read_only = access is Access.READ
        self._turn_fd = _open_turn_file(folder) if access is Access.SHARED else -1
        self.forked = False
        self.last_view: Any = None
        self.mark: object = object()
        self.announced_lsn = 0
        self._mark_lock = threading.Lock()
        self._waiting: list[Any] = []
        self._closing = False
        created = not (folder / DATA_FILE).exists()
        try:
            self.begin_turn()
            self._open(folder, options, read_only=read_only, created=created)
        except BaseException:
            self._close_turn()
            raise
        self.end_turn()
        _environments.add(self)

    def _open(self, folder: Path, options: EngineOptions, *, read_only: bool, created: bool) -> None:
        # Newer bindings know a second file format, which not every reader of this folder may know.
        line: dict[str, Any] = {"lib_version": 0} if hasattr(lmdb.Environment, "lib_version") else {}
        with _opening(folder):
            # A raw size below the data is raised by LMDB to what the data needs. writemap stays off: with it a
            # full disk is a SIGBUS instead of an error.
            self.lmdb: Any = lmdb.open(
                str(folder),
                map_size=-(-options.map_size // 4096) * 4096,
                subdir=True,
                mode=0o600,
                create=not read_only,
                readonly=read_only,
                max_dbs=_MAX_SUB_DATABASES,
                max_readers=options.max_readers,
                max_spare_txns=64,
                metasync=options.sync_mode is SyncMode.FULL,
                sync=options.sync_mode is not SyncMode.OFF,
                writemap=False,
                readahead=True,
                **line,
            )
        self.begin_read: Callable[[Any], Any] = self.lmdb.begin
        try:
            with _opening(folder):
                self.lmdb.reader_check()
                if not read_only:
                    self._create_databases()
                self._check_format()
                self._open_databases()
                self.kv = self.spaces[Space.KV]
                self.may_expire = self.shared or self._any_expiring()
                if created:
                    self._sync_names()
        except BaseException:
            self.lmdb.close()
            raise

    def _sync_names(self) -> None:
        """Make the new file's name durable: syncing a file says nothing of the folder that it is in."""
        for path in (self.folder, self.folder.parent):
            with contextlib.suppress(OSError):  # not readable, or a file system that cannot sync folders
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    # Views

    def begin_view(self) -> Any:
        """An LMDB read transaction on the newest commit, by default of the key-value sub-database.

        End it with :meth:`end_view`.

        Raises:
            ToonDBError: There is none: the database is closed, or too many are open.
        """
        if self.forked:
            raise self.forked_error()
        try:
            return self.lmdb.begin(self.kv)
        except lmdb.PanicError as error:
            if self.last_view is None:
                raise storage_error(error, "reading") from None
            return self.last_view
        except lmdb.Error as error:
            raise storage_error(error, "taking a snapshot") from None

    def end_view(self, view: Any) -> None:
        """End what :meth:`begin_view` gave."""
        # In a forked child an abort would clear the parent's slot in the shared reader table.
        if view is not self.last_view and not self.forked:
            view.abort()

    def _any_expiring(self) -> bool:
        with self.lmdb.begin() as txn:
            return bool(txn.stat(self.expiry)["entries"])

    def has_expiring(self, txn: Any) -> bool:
        """Whether any record expires, as an LMDB transaction sees the store."""
        return self.may_expire and bool(txn.stat(self.expiry)["entries"])

    # Turns

    def begin_turn(self) -> None:
        """Wait until no other process that shares the folder writes. Nothing to do where there are none.

        LMDB has a lock of its own for this, which outlives its killed holder. But a process that is killed between
        being woken up for it and taking it takes the wake-up with it, and the others sleep on. The kernel forgets
        who is killed while it holds or waits for this one, and behind it nobody ever waits for LMDB's.
        """
        if self._turn_fd >= 0:
            fcntl.flock(self._turn_fd, fcntl.LOCK_EX)

    def end_turn(self) -> None:
        """Let the next one write. Harmless when it is nobody's turn."""
        if self._turn_fd >= 0:
            fcntl.flock(self._turn_fd, fcntl.LOCK_UN)

    def _close_turn(self) -> None:
        fd, self._turn_fd = self._turn_fd, -1
        if fd >= 0:
            os.close(fd)

    def _refuse(self, _: Any) -> Any:
        raise self.forked_error()

    def forked_error(self) -> ForkedProcessError:
        """What use in a forked child raises."""
        return ForkedProcessError(
            "this database was opened by the parent process.",
            remediation="Open databases after the fork, or start processes by spawn.",
        )

    # The disk

    def has_room(self, size: int) -> bool:
        """Whether the disk, the quota and the limit on file sizes leave room for about ``size`` more bytes.

        LMDB reports a write that a full disk cut short as an input/output error; this tells one from the other.
        """
        try:
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                os.posix_fallocate(probe.fileno(), 0, size + _PROBE_BYTES)
            here = (self.folder / DATA_FILE).stat().st_size
        except OSError as error:
            return error.errno not in _FULL
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return limit == resource.RLIM_INFINITY or here + size + _PROBE_BYTES <= limit

    def _create_databases(self) -> None:
        with self.lmdb.begin() as txn:
            new = txn.stat()["entries"] == 0
            ours = new or txn.get(META_DATABASE) is not None
        if not ours:
            raise ConfigurationError(
                f"{self.folder / DATA_FILE} is an LMDB file of another program.", remediation="Name another folder."
            )
        # All at once: a process killed in between leaves nothing rather than half a store.
        with self.lmdb.begin(write=True) as txn:
            meta = self.lmdb.open_db(META_DATABASE, txn=txn)
            raw = txn.get(META_FORMAT, db=meta)
            if raw is None:
                # Not by ``new``: another process may have been here since.
                if txn.stat(meta)["entries"] or not new:
                    return
                form = {"version": FORMAT_VERSION, "id": uuid.uuid4().hex, "created": int(time.time())}
                txn.put(META_LSN, bytes(8), db=meta)
            else:
                form = _decoded(raw)
                if form.get("version") not in READABLE_FORMATS[:-1]:
                    return
                form["version"] = FORMAT_VERSION
            for name in (*_SPACE_NAMES.values(), EXPIRY_DATABASE, CHANGES_DATABASE, DOCUMENT_LOG_DATABASE):
                self.lmdb.open_db(name, txn=txn)
            # Of what came before the change log there is no history.
            txn.put(META_CHANGES_FROM, txn.get(META_LSN, bytes(8), db=meta), db=meta, overwrite=False)
            txn.put(META_FORMAT, msgpack.packb(form), db=meta)

    def _open_databases(self) -> None:
        try:
            self.spaces = tuple(self.lmdb.open_db(_SPACE_NAMES[space], create=False) for space in Space)
            self.expiry = self.lmdb.open_db(EXPIRY_DATABASE, create=False)
            self.changes = self.lmdb.open_db(CHANGES_DATABASE, create=False)
            self.document_log = self.lmdb.open_db(DOCUMENT_LOG_DATABASE, create=False)
        except lmdb.NotFoundError:
            raise CorruptionError(f"a sub-database of {self.folder / DATA_FILE} is missing.") from None

    def _check_format(self) -> None:
        try:
            self.meta = self.lmdb.open_db(META_DATABASE, create=False)
            with self.lmdb.begin(db=self.meta) as txn:
                form = _decoded(txn.get(META_FORMAT))
        except lmdb.NotFoundError:
            form = {}
        version = form.get("version")
        if version is None:
            raise CorruptionError(f"the format record of {self.folder} is missing or cannot be read.")
        if version != FORMAT_VERSION:
            raise DatabaseError(
                f"the store in {self.folder} has format {version}, this version reads format {FORMAT_VERSION}.",
                remediation="Open it with the version that wrote it.",
            )
        self.format = form

    def announce(self, lsn: int) -> None:
        """Note on the committing thread that the commit ``lsn`` is visible, before anybody is told."""
        with self._mark_lock:
            self.mark = object()
            self.announced_lsn = lsn
            self._wake_all()

    def wait_for_commit(self, lsn: int, seconds: float) -> None:
        """Wait until this process announces a commit after ``lsn``, for so long at the most."""
        # Not a Condition: Ctrl-C inside of its Python code can leave its lock behind, locked for ever.
        waiter = threading.Lock()
        waiter.acquire()
        with self._mark_lock:
            if self.announced_lsn > lsn or self._closing:
                return
            self._waiting.append(waiter)
        try:
            waiter.acquire(timeout=max(0.0, seconds))
        finally:
            with self._mark_lock:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def stop_waiting(self) -> None:
        """End the waiting in :meth:`wait_for_commit` of all threads, and let nobody wait any more."""
        with self._mark_lock:
            self._closing = True
            self._wake_all()

    def _wake_all(self) -> None:
        # Each commit wakes everybody: whoever waits, waits for the next one.
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.release()

    def seen(self, lsn: int) -> None:
        """Note that a reader sees the commit ``lsn``.

        A commit is visible a moment before it is announced. Whoever has seen it must not find anything older
        through a cached view or reply, so these are put out of use until the announcement.
        """
        if lsn > self.announced_lsn:
            with self._mark_lock:
                if lsn > self.announced_lsn:
                    self.mark = object()

    def close(self) -> None:
        """Close the environment. Every transaction on it must be closed before."""
        self.lmdb.close()
        self._close_turn()


def _open_turn_file(folder: Path) -> int:
    try:
        return os.open(folder / TURN_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(error.strerror or "", f"creating {TURN_FILE}") from None
        raise ConfigurationError(
            f"{folder / TURN_FILE} cannot be used: {error.strerror}.", remediation="Mend its owner or mode."
        ) from None


def _decoded(raw: bytes | None) -> dict[str, Any]:
    """A format record; empty when it cannot be read."""
    try:
        form = msgpack.unpackb(raw or b"")
    except (ValueError, msgpack.UnpackException):
        return {}
    return form if isinstance(form, dict) else {}


def _leave_to_the_parent() -> None:
    for environment in list(_environments):
        environment.forked = True
        environment._close_turn()  # shared with the parent, whose death must end its turn
        environment.begin_read = environment._refuse
        environment.mark = object()


os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        text = str(error)
        if _is(error, errno.ENOMEM):
            raise ConfigurationError(
                f"the address space for {folder} cannot be reserved: {text}.",
                remediation="Choose a smaller --map-size.",
            ) from None
        if _is(error, errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigurationError(
                f"the store in {folder} cannot be opened for writing: {text}.",
                remediation="Mend the owner or mode of its files.",
            ) from None
        if "already open" in text:
            raise ConfigurationError(
                f"the store in {folder} is open in this process already.", remediation="Share that one handle."
            ) from None
        raise storage_error(error, f"opening {folder}") from None
