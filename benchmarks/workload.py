"""What is stored and asked for: the same records for every contestant."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["KEY_PREFIX", "KEY_SIZE", "Workload"]

KEY_PREFIX = b"user:"
KEY_SIZE = len(KEY_PREFIX) + 8


@dataclass(frozen=True, slots=True)
class Workload:
    """The records of a run.

    Args:
        keys: Number of preloaded records, named ``user:00000000`` and on.
        value_size: Size of every value in bytes.
    """

    keys: int = 100_000
    value_size: int = 100

    @property
    def value(self) -> bytes:
        return b"v" * self.value_size

    def key(self, number: int) -> bytes:
        return KEY_PREFIX + b"%08d" % number

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """All records in key order."""
        value = self.value
        for number in range(self.keys):
            yield self.key(number), value

    def sample(self, seed: int, count: int = 10_000) -> list[bytes]:
        """``count`` keys drawn at random; the same seed draws the same keys."""
        return [self.key(number) for number in random.Random(seed).choices(range(self.keys), k=count)]
