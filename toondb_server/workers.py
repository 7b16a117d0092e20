"""Work that must not keep the event loop busy: generators that are stepped on threads.

A :class:`Task` is stepped on a worker thread, one step at a time, and is a job of its session meanwhile. A client that
does not read its replies therefore holds no thread, only what its generator keeps.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from toondb.sql.cancel import Cancel, cancelled_by

from .requests import WAITING, Job

if TYPE_CHECKING:
    from .server import Server
    from .session import Session

__all__ = ["Last", "Steps", "Task", "Workers"]


class Last(bytes):
    """What a generator yields last: the same as yielding it and returning, in one step."""


Steps: TypeAlias = Generator[bytes, None, None]


class Workers:
    """Threads that run what they are given, in order; started when first needed.

    Args:
        count: Threads at the most.
        name: Of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._unfinished = 0
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether something is running, or waits for a thread."""
        return self._unfinished > 0

    def submit(self, run: Callable[[], None]) -> None:
        """Run it on a thread; it must not raise. Dropped when closed."""
        with self._lock:
            if self._closed:
                return
            self._unfinished += 1
            if self._unfinished > len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(run)

    def _work(self) -> None:
        while True:
            run = self._queue.get()
            if run is None:
                return
            try:
                run()
            finally:
                with self._lock:
                    self._unfinished -= 1

    def close(self) -> None:
        """Take no more; the threads end when what was submitted has run."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._queue.put(None)

    def join(self, deadline: float) -> None:
        """Wait for the threads until ``time.monotonic()`` is ``deadline``; what hangs is left behind."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class Task:
    """A generator of replies that is stepped on worker threads, for one request of a session.

    Args:
        session: Whose request it is.
        steps: What is stepped; it is closed on a worker thread, too.
        workers: The threads; None = those for reading.
        abandoned: Called on a worker thread when it was given up.
    """

    def __init__(
        self,
        session: Session,
        steps: Steps,
        workers: Workers | None = None,
        abandoned: Callable[[], None] | None = None,
    ) -> None:
        self._session = session
        self._server: Server = session.server
        self._steps = steps
        self._workers = workers or self._server.workers
        self._abandoned = abandoned
        self._cancel = Cancel()
        self._lock = threading.Lock()
        self._running = False
        self._cancelled = False
        self._ended = False
        self._item: bytes | None = None
        self._error: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether a step is under way."""
        return self._running

    def job(self) -> Job:
        """The replies, for the session."""
        self._server.tasks.add(self)
        try:
            self._start()
            while True:
                while self._running:
                    yield WAITING
                error, self._error = self._error, None
                if error is not None:
                    try:
                        raise error
                    finally:
                        # Its traceback refers to this frame: what was read, perhaps much, would stay in memory.
                        del error
                item = self._item
                self._item = None
                if self._ended:
                    if item is not None:
                        yield item
                    return
                # One step ahead of the client.
                self._start()
                if item is not None:
                    yield item
        finally:
            self._server.tasks.discard(self)
            self.cancel()

    def _start(self) -> None:
        self._running = True
        self._workers.submit(self._step)

    def _step(self) -> None:
        try:
            with cancelled_by(self._cancel):
                item = next(self._steps)
                if type(item) is Last:
                    self._steps.close()
                    self._ended = True
            self._item = item
        except StopIteration:
            self._ended = True
        except BaseException as error:
            self._ended = True
            self._error = error
        with self._lock:
            self._running = False
            cancelled = self._cancelled
        if cancelled:
            self._close()
        else:
            self._server.task_stepped(self._session)

    def cancel(self) -> None:
        """Give it up; on the event loop. Its statement is interrupted; a worker thread closes its generator."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            running = self._running
        self._cancel.cancelled = True
        if not running and not self._ended:
            self._workers.submit(self._close)

    def _close(self) -> None:
        # Nobody is left to be told.
        with contextlib.suppress(Exception):
            self._steps.close()
        if self._abandoned is not None:
            with contextlib.suppress(Exception):
                self._abandoned()
