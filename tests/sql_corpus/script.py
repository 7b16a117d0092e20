"""Reads the scripts of sqllogictest.

The format is described at https://www.sqlite.org/sqllogictest/doc/trunk/about.wiki.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Condition", "Halt", "Query", "Record", "ScriptError", "Statement", "parse", "read_script"]

_SORTS = frozenset({"nosort", "rowsort", "valuesort"})
_TYPES = re.compile("[TIR]+")


class ScriptError(ValueError):
    """A script is not of the format; the message names the line."""


@dataclass(frozen=True, slots=True)
class Condition:
    """``skipif`` or ``onlyif`` with the name of a database engine (in lower case)."""

    word: str
    engine: str

    def skips(self, engine: str) -> bool:
        """Whether the record is not for ``engine``."""
        return (self.engine == engine) == (self.word == "skipif")

    def __str__(self) -> str:
        return f"{self.word} {self.engine}"


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that must succeed, or fail.

    Attributes:
        line: Where it begins; the first line is 1.
        conditions: For which engines it is.
        sql: Its text.
        succeeds: Whether it must.
    """

    line: int
    conditions: tuple[Condition, ...]
    sql: str
    succeeds: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A query and what it must give.

    Attributes:
        line: Where it begins; the first line is 1.
        conditions: For which engines it is.
        sql: Its text.
        types: One letter for each column: T(ext), I(nteger) or R(eal).
        sort: ``nosort``, ``rowsort`` or ``valuesort``.
        label: Queries of one script with the same label have the same result; may be empty.
        expected: The lines of the result, or one line with its hash.
    """

    line: int
    conditions: tuple[Condition, ...]
    sql: str
    types: str
    sort: str
    label: str
    expected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """The script ends here."""

    line: int
    conditions: tuple[Condition, ...]


Record = Statement | Query | Halt


def read_script(path: Path) -> list[Record]:
    """The records of a script file.

    Raises:
        ScriptError: See :func:`parse`.
    """
    return list(parse(path.read_text(encoding="utf-8", errors="surrogateescape")))


def parse(text: str) -> Iterator[Record]:
    """Yield the records of a script.

    Raises:
        ScriptError: A line is not known.
    """
    # Not splitlines: only line feeds end lines here.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    conditions: list[Condition] = []
    at = 0
    while at < len(lines):
        line, words = at + 1, _words(lines[at])
        at += 1
        match words:
            case []:
                continue
            case ["hash-threshold", _]:
                # For those who write scripts: how long a result has to be for its hash to be written.
                continue
            case ["skipif" | "onlyif" as word, engine]:
                conditions.append(Condition(word, engine.lower()))
                continue
            case ["halt"]:
                yield Halt(line, tuple(conditions))
            case ["statement", "ok" | "error" as result]:
                block, at = _block(lines, at)
                yield Statement(line, tuple(conditions), "\n".join(block), result == "ok")
            case ["query", types, sort, *label] if len(label) < 2 and sort in _SORTS and _TYPES.fullmatch(types):
                block, at = _block(lines, at)
                cut = block.index("----") if "----" in block else len(block)
                yield Query(
                    line,
                    tuple(conditions),
                    "\n".join(block[:cut]),
                    types,
                    sort,
                    "".join(label),
                    tuple(block[cut + 1 :]),
                )
            case _:
                raise ScriptError(f"line {line} is not known: {lines[line - 1]!r}")
        conditions = []


def _words(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _block(lines: list[str], at: int) -> tuple[list[str], int]:
    """The lines from ``at`` to the next empty one, and where that is."""
    end = at
    while end < len(lines) and lines[end]:
        end += 1
    return lines[at:end], end
