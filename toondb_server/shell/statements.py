"""Cutting text into SQL statements and dot commands, and what kind of statement one is."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from toondb_protocol.errors import SqlError

__all__ = ["Control", "Statement", "StatementReader", "control_of", "first_word", "reads_only", "split"]

_MAX_STATEMENT = 64 * 1024 * 1024
_BLANK = re.compile(r"(?:[\s;]|--[^\n]*|/\*.*?(?:\*/|\Z))*", re.DOTALL)
_SPACE = re.compile(r"(?:\s|--[^\n]*|/\*.*?(?:\*/|\Z))+", re.DOTALL)
_OPENS = re.compile(r"['\"`\[;]|--|/\*")
_CLOSED_BY = {"'": "'", '"': '"', "`": "`", "[": "]", "--": "\n", "/*": "*/"}
_LITERAL = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
_WRITES = re.compile(r"\b(?:insert|update|delete|replace\s+into)\b", re.IGNORECASE)
_LONGEST_CONTROL = 200


class Statement(NamedTuple):
    """One statement, or one dot command.

    Attributes:
        text: It, without what is before it.
        line: The line on which it begins, from 1.
    """

    text: str
    line: int

    @property
    def is_command(self) -> bool:
        """Whether it is a dot command."""
        return self.text.startswith(".")


class StatementReader:
    """Cuts text, which is fed in whole lines, into statements.

    A statement ends with a ``;`` that is in no literal, comment or trigger; a dot command with its line.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._line = 1
        self._pending = False
        # How far what is here was looked through.
        self._seen = 0

    @property
    def pending(self) -> bool:
        """Whether a statement has begun and not ended."""
        return self._pending

    def feed(self, text: str) -> Iterator[Statement]:
        """Take more text; yields the statements that it completes.

        Raises:
            SqlError: A statement is far too long, as after a quote that nobody closed.
        """
        self._parts.append(text)
        self._size += len(text)
        if self._size > _MAX_STATEMENT:
            self._check_size()
        # Most lines of a long statement cannot end it.
        if ";" in text or not self._pending:
            yield from self._cut()

    def rest(self) -> Statement | None:
        """What is left at the end of the text, which needs no ``;``. The reader is empty after it."""
        text = self._joined()
        start = _skipped(text)
        line = self._line + text.count("\n", 0, start)
        self.clear()
        return Statement(text[start:].rstrip(), line) if start < len(text) else None

    def clear(self) -> None:
        """Forget what was begun."""
        self._line += self._joined().count("\n")
        self._keep("", 0)

    def _keep(self, text: str, seen: int) -> None:
        self._parts, self._size, self._seen = [text], len(text), seen
        self._pending = _skipped(text) < len(text)

    def _joined(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def _check_size(self) -> None:
        text = self._joined()
        line = self._line + text.count("\n", 0, _skipped(text))
        raise SqlError(
            f"the statement that begins on line {line} is longer than {_MAX_STATEMENT >> 20} MiB.",
            remediation="Look for a quote or a comment that is not closed.",
        )

    def _cut(self) -> Iterator[Statement]:
        text = self._joined()
        done, seen = 0, self._seen
        try:
            while True:
                start = _skipped(text, done)
                if text.startswith(".", start):  # as no statement of SQL does
                    end = text.find("\n", start)
                else:
                    end, seen = _end_of_statement(text, start, max(start, seen))
                if end < 0:
                    return
                line = self._line + text.count("\n", done, start)
                self._line += text.count("\n", done, end)
                done = end
                yield Statement(text[start:end].rstrip(), line)
        finally:
            # Also where the caller gives up in between: what was yielded never comes again.
            self._keep(text[done:], max(0, seen - done))


def _skipped(text: str, at: int = 0) -> int:
    """Where the first statement begins at ``at`` or after it."""
    found = _BLANK.match(text, at)
    assert found is not None  # it also matches nothing
    return found.end()


def _end_of_statement(text: str, start: int, at: int) -> tuple[int, int]:
    """Where the statement ends that begins at ``start``, -1 = nowhere yet; and how far that is certain.

    Nothing before ``at`` ends it.
    """
    while True:
        found = _OPENS.search(text, at)
        if found is None:
            return -1, len(text)
        opened = found[0]
        if opened == ";":
            at = found.end()
            statement = text[start:at]
            # SQLite knows where a trigger ends. A NUL, which it cannot be given, is refused when it is run.
            if "\0" in statement or sqlite3.complete_statement(statement):
                return at, at
            continue
        closing = _CLOSED_BY[opened]
        end = text.find(closing, found.end())
        if end < 0:
            return -1, found.start()
        at = end + len(closing)


def split(text: str) -> list[Statement]:
    """All statements and dot commands of a text; the last one needs no ``;``."""
    reader = StatementReader()
    found: list[Statement] = []
    for line in text.splitlines(keepends=True) if "\n" in text else [text]:
        found += reader.feed(line)
    rest = reader.rest()
    return [*found, rest] if rest is not None else found


class Control(Enum):
    """Statements that begin and end transactions."""

    BEGIN = "BEGIN"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"


_CONTROLS = {
    Control.BEGIN: re.compile(r"begin( (deferred|immediate|exclusive))?( transaction)?|start transaction"),
    Control.COMMIT: re.compile(r"(commit|end)( transaction)?"),
    Control.ROLLBACK: re.compile(r"rollback( transaction)?"),
}


def control_of(text: str) -> Control | None:
    """Which statement of transactions this is, if it is one; ``ROLLBACK TO`` is not."""
    if len(text) > _LONGEST_CONTROL:
        return None
    words = _SPACE.sub(" ", text).replace(";", " ").strip().lower()
    return next((control for control, pattern in _CONTROLS.items() if pattern.fullmatch(words)), None)


def first_word(text: str) -> str:
    """The first word of a statement, in lower case."""
    found = _WORD.match(text, _skipped(text))
    return found[0].lower() if found else ""


def reads_only(text: str) -> bool:
    """Whether a statement certainly is a query, whose rows may be read one by one."""
    word = first_word(text)
    if word in ("select", "values"):
        return True
    return word == "with" and not _WRITES.search(_LITERAL.sub(" ", text))
