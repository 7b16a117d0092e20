"""Type objects, constructors, and how values of Python become values of SQL."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from toondb_protocol.sql_values import SqlParameters

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "Date",
    "DateFromTicks",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "TypeObject",
    "adapted",
    "adapted_sets",
]

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime

_PLAIN: frozenset[type] = frozenset({type(None), int, float, str, bytes})


class TypeObject:
    """A type object of PEP 249, equal to the Python types whose values it stands for.

    A column of SQL holds values of any type, so the ``type_code`` of a description is always None.
    """

    def __init__(self, name: str, *types: type) -> None:
        self.name = name
        self._types = frozenset(types)

    def __eq__(self, other: object) -> bool:
        return other is self or other in self._types

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<TypeObject {self.name}>"


STRING = TypeObject("STRING", str)
BINARY = TypeObject("BINARY", bytes)
NUMBER = TypeObject("NUMBER", int, float)
DATETIME = TypeObject("DATETIME", datetime.date, datetime.time, datetime.datetime)
ROWID = TypeObject("ROWID", int)


def Binary(data: bytes | bytearray | memoryview) -> bytes:
    """A value for a BLOB."""
    # Through a view: bytes(5) would be five zeros.
    return bytes(memoryview(data))


def DateFromTicks(ticks: float) -> datetime.date:
    """The local date at a time given in seconds since the epoch."""
    return datetime.date.fromtimestamp(ticks)


def TimeFromTicks(ticks: float) -> datetime.time:
    """The local time of day at a time given in seconds since the epoch."""
    return datetime.datetime.fromtimestamp(ticks).time()


def TimestampFromTicks(ticks: float) -> datetime.datetime:
    """The local date and time at a time given in seconds since the epoch."""
    return datetime.datetime.fromtimestamp(ticks)


def _sql_value(value: object) -> object:
    # As the sqlite3 module of the standard library writes them, which SQLite's date functions read.
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value


def adapted(parameters: Any) -> Any:
    """Parameters of one statement, dates and times as text in ISO 8601."""
    if isinstance(parameters, (tuple, list)):
        if _PLAIN.issuperset(map(type, parameters)):
            return parameters
        return [_sql_value(value) for value in parameters]
    if isinstance(parameters, Mapping):
        return {name: _sql_value(value) for name, value in parameters.items()}
    return parameters


def adapted_sets(sets: Any) -> Any:
    """Parameters of many runs of a statement; see :func:`adapted`."""
    if isinstance(sets, (str, bytes, Mapping)) or not isinstance(sets, Iterable):
        return sets  # refused by the store, with a message
    return _each(sets)


def _each(sets: Iterable[Any]) -> list[SqlParameters]:
    return [adapted(parameters) for parameters in sets]
