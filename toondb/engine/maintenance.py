"""Maintenance of a database folder: check, backup, restore, compact.

``check`` and ``backup`` work while a daemon serves the folder; ``restore`` and ``compact`` replace the file, so
they take the owner lock and refuse while anybody else has it.

A backup is a folder with ``data.mdb``, a complete store by itself, and ``backup.json``::

    {"format": 1, "created": "2026-01-31T12:00:00Z", "store_id": "...", "lsn": 7, "records": 5, "bytes": 40960,
     "sha256": "...", "compact": false}
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toondb_protocol.errors import (
    ConfigurationError,
    CorruptionError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseNotFoundError,
)

from .environment import DATA_FILE, prepare_folder
from .file_check import FileReport, SnapshotMovedError, check_file, check_live
from .file_swap import (
    LMDB_LOCK_FILE,
    NEW_FILE,
    create_private,
    file_errors,
    fsync_folder,
    hand_over,
    held,
    swap_database,
    write_all,
)
from .owner_lock import LOCK_FILE, OwnerLock
from .store_copy import Progress, copy_file, copy_store, read_format, verified

__all__ = [
    "MANIFEST_FILE",
    "BackupReport",
    "CompactReport",
    "Progress",
    "RestoreReport",
    "backup",
    "check",
    "compact",
    "restore",
]

MANIFEST_FILE = "backup.json"
_MANIFEST_FORMAT = 1
_MAX_MANIFEST_BYTES = 65536
_PIN_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A finished backup.

    Attributes:
        path: The backup folder, absolute.
        created: When, UTC, ISO 8601.
        store_id: Random id of the store, the same in all its backups.
        lsn: The last commit that the backup contains.
        records: Records that it contains.
        bytes: Size of its ``data.mdb``.
        sha256: Checksum of its ``data.mdb``, hexadecimal.
        compact: Whether free pages were left out.
    """

    path: str
    created: str
    store_id: str
    lsn: int
    records: int
    bytes: int
    sha256: str
    compact: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-able map."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A finished restore.

    Attributes:
        path: The database folder, absolute.
        store_id: Id of the restored store.
        lsn: Its last commit.
        records: Its records.
        bytes: Size of the file.
        previous: Where the database that was there before is now; None when there was none.
    """

    path: str
    store_id: str
    lsn: int
    records: int
    bytes: int
    previous: str | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able map."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CompactReport:
    """A finished compaction; sizes in bytes.

    Attributes:
        path: The database folder, absolute.
        lsn: The last commit, unchanged.
        records: The records, unchanged.
        bytes_before: Size of the file before.
        bytes_after: Size of the file now.
    """

    path: str
    lsn: int
    records: int
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-able map."""
        return asdict(self)


# Check


