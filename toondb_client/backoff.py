"""Waiting between attempts: exponential with full jitter, so that many clients do not retry in step."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["delays"]


def delays(first: float = 0.005, cap: float = 0.25) -> Iterator[float]:
    """Seconds to wait before the next attempts, without end."""
    bound = first
    while True:
        yield random.uniform(0, bound)
        bound = min(cap, bound * 2)
