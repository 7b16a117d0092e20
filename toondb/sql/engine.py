"""SQL of one open store: statements on their own, and inside transactions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb.engine.options import Access
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb_protocol.errors import (
    LockTimeoutError,
    SqlError,
    ToonDBError,
    TransactionConflictError,
    TransactionError,
    ValidationError,
)

from .connection import Bindings, Outcome, SqlConnection, WantsToWrite
from .pages import page_key

__all__ = ["SqlEngine", "SqlSession"]

T = TypeVar("T")

_IDLE_CONNECTIONS = 8
_WRITE_WAIT_SECONDS = 30.0
_CONFLICT_ATTEMPTS = 100
_FIRST_PAGE = page_key(1)


class SqlEngine:
    """Runs SQL on the pages of an engine. All methods may be called from any thread.

    Statements that write are run one after another, each in a transaction of its own; readers never wait.

    Args:
        engine: The open engine.
        foreign_keys: Enforce FOREIGN KEY constraints.
        seconds: A statement may run for so long; None = for ever.
    """

    def __init__(self, engine: Engine, *, foreign_keys: bool = False, seconds: float | None = None) -> None:
        self._engine = engine
        self._foreign_keys = foreign_keys
        self.seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[SqlConnection] = []
        self._writing = threading.Lock()
        self._closed = False
        # Only where every commit is announced in this process can a reader tell that there was none.
        self._sticky = engine.access is Access.EXCLUSIVE
        if self._sticky:
            engine.writer.on_commit.append(self._committed)

    # Connections

    def take(self, lsn: int) -> SqlConnection:
        """An idle connection, best one whose cache goes with ``lsn``."""
        with self._lock:
            idle = self._idle
            at = next((at for at in range(len(idle) - 1, -1, -1) if idle[at].file.cached_lsn == lsn), -1)
            connection = idle.pop(at) if idle else None
        if connection is None:
            return SqlConnection(foreign_keys=self._foreign_keys)
        connection.release(connection.file.cached_lsn)
        return connection

    def give_back(self, connection: SqlConnection, lsn: int | None) -> None:
        """Keep a connection for the next; ``lsn`` says with which commit its cache goes."""
        try:
            connection.release(lsn)
        except ToonDBError:
            connection.close()
        else:
            self._keep(connection)

    def _keep(self, connection: SqlConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _take_reader(self) -> SqlConnection | None:
        """An idle connection that reads the newest commit already."""
        mark = self._engine.environment.mark
        with self._lock:
            if self._idle and self._idle[-1].reads_as_of(mark):
                return self._idle.pop()
        return None

    def _committed(self, keys: Iterable[bytes]) -> None:
        """After a commit: what idle connections read is old, and must not keep pages from being used again."""
        if self._idle:
            with self._lock:
                for connection in self._idle:
                    connection.let_go()

    def close(self) -> None:
        """Close idle connections; those in use close when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # Statements on their own

    def execute(self, text: str, bindings: Bindings = None) -> Outcome:
        """Run one statement, in a transaction of its own."""
        check_text(text)
        with contextlib.suppress(WantsToWrite):
            return self._read(
                lambda connection: connection.run(
                    text, bindings, reading_only=True, in_transaction=False, seconds=self.seconds
                )
            )
        return self._write(
            lambda connection: connection.run(
                text, bindings, reading_only=False, in_transaction=False, seconds=self.seconds
            )
        )

    def execute_many(self, text: str, sequence: Iterable[Bindings]) -> Outcome:
        """Run one statement for each set of values, all in one transaction."""
        check_text(text)
        values = list(sequence)
        return self._write(lambda connection: connection.run_many(text, values, seconds=self.seconds))

    def _read(self, run: Callable[[SqlConnection], T]) -> T:
        connection = self._take_reader()
        if connection is None:
            # The mark first: a commit in between makes this reader an old one, never hides itself.
            mark = self._engine.environment.mark if self._sticky else None
            snapshot = self._engine.private_snapshot()
            lsn = sql_lsn(snapshot)
            connection = self.take(lsn)
            try:
                connection.bind(snapshot, None, mark)
            except BaseException:
                snapshot.close()
                connection.close()
                raise
        try:
            return run(connection)
        finally:
            if connection.reads_as_of(self._engine.environment.mark):
                self._keep(connection)
            else:
                self.give_back(connection, connection.file.cached_lsn)

    def _write(self, run: Callable[[SqlConnection], T]) -> T:
        engine = self._engine
        if not self._writing.acquire(timeout=_WRITE_WAIT_SECONDS):
            raise LockTimeoutError(
                f"other SQL statements were writing for more than {_WRITE_WAIT_SECONDS:g} s.",
                remediation="Write less in one statement, or try again.",
            )
        try:
            # Only another process, or a transaction of a user, can come in between.
            for attempt in range(1, _CONFLICT_ATTEMPTS + 1):
                transaction = engine.begin()
                session = SqlSession(self, transaction)
                try:
                    result = session.run(run)
                    engine.commit(transaction)
                except TransactionConflictError:
                    if attempt == _CONFLICT_ATTEMPTS:
                        raise
                    time.sleep(0.001 * attempt)
                except BaseException:
                    with contextlib.suppress(ToonDBError):
                        engine.abort(transaction)
                    raise
                else:
                    return result
            raise AssertionError("unreachable")
        finally:
            self._writing.release()

    # Inside a transaction

    def session(self, transaction: Transaction) -> SqlSession:
        """The SQL side of a transaction, made when it is first used."""
        attached = transaction.attachment
        if isinstance(attached, SqlSession):
            return attached
        return SqlSession(self, transaction)

    def newest_lsn(self) -> int:
        """The LSN of the newest commit that wrote SQL pages."""
        view = self._engine.environment.begin_view()
        try:
            raw = view.get(_FIRST_PAGE, db=self._engine.environment.spaces[Space.SQL])
        finally:
            self._engine.environment.end_view(view)
        return 0 if raw is None else int.from_bytes(raw[1:9], "little")


