"""A lock that many readers share or one writer has alone.

Each reading thread has a lock of its own, and a writer takes them all (a "big-reader lock"). So to read costs one lock
that nobody else wants. These locks are those of the interpreter, written in C: Ctrl-C, which raises between any two
steps of Python code in the main thread, cannot come between taking one and knowing that it must be given back.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toondb_protocol.errors import ForkedProcessError, InternalError

__all__ = ["SharedLock"]

_PATIENCE = 0.005
"""Seconds for which a writer that is through lets readers go before the next writer. They need some microseconds."""


class _Own(threading.local):
    """What the current thread has of a lock."""

    lock: _Registered | None = None


class _Registered:
    """The lock of one reading thread; it goes with the thread."""

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()


class SharedLock:
    """Readers share it, a writer has it alone; either may enter it again inside, a writer also to read.

    Readers and writers take turns, so neither a stream of searches keeps an insert waiting for ever nor a long batch
    of inserts the searches.

    In a child made by ``fork`` it is free, unless another thread of the parent was writing at that moment: then
    what it guards is half changed in the child, and every use raises.
    """

    def __init__(self) -> None:
        self._reset()
        self._torn = False
        _locks.add(self)

    def _reset(self) -> None:
        self._own = _Own()
        self._readers: weakref.WeakSet[_Registered] = weakref.WeakSet()
        self._queue = threading.Lock()  # of writers
        self._gate = threading.Lock()  # held while a writer wants to write or writes
        self._closed = False  # that it is, without a look at it
        self._at_gate: set[int] = set()
        self._writer = 0

    def reading(self) -> Any:
        """A context manager: inside, nothing is changed by others.

        Raises:
            ForkedProcessError: It was being changed when this process was forked.
        """
        registered = self._own.lock
        if registered is None:
            registered = self._register()
        if self._closed and not registered.lock._is_owned():
            self._wait()
        self._check()
        return registered.lock

    def try_reading(self) -> Any | None:
        """For who must not wait: the lock of :meth:`reading`, taken already, to be released; None = a writer is there.

        Raises:
            ForkedProcessError: As :meth:`reading`.
        """
        registered = self._own.lock
        if registered is None:
            if not self._gate.acquire(blocking=False):
                return None
            try:
                registered = self._add_reader()
            finally:
                self._gate.release()
        if self._closed and not registered.lock._is_owned():
            return None
        self._check()
        return registered.lock if registered.lock.acquire(blocking=False) else None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, this thread is alone. Not for the main thread, where Ctrl-C may come: see ``threads.uninterrupted``.

        Raises:
            ForkedProcessError: It was being changed when this process was forked.
        """
        me = threading.get_ident()
        if self._writer == me:
            yield
            return
        # Registered before the gate is closed: inside, this thread may read.
        if (self._own.lock or self._register()).lock._is_owned():
            raise InternalError("a reader cannot become a writer.")
        self._check()
        with self._queue:
            with self._gate:
                self._closed = True
                taken: list[Any] = []
                try:
                    for registered in list(self._readers):
                        registered.lock.acquire()
                        taken.append(registered)
                    self._writer = me
                    yield
                finally:
                    self._writer = 0
                    self._closed = False
                    for registered in taken:
                        registered.lock.release()
            self._let_readers_go()

    def _check(self) -> None:
        if self._torn:
            raise ForkedProcessError(
                "the index was being changed by another thread when this process was forked.",
                remediation="Load it again in this process.",
            )

    def _register(self) -> _Registered:
        with self._gate:  # a writer has the locks of all readers that there were
            return self._add_reader()

    def _add_reader(self) -> _Registered:
        registered = _Registered()
        self._readers.add(registered)
        self._own.lock = registered
        return registered

    def _wait(self) -> None:
        me = threading.get_ident()
        self._at_gate.add(me)
        try:
            with self._gate:
                pass
        finally:
            self._at_gate.discard(me)

    def _let_readers_go(self) -> None:
        if self._at_gate:
            until = time.monotonic() + _PATIENCE
            while self._at_gate and time.monotonic() < until:
                time.sleep(0)

    def after_fork(self) -> None:
        """Make the lock usable in a forked child."""
        self._torn = self._torn or self._writer not in (0, threading.get_ident())
        self._reset()


_locks: weakref.WeakSet[SharedLock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork)
