"""Command line: ``python -m benchmarks [--quick] [--only NAME ...] [--json PATH]``."""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.embeddings import are_made, load_embeddings
from benchmarks.machine import describe_machine, filesystem_of
from benchmarks.report import RowResult, format_row, format_verdicts, judge, to_json, write_json
from benchmarks.rows import ROWS, Row
from benchmarks.run import FULL, QUICK, Effort, run_rows
from benchmarks.vector_plot import MissingPlotLibraryError, plot_curve
from benchmarks.vectors import VECTOR_ROWS
from benchmarks.workload import Workload
from examples.embedding import MissingModelError

RESULTS = Path(__file__).resolve().parent / "results"
_MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure ToonDB beside its peers on this machine."
    )
    parser.add_argument("--quick", action="store_true", help="short turns: under a minute, more noise")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to run; * and ? match (see --list)")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the report to PATH too")
    parser.add_argument("--no-save", action="store_true", help="write nothing to benchmarks/results/")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="folder on the disk to measure")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a turn")
    parser.add_argument("--keys", type=int, default=100_000, metavar="N", help="records (default %(default)s)")
    parser.add_argument(
        "--value-size", type=int, default=100, metavar="BYTES", help="size of a value (default %(default)s)"
    )
    return parser


def select_rows(patterns: Sequence[str] | None) -> list[Row]:
    """The rows that match any of the patterns; all of them for None.

    Raises:
        ValueError: A pattern matches no row.
    """
    if patterns is None:
        return list(ROWS)
    names = [row.name for row in ROWS]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"there is no row {pattern!r}; the rows are: {', '.join(names)}")
    return [row for row in ROWS if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]


def _effort(arguments: argparse.Namespace) -> Effort:
    base = QUICK if arguments.quick else FULL
    rounds = base.rounds if arguments.rounds is None else arguments.rounds
    seconds = base.seconds if arguments.seconds is None else arguments.seconds
    if rounds < 1 or seconds <= 0 or arguments.keys < 1000 or arguments.value_size < 1:
        raise ValueError("use --rounds >= 1, --seconds > 0, --keys >= 1000 and --value-size >= 1")
    return Effort(rounds, seconds, base.warm_up, base.starts)


def data_parent(chosen: Path | None) -> Path:
    """Where the data folders go: ``chosen``, else the first usual temporary folder that is on a disk.

    Raises:
        ValueError: ``chosen`` is not a folder.
    """
    if chosen is not None:
        if not chosen.is_dir():
            raise ValueError(f"--dir {chosen} is not a folder; create it first")
        return chosen
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp")]
    on_disk = [path for path in candidates if path.is_dir() and filesystem_of(path) not in _MEMORY_FILESYSTEMS]
    return on_disk[0] if on_disk else candidates[0]


def _print_machine(machine: dict[str, object]) -> None:
    for name, value in machine.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {item:.3f}" if isinstance(item, float) else f"{key} {item}" for key, item in value.items()
            )
        elif isinstance(value, list):
            value = " ".join(f"{item:.2f}" for item in value)
        print(f"{name:>14}: {value}")
    print(flush=True)


def _make_embeddings(rows: Sequence[Row]) -> None:
    """Make the embeddings, unless no row needs them or they are there; without a model there are stand-ins."""
    if are_made() or not any(row in VECTOR_ROWS for row in rows):
        return
    try:
        load_embeddings()
    except MissingModelError as error:
        print(f"Warning: {error} The vector rows are measured with random stand-ins.\n", file=sys.stderr)


def _plot(results: Sequence[RowResult], paths: Sequence[Path]) -> None:
    try:
        for path in paths:
            picture = path.with_suffix(".png")
            if plot_curve(results, picture):
                print(f"Curve: {picture}")
    except MissingPlotLibraryError as error:
        print(f"No picture of the curve: {error}", file=sys.stderr)


def _run(arguments: argparse.Namespace, rows: list[Row], effort: Effort, parent: Path) -> int:
    started = datetime.now(UTC)
    workload = Workload(arguments.keys, arguments.value_size)

    _make_embeddings(rows)

    def show(result: RowResult) -> None:
        print(format_row(result), end="\n\n", flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="toondb-bench-", dir=parent) as data,
        tempfile.TemporaryDirectory(prefix="tb-") as sockets,
    ):
        machine = describe_machine(Path(data))
        _print_machine(machine)
        if machine["filesystem"] in _MEMORY_FILESYSTEMS:
            print(
                f"Warning: {parent} is a {machine['filesystem']}: durable rows say nothing. Use --dir on a disk.\n",
                file=sys.stderr,
            )
        results = run_rows(rows, workload=workload, effort=effort, data=Path(data), sockets=Path(sockets), report=show)

    verdicts = judge(results)
    if verdicts:
        print(format_verdicts(verdicts))
    stamp = started.strftime("%Y%m%dT%H%M%SZ")
    paths = [] if arguments.no_save else [RESULTS / f"{stamp}.json"]
    if arguments.json is not None:
        paths.append(arguments.json)
    if paths:
        options: dict[str, object] = {"quick": arguments.quick, **asdict(effort), **asdict(workload)}
        document = to_json(machine, options, results, stamp)
        for path in paths:
            write_json(path, document)
            print(f"Report: {path}")
        _plot(results, paths)
    failed = any(cell.status.startswith("failed") for result in results for cell in result.cells)
    missed = any(verdict.passed is False for verdict in verdicts)
    return 1 if failed or (arguments.check and missed) else 0


def _terminated(number: int, frame: object) -> None:
    """Turn SIGTERM into an exception, so that children end and folders go away as on Ctrl-C."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 when a contestant failed, or with ``--check`` when a target is missed; 2 for a wrong argument;
        130 after Ctrl-C.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        rows = select_rows(arguments.only)
        effort = _effort(arguments)
        parent = data_parent(arguments.dir)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        for row in rows:
            print(f"{row.name:<20} {row.title}")
        return 0
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(arguments, rows, effort, parent)
    except KeyboardInterrupt:
        print("Interrupted; every process was ended.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
