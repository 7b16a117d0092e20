"""The published TOON format (https://toonformat.dev, specification 4.x) as a second dialect of a table.

A table is a document whose root has one key, the table's name; this is how ``to_toon(..., dialect="spec")`` writes it::

    users[2]{id,name}:
      1,Alice
      2,Bob

Texts are written and read by the format's official Python library, ``toon-format`` (an optional extra, imported when
it is first used). The format has the data model of JSON, and the library turns what JSON has not into something
else: NaN into null, a date into text, 1.0 into 1. Here a table is written only when reading gives the same table
back, types included; everything else is refused with the field's name. See ``docs/toon.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from types import ModuleType
from typing import Any, Final, NamedTuple, NoReturn

from toondb.toon import (
    _LARGE,
    MAX_NESTING,
    MISSING,
    ToonSyntaxError,
    _CannotEncodeError,
    _encodable,
    _shown,
    _union_of_fields,
)
from toondb_protocol.errors import UnsupportedFeatureError, ValidationError

__all__ = ["read_document", "write_document"]

_ALL_DIGITS: Final = 1e21  # below it the format writes a whole float with all its digits, which reads as an int
_find_surrogate: Final = re.compile(r"[\ud800-\udfff]").search
_EXPECTED: Final = "one table, like users[2]{id,name}: and its rows"
_REMEDIATION: Final = 'Convert the value first, for example with str() or int(), or use dialect="classic".'


class _Library(NamedTuple):
    dumps: Callable[[Any], str]
    loads: Callable[[str], Any]


def _library() -> _Library:
    remediation = "pip install 'toondb-client[toon]'"
    try:
        import toon_format
    except ImportError:
        raise UnsupportedFeatureError(
            'dialect="spec" needs the package toon-format, which is not installed.', remediation=remediation
        ) from None
    module: ModuleType = toon_format
    try:
        return _Library(module.dumps, module.loads)
    except AttributeError:
        raise UnsupportedFeatureError(
            'dialect="spec" needs a newer version of the package toon-format.', remediation=remediation
        ) from None


# --- Writing ----------------------------------------------------------------------------------------------


def write_document(table: str, rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Write a table in the published format, without a line break at the end.

    Args:
        table: Name of the table, any text.
        rows: The records; fields that are not named in ``fields`` are left out.
        fields: The field names, all different, in the order in which :func:`read_document` shall give them.

    Raises:
        ValidationError: The format cannot carry a value, a name, or the fields as they are; or reading the text
            did not give the table back.
        UnsupportedFeatureError: The package ``toon-format`` is not installed.
    """
    library = _library()
    names = [_plain_name(name, "The name of a field") for name in fields]
    plain = {_plain_name(table, "The table name"): [_plain_record(at, row, names) for at, row in enumerate(rows)]}
    (records,) = plain.values()
    _check_fields(names, records)
    try:
        text = library.dumps(plain)
        back = library.loads(text)
        if _same(plain, back):
            return text
    except RecursionError:
        reason = "there was not enough stack left to write it"
    except (ValueError, TypeError) as error:
        reason = f"toon-format could not write or read it: {_cut(str(error))}"
    else:
        reason = f"toon-format reads back something else in {_difference(plain, back)}"
    # The checks above know of no table that comes here: this is for the defects of some other version of the library.
    raise ValidationError(
        f"The table cannot be written in the published TOON format: {reason}.",
        remediation='Use dialect="classic".',
    )


def _plain_name(name: str, what: str) -> str:
    name = str.__str__(name)  # a StrEnum member gives its value
    if _find_surrogate(name):
        raise ValidationError(
            f"{what}, {_shown(name)}, holds a lone surrogate, which the published TOON format cannot carry.",
            remediation='Rename it, or use dialect="classic".',
            details={"field": _encodable(name)},
        )
    return name


