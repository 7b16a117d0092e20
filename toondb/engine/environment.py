"""Opening the LMDB environment of a database folder, and translating its errors."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from toondb_protocol.errors import (
    ConfigurationError,
    CorruptionError,
    DatabaseError,
    DatabaseNotFoundError,
    StorageError,
    StorageFullError,
    ToonDBError,
)
from toondb_protocol.record import CATALOG_DATABASE, KV_DATABASE, META_DATABASE, META_FORMAT, META_LSN

from .options import EngineOptions, SyncMode

__all__ = ["DATA_FILE", "FORMAT_VERSION", "Environment", "Space", "prepare_folder", "storage_error"]

DATA_FILE = "data.mdb"
FORMAT_VERSION = 1
_MAX_SUB_DATABASES = 16


class Space(IntEnum):
    """A sub-database whose values are records (see ``toondb_protocol.record``)."""

    KV = 0
    CATALOG = 1


_SPACE_NAMES = {Space.KV: KV_DATABASE, Space.CATALOG: CATALOG_DATABASE}


def storage_error(error: lmdb.Error, doing: str) -> ToonDBError:
    """The typed error for what LMDB raised while ``doing`` something."""
    text = str(error)
    if isinstance(error, lmdb.MapFullError):
        return StorageFullError(
            f"the store reached its --map-size while {doing}.",
            remediation="Delete data, or restart with a larger --map-size.",
        )
    if any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        return StorageFullError(
            f"the disk is full ({text}) while {doing}.",
            remediation="Free disk space; nothing of this write was kept and reads go on.",
        )
    if isinstance(error, lmdb.ReadersFullError):
        return DatabaseError(
            f"too many snapshots are open at once while {doing}.",
            remediation="End open transactions and scans.",
        )
    if isinstance(error, (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)):
        return CorruptionError(f"the store is damaged: {text} while {doing}.")
    return StorageError(f"the storage failed: {text} while {doing}.")


def prepare_folder(path: str | os.PathLike[str], *, create: bool) -> Path:
    """The absolute database folder, created (without its parents) when asked.

    Raises:
        ConfigurationError: It is not a folder, its parent is missing, or it cannot be created.
        DatabaseNotFoundError: It holds no database and ``create`` is off.
    """
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
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


class Environment:
    """An open LMDB environment with the sub-databases of ToonDB.

    Args:
        folder: The database folder.
        options: Engine options.

    Raises:
        CorruptionError: The files are not a usable store.
        DatabaseError: The store was written by a newer version.
        StorageError, StorageFullError, ConfigurationError: It cannot be opened; the message says why.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self.folder = folder
        self.sync_mode = options.sync_mode
        with _opening(folder):
            # A raw size below the data is raised by LMDB to what the data needs. writemap stays off: with it a
            # full disk is a SIGBUS instead of an error.
            self.lmdb: Any = lmdb.open(
                str(folder),
                map_size=-(-options.map_size // 4096) * 4096,
                subdir=True,
                mode=0o600,
                create=True,
                max_dbs=_MAX_SUB_DATABASES,
                max_readers=options.max_readers,
                max_spare_txns=64,
                metasync=options.sync_mode is SyncMode.FULL,
                sync=options.sync_mode is not SyncMode.OFF,
                writemap=False,
                readahead=True,
            )
        try:
            with _opening(folder):
                self.lmdb.reader_check()
                self.meta = self.lmdb.open_db(META_DATABASE)
                self.spaces = tuple(self.lmdb.open_db(_SPACE_NAMES[space]) for space in Space)
                self._check_format()
        except BaseException:
            self.lmdb.close()
            raise

    @property
    def kv(self) -> Any:
        """Handle of the key-value sub-database."""
        return self.spaces[Space.KV]

    def _check_format(self) -> None:
        with self.lmdb.begin(db=self.meta) as txn:
            raw = txn.get(META_FORMAT)
        if raw is None:
            form = {"version": FORMAT_VERSION, "id": uuid.uuid4().hex, "created": int(time.time())}
            with self.lmdb.begin(db=self.meta, write=True) as txn:
                txn.put(META_FORMAT, msgpack.packb(form))
                txn.put(META_LSN, bytes(8))
            self.format: dict[str, Any] = form
            return
        try:
            form = msgpack.unpackb(raw)
            version = form["version"]
        except (ValueError, KeyError, TypeError, msgpack.UnpackException):
            raise CorruptionError(f"the format record of {self.folder} cannot be read.") from None
        if version != FORMAT_VERSION:
            raise DatabaseError(
                f"the store in {self.folder} has format {version}, this version reads format {FORMAT_VERSION}.",
                remediation="Open it with the version that wrote it.",
            )
        self.format = form

    def close(self) -> None:
        """Close the environment. Every transaction on it must be closed before."""
        self.lmdb.close()


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        text = str(error)
        if os.strerror(errno.ENOMEM) in text:
            raise ConfigurationError(
                f"the address space for {folder} cannot be reserved: {text}.",
                remediation="Choose a smaller --map-size.",
            ) from None
        if os.strerror(errno.EACCES) in text or os.strerror(errno.EPERM) in text or os.strerror(errno.EROFS) in text:
            raise ConfigurationError(
                f"the store in {folder} cannot be opened for writing: {text}.",
                remediation="Mend the owner or mode of its files.",
            ) from None
        raise storage_error(error, f"opening {folder}") from None
