"""SQL of one open store: statements on their own, and inside transactions."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import apsw

from toondb.engine.engine import Engine
from toondb.engine.options import Access
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import State, Transaction
from toondb_protocol.errors import (
    DatabaseClosedError,
    SqlError,
    SqlInterruptedError,
    ToonDBError,
    TransactionConflictError,
    TransactionError,
)
from toondb_protocol.own_lock import OwnLock
from toondb_protocol.record import HEADER_SIZE

from .cancel import cancelled_by, current_cancel
from .connection import Bindings, Outcome, SqlConnection, WantsToWrite
from .firing import RowPlugins, fires_on
from .options import SqlOptions
from .page_keys import USER_PAGES, PageSpace, page_lsn, schema_cookie
from .stream import FinishedRows, OpenRows, RowStream
from .table import TABLE_NAMES
from .write_queue import Write, WriteQueue

__all__ = ["SqlEngine", "SqlSession"]

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]
Action: TypeAlias = Callable[[SqlConnection], Outcome]

_IDLE_CONNECTIONS = 8
_WRITE_WAIT_SECONDS = 30.0
_CONFLICT_ATTEMPTS = 100
_QUICK_TEXTS = 512
_SCHEMA_SIZE = "SELECT ifnull(sum(length(sql)), 0) + 100 * count(*) FROM sqlite_schema"


_DEFAULTS = SqlOptions()


class SqlEngine:
    """Runs SQL on the pages of an engine. All methods may be called from any thread.

    Statements that write are run one after another, each in a transaction of its own; readers never wait.

    Args:
        engine: The open engine.
        options: See :class:`SqlOptions`.
        pages: Where its pages are.

    Attributes:
        environment: The store's environment.
        pages: Where its pages are.
        quick_texts: Statements that were run and are short reads, see ``quick``.
        seconds: A statement may run for so long; None = for ever.
        plugins: What changes of rows fire; None = nothing.
    """

    def __init__(self, engine: Engine, options: SqlOptions = _DEFAULTS, pages: PageSpace = USER_PAGES) -> None:
        self._engine = engine
        self.pages = pages
        self.environment = engine.environment
        self.private_snapshot = engine.private_snapshot
        self.quick_texts: dict[str, None] = {}
        self._foreign_keys = options.foreign_keys
        self._longest_value = options.longest_value
        self.seconds = options.statement_seconds
        self.plugins: RowPlugins | None = None
        if options.memory:
            # First caches give way, then statements fail.
            apsw.soft_heap_limit(options.memory // 2)
            apsw.hard_heap_limit(options.memory)
        # Taken again by the same thread: the collector may meet a stream that nobody closed anywhere.
        self._lock = threading.RLock()
        self._idle: list[SqlConnection] = []
        self._reading: set[SqlConnection] = set()
        self._writes: WriteQueue[Action, Outcome] = WriteQueue(self._run_turn, _WRITE_WAIT_SECONDS)
        self._closed = False
        # The names of the tables, by the mark of the schema that has them.
        self._tables: dict[bytes, frozenset[bytes]] = {}
        self._schema_size: dict[bytes, int] = {}
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
        if connection is not None:
            try:
                connection.release(connection.file.cached_lsn)
                return connection
            except ToonDBError:
                connection.close()
        return SqlConnection(foreign_keys=self._foreign_keys, longest_value=self._longest_value, pages=self.pages)

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
        mark = self.environment.mark
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
            for connection in self._reading:
                connection.halt()
                connection.let_go()
        for connection in idle:
            connection.close()
        if self._sticky:
            with contextlib.suppress(ValueError):
                self._engine.writer.on_commit.remove(self._committed)

    # Statements on their own

    def execute(self, text: str, bindings: Bindings = None) -> Outcome:
        """Run one statement, in a transaction of its own."""
        with contextlib.suppress(WantsToWrite):
            connection = self._reader()
            try:
                return connection.run(text, bindings, reading_only=True, in_transaction=False, seconds=self.seconds)
            finally:
                self._has_read(connection)
        return self._write(self._one(text, bindings))

    def stream(self, text: str, bindings: Bindings = None) -> RowStream:
        """Start one statement, in a transaction of its own; its rows are read as they are asked for.

        One that writes has run to its end, and is committed, when this returns.
        """
        connection = self._reader()
        try:
            columns, cursor = connection.start(
                text, bindings, reading_only=True, in_transaction=False, seconds=self.seconds
            )
        except WantsToWrite:
            self._has_read(connection)
        except BaseException:
            self._has_read(connection)
            raise
        else:
            if connection.is_quick(text):
                self._note_quick(text, connection.file.schema_cookie)

            def end() -> None:
                cursor.close(True)
                self._has_read(connection)

            return OpenRows(connection, cursor, columns, self.seconds, _unguarded, end)
        return FinishedRows(self._write(self._one(text, bindings)))

    def _note_quick(self, text: str, cookie: bytes) -> None:
        if text not in self.quick_texts:
            if len(self.quick_texts) >= _QUICK_TEXTS:
                self.quick_texts.clear()
            self.quick_texts[text] = None
        if cookie not in self._tables:
            self.learn_tables()  # a quick reader has no time for it

    def execute_many(self, text: str, sequence: Iterable[Bindings]) -> Outcome:
        """Run one statement for each set of values, all in one transaction.

        Args:
            text: The statement.
            sequence: The values; iterated again when the statement has to be run again.
        """
        return self._write(lambda connection: connection.run_many(text, sequence, seconds=self.seconds))

    def execute_script(self, text: str) -> Outcome:
        """Run any number of statements, all in one transaction."""
        return self._write(lambda connection: connection.run_script(text, seconds=self.seconds))

    def _one(self, text: str, bindings: Bindings) -> Callable[[SqlConnection], Outcome]:
        return lambda connection: connection.run(
            text, bindings, reading_only=False, in_transaction=False, seconds=self.seconds
        )

    def _reader(self) -> SqlConnection:
        """A connection that reads the newest commit; end its use with :meth:`_has_read`."""
        connection = self._take_reader()
        if connection is None:
            # The mark first: a commit in between makes this reader an old one, never hides itself.
            mark = self.environment.mark if self._sticky else None
            snapshot = self._engine.private_snapshot()
            connection = self.take(self.lsn(snapshot))
            try:
                connection.bind(snapshot, None, mark)
            except BaseException:
                snapshot.close()
                connection.close()
                raise
        with self._lock:
            closed = self._closed
            self._reading.add(connection)
        if closed:
            self._has_read(connection)
            raise DatabaseClosedError("the database is closed.")
        return connection

    def _has_read(self, connection: SqlConnection) -> None:
        with self._lock:
            self._reading.discard(connection)
        if _cuts(sys.exception()):
            connection.close()
        elif connection.reads_as_of(self.environment.mark):
            self._keep(connection)
        else:
            self.give_back(connection, connection.file.cached_lsn)

    def check_outside_plugins(self) -> None:
        """Raise SqlError in the code of a plugin: what it would write, the statement that fires it conflicts with."""
        if fires_on(self._engine):
            raise SqlError(
                "a plugin cannot write SQL tables of the database whose change it handles.",
                remediation="Change the row that it is given, write keys, or have a trigger in SQL.",
            )

    def _write(self, run: Action) -> Outcome:
        self.check_outside_plugins()
        _ = self._engine.writer  # raises where nothing can be written
        cancel = current_cancel()

        def action(connection: SqlConnection) -> Outcome:
            # Perhaps on the thread of another one who writes, whose end must not be the end of this.
            with cancelled_by(cancel):
                if cancel is not None and cancel.cancelled:
                    raise SqlInterruptedError("the statement was interrupted.")
                return run(connection)

        return self._writes.submit(action)

    def _run_turn(self, turn: list[Write[Action, Outcome]]) -> None:
        """Run the writes of a turn in one commit; when that fails, each in one of its own."""
        # Other handles of this store have queues of their own.
        with self._engine.turn:
            if len(turn) > 1 and self._run_together(turn):
                return
            for write in turn:
                try:
                    write.result = self._commit([write])[0]
                except Exception as error:
                    write.error = error
                write.done = True

    def _run_together(self, turn: list[Write[Action, Outcome]]) -> bool:
        try:
            outcomes = self._commit(turn)
        except Exception:
            return False
        for write, outcome in zip(turn, outcomes, strict=True):
            if isinstance(outcome, Exception):
                write.error = outcome
            else:
                write.result = outcome
            write.done = True
        return True

    def _commit(self, turn: list[Write[Action, Outcome]]) -> list[Any]:
        """Run writes in one transaction; answers the outcome or error of each. One alone raises its error."""
        engine = self._engine
        # Only another process, or a transaction of a user, can come in between.
        for attempt in range(1, _CONFLICT_ATTEMPTS + 1):
            transaction = engine.begin()
            session = SqlSession(self, transaction)
            try:
                if len(turn) == 1:
                    outcomes: list[Any] = [session.run(turn[0].action)]
                else:
                    outcomes = [session.attempt(partial(_unhelped, write.action)) for write in turn]
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
                return outcomes
        raise AssertionError("unreachable")

    def table_names(self, snapshot: Snapshot) -> frozenset[bytes] | None:
        """The names of tables and views, as far as they are known; None = :meth:`learn_tables` first."""
        page = snapshot.record(self.pages.space, self.pages.first)
        if page is None:
            return frozenset()
        names = self._tables
        return names.get(schema_cookie(page[HEADER_SIZE:]))

    def schema_size(self, snapshot: Snapshot) -> int | None:
        """About how many bytes of schema SQLite has to read, as far as it is known."""
        page = snapshot.record(self.pages.space, self.pages.first)
        return None if page is None else self._schema_size.get(schema_cookie(page[HEADER_SIZE:]))

    def learn_tables(self) -> None:
        """Read the names of the tables and views of now."""
        connection = self._reader()
        try:
            names = connection.run(
                TABLE_NAMES, None, reading_only=True, in_transaction=False, seconds=self.seconds
            ).rows
            ((size,),) = connection.run(
                _SCHEMA_SIZE, None, reading_only=True, in_transaction=False, seconds=self.seconds
            ).rows
            cookie = connection.file.schema_cookie
        finally:
            self._has_read(connection)
        self._schema_size = {cookie: size}
        self._tables = {cookie: frozenset(name.encode(errors="surrogatepass") for (name,) in names)}

    # Inside a transaction

    def session(self, transaction: Transaction) -> SqlSession:
        """The SQL side of a transaction, made when it is first used."""
        attached = transaction.attachments.get(self.pages)
        if isinstance(attached, SqlSession):
            return attached
        return SqlSession(self, transaction)

    def newest_lsn(self) -> int:
        """The LSN of the newest commit that wrote SQL pages."""
        snapshot = self._engine.private_snapshot()
        try:
            return self.lsn(snapshot)
        finally:
            snapshot.close()

    def lsn(self, snapshot: Snapshot) -> int:
        """The LSN of the last commit that wrote SQL pages, as a snapshot sees it; 0 = none did."""
        return page_lsn(snapshot.record(self.pages.space, self.pages.first))


def _unhelped(action: Action, connection: SqlConnection) -> Outcome:
    """Run a write among others of a turn, none of which it may see or need."""
    connection.forget_row_id()
    outcome = action(connection)
    if connection.owes_keys:
        # Another one might pay for it, or the whole turn could not be committed.
        raise _Alone
    return outcome


class _Alone(Exception):
    """A write must have a commit of its own."""


def _unguarded(fetch: Callable[[], Rows]) -> Rows:
    return fetch()


def _cuts(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C or the like, which comes between any two steps: a connection may be left in the middle."""
    return error is not None and not isinstance(error, Exception)


