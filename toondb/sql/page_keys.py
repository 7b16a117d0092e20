"""Where SQLite's pages are in the store, and what the first one says."""

from __future__ import annotations

from toondb_protocol.record import decode_lsn

__all__ = ["FIRST_PAGE", "page_key", "page_lsn", "schema_cookie"]

_COOKIE_AT = slice(40, 44)


def page_key(number: int) -> bytes:
    """The key of a page in the sub-database ``sql``; the first page is 1."""
    return number.to_bytes(4, "big")


FIRST_PAGE = page_key(1)
"""The key of the page that every commit with SQL writes."""


def page_lsn(record: bytes | None) -> int:
    """The LSN of the commit that wrote a page, from its record; 0 = there is no such page."""
    return 0 if record is None else decode_lsn(record)


def schema_cookie(page: bytes | None) -> bytes:
    """A mark in the first page that changes with every change of the schema; empty when there is no page.

    Source: https://www.sqlite.org/fileformat2.html#schema_cookie
    """
    return b"" if page is None else page[_COOKIE_AT]
