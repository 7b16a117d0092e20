"""Work that Ctrl-C must not leave half done.

Python raises ``KeyboardInterrupt`` in the main thread, between any two steps. An open that is cut in the middle
would leave the folder locked by nobody who could close it, and so would a close.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Event", "finished"]

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
    if threading.get_ident() != threading.main_thread().ident:
        return work()
    job = _Job(work, undo)
    try:
        try:
            # Not a Thread of threading, which is Python code: cut in the middle it may never start, or never end.
            start_new_thread(job.run, ())
        except RuntimeError:
            # The interpreter is ending, or there are no more threads to be had.
            return work()
        job.ended.acquire()
    except BaseException:
        job.abandon()
        raise
    return job.take()


class _Job(Generic[T]):
    """The work, its outcome, and whether anybody still waits for it.

    Attributes:
        ended: Released when there is an outcome.
    """

    def __init__(self, work: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._work, self._undo = work, undo
        self._lock = allocate_lock()
        self.ended = allocate_lock()
        self.ended.acquire()
        self._abandoned = False
        self._results: list[T] = []
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Do the work; the target of a thread."""
        try:
            result = self._work()
            with self._lock:
                lost = self._abandoned
                if not lost:
                    self._results.append(result)
            if lost and self._undo is not None:
                self._undo(result)
        except BaseException as error:
            self._errors.append(error)
        finally:
            self.ended.release()

    def take(self) -> T:
        """The outcome, once the work has ended."""
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()

    def abandon(self) -> None:
        """Nobody takes the outcome any more."""
        with self._lock:
            self._abandoned = True
        # Nothing is put there from now on.
        while self._results:
            result = self._results.pop()
            if self._undo is not None:
                self._undo(result)


class Event:
    """Something that happens once, and that one thread waits for.

    A ``threading.Event`` is Python code around a lock. Ctrl-C in its ``wait`` may leave that lock taken, so that the
    thread that would tell of the event, and all that wait for that one, wait for ever.
    """

    __slots__ = ("_happened", "_lock")

    def __init__(self) -> None:
        self._happened = False
        self._lock = allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """It has happened. Idempotent."""
        self._happened = True
        try:
            self._lock.release()
        except RuntimeError:
            pass  # nobody has waited since the last time

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it happens, or for so long; answers whether it has."""
        if not self._happened:
            self._lock.acquire(timeout=-1 if seconds is None else seconds)
        return self._happened
