"""Runs rows: starts what they need, lets the contestants take turns, collects the samples."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import Child, ChildError, Children
from benchmarks.crew import Crew, CrewError
from benchmarks.embedded import EMBEDDED
from benchmarks.footprint import measure_memory, measure_start, raise_descriptor_limit
from benchmarks.report import CellResult, RowResult
from benchmarks.rows import Cell, Row
from benchmarks.servers import Servers, cpu_seconds, missing, place
from benchmarks.sql_measure import failure, measure_latency, measure_peak, measure_size
from benchmarks.timing import Samples, turns
from benchmarks.vector_data import labelled
from benchmarks.vector_measure import measure_median
from benchmarks.vectors import VECTOR_ROWS
from benchmarks.workload import Workload

__all__ = ["Effort", "run_rows"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Args:
        rounds: Turns of each contestant.
        seconds: Length of one turn.
        warm_up: Length of the turn before the first, which is thrown away.
        starts: Process starts of each contestant in the start-up and memory rows.
    """

    rounds: int
    seconds: float
    warm_up: float
    starts: int


_ANSWER_SECONDS = 300.0
"""Within which a worker answers, when it makes an index of its own first, too."""

FULL = Effort(rounds=7, seconds=0.5, warm_up=0.2, starts=7)
QUICK = Effort(rounds=3, seconds=0.2, warm_up=0.05, starts=3)


def _measure_rate(row: Row, servers: Servers, crew: Crew, effort: Effort) -> list[CellResult]:
    failures: dict[str, str] = {}
    connections: dict[str, int] = defaultdict(int)
    server_of: dict[str, Child | None] = {}

    def connection(cell: Cell) -> str:
        return f"{cell.driver}@{cell.server}"

    for cell in row.cells:
        if missing(cell.server, cell.driver):
            failures[cell.label] = "not installed"
        else:
            connections[connection(cell)] = max(connections[connection(cell)], cell.processes)

    for cell in row.cells:
        name = connection(cell)
        if cell.label in failures or name in server_of:
            continue
        try:
            server_of[name], address = servers.shared(cell.server)
            crew.open(name, cell.driver, address, connections[name])
            if cell.driver in ("toondb", "redis", "lmdb", *EMBEDDED) and row.loads:
                servers.load(cell.server, crew, name)
        except (ChildError, CrewError) as error:
            for other in row.cells:
                if connection(other) == name:
                    failures[other.label] = f"failed: {error}"

    values: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    recall: dict[str, float] = {}

    def compare(cell: Cell) -> None:
        if cell.label not in failures:
            try:
                recall[cell.label] = crew.recall(connection(cell), cell.operation)
            except CrewError as error:
                failures[cell.label] = failure(error)

    def turn(cell: Cell, seconds: float, keep: bool) -> None:
        if cell.label in failures:
            return
        server = server_of[connection(cell)]
        try:
            before = cpu_seconds(server.pid) if server else 0.0
            rate, count = crew.run(connection(cell), cell.operation, seconds, cell.processes)
            used = cpu_seconds(server.pid) - before if server else 0.0
        except (CrewError, OSError) as error:
            failures[cell.label] = failure(error)
            return
        if keep:
            values[cell.label].append(rate)
            if server and cell.driver != "toondb-direct":
                cpu[cell.label].append(used / count * 1e6)

    def place_all(cores: Collection[int]) -> None:
        pids = crew.pids(max(connections.values(), default=0))
        for pid in [*pids, *(server.pid for server in server_of.values() if server)]:
            # A process that has ended by now is reported by its next turn.
            with contextlib.suppress(OSError):
                place(pid, cores)

    every_core = os.sched_getaffinity(0)
    if row.one_core:
        place_all({max(every_core)})
    if not row.slow:
        for cell in row.cells:
            turn(cell, effort.warm_up, keep=False)
    for _, cell in turns(row.cells, max(1, effort.rounds // 2) if row.slow else effort.rounds):
        turn(cell, 0.0 if row.slow else effort.seconds, keep=True)
    if row.one_core:
        place_all(every_core)
    if row.recall:
        for cell in row.cells:
            compare(cell)
    for name in server_of:
        try:
            crew.close(name, connections[name])
        except CrewError:
            pass  # the failure of this connection stands in its cells already
    return [
        CellResult(cell.label, status=failures[cell.label])
        if cell.label in failures
        else CellResult(
            cell.label,
            Samples(tuple(values[cell.label])),
            server_cpu_us=Samples(tuple(cpu[cell.label])) if cpu[cell.label] else None,
            recall=recall.get(cell.label),
        )
        for cell in row.cells
    ]


def run_rows(
    rows: Iterable[Row],
    *,
    workload: Workload,
    effort: Effort,
    data: Path,
    sockets: Path,
    report: Callable[[RowResult], None],
) -> list[RowResult]:
    """Measure rows one after the other.

    Args:
        rows: What to measure.
        workload: The records.
        effort: How long to measure.
        data: An empty folder on the disk to measure.
        sockets: An empty folder with a short path.
        report: Called with each result as soon as there is one.

    Returns:
        All results. A contestant that is missing or failed has no samples and says why.
    """
    raise_descriptor_limit()
    results: list[RowResult] = []
    with Children(sockets) as children, Crew(children, workload, _ANSWER_SECONDS) as crew:
        servers = Servers(children, data, sockets, workload)
        for row in rows:
            row = labelled(row) if row in VECTOR_ROWS else row
            if row.measure == "memory":
                cells = measure_memory(row.cells, servers, effort.starts)
            elif row.measure == "start":
                cells = measure_start(row.cells, servers, crew, effort.starts)
            elif row.measure == "sql-size":
                cells = measure_size(row.cells, servers, crew)
            elif row.measure == "sql-peak":
                cells = measure_peak(row.cells, servers, children, workload, data)
            elif row.measure == "sql-latency":
                cells = measure_latency(row.cells, servers, crew, effort.rounds, 4 * effort.seconds)
            elif row.measure == "median":
                cells = measure_median(row.cells, servers, crew, effort.rounds, effort.seconds)
            else:
                cells = _measure_rate(row, servers, crew, effort)
            result = RowResult(row, tuple(cells))
            results.append(result)
            report(result)
    return results
