"""Where SQLite's pages are in the store, and what the first one says."""

from __future__ import annotations

from typing import NamedTuple

from toondb.engine.environment import Space
from toondb_protocol.keys import prefix_end
from toondb_protocol.record import decode_lsn

__all__ = ["FIRST_PAGE", "USER_PAGES", "PageSpace", "page_lsn", "schema_cookie"]

_COOKIE_AT = slice(40, 44)


class PageSpace(NamedTuple):
    """Where the pages of one database of SQLite are.

    Attributes:
        space: The sub-database.
        prefix: What their keys begin with.
    """

    space: Space
    prefix: bytes = b""

    def key(self, number: int) -> bytes:
        """The key of a page; the first page is 1."""
        return self.prefix + number.to_bytes(4, "big")

    @property
    def first(self) -> bytes:
        """The key of the page that every commit with SQL writes."""
        return self.key(1)

    @property
    def end(self) -> bytes | None:
        """The end of the keys of all pages."""
        return prefix_end(self.prefix) if self.prefix else None


USER_PAGES = PageSpace(Space.SQL)
"""The SQL of users."""

FIRST_PAGE = USER_PAGES.first
"""The key of the page that every commit with SQL of users writes."""


def page_lsn(record: bytes | None) -> int:
    """The LSN of the commit that wrote a page, from its record; 0 = there is no such page."""
    return 0 if record is None else decode_lsn(record)


def schema_cookie(page: bytes | None) -> bytes:
    """A mark in the first page that changes with every change of the schema; empty when there is no page.

    Source: https://www.sqlite.org/fileformat2.html#schema_cookie
    """
    return b"" if page is None else page[_COOKIE_AT]
