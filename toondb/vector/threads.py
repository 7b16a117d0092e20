"""Where parallel work on vectors runs: in one thread of each process, with a bounded team of OpenMP threads.

OpenMP keeps a team of threads for every thread that asks for one, so a pool of workers that each search in
parallel would have cores times workers threads. And a team does not survive ``fork``: a child that uses the one of
its parent hangs. So all parallel work is given to one thread, which a child makes anew; what one core can do
runs in the thread of the caller.
"""

from __future__ import annotations

import os
import threading
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .faiss_library import faiss
from .metrics import count

__all__ = ["MAX_THREADS", "cores", "in_parallel", "in_this_thread", "thread_count", "uninterrupted"]

T = TypeVar("T")
MAX_THREADS = 1024


def cores() -> int:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: object) -> int:
    """How many threads to use: ``None`` and 0 mean one for each processor.

    Raises:
        ConfigurationError: It is not an integer from 0 to :data:`MAX_THREADS`.
    """
    return (count("threads", threads, 0, MAX_THREADS) if threads is not None else 0) or cores()


def in_parallel(work: Callable[[], T], threads: int) -> T:
    """Do ``work`` with up to ``threads`` OpenMP threads.

    A caller that is interrupted (Ctrl-C) waits for its end: what the work uses is in use until then.

    Args:
        work: What to do. It must take no locks: others may hold them while they wait for their turn here.
        threads: At the most.
    """
    if threads > 1:
        return _parallel.do(lambda: _bounded(work, threads))
    with in_this_thread():
        return work()


def uninterrupted(work: Callable[[], T]) -> T:
    """Do ``work`` where Ctrl-C cannot cut it: in the main thread that comes between any two steps.

    The main thread lets another thread do it, and is interrupted when that has ended.
    """
    if threading.get_ident() == threading.main_thread().ident:
        return _sheltered.do(work)
    return work()


@contextmanager
def in_this_thread() -> Iterator[None]:
    """Inside, this thread makes no team. The setting of OpenMP is put back: it belongs to the caller."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _bounded(work: Callable[[], T], threads: int) -> T:
    faiss.omp_set_num_threads(threads)
    return work()


class _Job(Generic[T]):
    """Work for another thread, and its outcome.

    Attributes:
        ended: Released when there is an outcome.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._begun = False
        self._done = False
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self.ended = allocate_lock()
        self.ended.acquire()

    def run(self) -> None:
        """Do it, unless that was done already."""
        if self._begun:
            return
        self._begun = True
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._errors.append(error)
        self._done = True
        self.ended.release()

    def finish(self) -> None:
        """Wait for the end, whatever interrupts."""
        while not self._done:
            try:
                if self.ended.acquire():
                    return
            except KeyboardInterrupt:
                continue

    def take(self) -> T:
        """The outcome, once the work has ended."""
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()


class _Worker:
    """A thread that does one job after the other.

    Not an executor of ``concurrent.futures``: to wait for a future is Python code, and Ctrl-C in the middle of it
    leaves its lock taken. Here the steps that matter are single calls of the interpreter's own.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[Any]] | None = None
        self._starting = allocate_lock()

    def do(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the thread, and wait for it."""
        jobs = self._jobs
        if jobs is None:
            with self._starting:
                jobs = self._jobs
                if jobs is None:
                    jobs = SimpleQueue()
                    try:
                        start_new_thread(_work, (jobs,))
                    except RuntimeError:
                        return work()  # the interpreter is ending, or there are no more threads to be had
                    self._jobs = jobs
        job = _Job(work)
        try:
            jobs.put(job)
            job.ended.acquire()
        except BaseException:
            # It may or may not have been put: a second time does no harm.
            jobs.put(job)
            job.finish()
            raise
        return job.take()

    def forget(self) -> None:
        """In a forked child the thread is not there."""
        self._jobs = None
        self._starting = allocate_lock()


def _work(jobs: SimpleQueue[_Job[Any]]) -> None:
    while True:
        jobs.get().run()


_parallel = _Worker()
_sheltered = _Worker()
os.register_at_fork(after_in_child=_parallel.forget)
os.register_at_fork(after_in_child=_sheltered.forget)
