"""Results, their judgement against the targets, and the two reports: a table and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Row, Target
from benchmarks.timing import Samples, ratios

__all__ = ["CellResult", "RowResult", "Verdict", "format_row", "format_verdicts", "judge", "to_json", "write_json"]


@dataclass(frozen=True, slots=True)
class CellResult:
    """What one contestant did.

    Args:
        label: The label of its cell.
        samples: One value for each round; None when it was not measured.
        status: ``ok``, or why there are no samples.
        server_cpu_us: Processor time of the server for each operation, in microseconds.
        recall: The share of the true nearest that a search found.
    """

    label: str
    samples: Samples | None = None
    status: str = "ok"
    server_cpu_us: Samples | None = None
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row and what its contestants did, in the order of its cells."""

    row: Row
    cells: tuple[CellResult, ...]

    def cell(self, label: str) -> CellResult:
        """What one contestant did."""
        return next(cell for cell in self.cells if cell.label == label)

    def samples(self, label: str) -> Samples | None:
        """The samples of one contestant."""
        return self.cell(label).samples


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was reached.

    Args:
        measured: In the unit of the row, or a ratio; None when one side was not measured.
        passed: None when it was not measured.
    """

    row: str
    target: Target
    measured: float | None
    passed: bool | None

    @property
    def status(self) -> str:
        return "not measured" if self.passed is None else "pass" if self.passed else "MISS"


def _judge_one(result: RowResult, target: Target) -> Verdict:
    samples = result.samples(target.cell)
    if samples is not None and target.baseline is not None:
        baseline = result.samples(target.baseline)
        samples = None if baseline is None else ratios(samples, baseline)
    measured = result.cell(target.cell).recall if target.recall else None if samples is None else samples.median
    if measured is None:
        return Verdict(result.row.name, target, None, None)
    passed = measured <= target.limit if target.at_most else measured >= target.limit
    return Verdict(result.row.name, target, measured, passed)


def judge(results: Iterable[RowResult]) -> list[Verdict]:
    """Compare every measured row with its targets."""
    return [_judge_one(result, target) for result in results for target in result.row.targets]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def format_row(result: RowResult) -> str:
    """One row as text. The column ``x`` is the first contestant's figure over this one's, round by round."""
    row, first = result.row, result.cells[0]
    lines = [f"{row.title}  [{row.name}]"]
    for cell in result.cells:
        if cell.samples is None:
            lines.append(f"  {cell.label:<36}  {cell.status}")
            continue
        span = f"{_number(cell.samples.min)} .. {_number(cell.samples.max)}"
        line = f"  {cell.label:<36}  {_number(cell.samples.median) + row.unit:>18}  {span:<24}"
        if first.samples is not None and cell is not first and row.measure == "rate":
            line += f"  x {ratios(first.samples, cell.samples).median:<7.2f}"
        elif row.measure == "rate":
            line += " " * 11
        if cell.recall is not None:
            line += f"  recall {cell.recall:.4f}"
        if cell.server_cpu_us is not None:
            line += f"  {cell.server_cpu_us.median:.1f} us server CPU"
        lines.append(line.rstrip())
    return "\n".join(lines)


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """The targets as text."""
    lines = ["Targets"]
    for verdict in verdicts:
        target = verdict.target
        sign = "<=" if target.at_most else ">="
        suffix = " x" if target.baseline is not None else ""
        measured = "-" if verdict.measured is None else _number(verdict.measured) + suffix
        wanted = f"{sign} {_number(target.limit)}{suffix}"
        lines.append(f"  {verdict.status:<12}  {measured:>12}  {wanted:<14}  {target.text}  [{verdict.row}]")
    return "\n".join(lines)


def to_json(
    machine: Mapping[str, object],
    options: Mapping[str, object],
    results: Sequence[RowResult],
    started: str,
) -> dict[str, object]:
    """The whole run as one JSON document (``version`` 1)."""
    return {
        "version": 1,
        "started": started,
        "machine": dict(machine),
        "options": dict(options),
        "rows": [
            {
                "name": result.row.name,
                "title": result.row.title,
                "measure": result.row.measure,
                "unit": result.row.unit.strip(),
                "cells": [
                    {
                        "label": cell.label,
                        "status": cell.status,
                        "samples": cell.samples.to_dict() if cell.samples else None,
                        "server_cpu_us": cell.server_cpu_us.to_dict() if cell.server_cpu_us else None,
                        "recall": cell.recall,
                    }
                    for cell in result.cells
                ],
            }
            for result in results
        ],
        "targets": [
            {
                "row": verdict.row,
                "text": verdict.target.text,
                "cell": verdict.target.cell,
                "baseline": verdict.target.baseline,
                "limit": verdict.target.limit,
                "at_most": verdict.target.at_most,
                "recall": verdict.target.recall,
                "measured": verdict.measured,
                "status": verdict.status.lower(),
            }
            for verdict in judge(results)
        ],
    }


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a report; the folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
