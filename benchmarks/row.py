"""What a row of the benchmarks is: contestants, what they do, and what one of them must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Cell", "Row", "Target"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One contestant of a row.

    Args:
        label: Unique in the row.
        server: A name of :mod:`benchmarks.servers`.
        driver: A name that :func:`benchmarks.drivers.open_driver` knows; empty for memory and start-up.
        operation: What it does (see :mod:`benchmarks.drivers`, :mod:`benchmarks.footprint`).
        processes: Number of client processes; for memory, the number of open connections.
    """

    label: str
    server: str
    driver: str = ""
    operation: str = ""
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """What a cell must reach.

    Args:
        text: The target in words.
        cell: Label of the cell that is judged.
        limit: The least acceptable value (the most, when ``at_most``). With a baseline, a factor of it.
        baseline: Label of the cell to divide by, round by round; None = an absolute figure.
        at_most: Lower is better.
        recall: What is judged is how much of the true nearest was found, not how fast.
    """

    text: str
    cell: str
    limit: float
    baseline: str | None = None
    at_most: bool = False
    recall: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of questions to several contestants; the first cell is what the others are compared with.

    Args:
        one_core: Keep client and server on the same core. A single client and its server take turns, so they
            lose nothing by it, and the figure stops depending on whether the scheduler happens to wake the
            other side on an idle core (in a virtual machine several times slower than the work itself).
        loads: The records are stored before; False for what stores its own.
        slow: One operation takes seconds: it is done once in a turn, in half as many turns, without warming up.
        recall: The answers are compared with the truth, and the recall is a part of the result.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    targets: tuple[Target, ...] = ()
    measure: Literal["rate", "memory", "start", "sql-size", "sql-peak", "sql-latency", "median"] = "rate"
    unit: str = "/s"
    one_core: bool = False
    loads: bool = True
    slow: bool = False
    recall: bool = False
