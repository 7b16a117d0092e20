"""Waiting between attempts: exponential with full jitter, so that many clients do not retry in step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from .arguments import whole_number

__all__ = ["Patience", "conflict_delays", "delays"]


def delays(first: float = 0.005, cap: float = 0.25) -> Iterator[float]:
    """Seconds to wait before the next attempts, without end."""
    bound = first
    while True:
        yield random.uniform(0, bound)
        bound = min(cap, bound * 2)


def conflict_delays(attempts: int) -> Iterator[float]:
    """Seconds to wait after each conflict of a transaction that is tried again; it ends where the tries do.

    Args:
        attempts: Tries at the most.

    Raises:
        ValidationError: They are not a number of 1 or more.
    """
    return islice(delays(0.001, 0.1), whole_number("attempts", attempts, 1) - 1)


class Patience:
    """How long one call puts up with lost connections.

    The first loss is made up for at once: it is an idle connection whose server was restarted. After that
    attempts are spaced out, until ``reconnect_timeout`` after the first loss or the deadline of the call.

    Args:
        deadline: When the call must be over.
        reconnect_timeout: Seconds.
    """

    __slots__ = ("_delays", "_give_up", "_reconnect_timeout")

    def __init__(self, deadline: float, reconnect_timeout: float) -> None:
        self._give_up = deadline
        self._reconnect_timeout = reconnect_timeout
        self._delays: Iterator[float] | None = None

    def next_delay(self, now: float) -> float | None:
        """Seconds to wait before the next attempt; None when it is time to give up."""
        if self._delays is None:
            self._delays = delays()
            self._give_up = min(self._give_up, now + self._reconnect_timeout)
            return 0.0
        delay = next(self._delays)
        return delay if now + delay < self._give_up else None
