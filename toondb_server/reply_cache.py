"""The reply cache: whole replies to whole GET frames, so that a hot read is one dictionary look-up.

It never answers with anything older than the newest announced commit, nor than what the daemon has answered
before: a reader that sees a commit early replaces the mark, which puts the cache out of use until the commit is
announced. The event loop fills and reads it; the writer (on its own thread or, for a lone client, on the loop)
invalidates it. The order of steps makes that safe without a lock:

* The writer commits, replaces ``environment.mark``, drops the written keys, then sets ``as_of`` to the mark,
  and only then are the writes acknowledged.
* A look-up counts only while ``as_of`` is the mark: between announcement and invalidation there are no hits.
* A fill notes the mark before it reads the store and takes its entry back when the mark is another
  afterwards. A fill that came before the new mark is among what the writer then drops.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from toondb.engine.environment import Environment
from toondb_protocol.frames import HEADER_SIZE
from toondb_protocol.opcodes import EXTENDED, Opcode

__all__ = ["ENTRY_OVERHEAD", "MAX_CACHED_BYTES", "ReplyCache", "is_cacheable"]

MAX_CACHED_BYTES = 2048
"""Longer replies are not kept: copying them costs more than finding them."""

ENTRY_OVERHEAD = 200
"""Bytes that an entry costs beside its frames: two objects and a slot of a dictionary."""

_pack_classic = struct.Struct("<BI").pack
_pack_extended = struct.Struct("<BIQ").pack
_TXN = slice(HEADER_SIZE, HEADER_SIZE + 8)
_NO_TXN = bytes(8)
_GET = int(Opcode.GET)
_GET_EXTENDED = int(Opcode.GET | EXTENDED)


def is_cacheable(opcode: int, frame: bytes) -> bool:
    """Whether a frame asks for the newest value of a key, outside any transaction."""
    return opcode == _GET or (opcode == _GET_EXTENDED and frame[_TXN] == _NO_TXN)


class ReplyCache:
    """Replies by request frame, bounded in bytes.

    Two generations approximate least-recently-used at the cost of one look-up: an entry found in the old
    one moves to the young one, and when the young one is full the old one is dropped.

    Args:
        environment: The open environment; its ``mark`` changes with every commit.
        max_bytes: Bytes that entries may take in all; 0 keeps nothing.

    Attributes:
        hits: Requests that were answered from here.
        misses: Cacheable requests that were answered from the store.
    """

    __slots__ = ("_bytes", "_environment", "_half", "_old", "_young", "as_of", "hits", "misses")

    def __init__(self, environment: Environment, max_bytes: int) -> None:
        self._environment = environment
        self._half = max_bytes // 2
        self._bytes = 0
        self.hits = 0
        self.misses = 0
        self._old: dict[bytes, bytes] = {}
        self._young: dict[bytes, bytes] = {}
        self.as_of: object = environment.mark

    def find(self, frame: bytes) -> bytes | None:
        """The reply to a request frame, or None."""
        mark = self._environment.mark
        if self.as_of is not mark:
            return None
        reply = self._young.get(frame)
        if reply is None:
            reply = self._old.get(frame)
            if reply is None:
                return None
            self.misses -= 1  # to move it is a fill, but no miss
            self.fill(frame, reply, mark)
        self.hits += 1
        return reply

    def fill(self, frame: bytes, reply: bytes, mark: object) -> None:
        """Keep a reply that was read after ``environment.mark`` was ``mark``."""
        self.misses += 1
        size = len(frame) + len(reply)
        if size > MAX_CACHED_BYTES or self._half < size + ENTRY_OVERHEAD:
            return
        if frame not in self._young:
            # What a commit drops stays counted until its generation ends; that only ends it earlier.
            self._bytes += size + ENTRY_OVERHEAD
        if self._bytes > self._half:
            self._old = self._young
            self._young = {}
            self._bytes = size + ENTRY_OVERHEAD
        self._young[frame] = reply
        if self._environment.mark is not mark:
            self._young.pop(frame, None)

    def committed(self, keys: Iterable[bytes]) -> None:
        """Drop what was written; called after the mark changed and before anybody is told of the commit."""
        young, old = self._young, self._old
        if young or old:
            entries = len(young) + len(old)
            for count, key in enumerate(keys):
                if count > entries:
                    # To forget everything is less work. A fill that still holds the old one is lost with it.
                    self._young, self._old = {}, {}
                    break
                for frame in (
                    _pack_extended(_GET_EXTENDED, 8 + len(key), 0) + key,
                    _pack_classic(_GET, len(key)) + key,
                ):
                    young.pop(frame, None)
                    old.pop(frame, None)
            # A generation that the loop begins meanwhile holds nothing older: what fill() puts there was read
            # after the mark changed, or is taken back.
        self.as_of = self._environment.mark

    @property
    def entries(self) -> int:
        """Replies that are kept."""
        return len(self._young) + len(self._old)
