"""The pages of the database file, read by hand.

The store is an LMDB 0.9 environment. LMDB trusts its file: a damaged page makes it read outside the map
(SIGSEGV, SIGBUS) or abort the process. A checker that must *describe* damage therefore cannot use LMDB's
cursors; this module parses the same bytes with bounds on every field. It knows the format alone;
``file_check`` knows what a whole file must look like.

Format (LMDB data version 1, 64-bit, little-endian; the structures ``MDB_page``, ``MDB_meta``, ``MDB_db``
and ``MDB_node`` of its ``mdb.c``)::

    page header, 16 bytes   u64 page number, u16 pad (key size of LEAF2 pages), u16 flags,
                            u16 lower, u16 upper   (overflow pages: u32 number of pages instead)
    meta, after a header    u32 magic, u32 version, u64 address, u64 map size, tree free, tree main,
                            u64 last page, u64 transaction;   pages 0 and 1, transaction N in page N % 2
    tree, 48 bytes          u32 pad (page size in the tree "free" of a meta), u16 flags, u16 depth,
                            u64 branch pages, u64 leaf pages, u64 overflow pages, u64 entries, u64 root
    branch and leaf pages   u16 offset of each node between the header and ``lower``; nodes without gaps from
                            ``upper`` to the end of the page, each at an even offset
    leaf node               u32 data size, u16 flags, u16 key size, key, data; data that does not fit a page:
                            u64 first overflow page
    branch node             u48 child page, u16 key size, key; the first key of a page has no meaning

A tree without entries has depth 0 and the root ``NO_PAGE``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct, unpack_from
from typing import Final

__all__ = [
    "DEPTH_MAX",
    "KEY_SIZE_MAX",
    "META_PAGES",
    "META_SIZE",
    "NODE_BIG",
    "NODE_DUPLICATES",
    "NODE_TREE",
    "NO_PAGE",
    "PAGE_BRANCH",
    "PAGE_HEADER_SIZE",
    "PAGE_LEAF",
    "PAGE_LEAF2",
    "PAGE_OVERFLOW",
    "TREE_DUPLICATES",
    "TREE_DUPLICATES_FIXED",
    "TREE_DUPLICATES_INTEGER",
    "TREE_DUPLICATES_REVERSE",
    "TREE_INTEGER_KEY",
    "TREE_REVERSE_KEY",
    "TREE_SIZE",
    "CutOffError",
    "FormatError",
    "Meta",
    "Metas",
    "Node",
    "Tree",
    "check_page_header",
    "overflow_pages",
    "parse_fixed_keys",
    "parse_meta",
    "parse_nodes",
    "parse_overflow_header",
    "parse_subpage",
    "parse_tree",
    "read_at",
    "read_metas",
]

MAGIC: Final = 0xBEEFC0DE
DATA_VERSION: Final = 1
META_PAGES: Final = 2
NO_PAGE: Final = 0xFFFF_FFFF_FFFF_FFFF
KEY_SIZE_MAX: Final = 511
DEPTH_MAX: Final = 32  # LMDB's cursor stack
MAP_SIZE_MAX: Final = 1 << 48  # no 64-bit machine of today gives a process a larger address space
PAGE_SIZES: Final = (4096, 16384, 8192, 32768, 2048, 1024, 512, 256)  # the likely ones first

PAGE_BRANCH: Final = 0x01
PAGE_LEAF: Final = 0x02
PAGE_OVERFLOW: Final = 0x04
PAGE_META: Final = 0x08
PAGE_LEAF2: Final = 0x20
PAGE_SUBPAGE: Final = 0x40

NODE_BIG: Final = 0x01
NODE_TREE: Final = 0x02
NODE_DUPLICATES: Final = 0x04

TREE_REVERSE_KEY: Final = 0x02
TREE_DUPLICATES: Final = 0x04
TREE_INTEGER_KEY: Final = 0x08
TREE_DUPLICATES_FIXED: Final = 0x10
TREE_DUPLICATES_INTEGER: Final = 0x20
TREE_DUPLICATES_REVERSE: Final = 0x40
_TREE_FLAGS: Final = 0x7E
_ENVIRONMENT_FLAGS: Final = 0x4001  # NOSUBDIR, FIXEDMAP: kept in the flags of the tree "free" of a meta
_FIXED_MAP: Final = 0x0001

_PAGE = Struct("<QHHHH")
_OVERFLOW = Struct("<QHHI")
_NODE = Struct("<IHH")
_TREE = Struct("<IHHQQQQQ")
_META_HEAD = Struct("<IIQQ")
_META_TAIL = Struct("<QQ")

PAGE_HEADER_SIZE: Final = _PAGE.size
NODE_HEADER_SIZE: Final = _NODE.size
TREE_SIZE: Final = _TREE.size
META_SIZE: Final = PAGE_HEADER_SIZE + _META_HEAD.size + 2 * TREE_SIZE + _META_TAIL.size
META_SPAN: Final = max(PAGE_SIZES) + META_SIZE  # both metas are in it, whatever the page size is
_READ_ATTEMPTS: Final = 64

Node = tuple[bytes, int, int, int]
"""key, data size (leaf) or child page (branch), node flags (0 in a branch), offset of the data in the page."""


class FormatError(Exception):
    """Bytes that are not what the format allows. Never leaves the engine: it becomes a ``Damage``."""


class CutOffError(FormatError):
    """The file ends before the bytes that were asked for, or the device could not read them."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The root record of one B+ tree (``MDB_db``); the counts are what LMDB believes the tree holds."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int

    def problems(self, last_page: int) -> Iterator[str]:
        """What is impossible in this record, in a file whose last page is ``last_page``."""
        if self.depth > DEPTH_MAX:
            yield f"has depth {self.depth}, more than {DEPTH_MAX}"
        if self.root == NO_PAGE:
            if self.depth or self.entries or self.branch_pages or self.leaf_pages or self.overflow_pages:
                yield "has no root page but is not empty"
        elif not META_PAGES <= self.root <= last_page:
            yield f"has the root page {self.root}, outside of the pages {META_PAGES} to {last_page}"
        elif not self.depth:
            yield f"has the root page {self.root} but depth 0"


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta page: the entrance to the snapshot of one transaction."""

    slot: int
    page_size: int
    address: int
    map_size: int
    environment_flags: int
    free: Tree
    main: Tree
    last_page: int
    txn_id: int

    def problems(self) -> Iterator[str]:
        """What is impossible in this meta page by itself."""
        if self.txn_id and self.txn_id % META_PAGES != self.slot:
            yield f"holds transaction {self.txn_id}, which belongs into meta page {self.txn_id % META_PAGES}"
        if self.last_page < META_PAGES - 1:
            yield f"has the last page {self.last_page}, before the end of the meta pages"
        if (self.last_page + 1) * self.page_size > self.map_size:
            yield f"has the last page {self.last_page}, outside of its map of {self.map_size} bytes"
        if self.map_size > MAP_SIZE_MAX:
            yield f"has a map of {self.map_size} bytes, more than a process can map"
        if self.environment_flags & ~_ENVIRONMENT_FLAGS or not self.free.flags & TREE_INTEGER_KEY:
            yield f"has the unknown flags 0x{self.free.flags:04x}"
        if self.address and not self.environment_flags & _FIXED_MAP:
            yield f"asks for the map address 0x{self.address:x} without the flag for it"
        for name, tree in (("free", self.free), ("main", self.main)):
            for problem in tree.problems(self.last_page):
                yield f"is damaged: the tree {name!r} {problem}"
        yield from (f"is damaged: the tree 'main' {problem}" for problem in tree_flag_problems(self.main))


def tree_flag_problems(tree: Tree) -> Iterator[str]:
    """What is impossible in the flags and the pad of a tree that is not the tree "free" of a meta."""
    dup_only = TREE_DUPLICATES_FIXED | TREE_DUPLICATES_INTEGER | TREE_DUPLICATES_REVERSE
    if tree.flags & ~_TREE_FLAGS or (tree.flags & dup_only and not tree.flags & TREE_DUPLICATES):
        yield f"has the impossible flags 0x{tree.flags:04x}"
    if tree.pad and not tree.flags & TREE_DUPLICATES_FIXED:
        yield f"has the pad {tree.pad}, which must be 0"


@dataclass(slots=True)
class Metas:
    """Both meta pages as far as they could be read.

    Attributes:
        usable: The metas whose fields can be followed, newest first.
        problems: ``(slot, sentence)`` of each damage.
    """

    usable: list[Meta]
    problems: list[tuple[int, str]]


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Exactly ``size`` bytes of the file.

    Positioned reads instead of a map: a file that shrinks under a map kills the process with SIGBUS.

    Raises:
        CutOffError: The file ends before them, or the device failed.
    """
    try:
        data = os.pread(fd, size, offset)
        while 0 < len(data) < size:  # a read may be cut at 2 GiB or by a signal
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except (OSError, OverflowError) as exc:
        raise CutOffError(f"cannot be read: {exc}") from exc
    if len(data) != size:
        raise CutOffError(f"is cut off: the file ends before byte {offset + size}")
    return data


