"""Input files, and output files that are whole or not there."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import tempfile
from typing import BinaryIO, TextIO

__all__ = ["OutputFile", "open_input", "utf8_text"]

_BUFFER = 128 * 1024


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

    It is written beside its place, synced and renamed. What is no regular file (a pipe, a terminal) is written as it
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
        self._place = os.path.realpath(os.path.expanduser(path))
        self._unfinished = ""
        mode = _mode_of(self._place)
        if mode is not None and not stat.S_ISREG(mode):
            # A folder is refused here.
            self._file: BinaryIO = open(self._place, "wb")  # noqa: SIM115
        else:
            folder, name = os.path.split(self._place)
            try:
                fd, self._unfinished = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            os.fchmod(fd, stat.S_IMODE(mode) if mode is not None else 0o666 & ~_umask())
            self._file = os.fdopen(fd, "wb", _BUFFER)
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
            if self._unfinished:
                os.fsync(self._file.fileno())
        except BaseException:
            self.discard()
            raise
        self.text.close()
        if self._unfinished:
            os.replace(self._unfinished, self._place)
            self._unfinished = ""
            folder = os.open(os.path.dirname(self._place), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Leave everything as it was. Idempotent, and nothing after :meth:`finish`."""
        with contextlib.suppress(OSError):
            self.text.close()
        if self._unfinished:
            with contextlib.suppress(OSError):
                os.unlink(self._unfinished)
            self._unfinished = ""

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()


def _mode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
