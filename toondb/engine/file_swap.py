"""Replacing a database file, and the small file operations that must not go wrong with it.

``swap_database`` is the only place where ``data.mdb`` is ever replaced. At every moment, whatever stops the
process or the machine, the folder holds the old store or the new one, whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

from toondb_protocol.errors import (
    ConfigurationError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    StorageError,
    StorageFullError,
    ToonDBError,
)

from .environment import DATA_FILE
from .owner_lock import flock_holders

__all__ = [
    "LMDB_LOCK_FILE",
    "NEW_FILE",
    "ReadHold",
    "create_private",
    "file_errors",
    "fsync_folder",
    "hand_over",
    "held",
    "swap_database",
    "write_all",
]

LMDB_LOCK_FILE = "lock.mdb"
NEW_FILE = "data.mdb.new"
"""The replacement while it is made. One that is found was left by a killed process: it is removed."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def swap_database(folder: Path, new: Path, *, keep: Path | None = None) -> None:
    """Put ``new`` in the place of the folder's database. The caller holds the owner lock and has fsynced ``new``.

    The order matters. LMDB's lock file carries the id of the newest transaction of *its* data file, and an
    opener that is not alone believes it; beside another data file that id is wrong. So the lock file goes
    first: a process that still reads the old pair keeps both of its files, and nobody meets the new data with
    the old lock file. Without a lock file LMDB makes a fresh one, so stopping in between is harmless.

    Args:
        folder: The database folder.
        new: The replacement, in the same folder.
        keep: Another name that the old file gets; it is otherwise gone. A second name is made before anything
            else, so that there is no moment without ``data.mdb``.

    Raises:
        OSError: Nothing was replaced.
    """
    data = folder / DATA_FILE
    if keep is not None:
        os.link(data, keep)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / LMDB_LOCK_FILE)
        os.rename(new, data)
    except OSError:
        if keep is not None:
            with contextlib.suppress(OSError):
                os.unlink(keep)
        raise
    fsync_folder(folder)


@contextlib.contextmanager
def held(data: Path, kind: int, doing: str) -> Iterator[None]:
    """Hold a ``flock`` on the database file, so that nobody replaces it under a reader of the whole file.

    LMDB does not use ``flock``, so a daemon that serves the file neither notices nor minds.

    Args:
        data: The ``data.mdb`` file.
        kind: ``fcntl.LOCK_SH`` to read all of it, ``fcntl.LOCK_EX`` to replace it.
        doing: What for, in the error.

    Raises:
        DatabaseLockedError: It is being replaced, or (to replace it) somebody reads all of it.
        DatabaseNotFoundError: There is no such file.
    """
    fd = _hold(data, kind, doing)
    try:
        yield
    finally:
        os.close(fd)


def _hold(data: Path, kind: int, doing: str) -> int:
    while True:
        try:
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise DatabaseNotFoundError(f"there is no database in {data.parent}.") from None
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            if _same_file(fd, data):
                held_fd, fd = fd, -1
                return held_fd
            # Replaced between the two calls: the new file is the one to hold.
        except BlockingIOError:
            raise _busy(fd, data, kind, doing) from None
        finally:
            if fd >= 0:
                os.close(fd)


def _busy(fd: int, data: Path, kind: int, doing: str) -> DatabaseLockedError:
    other, who = "replaced (restore, compact)", ""
    pids = flock_holders(fd)
    if kind == fcntl.LOCK_EX:
        other = "read (backup, check, or open_concurrent beside a daemon)"
        who = f" by pid {', '.join(map(str, pids))}" if pids else ""
    return DatabaseLockedError(
        f"{doing} is not possible while the database in {data.parent} is being {other}{who}.",
        remediation="Wait until that is done, or close it there, and run this again.",
        details={"pids": pids} if pids else {},
    )


_held: weakref.WeakSet[ReadHold] = weakref.WeakSet()


class ReadHold:
    """Keeps a database file in its place for a process that only reads it, and so does not own the folder.

    Whoever reads a file that was replaced would go on with the old one for ever, and never be told.

    Raises:
        DatabaseLockedError: It is being replaced.
        DatabaseNotFoundError: There is no such file.
    """

    def __init__(self, data: Path) -> None:
        self._fd = -1
        self._fd = _hold(data, fcntl.LOCK_SH, "Opening it")
        _held.add(self)

    def release(self) -> None:
        """Let the file be replaced. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _release_in_child() -> None:
    # A forked child shares the open file description, and would hold the file for as long as it lives.
    for hold in list(_held):
        hold.release()


os.register_at_fork(after_in_child=_release_in_child)


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def file_errors(doing: str) -> Iterator[None]:
    """Turn what the system refuses into an error that says what to do.

    Raises:
        StorageFullError: The disk or a quota is full.
        ConfigurationError: A permission is missing.
        StorageError: Anything else that the system said.
    """
    try:
        yield
    except ToonDBError:
        raise  # some of them are OSErrors, too
    except OSError as error:
        what = f"{doing} failed: {error.strerror or error}"
        if error.filename is not None:
            what += f" ({os.fsdecode(error.filename)})"
        if error.errno in _FULL:
            raise StorageFullError(
                f"{what}.", remediation="Free disk space, or choose a place with more; nothing was changed."
            ) from error
        if error.errno in _REFUSED:
            raise ConfigurationError(
                f"{what}.", remediation="Run as the owner of these files, or mend their owner or mode."
            ) from error
        raise StorageError(f"{what}.", remediation="Check the disk and the kernel log.") from error


@contextlib.contextmanager
def create_private(path: Path) -> Iterator[int]:
    """Create a file that only its owner can read, and give its descriptor; fsynced at the end of the block."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte; a full disk or a signal may cut a single call short."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hand_over(folder: Path, *names: str) -> None:
    """Give files that root made in somebody's database folder to that folder's owner.

    Otherwise a maintenance command run with sudo would leave files that the daemon's user cannot open.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    for name in names:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found = os.fstat(fd)
            # Only what root just made there: never a link that the folder's owner made to a file of root's.
            if stat.S_ISREG(found.st_mode) and found.st_uid == 0 and found.st_nlink == 1:
                os.fchown(fd, owner.st_uid, owner.st_gid)
        finally:
            os.close(fd)
