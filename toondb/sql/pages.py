"""SQLite's pages in the store: a virtual file system of one file whose pages are records.

A page is a record under its number (``u32``, big-endian, the first is 1), see ``PageSpace``. SQLite leaves
the last :data:`RESERVED_BYTES` of every page unused (a feature of its file format), and these are not stored: the
record of a page, with the headers of record and LMDB, then fills exactly two pages of LMDB.

Reads come from the snapshot of a transaction and its write set, writes go into the write set. There is no journal
file and nothing is locked or synced here: SQLite's own journal is in memory and only serves to undo statements;
the commit is the transaction's.

Source: https://www.sqlite.org/vfs.html, https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import apsw

from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb_protocol.record import HEADER_SIZE

from .page_keys import PageSpace, page_lsn, schema_cookie

__all__ = ["PAGE_SIZE", "RESERVED_BYTES", "PageFile", "open_page_file", "vfs_name"]

PAGE_SIZE = 8192
RESERVED_BYTES = 48

_STORED = PAGE_SIZE - RESERVED_BYTES
_PADDING = bytes(RESERVED_BYTES)
_VERSION_AT, _VERSION_SIZE = 24, 16
_PAGES_AT = slice(28, 32)
_STALE = b"\xff" * _VERSION_SIZE
_CHARACTERISTICS = (
    apsw.SQLITE_IOCAP_ATOMIC
    | apsw.SQLITE_IOCAP_SAFE_APPEND
    | apsw.SQLITE_IOCAP_SEQUENTIAL
    | apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
    | apsw.SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN
)


class PageFile:
    """The file that one connection of SQLite has open.

    Args:
        pages: Where its pages are.

    Attributes:
        pages: Where its pages are.
        cached_lsn: The LSN of the first page that the connection's page cache goes with; None = its cache is of no use.
        reads_left: So many pages may be read before a read fails; None = any number.
    """

    def __init__(self, pages: PageSpace) -> None:
        self.pages = pages
        self.reads_left: int | None = None
        self._snapshot: Snapshot | None = None
        self._transaction: Transaction | None = None
        self._stale = True
        self.cached_lsn: int | None = None

    def bind(self, snapshot: Snapshot, transaction: Transaction | None) -> None:
        """Read from a snapshot, and with a transaction write into it and see what it wrote."""
        self._snapshot, self._transaction = snapshot, transaction
        lsn = self.lsn
        # SQLite compares part of the first page to know whether its cache is good. A commit that failed, or was never
        # tried, may have left just the same there, so it is told by the LSN instead.
        self._stale = self.cached_lsn != lsn
        self.cached_lsn = lsn

    def unbind(self) -> None:
        """Let the snapshot go."""
        self._snapshot = self._transaction = None

    @property
    def lsn(self) -> int:
        """The LSN of the last commit that wrote pages, 0 = none, as the snapshot sees it."""
        assert self._snapshot is not None
        return page_lsn(self._snapshot.record(self.pages.space, self.pages.first))

    @property
    def schema_cookie(self) -> bytes:
        """Changes with every change of the schema."""
        return schema_cookie(self._page(1))

    def _stored(self, number: int) -> bytes | memoryview:
        """What is stored of a page, without its reserved bytes; empty when there is no such page."""
        key = self.pages.key(number)
        if self._transaction is not None:
            written = self._transaction.written(key, self.pages.space)
            if isinstance(written, bytes):
                return written
            if written is None:
                return b""
        if self._snapshot is None:
            return b""  # SQLite looks at the first bytes when it opens the file
        raw = self._snapshot.record(self.pages.space, key)
        return b"" if raw is None else memoryview(raw)[HEADER_SIZE:]

    def _page(self, number: int) -> bytes | None:
        return bytes(self._stored(number)) or None

    # The methods of a file, called by SQLite

    def xRead(self, amount: int, offset: int) -> bytes | memoryview:
        if self.reads_left is not None:
            self.reads_left -= 1
            if self.reads_left < 0:
                raise apsw.IOError("more pages than a short read may have")
        number, at = divmod(offset, PAGE_SIZE)
        if amount == PAGE_SIZE:
            # SQLite fills up with zeros what is short, and a view spares a copy, a fourth of what a read costs in all.
            return self._stored(number + 1)
        page = self._page(number + 1)
        if page is None:
            return b""
        if at == _VERSION_AT and amount == _VERSION_SIZE and self._stale:
            self._stale = False
            return _STALE
        return (page + _PADDING)[at : at + amount]

    def xWrite(self, data: bytes, offset: int) -> None:
        number, at = divmod(offset, PAGE_SIZE)
        if self._transaction is None or at or len(data) != PAGE_SIZE:
            raise apsw.IOError("only whole pages are written, and only inside a transaction")
        self._transaction.put(self.pages.key(number + 1), bytes(data[:_STORED]), self.pages.space)

    def xTruncate(self, size: int) -> None:
        assert self._transaction is not None
        pages = self.pages
        scan = self._transaction.scan(pages.key(size // PAGE_SIZE + 1), pages.end, values=False, space=pages.space)
        try:
            while not scan.exhausted:
                for key in scan.batch(1024, 1 << 20)[::2]:
                    self._transaction.put(key, None, pages.space)
        finally:
            scan.close()

    def trim(self) -> None:
        """After a commit of SQLite: drop pages behind the end. They were written early, and then undone by SQLite."""
        transaction, pages = self._transaction, self.pages
        first = None if transaction is None else self._page(1)
        if transaction is None or first is None:
            return
        end = int.from_bytes(first[_PAGES_AT], "big") + 1
        for key, _ in transaction.writes[pages.space].range(pages.key(end), pages.end):
            transaction.put(key, None, pages.space)

    def xFileSize(self) -> int:
        page = self._page(1)
        return 0 if page is None else int.from_bytes(page[_PAGES_AT], "big") * PAGE_SIZE

    def xSync(self, flags: int) -> None:
        pass

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return PAGE_SIZE

    def xDeviceCharacteristics(self) -> int:
        return _CHARACTERISTICS

    def xClose(self) -> None:
        self.unbind()


_lock = threading.Lock()
_numbers = itertools.count(1)
_waiting: dict[str, PageFile] = {}


class _PageVFS(apsw.VFS):
    """Knows the page files that are being opened, and no other file of any kind."""

    def __init__(self) -> None:
        super().__init__(_NAME, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        with _lock:
            file = _waiting.pop(path, None) if path is not None else None
        if file is None:
            raise apsw.CantOpenError("there are no other files")
        flags[1] = flags[0]
        return file

    def xAccess(self, path: str, flags: int) -> bool:
        return False

    def xFullPathname(self, name: str) -> str:
        return name

    def xDelete(self, name: str, sync: bool) -> None:
        raise apsw.IOError("there are no other files")


_NAME = "toondb"
_vfs: _PageVFS | None = None


def vfs_name() -> str:
    """The name of the file system, registered on first use."""
    global _vfs
    with _lock:
        if _vfs is None:
            _vfs = _PageVFS()
    return _NAME


def open_page_file(pages: PageSpace) -> tuple[PageFile, str]:
    """A page file and the name under which SQLite opens it, once."""
    file = PageFile(pages)
    name = f"toondb-{next(_numbers)}"
    with _lock:
        _waiting[name] = file
    return file, name
