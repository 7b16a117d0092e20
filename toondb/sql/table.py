"""Tables by name: the typed tables of ``create_table``, and the rows of a table for a query that names it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from toondb_protocol.errors import SqlError, TableExistsError, ValidationError
from toondb_protocol.messages import ColumnType

from .connection import Bindings, Outcome
from .stream import RowStream

__all__ = [
    "MAX_COLUMNS",
    "TABLE_NAMES",
    "SqlRunner",
    "TableRows",
    "TableSchema",
    "check_schema",
    "create_table",
    "find_table",
    "quoted",
]

MAX_COLUMNS = 2000
_MAX_NAME_BYTES = 500

Columns: TypeAlias = tuple[tuple[str, ColumnType, bool], ...]


class SqlRunner(Protocol):
    """What runs statements: the SQL of a store, or of one transaction."""

    def execute(self, text: str, bindings: Bindings = None) -> Outcome:
        """Run one statement."""

    def stream(self, text: str, bindings: Bindings = None) -> RowStream:
        """Start one statement."""


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


# Typed tables


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table's name, and the name and type of its columns and whether they may be NULL."""

    name: str
    columns: Columns


_TYPES: dict[ColumnType, tuple[str, str]] = {
    # The declared type decides how SQLite stores a value, the check what is stored at all.
    ColumnType.INT64: ("INTEGER", "typeof({0}) = 'integer'"),
    ColumnType.UINT64: ("UNSIGNED BIG INT", "typeof({0}) = 'integer' AND {0} >= 0"),
    ColumnType.FLOAT64: ("DOUBLE", "typeof({0}) = 'real'"),
    ColumnType.TEXT: ("TEXT", "typeof({0}) = 'text'"),
    ColumnType.BINARY: ("BLOB", "typeof({0}) = 'blob'"),
    ColumnType.BOOL: ("BOOLEAN", "{0} IN (0, 1)"),
}


def check_schema(name: str, columns: Sequence[tuple[str, int, int | bool]]) -> TableSchema:
    """Build a schema.

    Args:
        name: Not empty, no ``/``, 500 bytes at the most.
        columns: (name, type, nullable) of each column; 1 to 2000, names not empty and unique.

    Raises:
        ValidationError: A rule is broken; the message names the value.
    """
    if not name or "/" in name or "\0" in name:
        raise ValidationError(f"the table name {name!r} must not be empty or contain a slash or NUL.")
    if not _is_unicode(name):
        raise ValidationError(f"the table name {name!r} is not valid Unicode text.")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValidationError(f"the table name is too long ({len(name.encode())} bytes).")
    if not 1 <= len(columns) <= MAX_COLUMNS:
        raise ValidationError(f"the table has {len(columns)} columns, 1 to {MAX_COLUMNS} are allowed.")
    seen: set[str] = set()
    built: list[tuple[str, ColumnType, bool]] = []
    for column, kind, nullable in columns:
        # SQL does not tell ASCII letters of different case apart.
        if not column or column.lower() in seen or "\0" in column:
            raise ValidationError(f"column name {column!r} of table {name!r} is empty or used twice.")
        if not _is_unicode(column):
            raise ValidationError(f"column name {column!r} of table {name!r} is not valid Unicode text.")
        seen.add(column.lower())
        try:
            built.append((column, ColumnType(kind), bool(nullable)))
        except ValueError:
            known = ", ".join(f"{member.value} {member.name.lower()}" for member in ColumnType)
            raise ValidationError(f"column {column!r} has unknown type {kind}; known: {known}.") from None
    return TableSchema(name, tuple(built))


def _is_unicode(name: str) -> bool:
    return name.isascii() or name.encode(errors="replace").decode() == name


def create_table(runner: SqlRunner, schema: TableSchema) -> None:
    """Create a table whose columns hold just one type each.

    Raises:
        TableExistsError: There is a table, view or index of that name.
        SqlError: SQLite does not take the name: those that begin with ``sqlite_`` are its own.
    """
    columns = []
    for name, kind, nullable in schema.columns:
        declared, check = _TYPES[kind]
        column = quoted(name)
        condition = check.format(column) + (f" OR {column} IS NULL" if nullable else "")
        columns.append(
            f"{column} {declared}{'' if nullable else ' NOT NULL'} "
            f"CONSTRAINT {quoted(f'{name} is {kind.name.lower()}')} CHECK ({condition})"
        )
    try:
        runner.execute(f"CREATE TABLE {quoted(schema.name)} ({', '.join(columns)})")
    except SqlError as error:
        if "already" in error.message:
            raise TableExistsError(f"the table {schema.name!r} exists already.") from None
        raise


# Rows of a table

_KINDS = "schema = 'main' AND type IN ('table', 'view', 'virtual') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
TABLE_NAMES = f"SELECT name FROM pragma_table_list WHERE {_KINDS}"
"""Names the tables and views of users."""

_FIND = f"SELECT type, wr FROM pragma_table_list WHERE {_KINDS} AND name = ?"
_COLUMNS = "SELECT name, type FROM pragma_table_xinfo(?) WHERE hidden != 1"


class TableRows:
    """The rows of a table or view, each with a key that a program can tell it by.

    The key is ``name/rowid``; where there is no rowid it is the number of the row, from 1.

    Attributes:
        columns: Names of the columns.
    """

    def __init__(self, runner: SqlRunner, name: str, columns: list[str], booleans: list[int], rowids: bool) -> None:
        self.columns = columns
        self._runner = runner
        self._name = name
        self._booleans = booleans
        # A column may be called like one of them.
        taken = {column.lower() for column in columns}
        self._rowid = (
            next((word for word in ("rowid", "_rowid_", "oid") if word not in taken), None) if rowids else None
        )

    def read(self, rows: int) -> Generator[list[tuple[bytes, dict[str, Any]]], None, None]:
        """Steps of (key, row), ``rows`` in each at the most; in the order of the keys where the rows have a rowid."""
        names = ", ".join(map(quoted, self.columns))
        table, rowid, columns = quoted(self._name), self._rowid, self.columns
        order = f" ORDER BY {rowid}" if rowid else ""
        stream = self._runner.stream(f"SELECT {rowid or 0}, {names} FROM {table}{order}")
        head = f"{self._name}/"
        number = 0
        try:
            while True:
                found = stream.fetch(rows)
                step = []
                for at, *values in found:
                    number += 1
                    for boolean in self._booleans:
                        if values[boolean] in (0, 1):
                            values[boolean] = bool(values[boolean])
                    key = f"{head}{at if rowid else number}".encode()
                    step.append((key, dict(zip(columns, values, strict=True))))
                yield step
                if stream.ended:
                    return
        finally:
            stream.close()


def find_table(runner: SqlRunner, name: bytes) -> TableRows | None:
    """The rows of the table or view of just this name, or None."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    if not text or "\0" in text:
        return None
    found = runner.execute(_FIND, [text]).rows
    if not found:
        return None
    ((kind, without_rowid),) = found
    columns = runner.execute(_COLUMNS, [text]).rows
    booleans = [at for at, (_, declared) in enumerate(columns) if declared.upper() == "BOOLEAN"]
    return TableRows(runner, text, [column for column, _ in columns], booleans, kind != "view" and not without_rowid)
