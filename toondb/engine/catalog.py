"""The catalog: schemas of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from toondb_protocol.errors import CorruptionError, TableExistsError, ToonDBError, ValidationError
from toondb_protocol.keys import check_key
from toondb_protocol.messages import ColumnType
from toondb_protocol.record import live_value

from .environment import Space
from .write_batch import WriteBatch

__all__ = ["Column", "CreateTable", "TableSchema", "check_schema", "decode_schema", "table_key"]

_TABLE = b"table/"
MAX_COLUMNS = 2000


@dataclass(frozen=True, slots=True)
class Column:
    """A column: name, type, and whether NULL is allowed."""

    name: str
    type: ColumnType
    nullable: bool


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table's name and columns."""

    name: str
    columns: tuple[Column, ...]

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb({"columns": [[c.name, int(c.type), c.nullable] for c in self.columns]})
        return packed


def table_key(name: str) -> bytes:
    """The catalog key of a table."""
    return _TABLE + name.encode()


def decode_schema(name: str, value: bytes) -> TableSchema:
    """The schema stored under :func:`table_key`.

    Raises:
        CorruptionError: It cannot be read.
    """
    try:
        body = msgpack.unpackb(value)
        columns = tuple(Column(n, ColumnType(t), bool(nullable)) for n, t, nullable in body["columns"])
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        raise CorruptionError(f"the schema of table {name!r} cannot be read.") from None
    return TableSchema(name, columns)


def check_schema(name: str, columns: Sequence[tuple[str, int, int | bool]]) -> TableSchema:
    """Build a schema.

    Args:
        name: Not empty, no ``/``; together with the catalog's own prefix it fits in a key.
        columns: (name, type, nullable) of each column; 1 to 2000, names not empty and unique.

    Raises:
        ValidationError: A rule is broken; the message names the value.
    """
    if not name or "/" in name:
        raise ValidationError(f"the table name {name!r} must not be empty or contain a slash.")
    try:
        check_key(table_key(name))
    except UnicodeEncodeError:
        raise ValidationError(f"the table name {name!r} is not valid Unicode text.") from None
    except ToonDBError:
        raise ValidationError(f"the table name is too long ({len(name.encode())} bytes).") from None
    if not 1 <= len(columns) <= MAX_COLUMNS:
        raise ValidationError(f"the table has {len(columns)} columns, 1 to {MAX_COLUMNS} are allowed.")
    seen: set[str] = set()
    built: list[Column] = []
    for column, kind, nullable in columns:
        if not column or column in seen:
            raise ValidationError(f"column name {column!r} of table {name!r} is empty or used twice.")
        if not column.isascii() and column.encode(errors="replace").decode() != column:
            raise ValidationError(f"column name {column!r} of table {name!r} is not valid Unicode text.")
        seen.add(column)
        try:
            built.append(Column(column, ColumnType(kind), bool(nullable)))
        except ValueError:
            known = ", ".join(f"{member.value} {member.name.lower()}" for member in ColumnType)
            raise ValidationError(f"column {column!r} has unknown type {kind}; known: {known}.") from None
    return TableSchema(name, tuple(built))


def table_exists(name: str) -> TableExistsError:
    """The error for a name that is taken."""
    return TableExistsError(f"the table {name!r} exists already.")


class CreateTable:
    """A unit for the writer: creates a table in a transaction of its own."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        key = table_key(self.schema.name)
        if batch.get(key, Space.CATALOG) is not None:
            raise table_exists(self.schema.name)
        batch.put_record(Space.CATALOG, key, self.schema.encode(), lsn + 1)
        return lsn + 1


def schema_from_record(name: str, raw: bytes | None) -> TableSchema | None:
    """The schema in a raw catalog record, or None."""
    value = live_value(raw)
    return None if value is None else decode_schema(name, value)
