"""One connection of SQLite to the pages of the store."""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import apsw

from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    SqlInterruptedError,
    ToonDBError,
    TransactionTooLargeError,
    ValidationError,
)

from .pages import PAGE_SIZE, RESERVED_BYTES, open_page_file, vfs_name
from .policy import Policy, apply_limits

__all__ = ["Bindings", "Outcome", "SqlConnection", "WantsToWrite"]

Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any] | None

_CACHE_KIB = 32 * 1024
_STEPS_BETWEEN_LOOKS = 20_000
_COMMENT = re.compile(r"\s+|;|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)", re.DOTALL)


_CHANGES_ROWS = re.compile(r"\s*(?:insert|update|delete|replace|with)\b", re.IGNORECASE)
_SAVEPOINT = re.compile(r"\W*(?:savepoint|release|rollback)\b", re.IGNORECASE)
_KNOWN_STATEMENTS = 512


class _Known(NamedTuple):
    """What is known of a statement that was run before."""

    readonly: bool
    columns: list[str]


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

    Attributes:
        file: What its file reads and writes.
    """

    def __init__(self, *, foreign_keys: bool) -> None:
        self.file, name = open_page_file()
        self._foreign_keys = foreign_keys
        self._policy = Policy()
        self._ready = False
        self._deadline: float | None = None
        self._stop = self._many = False
        self._reading_only = False
        self._columns: list[str] = []
        self._text = ""
        self._whole = True
        self._readonly = False
        self._known: dict[str, _Known] = {}
        self._cookie = b""
        self._own_snapshot: Snapshot | None = None
        self._mark: object = None
        self.lock = threading.Lock()
        self._db = apsw.Connection(name, vfs=vfs_name(), statementcachesize=256)
        apply_limits(self._db)
        self._db.set_authorizer(self._policy)
        self._db.set_progress_handler(self._must_stop, _STEPS_BETWEEN_LOOKS)

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
        self.file.bind(snapshot, transaction)
        cookie = self.file.schema_cookie
        if cookie != self._cookie:
            self._cookie = cookie
            self._known.clear()
        if not self._ready:
            self._set_up()
        self._own("BEGIN" if transaction is None else "BEGIN IMMEDIATE")

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
            self._db.execute(statement).fetchall()
        except apsw.Error as error:
            raise self._translated(error) from None
        finally:
            self._policy.internal = False

    @property
    def in_transaction(self) -> bool:
        """Whether SQLite has a transaction open."""
        return self._db.in_transaction

    def commit(self) -> None:
        """Write what was changed into the transaction's write set."""
        self._own("COMMIT")

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
        if self._own_snapshot is not None:
            self._own_snapshot.close()

    def release(self, lsn: int | None) -> None:
        """Let the snapshot go; ``lsn`` says with which commit the cache goes, None = with none."""
        if self._db.in_transaction:
            self._own("ROLLBACK")
        self.file.unbind()
        self.file.cached_lsn = lsn
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
        known = self._known.get(text)
        if known is not None:
            # The same text came before: SQLite has it prepared, and what it is need not be asked again.
            if known.readonly:
                self._start_clock(seconds)
                try:
                    rows = self._db.execute(text, bindings).fetchall()
                except apsw.Error as error:
                    raise self._translated(error) from None
                except TypeError as error:
                    raise _bad_binding(error) from None
                return Outcome(known.columns, rows, 0, 0)
            if reading_only:
                raise WantsToWrite
        before = self._db.total_changes()
        cursor = self._execute(text, bindings, reading_only, in_transaction, seconds)
        try:
            rows = cursor.fetchall()
        except apsw.Error as error:
            raise self._translated(error) from None
        self._learn(text)
        return Outcome(self._columns, rows, self._db.total_changes() - before, self._db.last_insert_rowid())

    def _learn(self, text: str) -> None:
        """Remember what a statement is, once it was run."""
        if not self._readonly and not _CHANGES_ROWS.match(text):
            self._known.clear()  # it may have changed the schema, and with it the columns of others
        elif not _SAVEPOINT.match(text):
            if len(self._known) >= _KNOWN_STATEMENTS:
                self._known.clear()
            self._known[text] = _Known(self._readonly, self._columns)

    def run_many(self, text: str, sequence: Iterable[Bindings], *, seconds: float | None) -> Outcome:
        """Run one statement for each set of values; what rows they give is dropped."""
        before = self._db.total_changes()
        self._own("SAVEPOINT toondb_many")
        try:
            self._prepare(text, reading_only=False, in_transaction=True, seconds=seconds)
            self._many = True
            try:
                for _ in self._db.executemany(text, sequence):  # type: ignore[arg-type]
                    pass
            except apsw.ExecTraceAbort:
                raise self._refusal() from None
            except apsw.Error as error:
                raise self._translated(error) from None
            except TypeError as error:
                raise _bad_binding(error) from None
        except BaseException:
            self._db.exec_trace = None
            self._own("ROLLBACK TO toondb_many")
            self._own("RELEASE toondb_many")
            raise
        self._own("RELEASE toondb_many")
        return Outcome([], [], self._db.total_changes() - before, self._db.last_insert_rowid())

    def _prepare(self, text: str, *, reading_only: bool, in_transaction: bool, seconds: float | None) -> None:
        policy = self._policy
        policy.refused = ""
        policy.in_transaction = in_transaction
        self._text, self._whole, self._columns = text, True, []
        self._reading_only = reading_only
        self._many = False
        self._start_clock(seconds)
        self._db.exec_trace = self._traced

    def _start_clock(self, seconds: float | None) -> None:
        self._stop = False
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _execute(
        self, text: str, bindings: Bindings, reading_only: bool, in_transaction: bool, seconds: float | None
    ) -> apsw.Cursor:
        self._prepare(text, reading_only=reading_only, in_transaction=in_transaction, seconds=seconds)
        try:
            # Prepared anew: an old one has the columns of an old schema, and what it may do is looked at only once.
            return self._db.execute(text, bindings, can_cache=False)
        except apsw.ExecTraceAbort:
            raise self._refusal() from None
        except (apsw.BindingsError, TypeError) as error:
            raise _bad_binding(error) from None
        except apsw.Error as error:
            raise self._translated(error) from None
        finally:
            self._db.exec_trace = None

    def _refusal(self) -> Exception:
        if not self._whole:
            return SqlError(
                "there is more than one statement in this text.",
                remediation="Give one at a time, or use execute_script().",
            )
        return WantsToWrite()

    def _traced(self, cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
        """Called by SQLite's binding before a prepared statement is executed; False refuses it."""
        if self._policy.internal:
            return True
        if len(statement) < len(self._text):
            rest = self._text[len(statement) :]
            if _COMMENT.sub("", rest):
                self._whole = False
                return False
        if self._reading_only and not cursor.is_readonly:
            return False
        if self._many:
            # It is the same statement for every set of values: once is enough.
            self._db.exec_trace = None
        self._readonly = cursor.is_readonly
        self._columns = _unique([column[0] for column in cursor.get_description()])
        return True

    def interrupt(self) -> None:
        """End the statement that is running, from any thread."""
        self._stop = True

    def _must_stop(self) -> bool:
        return self._stop or (self._deadline is not None and time.monotonic() > self._deadline)

    def _translated(self, error: apsw.Error) -> ToonDBError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ToonDBError):
                return cause  # the store refused a page
            cause = cause.__cause__ or cause.__context__
        text = str(error)
        if isinstance(error, apsw.AuthError):
            return SqlForbiddenError(self._policy.refused or text)
        if isinstance(error, apsw.InterruptError):
            if self._stop:
                return SqlInterruptedError("the statement was interrupted.")
            return SqlInterruptedError("the statement ran for longer than it may.")
        if isinstance(error, apsw.ConstraintError):
            return SqlConstraintError(f"{text}.", details={"extended_code": getattr(error, "extendedresult", None)})
        if isinstance(error, apsw.FullError):
            return TransactionTooLargeError(f"{text}.")
        return SqlError(f"{text}.", details={"sqlite_code": getattr(error, "result", None)})


def _unique(names: list[str]) -> list[str]:
    """Names of columns as keys of a row: the second ``id`` is ``id:1``, as SQLite names it in a view."""
    if len(set(names)) == len(names):
        return names
    taken: set[str] = set()
    out: list[str] = []
    for name in names:
        given, number = name, 0
        while given in taken:
            number += 1
            given = f"{name}:{number}"
        taken.add(given)
        out.append(given)
    return out


def _bad_binding(error: Exception) -> ValidationError:
    return ValidationError(
        f"the values do not fit the parameters of the statement: {error}.",
        remediation="Values are None, int, float, str and bytes; ? takes a sequence, :name a mapping.",
    )
