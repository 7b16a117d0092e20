"""A file that is written beside its place under a name of its own, made durable, and then takes the place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from .file_swap import fsync_folder

__all__ = ["NewFile"]

_BUFFER = 128 * 1024
_RANDOM_BYTES = 4
_RANDOM = "[a-z0-9_]{8}"


class NewFile:
    """The file while it is written. What a killed process left half written is removed by the next one at that place.

    Args:
        place: Where it goes; there is nothing, or a regular file, whose mode it keeps.

    Attributes:
        file: What to write to.

    Raises:
        OSError: It cannot be written there.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        _sweep(place)
        mode = _mode(place)
        while True:
            fd, self._name = _create(place, mode)
            self.file: BinaryIO = open(fd, "wb", _BUFFER)  # noqa: SIM115
            try:
                # Held for as long as this process writes: the mark that it is not a leftover.
                fcntl.flock(fd, fcntl.LOCK_EX)
                if mode is not None:
                    os.fchmod(fd, mode)
                if os.fstat(fd).st_nlink:
                    return
            except BaseException:
                self.discard()
                raise
            # Taken for a leftover before it was held.
            self.file.close()

    def finish(self) -> None:
        """Put it in its place.

        Raises:
            OSError: It could not be written; the place is as it was, unless only the folder could not be synced.
        """
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            os.rename(self._name, self._place)
        except BaseException:
            self.discard()
            raise
        self.file.close()
        fsync_folder(self._place.parent)

    def discard(self) -> None:
        """Leave the place as it was. Idempotent, and nothing after :meth:`finish`."""
        if self.file.closed:
            return
        # The name goes while it is held: once it is let go, somebody else may take the name.
        with contextlib.suppress(OSError):
            os.unlink(self._name)
        with contextlib.suppress(OSError):
            self.file.close()


def _prefix(place: Path) -> str:
    # A name may have 255 bytes; what is added must fit.
    return f".{place.name[:60]}."


def _create(place: Path, mode: int | None) -> tuple[int, str]:
    """A new file beside a place: its descriptor and its name."""
    while True:
        name = str(place.parent / f"{_prefix(place)}{secrets.token_hex(_RANDOM_BYTES)}.tmp")
        # Where there is none yet the system applies the umask: who wants to read it has to change it, for all threads
        # of the process.
        with contextlib.suppress(FileExistsError):
            permissions = 0o666 if mode is None else 0o600
            return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, permissions), name


def _mode(place: Path) -> int | None:
    try:
        return stat.S_IMODE(os.stat(place).st_mode)
    except FileNotFoundError:
        return None


def _sweep(place: Path) -> None:
    is_ours = re.compile(re.escape(_prefix(place)) + _RANDOM + r"\.tmp").fullmatch
    # A folder may be written to and not listed.
    with contextlib.suppress(OSError):
        for left in place.parent.iterdir():
            if is_ours(left.name):
                _remove_leftover(left)


def _remove_leftover(left: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(left)
        finally:
            os.close(fd)