def parse_tree(raw: bytes, offset: int = 0) -> Tree:
    """The tree record at ``offset``; the caller made sure that there are ``TREE_SIZE`` bytes."""
    return Tree(*_TREE.unpack_from(raw, offset))


def parse_meta(raw: bytes, slot: int) -> Meta:
    """The meta page ``slot`` (0 or 1) at the start of ``raw``.

    Raises:
        FormatError: It is no meta page of this format, so nothing in it can be followed.
    """
    if len(raw) < META_SIZE:
        raise FormatError("is cut off")
    page, _, flags, _, _ = _PAGE.unpack_from(raw)
    magic, version, address, map_size = _META_HEAD.unpack_from(raw, PAGE_HEADER_SIZE)
    if magic != MAGIC:
        raise FormatError(f"has the magic number 0x{magic:08x} instead of 0x{MAGIC:08x}")
    if version != DATA_VERSION:
        raise FormatError(f"has format version {version}; this program knows version {DATA_VERSION}")
    if page != slot or flags != PAGE_META:
        raise FormatError(f"has the header of page {page} with flags 0x{flags:04x}")
    offset = PAGE_HEADER_SIZE + _META_HEAD.size
    free, main = parse_tree(raw, offset), parse_tree(raw, offset + TREE_SIZE)
    last_page, txn_id = _META_TAIL.unpack_from(raw, offset + 2 * TREE_SIZE)
    if free.pad not in PAGE_SIZES:
        raise FormatError(f"has the page size {free.pad}")
    own_flags = free.flags & ~TREE_INTEGER_KEY
    return Meta(slot, free.pad, address, map_size, own_flags, free, main, last_page, txn_id)


