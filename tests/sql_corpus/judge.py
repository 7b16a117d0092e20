"""Whether what an engine gave is what a script says.

The texts, sorts and hashes are those of sqllogictest's own program, so that its results can be compared.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .script import Query

__all__ = ["judge", "result_lines"]

_HASH = re.compile(r"(\d+) values hashing to ([0-9a-f]{32})")
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)")
_LEADING_REAL = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_SHOWN = 8


def judge(query: Query, rows: list[tuple[Any, ...]]) -> str:
    """What is wrong with the rows of a query; empty when nothing is."""
    for row in rows:
        if len(row) != len(query.types):
            return f"{len(row)} columns instead of {len(query.types)}"
    lines = result_lines(query, rows)
    expected = list(query.expected)
    if len(expected) == 1 and (hashed := _HASH.fullmatch(expected[0])):
        number, digest = int(hashed[1]), hashed[2]
        if len(lines) != number:
            return f"{len(lines)} values instead of {number}"
        if _digest(lines) != digest:
            return f"values hashing to {_digest(lines)} instead of {digest}: {_show(lines)}"
        return ""
    return "" if lines == expected else f"{_show(lines)} instead of {_show(expected)}"


def result_lines(query: Query, rows: list[tuple[Any, ...]]) -> list[str]:
    """The values of the rows as text, one for each line, in the order that the query is compared in."""
    texts = [[_text(value, type_) for value, type_ in zip(row, query.types, strict=True)] for row in rows]
    if query.sort == "rowsort":
        texts.sort()
    lines = [text for row in texts for text in row]
    if query.sort == "valuesort":
        lines.sort()
    return lines


def _text(value: Any, type_: str) -> str:
    if value is None:
        return "NULL"
    if type_ == "I":
        return str(_integer(value))
    if type_ == "R":
        return f"{_real(value):.3f}"
    text = _shown(value)
    if not text:
        return "(empty)"
    return "".join(char if " " <= char <= "~" else "@" for char in text)


def _integer(value: Any) -> int:
    """As ``sqlite3_column_int64``: numbers are cut, texts give the digits that they begin with."""
    if isinstance(value, int | float):
        return int(value)
    found = _LEADING_INTEGER.match(_shown(value))
    return int(found[1]) if found else 0


def _real(value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    found = _LEADING_REAL.match(_shown(value))
    return float(found[1]) if found else 0.0


def _shown(value: Any) -> str:
    """As ``sqlite3_column_text``; bytes one character each."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, float):
        text = f"{value:.15g}"
        return text if any(char in text for char in ".ein") else f"{text}.0"
    return str(value)


def _digest(lines: list[str]) -> str:
    return hashlib.md5("".join(f"{line}\n" for line in lines).encode(), usedforsecurity=False).hexdigest()


def _show(lines: list[str]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{lines[:_SHOWN]}{more}"
