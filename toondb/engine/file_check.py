"""Find damage in the database file and say what it is.

``check_file`` walks every page that a snapshot can reach, without LMDB (see ``pages``): both meta pages, the
free list, the tree of sub-databases and each of those, down to the checksum of every record. What it proves
for an undamaged file:

- every page of the file is either used exactly once or in the free list exactly once;
- every page is the page its parent asked for, of the right kind, with sane nodes and its keys in order and
  between the separators of its parents; every leaf is equally deep; all counts are as stored;
- every value in the sub-databases ``kv``, ``catalog``, ``sql``, ``documents``, ``namespace_kv`` and ``text`` is a
  record with a correct checksum and an LSN that is not after the LSN of the store;
- the index ``expiry`` has an entry for each record that expires, and no other;
- every part of the change log has a correct checksum, and is of a commit that the log is said to have;
- every entry of the document log has a correct checksum, and it says how many documents there are;
- the format record can be read, and every sub-database of that format is there.

It costs one read per page, memory of one byte per page plus the largest value, and never more time than a
file of that size can need, whatever is in it: a page is read once.

A page that is neither used nor free is reported ("freelist"): LMDB leaks none in normal operation, so it is
the trace of a lost reference, even if reading never meets it.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from struct import Struct
from sys import byteorder
from typing import Any, Final

import lmdb
import msgpack

from toondb.engine import document_log, pages
from toondb.engine.change_log import is_intact
from toondb.engine.pages import FormatError, Meta, Metas, Tree
from toondb.engine.tree_walk import FREED, UNNAMED, USED, Damage, Ledger, Role, TreeWalk, key_text
from toondb.engine.write_batch import expiry_key
from toondb_protocol.errors import DatabaseError, DatabaseNotFoundError
from toondb_protocol.record import (
    CATALOG_DATABASE,
    CHANGES_DATABASE,
    DOCUMENT_LOG_DATABASE,
    DOCUMENTS_DATABASE,
    EXPIRY_DATABASE,
    KV_DATABASE,
    META_CHANGES_FROM,
    META_DATABASE,
    META_FORMAT,
    META_LSN,
    NAMESPACE_KV_DATABASE,
    SQL_DATABASE,
    TEXT_DATABASE,
    decode_record,
)

__all__ = ["Damage", "FileReport", "SnapshotMovedError", "check_file", "check_live"]

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
_U64 = Struct("<Q")
_OURS_V1: Final = (KV_DATABASE, CATALOG_DATABASE, META_DATABASE)
_OURS_V2: Final = (*_OURS_V1, SQL_DATABASE, EXPIRY_DATABASE, CHANGES_DATABASE)
_OURS: Final = (*_OURS_V2, DOCUMENTS_DATABASE, DOCUMENT_LOG_DATABASE, NAMESPACE_KV_DATABASE, TEXT_DATABASE)
_NEEDED: Final = {1: _OURS_V1, 2: _OURS_V2}
_RECORDS: Final = (
    KV_DATABASE,
    CATALOG_DATABASE,
    SQL_DATABASE,
    DOCUMENTS_DATABASE,
    NAMESPACE_KV_DATABASE,
    TEXT_DATABASE,
)
_EXPIRY_KEY_SIZE: Final = 24
_CHANGE_KEY_SIZE: Final = 12
_PIN_ATTEMPTS: Final = 20_000
# Pages at the end of the file that were allocated and freed in one transaction are never written, so the file
# may end before its last page; more than this many (64 GiB at 4 KiB) is a damaged number, not a free list.
_UNWRITTEN_MAX: Final = 1 << 24


class SnapshotMovedError(DatabaseError):
    """The asked snapshot is in neither meta page: a writer committed twice meanwhile. Pin a new one, retry."""

    default_remediation = "Begin a new read transaction and run the check again."


@dataclass(slots=True)
class FileReport:
    """What a check saw.

    Attributes:
        path: The file.
        page_size: Bytes; 0 when no meta page is readable.
        txn_id: The LMDB transaction whose snapshot was checked.
        lsn: The LSN of the store in that snapshot, ``None`` when it has none.
        pages_total: Pages of the snapshot, the two meta pages included.
        pages_used: Pages that were reached.
        pages_free: Pages in the free list.
        records: Values that were verified, of all sub-databases of records.
        damages: At most ``limit`` of them, in the order of discovery.
        truncated: There were more.
    """

    path: str
    page_size: int = 0
    txn_id: int = 0
    lsn: int | None = None
    pages_total: int = 0
    pages_used: int = 0
    pages_free: int = 0
    records: int = 0
    damages: list[Damage] = field(default_factory=list)
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """True when nothing is damaged."""
        return not self.damages and not self.truncated

    def to_json(self) -> dict[str, Any]:
        """A JSON-able map; keys of entries as readable text (``key``) and exactly (``key_hex``)."""
        names = (
            "path",
            "page_size",
            "txn_id",
            "lsn",
            "pages_total",
            "pages_used",
            "pages_free",
            "records",
            "truncated",
        )
        damages = [
            {
                "kind": damage.kind,
                "message": damage.message,
                "page": damage.page,
                "database": damage.database,
                "key": None if damage.key is None else damage.key.decode("utf-8", "backslashreplace"),
                "key_hex": None if damage.key is None else damage.key.hex(),
            }
            for damage in self.damages
        ]
        return {"ok": self.ok, **{name: getattr(self, name) for name in names}, "damages": damages}


def check_file(
    path: str | os.PathLike[str],
    *,
    txn_id: int | None = None,
    limit: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> FileReport:
    """Check one database file. Nothing is written, no lock is taken.

    Args:
        path: The ``data.mdb`` file.
        txn_id: Check the snapshot of exactly this LMDB transaction. A caller that checks a file in use holds
            an LMDB read transaction during the call and passes its id, so that no writer reuses a page of it.
            Default: the newest snapshot, right for a file that nobody writes to.
        limit: The most damages to report.
        progress: Called with (pages done, pages in all) now and then, and at the end.

    Raises:
        DatabaseNotFoundError: There is no such file.
        DatabaseError: The file may not be opened.
        SnapshotMovedError: ``txn_id`` is not (any more) one of the two snapshots of an undamaged file.
    """
    fd = _open(path)
    try:
        return _check(fd, os.fspath(path), txn_id, limit, progress)
    finally:
        os.close(fd)


def check_live(
    folder: str | os.PathLike[str],
    *,
    limit: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> FileReport:
    """Check the database in ``folder`` while other processes may be writing to it.

    A read transaction pins one snapshot meanwhile; writers are not held up, but cannot reuse pages that they
    free during the check, so the file may grow a little. A folder without a lock file has no writer and is
    left as it is. A file whose meta pages are damaged is never shown to LMDB. Not for a process that has this
    folder open already: there, pass the id of a read transaction of that environment to :func:`check_file`.

    Args:
        folder: The database folder.
        limit: The most damages to report.
        progress: As for :func:`check_file`.

    Raises:
        DatabaseNotFoundError: There is no database in the folder.
        DatabaseError: It may not be opened, or its table of readers cannot be joined.
    """
    path = os.path.join(os.fspath(folder), DATA_FILE)
    fd = _open(path)
    try:
        try:
            metas = pages.read_metas(fd)
        except FormatError:
            return _check(fd, path, None, limit, progress)
        # Without a lock file nobody has the folder open, and LMDB would leave one there that belongs to us.
        if metas.problems or not os.path.exists(os.path.join(os.fspath(folder), LOCK_FILE)):
            return _check(fd, path, None, limit, progress)
        return _check_pinned(fd, path, max(meta.map_size for meta in metas.usable), limit, progress)
    finally:
        os.close(fd)


def _check_pinned(
    fd: int, path: str, map_size: int, limit: int, progress: Callable[[int, int], None] | None
) -> FileReport:
    folder = str(Path(path).parent)
    try:
        # Opening and beginning a read transaction touch the meta pages and the lock file alone.
        with lmdb.open(folder, map_size=map_size, readonly=True, create=False, max_dbs=0) as environment:
            for _ in range(_PIN_ATTEMPTS):
                with environment.begin() as txn:
                    try:
                        return _check(fd, path, int(txn.id()), limit, progress)
                    except SnapshotMovedError:
                        continue
    except lmdb.Error as exc:
        raise DatabaseError(
            f"cannot join the readers of {folder}: {exc}",
            remediation="Run the check as the user that owns the folder, from a process that has not opened it.",
        ) from exc
    raise DatabaseError(
        f"{folder} is written to so fast that no snapshot of it could be pinned.",
        remediation="Run the check again, or take a backup and check that.",
    )


def _open(path: str | os.PathLike[str]) -> int:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise DatabaseNotFoundError(f"There is no database file {os.fspath(path)}.") from exc
    except OSError as exc:
        raise DatabaseError(
            f"cannot open {os.fspath(path)}: {exc.strerror}",
            remediation="Run the check as the user that owns the database folder.",
        ) from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DatabaseNotFoundError(f"{os.fspath(path)} is not a file.")
    return fd


def _check(
    fd: int, path: str, txn_id: int | None, limit: int, progress: Callable[[int, int], None] | None
) -> FileReport:
    report = FileReport(path)
    check = _Check(fd, report, limit, progress)
    try:
        metas = pages.read_metas(fd)
        meta = _choose(metas, txn_id)
    except FormatError as exc:
        check.damage("file", f"{path} {exc}: it is not a database file, or its start is destroyed")
        report.truncated = check.truncated
        return report
    for slot, problem in metas.problems:
        check.damage("meta", problem, page=slot)
    if meta is not None:
        check.run(meta, live=txn_id is not None)
        if txn_id is None:
            check.other_roots([other for other in metas.usable if other is not meta])
    report.truncated = check.truncated
    return report


def _choose(metas: Metas, txn_id: int | None) -> Meta | None:
    if txn_id is None:
        return metas.usable[0]
    for meta in metas.usable:
        if meta.txn_id == txn_id:
            return meta
    if metas.problems:
        return None
    raise SnapshotMovedError(f"The snapshot of transaction {txn_id} is gone from the meta pages.")


class _Check:
    """One run over one snapshot: what each tree of a store must hold."""

    def __init__(self, fd: int, report: FileReport, limit: int, progress: Callable[[int, int], None] | None) -> None:
        self._fd = fd
        self._report = report
        self._progress = progress
        self._ledger = Ledger(fd, limit, report.damages, progress)
        self.damage = self._ledger.damage
        self._trees: list[tuple[bytes, Tree]] = []
        self._expiring = self._indexed = 0
        # Sums of the index keys that should be there, and that are: equal when the two sets are, in any order.
        self._expiring_sum = self._indexed_sum = 0
        self._format: dict[str, Any] | None = None
        self._changes_from = 0
        self._documents = 0

    def run(self, meta: Meta, *, live: bool) -> None:
        report, ledger = self._report, self._ledger
        report.page_size, report.txn_id = meta.page_size, meta.txn_id
        size = os.fstat(self._fd).st_size
        in_file = size // meta.page_size
        total = meta.last_page + 1
        if total - in_file > _UNWRITTEN_MAX:
            self.damage("file", f"the file has {in_file} pages, its meta page speaks of {total}")
            total = in_file
        # Beyond the last page is what a crashed transaction left: harmless. A page in the snapshot that the
        # file holds in part is not, unless it is being written for the first time at this moment.
        cut = size % meta.page_size
        if cut and in_file <= meta.last_page and not (live and os.fstat(self._fd).st_size != size):
            self.damage("file", f"the file ends {cut} bytes into page {in_file}", page=in_file)
        try:
            ledger.begin(meta.page_size, total)
        except (MemoryError, OverflowError):
            self.damage("file", f"{total} pages are more than this machine has the memory to check")
            return
        report.pages_total = len(ledger.pages)

        before = ledger.damaged
        TreeWalk(ledger, "free", meta.free, self._free_entry, role=Role.FREE_LIST).run()
        TreeWalk(ledger, "main", meta.main, self._main_entry, role=Role.DIRECTORY).run()
        self._check_databases()
        report.pages_used = ledger.pages.count(USED)
        report.pages_free = ledger.pages.count(FREED)
        lost = ledger.pages.count(UNNAMED)
        if lost and ledger.damaged == before:
            # After other damage it is only a consequence: what hung below a bad page was not reached.
            first = ledger.pages.index(UNNAMED)
            self.damage("freelist", f"{lost} pages are neither used nor free, the first is {first}", page=first)
        if self._progress is not None:
            self._progress(report.pages_total, report.pages_total)

    @property
    def truncated(self) -> bool:
        return self._ledger.damaged > len(self._report.damages)

    def other_roots(self, metas: Iterable[Meta]) -> None:
        """The older snapshot is what is left when the newer meta is torn: its roots must exist, too."""
        for meta in metas:
            for name, tree in (("free", meta.free), ("main", meta.main)):
                if tree.root == pages.NO_PAGE or not pages.META_PAGES <= tree.root <= meta.last_page:
                    continue  # empty, or reported with the meta page
                try:
                    raw = pages.read_at(self._fd, tree.root * meta.page_size, pages.PAGE_HEADER_SIZE)
                    kind = pages.PAGE_LEAF if tree.depth == 1 else pages.PAGE_BRANCH
                    pages.check_page_header(raw, tree.root, kind)
                except FormatError as exc:
                    text = f"meta page {meta.slot} names page {tree.root} as a root, but that page {exc}"
                    self.damage("meta", text, page=meta.slot, database=name)

    def _free_entry(self, key: bytes, value: bytes) -> None:
        """One record of the free list: the transaction that freed the pages, and their numbers."""
        if len(key) != 8:
            self.damage("freelist", f"a key of {len(key)} bytes in the free list", database="free", key=key)
            return
        txn_id = _U64.unpack(key)[0]
        where = f"the free list of transaction {txn_id}"
        if not 1 <= txn_id <= self._report.txn_id:
            self.damage("freelist", f"{where} is not of the past", database="free", key=key)
        if len(value) < 8 or len(value) % 8:
            self.damage("freelist", f"{where} has {len(value)} bytes", database="free", key=key)
            return
        numbers = array("Q", value)
        if byteorder == "big":
            numbers.byteswap()
        count = numbers[0]
        if count > len(numbers) - 1:
            text = f"{where} says it has {count} pages but has room for {len(numbers) - 1}"
            self.damage("freelist", text, database="free", key=key)
            count = len(numbers) - 1
        freed = numbers[1 : count + 1]
        if any(before <= after for before, after in pairwise(freed)):
            self.damage("freelist", f"{where} is not in descending order", database="free", key=key)
        page_map, last = self._ledger.pages, self._ledger.last_page
        for page in freed:
            if not pages.META_PAGES <= page <= last:
                text = f"{where} names page {page}; the file has the pages up to {last}"
                self.damage("freelist", text, database="free", key=key)
            elif page_map[page]:
                other = "in use" if page_map[page] == USED else "in it already"
                self.damage("freelist", f"{where} names page {page}, which is {other}", page=page, database="free")
            else:
                page_map[page] = FREED

    def _main_entry(self, key: bytes, value: bytes) -> None:
        tree = pages.parse_tree(value)
        name = _database_name(key)
        problems = [*tree.problems(self._ledger.last_page), *pages.tree_flag_problems(tree)]
        if key in _OURS and tree.flags:
            problems.append(f"has the flags 0x{tree.flags:04x}, which must be 0")
        for problem in problems:
            self.damage("tree", f"sub-database {name!r} {problem}", database=name)
        if tree.depth <= pages.DEPTH_MAX:
            self._trees.append((key, tree))

    def _check_databases(self) -> None:
        # "meta" first: it holds the LSN that the records are compared with.
        self._trees.sort(key=lambda item: item[0] != META_DATABASE)
        for key, tree in self._trees:
            name = _database_name(key)
            if key == META_DATABASE:
                TreeWalk(self._ledger, name, tree, self._meta_entry).run()
            elif key in _RECORDS:
                TreeWalk(self._ledger, name, tree, self._record_entry(name)).run()
            elif key == EXPIRY_DATABASE:
                TreeWalk(self._ledger, name, tree, self._expiry_entry).run()
            elif key == CHANGES_DATABASE:
                TreeWalk(self._ledger, name, tree, self._change_entry).run()
            elif key == DOCUMENT_LOG_DATABASE:
                TreeWalk(self._ledger, name, tree, self._document_log_entry).run()
            else:
                TreeWalk(self._ledger, name, tree, None).run()
        report = self._report
        if not report.damages and (self._expiring, self._expiring_sum) != (self._indexed, self._indexed_sum):
            text = f"{self._expiring} records expire, the index of those that do has {self._indexed}"
            if self._expiring == self._indexed:
                text = "the index of the records that expire has other keys or times than the records"
            self.damage("expiry", text, database="expiry")
        stored = sum(tree.entries for key, tree in self._trees if key == DOCUMENTS_DATABASE)
        if not report.damages and stored != self._documents:
            text = f"there are {stored} documents, the document log says {self._documents}"
            self.damage("document_log", text, database="document_log")
        found = {key for key, _ in self._trees}
        if CHANGES_DATABASE in found and self._format is None and not report.damages:
            self.damage("format", "the format record is missing in the sub-database 'meta'", database="meta")
        if self._format is not None:
            needed = _NEEDED.get(self._format.get("version", 0), _OURS)
            for name in sorted(map(_database_name, set(needed) - found)):
                self.damage("tree", f"the sub-database {name!r} is missing", database="main")
        if report.lsn is None and report.records:
            self.damage("lsn", "there are records but no LSN in the sub-database 'meta'", database="meta")
        if self._format is None and report.lsn and KV_DATABASE not in found:
            self.damage("tree", f"the store is at LSN {report.lsn} but has no sub-database 'kv'", database="main")

    def _meta_entry(self, key: bytes, value: bytes) -> None:
        if key == META_FORMAT:
            try:
                form = msgpack.unpackb(value)
            except (ValueError, msgpack.UnpackException):
                form = None
            self._format = form if isinstance(form, dict) else {}
            if not isinstance(self._format.get("version"), int):
                self.damage("format", "the format record cannot be read", database="meta", key=key)
        elif key in (META_LSN, META_CHANGES_FROM):
            what = "LSN of the store" if key == META_LSN else "begin of the change log"
            if len(value) != 8:
                text = f"the {what} has {len(value)} bytes instead of 8"
                self.damage("lsn", text, database="meta", key=key)
            elif key == META_LSN:
                self._report.lsn = _U64.unpack(value)[0]
            else:
                self._changes_from = _U64.unpack(value)[0]

    def _expiry_entry(self, key: bytes, value: bytes) -> None:
        self._indexed += 1
        self._indexed_sum += int.from_bytes(key)
        if len(key) != _EXPIRY_KEY_SIZE or expiry_key(int.from_bytes(key[:8]), value) != key:
            self.damage("expiry", f"{key_text(key)}: it is no entry of this index", database="expiry", key=key)

    def _change_entry(self, key: bytes, value: bytes) -> None:
        if not is_intact(key, value):
            text = f"{key_text(key)}: the checksum of this part of the change log is wrong"
            self.damage("changes", text, database="changes", key=key)
            return
        lsn, newest = int.from_bytes(key[:8]), self._report.lsn
        if len(key) != _CHANGE_KEY_SIZE or lsn <= self._changes_from or (newest is not None and lsn > newest):
            text = f"{key_text(key)}: it is no part of a commit between {self._changes_from} and {newest}"
            self.damage("changes", text, database="changes", key=key)

    def _document_log_entry(self, key: bytes, value: bytes) -> None:
        newest = self._report.lsn
        if not document_log.is_intact(key, value):
            text = f"{key_text(key)}: the checksum of this part of the document log is wrong"
            self.damage("document_log", text, database="document_log", key=key)
        elif newest is not None and document_log.lsn_of(key, value) > newest:
            text = f"{key_text(key)}: it is of a commit after the LSN {newest} of the store"
            self.damage("document_log", text, database="document_log", key=key)
        else:
            self._documents += document_log.documents_of(key, value)

    def _record_entry(self, name: str) -> Callable[[bytes, bytes], None]:
        report, newest = self._report, self._report.lsn

        def check(key: bytes, value: bytes) -> None:
            report.records += 1
            try:
                record = decode_record(key, value)
            except ValueError as exc:
                self.damage("record", f"{key_text(key)}: {exc}", database=name, key=key)
                return
            if record.expires_ms is not None:
                self._expiring += 1
                self._expiring_sum += int.from_bytes(expiry_key(record.expires_ms, key))
            if not record.checksum_ok:
                self.damage("record", f"{key_text(key)}: the checksum is wrong", database=name, key=key)
            elif newest is not None and record.lsn > newest:
                text = f"{key_text(key)}: its LSN {record.lsn} is after the LSN {newest} of the store"
                self.damage("record", text, database=name, key=key)

        return check


def _database_name(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
