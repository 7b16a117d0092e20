"""Writing the rows of a table or a query to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from toondb_protocol.errors import ValidationError

from .files import OutputFile
from .formats import Style, write_rows
from .importing import quoted
from .progress import RowProgress
from .records import format_of
from .session import Parameters, Session
from .statements import reads_only, split

__all__ = ["EXTENSIONS", "export_rows", "export_to", "query_of"]

EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".toon": "toon",
    ".txt": "table",
}
"""Formats by the extension of a file."""

_STEP = 1000


def query_of(session: Session, what: str) -> str:
    """The query for what a user names: a table or view by its name, or a query.

    Raises:
        ValidationError: It is neither.
    """
    name = what.strip()
    if session.rows_of("SELECT 1 FROM pragma_table_list WHERE schema = 'main' AND name = ?", [name]):
        return f"SELECT * FROM {quoted(name)}"
    statements = split(what)
    if len(statements) != 1 or not reads_only(statements[0].text):
        raise ValidationError(
            f"{what!r:.60} is neither a table or view nor one query.", remediation="Write SELECT, VALUES or WITH."
        )
    return statements[0].text


def export_to(path: str, given: str, delimiter: str | None) -> Style:
    """How to write a file.

    Args:
        path: The file; ``-`` is standard output.
        given: The format, ``auto`` = by the name of the file (CSV for standard output).
        delimiter: Between the fields of CSV; None = by the name of the file.

    Raises:
        ConfigurationError: The name does not tell the format.
    """
    if path == "-" and given == "auto":
        given = "csv"
    by_name = "\t" if path.lower().endswith(".tsv") else ","
    return Style(format=format_of(path, given, EXTENSIONS), delimiter=by_name if delimiter is None else delimiter)


def export_rows(
    session: Session,
    query: str,
    parameters: Parameters,
    target: OutputFile | TextIO,
    style: Style,
    progress: RowProgress,
) -> int:
    """Write what a query gives.

    Args:
        session: The session.
        query: The query.
        parameters: Its parameters.
        target: Where to; a file is not finished here.
        style: How.
        progress: Is told how far it is.

    Returns:
        The number of rows.

    Raises:
        SqlError and others: See ``Store.stream_sql``.
        OSError: It cannot be written.
    """
    out = target.text if isinstance(target, OutputFile) else target

    def passing(rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for count, row in enumerate(rows, 1):
            yield row
            if not count % _STEP:
                progress(count, target.size if isinstance(target, OutputFile) else 0)

    with session.run(query, parameters) as outcome:
        return write_rows(outcome.columns, passing(outcome.rows), out, style)
