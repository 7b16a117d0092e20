"""The command: runs the corpus and prints what passed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .corpus import CorpusError, corpus_files, corpus_folder, fetch
from .runner import Report, Tally, run_corpus
from .script import ScriptError
from .targets import TARGETS

__all__ = ["main"]

_QUICK = 10
_SHOWN = 20
_MODES = {"both": ("embedded", "ipc"), "all": tuple(TARGETS), **{name: (name,) for name in TARGETS}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 when anything failed, 2 when nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.sql_corpus", description=(__doc__ or "").strip())
    parser.add_argument("--fetch", action="store_true", help="get the corpus with npm, when it is not there, and end")
    parser.add_argument(
        "--mode",
        choices=_MODES,
        default="both",
        help="what runs it; both: embedded and ipc, transaction: each script in one, sqlite: the control",
    )
    parser.add_argument("--quick", action="store_true", help=f"run only each {_QUICK}th query of long scripts")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the scripts whose path contains TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE, too")
    options = parser.parse_args(arguments)
    try:
        if options.fetch:
            print(f"The SQL corpus is in {fetch()}")
            return 0
        folder = corpus_folder()
        scripts = [(path.relative_to(folder).as_posix(), path) for path in corpus_files()]
        scripts = [(name, path) for name, path in scripts if options.only in name]
        if not scripts:
            raise CorpusError(f"no script has {options.only!r} in its path")
        reports = []
        for mode in _MODES[options.mode]:
            print(f"{mode:<44}{'run':>8}{'passed':>8}{'failed':>8}{'differ':>8}{'skipped':>9}{'s':>8}")
            with TARGETS[mode]() as target:
                report = run_corpus(target, scripts, every=_QUICK if options.quick else 1, each=_print_line)
            _print_total(report)
            reports.append(report)
        if options.json:
            options.json.write_text(json.dumps([_numbers(report) for report in reports], indent=2) + "\n")
    except (CorpusError, ScriptError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 1 if any(report.total.failures for report in reports) else 0


def _print_line(tally: Tally) -> None:
    print(
        f"  {tally.file:<42}{tally.executed:>8}{tally.passed:>8}{len(tally.failures):>8}"
        f"{tally.differences.total():>8}{tally.skipped.total():>9}{tally.seconds:>8.1f}",
        flush=True,
    )


def _print_total(report: Report) -> None:
    total = report.total
    _print_line(total)
    print(f"  pass rate {report.pass_rate:.4%}: {total.passed} of {total.executed} statements and queries")
    for title, counts in (("skipped", total.skipped), ("differs", total.differences)):
        for reason, number in counts.most_common():
            print(f"  {title} {number:>7}  {reason}")
    for failure in total.failures[:_SHOWN]:
        print(f"  FAILED {failure}")
    if len(total.failures) > _SHOWN:
        print(f"  and {len(total.failures) - _SHOWN} more failures")
    print()


def _numbers(report: Report) -> dict[str, object]:
    def of(tally: Tally) -> dict[str, object]:
        return {
            "executed": tally.executed,
            "passed": tally.passed,
            "failed": len(tally.failures),
            "differences": dict(tally.differences),
            "skipped": dict(tally.skipped),
            "seconds": round(tally.seconds, 3),
        }

    return {
        "target": report.target,
        "pass_rate": report.pass_rate,
        "total": of(report.total),
        "files": {tally.file: of(tally) for tally in report.tallies},
        "failures": [str(failure) for failure in report.total.failures],
    }


if __name__ == "__main__":
    sys.exit(main())
