"""Work that Ctrl-C must not leave half done.

Python raises ``KeyboardInterrupt`` in the main thread, between any two steps. An open that is cut in the middle
would leave the folder locked by nobody who could close it, and so would a close.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["finished"]

T = TypeVar("T")


def finished(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Do ``work`` to its end, where Ctrl-C cannot cut it short.

    The caller is interrupted at once all the same; the work then goes on in the background.

    Args:
        work: What to do. The main thread lets another thread do it.
        undo: Called with the result when an interrupted caller can no longer take it.

    Returns:
        What ``work`` returned; what it raised is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    thread = _Work(work, undo)
    try:
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is ending, or there are no more threads to be had.
            return work()
        thread.join()
    except BaseException:
        thread.abandon()
        raise
    return thread.take()


class _Work(threading.Thread, Generic[T]):
    """The work, its outcome, and whether anybody still waits for it."""

    def __init__(self, work: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        # At the end of the process nobody waits for it: what is open then is closed by its owner.
        super().__init__(name="toondb-finish", daemon=True)
        self._work, self._undo = work, undo
        self._lock = threading.Lock()
        self._abandoned = False
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:
            self._error = error
            return
        with self._lock:
            if not self._abandoned:
                self._results.append(result)
                return
        self._drop(result)

    def take(self) -> T:
        """The outcome, once the thread has ended."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # else it would hold itself, through the frames of its traceback
        return self._results.pop()

    def abandon(self) -> None:
        """Nobody takes the outcome any more."""
        with self._lock:
            self._abandoned = True
            results, self._results = self._results, []
        for result in results:
            self._drop(result)

    def _drop(self, result: T) -> None:
        if self._undo is not None:
            self._undo(result)
