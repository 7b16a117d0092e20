"""Find damage in the database file and say what it is.

``check_file`` walks every page that a snapshot can reach, without LMDB (see ``pages``): both meta pages, the
free list, the tree of sub-databases and each of those, down to the checksum of every record. What it proves
for an undamaged file:

- every page of the file is either used exactly once or in the free list exactly once;
- every page is the page its parent asked for, of the right kind, with sane nodes and its keys in order and
  between the separators of its parents; every leaf is equally deep; all counts are as stored;
- every value in the sub-databases ``kv`` and ``catalog`` is a record with a correct checksum and an LSN that
  is not after the LSN of the store.

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
from toondb_protocol.errors import DatabaseError, DatabaseNotFoundError
from toondb_protocol.record import (
    CATALOG_DATABASE,
    KV_DATABASE,
    META_DATABASE,
    META_LSN,
    decode_record,
)

from toondb.engine import pages
from toondb.engine.pages import CutOffError, FormatError, Meta, Metas, Node, Tree

__all__ = ["Damage", "FileReport", "SnapshotMovedError", "check_file", "check_live"]

DATA_FILE: Final = "data.mdb"
_U64 = Struct("<Q")
_FREE, _USED, _FREED = 0, 1, 2  # _FREE: nobody named the page yet; _FREED: it is in the free list
_PROGRESS_EVERY: Final = 1024  # pages
_PIN_ATTEMPTS: Final = 1000
# Pages at the end of the file that were allocated and freed in one transaction are never written, so the file
# may end before its last page; more than this many (64 GiB at 4 KiB) is a damaged number, not a free list.
_UNWRITTEN_MAX: Final = 1 << 24


class SnapshotMovedError(DatabaseError):
    """The asked snapshot is in neither meta page: a writer committed twice meanwhile. Pin a new one, retry."""

    default_remediation = "Begin a new read transaction and run the check again."


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong in the file.

    Attributes:
        kind: A stable word: ``file`` (not a database, cut off), ``meta`` (a meta page), ``page`` (a page by
            itself), ``tree`` (pages that do not fit each other), ``freelist``, ``record`` (a value),
            ``lsn`` (the LSN of the store).
        message: What is wrong, and where.
        page: The page number, when it is about one page.
        database: ``kv``, ``catalog``, ``meta``, the name of another sub-database, ``main`` (the tree of
            sub-databases) or ``free`` (the tree of free pages).
        key: The key, when it is about one entry.
    """

    kind: str
    message: str
    page: int | None = None
    database: str | None = None
    key: bytes | None = None


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
        records: Values of ``kv`` and ``catalog`` that were verified.
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
    free during the check, so the file may grow a little. A file whose meta pages are damaged is never shown
    to LMDB. Not for a process that has this folder open already: there, pass the id of a read transaction of
    that environment to :func:`check_file`.

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
        if metas.problems:
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
        meta = _choose(fd, metas, txn_id)
    except FormatError as exc:
        check.damage("file", f"{path} {exc}: it is not a database file, or its start is destroyed")
        return report
    for slot, problem in metas.problems:
        check.damage("meta", problem, page=slot)
    if meta is not None:
        check.run(meta, live=txn_id is not None)
        if txn_id is None:
            check.other_roots([other for other in metas.usable if other is not meta])
    return report


def _choose(fd: int, metas: Metas, txn_id: int | None) -> Meta | None:
    if txn_id is None:
        return metas.usable[0]
    for meta in metas.usable:
        if meta.txn_id == txn_id:
            # The writer may have been replacing it: the same bytes twice are no mixture of two commits.
            again = pages.read_metas(fd)
            if again.raw.get(meta.slot) == metas.raw[meta.slot]:
                return meta
    if metas.problems:
        return None
    raise SnapshotMovedError(f"The snapshot of transaction {txn_id} is gone from the meta pages.")


