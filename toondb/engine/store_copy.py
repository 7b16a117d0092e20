"""Copying a store: a consistent copy of a database that may be in use, and a plain one of a file at rest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import lmdb
import msgpack

from toondb_protocol.errors import ConfigurationError, CorruptionError, DatabaseError
from toondb_protocol.record import FORMAT_VERSION, META_DATABASE, META_FORMAT

from . import pages
from .environment import DATA_FILE, READABLE_FORMATS, storage_error
from .file_check import FileReport, check_file
from .file_swap import LMDB_LOCK_FILE, create_private, hand_over, write_all

__all__ = ["Progress", "copy_file", "copy_store", "read_format", "verified"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (``copying`` in bytes or ``checking`` in pages, done, in all)."""

_CHUNK = 1024 * 1024


def copy_store(
    folder: Path, target: Path, *, compact: bool, environment: Any = None, progress: Progress | None = None
) -> str:
    """Copy one snapshot of a database, also while other processes write to it.

    Args:
        folder: The database folder.
        target: The file to make; it must not exist.
        compact: Leave out free pages and write the rest in key order; slower, and the copy is smaller.
        environment: The open LMDB environment, when this process has the folder open (LMDB must not be opened
            twice in one process).
        progress: See :data:`Progress`.

    Returns:
        The SHA-256 of the copy in hexadecimal.
    """
    with contextlib.ExitStack() as stack:
        if environment is None:
            environment = stack.enter_context(_reading(folder))
        total = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        with create_private(target) as fd:
            return _stream(environment, fd, compact=compact, total=total, progress=progress)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[Any]:
    """The database opened for reading, beside whoever serves it."""
    path = folder / DATA_FILE
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # LMDB follows what a meta page says: a damaged one is never shown to it.
        metas = pages.read_metas(fd)
    except pages.FormatError as error:
        raise CorruptionError(f"{path} {error}.") from None
    finally:
        os.close(fd)
    if metas.problems:
        raise CorruptionError(f"{path} is damaged: {metas.problems[0][1]}.")
    map_size = max(meta.map_size for meta in metas.usable)
    try:
        environment = lmdb.open(str(folder), map_size=map_size, readonly=True, create=False, max_dbs=0)
    except lmdb.Error as error:
        if any(os.strerror(code) in str(error) for code in (errno.EACCES, errno.EPERM)):
            raise ConfigurationError(
                f"the readers of {folder} cannot be joined: {error}.",
                remediation="Run as the user that owns the folder.",
            ) from None
        raise storage_error(error, f"opening {folder}") from None
    hand_over(folder, LMDB_LOCK_FILE)
    with environment:
        yield environment


def _stream(environment: Any, target: int, *, compact: bool, total: int, progress: Progress | None) -> str:
    """Let LMDB write into a pipe and this thread into the file.

    That way Ctrl-C and a full disk end the copy at once, the checksum costs no second read, and progress is
    known; none of it is possible while a thread is inside LMDB's own copy to a file.
    """
    failures: list[lmdb.Error] = []
    source, sink = os.pipe()
    _widen(sink)

    def produce() -> None:
        try:
            environment.copyfd(sink, compact=compact)
        except lmdb.Error as error:
            failures.append(error)
        finally:
            os.close(sink)

    producer = threading.Thread(target=produce, name="toondb-copy")
    digest = hashlib.sha256()
    done = 0
    producer.start()
    try:
        while chunk := os.read(source, _CHUNK):
            write_all(target, chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress("copying", min(done, total), total)
    finally:
        os.close(source)  # a producer that still writes gets EPIPE, and ends
        producer.join()
    if failures:
        raise storage_error(failures[0], "copying")
    return digest.hexdigest()


def _widen(pipe: int) -> None:
    resize = getattr(fcntl, "F_SETPIPE_SZ", None)
    if resize is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, resize, _CHUNK)


def copy_file(source: int, target: Path, progress: Progress | None = None) -> str:
    """Copy a file that nobody writes to, from its start; returns the SHA-256 in hexadecimal."""
    total = os.fstat(source).st_size
    digest = hashlib.sha256()
    done = 0
    with create_private(target) as fd:
        while chunk := os.pread(source, _CHUNK, done):
            write_all(fd, chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress("copying", min(done, total), total)
    return digest.hexdigest()


def verified(path: Path, what: str, remediation: str, progress: Progress | None) -> FileReport:
    """Check every page and record of a file at rest.

    Raises:
        CorruptionError: It is damaged; the message begins with ``what`` and names the first damage.
    """
    report = check_file(path, progress=_pages(progress))
    if not report.ok:
        raise CorruptionError(
            f"{what} is damaged: {report.damages[0].message}.",
            remediation=remediation,
            details={"damages": len(report.damages)},
        )
    return report


def _pages(progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress("checking", done, total)


def read_format(path: Path, what: str) -> dict[str, Any]:
    """The format record (version, id, created) of an undamaged database file that nobody has open.

    Raises:
        CorruptionError: It has none: an LMDB file, but not ToonDB's.
        DatabaseError: Another version of ToonDB wrote it.
    """
    try:
        with lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, create=False, max_dbs=2, map_size=path.stat().st_size
        ) as environment:
            meta = environment.open_db(META_DATABASE, create=False)
            with environment.begin(db=meta) as txn:
                raw = txn.get(META_FORMAT)
        form: dict[str, Any] = msgpack.unpackb(raw or b"")
        version = form["version"]
    except (lmdb.NotFoundError, ValueError, KeyError, TypeError, msgpack.UnpackException):
        raise CorruptionError(
            f"{what} is an LMDB file, but not a ToonDB store.", remediation="Name a backup made by ToonDB."
        ) from None
    except lmdb.Error as error:
        raise storage_error(error, f"reading {path}") from None
    if version not in READABLE_FORMATS:
        raise DatabaseError(
            f"{what} has format {version}, this version reads format {FORMAT_VERSION}.",
            remediation="Use the version that wrote it.",
        )
    return form
