"""The owner lock: one process owns a database folder, or several share it, and others learn which.

A ``flock`` on ``toondb.lock`` is held for the life of the owner, exclusive or shared; the kernel releases it when the
process dies, so there is no stale lock. The file's text names the owner for error messages only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import weakref
from pathlib import Path
from typing import Any

from toondb_protocol.errors import ConfigurationError, DatabaseLockedError, StorageFullError

__all__ = ["LOCK_FILE", "OwnerLock", "flock_holders", "read_owner", "wait_for_lock"]

LOCK_FILE = "toondb.lock"
_MAX_OWNER_BYTES = 4096
_POLL_SECONDS = 0.02

_held: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


class OwnerLock:
    """Ownership of a folder.

    Args:
        folder: The database folder; it must exist.
        role: ``daemon``, ``embedded``, ``concurrent`` or the name of a maintenance command.
        socket: The daemon's socket, for messages.
        shared: Share it with others that do so too.

    Raises:
        DatabaseLockedError: Another process holds it; ``details`` has its pid, role and socket.
        ConfigurationError: The lock file cannot be opened, or its file system has no locks.
        StorageFullError: There is no room for the lock file.
    """

    def __init__(self, folder: Path, role: str, socket: str | None = None, *, shared: bool = False) -> None:
        path = folder / LOCK_FILE
        self._fd = -1
        self._shared = shared
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holders = flock_holders(self._fd)
            os.close(self._fd)
            self._fd = -1
            raise _locked(folder, holders) from None
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            raise _unusable(path, error) from None
        owner = {"pid": os.getpid(), "role": role, "socket": socket, "since": int(time.time())}
        # The text is for messages only: a full disk must not keep the owner from opening (and then reading).
        with contextlib.suppress(OSError):
            if not shared:
                os.ftruncate(self._fd, 0)
            # One line in one call: of several that write it together the last one's is whole, whatever follows it.
            os.pwrite(self._fd, json.dumps(owner).encode() + b"\n", 0)
        _held.add(self)

    def release(self) -> None:
        """Give the folder up. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if not self._shared:  # others may still hold it, and the text speaks of one of them
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
            os.close(fd)

    def _forget_in_child(self) -> None:
        # A forked child shares the open file description and would keep the lock after the owner's death.
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _forget_all_in_child() -> None:
    for lock in list(_held):
        lock._forget_in_child()


os.register_at_fork(after_in_child=_forget_all_in_child)


def read_owner(folder: Path) -> dict[str, Any]:
    """What the lock file says of the owner; empty when it says nothing usable."""
    try:
        with open(folder / LOCK_FILE, "rb") as file:
            owner = json.loads(file.readline(_MAX_OWNER_BYTES))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _unusable(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"there is no room for the lock file {path}: {error.strerror}.")
    return ConfigurationError(
        f"the lock file {path} cannot be used: {error.strerror}.",
        remediation="Mend its owner or mode, or put the folder on a local file system.",
    )


def flock_holders(fd: int) -> list[int]:
    """The processes that hold a ``flock`` on an open file, as far as the system tells."""
    try:
        found = os.fstat(fd)
        with open("/proc/locks", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except (OSError, UnicodeDecodeError):
        return []
    # 1: FLOCK  ADVISORY  WRITE 4100 08:01:131 0 EOF
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = {row[4] for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5] == inode}
    return sorted(int(pid) for pid in pids if pid.isdigit() and pid != "0")


def wait_for_lock(folder: Path, role: str, give_up: float) -> OwnerLock | None:
    """Share a folder, or learn that a daemon serves it.

    Args:
        folder: The database folder.
        role: See :class:`OwnerLock`.
        give_up: Until when to wait for an exclusive holder that is no daemon, by ``time.monotonic()``.

    Returns:
        The shared lock, or None when the holder is a daemon.

    Raises:
        DatabaseLockedError: The holder stayed.
    """
    told = False
    while True:
        try:
            return OwnerLock(folder, role, shared=True)
        except DatabaseLockedError as error:
            if error.details.get("role") == "daemon":
                # What a killed daemon wrote stays until the next owner has written who it is. Where that other pid is
                # only the number in a container, it says the same when it is asked again.
                if told or read_owner(folder).get("pid") == error.details.get("pid"):
                    return None
                told = True
            elif time.monotonic() >= give_up:
                raise
        time.sleep(_POLL_SECONDS)


def _locked(folder: Path, holders: list[int]) -> DatabaseLockedError:
    owner = read_owner(folder)
    role, socket = owner.get("role", "process"), owner.get("socket")
    if holders and role != "concurrent":
        owner["pid"] = holders[0]
    pid = owner.get("pid")
    if role == "concurrent":
        if holders:
            owner["pids"] = holders
        pids = ", ".join(map(str, holders)) or str(pid)
        who = f"concurrent openers (pid {pids})"
    else:
        who = f"{role} with pid {pid}" if pid else "another process"
    if role == "daemon" and socket:
        remedy = f"Connect to it with IpcClient.connect({socket!r}), or stop it: toondb-server stop --db {folder}"
    elif role == "concurrent":
        remedy = "Open it with Database.open_concurrent() as they do, or close it there first."
    else:
        remedy = "Close it there first, or serve the folder to all processes with: toondb-server --db " + str(folder)
    return DatabaseLockedError(
        f"the database {folder} is in use by {who}.",
        remediation=remedy,
        details={
            key: owner.get(key) for key in ("pid", "pids", "role", "socket", "since") if owner.get(key) is not None
        },
    )
