"""Statements that were run before: what they are need not be asked again."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["LONGEST_QUICK_TEXT", "KnownStatements", "changes_rows", "is_comment", "unique_names"]

_COMMENT = re.compile(r"\s+|;|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)", re.DOTALL)
_LEADING = re.compile(rf"(?:{_COMMENT.pattern})*", re.DOTALL)
_CHANGES_ROWS = re.compile(r"(?:insert|update|delete|replace|with)\b", re.IGNORECASE)
_MOST = 512
_MOST_QUICK_LOOKS = 40
LONGEST_QUICK_TEXT = 4096
"""Characters of a statement that may be tried as a short read."""


class _Known(NamedTuple):
    """What is known of a statement that was run before."""

    readonly: bool
    columns: list[str]
    quick: bool


class KnownStatements(dict[str, _Known]):
    """What is known of statements, by their text; few enough of them are kept."""

    def learn(self, text: str, columns: list[str], *, readonly: bool, quick: bool, looks: int) -> None:
        """Remember what a statement is.

        Args:
            text: The statement.
            columns: Names of its columns.
            readonly: It writes nothing.
            quick: It does nothing that takes long in one step of SQLite's virtual machine.
            looks: How often the policy was asked about it.
        """
        if len(self) >= _MOST:
            self.clear()
        quick = readonly and quick and looks <= _MOST_QUICK_LOOKS and len(text) <= LONGEST_QUICK_TEXT
        self[text] = _Known(readonly, columns, quick)


def is_comment(text: str) -> bool:
    """Whether there is no statement in a text."""
    return not _COMMENT.sub("", text)


def changes_rows(text: str) -> bool:
    """Whether a statement that writes changes rows, and not the schema."""
    begin = _LEADING.match(text)
    return _CHANGES_ROWS.match(text, begin.end() if begin else 0) is not None


def unique_names(names: list[str]) -> list[str]:
    """Names of columns as keys of a row: the second ``id`` is ``id:1``, as SQLite names it in a view."""
    if len(set(names)) == len(names):
        return names
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    out: list[str] = []
    for name in names:
        given, number = name, numbers.get(name, 0)
        while given in taken:
            number += 1
            given = f"{name}:{number}"
        # Not counted again: two thousand columns of one name would take a second.
        numbers[name] = number
        taken.add(given)
        out.append(given)
    return out
