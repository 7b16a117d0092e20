"""Parameters of SQL statements: what callers pass, the same in every mode."""

from __future__ import annotations

import numbers
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from .arguments import shown, text
from .errors import SqlError, ValidationError

__all__ = [
    "BAD_VALUES",
    "ParameterSets",
    "SqlParameters",
    "SqlValue",
    "given_parameters",
    "given_sql",
    "only_reads",
    "parameter_sets",
]

SqlValue: TypeAlias = int | float | str | bytes | None
"""What a column holds: NULL, INTEGER, REAL, TEXT or BLOB."""

SqlParameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None
"""Values for the parameters of a statement: a sequence for ``?``, a mapping for ``:name``."""

BAD_VALUES = "Values are None, int, float, str and bytes; ? takes a sequence, :name a mapping."
"""What to do about values that do not fit the parameters of a statement."""

_PLAIN: frozenset[type] = frozenset({type(None), int, float, str, bytes})


def given_sql(sql: str) -> str:
    """A statement, or several, as text.

    Raises:
        ValidationError: It is not text, or has a NUL.
        SqlError: It is empty.
    """
    given = text("a SQL statement", sql)
    if "\0" in given:
        raise ValidationError("a SQL statement must not contain NUL.")
    if not given.strip(" \t\r\n;"):
        raise SqlError("the SQL statement is empty.")
    return given


_READS = re.compile(r"\s*(?:select|values|explain)\b", re.IGNORECASE)
_WITH = re.compile(r"\s*with\b", re.IGNORECASE)
_WRITES = re.compile(r"\b(?:insert|replace|update|delete)\b", re.IGNORECASE)


def only_reads(sql: str) -> bool:
    """Whether a statement certainly changes nothing; of others it may be so as well."""
    return _READS.match(sql) is not None or (_WITH.match(sql) is not None and _WRITES.search(sql) is None)


def given_parameters(parameters: SqlParameters) -> list[SqlValue] | dict[str, SqlValue] | None:
    """The values of one statement.

    ``bool`` becomes 0 or 1, other numbers (of NumPy, for example) int or float, and other buffers bytes.

    Raises:
        ValidationError: They are neither a sequence nor a mapping, or one of them is of another type.
    """
    if parameters is None:
        return None
    if type(parameters) is tuple or type(parameters) is list:
        if _PLAIN.issuperset(map(type, parameters)):
            return parameters if type(parameters) is list else list(parameters)
        return [_value(value, at) for at, value in enumerate(parameters, 1)]
    if isinstance(parameters, Mapping):
        for name in parameters:
            if not isinstance(name, str):
                raise ValidationError(f"a parameter has the name {shown(name)}, which is not text.")
            if not name.isascii() and name.encode(errors="replace").decode() != name:
                raise ValidationError(f"a parameter has the name {shown(name)}, which is not valid Unicode text.")
        return {name: _value(value, name) for name, value in parameters.items()}
    if isinstance(parameters, (str, bytes, bytearray, memoryview)) or not isinstance(parameters, Sequence):
        raise ValidationError(
            f"the parameters of a statement are a list, a tuple or a mapping, got {shown(parameters)}.",
            remediation="One value alone is given as [value].",
        )
    return [_value(value, at) for at, value in enumerate(parameters, 1)]


def _value(value: object, where: object) -> SqlValue:
    kind = type(value)
    if kind in _PLAIN:
        return value  # type: ignore[return-value]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    if isinstance(value, numbers.Integral) or kind.__name__ == "bool":
        return int(operator.index(value)) if hasattr(value, "__index__") else int(bool(value))
    if isinstance(value, numbers.Real) and hasattr(value, "__float__"):
        return float(value)
    raise ValidationError(
        f"parameter {where} is of type {kind.__name__}, which no column holds.",
        remediation="Values are None, int, float, str and bytes; a date, for example, as date.isoformat().",
    )


@dataclass(frozen=True, slots=True)
class ParameterSets:
    """The values for many runs of one statement; iterating gives those of each run, any number of times.

    Attributes:
        names: The names of the parameters, None when they go by position.
        width: How many values each run has.
        flat: All values, one run after the other.
        runs: How many runs.
    """

    names: list[str] | None
    width: int
    flat: list[SqlValue]
    runs: int

    def __iter__(self) -> Iterator[Sequence[SqlValue] | dict[str, SqlValue]]:
        if not self.width:
            return iter([()] * self.runs)
        rows = zip(*[iter(self.flat)] * self.width, strict=True)
        names = self.names
        return rows if names is None else (dict(zip(names, row, strict=True)) for row in rows)


def parameter_sets(sequence: Iterable[SqlParameters]) -> ParameterSets:
    """The values for many runs of one statement.

    Args:
        sequence: Sequences of the same length, or mappings with the same names.

    Raises:
        ValidationError: They do not fit together, or one of the values is of another type.
    """
    if isinstance(sequence, (str, bytes, Mapping)) or not isinstance(sequence, Iterable):
        raise ValidationError(f"executemany takes an iterable of sequences or mappings, got {shown(sequence)}.")
    sets = list(sequence)
    if not sets:
        return ParameterSets(None, 0, [], 0)
    kinds = set(map(type, sets))
    names: list[str] | None = None
    if isinstance(sets[0], Mapping):
        names = list(sets[0])
        expected = set(names)
        rows: list[Any] = []
        for at, mapping in enumerate(sets, 1):
            if not isinstance(mapping, Mapping) or mapping.keys() != expected:
                raise ValidationError(f"the parameters of run {at} have other names than those of the first run.")
            rows.append([mapping[name] for name in names])
        given_parameters(sets[0])  # their names
    elif kinds <= {tuple, list}:
        rows = sets
    else:
        rows = [given_parameters(row) for row in sets]
        if not all(isinstance(row, list) for row in rows):
            raise ValidationError("executemany takes sequences or mappings, not both, and none of them is None.")
    widths = set(map(len, rows))
    if len(widths) > 1:
        width = len(rows[0])
        at = next(at for at, row in enumerate(rows, 1) if len(row) != width)
        raise ValidationError(f"run {at} has {len(rows[at - 1])} parameters, the first one has {width}.")
    width = widths.pop()
    flat = list(chain.from_iterable(rows))
    if not _PLAIN.issuperset(map(type, flat)):
        flat = [
            _value(value, f"{names[at % width] if names else at % width + 1} of run {at // width + 1}")
            for at, value in enumerate(flat)
        ]
    return ParameterSets(names, width, flat, len(rows))
