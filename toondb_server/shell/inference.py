"""The types of the columns of a new table, from the values that it is going to hold."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["TextColumn", "ValueColumn", "number_of"]

# A number that is written as SQLite would write it back: leading zeros and a plus are part of a text.
_INTEGER = re.compile(r"-?[1-9][0-9]{0,18}|0").fullmatch
_REAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?").fullmatch
_LARGEST = 1 << 63
_EXACT = 1 << 53


def number_of(text: str) -> int | float | str:
    """A text as the number that it is, when it is written like one."""
    if _INTEGER(text) and -_LARGEST <= int(text) < _LARGEST:
        return int(text)
    if _REAL(text) and not text.lstrip("-").isdigit():
        return float(text)
    return text


class TextColumn:
    """A column of CSV: ``INTEGER`` where all values are whole numbers, else ``REAL`` where all are numbers."""

    def __init__(self) -> None:
        self._kind = ""
        self._exact = True

    def see(self, text: str | None) -> None:
        """Take a value into account; None is NULL."""
        if text is None or self._kind == "TEXT":
            return
        value = number_of(text)
        if isinstance(value, str):
            self._kind = "TEXT"
        elif isinstance(value, int):
            self._kind = self._kind or "INTEGER"
            self._exact = self._exact and -_EXACT <= value <= _EXACT
        else:
            self._kind = "REAL"

    @property
    def declared(self) -> str:
        """The type to declare."""
        # A float would drop digits of such integers.
        if self._kind == "REAL" and not self._exact:
            return "TEXT"
        return self._kind or "TEXT"


_KINDS = {int: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB"}


class ValueColumn:
    """A column of JSON: the type that all its values have; no type for several, which SQLite keeps as they are."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()
        self._exact = True

    def see(self, value: Any) -> None:
        """Take a value into account; None is NULL."""
        if value is not None:
            self._kinds.add(_KINDS[type(value)])
            if type(value) is int and not -_EXACT <= value <= _EXACT:
                self._exact = False

    @property
    def declared(self) -> str:
        """The type to declare."""
        if self._kinds == {"INTEGER", "REAL"}:
            return "REAL" if self._exact else ""
        return next(iter(self._kinds)) if len(self._kinds) == 1 else "" if self._kinds else "TEXT"
