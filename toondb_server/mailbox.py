"""What other threads hand to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items from any thread, taken on the event loop: several that come together wake it once.

    Args:
        loop: The event loop.
        begin: Called on it before items are taken.
        take: Called on it with each, in the order of their coming; must not raise.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, begin: Callable[[], object], take: Callable[[T], object]
    ) -> None:
        self._loop = loop
        self._begin = begin
        self._take = take
        self._items: deque[T] = deque()
        self._called = False

    def put(self, item: T) -> None:
        """Hand an item over; from any thread. Dropped when the loop is closed: nobody is left to be told."""
        self._items.append(item)
        # Two that come at once may both call, and one call too many finds nothing to do. To ask for the number of items
        # instead would not do: both may see two, and nobody calls.
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._open)
            except RuntimeError:
                self._called = False
                self._items.clear()

    def _open(self) -> None:
        # First of all: who comes later calls again.
        self._called = False
        self._begin()
        items = self._items
        while items:
            self._take(items.popleft())
