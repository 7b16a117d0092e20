"""Walk the B+ trees of a snapshot and keep account of its pages.

The part of ``file_check`` that is true for any LMDB file: what a page must be in its place in a tree. What
the entries mean is for the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Any, Final

from toondb.engine import pages
from toondb.engine.pages import CutOffError, FormatError, Node, Tree

__all__ = ["FREED", "UNNAMED", "USED", "Damage", "Ledger", "Role", "TreeWalk", "key_text"]

UNNAMED: Final = 0
USED: Final = 1
FREED: Final = 2  # in the free list
_PROGRESS_EVERY: Final = 1024  # pages
_U64 = Struct("<Q")


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


class Ledger:
    """What was found so far: the state of every page, and the damage.

    Args:
        fd: The file, open for reading.
        limit: The most damages to keep.
        damages: Where they go.
        progress: Called with (pages read, pages in all) now and then.

    Attributes:
        pages: One byte per page: ``UNNAMED``, ``USED`` or ``FREED``.
        damaged: How many damages were found, kept or not.
    """

    def __init__(self, fd: int, limit: int, damages: list[Damage], progress: Callable[[int, int], None] | None) -> None:
        self.fd = fd
        self.pages = bytearray()
        self.page_size = 0
        self.last_page = 0
        self.damaged = 0
        self._limit = limit
        self._damages = damages
        self._progress = progress
        self._reads = 0

    def begin(self, page_size: int, total: int) -> None:
        """Begin the account of ``total`` pages. Raises MemoryError or OverflowError when that is too much."""
        self.page_size, self.last_page = page_size, total - 1
        self.pages = bytearray(max(total, pages.META_PAGES))
        self.pages[: pages.META_PAGES] = bytes([USED]) * pages.META_PAGES

    def damage(
        self,
        kind: str,
        message: str,
        *,
        page: int | None = None,
        database: str | None = None,
        key: bytes | None = None,
    ) -> None:
        """Report one damage; see :class:`Damage`."""
        self.damaged += 1
        if len(self._damages) < self._limit:
            self._damages.append(Damage(kind, message, page, database, key))

    def read_page(self, page: int, size: int = 0) -> bytes:
        """The first ``size`` bytes (default: all) of a page. Raises FormatError."""
        self._reads += 1
        if self._progress is not None and self._reads % _PROGRESS_EVERY == 0:
            total = len(self.pages)
            self._progress(min(self._reads, total), total)
        return pages.read_at(self.fd, page * self.page_size, size or self.page_size)

    def claim(self, page: int, count: int, database: str, source: str) -> bool:
        """Mark ``count`` pages as used; False, with the damage reported, when that cannot be.

        A page in the free list can be claimed: the list is as likely to be wrong as the tree.
        """
        end = page + count
        if page < pages.META_PAGES or count < 1 or end - 1 > self.last_page:
            text = f"{source} points to page {page}" + (f" and the {count - 1} after it" if count > 1 else "")
            self.damage("tree", f"{text}; the file has the pages up to {self.last_page}", database=database)
            return False
        twice = self.pages.find(USED, page, end)
        if twice >= 0:
            text = f"{source} points to page {twice}, which is in use elsewhere"
            self.damage("tree", text, page=twice, database=database)
            return False
        freed = self.pages.find(FREED, page, end)
        if freed >= 0:
            self.damage("freelist", f"page {freed} is in use and in the free list", page=freed, database=database)
        self.pages[page:end] = bytes([USED]) * count
        return True


class Role(Enum):
    """What a tree is for. Its name cannot tell: a sub-database may be called "main" or "free", too."""

    FREE_LIST = "free list"
    DIRECTORY = "tree of sub-databases"
    SUB_DATABASE = "sub-database"
    DUPLICATES = "duplicates of one key"


class TreeWalk:
    """One B+ tree, from its root down, in key order.

    Args:
        ledger: Where pages are claimed and damage is reported.
        database: The name for messages.
        tree: The root record.
        entry: Gets each key and value; in a directory the root record of each sub-database. None: look at
            the structure alone, and read no value that has pages of its own.
        role: What the tree is for.
    """

    def __init__(
        self,
        ledger: Ledger,
        database: str,
        tree: Tree,
        entry: Callable[[bytes, bytes], None] | None,
        *,
        role: Role = Role.SUB_DATABASE,
    ) -> None:
        self._ledger = ledger
        self._database = database
        self._tree = tree
        self._entry = entry
        self._order = _key_order(tree.flags)
        self._role = role
        self._key_min = 1
        self._leaf_flags = pages.PAGE_LEAF
        self.branches = self.leaves = self.overflows = self.entries = 0

    def run(self) -> None:
        tree, ledger = self._tree, self._ledger
        if tree.root == pages.NO_PAGE or tree.depth > pages.DEPTH_MAX:
            return
        before = ledger.damaged
        # (page, its depth, lower bound, upper bound, who points to it); depth-first, left to right. The
        # bounds are ordered keys, None where there is none.
        stack: list[tuple[int, int, Any, Any, str]] = [(tree.root, 1, None, None, "the root")]
        while stack:
            page, depth, low, high, source = stack.pop()
            if not ledger.claim(page, 1, self._database, source):
                continue
            leaf = depth >= tree.depth
            try:
                raw = ledger.read_page(page)
                if leaf:
                    self.leaves += 1
                    self._leaf(page, raw, low, high)
                else:
                    self.branches += 1
                    stack.extend(reversed(self._branch(page, raw, depth + 1, low, high)))
            except FormatError as exc:
                kind = "file" if isinstance(exc, CutOffError) else "page"
                ledger.damage(kind, f"page {page} of {self._database!r} {exc}", page=page, database=self._database)
        if ledger.damaged == before:
            self._compare_counts()

    def _compare_counts(self) -> None:
        tree = self._tree
        counts = [("entries", self.entries, tree.entries)]
        if not tree.flags & pages.TREE_DUPLICATES:
            # LMDB adds the pages of the trees of duplicates here, and forgets some when it drops one.
            counts += [
                ("branch pages", self.branches, tree.branch_pages),
                ("leaf pages", self.leaves, tree.leaf_pages),
                ("overflow pages", self.overflows, tree.overflow_pages),
            ]
        for what, found, stored in counts:
            if found != stored:
                text = f"{self._database!r} has {found} {what}, its root record says {stored}"
                self._ledger.damage("tree", text, database=self._database)

    def _branch(self, page: int, raw: bytes, depth: int, low: Any, high: Any) -> list[tuple[int, int, Any, Any, str]]:
        _, lower, upper = pages.check_page_header(raw, page, pages.PAGE_BRANCH)
        nodes = pages.parse_nodes(raw, lower, upper, branch=True)
        # A branch with one child is left over sometimes while LMDB rebalances the tree of free pages.
        if len(nodes) < 2 and self._role is not Role.FREE_LIST:
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
        entry = None if self._role is Role.DIRECTORY else self._entry
        for node in nodes:
            key, size, flags, offset = node
            if not flags:
                self.entries += 1
                if entry is not None:
                    entry(key, raw[offset : offset + size])
            else:
                self._special(page, raw, node)
        if broken is not None:
            raise broken

    def _special(self, page: int, raw: bytes, node: Node) -> None:
        """An entry with flags: data on overflow pages, a sub-database, or duplicates."""
        key, size, flags, offset = node
        duplicates = bool(self._tree.flags & pages.TREE_DUPLICATES) and self._role is not Role.DUPLICATES
        if flags == pages.NODE_BIG and not duplicates:
            self.entries += 1
            self._overflow(page, key, size, _U64.unpack_from(raw, offset)[0])
        elif flags == pages.NODE_TREE and self._role is Role.DIRECTORY:
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
        for problem in tree.problems(self._ledger.last_page):
            raise FormatError(f"has a tree of duplicates that {problem}")
        inner = TreeWalk(self._ledger, self._database, tree, None, role=Role.DUPLICATES)
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
        self.entries += inner.entries

    def _overflow(self, page: int, key: bytes, size: int, first: int) -> None:
        ledger, name = self._ledger, self._database
        source = f"entry {key_text(key)} of page {page}"
        if not ledger.claim(first, 1, name, source):
            return
        try:
            count = pages.parse_overflow_header(ledger.read_page(first, pages.PAGE_HEADER_SIZE), first)
            # It may be longer than needed: a value that shrank within one transaction keeps its pages.
            needed = pages.overflow_pages(size, ledger.page_size)
            if count < needed:
                raise FormatError(f"starts a run of {count} pages; its value of {size} bytes needs {needed}")
            if count > 1 and not ledger.claim(first + 1, count - 1, name, source):
                return
            self.overflows += count
            if self._entry is None or self._role is Role.DIRECTORY:
                return
            offset = first * ledger.page_size + pages.PAGE_HEADER_SIZE
            value = pages.read_at(ledger.fd, offset, size)
        except FormatError as exc:
            kind = "file" if isinstance(exc, CutOffError) else "page"
            ledger.damage(kind, f"page {first} of {name!r} {exc}", page=first, database=name, key=key)
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


def key_text(key: bytes) -> str:
    """A key in a message: readable, and bounded."""
    shown = key[:64].decode("utf-8", "backslashreplace")
    return f"key {shown!r}" + (f"... ({len(key)} bytes)" if len(key) > 64 else "")
