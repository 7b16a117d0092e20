"""A statement that changes rows, with what the plugins make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from toondb.plugins import TriggerEvent, folded_name

from .row_statement import VALUE, Kind, RowStatement, filled
from .row_table import ROWIDS, RowTable, same
from .table import quoted

if TYPE_CHECKING:
    from .row_triggers import RowTriggers

__all__ = ["NO_ROWID_YET", "Captured", "Row", "RowChange"]

Row = dict[str, Any]

NO_ROWID_YET = -1
"""What SQLite gives a BEFORE INSERT trigger for the row id that it has yet to choose."""


class Captured(NamedTuple):
    """A row that was to be inserted or updated.

    Attributes:
        old: What it was before an UPDATE; empty for an INSERT.
        new: What it is to be.
    """

    old: list[Any]
    new: list[Any]


class RowChange:
    """A statement that changes rows.

    Args:
        triggers: The triggers of its connection.
        statement: Its parts.
        table: The table, when its rows are captured.

    Attributes:
        affected: Rows that were changed for those that were captured.
    """

    def __init__(self, triggers: RowTriggers, statement: RowStatement, table: RowTable | None) -> None:
        self._triggers = triggers
        self._statement = statement
        self._table = table
        inserts = statement.kind is Kind.INSERT
        self._event = TriggerEvent.BEFORE_INSERT if inserts else TriggerEvent.BEFORE_UPDATE
        self._together: list[tuple[Row, Any]] = []
        self._assigned: set[str | None] | None = None
        self.affected = 0
        self._batches = inserts and table is not None and triggers.fires(table, TriggerEvent.ON_BATCH)

    def start(self) -> None:
        """Before the statement runs with some values."""
        if self._table is not None:
            self._triggers.capture(self._table, self._event)

    def apply(self, bindings: Any, *, more: bool = False) -> list[tuple[Any, ...]]:
        """After it has run with some values: change what the plugins gave.

        Args:
            bindings: The values of its parameters.
            more: It runs again with other values; :meth:`end` comes at last.

        Returns:
            The rows of its RETURNING clause.
        """
        table = self._table
        if table is None:
            return []
        captured = self._triggers.take_captured()
        if self._assigned is None:
            # Now: SQLite prepares what is run for each row, too.
            own = folded_name(table.name)
            rowid = table.id or table.rowid
            # What is no column is another name of the row id.
            self._assigned = {table.names.get(name, rowid) for of, name in self._triggers.assigned if of == own}
        if self._event is TriggerEvent.BEFORE_UPDATE:
            return self._update(table, captured, bindings)
        rows = self._given(table, captured, bindings)
        if not self._batches:
            return self._insert(table, rows, bindings)
        # Values in what is kept of the statement would be lost when rows of several sets are mixed.
        if more and not self._statement.kept:
            self._together.extend((row, bindings) for row in rows)
            return []
        return self._insert(table, self._triggers.fire_batch(table, rows), bindings) if rows else []

    def end(self) -> None:
        """After it has run for the last time."""
        together, self._together = self._together, []
        if self._table is not None and together:
            rows = self._triggers.fire_batch(self._table, [row for row, _ in together])
            self._insert(self._table, rows, None)

    # INSERT

    def _given(self, table: RowTable, captured: list[Captured], bindings: Any) -> list[Row]:
        """The rows as the statement gives them: without what it does not name and is NULL."""
        listed = None if self._statement.columns is None else [folded_name(name) for name in self._statement.columns]
        chosen = self._chosen(table, listed, captured, bindings)
        rows: list[Row] = []
        for at, (_, new) in enumerate(captured):
            row = table.row(new)
            if listed is not None:
                row = {name: value for name, value in row.items() if value is not None or folded_name(name) in listed}
            if chosen is None or chosen[at] is None:
                if table.id:
                    row.pop(table.id, None)
                    if listed is None or folded_name(table.id) in listed:
                        row[table.id] = None
            elif not table.id and table.rowid:
                row[table.rowid] = chosen[at]
            rows.append(row)
        return rows

    def _chosen(
        self, table: RowTable, listed: list[str] | None, captured: list[Captured], bindings: Any
    ) -> list[int | None] | None:
        """The row ids that the statement itself gives; None when it gives none."""
        statement = self._statement
        name = table.id or table.rowid
        if name is None or statement.source.text.upper().startswith("DEFAULT"):
            return None
        names = {folded_name(name), *(word for word in ROWIDS if word not in table.names or word == table.rowid)}
        if listed is None:
            place = table.settable.index(name) if table.id else -1
        else:
            place = max((at for at, column in enumerate(listed) if column in names), default=-1)
        if place < 0:
            return None
        at = table.taken.index(name)
        chosen: list[int | None] = [new[at] for _, new in captured]
        if NO_ROWID_YET not in chosen:
            return chosen
        # SQLite's way to say that it will choose one, but a user may give it, too: only the source tells.
        width = len(table.settable) if listed is None else len(listed)
        columns = ", ".join(f"c{number}" for number in range(width))
        prefix = (statement.prefix, ",") if statement.prefix.text else ("WITH",)
        text, values = filled(
            [*prefix, f"toondb_source({columns}) AS (", statement.source, f") SELECT c{place} FROM toondb_source"],
            [],
            bindings,
        )
        for number, (value,) in enumerate(self._triggers.read(text, values)):
            if value is None and number < len(chosen):
                chosen[number] = None
        return chosen

    def _insert(self, table: RowTable, rows: list[Row], bindings: Any) -> list[tuple[Any, ...]]:
        triggers, statement = self._triggers, self._statement
        fires = triggers.fires(table, TriggerEvent.BEFORE_INSERT)
        updates = statement.upsert and triggers.fires(table, TriggerEvent.BEFORE_UPDATE)
        returned: list[tuple[Any, ...]] = []
        for given in rows:
            row = triggers.fire(table, TriggerEvent.BEFORE_INSERT, given) if fires else given
            names = [name for name in table.writable if name in row]
            values = [row[name] for name in names]
            places = [VALUE] * len(names)
            if not names:
                names = table.settable[:1]
                places = [column.default for column in table.columns if column.name == names[0]]
            text, all_values = filled(
                [
                    statement.prefix,
                    f"{statement.verb} main.{quoted(table.name)} {statement.alias} ({', '.join(map(quoted, names))}) "
                    f"VALUES ({', '.join(places)})",
                    statement.tail,
                ],
                values,
                bindings,
            )
            if updates:
                triggers.capture(table, TriggerEvent.BEFORE_UPDATE)
            found, count = triggers.run(table, TriggerEvent.BEFORE_INSERT, text, all_values)
            returned += found
            self.affected += count
            if updates:
                returned += self._update(table, triggers.take_captured(), bindings)
        return returned

    # UPDATE

    def _update(self, table: RowTable, captured: list[Captured], bindings: Any) -> list[tuple[Any, ...]]:
        triggers, statement = self._triggers, self._statement
        verb = statement.verb if statement.kind is Kind.UPDATE else "UPDATE"
        assigned = self._assigned or set()
        returned: list[tuple[Any, ...]] = []
        for old_values, new_values in captured:
            old = dict(zip(table.taken, old_values, strict=True))
            row = triggers.fire(table, TriggerEvent.BEFORE_UPDATE, table.row(new_values))
            final = {name: row.get(name, old[name]) for name in table.settable}
            if table.rowid is not None:
                final[table.rowid] = row.get(table.rowid, new_values[-1])
            names = [name for name in final if name in assigned or not same(final[name], old[name])]
            text, values = filled(
                [
                    statement.prefix,
                    f"{verb} main.{quoted(table.name)} {statement.alias} "
                    f"SET {', '.join(f'{quoted(name)} = {VALUE}' for name in names)} "
                    f"WHERE {' AND '.join(f'{quoted(name)} IS {VALUE}' for name in table.key)}",
                    statement.returning,
                ],
                [*(final[name] for name in names), *(old[name] for name in table.key)],
                bindings,
            )
            found, count = triggers.run(table, TriggerEvent.BEFORE_UPDATE, text, values)
            returned += found
            self.affected += count
        return returned
