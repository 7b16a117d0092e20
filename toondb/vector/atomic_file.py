"""Files that appear whole or not at all.

A new file is written beside the old one under a name of its own, made durable, and then takes the name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from toondb.engine.file_swap import file_errors
from toondb.engine.new_file import NewFile
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
        if not os.fspath(path):
            raise ValueError
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
        new = NewFile(place)
        try:
            yield new.file
        except BaseException:
            new.discard()
            raise
        new.finish()


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
