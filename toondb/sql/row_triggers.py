"""Plugins fire on the rows that SQL changes.

A connection gets TEMP triggers on the tables that plugins name. They call functions of ours, and are not there for
anyone else. Two things are done with them:

* An INSERT or UPDATE of a table whose plugins may change its rows is *captured*: it runs with triggers that ignore each
  row and note it (so nothing happens yet), then the handlers are called, and then the statement runs again for each
  row, with the values that the handlers gave in the place of its own. It keeps its OR, ON CONFLICT and RETURNING, so
  these do with the row of the plugins what they would do with any other.
* A row that is changed further inside (by a trigger of the user, by a foreign key's action) is handled where it is: the
  trigger changes the row that the handlers gave, and ignores the one that was to be changed.

SQLite runs TEMP triggers before those of the table itself, so triggers of users see what plugins gave.

Source: https://www.sqlite.org/lang_createtrigger.html
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, NoReturn

import apsw

from toondb.plugins import TriggerEvent, folded_name
from toondb_protocol.errors import PluginError, ValidationError
from toondb_protocol.sql_values import given_parameters

from .firing import RowPlugins
from .policy import Policy
from .row_change import NO_ROWID_YET, Captured, Row, RowChange
from .row_statement import Kind, RowStatement, changes_schema, parse
from .row_table import RowTable, same
from .table import quoted

__all__ = ["RowTriggers"]

_PREFIX: Final = "toondb plugins "
_FUNCTION: Final = "toondb_row_"
_ARGUMENTS: Final = 100

_TABLES: Final = (
    "SELECT name, wr FROM pragma_table_list "
    "WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)
_TRIGGERS: Final = "SELECT name FROM sqlite_temp_schema WHERE type = 'trigger' ORDER BY rowid"

Values = list[Any]


class _Slot(NamedTuple):
    """What a trigger is for."""

    table: RowTable
    event: TriggerEvent


_EVENTS: Final = {
    TriggerEvent.BEFORE_INSERT: "INSERT",
    TriggerEvent.BEFORE_UPDATE: "UPDATE",
    TriggerEvent.BEFORE_DELETE: "DELETE",
    TriggerEvent.AFTER_INSERT: "INSERT",
    TriggerEvent.AFTER_UPDATE: "UPDATE",
    TriggerEvent.AFTER_DELETE: "DELETE",
}


class RowTriggers:
    """The triggers of one connection.

    Args:
        db: The connection.
        policy: Its authorizer.
        plugins: What fires.
    """

    def __init__(self, db: apsw.Connection, policy: Policy, plugins: RowPlugins) -> None:
        self._db = db
        self._policy = policy
        self._plugins = plugins
        self._mark: object = None
        self._names: list[str] = []
        self._lost: list[str] = []
        self._generations = itertools.count(1)
        self._slots: list[_Slot] = []
        self._tables: dict[str, RowTable] = {}
        self.assigned: set[tuple[str, str]] = set()
        self._gone = False
        self._reset()
        functions: list[Any] = [
            self._take,
            self._before,
            self._changed,
            self._has,
            self._value,
            self._done,
            self._after,
        ]
        for function in functions:
            db.create_scalar_function(f"{_FUNCTION[:-1]}{function.__name__}", function)
        db.set_authorizer(self._authorize)

    def _reset(self) -> None:
        """Forget what a statement left that failed half-way."""
        self._taking: Values = []
        self._frames: list[Values | None] = []
        self._passing: _Slot | None = None
        self._capturing: _Slot | None = None
        self._captured: list[Captured] = []

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> int:
        policy = self._policy
        if not policy.internal:
            if action == apsw.SQLITE_UPDATE and trigger is None and second:
                self.assigned.add((folded_name(first or ""), folded_name(second)))
            elif action == apsw.SQLITE_FUNCTION and (second or "").startswith(_FUNCTION):
                if not (trigger or "").startswith(_PREFIX):
                    policy.refused = f"the function {second}() is for plugins."
                    return apsw.SQLITE_DENY
            elif action == apsw.SQLITE_CREATE_TRIGGER and (first or "").lower().startswith(_PREFIX):
                policy.refused = f"the trigger {first!r} is for plugins."
                return apsw.SQLITE_DENY
        return policy(action, first, second, database, trigger)

    # Installing

    @property
    def idle(self) -> bool:
        """Whether there is nothing to fire, and no trigger left."""
        return self._gone and not self._plugins.registry.has_any_triggers

    def forget(self) -> None:
        """What is known of the tables may never have been committed."""
        self._mark = None

    def sync(self) -> None:
        """Have the triggers that the plugins and tables of now need."""
        registry = self._plugins.registry
        ((schema,),) = self._own("PRAGMA main.schema_version")
        mark = (registry.version, schema)
        # Asked each time: a rollback also undoes changes of triggers.
        there = [name for (name,) in self._own(_TRIGGERS)]
        if mark == self._mark and there == [*self._lost, *self._names]:
            return
        self._drop(there)
        if registry.has_any_triggers:
            self._install()
        elif not self._db.in_transaction and not self._lost:
            self._gone = True  # where no rollback brings them back
        self._mark = mark

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._own(f"DROP TRIGGER IF EXISTS temp.{quoted(name)}")
        # That of a table which another connection dropped is no trigger now. It may be one again, with the next schema.
        self._lost = [name for (name,) in self._own(_TRIGGERS)]
        self._mark, self._names, self._slots, self._tables = None, [], [], {}

    def _install(self) -> None:
        registry = self._plugins.registry
        self._gone = False
        generation = next(self._generations)
        for name, without_rowid in self._own(_TABLES):
            events = {event for event in TriggerEvent if registry.has_triggers(name, event)}
            if not events:
                continue
            if events & {TriggerEvent.ON_BATCH, TriggerEvent.BEFORE_UPDATE}:
                events.add(TriggerEvent.BEFORE_INSERT)  # that captures, and knows of ON CONFLICT DO UPDATE
            table = self._tables[folded_name(name)] = self._table(name, bool(without_rowid))
            for event in _EVENTS:
                if event in events:
                    trigger = f"{_PREFIX}{generation} {len(self._slots)}"
                    self._own(_trigger(trigger, len(self._slots), table, event))
                    self._names.append(trigger)
                    self._slots.append(_Slot(table, event))

    def _table(self, name: str, without_rowid: bool) -> RowTable:
        self._policy.internal = True
        try:
            return RowTable(self._db, name, without_rowid)
        finally:
            self._policy.internal = False

    def _own(self, text: str, bindings: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement of ours."""
        self._policy.internal = True
        try:
            # The flag: see SqlConnection._own().
            return self._db.execute(text, bindings, prepare_flags=apsw.SQLITE_PREPARE_PERSISTENT).fetchall()
        finally:
            self._policy.internal = False

    # Statements

    def begin(self, text: str) -> RowChange | None:
        """Get ready for a statement that may write; None when it is not one that changes rows."""
        self._reset()
        statement = parse(text)
        if statement is None:
            if changes_schema(text):
                # A trigger that names a column in its way would keep a table from being changed.
                self._drop([name for (name,) in self._own(_TRIGGERS)])
            return None
        self.sync()
        self.assigned.clear()
        return RowChange(self, statement, self._captures(statement))

    def _captures(self, statement: RowStatement) -> RowTable | None:
        table = self._tables.get(folded_name(statement.table))
        if table is None or statement.kind is Kind.DELETE:
            return None
        if statement.kind is Kind.UPDATE:
            return table if self.fires(table, TriggerEvent.BEFORE_UPDATE) else None
        if self.fires(table, TriggerEvent.BEFORE_INSERT) or self.fires(table, TriggerEvent.ON_BATCH):
            return table
        return table if statement.upsert and self.fires(table, TriggerEvent.BEFORE_UPDATE) else None

    def fires(self, table: RowTable, event: TriggerEvent) -> bool:
        """Whether there is a plugin for it."""
        return self._plugins.registry.has_triggers(table.name, event)

    def capture(self, table: RowTable, event: TriggerEvent) -> None:
        """From now on, note and ignore what is to happen to rows of a table."""
        self._capturing = self._slot(table, event)

    def take_captured(self) -> list[Captured]:
        """What was noted; end that."""
        found, self._captured, self._capturing = self._captured, [], None
        return found

    def run(self, table: RowTable, event: TriggerEvent, text: str, bindings: Any) -> tuple[list[tuple[Any, ...]], int]:
        """Run a statement for one row whose handlers were called; answers what it returns and how many it changed."""
        before = self._db.total_changes()
        self._passing = self._slot(table, event)
        try:
            # Not as one of ours: it has what the user wrote, and may be interrupted.
            rows = self._db.execute(text, bindings).fetchall()
        finally:
            self._passing = None
        return rows, self._db.changes() if self._db.total_changes() != before else 0

    def read(self, text: str, bindings: Any) -> list[tuple[Any, ...]]:
        """Run a statement that reads."""
        return self._own(text, bindings)

    def _slot(self, table: RowTable, event: TriggerEvent) -> _Slot | None:
        return next((slot for slot in self._slots if slot.table is table and slot.event is event), None)

    # Handlers

    def fire(self, table: RowTable, event: TriggerEvent, row: Row) -> Row:
        """The row that the handlers give, with the names of columns as the table has them."""
        return self._checked(table, event, row, self._plugins.fire(table.name, event, row))

    def fire_batch(self, table: RowTable, rows: list[Row]) -> list[Row]:
        """The rows that the handlers of batches give."""
        event = TriggerEvent.ON_BATCH
        fired = self._plugins.fire(table.name, event, rows)
        if fired is rows:
            return rows
        # A row that is computed from another one may have its generated values: they are not looked at.
        return [self._checked(table, event, None, row) for row in fired]

    def _checked(self, table: RowTable, event: TriggerEvent, given: Row | None, row: Row) -> Row:
        if row is given:
            return row
        known = f"Columns: {', '.join(table.settable)}."
        out: Row = {}
        for key, value in row.items():
            name = table.names.get(folded_name(key)) if isinstance(key, str) else None
            if name is None:
                self._fail(table, event, f"gave a column {key!r:.60}, which the table does not have.", known)
            if name in out:
                self._fail(table, event, f"gave the column {name!r} twice.", known)
            out[name] = value
        for column in table.columns:
            if column.generated and column.name in out:
                value = out.pop(column.name)
                if given is not None and not same(value, given.get(column.name)):
                    self._fail(table, event, f"changed the column {column.name!r}, which is generated.", None)
        try:
            values = given_parameters(out)
        except ValidationError as error:
            self._fail(table, event, f"gave a value that no column holds: {error.message}", error.remediation)
        assert isinstance(values, dict)
        for name, value in values.items():
            if type(value) is int and not -(1 << 63) <= value < 1 << 63:
                self._fail(table, event, f"gave {name!r} an int of more than 64 bits.", None)
            if type(value) is str and value.encode(errors="replace").decode() != value:
                self._fail(table, event, f"gave {name!r} text that is not valid Unicode.", None)
        return values

    def _fail(self, table: RowTable, event: TriggerEvent, what: str, remediation: str | None) -> NoReturn:
        plugins = " or ".join(map(repr, self._plugins.registry.triggered_by(table.name, event)))
        raise PluginError(
            f"{event} on table {table.name!r}: plugin {plugins} {what}",
            remediation=remediation,
            details={"table": table.name, "event": str(event)},
        )

    # Functions that the triggers call

    def _take(self, first: int, *values: Any) -> None:
        """Some values of a row, of which ``first`` came before."""
        if not first:
            self._taking = []
        self._taking.extend(values)

    def _before(self, number: int) -> bool:
        """Whether to ignore the row; else the trigger goes on."""
        slot, values = self._slots[number], self._taking
        table, event = slot
        if slot is self._passing:
            self._passing = None
            self._frames.append(None)
            return False
        updates = event is TriggerEvent.BEFORE_UPDATE
        width = len(table.taken)
        old, new = (values[:width], values[width:]) if updates else ([], values)
        if slot is self._capturing:
            self._captured.append(Captured(old, new))
            return True
        if table.id and not updates:
            at = table.taken.index(table.id)
            # Whether a trigger of the user said so itself cannot be told here.
            new[at] = None if new[at] == NO_ROWID_YET else new[at]
        given = table.row(new)
        row = self.fire(table, event, given)
        if row is given or all(name in row and same(row[name], given[name]) for name in table.settable):
            self._frames.append(None)
            return False
        frame = [row.get(name, _LEFT_OUT) for name in table.taken]
        if updates:
            frame = [old[at] if value is _LEFT_OUT else value for at, value in enumerate(frame)]
        if table.rowid is not None and table.rowid not in row:
            frame[-1] = new[-1] if updates else None
        self._frames.append(frame)
        self._passing = slot
        return False

    def _changed(self) -> bool:
        return self._frames[-1] is not None

    def _has(self, at: int) -> bool:
        frame = self._frames[-1]
        return frame is not None and frame[at] is not _LEFT_OUT

    def _value(self, at: int) -> Any:
        frame = self._frames[-1]
        assert frame is not None
        return frame[at]

    def _done(self) -> bool:
        return self._frames.pop() is not None

    def _after(self, number: int) -> None:
        table, event = self._slots[number]
        self._plugins.fire(table.name, event, table.row(self._taking))


