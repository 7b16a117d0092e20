"""Writing the rows of a statement: as a table, lines, JSON, JSON lines, CSV or TOON."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO, TypeAlias

from .cells import csv_cells, cut, json_row, shown, width_of

__all__ = ["FORMATS", "Style", "write_rows"]

Rows: TypeAlias = Iterator[Mapping[str, Any]]

_ROWS_FOR_WIDTHS = 1000
_NARROWEST = 6
_IN_MEMORY = 8 * 1024 * 1024
_COPY = 1024 * 1024
_TOON_NAME = "result"


@dataclass(slots=True)
class Style:
    """How rows are written.

    Args:
        format: One of :data:`FORMATS`.
        headers: Begin a table or CSV with the names of the columns.
        null: How NULL is written in a table, in lines and in CSV; None = ``NULL``, and in CSV nothing.
        delimiter: Between the fields of CSV.
        footer: End a table with the number of rows.
    """

    format: str = "table"
    headers: bool = True
    null: str | None = None
    delimiter: str = ","
    footer: bool = True

    @property
    def shown_null(self) -> str:
        """NULL for people."""
        return "NULL" if self.null is None else self.null


def write_rows(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    """Write the rows of one statement, in memory that does not grow with their number.

    Args:
        columns: Names of the columns.
        rows: The rows, read as they are written.
        out: A text stream that translates no ends of lines.
        style: How.

    Returns:
        How many rows there were.
    """
    return FORMATS[style.format](columns, rows, out, style)


# For people


def _write_table(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    null = style.shown_null
    terminal = shutil.get_terminal_size().columns if out.isatty() else None
    first = list(islice(rows, _ROWS_FOR_WIDTHS))
    names = [shown(name, null) for name in columns]
    cells = [[shown(value, null, terminal) for value in row.values()] for row in first]
    widths = [
        max(map(width_of, column)) for column in zip(names if style.headers else [""] * len(names), *cells, strict=True)
    ]
    if terminal is not None:
        widths = _fitted(widths, terminal - 3 * len(widths) + 1)
    numeric = [
        all(isinstance(value, int | float | None) for value in column)
        for column in zip(*(row.values() for row in first), strict=True)
    ] or [False] * len(columns)

    def line(texts: list[str]) -> str:
        if terminal is not None:
            texts = [cut(text, width) for text, width in zip(texts, widths, strict=True)]
        padded = (
            " " * (width - width_of(text)) + text if right else text + " " * (width - width_of(text))
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return " " + " | ".join(padded).rstrip() + "\n"

    if style.headers:
        out.write(line(names))
        out.write("-" + "-+-".join("-" * width for width in widths) + "-\n")
    count = len(cells)
    for row in cells:
        out.write(line(row))
    for values in rows:
        out.write(line([shown(value, null, terminal) for value in values.values()]))
        count += 1
    if style.footer:
        out.write(f"({count} row{'' if count == 1 else 's'})\n")
    return count


def _fitted(widths: list[int], room: int) -> list[int]:
    """Widths that fit, the widest made narrower first; none below the least that still says something."""
    if sum(widths) <= room:
        return widths
    low, high = _NARROWEST, max(widths)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(width, middle) for width in widths) <= room:
            low = middle
        else:
            high = middle - 1
    return [min(width, low) for width in widths]


def _write_lines(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    names = [shown(name, "") for name in columns]
    width = max(map(width_of, names), default=0)
    heads = [" " * (width - width_of(name)) + name for name in names]
    count = 0
    for row in rows:
        if count:
            out.write("\n")
        count += 1
        for head, value in zip(heads, row.values(), strict=True):
            out.write(f"{head} = {shown(value, style.shown_null)}\n")
    return count


# For programs


def _write_json(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    count = 0
    out.write("[")
    for row in rows:
        out.write(f",\n{json_row(row)}" if count else json_row(row))
        count += 1
    out.write("]\n")
    return count


def _write_json_lines(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    count = 0
    for row in rows:
        out.write(f"{json_row(row)}\n")
        count += 1
    return count


def _write_csv(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    cell = csv_cells(style.delimiter, style.null or "")
    count = 0
    if style.headers:
        out.write(style.delimiter.join(map(cell, columns)) + "\r\n")
    for row in rows:
        out.write(style.delimiter.join(map(cell, row.values())) + "\r\n")
        count += 1
    return count


def _write_toon(columns: list[str], rows: Rows, out: TextIO, style: Style) -> int:
    from toondb.toon import encode_header, encode_row

    # The text begins with the number of rows: they wait in a file when they are many.
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8", newline="") as waiting:
        count = 0
        for row in rows:
            waiting.write(f";{encode_row(row.values())}" if count else encode_row(row.values()))
            count += 1
        out.write(encode_header(_TOON_NAME, count, columns))
        waiting.seek(0)
        while part := waiting.read(_COPY):
            out.write(part)
    out.write("\n")
    return count


FORMATS: dict[str, Callable[[list[str], Rows, TextIO, Style], int]] = {
    "table": _write_table,
    "line": _write_lines,
    "json": _write_json,
    "jsonl": _write_json_lines,
    "csv": _write_csv,
    "toon": _write_toon,
}
"""The formats by name."""
