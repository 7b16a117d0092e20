"""One connection of SQLite to the pages of the store."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import apsw

from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb_protocol.errors import SqlError, ToonDBError

from . import failures
from .counting import RunCounter, rows_changed
from .fetching import some_rows
from .known_statements import KnownStatements, changes_rows, is_comment, unique_names
from .page_keys import USER_PAGES, PageSpace
from .pages import PAGE_SIZE, RESERVED_BYTES, open_page_file, vfs_name
from .policy import OWN_SAVEPOINT, Policy, apply_limits
from .row_statement import statements
from .statement_clock import StatementClock

if TYPE_CHECKING:
    from .firing import RowPlugins
    from .row_change import RowChange
    from .row_triggers import RowTriggers

__all__ = ["Bindings", "Outcome", "SqlConnection", "WantsToWrite"]

Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any] | None

_CACHE_KIB = 32 * 1024
_STEPS_BETWEEN_LOOKS = 20_000
_ANY_CHANGES = -1
_MAY_KEEP_PART = re.compile(r"\bfail\b", re.IGNORECASE)


class WantsToWrite(Exception):
    """A statement that was to read only would write; it has done nothing yet."""


class Outcome(NamedTuple):
    """What a statement gave.

    Attributes:
        columns: Names of the columns; empty for a statement without rows.
        rows: The rows.
        rows_affected: Rows that it inserted, changed or deleted.
        last_row_id: Row id of the last row inserted on this connection.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]
    rows_affected: int
    last_row_id: int


