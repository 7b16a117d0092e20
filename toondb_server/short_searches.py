"""Short searches of collections, answered at once on the event loop: a hop to a thread and back costs as much as one.

A search is run here when

* its client sent nothing else with it;
* no thread is busy: one that runs Python code would keep the loop waiting for the interpreter's lock, again and again
  in the middle of a search;
* few were run in this turn of the loop, so that who sends something else waits for no more than those;
* the collections say that it is short and waits for nobody, see ``CollectionsEngine.operate_at_once``;
* those before it were as short as they looked. One that took long (large documents, many recent inserts) is followed
  by a pause of many times its length, so that all of them together take a small share of the loop.

All others go to threads. Several clients, too, are served faster here than by threads, which take turns with that lock
for all but the search in the graph itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgpack

from toondb_protocol.layout import decode_map

if TYPE_CHECKING:
    from .server import Server

__all__ = ["MOST_IN_A_TURN", "ShortSearches"]

MOST_IN_A_TURN = 16
"""Searches of a turn of the loop that are run on it."""

_LONGEST_REQUEST = 64 * 1024
_SECONDS = 0.003
_PAUSES = 50
_BEGINNING = b"\xa2op\xa6search"  # as the clients pack it; a request that begins otherwise goes to a thread
_NO_TRANSACTION = bytes(8)


class ShortSearches:
    """Runs short searches; used on the event loop.

    Args:
        server: The server whose searches they are.

    Attributes:
        answered: Searches that were answered here.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.answered = 0
        self._in_turn = 0
        self._not_before = 0.0

    @staticmethod
    def is_one(payload: bytes) -> bool:
        """Whether an extended QUERY looks like a search outside transactions."""
        return payload.startswith(_BEGINNING, 9) and payload.startswith(_NO_TRANSACTION)

    def result(self, payload: bytes) -> Any:
        """What the search in an extended QUERY finds; None = it has to go to a thread.

        Raises:
            ToonDBError: It fails; as it would on a thread.
        """
        server = self._server
        collections = server.collections.opened
        if collections is None or self._in_turn >= MOST_IN_A_TURN or server.threads_busy:
            return None
        if len(payload) > _LONGEST_REQUEST or (self._not_before and time.monotonic() < self._not_before):
            return None
        body = msgpack.unpackb(payload[8:])
        arguments = body["args"] if len(body) == 2 else None
        if type(arguments) is not bytes:
            return None
        if not self._in_turn:
            server.loop.call_soon(self._turn_over)
        self._in_turn += 1
        # Time on the thread, so that others of a busy machine do not count.
        began = time.thread_time()
        try:
            result = collections.operate_at_once("search", decode_map(arguments))
        finally:
            took = time.thread_time() - began
            self._not_before = 0.0 if took < _SECONDS else time.monotonic() + _PAUSES * took
        self.answered += result is not None
        return result

    def _turn_over(self) -> None:
        self._in_turn = 0
