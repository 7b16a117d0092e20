"""TOON, text for a table of records: the classic notation in one line, and by ``dialect`` the published format.

::

    users[2]{name,email}:Alice,alice@example.com;Bob,bob@example.com

The line gives the table name, the number of rows, the field names and then the rows, ``;`` between rows
and ``,`` between cells. Text that would be read as something else is quoted, and values keep their types,
so ``from_toon(to_toon(...))`` gives back what went in. The notation comes from ToonDB's user guides; what
they leave open (quoting, types, absent fields) is settled here and described in ``docs/toon.md``::

    text    = name "[" count "]{" [ name *( "," name ) ] "}:" [ row *( ";" row ) ]
    row     = [ cell *( "," cell ) ]
    cell    = ""                          the record does not have this field
            | "null" | "true" | "false" | integer | float | "NaN" | "Infinity" | "-Infinity"
            | bare                        a str
            | string                      a str
            | "j" string                  a dict or list, as JSON text
            | "b" string                  bytes that are valid UTF-8, as that text
            | "b64" string                any other bytes, as base64
            | "i" string                  an int of more than 600 digits, in hexadecimal
    name    = bare | string
    string  = '"' characters '"'          with the escapes of JSON, and \\u{X} for one code point

Every classic text is a single line, and can be encoded as UTF-8. ``dialect="spec"`` writes and reads the published
TOON format instead, see ``toondb/toon_spec.py``.
"""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from math import isfinite, isnan
from typing import Any, Final, NoReturn

from toondb_protocol.errors import ValidationError

__all__ = [
    "DIALECTS",
    "MAX_NESTING",
    "MISSING",
    "ToonSyntaxError",
    "encode_header",
    "encode_row",
    "from_toon",
    "to_toon",
]

DIALECTS: Final = ("classic", "spec")
"""What ``dialect`` may be: the notation of this module, and the published TOON format."""

MAX_NESTING: Final = 128
"""How deep dicts and lists may be nested in one cell: well inside the recursion limit of JSON readers."""


class _Missing(Enum):
    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing.MISSING
"""Given to :func:`encode_row` for a field that the record does not have: it becomes an empty cell."""


class ToonSyntaxError(ValidationError):
    """A text is not TOON; the message has the position and what was expected there.

    Attributes:
        position: Offset of the first character that cannot be read, counted from 0.
        expected: What would have been acceptable there.
    """

    default_remediation = "The notation is described in docs/toon.md."

    @property
    def position(self) -> int | None:
        value = self.details.get("position")
        return value if isinstance(value, int) else None

    @property
    def expected(self) -> str | None:
        value = self.details.get("expected")
        return value if isinstance(value, str) else None


class _CannotEncodeError(Exception):
    """A value has no TOON form; caught where the field or column is known."""

    def __init__(self, reason: str, kind: type) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.index = 0


