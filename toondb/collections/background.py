"""What is done beside the operations: indexes are brought up to date, and what was deleted is reclaimed."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from toondb.interrupts import finished
from toondb_protocol.errors import ToonDBError

__all__ = ["Background"]

_PAUSE_SECONDS = 0.05
"""Between two rounds: many small commits are looked at together."""


class Background:
    """A thread that works when it is woken.

    Args:
        work: One round; it is given a function that says whether to stop.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], None]) -> None:
        self._work = work
        # Not events of threading, which are Python code: Ctrl-C in the middle of setting one leaves its lock taken.
        self._woken: SimpleQueue[None] = SimpleQueue()
        self._over: SimpleQueue[None] = SimpleQueue()
        self._stopping = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Ask for a round. Never waits."""
        if self._thread is None:
            finished(self._start)
        if self._woken.empty():
            self._woken.put(None)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping:
                thread = threading.Thread(target=self._run, name="toondb-collections", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter is ending, and starts no more threads
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            self._woken.get()
            if self._stopping:
                return
            try:
                self._work(self._is_stopping)
            except ToonDBError:
                pass  # the store is full, or closing: searches do without it, and a later round tries again
            except Exception:
                # A defect. The thread must live on: what it does is needed.
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            with contextlib.suppress(Empty):
                self._over.get(timeout=_PAUSE_SECONDS)

    def _is_stopping(self) -> bool:
        return self._stopping

    def close(self) -> None:
        """End it, and wait for its end. Idempotent."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        self._woken.put(None)
        self._over.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
