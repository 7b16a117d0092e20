"""Input files, and output files that are whole or not there."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO, TextIO

from toondb.engine.new_file import NewFile

__all__ = ["OutputFile", "open_input", "utf8_text"]


def utf8_text(binary: BinaryIO) -> TextIO:
    """A text stream over a binary one that writes UTF-8 and leaves the ends of lines alone."""
    return io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="", write_through=False)


def open_input(path: str) -> BinaryIO:
    """A file to read, ``-`` = standard input.

    Raises:
        OSError: It cannot be read.
    """
    if path == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    return open(os.path.expanduser(path), "rb")


class OutputFile:
    """A file that appears, or takes the place of another, when it is whole.

    See :class:`NewFile`. What is no regular file (a pipe, a terminal) is written as it
    comes.

    Args:
        path: Where; a symbolic link is followed.

    Attributes:
        path: As the user wrote it.
        text: What to write to.

    Raises:
        OSError: It cannot be written there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._place = Path(os.path.realpath(os.path.expanduser(path)))
        self._new: NewFile | None = None
        if _is_other(self._place):
            # A folder is refused here.
            self._file: BinaryIO = open(self._place, "wb")  # noqa: SIM115
        else:
            try:
                self._new = NewFile(self._place)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            self._file = self._new.file
        self.text = utf8_text(self._file)

    @property
    def size(self) -> int:
        """Bytes written so far, without what still waits in a buffer."""
        with contextlib.suppress(OSError, ValueError):
            return os.fstat(self._file.fileno()).st_size
        return 0

    def finish(self) -> None:
        """Put it in its place."""
        try:
            self.text.flush()
        except BaseException:
            self.discard()
            raise
        if self._new is not None:
            self._new.finish()
        self.text.close()

    def discard(self) -> None:
        """Leave everything as it was. Idempotent, and nothing after :meth:`finish`."""
        if self._new is not None:
            self._new.discard()
        with contextlib.suppress(OSError):
            self.text.close()

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()


def _is_other(path: Path) -> bool:
    """Whether there is something that is no regular file."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