def read_metas(fd: int) -> Metas:
    """Both meta pages and every damage that shows in them.

    A writer may be replacing one of them while they are read. So they are read until two reads agree, and
    damage is believed only when it is still there in the next pair.

    Raises:
        FormatError: The start of the file cannot be read, it is empty, or no meta page is in it.
    """
    try:
        head = os.pread(fd, META_SIZE, 0)
        if not head:
            raise FormatError("is empty")
        # No more than the two metas when page 0 says where the second is: a caller that has just pinned a
        # snapshot must find it here before the writer has committed twice.
        try:
            span = parse_meta(head, 0).page_size + META_SIZE
        except FormatError:
            span = META_SPAN
        start = _read_twice(fd, span)
        metas = _parse_metas(start)
        for _ in range(_READ_ATTEMPTS):
            if not metas.problems:
                break
            before, start = start, _read_twice(fd, META_SPAN)
            metas = _parse_metas(start)
            if start == before:
                break
    except OSError as exc:
        raise FormatError(f"cannot be read: {exc}") from exc
    return metas


def _read_twice(fd: int, size: int) -> bytes:
    """The start of the file, as two reads in a row saw it (or the last of many that all differ)."""
    before = os.pread(fd, size, 0)
    for _ in range(_READ_ATTEMPTS):
        after = os.pread(fd, size, 0)
        if after == before:
            break
        before = after
    return before


def _parse_metas(start: bytes) -> Metas:
    found: dict[int, Meta] = {}
    result = Metas([], [])
    try:
        found[0] = parse_meta(start, 0)
    except FormatError as exc:
        result.problems.append((0, f"meta page 0 {exc}"))
    # Page 1 says itself where it is: a page size is right when the second meta is found there. So one
    # flipped bit in the page size of meta 0 does not hide a good meta 1.
    sizes = (found[0].page_size, *PAGE_SIZES) if found else PAGE_SIZES
    reason = ""
    for size in sizes:
        try:
            meta = parse_meta(start[size : size + META_SIZE], 1)
            if meta.page_size != size:
                raise FormatError(f"has the page size {meta.page_size} but is at byte {size}")
        except FormatError as exc:
            reason = reason or str(exc)
        else:
            found[1] = meta
            break
    else:
        result.problems.append((1, f"meta page 1 {reason}"))
    if not found:
        raise FormatError("; ".join(text for _, text in result.problems))
    if len(found) == 2 and found[0].page_size != found[1].page_size:
        size = found.pop(0).page_size
        result.problems.append((0, f"meta page 0 has the page size {size}, meta page 1 another one"))
    for slot, meta in found.items():
        result.problems.extend((slot, f"meta page {slot} {problem}") for problem in meta.problems())
    if len(found) == 2:
        # Each commit replaces the older meta, so they are one transaction apart (both 0 in a new file).
        first, second = found[0].txn_id, found[1].txn_id
        if abs(first - second) != 1 and (first or second):
            older = 0 if first < second else 1
            text = f"meta page {older} holds transaction {min(first, second)} beside {max(first, second)}"
            result.problems.append((older, f"{text}; the one before was expected"))
    # A wrong slot shows that the transaction number itself is damaged: it must not win as the newest.
    rank = sorted(found.values(), key=lambda m: (m.txn_id % 2 == m.slot or not m.txn_id, m.txn_id, -m.slot))
    result.usable = rank[::-1]
    return result