class _BadEscapeError(Exception):
    """A backslash begins no escape; caught where the position of the string is known."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


# Characters that only appear escaped: controls and everything str.splitlines breaks at (the text stays
# one line), the byte order mark (a reader may drop it), surrogates (UTF-8 cannot carry them).
_UNSAFE: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff"
_IN_CELL: Final = rf'[^,;"\\{_UNSAFE}]'
_IN_NAME: Final = rf'[^,;"\\\[\]{{}}:{_UNSAFE}]'
_ODD_SPACE: Final = r"\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"  # the rest of \s
# Possessive (++, *+), so that the engine needs no memory of a text to go back in, and refuses it in linear time. Never
# around a choice, which early releases of Python 3.11 mismatch: hence escapes are checked where they are replaced.
_BARE_CELL: Final = rf"(?!\s){_IN_CELL}++(?<!\s)"
_BARE_NAME: Final = rf"(?!\s){_IN_NAME}++(?<!\s)"
_NUMBER: Final = r"-?(?:0|[1-9][0-9]*+)(\.[0-9]++(?:[eE][+-]?[0-9]++)?|[eE][+-]?[0-9]++)?"
_CODE_POINT: Final = r"\{(?:10|0?[0-9a-fA-F])?[0-9a-fA-F]{1,4}\}"
_ESCAPE: Final = rf'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}|u{_CODE_POINT})'
_IN_STRING: Final = rf'[^"\\{_UNSAFE}]*+(?:\\[^{_UNSAFE}][^"\\{_UNSAFE}]*+)*+'

_WORDS: Final[dict[str, Any]] = {
    "": MISSING,
    "null": None,
    "true": True,
    "false": False,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}
_RESERVED: Final = rf"(?:true|false|null|NaN|-?Infinity|{_NUMBER})"
# First characters of cells that may be something else than a str; "" stands for the empty cell.
_TYPED_FIRST: Final = frozenset(["", *"-0123456789tfnNI"])
_LARGE: Final = 10**600  # Python refuses int <-> decimal text above a limit that a process may set to 640 digits.
_WORTH_JOINING: Final = 6  # cells, from which on a column is faster than its cells one by one
# What quick looks at joined cells leave to the look at every cell.
_find_special: Final = re.compile(rf'["\\{_UNSAFE}{_ODD_SPACE}]').search


# --- Encoding ---------------------------------------------------------------------------------------------

_is_bare_cell: Final = re.compile(rf"(?!{_RESERVED}\Z){_BARE_CELL}").fullmatch
# In cells joined by ";": an empty one, or one that would be read as a number or another word of the notation.
# The first lookahead changes no result: it gives up most cells at their first character, four times faster.
_find_reserved: Final = re.compile(rf";(?![^;tfnNI0-9-])(?:{_RESERVED})?(?=;|\Z)").search
_is_bare_name: Final = re.compile(_BARE_NAME).fullmatch
# A high surrogate before a low one is written \u{d83d}: as \ud83d\ude00 it would be read as one character.
_escape: Final = re.compile(rf'(?P<pair>[\ud800-\udbff](?=[\udc00-\udfff]))|["\\{_UNSAFE}]').sub
_SHORT_ESCAPES: Final = {
    '"': r"\"",
    "\\": r"\\",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
}
_to_json: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def to_toon(
    table: str,
    records: Iterable[Mapping[str, Any]],
    fields: Sequence[str] | None = None,
    *,
    dialect: str = "classic",
) -> str:
    """Write records as TOON.

    Args:
        table: Name of the table, any text.
        records: The rows. Values may be None, bool, int, float, str, bytes (also bytearray and memoryview,
            which come back as bytes), and dicts with str keys, lists and tuples (which come back as lists)
            of all these except bytes. A record without one of the fields gets an empty cell.
        fields: The fields to write, in this order; other fields of the records are left out. Default:
            every field of any record, in the order in which they are first seen.
        dialect: ``"classic"`` (default) for one line, or ``"spec"`` for the published TOON format, one line per
            row. The latter carries less (no bytes, NaN, Infinity, ints of more than 600 digits, lone surrogates or
            floats like 1.0), and shows fields only by the records that have them; see ``docs/toon.md``.

    Raises:
        ValidationError: The dialect cannot carry a value (the message names record, field and type) or the fields,
            a name is not a str, a field is named twice, a record is not a mapping, or the dialect is unknown.
        UnsupportedFeatureError: ``"spec"`` needs the package ``toon-format``: ``toondb-client[toon]``.
    """
    _check_dialect(dialect)
    rows = _as_rows(records)
    names = _union_of_fields(rows) if fields is None else fields
    if dialect == "spec":
        from toondb.toon_spec import write_document

        _check_names(table, names)
        return write_document(table, rows, names)
    header = encode_header(table, len(rows), names)
    columns: list[list[str]] = []
    for name in names:
        try:
            columns.append(_encode_column([record.get(name, MISSING) for record in rows]))
        except _CannotEncodeError as error:
            raise ValidationError(
                f"Field {_shown(name)} of record {error.index} {error.reason}.",
                remediation=_REMEDIATION,
                details={"record": error.index, "field": _encodable(name), "type": error.kind.__name__},
            ) from None
    return header + (";".join(map(",".join, zip(*columns, strict=True))) if columns else ";" * (len(rows) - 1))


def encode_header(table: str, count: int, fields: Sequence[str]) -> str:
    """The text before the first row, up to and including the colon: ``users[2]{name,email}:``.

    Args:
        table: Name of the table.
        count: Number of rows that will follow, 0 or more.
        fields: The field names, all different.

    Raises:
        ValidationError: A name is not a str, a field is named twice, or the count is not a number of rows.
    """
    _check_names(table, fields)
    if type(count) is not int or not 0 <= count < 10**18:
        raise ValidationError(f"The row count must be an int of 0 or more, not {count!r}.")
    return f"{_encode_name(table)}[{count}]{{{','.join(map(_encode_name, fields))}}}:"


def encode_row(values: Iterable[Any]) -> str:
    """The cells of one row, for callers that stream; join rows with ``;`` after :func:`encode_header`.

    Args:
        values: One value per field, in the order of the fields; :data:`MISSING` where the record has none.

    Raises:
        ValidationError: A value has a type that TOON cannot carry; the message names the column (from 0).
    """
    try:
        return ",".join(_encode_cells(values))
    except _CannotEncodeError as error:
        raise ValidationError(
            f"Column {error.index} of the row {error.reason}.",
            remediation=_REMEDIATION,
            details={"column": error.index, "type": error.kind.__name__},
        ) from None


_REMEDIATION: Final = "Convert it first, for example with str() or float()."


def _check_dialect(dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ValidationError(
            f"Unknown TOON dialect {dialect!r}.", remediation=f"The dialects are {' and '.join(map(repr, DIALECTS))}."
        )


def _check_names(table: str, fields: Sequence[str]) -> None:
    if isinstance(fields, str) or not all(isinstance(name, str) for name in (table, *fields)):
        raise ValidationError("The table name must be a str, and fields a list of str.")
    if len(set(fields)) != len(fields):
        twice = next(name for index, name in enumerate(fields) if name in fields[:index])
        raise ValidationError(
            f"Field {_shown(twice)} is named twice.",
            remediation="Name every field once.",
            details={"field": _encodable(twice)},
        )


def _encode_column(values: list[Any]) -> list[str]:
    """All cells of one field: a search through the whole column is many times faster than one per cell."""
    if len(values) >= _WORTH_JOINING:
        kinds = set(map(type, values))
        if kinds == {str} and _all_bare(values):
            return values
        if kinds == {int} and min(values) > -_LARGE and max(values) < _LARGE:
            return list(map(repr, values))
    return _encode_cells(values)


def _all_bare(values: list[str]) -> bool:
    """Whether no cell needs quotes; False may also mean that it takes a closer look at each."""
    joined = ";".join(values)
    return (
        joined.count(";") == len(values) - 1
        and "," not in joined
        and " ;" not in joined
        and "; " not in joined
        and not _find_special(joined)
        and not _find_reserved(joined)
        and _is_bare_cell(values[0]) is not None
        and _is_bare_cell(values[-1]) is not None
    )


def _encode_cells(values: Iterable[Any]) -> list[str]:
    cells: list[str] = []
    add = cells.append
    try:
        for value in values:
            kind = type(value)
            if kind is str:
                add(value if _is_bare_cell(value) else _quote(value))
            elif kind is int and -_LARGE < value < _LARGE:
                add(repr(value))
            else:
                add(_ENCODERS.get(kind, _encode_other)(value))
    except _CannotEncodeError as error:
        error.index = len(cells)
        raise
    return cells


def _encode_name(name: str) -> str:
    name = str.__str__(name)  # a StrEnum member gives its value here, its class may print something else
    return name if _is_bare_name(name) else _quote(name)


def _encode_str(value: str) -> str:
    return value if _is_bare_cell(value) else _quote(value)


def _quote(text: str) -> str:
    return f'"{_escape(_escape_one, text)}"'


def _escape_one(match: re.Match[str]) -> str:
    character = match[0]
    short = _SHORT_ESCAPES.get(character)
    if short is not None:
        return short
    return f"\\u{{{ord(character):x}}}" if match["pair"] else f"\\u{ord(character):04x}"


def _encode_int(value: int) -> str:
    # Hexadecimal is linear in the size and has no digit limit.
    return int.__repr__(value) if -_LARGE < value < _LARGE else f'i"{int.__format__(value, "x")}"'


def _encode_float(value: float) -> str:
    if isfinite(value):
        return float.__repr__(value)
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _encode_bytes(value: bytes | bytearray | memoryview) -> str:
    raw = bytes(value)
    try:
        return f"b{_quote(raw.decode())}"
    except UnicodeDecodeError:
        return f'b64"{b2a_base64(raw, newline=False).decode("ascii")}"'


def _encode_nested(value: dict[str, Any] | list[Any] | tuple[Any, ...]) -> str:
    _check_nested(value)
    try:
        return f"j{_quote(_to_json(value))}"
    except ValueError:  # the only one left: Python's limit on the digits of an int
        raise _CannotEncodeError(f"holds an int with too many digits inside its {type(value).__name__}", int) from None


def _check_nested(value: Any) -> None:
    """Refuse what JSON would change or cannot carry, for example int keys, which it turns into str."""
    todo: list[tuple[Any, int]] = [(value, 1)]
    while todo:
        container, depth = todo.pop()
        if depth > MAX_NESTING:
            raise _CannotEncodeError(f"is nested more than {MAX_NESTING} deep, or contains itself", type(container))
        if isinstance(container, dict):
            for key in container:
                if not isinstance(key, str):
                    raise _CannotEncodeError(
                        f"holds a dict with a key of type {type(key).__name__}, only str keys can be kept",
                        type(key),
                    )
            container = container.values()
        for item in container:
            kind = type(item)
            if kind in _JSON_SCALARS:
                continue
            if isinstance(item, (dict, list, tuple)):
                todo.append((item, depth + 1))
            elif not isinstance(item, (str, int, float)):
                raise _CannotEncodeError(
                    f"holds a value of type {kind.__name__} inside its {type(value).__name__}", kind
                )


def _encode_other(value: Any) -> str:
    """Values of subclasses (IntEnum, StrEnum, OrderedDict, NumPy's float64) go as their base type."""
    for base, encode in _ENCODERS.items():
        if isinstance(value, base):
            return encode(str.__str__(value) if base is str else value)
    kind = type(value)
    raise _CannotEncodeError(f"is of type {kind.__name__}, which TOON cannot carry", kind)


_JSON_SCALARS: Final = frozenset([str, int, float, bool, type(None)])
_ENCODERS: Final[dict[type, Callable[[Any], str]]] = {
    type(None): lambda value: "null",
    bool: lambda value: "true" if value else "false",
    float: _encode_float,
    int: _encode_int,
    str: _encode_str,
    _Missing: lambda value: "",
    dict: _encode_nested,
    list: _encode_nested,
    tuple: _encode_nested,
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
    memoryview: _encode_bytes,
}


def _as_rows(records: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if isinstance(records, (Mapping, str, bytes)):
        raise ValidationError(
            f"records must be a sequence of mappings, not one {type(records).__name__}.",
            remediation="Put a single record in a list.",
        )
    rows = records if isinstance(records, (list, tuple)) else list(records)
    for index, record in enumerate(rows):
        if type(record) is not dict and not isinstance(record, Mapping):
            raise ValidationError(
                f"Record {index} is of type {type(record).__name__}, not a mapping of field to value.",
                remediation="Use dict(record).",
                details={"record": index, "type": type(record).__name__},
            )
    return rows


def _union_of_fields(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    seen: dict[str, Any] = {}
    for record in rows:
        seen.update(record)
    return list(seen)


def _shown(name: str) -> str:
    """A name as it may stand in an error message: quoted, escaped, not endless."""
    return _quote(name if len(name) <= 64 else name[:64] + "…")


def _encodable(name: str) -> str:
    """A name for the details of an error, which travel as UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


# --- Decoding ---------------------------------------------------------------------------------------------

_match_name: Final = re.compile(_BARE_NAME).match
_match_in_name: Final = re.compile(rf"{_IN_NAME}++").match
_match_string: Final = re.compile(rf'"(?P<body>{_IN_STRING})"').match
_match_string_start: Final = re.compile(rf'(?:j|b64|b|i)?"{_IN_STRING}').match
_match_count: Final = re.compile(r"\[(0|[1-9][0-9]{0,17})\]").match
_match_cell: Final = re.compile(
    rf'(?:(?P<bare>{_BARE_CELL})|(?P<marker>j|b64|b|i)?"(?P<body>{_IN_STRING})")?(?P<end>[,;]|\Z)'
).match
_match_in_cell: Final = re.compile(rf"{_IN_CELL}*+").match
_match_number: Final = re.compile(_NUMBER).fullmatch
_is_hexadecimal: Final = re.compile(r"-?[0-9a-f]++").fullmatch
_unescape: Final = re.compile(
    rf"\\u(?P<high>[dD][89abAB][0-9a-fA-F]{{2}})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{{2}})|{_ESCAPE}|\\"
).sub
_ESCAPES: Final = r"one of the escapes \" \\ \/ \b \f \n \r \t \uXXXX \u{X}"
_SHORT_UNESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def from_toon(text: str, *, dialect: str = "classic") -> tuple[str, list[str], list[dict[str, Any]]]:
    """Read what :func:`to_toon` wrote.

    Args:
        text: One line of TOON, without a line break after it; or a document of the published format whose root is
            one table.
        dialect: ``"classic"`` (default) or ``"spec"``, as in :func:`to_toon`.

    Returns:
        The table name, the field names, and one dict per row. A field whose cell is empty is absent from
        that row's dict.

    Raises:
        ToonSyntaxError: The text is not TOON of that dialect, the number of rows is not the announced count, or a
            row does not have one cell per field.
        ValidationError: ``text`` is not a str, or the dialect is unknown.
        UnsupportedFeatureError: ``"spec"`` needs the package ``toon-format``: ``toondb-client[toon]``.
    """
    _check_dialect(dialect)
    if not isinstance(text, str):
        raise ValidationError(
            f"TOON text must be a str, not {type(text).__name__}.", remediation='Decode bytes with .decode("utf-8").'
        )
    if dialect == "spec":
        from toondb.toon_spec import read_document

        return read_document(text)
    table, count, fields, start = _read_header(text)
    if count == 0:
        if start != len(text):
            _fail(text, start, "the end of the text, because the count is 0")
        return table, fields, []
    records = _split_rows(text, start, count, fields)
    if records is None:
        records = _scan_rows(text, start, count, fields)
    return table, fields, records


def _read_header(text: str) -> tuple[str, int, list[str], int]:
    table, position = _read_name(text, 0, "a table name")
    match = _match_count(text, position)
    if match is None:
        _fail(text, position, "the row count in brackets, like [2]")
    count, position = int(match[1]), match.end()
    if not text.startswith("{", position):
        _fail(text, position, "'{' and the field names")
    position += 1
    fields: dict[str, None] = {}
    if text.startswith("}", position):
        position += 1
    else:
        while True:
            name_at = position
            name, position = _read_name(text, position, "a field name")
            if name in fields:
                _fail(text, name_at, f"a field name other than {_shown(name)}, which is there already")
            fields[name] = None
            if text.startswith("}", position):
                position += 1
                break
            if not text.startswith(",", position):
                _fail(text, position, "',' or '}' after a field name")
            position += 1
    if not text.startswith(":", position):
        _fail(text, position, "':' before the rows")
    return table, count, list(fields), position + 1


def _read_name(text: str, position: int, what: str) -> tuple[str, int]:
    match = _match_name(text, position)
    if match is not None:
        return match[0], match.end()
    match = _match_string(text, position)
    if match is not None:
        return _body_of(text, match), match.end()
    if text.startswith('"', position):
        _fail_in_string(text, position)
    run = _match_in_name(text, position)
    if run is None:
        _fail(text, position, what)
    at = position if run[0][0].isspace() else run.end() - 1
    return _fail(text, at, f"{what} without space around it, or a quoted one")


def _split_rows(text: str, start: int, count: int, fields: list[str]) -> list[dict[str, Any]] | None:
    """Read rows without any quoted cell, which is most texts, by splitting; None when it takes the scan.

    Whatever is wrong is left to the scan too, which knows the positions.
    """
    body = text[start:]
    if not fields or _find_special(body) or body[:1] == " " or body[-1:] == " ":
        return None
    if ", " in body or "; " in body or " ," in body or " ;" in body:
        return None
    lines = body.split(";")
    if len(lines) != count:
        return None
    width = len(fields)
    typed_first, scalar = _TYPED_FIRST, _scalar
    records: list[dict[str, Any]] = []
    add = records.append
    missing = False
    try:
        for line in lines:
            cells = line.split(",")
            if len(cells) != width:
                return None
            missing = missing or "" in cells
            add(dict(zip(fields, [scalar(c) if c[:1] in typed_first else c for c in cells], strict=False)))
    except ValueError:  # an int with too many digits
        return None
    return _without_missing(records) if missing else records


def _scan_rows(text: str, start: int, count: int, fields: list[str]) -> list[dict[str, Any]]:
    width = len(fields)
    records: list[dict[str, Any]] = []
    values: list[Any] = []
    missing = False
    position = start
    while True:
        match = _match_cell(text, position)
        if match is None:
            _fail_in_cell(text, position)
        bare, marker, body, end = match.groups()
        if bare is not None:
            if bare[0] in _TYPED_FIRST:
                try:
                    values.append(_scalar(bare))
                except ValueError:
                    _fail(text, position, 'an integer short enough for Python, or its hexadecimal form i"…"')
            else:
                values.append(bare)
        elif body is None:
            values.append(MISSING)
            missing = True
        elif marker is None:
            values.append(_body_of(text, match) if "\\" in body else body)
        else:
            values.append(_typed(text, position, marker, _body_of(text, match)))
        position = match.end()
        if end == ",":
            if len(values) >= width:
                _fail(text, position - 1, f"the end of a row of {width} cells")
            continue
        position -= len(end)
        if len(values) != width and not (width == 0 and values == [MISSING]):
            _fail(text, position, f"a row of {width} cells, not {len(values)}")
        records.append(dict(zip(fields, values, strict=False)))  # not strict: no field, one empty cell
        if not end:
            break
        if len(records) == count:
            _fail(text, position, f"the end of the text after {count} rows")
        values = []
        position += 1
    if len(records) != count:
        _fail(text, position, f"{count} rows, not {len(records)}")
    return _without_missing(records) if missing else records


def _without_missing(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if value is not MISSING} for record in records]


def _scalar(cell: str) -> Any:
    """The value of an unquoted cell. Raises ValueError for an int with more digits than Python allows."""
    if cell in _WORDS:
        return _WORDS[cell]
    number = _match_number(cell)
    if number is None:
        return cell
    return int(cell) if number.lastindex is None else float(cell)


def _typed(text: str, position: int, marker: str, body: str) -> Any:
    """The value of a cell with a marker before its quotes."""
    if marker == "j":
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, (dict, list)):
            _fail(text, position, 'j"…" with the JSON text of an object or array in it')
        return value
    if marker == "b":
        try:
            return body.encode()
        except UnicodeEncodeError:
            _fail(text, position, 'b"…" with text that UTF-8 can encode')
    if marker == "b64":
        try:
            return a2b_base64(body.encode("ascii"), strict_mode=True)
        except (Base64Error, UnicodeEncodeError):
            _fail(text, position, 'b64"…" with base64 in it')
    if _is_hexadecimal(body) is None:
        _fail(text, position, 'i"…" with a hexadecimal integer in it, like i"-1f"')
    return int(body, 16)


def _body_of(text: str, string: re.Match[str]) -> str:
    """What a quoted string stands for."""
    try:
        return _unescape(_unescape_one, string["body"])
    except _BadEscapeError as error:
        _fail(text, string.start("body") + error.offset, _ESCAPES)


def _unescape_one(match: re.Match[str]) -> str:
    high, low = match["high"], match["low"]
    if high is not None:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    escape = match[0]
    if escape == "\\":
        raise _BadEscapeError(match.start())
    if escape[1] == "u":
        return chr(int(escape[2:].strip("{}"), 16))
    return _SHORT_UNESCAPES.get(escape[1], escape[1])


def _fail(text: str, position: int, expected: str) -> NoReturn:
    found = repr(text[position]) if position < len(text) else "the end of the text"
    raise ToonSyntaxError(
        f"Not TOON at position {position}: expected {expected}; found {found}.",
        details={"position": position, "expected": expected},
    )


def _fail_in_string(text: str, position: int) -> NoReturn:
    """A quoted string begins here and cannot be read: say where and why."""
    match = _match_string_start(text, position)
    end = position if match is None else match.end()
    if end == len(text):
        _fail(text, end, f"'\"' to close the string that begins at position {position}")
    if text[end] == "\\":
        _fail(text, end, _ESCAPES)
    if text[end] == '"':
        _fail(text, end + 1, "',', ';' or the end of the text after a string")
    _fail(text, end, f"the escape \\u{ord(text[end]):04x}")


def _fail_in_cell(text: str, position: int) -> NoReturn:
    """No cell can be read here: say where and why."""
    if _match_string_start(text, position):
        _fail_in_string(text, position)
    match = _match_in_cell(text, position)
    end = position if match is None else match.end()
    if text[position : position + 1].isspace():
        _fail(text, position, "a cell without space before it, or a quoted one")
    if end == len(text) or text[end] in ",;":
        _fail(text, end - 1, "a cell without space after it, or a quoted one")
    _fail(text, end, "',', ';' or the end of the text, or quotes around this cell")
