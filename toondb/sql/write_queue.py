"""Statements that write, of many threads: they take turns, and those that wait share one commit.

Whoever comes first leads: it runs all that wait, in the order of their coming, and answers them. One that comes
meanwhile waits for the next turn. So a commit costs many writers what it costs one, as with keys.

Ctrl-C may meet the main thread anywhere. It must neither end a turn of several writers in the middle, after which
nobody could tell whether what the others wrote is committed, nor take the lead away with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from toondb.interrupts import finished
from toondb_protocol.errors import LockTimeoutError, SqlError

__all__ = ["Write", "WriteQueue"]

A = TypeVar("A")
R = TypeVar("R")


class Write(Generic[A, R]):
    """One write that waits.

    Attributes:
        action: What to do.
        result: What it gave, once it was done.
        error: What it raised instead.
    """

    __slots__ = ("action", "done", "error", "leads", "result", "turn_of", "woken")

    def __init__(self, action: A) -> None:
        self.action = action
        self.result: R | None = None
        self.error: BaseException | None = None
        self.done = self.leads = False
        # The thread that runs the turn that this one leads; 0 = none does yet.
        self.turn_of = 0
        self.woken = threading.Event()


class WriteQueue(Generic[A, R]):
    """Gathers writes into turns.

    Args:
        run: Runs the writes of a turn and notes the result or error of each; what it raises is for the first of them
            that has neither, and the others have another turn.
        wait_seconds: A write waits for so long at the most.
    """

    def __init__(self, run: Callable[[list[Write[A, R]]], None], wait_seconds: float) -> None:
        self._run = run
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._waiting: list[Write[A, R]] = []
        self._led = False
        self._leader = 0
        self._turn: list[Write[A, R]] = []

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
                self._hand_over(write)
            raise
        if write.error is not None:
            raise write.error
        return write.result  # type: ignore[return-value]

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
                f"other SQL statements were writing for more than {self._wait_seconds:g} s.",
                remediation="Write less in one statement, or try again.",
            )
        write.woken.wait()

    def _lead(self, own: Write[A, R]) -> None:
        """Run all that wait, and let the next one lead."""
        if len(self._waiting) == 1:
            self._run_turn(own)
        else:
            finished(lambda: self._run_turn(own))

    def _run_turn(self, own: Write[A, R]) -> None:
        with self._lock:
            if not own.leads:
                return  # it was interrupted before this began
            own.turn_of = threading.get_ident()
            if own.turn_of == threading.main_thread().ident:
                # What has come this moment is for the next turn: Ctrl-C must meet nobody else's.
                turn, self._waiting = self._waiting[:1], self._waiting[1:]
            else:
                turn, self._waiting = self._waiting, []
            self._turn = turn
        self._leader = own.turn_of
        try:
            self._run(turn)
        except BaseException as error:
            own.error = error
            own.done = True
        finally:
            self._hand_over(own)

    def _hand_over(self, own: Write[A, R]) -> None:
        """Answer those who are done, and let the next one lead.

        It does nothing when this one does not lead any more, and may be begun again when it was interrupted.
        """
        with self._lock:
            waiting, turn = self._waiting, self._turn
            if own in waiting:
                waiting.remove(own)
            if not own.leads:
                return
            self._leader = 0
            for write in turn:
                if write is not own and write.done:
                    write.woken.set()
            waiting[:0] = [write for write in turn if not (write is own or write.done or write in waiting)]
            self._turn = []
            if waiting:
                waiting[0].leads = True
                waiting[0].woken.set()
            self._led = bool(waiting)
            own.leads = False
