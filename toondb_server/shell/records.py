"""Reading CSV (RFC 4180) and JSON lines, record by record, each with the number of its line."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from toondb_protocol.errors import ConfigurationError, ValidationError

from .cells import BASE64_KEY
from .files import open_input

__all__ = ["FORMATS", "Record", "Source", "csv_records", "format_of", "json_records"]

FORMATS = ("csv", "jsonl")
"""The formats that can be read."""

_EXTENSIONS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_MAX_RECORD = 64 * 1024 * 1024
_COPY = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Record(NamedTuple):
    """One record.

    Attributes:
        line: The line on which it begins, from 1.
        size: Its bytes.
        values: Fields of CSV, None = NULL; or the object of a JSON line.
        error: What is wrong with it, empty for nothing.
    """

    line: int
    size: int
    values: Any
    error: str = ""


class Source:
    """The bytes of a file, or of standard input.

    Args:
        path: The file; ``-`` is standard input.
        rewindable: It will be read more than once: what cannot be is copied to a temporary file.

    Attributes:
        size: Bytes in all, 0 = unknown.
        rewindable: Whether it can be read again.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: str, *, rewindable: bool) -> None:
        self.path = path
        self._file = open_input(path)
        try:
            found = os.fstat(self._file.fileno())
            self.rewindable = stat.S_ISREG(found.st_mode)
            self.size = found.st_size if self.rewindable else 0
            self._start = self._file.tell() if self.rewindable else 0
            if rewindable and not self.rewindable:
                self._copy()
        except BaseException:
            self._file.close()
            raise

    def _copy(self) -> None:
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            while part := self._file.read(_COPY):
                copy.write(part)
            self.size = copy.tell()
        except BaseException:
            copy.close()
            raise
        self._file.close()
        self._file, self.rewindable, self._start = copy, True, 0

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return "standard input" if self.path == "-" else self.path

    def lines(self) -> Iterator[bytes]:
        """Its lines, from the start; without a byte order mark.

        Raises:
            ValidationError: It is UTF-16, or (as it is read) has a line that is far too long.
        """
        if self.rewindable:
            self._file.seek(self._start)
        first = self._line()
        if first.startswith(_UTF16):
            raise ValidationError(f"{self.name} is UTF-16.", remediation="Convert it to UTF-8, for example with iconv.")
        first = first.removeprefix(_BOM)
        return chain([first] if first else [], iter(self._line, b""))

    def _line(self) -> bytes:
        line = self._file.readline(_MAX_RECORD)
        if len(line) == _MAX_RECORD:
            raise ValidationError(f"{self.name} has a line of more than {_MAX_RECORD >> 20} MiB.")
        return line

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def format_of(path: str, given: str, known: dict[str, str] | None = None) -> str:
    """The format of a file: as given, or for ``auto`` by its name.

    Raises:
        ConfigurationError: The name does not tell.
    """
    if given != "auto":
        return given
    known = known or _EXTENSIONS
    found = known.get(os.path.splitext(path)[1].lower())
    if found is None:
        raise ConfigurationError(
            f"the name {path!r} does not tell its format; known are: {', '.join(known)}.",
            remediation="Name it with --format.",
        )
    return found


def _decoded(raw: bytes) -> tuple[str, str]:
    """A line as text, and what is wrong with it."""
    try:
        return raw.decode(), ""
    except UnicodeDecodeError as error:
        return "", f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8"


# CSV


def csv_records(lines: Iterator[bytes], delimiter: str, null: str = "") -> Iterator[Record]:
    """The records of CSV, its header among them.

    A field between double quotes may have anything in it, a double quote as two. Empty lines are records of one empty
    field.

    Args:
        lines: As they are in the file.
        delimiter: One character.
        null: The field that is None, unless it is quoted.
    """
    split = _FieldSplitter(delimiter, null)
    number = 0
    for raw in lines:
        number += 1
        begins = number
        quotes = raw.count(b'"')
        if quotes % 2:
            # Quotes inside a field come in pairs, so an odd number leaves a field open.
            parts, size = [raw], len(raw)
            for more in lines:
                number += 1
                parts.append(more)
                size += len(more)
                quotes += more.count(b'"')
                if not quotes % 2 or size > _MAX_RECORD:
                    break
            raw = b"".join(parts)
            if quotes % 2:
                yield Record(begins, size, None, "a quoted field is not closed")
                continue
        text, error = _decoded(raw)
        if error:
            yield Record(begins, len(raw), None, error)
            continue
        text = text.removesuffix("\n").removesuffix("\r")
        if not quotes:
            yield Record(begins, len(raw), [None if field == null else field for field in text.split(delimiter)])
            continue
        fields, error = split(text)
        yield Record(begins, len(raw), fields, error)


class _FieldSplitter:
    """Splits a record that has quotes."""

    def __init__(self, delimiter: str, null: str) -> None:
        self._delimiter = delimiter
        self._null = null
        mark = re.escape(delimiter)
        self._field = re.compile(f'"((?:[^"]|"")*)"|([^"{mark}]*)')

    def __call__(self, text: str) -> tuple[list[str | None], str]:
        fields: list[str | None] = []
        at = 0
        while True:
            found = self._field.match(text, at)
            assert found is not None  # it also matches nothing
            quoted, plain = found.groups()
            if quoted is not None:
                fields.append(quoted.replace('""', '"'))
            else:
                fields.append(None if plain == self._null else plain)
            at = found.end()
            if at == len(text):
                return fields, ""
            if not text.startswith(self._delimiter, at):
                where = "there is text after the closing quote" if quoted is not None else "a quote is inside"
                return [], f"{where} of field {len(fields)}"
            at += 1


# JSON lines


def json_records(lines: Iterator[bytes]) -> Iterator[Record]:
    """The objects of JSON lines; empty lines are passed over.

    ``{"$base64": "..."}`` is a blob; other objects and lists become JSON text, true and false 1 and 0.
    """
    for number, raw in enumerate(lines, 1):
        text, error = _decoded(raw)
        if not error and (not text or text.isspace()):
            continue
        values: Any = None
        if not error:
            try:
                values = json.loads(text, parse_constant=_no_constant)
                if isinstance(values, dict):
                    for name, value in values.items():
                        if type(value) in (dict, list, bool, int):
                            values[name] = _column_value(name, value)
                else:
                    error = f"it is not a JSON object, but {_kind(values)}"
            except RecursionError:
                error = "it is nested too deeply"
            except json.JSONDecodeError as problem:
                error = f"it is not JSON: {problem.msg} at column {problem.colno}"
            except ValueError as problem:
                error = str(problem)
        yield Record(number, len(raw), None if error else values, error)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "a list", str: "a text", bool: "a boolean"}.get(type(value), "a number")


def _column_value(name: str, value: Any) -> Any:
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"the number of {name!r} is too large for a column")
        return int(value)
    if isinstance(value, dict) and value.keys() == {BASE64_KEY} and isinstance(value[BASE64_KEY], str):
        try:
            return a2b_base64(value[BASE64_KEY], strict_mode=True)
        except (Base64Error, ValueError):
            raise ValueError(f"the {BASE64_KEY} of {name!r} is not base64") from None
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