class SqlConnection:
    """A connection; used by one thread at a time, except :meth:`interrupt`.

    Args:
        foreign_keys: Enforce FOREIGN KEY constraints.
        steps: Only for short reads: a statement may take so many steps of SQLite's virtual machine; 0 = any number.
        longest_value: Texts and blobs may have so many bytes; 0 = 256 MiB.
        pages: Where its pages are.

    Attributes:
        file: What its file reads and writes.
        plugins: What changes of rows fire; None = nothing.
    """

    def __init__(
        self, *, foreign_keys: bool, steps: int = 0, longest_value: int = 0, pages: PageSpace = USER_PAGES
    ) -> None:
        self.file, name = open_page_file(pages)
        self._foreign_keys = foreign_keys
        self._policy = Policy(only_quick=bool(steps))
        self._ready = False
        self._clock = StatementClock(self._policy)
        self._handled = 0
        self._script = False
        self._reading_only = False
        self._runs: RunCounter | None = None
        self.plugins: RowPlugins | None = None
        self._row_triggers: RowTriggers | None = None
        self._columns: list[str] = []
        self._text = ""
        self._whole = True
        self._readonly = False
        self._known = KnownStatements()
        self._cookie: bytes | None = b""
        # What last_insert_rowid() says where no statement runs: that of this transaction, of nobody else.
        self._row_id = 0
        self._first_run = False
        self._guards = self._guarded = self._keeps_part = False
        # The count of all changes when what may have to be undone began; None = there is nothing of the kind.
        self._unsettled: int | None = None
        self._own_snapshot: Snapshot | None = None
        self._mark: object = None
        self._db = apsw.Connection(name, vfs=vfs_name(), statementcachesize=256)
        apply_limits(self._db)
        # What virtual tables keep in tables of their own is not for statements to write.
        self._db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        self._db.set_authorizer(self._policy)
        if longest_value:
            self._db.limit(apsw.SQLITE_LIMIT_LENGTH, longest_value)
        if steps:
            self._db.set_progress_handler(self._clock.is_over_budget, steps)
        else:
            self._db.set_progress_handler(self._clock.must_stop, _STEPS_BETWEEN_LOOKS)

    # Binding

    def bind(self, snapshot: Snapshot, transaction: Transaction | None, mark: object = None) -> None:
        """Begin to read a snapshot, and with a transaction to write into it.

        Args:
            snapshot: What to read; without a transaction it is this connection's own from now on.
            transaction: What to write into.
            mark: ``environment.mark`` from before the snapshot was taken.
        """
        self._own_snapshot = snapshot if transaction is None else None
        self._mark = mark
        self._clock.halted = False
        self._unsettled = None
        self.file.bind(snapshot, transaction)
        cookie = self.file.schema_cookie
        other_schema = cookie != self._cookie
        if other_schema:
            self._cookie = cookie
            self._known.clear()
        if not self._ready:
            self._set_up()
        if transaction is not None and (triggers := self._fires()) is not None:
            # Not only when something is written: what is done before BEGIN, no rollback undoes.
            triggers.sync()
        self._own("BEGIN" if transaction is None else "BEGIN IMMEDIATE")
        self.forget_row_id()
        if other_schema:
            # SQLite looks at the schema's number when a statement runs; one that does not fit the old schema would
            # fail before, while it is prepared.
            self._own("SELECT 1 FROM sqlite_schema LIMIT 1")

    def _set_up(self) -> None:
        reserved = ctypes.c_int(RESERVED_BYTES)
        self._db.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(reserved))
        for pragma in (
            f"page_size={PAGE_SIZE}",
            "journal_mode=MEMORY",
            "temp_store=MEMORY",
            "synchronous=OFF",
            f"cache_size=-{_CACHE_KIB}",
            f"foreign_keys={'ON' if self._foreign_keys else 'OFF'}",
            "trusted_schema=OFF",
            "recursive_triggers=ON",
        ):
            self._own(f"PRAGMA {pragma}")
        self._ready = True

    def _own(self, statement: str) -> None:
        """Run a statement of ours."""
        self._policy.internal = True
        try:
            # The flag tells it apart, where prepared statements are kept, from the same text of somebody else: what is
            # found there is not looked at by the policy again.
            self._db.execute(statement, prepare_flags=apsw.SQLITE_PREPARE_PERSISTENT).fetchall()
        except apsw.Error as error:
            raise self._translated(error) from None
        finally:
            self._policy.internal = False

    def run_own(self, statement: str) -> None:
        """Run a statement that is none of a user's, so that the policy allows all of it: for a temporary table."""
        self._own(statement)

    @property
    def in_transaction(self) -> bool:
        """Whether SQLite has a transaction open."""
        return self._db.in_transaction

    @property
    def is_torn(self) -> bool:
        """Whether Ctrl-C has cut a statement so that it is neither whole nor undone."""
        return self._unsettled is not None and self._unsettled != self._db.total_changes()

    @property
    def owes_keys(self) -> bool:
        """Whether foreign keys are violated that only a commit would ask for."""
        return self._foreign_keys and self._db.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0] != 0

    def commit(self) -> None:
        """Write what was changed into the transaction's write set."""
        self._own("COMMIT")
        self.file.trim()

    def rollback(self) -> None:
        """Undo what was changed."""
        if self._db.in_transaction:
            self._own("ROLLBACK")

    def reads_as_of(self, mark: object) -> bool:
        """Whether it reads the newest commit still, where ``mark`` is that of now."""
        snapshot = self._own_snapshot
        return (
            self._mark is mark
            and mark is not None
            and snapshot is not None
            and not snapshot.closed
            and self._db.in_transaction
        )

    def let_go(self) -> None:
        """Let go what it reads while it is idle; from any thread."""
        # Read once: its own thread may be letting it go just now.
        snapshot = self._own_snapshot
        if snapshot is not None:
            snapshot.close()

    def forget_row_id(self) -> None:
        """Begin with something that must not be told of the rows that others have inserted."""
        if self._row_id:
            self._row_id = 0
            self._db.set_last_insert_rowid(0)

    def _inserted(self, before: int) -> int:
        """The row id of the last row that a statement inserted, 0 = none; ``before`` are all changes before it."""
        found = self._db.last_insert_rowid()
        # The same number as before may be that of another table.
        inserted = found != self._row_id or self._policy.inserts
        if found and inserted and self._db.total_changes() != before:
            self._row_id = found
            return found
        if found != self._row_id:
            self._db.set_last_insert_rowid(self._row_id)
        return 0

    def release(self, lsn: int | None) -> None:
        """Let the snapshot go; ``lsn`` says with which commit the cache goes, None = with none."""
        if self._db.in_transaction:
            self._own("ROLLBACK")
        if self._db.txn_state("main") != apsw.SQLITE_TXN_NONE:
            # A statement that was cut short, by Ctrl-C for one, is held by a traceback: it would go on reading pages of
            # what was bound until now, among those of what is bound next.
            raise SqlError("a statement of this connection is still under way.")
        self.file.unbind()
        self.file.cached_lsn = lsn
        if lsn is None and self._row_triggers is not None:
            self._row_triggers.forget()
        self.let_go()
        self._own_snapshot = None
        self._mark = None

    def close(self) -> None:
        """Close it."""
        self.file.unbind()
        self.let_go()
        self._db.close(True)

    # Statements

    def run(
        self,
        text: str,
        bindings: Bindings,
        *,
        reading_only: bool,
        in_transaction: bool,
        seconds: float | None,
    ) -> Outcome:
        """Run one statement to its end.

        Args:
            text: The statement.
            bindings: Values of its parameters, by position or by name.
            reading_only: Raise WantsToWrite instead of executing a statement that would write.
            in_transaction: It is part of a transaction of the user, so savepoints are allowed.
            seconds: Interrupt it after so long.

        Raises:
            WantsToWrite: See ``reading_only``.
            SqlError: It cannot be run, or failed; nothing of it was kept.
        """
        if not reading_only and (change := self._change(text)) is not None:
            return self._run_fired(change, text, bindings, in_transaction=in_transaction, seconds=seconds)
        before = self._db.total_changes()
        outer = self._unsettled
        if not reading_only and outer is None:
            self._unsettled = before
        self._guarded = False
        self._guards = not reading_only
        self._keeps_part = _MAY_KEEP_PART.search(text) is not None
        try:
            columns, cursor = self.start(
                text, bindings, reading_only=reading_only, in_transaction=in_transaction, seconds=seconds
            )
            rows = cursor.fetchall()
        except BaseException as error:
            if self._guarded:
                self._undo(error)
            elif self._db.total_changes() != before:
                # A constraint of the schema says FAIL: nothing less than all of it can be undone.
                self.rollback()
            self._unsettled = outer
            if not isinstance(error, Exception):
                raise
            self._inserted(self._db.total_changes())
            raise self._failed(error) from None
        finally:
            self._guards = False
        if self._guarded:
            self._own(f"RELEASE {OWN_SAVEPOINT}")
        self._unsettled = outer
        if self._readonly:
            return Outcome(columns, rows, 0, 0)
        # To make a virtual table is to write rows of it.
        affected = rows_changed(self._db, before) if changes_rows(text) else 0
        return Outcome(columns, rows, affected, self._inserted(before))

    def _guard(self) -> None:
        """Before a statement: begin what is undone when it fails, where SQLite alone would not undo all of it.

        OR FAIL keeps the rows before the one that failed, and so may RAISE(FAIL) in a trigger, or a constraint of a
        table that a trigger writes. What it has kept cannot be told from its count of changes: that has the rows of
        triggers and of foreign keys' actions even when all was undone.
        """
        policy = self._policy
        if self._keeps_part or policy.triggers or (self._foreign_keys and policy.changes):
            self._own(f"SAVEPOINT {OWN_SAVEPOINT}")
            self._guarded = True

    def start(
        self, text: str, bindings: Bindings, *, reading_only: bool, in_transaction: bool, seconds: float | None
    ) -> tuple[list[str], apsw.Cursor]:
        """Start one statement; answers the names of its columns, and what its rows come from. See :meth:`run`."""
        known = self._known.get(text)
        if known is not None and known.readonly:
            # The same text came before: SQLite has it prepared, and what it is need not be asked again.
            self._readonly = True
            self._policy.refused = ""
            self._start_clock(seconds)
            try:
                return known.columns, self._db.execute(text, bindings)
            except Exception as error:
                raise self._failed(error) from None
        if known is not None and reading_only:
            raise WantsToWrite
        cursor = self._execute(text, bindings, reading_only, in_transaction, seconds)
        self._learn(text)
        return self._columns, cursor

    def knows(self, text: str) -> bool:
        """Whether a statement was run before, with the schema of now: it need not be prepared."""
        return text in self._known

    def is_quick(self, text: str) -> bool:
        """Whether a statement that was run is a read that, on few rows, cannot take long."""
        known = self._known.get(text)
        return known is not None and known.quick

    def fetch(
        self, cursor: Iterator[tuple[Any, ...]], count: int, seconds: float | None, size: int
    ) -> tuple[list[tuple[Any, ...]], bool, float | None]:
        """The next rows of a started statement, see :func:`some_rows`; whether it has ended; the time left to it."""
        self._start_clock(seconds)
        try:
            rows, ended = some_rows(cursor, count, size)
        except Exception as error:
            raise self._failed(error) from None
        return rows, ended, self._clock.left

    def run_script(self, text: str, *, seconds: float | None) -> Outcome:
        """Run any number of statements, all of them or, when one fails, none; what rows they give is dropped."""
        before = self._db.total_changes()
        if self._fires() is not None:
            return self._run_script_fired(text, seconds=seconds)
        with self._savepoint(script=True):
            self._prepare(text, reading_only=False, in_transaction=True, seconds=seconds)
            self._script = True
            try:
                for _ in self._db.execute(text, can_cache=False):
                    pass
            except Exception as error:
                raise self._failed(error) from None
            finally:
                self._script = False
                self._db.exec_trace = None
                self._forget_schema()
        return Outcome([], [], self._db.total_changes() - before, self._inserted(before))

    def _savepoint(self, *, script: bool = False) -> _Savepoint:
        """Undo what the block did when it fails; in a ``script`` there may be other savepoints."""
        return _Savepoint(self, script)

    def _undo(self, error: BaseException) -> None:
        """Undo what was done since our savepoint."""
        # Where SQLite had to undo the whole transaction, there is no savepoint left.
        if not self._db.in_transaction:
            return
        try:
            self._own(f"ROLLBACK TO {OWN_SAVEPOINT}")
            self._own(f"RELEASE {OWN_SAVEPOINT}")
            self._inserted(self._db.total_changes())
        except BaseException:
            # Rather all than some of it.
            self.rollback()
            raise error from None

    def _forget_schema(self) -> None:
        """What is known goes with a schema that may have been changed, and perhaps never committed."""
        self._known.clear()
        self._cookie = None

    def _learn(self, text: str) -> None:
        """Remember what a statement is, once it was run."""
        if self._policy.savepoint or (not self._readonly and not changes_rows(text)):
            self._forget_schema()
        else:
            self._known.learn(
                text,
                self._columns,
                readonly=self._readonly,
                quick=self._policy.quick,
                looks=self._policy.looks,
            )

    def run_many(self, text: str, sequence: Iterable[Bindings], *, seconds: float | None) -> Outcome:
        """Run one statement for each set of values; what rows they give is dropped."""
        if (change := self._change(text)) is not None:
            return self._run_many_fired(change, text, sequence, seconds=seconds)
        before = self._db.total_changes()
        with self._savepoint():
            self._prepare(text, reading_only=False, in_transaction=True, seconds=seconds)
            self._policy.repeated = True
            runs = self._runs = RunCounter(self._db, one_by_one=self._foreign_keys)
            # It removes itself, and when Ctrl-C then cuts it apsw looks at it once more, freed or not.
            tracer = self._db.exec_trace
            try:
                for _ in self._db.executemany(text, sequence):  # type: ignore[arg-type]
                    pass
            except Exception as error:
                raise self._failed(error) from None
            finally:
                self._db.exec_trace = None
                del tracer
        return Outcome([], [], runs.affected(), self._inserted(before))

    # Statements that fire plugins

    def _fires(self) -> RowTriggers | None:
        """The triggers of plugins, where there are any."""
        triggers = self._row_triggers
        if triggers is None:
            plugins = self.plugins
            if plugins is None or not plugins.registry.has_any_triggers:
                return None
            from .row_triggers import RowTriggers

            triggers = self._row_triggers = RowTriggers(self._db, self._policy, plugins)
        return None if triggers.idle else triggers

    def _change(self, text: str) -> RowChange | None:
        """A statement that changes rows where there are plugins; else None."""
        triggers = self._fires()
        known = self._known.get(text)
        if triggers is None or (known is not None and known.readonly):
            return None
        try:
            return triggers.begin(text)
        except apsw.Error as error:
            raise self._translated(error) from None

    def _run_fired(
        self, change: RowChange, text: str, bindings: Bindings, *, in_transaction: bool, seconds: float | None
    ) -> Outcome:
        before = self._db.total_changes()
        try:
            with self._savepoint():
                change.start()
                columns, cursor = self.start(
                    text, bindings, reading_only=False, in_transaction=in_transaction, seconds=seconds
                )
                rows = cursor.fetchall()
                affected = rows_changed(self._db, before)
                rows += change.apply(bindings)
        except Exception as error:
            failed = self._failed(error)
            raise failed from failed.__cause__
        return Outcome(columns, rows, affected + change.affected, self._inserted(before))

    def _run_many_fired(
        self, change: RowChange, text: str, sequence: Iterable[Bindings], *, seconds: float | None
    ) -> Outcome:
        affected = 0
        start = self._db.total_changes()
        try:
            with self._savepoint():
                for at, bindings in enumerate(sequence):
                    before = self._db.total_changes()
                    change.start()
                    if at:
                        self._db.execute(text, bindings).fetchall()
                    else:
                        self._execute(text, bindings, False, True, seconds).fetchall()
                    affected += rows_changed(self._db, before)
                    change.apply(bindings, more=True)
                change.end()
        except Exception as error:
            failed = self._failed(error)
            raise failed from failed.__cause__
        return Outcome([], [], affected + change.affected, self._inserted(start))

    def _run_script_fired(self, text: str, *, seconds: float | None) -> Outcome:
        before, last = self._db.total_changes(), 0
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            with self._savepoint(script=True):
                for statement in statements(text):
                    left = None if deadline is None else deadline - time.monotonic()
                    done = self.run(statement, None, reading_only=False, in_transaction=True, seconds=left)
                    last = done.last_row_id or last
        finally:
            self._forget_schema()
        return Outcome([], [], self._db.total_changes() - before, last)

    def _prepare(self, text: str, *, reading_only: bool, in_transaction: bool, seconds: float | None) -> None:
        self._policy.begin(in_transaction=in_transaction)
        self._text, self._whole, self._columns = text, True, []
        self._reading_only = reading_only
        self._runs = None
        self._first_run = True
        self._start_clock(seconds)
        self._db.exec_trace = self._traced

    def _start_clock(self, seconds: float | None) -> None:
        self._handled = id(sys.exception())
        self._clock.start(seconds)

    def _execute(
        self, text: str, bindings: Bindings, reading_only: bool, in_transaction: bool, seconds: float | None
    ) -> apsw.Cursor:
        self._prepare(text, reading_only=reading_only, in_transaction=in_transaction, seconds=seconds)
        try:
            # Prepared anew: an old one has the columns of an old schema, and what it may do is looked at only once.
            return self._db.execute(text, bindings, can_cache=False)
        except Exception as error:
            failed = self._failed(error)
            raise failed from failed.__cause__
        finally:
            self._db.exec_trace = None

    def _failed(self, error: Exception) -> Exception:
        """What to raise for what a statement raised."""
        if isinstance(error, (ToonDBError, WantsToWrite)):
            return error
        if isinstance(error, apsw.ExecTraceAbort):
            return self._refusal()
        found = failures.of_values(error)
        if found is not None:
            return found
        return self._translated(error) if isinstance(error, apsw.Error) else error

    def _refusal(self) -> Exception:
        if not self._whole:
            return SqlError(
                "there is more than one statement in this text.",
                remediation="Give one at a time, or use execute_script().",
            )
        return WantsToWrite()

    def _traced(self, cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
        """Called by SQLite's binding before a prepared statement is executed; False refuses it."""
        if self._policy.internal or self._script:
            return True
        if len(statement) < len(self._text):
            rest = self._text[len(statement) :]
            if not is_comment(rest):
                self._whole = False
                return False
        readonly = cursor.is_readonly and not self._policy.writes
        if self._reading_only and not readonly:
            return False
        if self._first_run:
            self._first_run = False
            if not readonly and not self._policy.row_id:
                self._db.set_last_insert_rowid(0)  # to tell whether it inserts anything
        if self._runs is not None:
            if self._runs.next(triggers=self._policy.triggers):
                self._db.exec_trace = None
        elif self._guards and not readonly and not self._policy.savepoint:
            self._guard()
        self._readonly = readonly
        self._columns = unique_names([column[0] for column in cursor.get_description()])
        return True

    def interrupt(self) -> None:
        """End the statement that is running, from any thread."""
        self._clock.interrupted = True

    def halt(self) -> None:
        """End the statement that is running and all that follow, until it is bound again; from any thread."""
        self._clock.halted = True

    def _translated(self, error: apsw.Error) -> ToonDBError:
        return failures.of_engine(
            error, refused=self._policy.refused, handled=self._handled, out_of_time=self._clock.over
        )


class _Savepoint:
    """What a block does is undone when it fails.

    Not a generator: when Ctrl-C cuts it on the way into the block, it would go on whenever the collector meets it, and
    undo what has nothing to do with it, or find the connection closed.
    """

    def __init__(self, connection: SqlConnection, script: bool) -> None:
        self._connection = connection
        self._script = script
        self._before: list[str] | None = None

    def __enter__(self) -> None:
        connection = self._connection
        connection._unsettled = _ANY_CHANGES
        connection._own(f"SAVEPOINT {OWN_SAVEPOINT}")
        self._before = connection._policy.savepoints
        if self._script:
            # One from before must not be touched: that would take ours away.
            connection._policy.savepoints = []

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        connection = self._connection
        connection._policy.savepoints = self._before
        if error is not None:
            connection._undo(error)
        else:
            connection._own(f"RELEASE {OWN_SAVEPOINT}")
        connection._unsettled = None
