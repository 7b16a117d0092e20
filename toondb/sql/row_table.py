"""What the plugins' triggers must know of a table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import apsw

from toondb.plugins import folded_name

__all__ = ["ROWIDS", "Column", "RowTable", "same"]

ROWIDS: Final = ("rowid", "_rowid_", "oid")
"""What SQLite calls the row id of a row, as far as no column is called so."""

_CONSTANTS: Final = frozenset({"NULL", "TRUE", "FALSE", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column; its default is an expression."""

    name: str
    default: str
    generated: bool


class RowTable:
    """A table.

    Args:
        db: The connection.
        name: Its name.
        without_rowid: Whether it is WITHOUT ROWID.

    Attributes:
        columns: Its columns.
        id: The column that is the row id, or None.
        rowid: How its row id is called where no column is the row id; None where there is none.
        key: The columns, or the row id, that tell one row from all others.
        settable: The columns that are not generated.
        writable: These, and ``rowid``.
        names: What a row of a plugin may name, by the folded name: the columns, and ``rowid``.
        taken: What a trigger takes of OLD or NEW: all columns, and last ``rowid``.
    """

    def __init__(self, db: apsw.Connection, name: str, without_rowid: bool) -> None:
        self.name = name
        found: list[Any] = db.execute(
            "SELECT name, hidden > 1, dflt_value FROM pragma_table_xinfo(?) WHERE hidden <> 1", [name]
        ).fetchall()
        self.columns = [Column(column, _expression(default), bool(generated)) for column, generated, default in found]
        key: list[Any] = db.execute(
            "SELECT name, upper(type) FROM pragma_table_xinfo(?) WHERE pk ORDER BY pk", [name]
        ).fetchall()
        # With an index of its own the key is not the row id: so it is of INTEGER PRIMARY KEY DESC.
        indexes = db.execute("SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk'", [name]).fetchall()
        self.id: str | None = None
        self.rowid: str | None = None
        if not without_rowid:
            if len(key) == 1 and key[0][1] == "INTEGER" and not indexes:
                self.id = key[0][0]
            else:
                taken = {folded_name(column.name) for column in self.columns}
                self.rowid = next((word for word in ROWIDS if word not in taken), None)
        own = self.id or self.rowid
        self.settable = [column.name for column in self.columns if not column.generated]
        self.writable = list(self.settable)
        self.taken = [column.name for column in self.columns]
        # Last what is for a table whose columns have all the names of the row id.
        self.key: list[str] = [own] if own is not None else [column for column, _ in key] or list(self.settable)
        self.names = {folded_name(column): column for column in self.taken}
        if self.rowid is not None:
            self.names[self.rowid] = self.rowid
            self.taken.append(self.rowid)
            self.writable.append(self.rowid)

    def row(self, values: list[Any]) -> dict[str, Any]:
        """What a trigger took, as a row without ``rowid``."""
        return {column.name: value for column, value in zip(self.columns, values, strict=False)}


def same(one: object, other: object) -> bool:
    """Whether two values are stored as the same."""
    return type(one) is type(other) and bool(one == other)


def _expression(default: str | None) -> str:
    """The default of a column, as it is declared, as an expression."""
    if default is None:
        return "NULL"
    if default.startswith('"'):
        return _literal(default[1:-1].replace('""', '"'))
    if re.fullmatch(r"[^\W\d]\w*", default) and default.upper() not in _CONSTANTS:
        return _literal(default)
    return f"({default})"


def _literal(name: str) -> str:
    # As a default, SQLite takes a name for a text.
    return "'" + name.replace("'", "''") + "'"