def check(
    folder: str | os.PathLike[str],
    *,
    environment: Any = None,
    limit: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> FileReport:
    """Check every page and record of a database, whether or not somebody uses it.

    Args:
        folder: The database folder, or a backup.
        environment: The open LMDB environment, when this process has the folder open.
        limit: The most damages to report.
        progress: Called with (pages done, pages in all).

    Returns:
        What was seen; damage is in the report, it is not an error.

    Raises:
        DatabaseNotFoundError, ConfigurationError: There is no database, or it may not be read.
        DatabaseLockedError: It is being replaced by a restore or a compaction.
    """
    with file_errors(f"checking {os.fspath(folder)}"):
        path = prepare_folder(folder, create=False)
        with held(path / DATA_FILE, fcntl.LOCK_SH, "A check"):
            if environment is not None:
                return _check_own(path, environment, limit, progress)
            # LMDB leaves its lock file behind, so without one nobody has it open: a backup. It is not shown to
            # LMDB then, which would put a lock file beside it.
            lock = path / LMDB_LOCK_FILE
            if not lock.exists():
                report = check_file(path / DATA_FILE, limit=limit, progress=progress)
                if report.ok or not lock.exists():
                    return report
            report = check_live(path, limit=limit, progress=progress)
            hand_over(path, LMDB_LOCK_FILE)
            return report


def _check_own(path: Path, environment: Any, limit: int, progress: Callable[[int, int], None] | None) -> FileReport:
    for _ in range(_PIN_ATTEMPTS):
        with environment.begin() as txn, contextlib.suppress(SnapshotMovedError):
            return check_file(path / DATA_FILE, txn_id=int(txn.id()), limit=limit, progress=progress)
    raise DatabaseError(f"{path} is written to so fast that no snapshot of it could be pinned.")


# Backup


def backup(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    compact: bool = False,
    environment: Any = None,
    progress: Progress | None = None,
) -> BackupReport:
    """Make a consistent copy, also while a daemon serves the database and clients write.

    The backup is one snapshot: every commit up to its LSN whole, none after it. Writers are not held up, but
    pages that they free meanwhile are not reused, so the database may grow a little. The copy is made beside
    the target, fsynced, checked page by page, and renamed at the end: the target is complete or absent.

    Args:
        folder: The database folder.
        target: A folder to make (its parent exists); an empty one is replaced.
        compact: Leave out free pages: slower, smaller.
        environment: The open LMDB environment, when this process has the folder open.
        progress: See :data:`Progress`.

    Raises:
        DatabaseNotFoundError: There is no database in the folder.
        ConfigurationError: The target cannot be used; the message says why.
        CorruptionError: The database is damaged; no backup was made.
        StorageFullError: There is no room; nothing is left at the target.
    """
    with file_errors(f"the backup of {os.fspath(folder)}"):
        source = prepare_folder(folder, create=False)
        place = Path(os.path.abspath(os.path.expanduser(os.fspath(target))))
        _check_target(source, place)
        advice = f"See all of it with: toondb-server check --db {source}. An older backup is not affected."
        with held(source / DATA_FILE, fcntl.LOCK_SH, "A backup"):
            if compact:
                # LMDB walks the trees to compact them, and trusts every page number that it meets.
                pinned = check(source, environment=environment, progress=_pages(progress))
                if not pinned.ok:
                    raise CorruptionError(
                        f"the database {source} is damaged: {pinned.damages[0].message}.", remediation=advice
                    )
            with _partial(place) as partial:
                data = partial / DATA_FILE
                digest = copy_store(source, data, compact=compact, environment=environment, progress=progress)
                seen = verified(data, f"the database {source}", advice, progress)
                form = read_format(data, f"the database {source}")
                report = BackupReport(
                    path=str(place),
                    created=_now().strftime("%Y-%m-%dT%H:%M:%SZ"),
                    store_id=str(form.get("id", "")),
                    lsn=seen.lsn or 0,
                    records=seen.records,
                    bytes=data.stat().st_size,
                    sha256=digest,
                    compact=compact,
                )
                _write_manifest(partial / MANIFEST_FILE, report)
                fsync_folder(partial)
                os.rename(partial, place)
            fsync_folder(place.parent)
            return report


def _check_target(source: Path, place: Path) -> None:
    real_source, real_place = Path(os.path.realpath(source)), Path(os.path.realpath(place))
    if real_place == real_source or real_source in real_place.parents:
        raise ConfigurationError(
            f"the backup {place} would be inside the database folder {source}.",
            remediation="Choose a folder elsewhere, best on another disk.",
        )
    if not place.parent.is_dir():
        raise ConfigurationError(
            f"the folder {place.parent} does not exist.", remediation=f"Create it: mkdir -p {place.parent}"
        )
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise ConfigurationError(f"{place} exists and is not a folder.", remediation="Name a new folder.")
    if place.is_dir() and any(place.iterdir()):
        raise ConfigurationError(
            f"the folder {place} is not empty; it was left as it is.",
            remediation="Name a new folder for each backup.",
        )
    if os.path.ismount(place):
        raise ConfigurationError(
            f"{place} is a mount point, which cannot be replaced.", remediation=f"Name a folder in it: {place}/NAME"
        )


@contextlib.contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """An empty private folder beside ``place``, removed unless it was renamed.

    Its name is fixed and it is flocked, so what a killed backup left is found by the next one, and told from
    one that is under way.
    """
    partial = place.parent / f".{place.name}.partial"
    with contextlib.suppress(FileExistsError):
        os.mkdir(partial, 0o700)
    try:
        fd = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(
            f"{partial} cannot be used for the unfinished backup: {error.strerror}.", remediation="Remove it."
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(fd), os.stat(partial, follow_symlinks=False))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise DatabaseLockedError(
                f"another backup to {place} is under way.", remediation="Wait for it, or name another folder."
            )
        if os.fstat(fd).st_uid != os.geteuid():
            raise ConfigurationError(f"{partial} belongs to another user.", remediation="Name another folder.")
        try:
            for left in partial.iterdir():
                left.unlink()
            yield partial
        except BaseException:
            if partial.exists() and os.path.samestat(os.fstat(fd), os.stat(partial)):
                shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(fd)


def _write_manifest(path: Path, report: BackupReport) -> None:
    body = {"format": _MANIFEST_FORMAT, **report.to_json()}
    del body["path"]
    with create_private(path) as fd:
        write_all(fd, json.dumps(body, indent=2).encode() + b"\n")


# Restore


def restore(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> RestoreReport:
    """Put a backup in place as the database of a folder.

    What is put in place is checked first: every page and record of the very copy that becomes the database, and
    its checksum when the backup has a ``backup.json``. Until then nothing in the folder is touched.

    Args:
        source: A backup folder, or a ``data.mdb`` file by itself (which is then not compared with a checksum).
        folder: The database folder; made when missing (its parent is not).
        force: Replace the database that is there. The old file is kept beside the new one as
            ``data.mdb.before-restore-<UTC time>``; delete it when the restored data proved right.
        progress: See :data:`Progress`.

    Raises:
        DatabaseLockedError: Somebody uses the folder, or the source is a database in use.
        DatabaseNotFoundError: There is no backup at ``source``.
        DatabaseError: The folder has a database and ``force`` is off, or another version wrote the backup.
        CorruptionError: The backup is damaged.
        StorageFullError: There is no room for the copy.
    """
    with file_errors(f"restoring to {os.fspath(folder)}"):
        file, manifest = _find_backup(Path(os.path.abspath(os.path.expanduser(os.fspath(source)))))
        with _owned(folder, "restore", create=True) as target, contextlib.ExitStack() as stack:
            data = target / DATA_FILE
            previous: Path | None = None
            if data.exists():
                if os.path.samefile(file, data):
                    raise ConfigurationError(f"{file} is the database itself.", remediation="Name a backup.")
                if not force:
                    raise DatabaseError(
                        f"the folder {target} has a database already.",
                        remediation="Use --force to replace it (the old one is kept), or another folder.",
                    )
                stack.enter_context(held(data, fcntl.LOCK_EX, "A restore"))
                previous = _previous_name(target)
            fd = stack.enter_context(_resting(file, target))
            new = stack.enter_context(_new_file(target))
            digest = copy_file(fd, new, progress)
            if manifest is not None and manifest["sha256"] != digest:
                raise CorruptionError(
                    f"the backup {file} does not have the checksum that its {MANIFEST_FILE} says.",
                    remediation=f"Use another backup. To try this one all the same, restore the file {file} itself.",
                )
            seen = verified(new, f"the backup {file}", "Use another backup; nothing was changed.", progress)
            form = read_format(new, f"the backup {file}")
            hand_over(target, NEW_FILE)
            swap_database(target, new, keep=previous)
            return RestoreReport(
                path=str(target),
                store_id=str(form.get("id", "")),
                lsn=seen.lsn or 0,
                records=seen.records,
                bytes=data.stat().st_size,
                previous=None if previous is None else str(previous),
            )


def _find_backup(source: Path) -> tuple[Path, dict[str, Any] | None]:
    """The data file of a backup, and its manifest when a folder with one was named."""
    if not source.is_dir():
        if not source.exists():
            raise DatabaseNotFoundError(f"there is no backup {source}.")
        return source, None
    file = source / DATA_FILE
    if not file.exists():
        raise DatabaseNotFoundError(f"there is no backup in {source}: it has no {DATA_FILE}.")
    path = source / MANIFEST_FILE
    if not path.exists():
        return file, None
    with open(path, "rb") as stream:
        raw = stream.read(_MAX_MANIFEST_BYTES)
    try:
        manifest = json.loads(raw)
        known = manifest["format"] == _MANIFEST_FORMAT and isinstance(manifest["sha256"], str)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CorruptionError(
            f"{path} is damaged, or of a newer version.",
            remediation=f"Use another backup. To try this one all the same, restore the file {file} itself.",
        )
    return file, manifest


@contextlib.contextmanager
def _resting(file: Path, target: Path) -> Iterator[int]:
    """Open a file to copy; refuse one that a running owner may be writing to."""
    with contextlib.ExitStack() as stack:
        lock = file.parent / LOCK_FILE
        # An older file in the very folder that is restored is covered by our own lock.
        if lock.exists() and not os.path.samefile(file.parent, target):
            lock_fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, lock_fd)
            try:
                # Not shared: so do several processes that write to it together.
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatabaseLockedError(
                    f"{file} is a database in use, not a backup.",
                    remediation=f"Make a backup of it first: toondb-server backup --db {file.parent} TARGET",
                ) from None
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DatabaseNotFoundError(f"{file} is not a file.")
        yield fd


# Compact


def compact(folder: str | os.PathLike[str], *, progress: Progress | None = None) -> CompactReport:
    """Rewrite a database without its free pages, so that the file shrinks. Nobody may use it meanwhile.

    The new file is made beside the old one, fsynced, checked, and put in its place at once; there must be room
    for both.

    Args:
        folder: The database folder.
        progress: See :data:`Progress`.

    Raises:
        DatabaseLockedError: A daemon or another process uses the folder.
        DatabaseNotFoundError: There is no database.
        CorruptionError: The database is damaged; it was left as it is.
        StorageFullError: There is no room for the new file; the old one was left as it is.
    """
    with file_errors(f"compacting {os.fspath(folder)}"):
        with _owned(folder, "compact", create=False) as path, contextlib.ExitStack() as stack:
            data = path / DATA_FILE
            stack.enter_context(held(data, fcntl.LOCK_EX, "A compaction"))
            new = stack.enter_context(_new_file(path))
            advice = "Restore a backup with toondb-server restore; the database was left as it is."
            before = data.stat().st_size
            old = verified(data, f"the database {path}", advice, progress)
            copy_store(path, new, compact=True, progress=progress)
            seen = verified(new, f"the compacted copy of {path}", "The database was left as it is.", progress)
            if (seen.lsn, seen.records) != (old.lsn, old.records):
                raise CorruptionError(
                    f"the compacted copy of {path} has {seen.records} records of LSN {seen.lsn} instead of "
                    f"{old.records} of LSN {old.lsn}.",
                    remediation="The database was left as it is. Check the memory and the disk of this machine.",
                )
            hand_over(path, NEW_FILE)
            swap_database(path, new)
            return CompactReport(
                path=str(path),
                lsn=seen.lsn or 0,
                records=seen.records,
                bytes_before=before,
                bytes_after=data.stat().st_size,
            )


# Both that replace the file


@contextlib.contextmanager
def _owned(folder: str | os.PathLike[str], role: str, *, create: bool) -> Iterator[Path]:
    """Own a folder meanwhile; one that was made for it is removed again when the block fails."""
    made = create and not os.path.lexists(os.path.expanduser(os.fspath(folder)))
    path = prepare_folder(folder, create=create)
    try:
        lock = OwnerLock(path, role)
    except DatabaseLockedError as error:
        raise DatabaseLockedError(
            error.message,
            remediation=f"Stop that first (a daemon with: toondb-server stop --db {path}), then run {role} again.",
            details=error.details,
        ) from None
    try:
        hand_over(path, LOCK_FILE)
        yield path
        if made:
            fsync_folder(path.parent)
    except BaseException:
        if made:
            # While the lock is still held, so that nobody can have begun to use the folder.
            with contextlib.suppress(OSError):
                os.unlink(path / LOCK_FILE)
                os.rmdir(path)
        raise
    finally:
        lock.release()


@contextlib.contextmanager
def _new_file(folder: Path) -> Iterator[Path]:
    """The path for a replacement: nothing is there now, nothing is left there when the block fails."""
    new = folder / NEW_FILE
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    try:
        yield new
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise


def _previous_name(folder: Path) -> Path:
    stem = f"{DATA_FILE}.before-restore-{_now().strftime('%Y%m%dT%H%M%SZ')}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(folder / name for name in names if not (folder / name).exists())


def _now() -> datetime:
    return datetime.now(UTC)


def _pages(progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress("checking", done, total)