class SqlSession:
    """The SQL side of one transaction: a connection that reads its snapshot and writes into its write set.

    One thread at a time runs statements; any thread may end the transaction meanwhile.
    """

    def __init__(self, sql: SqlEngine, transaction: Transaction) -> None:
        self._sql = sql
        self._transaction = transaction
        self._lock = OwnLock()
        self._connection: SqlConnection | None = None
        self._streams: set[apsw.Cursor] = set()
        self._base_lsn = 0
        self._is_cut = False
        self._wrote = False
        self._end: tuple[bool, int | None] | None = None
        transaction.attachments[sql.pages] = self

    def execute(self, text: str, bindings: Bindings = None) -> Outcome:
        """Run one statement; when it fails, the transaction is as it was before it."""
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

    def stream(self, text: str, bindings: Bindings = None) -> RowStream:
        """Start one statement; see :meth:`SqlEngine.stream`. One that writes has run to its end."""
        seconds = self._sql.seconds

        def start(connection: SqlConnection) -> RowStream:
            columns, cursor = connection.start(text, bindings, reading_only=True, in_transaction=True, seconds=seconds)
            self._streams.add(cursor)
            return OpenRows(
                connection, cursor, columns, seconds, lambda fetch: self.run(lambda _: fetch()), lambda: end(cursor)
            )

        def end(cursor: apsw.Cursor) -> None:
            def close() -> None:
                if cursor in self._streams:
                    self._streams.discard(cursor)
                    cursor.close(True)

            # Where a statement is running, perhaps below this very call, the end of the transaction closes it.
            try:
                self._lock.if_free(close)
            finally:
                self._tidy_up()

        with contextlib.suppress(WantsToWrite):
            return self.run(start)
        return FinishedRows(self.execute(text, bindings))

    def execute_many(self, text: str, sequence: Iterable[Bindings]) -> Outcome:
        """Run one statement for each set of values; all of it or, when it fails, nothing."""
        self._check_can_write()
        return self.run(lambda connection: connection.run_many(text, sequence, seconds=self._sql.seconds))

    def execute_script(self, text: str) -> Outcome:
        """Run any number of statements; all of them or, when one fails, none."""
        self._check_can_write()
        return self.run(lambda connection: connection.run_script(text, seconds=self._sql.seconds))

    def _check_can_write(self) -> None:
        """A transaction that can only end in a conflict ends now."""
        self._sql.check_outside_plugins()
        if self._transaction.read_only:
            raise TransactionError("the transaction is read-only.", remediation="Begin it without read_only.")
        if not self._wrote and self._sql.newest_lsn() > self._transaction.snapshot.lsn:
            what = "SQL tables" if self._sql.pages == USER_PAGES else "texts of a collection"
            raise TransactionConflictError(
                f"transaction {self._transaction.id} would write {what}, which another transaction changed first.",
            )
        self._wrote = True

    def run(self, action: Callable[[SqlConnection], T]) -> T:
        """Run something on the connection of this transaction."""
        if self._lock.mine:
            raise SqlError("a statement cannot be run inside another one of the same transaction.")
        try:
            with self._lock.held:
                return self._alone(action)
        finally:
            self._tidy_up()

    def _alone(self, action: Callable[[SqlConnection], T]) -> T:
        """Run something on the connection; the caller has the lock."""
        transaction = self._transaction
        try:
            self._check_undone(None)
            transaction.check_active()
            if self._connection is None:
                self._base_lsn = self._sql.lsn(transaction.snapshot)
                connection = self._sql.take(self._base_lsn)
                connection.plugins = self._sql.plugins
                try:
                    connection.bind(transaction.snapshot, transaction)
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
                if transaction.blind:
                    transaction.require(self._sql.pages.first, self._sql.pages.space)
                # What SQLite has in its cache is read without asking: a serializable transaction has seen it all.
                transaction.note_read(self._sql.pages.first, self._sql.pages.space)
            self._connection.plugins = self._sql.plugins
            result = action(self._connection)
            if self._end is not None:
                transaction.check_active()  # a plugin, or another thread, has ended it: there is nothing to answer
            return result
        except BaseException as error:
            self._is_cut = self._is_cut or _cuts(error)
            self._check_undone(error)
            raise

    def _check_undone(self, error: BaseException | None) -> None:
        """End the transaction when a statement that failed with ``error`` could not be undone alone.

        SQLite undoes all of it when one that writes is interrupted; and Ctrl-C may cut the undoing, or this very check,
        so that it is made again before the next one.
        """
        connection, transaction = self._connection, self._transaction
        if isinstance(error, SqlInterruptedError) and self._end is not None:
            transaction.check_active()  # tells why
        if connection is None or transaction.state is not State.ACTIVE:
            return
        if not connection.in_transaction or connection.is_torn:
            why = "it was interrupted" if error is None else str(error).rstrip(".") or type(error).__name__
            ended = TransactionError(
                f"transaction {transaction.id} was aborted: a statement of it could not be undone alone ({why}).",
                remediation="Run it again.",
            )
            transaction.abort(ended)

    def attempt(self, action: Callable[[SqlConnection], T]) -> T | Exception:
        """Run something that may fail without the rest of the transaction; answers its result or error."""
        try:
            return self.run(action)
        except Exception as error:
            if self._transaction.state is not State.ACTIVE or isinstance(error, _Alone):
                raise  # SQLite has undone everything, or it has to be undone
            return error

    def interrupt(self) -> None:
        """End the statement that is running, from any thread."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def flush(self) -> None:
        """Write SQLite's changes into the write set."""
        if self._lock.mine:
            raise SqlError("a transaction cannot be committed inside a statement of it.")
        try:
            with self._lock.held:
                connection = self._connection
                try:
                    self._check_undone(None)
                    self._transaction.check_active()
                    if connection is not None:
                        connection.commit()
                except BaseException as error:
                    self._is_cut = self._is_cut or _cuts(error)
                    raise
        finally:
            self._tidy_up()

    def ended(self, lsn: int | None) -> None:
        """The transaction is over. Never waits: the thread of a statement that is running is told, and tidies up."""
        # With which commit SQLite's cache goes now, should it not have been flushed.
        pages = self._sql.pages
        unwritten = lsn is None or pages.first not in self._transaction.writes[pages.space]
        self._end = (unwritten, lsn)
        connection = self._connection
        if connection is not None:
            connection.halt()
        self._tidy_up()

    def _tidy_up(self) -> None:
        """At the end of the transaction, whoever is last gives the connection back."""
        # Looked at when the lock is free: an end that found it taken has been noted before.
        if self._end is not None:
            self._lock.if_free(self._give_back)

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        streams, self._streams = self._streams, set()
        if connection is None or self._end is None:
            return
        for cursor in streams:
            cursor.close(True)
        unwritten, lsn = self._end
        if self._is_cut or (lsn is None and not connection.in_transaction):
            # After its COMMIT SQLite knows pages, and perhaps a schema, that were never committed. It tells schemas
            # apart by their number, which another transaction may have taken meanwhile.
            connection.close()
            return
        self._sql.give_back(connection, self._base_lsn if unwritten else lsn)