class _Check:
    """One run over one snapshot."""

    def __init__(
        self, fd: int, report: FileReport, limit: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self.fd = fd
        self._report = report
        self._limit = limit
        self._progress = progress
        self.page_size = 0
        self.last_page = 0
        self._map = bytearray()  # what each page is: _FREE, _USED or _FREED
        self._reads = 0
        self.damaged = 0
        self._trees: list[tuple[bytes, Tree]] = []

    def damage(
        self,
        kind: str,
        message: str,
        *,
        page: int | None = None,
        database: str | None = None,
        key: bytes | None = None,
    ) -> None:
        self.damaged += 1
        if len(self._report.damages) < self._limit:
            self._report.damages.append(Damage(kind, message, page, database, key))
        else:
            self._report.truncated = True

    def run(self, meta: Meta, *, live: bool) -> None:
        report = self._report
        report.page_size, report.txn_id = meta.page_size, meta.txn_id
        self.page_size, self.last_page = meta.page_size, meta.last_page
        size = os.fstat(self.fd).st_size
        in_file = size // meta.page_size
        total = meta.last_page + 1
        if total - in_file > _UNWRITTEN_MAX:
            self.damage("file", f"the file has {in_file} pages, its meta page speaks of {total}")
            total = in_file
            self.last_page = total - 1
        # Beyond the last page is what a crashed transaction left: harmless. A page in the snapshot that the
        # file holds in part is not, unless it is being written for the first time at this moment.
        cut = size % meta.page_size
        if cut and in_file <= meta.last_page and not (live and os.fstat(self.fd).st_size != size):
            self.damage("file", f"the file ends {cut} bytes into page {in_file}", page=in_file)
        self._map = bytearray(max(total, pages.META_PAGES))
        self._map[: pages.META_PAGES] = bytes([_USED]) * pages.META_PAGES
        report.pages_total = len(self._map)

        before = self.damaged
        _Walk(self, "free", meta.free, self._free_entry).run()
        _Walk(self, "main", meta.main, self._main_entry).run()
        self._check_databases()
        report.pages_used = self._map.count(_USED)
        report.pages_free = self._map.count(_FREED)
        lost = self._map.count(_FREE)
        if lost and self.damaged == before:
            # After other damage it is only a consequence: what hung below a bad page was not reached.
            first = self._map.index(_FREE)
            self.damage("freelist", f"{lost} pages are neither used nor free, the first is {first}", page=first)
        if self._progress is not None:
            self._progress(report.pages_total, report.pages_total)

    def other_roots(self, metas: Iterable[Meta]) -> None:
        """The older snapshot is what is left when the newer meta is torn: its roots must exist, too."""
        for meta in metas:
            for name, tree in (("free", meta.free), ("main", meta.main)):
                if tree.root == pages.NO_PAGE or not pages.META_PAGES <= tree.root <= meta.last_page:
                    continue  # empty, or reported with the meta page
                try:
                    raw = pages.read_at(self.fd, tree.root * self.page_size, pages.PAGE_HEADER_SIZE)
                    kind = pages.PAGE_LEAF if tree.depth == 1 else pages.PAGE_BRANCH
                    pages.check_page_header(raw, tree.root, kind)
                except FormatError as exc:
                    text = f"meta page {meta.slot} names page {tree.root} as a root, but that page {exc}"
                    self.damage("meta", text, page=meta.slot, database=name)

    def read_page(self, page: int, size: int = 0) -> bytes:
        """The first ``size`` bytes (default: all) of a page. Raises FormatError."""
        self._reads += 1
        if self._progress is not None and self._reads % _PROGRESS_EVERY == 0:
            done = min(self._reads, self._report.pages_total)
            self._progress(done, self._report.pages_total)
        return pages.read_at(self.fd, page * self.page_size, size or self.page_size)

    def claim(self, page: int, count: int, database: str, source: str) -> bool:
        """Mark ``count`` pages as used; False, with the damage reported, when that cannot be."""
        end = page + count
        if page < pages.META_PAGES or count < 1 or end - 1 > self.last_page:
            text = f"{source} points to page {page}" + (f" and the {count - 1} after it" if count > 1 else "")
            self.damage("tree", f"{text}; the file has the pages up to {self.last_page}", database=database)
            return False
        twice = self._map.find(_USED, page, end)
        if twice >= 0:
            self.damage(
                "tree",
                f"{source} points to page {twice}, which is in use elsewhere",
                page=twice,
                database=database,
            )
            return False
        freed = self._map.find(_FREED, page, end)
        if freed >= 0:
            self.damage(
                "freelist", f"page {freed} is in use and in the free list", page=freed, database=database
            )
        self._map[page:end] = bytes([_USED]) * count
        return True

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
        page_map, last = self._map, self.last_page
        for page in freed:
            if not pages.META_PAGES <= page <= last:
                text = f"{where} names page {page}; the file has the pages up to {last}"
                self.damage("freelist", text, database="free", key=key)
            elif page_map[page]:
                other = "in use" if page_map[page] == _USED else "in it already"
                self.damage("freelist", f"{where} names page {page}, which is {other}", page=page, database="free")
            else:
                page_map[page] = _FREED

    def _main_entry(self, key: bytes, value: bytes) -> None:
        tree = pages.parse_tree(value)
        name = _database_name(key)
        problems = [*tree.problems(self.last_page), *pages.tree_flag_problems(tree)]
        if key in (KV_DATABASE, CATALOG_DATABASE, META_DATABASE) and tree.flags:
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
                _Walk(self, name, tree, self._meta_entry).run()
            elif key in (KV_DATABASE, CATALOG_DATABASE):
                _Walk(self, name, tree, self._record_entry(name)).run()
            else:
                _Walk(self, name, tree, None).run()
        report = self._report
        if report.lsn is None and report.records:
            self.damage("lsn", "there are records but no LSN in the sub-database 'meta'", database="meta")
        if report.lsn and all(key != KV_DATABASE for key, _ in self._trees):
            self.damage("tree", f"the store is at LSN {report.lsn} but has no sub-database 'kv'", database="main")

    def _meta_entry(self, key: bytes, value: bytes) -> None:
        if key != META_LSN:
            return
        if len(value) != 8:
            self.damage(
                "lsn", f"the LSN of the store has {len(value)} bytes instead of 8", database="meta", key=key
            )
        else:
            self._report.lsn = _U64.unpack(value)[0]

    def _record_entry(self, name: str) -> Callable[[bytes, bytes], None]:
        report, newest = self._report, self._report.lsn

        def check(key: bytes, value: bytes) -> None:
            report.records += 1
            try:
                lsn, _, checksum_ok = decode_record(key, value)
            except ValueError as exc:
                self.damage("record", f"{_key_text(key)}: {exc}", database=name, key=key)
                return
            if not checksum_ok:
                self.damage("record", f"{_key_text(key)}: the checksum is wrong", database=name, key=key)
            elif newest is not None and lsn > newest:
                text = f"{_key_text(key)}: its LSN {lsn} is after the LSN {newest} of the store"
                self.damage("record", text, database=name, key=key)

        return check


class _Walk:
    """One B+ tree, from its root down, in key order."""

    def __init__(
        self, check: _Check, database: str, tree: Tree, entry: Callable[[bytes, bytes], None] | None
    ) -> None:
        self._check = check
        self._database = database
        self._tree = tree
        self._entry = entry
        self._order = _key_order(tree.flags)
        self._key_min = 1
        self._leaf_flags = pages.PAGE_LEAF
        self._inner = False  # the tree of the duplicates of one key
        self.branches = self.leaves = self.overflows = self.entries = 0

    def run(self) -> None:
        tree, check = self._tree, self._check
        if tree.root == pages.NO_PAGE or tree.depth > pages.DEPTH_MAX:
            return
        before = check.damaged
        # (page, its depth, lower bound, upper bound, who points to it); depth-first, left to right. The
        # bounds are ordered keys, None where there is none.
        stack: list[tuple[int, int, Any, Any, str]] = [(tree.root, 1, None, None, "the root")]
        while stack:
            page, depth, low, high, source = stack.pop()
            if not check.claim(page, 1, self._database, source):
                continue
            leaf = depth >= tree.depth
            try:
                raw = check.read_page(page)
                if leaf:
                    self.leaves += 1
                    self._leaf(page, raw, low, high)
                else:
                    self.branches += 1
                    stack.extend(reversed(self._branch(page, raw, depth + 1, low, high)))
            except FormatError as exc:
                kind = "file" if isinstance(exc, CutOffError) else "page"
                check.damage(
                    kind, f"page {page} of {self._database!r} {exc}", page=page, database=self._database
                )
        if check.damaged == before:
            self._compare_counts()

    def _compare_counts(self) -> None:
        tree = self._tree
        for what, found, stored in (
            ("branch pages", self.branches, tree.branch_pages),
            ("leaf pages", self.leaves, tree.leaf_pages),
            ("overflow pages", self.overflows, tree.overflow_pages),
            ("entries", self.entries, tree.entries),
        ):
            if found != stored:
                text = f"{self._database!r} has {found} {what}, its root record says {stored}"
                self._check.damage("tree", text, database=self._database)

    def _branch(
        self, page: int, raw: bytes, depth: int, low: Any, high: Any
    ) -> list[tuple[int, int, Any, Any, str]]:
        _, lower, upper = pages.check_page_header(raw, page, pages.PAGE_BRANCH)
        nodes = pages.parse_nodes(raw, lower, upper, branch=True)
        # A branch with one child is left over sometimes while LMDB rebalances the tree of free pages.
        if len(nodes) < 2 and self._database != "free":
            raise FormatError("is a branch page with one child")
        if len(nodes[0][0]) > pages.KEY_SIZE_MAX:
            raise FormatError(f"has a key of {len(nodes[0][0])} bytes")
        bounds = [low, *self._ordered(nodes[1:], low, high), high]
        source = f"page {page}"
        return [(node[1], depth, bounds[i], bounds[i + 1], source) for i, node in enumerate(nodes)]

    def _ordered(self, nodes: list[Node], low: Any, high: Any, *, leaf: bool = False) -> list[Any]:
        """The keys in comparable form; FormatError unless they ascend between the bounds."""
        order = self._order
        keys: list[Any] = [node[0] for node in nodes]
        sizes = list(map(len, keys))
        if sizes and not (self._key_min <= min(sizes) and max(sizes) <= pages.KEY_SIZE_MAX):
            wrong = next(s for s in sizes if not self._key_min <= s <= pages.KEY_SIZE_MAX)
            raise FormatError(f"has a key of {wrong} bytes")
        if order is not None:
            keys = list(map(order, keys))
        for index in range(1, len(keys)):
            if keys[index - 1] >= keys[index]:
                raise FormatError(f"has its keys {index - 1} and {index} out of order")
        if keys and low is not None and (keys[0] < low or (not leaf and keys[0] == low)):
            raise FormatError("has a key that is before the range its parent gives it")
        if keys and high is not None and keys[-1] >= high:
            raise FormatError("has a key that is after the range its parent gives it")
        return keys

    def _leaf(self, page: int, raw: bytes, low: Any, high: Any) -> None:
        pad, lower, upper = pages.check_page_header(raw, page, self._leaf_flags)
        if self._leaf_flags & pages.PAGE_LEAF2:
            if pad != self._tree.pad:
                raise FormatError(f"has keys of {pad} bytes where {self._tree.pad} were expected")
            fixed = pages.parse_fixed_keys(raw, pad, lower, upper)
            self._ordered([(key, 0, 0, 0) for key in fixed], low, high, leaf=True)
            self.entries += len(fixed)
            return
        nodes = pages.parse_nodes(raw, lower, upper, branch=False)
        broken: FormatError | None = None
        try:
            self._ordered(nodes, low, high, leaf=True)
        except FormatError as exc:
            broken = exc  # the entries are still whole: look at them, too
        entry = self._entry
        for node in nodes:
            key, size, flags, offset = node
            if not flags:
                self.entries += 1
                if entry is not None and self._database != "main":
                    entry(key, raw[offset : offset + size])
            else:
                self._special(page, raw, node)
        if broken is not None:
            raise broken

    def _special(self, page: int, raw: bytes, node: Node) -> None:
        """An entry with flags: data on overflow pages, a sub-database, or duplicates."""
        key, size, flags, offset = node
        duplicates = bool(self._tree.flags & pages.TREE_DUPLICATES) and not self._inner
        if flags == pages.NODE_BIG and not duplicates:
            self.entries += 1
            self._overflow(page, key, size, _U64.unpack_from(raw, offset)[0])
        elif flags == pages.NODE_TREE and self._database == "main" and not self._inner:
            self.entries += 1
            if size != pages.TREE_SIZE:
                raise FormatError(f"has a sub-database entry of {size} bytes")
            if self._entry is not None:
                self._entry(key, raw[offset : offset + size])
        elif flags == pages.NODE_DUPLICATES and duplicates:
            values = pages.parse_subpage(raw[offset : offset + size])
            self.entries += len(values)
        elif flags == pages.NODE_DUPLICATES | pages.NODE_TREE and duplicates:
            if size != pages.TREE_SIZE:
                raise FormatError(f"has a tree of duplicates of {size} bytes")
            self._duplicates(page, pages.parse_tree(raw, offset))
        else:
            raise FormatError(f"has an entry with the impossible flags 0x{flags:04x}")

    def _duplicates(self, page: int, tree: Tree) -> None:
        """The tree that holds the many duplicates of one key (LMDB's DUPSORT, not used by ToonDB itself)."""
        for problem in tree.problems(self._check.last_page):
            raise FormatError(f"has a tree of duplicates that {problem}")
        inner = _Walk(self._check, self._database, tree, None)
        inner._inner = True
        inner._key_min = 0
        outer = self._tree.flags
        inner._order = None
        if outer & pages.TREE_DUPLICATES_INTEGER:
            inner._order = _integer_order
        elif outer & pages.TREE_DUPLICATES_REVERSE:
            inner._order = _reverse_order
        if outer & pages.TREE_DUPLICATES_FIXED:
            inner._leaf_flags = pages.PAGE_LEAF | pages.PAGE_LEAF2
        inner.run()
        self.entries += inner.entries  # LMDB counts duplicates in the outer tree, their pages in the inner one

    def _overflow(self, page: int, key: bytes, size: int, first: int) -> None:
        check, name = self._check, self._database
        source = f"entry {_key_text(key)} of page {page}"
        if not check.claim(first, 1, name, source):
            return
        try:
            count = pages.parse_overflow_header(check.read_page(first, pages.PAGE_HEADER_SIZE), first)
            # It may be longer than needed: a value that shrank within one transaction keeps its pages.
            needed = pages.overflow_pages(size, check.page_size)
            if count < needed:
                raise FormatError(f"starts a run of {count} pages; its value of {size} bytes needs {needed}")
            if count > 1 and not check.claim(first + 1, count - 1, name, source):
                return
            self.overflows += count
            if self._entry is None or name == "main":
                return
            offset = first * check.page_size + pages.PAGE_HEADER_SIZE
            value = pages.read_at(check.fd, offset, size)
        except FormatError as exc:
            kind = "file" if isinstance(exc, CutOffError) else "page"
            check.damage(kind, f"page {first} of {name!r} {exc}", page=first, database=name, key=key)
            return
        self._entry(key, value)


def _reverse_order(key: bytes) -> bytes:
    return key[::-1]


def _integer_order(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _key_order(flags: int) -> Callable[[bytes], Any] | None:
    """How the keys of a tree become comparable; None: as they are (LMDB's default order is that of bytes)."""
    if flags & pages.TREE_INTEGER_KEY:
        return _integer_order
    if flags & pages.TREE_REVERSE_KEY:
        return _reverse_order
    return None


def _database_name(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _key_text(key: bytes) -> str:
    shown = key[:64].decode("utf-8", "backslashreplace")
    return f"key {shown!r}" + (f"... ({len(key)} bytes)" if len(key) > 64 else "")
