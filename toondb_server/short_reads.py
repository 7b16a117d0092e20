"""Short reads of SQL outside transactions, answered at once on the event loop.

What such a statement answers depends on the tables alone, see :mod:`toondb.sql.quick`, so replies are kept, as those
to GETs are, until a commit changes a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack

from .operations import short_search
from .short_searches import ShortSearches
from .sql_replies import whole_reply

if TYPE_CHECKING:
    from toondb.sql.quick import QuickReader

    from .session import Session

__all__ = ["LONGEST_KEPT", "LONGEST_REQUEST", "ShortReads", "short_read"]

LONGEST_REQUEST = 4096
LONGEST_KEPT = 4096
_OVERHEAD = 200
_NO_TRANSACTION = bytes(8)


class ShortReads:
    """Answers short reads; used on the event loop.

    Args:
        reader: Runs them.
        max_frame: Cap of a frame's payload in bytes; longer replies are left to others.
        max_bytes: Bytes that kept replies may take in all; 0 keeps none.

    Attributes:
        kept_bytes: What they take now.
    """

    def __init__(self, reader: QuickReader, max_frame: int, max_bytes: int) -> None:
        self._reader = reader
        self._max_frame = max_frame
        self._max_bytes = max_bytes
        self._kept: dict[bytes, bytes] = {}
        self.kept_bytes = 0
        self._as_of: int | None = None

    def reply(self, payload: bytes) -> bytes | None:
        """The whole reply to an extended QUERY; None = it is anything but a short read, or cannot be answered so."""
        kept = self._kept.get(payload)
        if kept is not None:
            if self._reader.newest_lsn() == self._as_of:
                return kept
            self._forget()
        if len(payload) > LONGEST_REQUEST or payload[:8] != _NO_TRANSACTION:
            return None
        try:
            body = msgpack.unpackb(payload[8:], strict_map_key=True)
        except (ValueError, msgpack.UnpackException, RecursionError):
            return None
        if type(body) is not dict or not 1 <= len(body) <= 2:
            return None
        text, params = body.get("sql"), body.get("params")
        if type(text) is not str or (len(body) == 2 and type(params) is not list):
            return None
        # Values that no column holds make it fail, and the error is told by the next to look at it.
        outcome = self._reader.run(text, params)
        if outcome is None:
            return None
        reply = whole_reply(outcome, self._max_frame)
        if len(reply) > self._max_frame:
            return None
        if len(reply) <= LONGEST_KEPT:
            self._keep(payload, reply)
        return reply

    def _keep(self, payload: bytes, reply: bytes) -> None:
        lsn = self._reader.read_lsn
        size = len(payload) + len(reply) + _OVERHEAD
        if lsn != self._as_of or self.kept_bytes + size > self._max_bytes:
            self._forget()
            self._as_of = lsn
        if size <= self._max_bytes:
            self._kept[payload] = reply
            self.kept_bytes += size

    def _forget(self) -> None:
        self._kept.clear()
        self.kept_bytes = 0


def short_read(session: Session, payload: bytes) -> bytes | None:
    """Answer an extended QUERY at once; None = it has to be looked at closely."""
    if ShortSearches.is_one(payload):
        return short_search(session, payload)
    short_reads = session.server.short_reads
    reply = None if short_reads is None else short_reads.reply(payload)
    if reply is not None:
        # As any request does, it ends what was sent in parts.
        session.parts.pop("statement", None)
        session.view = None
    return reply
