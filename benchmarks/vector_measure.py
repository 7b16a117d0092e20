"""Rows that give the median time of a call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.children import ChildError
from benchmarks.crew import Crew, CrewError
from benchmarks.report import CellResult
from benchmarks.row import Cell
from benchmarks.servers import Servers, missing
from benchmarks.sql_measure import failure
from benchmarks.timing import Samples, turns

__all__ = ["measure_median"]


def measure_median(
    cells: Sequence[Cell], servers: Servers, crew: Crew, rounds: int, seconds: float
) -> list[CellResult]:
    """The median time of the calls of one client in each turn, in milliseconds."""
    values: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, str] = {}
    opened: set[str] = set()

    def turn(cell: Cell) -> None:
        name = f"{cell.driver}@{cell.server}"
        if missing(cell.server, cell.driver):
            failures[cell.label] = "not installed"
        if cell.label in failures:
            return
        try:
            if name not in opened:
                _, address = servers.shared(cell.server)
                crew.open(name, cell.driver, address, 1)
                opened.add(name)
            values[cell.label].append(1e3 * crew.median_seconds(name, cell.operation, seconds))
        except (ChildError, CrewError, OSError) as error:
            failures[cell.label] = failure(error)

    for _, cell in turns(cells, rounds):
        turn(cell)
    for name in opened:
        try:
            crew.close(name, 1)
        except CrewError:
            pass  # its failure stands in its cells
    return [
        CellResult(cell.label, status=failures[cell.label])
        if cell.label in failures
        else CellResult(cell.label, Samples(tuple(values[cell.label])))
        for cell in cells
    ]
