"""Columns of a table as callers write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from .arguments import several, text
from .errors import ValidationError
from .messages import ColumnType

__all__ = ["Columns", "given_columns"]

Columns: TypeAlias = Mapping[str, str] | Sequence[Sequence[Any]]
"""``{"id": "int64", "name": "text"}`` or rows ``(name, type[, nullable])``."""

_TYPES = {
    **{member.name.lower(): member for member in ColumnType},
    "int": ColumnType.INT64,
    "integer": ColumnType.INT64,
    "float": ColumnType.FLOAT64,
    "real": ColumnType.FLOAT64,
    "str": ColumnType.TEXT,
    "string": ColumnType.TEXT,
    "bytes": ColumnType.BINARY,
    "blob": ColumnType.BINARY,
    "boolean": ColumnType.BOOL,
}


def given_columns(name: str, columns: Columns) -> list[dict[str, Any]]:
    """The ``name``, ``type`` and ``nullable`` of each column of a table.

    Raises:
        ValidationError: A name is not text, a type is unknown, or there is more than fits a request.
    """
    text("a table name", name)
    rows = list(several("columns", columns.items() if isinstance(columns, Mapping) else columns))
    fields: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, (str, bytes)) or not isinstance(row, Sequence) or not 2 <= len(row) <= 3:
            raise ValidationError(f"a column is (name, type) or (name, type, nullable), got {row!r}.")
        column, kind = text("a column name", row[0]), row[1]
        known = _TYPES.get(kind.lower()) if isinstance(kind, str) else None
        if isinstance(kind, int) and not isinstance(kind, bool) and kind in _TYPES.values():
            known = ColumnType(kind)
        if known is None:
            raise ValidationError(
                f"column type {kind!r} is unknown; known: {', '.join(m.name.lower() for m in ColumnType)}."
            )
        nullable = row[2] if len(row) == 3 else True
        if not isinstance(nullable, (bool, int)):
            raise ValidationError(f"nullable of column {column!r} is true or false, got {nullable!r}.")
        fields.append({"name": column, "type": int(known), "nullable": int(bool(nullable))})
    if max(len(fields), len(name.encode()), *(len(field["name"].encode()) for field in fields), 0) > 0xFFFF:
        raise ValidationError("a table has at most 65535 columns, and names at most 65535 bytes.")
    return fields