_LEFT_OUT: Final = object()


def _trigger(name: str, slot: int, table: RowTable, event: TriggerEvent) -> str:
    """The statement that creates a trigger."""
    when = "BEFORE" if event.name.startswith("BEFORE") else "AFTER"
    place = quoted(table.name)
    rows = {TriggerEvent.BEFORE_UPDATE: ("OLD", "NEW")}.get(event, ("OLD",) if _EVENTS[event] == "DELETE" else ("NEW",))
    values = [f"{row}.{quoted(column)}" for row in rows for column in table.taken]
    steps = [
        f"SELECT {_FUNCTION}take({first}, {', '.join(values[first : first + _ARGUMENTS])})"
        for first in range(0, len(values), _ARGUMENTS)
    ]
    if event not in (TriggerEvent.BEFORE_INSERT, TriggerEvent.BEFORE_UPDATE):
        steps.append(f"SELECT {_FUNCTION}after({slot})")
    else:
        steps.append(f"SELECT RAISE(IGNORE) WHERE {_FUNCTION}before({slot})")
        names = {column: table.taken.index(column) for column in table.writable}
        if event is TriggerEvent.BEFORE_INSERT:
            defaults = {column.name: column.default for column in table.columns}
            given = ", ".join(
                f"CASE WHEN {_FUNCTION}has({at}) THEN {_FUNCTION}value({at}) ELSE {defaults.get(column, 'NULL')} END"
                for column, at in names.items()
            )
            columns = ", ".join(map(quoted, names))
            steps.append(f"INSERT INTO {place} ({columns}) SELECT {given} WHERE {_FUNCTION}changed()")
        else:
            given = ", ".join(f"{quoted(column)} = {_FUNCTION}value({at})" for column, at in names.items())
            row = " AND ".join(f"{quoted(column)} IS OLD.{quoted(column)}" for column in table.key)
            steps.append(f"UPDATE {place} SET {given} WHERE {row} AND {_FUNCTION}changed()")
        steps.append(f"SELECT RAISE(IGNORE) WHERE {_FUNCTION}done()")
    body = "; ".join(steps)
    return f"CREATE TEMP TRIGGER {quoted(name)} {when} {_EVENTS[event]} ON main.{place} BEGIN {body}; END"
