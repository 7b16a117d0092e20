"""Samples, ratios and the order in which contestants take turns.

A shared machine drifts: another process wakes up, the clock changes, the disk gets busy. So the
contestants of a row take turns in short slices (A B, B A, A B, ...), and a comparison is the median of
the ratios *within* each round, never the ratio of two medians that were taken minutes apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Samples", "ratios", "turns"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Samples:
    """The measurements of one contestant, one value for each round.

    Raises:
        ValueError: There is no value.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("samples need at least one value")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def min(self) -> float:
        return min(self.values)

    @property
    def max(self) -> float:
        return max(self.values)

    def to_dict(self) -> dict[str, object]:
        """The form in a JSON report."""
        return {"median": self.median, "min": self.min, "max": self.max, "values": list(self.values)}


def ratios(numerator: Samples, denominator: Samples) -> Samples:
    """The ratio of two contestants in each round; its median is the comparison to report.

    Raises:
        ValueError: The two did not take part in the same number of rounds, or a denominator is not positive.
    """
    if len(numerator.values) != len(denominator.values):
        raise ValueError(f"cannot compare {len(numerator.values)} rounds with {len(denominator.values)} rounds")
    if min(denominator.values) <= 0:
        raise ValueError("cannot divide by a measurement that is not positive")
    return Samples(tuple(a / b for a, b in zip(numerator.values, denominator.values, strict=True)))


def turns(contestants: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Yield ``(round, contestant)``; every second round runs backwards, so that drift cancels."""
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            yield number, contestant