def sql_lsn(snapshot: Snapshot) -> int:
    """The LSN of the last commit that wrote SQL pages, as a snapshot sees it."""
    raw = snapshot.record(Space.SQL, _FIRST_PAGE)
    return 0 if raw is None else int.from_bytes(raw[1:9], "little")


def check_text(text: object) -> None:
    """Refuse what is no SQL text."""
    if not isinstance(text, str):
        raise ValidationError(f"a SQL statement is text, got {type(text).__name__}.")
    if "\0" in text:
        raise ValidationError("a SQL statement must not contain NUL.")
    if not text.strip(" \t\r\n;"):
        raise SqlError("the SQL statement is empty.")


class SqlSession:
    """The SQL side of one transaction: a connection that reads its snapshot and writes into its write set."""

    def __init__(self, sql: SqlEngine, transaction: Transaction) -> None:
        self._sql = sql
        self._transaction = transaction
        self._lock = threading.RLock()
        self._connection: SqlConnection | None = None
        self._base_lsn = 0
        self._wrote = False
        transaction.attachment = self

    def execute(self, text: str, bindings: Bindings = None) -> Outcome:
        """Run one statement; when it fails, the transaction is as it was before it."""
        check_text(text)
        seconds = self._sql.seconds
        with contextlib.suppress(WantsToWrite):
            # Most statements of a transaction that has not written yet only read.
            return self.run(
                lambda connection: connection.run(
                    text, bindings, reading_only=not self._wrote, in_transaction=True, seconds=seconds
                )
            )
        self._check_can_write()
        return self.run(
            lambda connection: connection.run(text, bindings, reading_only=False, in_transaction=True, seconds=seconds)
        )

    def execute_many(self, text: str, sequence: Iterable[Bindings]) -> Outcome:
        """Run one statement for each set of values; all of it or, when it fails, nothing."""
        check_text(text)
        values = list(sequence)
        self._check_can_write()
        return self.run(lambda connection: connection.run_many(text, values, seconds=self._sql.seconds))

    def _check_can_write(self) -> None:
        """A transaction that can only end in a conflict ends now."""
        if self._transaction.read_only:
            raise TransactionError("the transaction is read-only.", remediation="Begin it without read_only.")
        if not self._wrote and self._sql.newest_lsn() > self._transaction.snapshot.lsn:
            raise TransactionConflictError(
                f"transaction {self._transaction.id} would write SQL tables, which another transaction changed first.",
            )
        self._wrote = True

    def run(self, action: Callable[[SqlConnection], T]) -> T:
        """Run something on the connection of this transaction."""
        with self._lock:
            transaction = self._transaction
            transaction._check_active()
            if self._connection is None:
                self._base_lsn = sql_lsn(transaction.snapshot)
                connection = self._sql.take(self._base_lsn)
                try:
                    connection.bind(transaction.snapshot, transaction)
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
                # What SQLite has in its cache is read without asking: a serializable transaction has seen it all.
                transaction.note_read(_FIRST_PAGE, Space.SQL)
            return action(self._connection)

    def interrupt(self) -> None:
        """End the statement that is running, from any thread."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def flush(self) -> None:
        """Write SQLite's changes into the write set."""
        with self._lock:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.commit()

    def ended(self, lsn: int | None) -> None:
        """The transaction is over."""
        self.interrupt()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        flushed = not connection.in_transaction
        if lsn is None:
            # After its COMMIT SQLite's cache has what was never committed.
            keep = None if flushed else self._base_lsn
        else:
            keep = lsn if self._transaction.writes[Space.SQL] else self._base_lsn
        self._sql.give_back(connection, keep)