def check_page_header(raw: bytes, page: int, flags: int) -> tuple[int, int, int]:
    """Check a branch or leaf page: it must be ``page`` and have exactly ``flags``.

    Returns:
        pad, lower, upper of the header.

    Raises:
        FormatError: It is another page or another kind of page.
    """
    stored, pad, actual, lower, upper = _PAGE.unpack_from(raw)
    if stored != page:
        raise FormatError(f"has the page number {stored} in its header")
    if actual != flags:
        raise FormatError(f"has the flags 0x{actual:04x} where 0x{flags:04x} was expected")
    return pad, lower, upper


def parse_nodes(raw: bytes, lower: int, upper: int, *, branch: bool) -> list[Node]:
    """The nodes of a branch or leaf page, in key order as stored, every one inside the page.

    Raises:
        FormatError: A bound, an offset or a size is impossible, or nodes overlap or leave gaps.
    """
    size = len(raw)
    if not PAGE_HEADER_SIZE < lower <= upper <= size or lower % 2:
        raise FormatError(f"has impossible bounds: lower {lower}, upper {upper}")
    offsets = unpack_from(f"<{(lower - PAGE_HEADER_SIZE) // 2}H", raw, PAGE_HEADER_SIZE)
    unpack_node = _NODE.unpack_from
    nodes: list[Node] = []
    ends: list[int] = []
    last_start = size - NODE_HEADER_SIZE
    for index, offset in enumerate(offsets):
        if offset < upper or offset > last_start or offset & 1:
            raise FormatError(f"has node {index} at the impossible offset {offset}")
        word, flags, key_size = unpack_node(raw, offset)
        data = offset + NODE_HEADER_SIZE + key_size
        if branch:
            word |= flags << 32
            flags = 0
            end = data
        else:
            end = data + (8 if flags & NODE_BIG else word)
        if end > size:
            raise FormatError(f"has node {index} of {end - offset} bytes reaching over the end of the page")
        nodes.append((raw[offset + NODE_HEADER_SIZE : data], word, flags, data))
        ends.append(end + (end & 1))
    # LMDB keeps the nodes of a page packed. Each end meeting the next start proves that none overlap.
    starts = sorted(offsets)
    ends.sort()
    if starts[0] != upper or ends[-1] != size or starts[1:] != ends[:-1]:
        raise FormatError("has nodes that overlap or leave gaps")
    return nodes


def parse_fixed_keys(raw: bytes, key_size: int, lower: int, upper: int) -> list[bytes]:
    """The keys of a LEAF2 page or sub-page: ``key_size`` bytes each, without node headers.

    Raises:
        FormatError: The bounds do not fit each other.
    """
    count = (lower - PAGE_HEADER_SIZE) // 2
    end = PAGE_HEADER_SIZE + count * key_size
    if not key_size or lower <= PAGE_HEADER_SIZE or lower % 2 or lower > upper or end > len(raw):
        raise FormatError(f"has impossible bounds for keys of {key_size} bytes: lower {lower}, upper {upper}")
    return [raw[at : at + key_size] for at in range(PAGE_HEADER_SIZE, end, key_size)]


def parse_subpage(raw: bytes) -> list[bytes]:
    """The duplicates kept inside one leaf node: a small page of its own.

    Raises:
        FormatError: It is not such a page.
    """
    if len(raw) < PAGE_HEADER_SIZE:
        raise FormatError("is shorter than a page header")
    _, pad, flags, lower, upper = _PAGE.unpack_from(raw)
    if not flags & PAGE_LEAF or not flags & PAGE_SUBPAGE:
        raise FormatError(f"has the flags 0x{flags:04x}")
    if flags & PAGE_LEAF2:
        return parse_fixed_keys(raw, pad, lower, upper)
    return [node[0] for node in parse_nodes(raw, lower, upper, branch=False)]


def overflow_pages(size: int, page_size: int) -> int:
    """How many pages a value of ``size`` bytes needs outside of its leaf page."""
    return (PAGE_HEADER_SIZE - 1 + size) // page_size + 1


def parse_overflow_header(raw: bytes, page: int) -> int:
    """The length in pages of the overflow run that starts with ``page``.

    Raises:
        FormatError: It is another page or another kind of page.
    """
    stored, _, flags, count = _OVERFLOW.unpack_from(raw)
    if stored != page:
        raise FormatError(f"has the page number {stored} in its header")
    if flags != PAGE_OVERFLOW:
        raise FormatError(f"has the flags 0x{flags:04x} where 0x{PAGE_OVERFLOW:04x} was expected")
    return int(count)
