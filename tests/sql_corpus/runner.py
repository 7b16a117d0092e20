"""Runs scripts and counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .explained import difference_of, skip_reason
from .judge import judge, result_lines
from .script import Halt, Query, Record, Statement, read_script
from .targets import Target

__all__ = ["Failure", "Report", "Tally", "run_corpus", "run_records"]

_LEFT_OUT = "left out of a quick run"
_WHOLE_BELOW = 300


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that gave something else than it must."""

    file: str
    line: int
    what: str
    sql: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}\n    {self.sql}"


@dataclass
class Tally:
    """What became of the records of one script.

    Attributes:
        file: The script.
        passed: Records that gave what the script says.
        differences: Reasons of other results that are right, with their numbers.
        skipped: Reasons of records that were not run, with their numbers.
        failures: The rest.
        seconds: How long it took.
    """

    file: str
    passed: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def executed(self) -> int:
        """How many records were run."""
        return self.passed + self.differences.total() + len(self.failures)


@dataclass
class Report:
    """What became of the corpus with one target."""

    target: str
    tallies: list[Tally] = field(default_factory=list)

    @property
    def total(self) -> Tally:
        """The sum."""
        total = Tally("total")
        for tally in self.tallies:
            total.passed += tally.passed
            total.differences += tally.differences
            total.skipped += tally.skipped
            total.failures += tally.failures
            total.seconds += tally.seconds
        return total

    @property
    def pass_rate(self) -> float:
        """The share of the executed records that gave what the script says; differences count against it."""
        total = self.total
        return total.passed / total.executed if total.executed else 0.0


def run_corpus(
    target: Target,
    scripts: Iterable[tuple[str, Path]],
    *,
    every: int = 1,
    each: Callable[[Tally], object] = lambda _: None,
) -> Report:
    """Run scripts, each on an empty database.

    Args:
        target: What runs them.
        scripts: Their names and files.
        every: Run each n-th query only (all statements, and all of short scripts).
        each: Called after each script.

    Raises:
        ScriptError: A script is not of the format.
    """
    report = Report(target.name)
    for name, path in scripts:
        records = read_script(path)
        start = time.perf_counter()
        with target.empty() as execute:
            tally = run_records(name, records, execute, target, every=every if len(records) > _WHOLE_BELOW else 1)
        tally.seconds = time.perf_counter() - start
        report.tallies.append(tally)
        each(tally)
    return report


def run_records(
    file: str,
    records: Iterable[Record],
    execute: Callable[[str], list[tuple[Any, ...]]],
    target: Target,
    *,
    every: int = 1,
) -> Tally:
    """Run the records of a script in their order."""
    tally = Tally(file)
    labels: dict[str, tuple[int, list[str]]] = {}
    queries = 0
    for record in records:
        if reason := skip_reason(record.conditions):
            if not isinstance(record, Halt):
                tally.skipped[reason] += 1
            continue
        if isinstance(record, Halt):
            break
        if isinstance(record, Query):
            queries += 1
            if queries % every:
                tally.skipped[_LEFT_OUT] += 1
                continue
        wrong = _run(record, execute, target.errors, labels)
        reason = difference_of(file, record, plain_sqlite=target.plain_sqlite)
        if reason and wrong:
            tally.differences[reason] += 1
        elif wrong or reason:
            tally.failures.append(Failure(file, record.line, wrong or f"passes, though: {reason}", record.sql))
        else:
            tally.passed += 1
    return tally


def _run(
    record: Statement | Query,
    execute: Callable[[str], list[tuple[Any, ...]]],
    errors: tuple[type[Exception], ...],
    labels: dict[str, tuple[int, list[str]]],
) -> str:
    """What is wrong with what a record gives; empty when nothing is."""
    try:
        rows = execute(record.sql)
    except errors as exc:
        if isinstance(record, Statement) and not record.succeeds:
            return ""
        return f"{type(exc).__name__}: {exc}"
    except Exception as exc:
        # Never right, not even where the script wants an error; and the records after it are still run.
        return f"{type(exc).__name__}, which no statement may raise: {exc}"
    if isinstance(record, Statement):
        return "" if record.succeeds else "succeeds, and must fail"
    if wrong := judge(record, rows):
        return wrong
    if record.label:
        lines = result_lines(record, rows)
        line, before = labels.setdefault(record.label, (record.line, lines))
        if lines != before:
            return f"another result than the query of the same label in line {line}"
    return ""
