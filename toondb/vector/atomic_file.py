"""Files that appear whole or not at all.

A new file is written beside the old one under a name of its own, made durable, and then takes the name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from toondb.engine.file_swap import file_errors, fsync_folder
from toondb_protocol.errors import ValidationError

__all__ = ["open_regular", "replacing", "target"]

Name = str | os.PathLike[str]


def target(path: Name) -> Path:
    """The regular file that writing to ``path`` makes or replaces.

    Raises:
        ValidationError: It cannot be a file: a folder or device of that name, or no such folder.
    """
    try:
        place = Path(os.path.realpath(os.fspath(path)))
    except (TypeError, ValueError):
        raise ValidationError(f"the path is {path!r}.", remediation="Give the name of a file.") from None
    with file_errors(f"Looking at {place}"):
        try:
            mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            if not place.parent.is_dir():
                raise ValidationError(
                    f"{path} cannot be written: there is no folder {place.parent}.", remediation="Make it first."
                ) from None
            return place
    if not stat.S_ISREG(mode):
        raise ValidationError(f"{path} is not a regular file.", remediation="Give the name of a file.")
    return place


@contextlib.contextmanager
def replacing(path: Name) -> Iterator[BinaryIO]:
    """Write a file, at ``path`` only when the block ends without an error, and durable then.

    What a killed process left half written is removed by the next one that writes there.

    Raises:
        ValidationError: There can be no file at that path.
        StorageFullError: The disk is full; an existing file is as it was.
        ConfigurationError: A permission is missing.
        StorageError: Anything else that the system said.
    """
    place = target(path)
    with file_errors(f"Writing {place}"):
        _sweep(place)
        fd, name = tempfile.mkstemp(prefix=_prefix(place), suffix=".tmp", dir=place.parent)
        try:
            with open(fd, "wb") as file:
                # Held for as long as this process writes: the mark that it is not a leftover.
                fcntl.flock(file, fcntl.LOCK_EX)
                os.fchmod(file.fileno(), _mode(place))
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.rename(name, place)
            fsync_folder(place.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def open_regular(path: Name, what: str) -> Iterator[BinaryIO]:
    """Open a file that must exist and be regular, for reading.

    Args:
        path: Its name.
        what: What it is, for errors.

    Raises:
        ValidationError: There is no such file, or it is a folder, a device or a pipe.
        ConfigurationError: A permission is missing.
        StorageError: Anything else that the system said.
    """
    with file_errors(f"Opening {what}"):
        try:
            # Without O_NONBLOCK the open of a pipe waits for a writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise ValidationError(
                f"{what}: there is no file {os.fspath(path)}.", remediation="Check the path."
            ) from None
        except (TypeError, ValueError):
            raise ValidationError(f"{what}: the path is {path!r}.", remediation="Give the name of a file.") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ValidationError(
                f"{what}: {os.fspath(path)} is not a regular file.", remediation="Give the name of a file."
            )
    with open(fd, "rb") as file:
        yield file


def _prefix(place: Path) -> str:
    # A name may have 255 bytes; what is added must fit.
    return f".{place.name[:60]}."


def _mode(place: Path) -> int:
    try:
        return stat.S_IMODE(os.stat(place).st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def _sweep(place: Path) -> None:
    for left in place.parent.iterdir():
        if not (left.name.startswith(_prefix(place)) and left.name.endswith(".tmp")):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(left)
            finally:
                os.close(fd)
