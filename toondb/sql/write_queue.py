"""Writes of SQL and of collections, of many threads: they take turns, and those that wait share one commit.

Whoever comes first leads: it runs all that wait, in the order of their coming, and answers them. One that comes
meanwhile waits for the next turn. So a commit costs many writers what it costs one, as with keys.

Ctrl-C may meet the main thread anywhere. It must neither end a turn of several writers in the middle, after which
nobody could tell whether what the others wrote is committed, nor take the lead away with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from toondb.interrupts import Event, finished
from toondb_protocol.errors import LockTimeoutError, SqlError

__all__ = ["Patron", "Write", "WriteQueue"]

_PATIENCE = 0.25
"""Of the time of the last turn, the next one waits for so much at the most."""

A = TypeVar("A")
R = TypeVar("R")


class Patron(Protocol[A, R]):
    """Who submits a write and does not wait for it."""

    def run_elsewhere(self, turns: Callable[[], None]) -> None:
        """Run turns on a thread that may be kept for long."""

    def answered(self, write: Write[A, R]) -> None:
        """Take a write that has its result or error. Called by any thread; must not raise."""


class Write(Generic[A, R]):
    """One write that waits.

    Attributes:
        action: What to do.
        result: What it gave, once it was done.
        error: What it raised instead.
    """

    __slots__ = ("action", "done", "error", "leads", "patron", "result", "turn_of", "woken")

    def __init__(self, action: A, patron: Patron[A, R] | None = None) -> None:
        self.action = action
        # Who submitted it and has no thread that waits for it.
        self.patron = patron
        self.result: R | None = None
        self.error: BaseException | None = None
        self.done = self.leads = False
        # The thread that runs the turn that this one leads; 0 = none does yet.
        self.turn_of = 0
        self.woken = Event()


class WriteQueue(Generic[A, R]):
    """Gathers writes into turns.

    Args:
        run: Runs the writes of a turn and notes the result or error of each; what it raises is for the first of them
            that has neither, and the others have another turn.
        wait_seconds: A thread waits for its write for so long at the most.
    """

    def __init__(self, run: Callable[[list[Write[A, R]]], None], wait_seconds: float) -> None:
        self._run = run
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._waiting: list[Write[A, R]] = []
        self._led = False
        self._leader = 0
        self._turn: list[Write[A, R]] = []
        # When the last turn ended that was run for who has no thread, for how long the next one waits for others, and
        # for how many.
        self._ended = self._patience = 0.0
        self._expected = 0
        self._gathered = threading.Event()

    def submit(self, action: A) -> R:
        """Have it done, by this thread or by another; answers its result.

        Raises:
            LockTimeoutError: Others were writing for too long.
            SqlError: This thread is in the middle of a write.
        """
        if self._leader == threading.get_ident():
            raise SqlError(
                "a statement that writes cannot be run inside another one.",
                remediation="In a plugin, change the row that it is given, or write keys.",
            )
        write: Write[A, R] = Write(action)
        try:
            with self._lock:
                self._waiting.append(write)
                if not self._led:
                    self._led = write.leads = True
            if not write.leads:
                self._wait(write)
            if write.leads:
                self._lead(write)
        except BaseException:
            if write.turn_of in (0, threading.get_ident()):
                self._go_on(self._hand_over(write))
            raise
        if write.error is not None:
            raise write.error
        return write.result  # type: ignore[return-value]

    def submit_later(self, action: A, patron: Patron[A, R]) -> Write[A, R]:
        """Have it done by another thread, and wait for nothing: for an event loop.

        Those who submit so have no thread each that must be woken; one thread runs turn after turn for them.

        Args:
            action: What to do.
            patron: Has the thread, and is told of the end; not when the write was withdrawn.
        """
        write: Write[A, R] = Write(action, patron)
        with self._lock:
            self._waiting.append(write)
            if not self._led:
                self._led = write.leads = True
            elif len(self._waiting) == self._expected:
                self._gathered.set()
        if write.leads:
            self._go_on(write)
        return write

    def withdraw(self, write: Write[A, R]) -> None:
        """Forget a write of :meth:`submit_later` whose turn has not begun. One that leads has its turn all the same."""
        with self._lock:
            if write in self._waiting and not write.leads:
                self._waiting.remove(write)

    def _go_on(self, following: Write[A, R] | None) -> None:
        """Let turns be run for one that leads and has no thread."""
        if following is not None and following.patron is not None:
            following.patron.run_elsewhere(lambda: self._lead_for(following))

    def _lead_for(self, write: Write[A, R] | None) -> None:
        """Run turns for those who have no thread, until one who has leads, or nobody waits."""
        while write is not None:
            self._gather()
            began = time.monotonic()
            write = self._run_turn(write)
            self._ended = time.monotonic()
            self._patience = _PATIENCE * (self._ended - began)

    def _gather(self) -> None:
        """Wait a little for those who were answered a moment ago, and may have the next write ready.

        Otherwise the first of them has a turn alone while the others gather for the next one, and writers fall into
        groups that take turns: as many turns for half of the writes each.
        """
        with self._lock:
            left = self._ended + self._patience - time.monotonic()
            if left <= 0 or len(self._waiting) >= self._expected:
                return
            self._gathered.clear()
        self._gathered.wait(left)

    def _wait(self, write: Write[A, R]) -> None:
        try:
            if write.woken.wait(self._wait_seconds):
                return
        except BaseException:
            with self._lock:
                if write in self._waiting and not write.leads:
                    self._waiting.remove(write)
                    raise
            # It is under way, and others may depend on this thread.
            write.woken.wait()
            if write.leads:
                self._lead(write)
            raise
        with self._lock:
            late = write in self._waiting and not write.leads
            if late:
                self._waiting.remove(write)
        if late:
            raise LockTimeoutError(
                f"other writes of SQL and collections took more than {self._wait_seconds:g} s.",
                remediation="Write less at a time, or try again.",
            )
        write.woken.wait()

    def _lead(self, own: Write[A, R]) -> None:
        """Run all that wait, and let the next one lead."""
        if len(self._waiting) == 1:
            self._go_on(self._run_turn(own))
        else:
            finished(lambda: self._go_on(self._run_turn(own)))

    def _run_turn(self, own: Write[A, R]) -> Write[A, R] | None:
        """Run a turn; answers who leads the next one and needs a thread for it."""
        with self._lock:
            if not own.leads:
                return None  # it was interrupted before this began
            own.turn_of = threading.get_ident()
            if own.turn_of == threading.main_thread().ident:
                # What has come this moment is for the next turn: Ctrl-C must meet nobody else's.
                turn, self._waiting = self._waiting[:1], self._waiting[1:]
            else:
                turn, self._waiting = self._waiting, []
            self._turn = turn
        self._leader = own.turn_of
        following: Write[A, R] | None = None
        try:
            self._run(turn)
        except BaseException as error:
            own.error = error
            own.done = True
        finally:
            following = self._hand_over(own)
        return following

    def _hand_over(self, own: Write[A, R]) -> Write[A, R] | None:
        """Answer those who are done, and let the next one lead; answers that one when it needs a thread for it.

        It does nothing when this one does not lead any more, and may be begun again when it was interrupted.
        """
        with self._lock:
            waiting, turn = self._waiting, self._turn
            if own in waiting:
                waiting.remove(own)
            if not own.leads:
                return None
            self._leader = 0
            self._expected = len(turn) + len(waiting)
            for write in turn:
                if write.done and write.patron is not None:
                    write.patron.answered(write)
                elif write is not own and write.done:
                    write.woken.set()
            waiting[:0] = [write for write in turn if not (write is own or write.done or write in waiting)]
            self._turn = []
            self._led = bool(waiting)
            own.leads = False
            if not waiting:
                return None
            waiting[0].leads = True
            if waiting[0].patron is not None:
                return waiting[0]
            waiting[0].woken.set()
            return None
