"""How values look: as cells of a table, in CSV and in JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from math import isinf
from typing import Any

__all__ = ["BASE64_KEY", "csv_cells", "cut", "json_row", "shown", "width_of"]

BASE64_KEY = "$base64"
"""The key of the JSON object that stands for a blob."""

_INFINITY = "9e999"  # SQLite and JSON readers alike read it as infinity
_ELLIPSIS = "…"
# Control characters, and those that turn the direction of what follows: a value must not steer the terminal.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(value: Any, null: str, limit: int | None = None) -> str:
    """A value as a cell on one line.

    Args:
        value: What a column holds; a blob is shown as a SQL literal, ``x'0aff'``.
        null: How NULL looks.
        limit: Where the cell is going to be cut, as far as that is known.
    """
    if value is None:
        return null
    if isinstance(value, bytes):
        return blob_literal(value if limit is None else value[:limit])
    text = str(value)
    return _UNSAFE.sub(_escaped, text) if not text.isalnum() and _UNSAFE.search(text) else text


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def blob_literal(value: bytes) -> str:
    """A blob as SQL writes it."""
    return f"x'{value.hex()}'"


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.east_asian_width(character) in "WF":
        return 2
    return 0 if unicodedata.category(character) in ("Mn", "Me", "Cf") else 1


def cut(text: str, width: int) -> str:
    """A text of ``width`` columns at the most, with an ellipsis where something is missing."""
    if width_of(text) <= width:
        return text
    used, kept = 1, []
    for character in text:
        used += _width(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept) + _ELLIPSIS


# JSON


def _blob_object(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {BASE64_KEY: b2a_base64(value, newline=False).decode()}
    raise TypeError(f"{type(value).__name__} is not a value of a column")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, default=_blob_object).encode


def json_row(row: Mapping[str, Any]) -> str:
    """A row as a JSON object: a blob is ``{"$base64": "..."}``, an infinity ``9e999``."""
    try:
        return _encode(row)
    except ValueError:
        cells = (f"{_encode(name)}: {_encode_number(value)}" for name, value in row.items())
        return f"{{{', '.join(cells)}}}"


def _encode_number(value: Any) -> str:
    if isinstance(value, float) and isinf(value):
        return _INFINITY if value > 0 else f"-{_INFINITY}"
    return _encode(value)


# CSV


def csv_cells(delimiter: str, null: str) -> Callable[[Any], str]:
    """A function that writes a value as a field of CSV (RFC 4180).

    NULL is ``null`` without quotes; a text that looks the same, and so the empty text, is quoted.
    """
    special = re.compile(f'["\r\n{re.escape(delimiter)}]').search

    def cell(value: Any) -> str:
        if value is None:
            return null
        if isinstance(value, str):
            if value == null or value == "" or special(value):
                return '"' + value.replace('"', '""') + '"'
            return value
        if isinstance(value, bytes):
            return blob_literal(value)
        text = str(value)
        if text in ("inf", "-inf"):
            text = text.replace("inf", _INFINITY)
        return f'"{text}"' if text == null or delimiter in text else text

    return cell
