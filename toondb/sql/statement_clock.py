"""When a statement has to end."""

from __future__ import annotations

import time

from .cancel import Cancel, current_cancel
from .policy import Policy

__all__ = ["StatementClock"]


class StatementClock:
    """Asked by SQLite every so many steps whether a statement has to end.

    Args:
        policy: Tells statements of ours, which always end by themselves.

    Attributes:
        interrupted: The statement that is running is to end.
        halted: So are all that follow.
        deadline: ``time.monotonic()`` when it has to end; None = never.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.deadline: float | None = None
        self.interrupted = self.halted = False
        self._looks = 0
        self._cancel: Cancel | None = None

    def start(self, seconds: float | None) -> None:
        """Begin with a statement that has so many seconds."""
        self.interrupted = False
        self._looks = 0
        self._cancel = current_cancel()
        self.deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds that the statement has left; None = any number."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether its time is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def is_over_budget(self) -> bool:
        """Whether a short read has taken too many steps."""
        # SQLite counts the steps of all runs of a statement, so the first time says little.
        self._looks += 1
        return self._looks > 1 and not self._policy.internal

    def must_stop(self) -> bool:
        """Whether it has to end now."""
        if self._policy.internal:
            # SQLite counts the steps of all runs of a statement: a BEGIN of ours is asked for now and then, too.
            return False
        if self.interrupted or self.halted or (self._cancel is not None and self._cancel.cancelled):
            return True
        return self.over