def _plain_record(index: int, record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    name = ""
    try:
        for name in names:
            value = record.get(name, MISSING)
            if value is not MISSING:
                plain[name] = _plain(value, 1)
    except _CannotEncodeError as error:
        reason, kind = error.reason, error.kind
    except RecursionError:
        reason, kind = "is nested too deep for the stack that is left", type(record[name])
    else:
        return plain
    raise ValidationError(
        f"Field {_shown(name)} of record {index} {reason}.",
        remediation=_REMEDIATION,
        details={"record": index, "field": _encodable(name), "type": kind.__name__},
    )


def _plain(value: Any, depth: int) -> Any:
    """A copy of exact types: base types instead of subclasses, lists instead of tuples. Refuses what would change."""
    kind = type(value)
    if kind is bool or value is None:
        return value
    if isinstance(value, str):
        if _find_surrogate(value):
            raise _CannotEncodeError(
                "holds text with a lone surrogate, which the published TOON format cannot carry", kind
            )
        return str.__str__(value)
    if isinstance(value, int):
        if not -_LARGE < value < _LARGE:
            raise _CannotEncodeError(
                "holds an int of more than 600 digits, too large for the published TOON format", kind
            )
        return int.__int__(value)
    if isinstance(value, float):
        return _plain_float(float.__float__(value), kind)
    if not isinstance(value, (dict, list, tuple)):
        raise _CannotEncodeError(
            f"holds a value of type {kind.__name__}, which the published TOON format cannot carry", kind
        )
    if depth > MAX_NESTING:
        raise _CannotEncodeError(f"is nested more than {MAX_NESTING} deep, or contains itself", kind)
    if not isinstance(value, dict):
        return [_plain(item, depth + 1) for item in value]
    plain: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            wrong = type(key)
            raise _CannotEncodeError(
                f"holds a dict with a key of type {wrong.__name__}, only str keys can be kept", wrong
            )
        plain[_plain(key, depth)] = _plain(item, depth + 1)
    return plain


def _plain_float(value: float, kind: type) -> float:
    if not isfinite(value):
        raise _CannotEncodeError(f"holds {value!r}, and the published TOON format would write null", kind)
    if value.is_integer() and abs(value) < _ALL_DIGITS:
        raise _CannotEncodeError(
            f"holds the float {value!r}, which the published TOON format writes as {int(value)}: it would come back "
            "as an int",
            kind,
        )
    return value


def _check_fields(names: list[str], records: list[dict[str, Any]]) -> None:
    """The format has no list of fields apart from the records: what they do not show does not come back."""
    shown = _union_of_fields(records)
    if shown == names:
        return
    absent = next((name for name in names if name not in shown), None)
    if absent is not None:
        name, reason = absent, "is in no record, and the published TOON format names no field apart from its values"
    else:
        name = next(name for name, other in zip(names, shown, strict=True) if name != other)
        reason = "is absent from the first records, so the published TOON format would not keep the order of the fields"
    raise ValidationError(
        f"Field {_shown(name)} {reason}.",
        remediation='Give every record a value for it (None), leave fields out, or use dialect="classic".',
        details={"field": _encodable(name)},
    )


def _same(sent: Any, back: Any) -> bool:
    """Equal in value and in type, all the way down; the order of a dict's keys does not count."""
    kind = type(sent)
    if kind is not type(back):
        return False
    if kind is dict:
        return sent.keys() == back.keys() and all(_same(item, back[key]) for key, item in sent.items())
    if kind is list:
        return len(sent) == len(back) and all(map(_same, sent, back))
    return bool(sent == back)


def _difference(sent: dict[str, list[dict[str, Any]]], back: Any) -> str:
    """Where a table was not read back: the record and field, as far as that can be told."""
    ((table, records),) = sent.items()
    read = back.get(table) if isinstance(back, dict) else None
    if isinstance(read, list) and len(read) == len(records):
        for index, (record, other) in enumerate(zip(records, read, strict=True)):
            if not isinstance(other, dict):
                return f"record {index}"
            for name, value in record.items():
                if name not in other or not _same(value, other[name]):
                    return f"field {_shown(name)} of record {index}"
    return "its table"


# --- Reading ----------------------------------------------------------------------------------------------


def read_document(text: str) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Read a table in the published format; see :func:`toondb.toon.from_toon`.

    Raises:
        ToonSyntaxError: The text is not TOON, or not one table of records. ``position`` is the start of the line.
        UnsupportedFeatureError: The package ``toon-format`` is not installed.
    """
    library = _library()
    surrogate = _find_surrogate(text)
    if surrogate is not None:
        _fail(text, surrogate.start(), "text without lone surrogates", "cannot be encoded as UTF-8")
    try:
        root = library.loads(text)
    except RecursionError:
        _fail(text, 0, _EXPECTED, "it is nested too deep")
    except ValueError as error:  # also of the number of rows in brackets, when it is too large for an int
        line = getattr(error, "line", None)
        _fail(text, _start_of_line(text, line), None, _cut(str(getattr(error, "msg", error))))
    if not isinstance(root, dict) or len(root) != 1:
        _fail(text, 0, _EXPECTED, "the root is no object of one key")
    ((table, records),) = root.items()
    if not isinstance(records, list):
        _fail(text, 0, _EXPECTED, f"the value of {_shown(table)} is no array")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            _fail(text, 0, _EXPECTED, f"record {index} is no object")
    return table, _union_of_fields(records), records


def _fail(text: str, position: int, expected: str | None, problem: str) -> NoReturn:
    line = text.count("\n", 0, position) + 1
    wanted = "" if expected is None else f" expected {expected};"
    raise ToonSyntaxError(
        f"Not TOON of the published format, line {line} at position {position}:{wanted} {problem}.",
        details={"position": position, "line": line} | ({} if expected is None else {"expected": expected}),
    )


def _start_of_line(text: str, line: Any) -> int:
    position = 0
    for _ in range(line - 1 if isinstance(line, int) else 0):
        position = text.find("\n", position) + 1
    return position


def _cut(text: str) -> str:
    """A message of the library without its end, fit to be sent: it may quote a line of any length."""
    text = _encodable(text).rstrip(".")
    return text if len(text) <= 200 else text[:200] + "…"
