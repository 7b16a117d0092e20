"""The options of an import, for the command line and for the shell's own command."""

from __future__ import annotations

from typing import Any

import click

from .importing import ImportOptions, ImportReport
from .progress import rows_of

__all__ = ["IMPORT_PARAMETERS", "Delimiter", "import_options", "report_text"]

_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


class Delimiter(click.ParamType[str]):
    """One character between the fields of CSV, or the name of one."""

    name = "delimiter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = _NAMED.get(str(value), str(value))
        if len(text) != 1 or not text.isascii() or text in '"\r\n' or text.isalnum():
            self.fail(f"{value!r} is not a delimiter; give one character, for example ';', or tab.", param, ctx)
        return text


IMPORT_PARAMETERS: tuple[click.Parameter, ...] = (
    click.Argument(["path"], metavar="FILE"),
    click.Argument(["table"], metavar="TABLE"),
    click.Option(
        ["--format", "file_format"],
        type=click.Choice(["auto", "csv", "jsonl"]),
        default="auto",
        show_default=True,
        help="Format of FILE; auto goes by its name (.csv, .tsv, .jsonl, .ndjson).",
    ),
    click.Option(
        ["--create"], is_flag=True, help="Create the table when it is missing, with types that fit all values."
    ),
    click.Option(
        ["--columns"],
        metavar="A,B,...",
        default=None,
        help="Columns for the fields of CSV, in their order, instead of the header's; of JSON the keys to take.",
    ),
    click.Option(["--no-header"], is_flag=True, help="The first line of CSV is a row."),
    click.Option(
        ["--null", "null"],
        default="",
        metavar="TEXT",
        help="Fields of CSV that are NULL, unless they are quoted.  [default: empty ones]",
    ),
    click.Option(
        ["--delimiter"], type=Delimiter(), default=None, metavar="CHAR", help="Between fields.  [default: comma]"
    ),
    click.Option(["--replace"], is_flag=True, help="A row replaces the one with its key."),
    click.Option(["--ignore"], is_flag=True, help="A row whose key is there already is left out."),
    click.Option(
        ["--on-error"],
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="stop: import nothing. skip: leave out rows that cannot be imported, and say which.",
    ),
    click.Option(
        ["--batch"], type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Rows sent at once."
    ),
    click.Option(
        ["--commit-rows"],
        type=click.IntRange(1),
        default=None,
        metavar="N",
        help="Commit after every N rows, for what is too large for one transaction.  [default: all or nothing]",
    ),
)
"""The parameters of an import."""


def import_options(
    path: str,
    table: str,
    file_format: str,
    create: bool,
    columns: str | None,
    no_header: bool,
    null: str,
    delimiter: str | None,
    replace: bool,
    ignore: bool,
    on_error: str,
    batch: int,
    commit_rows: int | None,
) -> ImportOptions:
    """What the parameters ask for.

    Raises:
        click.UsageError: Two of them contradict each other.
    """
    if replace and ignore:
        raise click.UsageError("--replace and --ignore cannot both be given.")
    if path == "-" and file_format == "auto":
        raise click.UsageError("standard input has no name that tells its format: give --format.")
    names = [name.strip() for name in columns.split(",")] if columns is not None else []
    if columns is not None and not all(names):
        raise click.UsageError(f"--columns {columns!r} has an empty name.")
    by_name = "\t" if path.lower().endswith(".tsv") else ","
    return ImportOptions(
        path,
        table,
        format=file_format,
        create=create,
        columns=names,
        header=not no_header,
        null=null,
        delimiter=by_name if delimiter is None else delimiter,
        conflict="replace" if replace else "ignore" if ignore else "abort",
        skip=on_error == "skip",
        batch=batch,
        commit_rows=commit_rows or 0,
    )


def report_text(report: ImportReport, options: ImportOptions) -> str:
    """What was imported, for people."""
    lines = [f"skipped: {error}" for error in report.errors]
    if report.skipped > len(report.errors):
        lines.append(f"... and {report.skipped - len(report.errors):,} more")
    text = f"Imported {rows_of(report.rows)} into {report.table}"
    text += " (created)" if report.created else ""
    text += f", {report.ignored:,} ignored" if report.ignored else ""
    text += f", {report.skipped:,} skipped" if report.skipped else ""
    return "\n".join([*lines, f"{text}."])
