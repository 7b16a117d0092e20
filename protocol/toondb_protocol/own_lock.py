"""A lock that knows whether this thread has it, and that can be tried where Ctrl-C may come.

Ctrl-C cuts the main thread at the end of any call. After ``lock.acquire(blocking=False)`` it comes before anybody knows
that the lock was taken, so that nobody would give it back; ``with`` and a lock of the interpreter are one step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["OwnLock"]


class OwnLock:
    """One thread at a time has it.

    Attributes:
        held: What to enter with ``with``; it waits for its turn. Ask :attr:`mine` before: it may be entered again.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: Any = threading.RLock()

    @property
    def mine(self) -> bool:
        """Whether this thread has it."""
        owned: bool = self.held._is_owned()
        return owned

    def if_free(self, work: Callable[[], object]) -> bool:
        """Do ``work`` and have the lock meanwhile; nothing when anybody has it, this thread included.

        Returns:
            Whether it was done.
        """
        lock = self.held
        if lock._is_owned():
            return False
        try:
            if not lock.acquire(blocking=False):
                return False
            with lock:
                lock.release()  # what was taken above: from here on the end of the block gives it back
                work()
        except BaseException:
            if lock._is_owned():
                lock.release()
            raise
        return True
