"""Connections of PEP 249 to a store."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeAlias, TypeVar

from toondb.connecting import connect as open_store
from toondb_protocol.arguments import check_isolation
from toondb_protocol.backoff import conflict_delays
from toondb_protocol.errors import (
    ConfigurationError,
    DatabaseClosedError,
    ForkedProcessError,
    ToonDBError,
    TransactionConflictError,
    TransactionError,
)
from toondb_protocol.sql_values import SqlParameters
from toondb_protocol.store import Store

from . import errors
from .cursor import Cursor
from .errors import mapped, translated
from .statements import Control, control_of, statements_of

if TYPE_CHECKING:
    from toondb.database import Database
    from toondb.database import Transaction as EmbeddedTransaction
    from toondb_client import IpcClient, Transaction

    AnyStore: TypeAlias = Database | IpcClient
    AnyTransaction: TypeAlias = EmbeddedTransaction | Transaction

__all__ = ["Connection", "connect"]

T = TypeVar("T")

_IN_A_TRANSACTION = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})


def connect(
    target: str | os.PathLike[str] | AnyStore,
    *,
    mode: str | None = None,
    config: Mapping[str, Any] | None = None,
    autocommit: bool = False,
    isolation: str = "snapshot",
) -> Connection:
    """Open a connection of PEP 249.

    Args:
        target: What ``toondb.connect`` takes (a folder, a socket, a ``toondb+unix://`` URL), which is closed with the
            connection; or an open ``Database`` or ``IpcClient``, which stays open.
        mode: See ``toondb.connect``.
        config: See ``toondb.connect``.
        autocommit: False: the first statement begins a transaction, which lasts until ``commit()`` or ``rollback()``.
            True: each statement is a transaction of its own, unless a ``BEGIN`` comes before it.
        isolation: Of its transactions: ``"snapshot"`` or ``"serializable"``.

    Raises:
        OperationalError: The store is not there, in use, or cannot be opened.
        ProgrammingError: An argument cannot be.
    """
    with mapped():
        _switch(autocommit)
        check_isolation(isolation)
        if isinstance(target, Store):
            if not hasattr(target, "begin_transaction"):
                raise ConfigurationError(
                    f"a connection needs a database or a client, not a {type(target).__name__}.",
                    remediation="Give the store that the transaction is of.",
                )
            if mode is not None or config is not None:
                raise ConfigurationError("mode and config are for a store that is opened here, not for an open one.")
            return Connection(target, owned=False, autocommit=autocommit, isolation=isolation)
        store = open_store(target, mode, config)
        return Connection(store, owned=True, autocommit=autocommit, isolation=isolation)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"autocommit is True or False, got {value!r:.60}.")
    return value


class Connection:
    """A connection to a store; made by :func:`connect`. Threads may share it: their statements take turns.

    ``with connection:`` commits when the block ends and rolls back when it raises; the connection stays open.
    """

    Warning: ClassVar = errors.Warning
    Error: ClassVar = errors.Error
    InterfaceError: ClassVar = errors.InterfaceError
    DatabaseError: ClassVar = errors.DatabaseError
    DataError: ClassVar = errors.DataError
    OperationalError: ClassVar = errors.OperationalError
    IntegrityError: ClassVar = errors.IntegrityError
    InternalError: ClassVar = errors.InternalError
    ProgrammingError: ClassVar = errors.ProgrammingError
    NotSupportedError: ClassVar = errors.NotSupportedError

    def __init__(self, store: AnyStore, *, owned: bool, autocommit: bool, isolation: str) -> None:
        self._store = store
        self._owned = owned
        self._autocommit = autocommit
        self._isolation = isolation
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._closed = False
        self._transaction: AnyTransaction | None = None
        # The cursors that have not fetched all their rows: inside the transaction, and outside.
        self._reading: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._reading_alone: weakref.WeakSet[Cursor] = weakref.WeakSet()

    # State

    @property
    def store(self) -> AnyStore:
        """The store below."""
        return self._store

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction of its own; setting it to True commits what is pending."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        with self._locked(), mapped():
            self._check_open()
            if _switch(value):
                self._commit()
            self._autocommit = value

    @property
    def isolation(self) -> str:
        """The isolation of the transactions that begin from now on: ``"snapshot"`` or ``"serializable"``."""
        return self._isolation

    @isolation.setter
    def isolation(self, value: str) -> None:
        with self._locked(), mapped():
            self._isolation = check_isolation(value)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun."""
        return self._transaction is not None

    @property
    def transaction(self) -> AnyTransaction:
        """The transaction, begun when there is none: for keys that are written together with SQL.

        Raises:
            OperationalError: With ``autocommit=True`` there is one only after a ``BEGIN``.
        """
        with self._locked(), mapped():
            self._check_open()
            if self._transaction is None and self._autocommit:
                raise TransactionError(
                    "each statement is a transaction of its own here.", remediation="Execute BEGIN first."
                )
            return self._transaction or self._begin()

    # Statements

    def cursor(self) -> Cursor:
        """A new cursor."""
        with self._locked(), mapped():
            self._check_open()
            return Cursor(self)

    def execute(self, operation: str, parameters: SqlParameters = None) -> Cursor:
        """Run one statement on a new cursor, which is returned; see :meth:`Cursor.execute`."""
        return self.cursor().execute(operation, parameters)

    def executemany(self, operation: str, seq_of_parameters: Iterable[SqlParameters]) -> Cursor:
        """Run one statement for each set of parameters on a new cursor; see :meth:`Cursor.executemany`."""
        return self.cursor().executemany(operation, seq_of_parameters)

    def executescript(self, sql_script: str) -> Cursor:
        """Run any number of statements on a new cursor; see :meth:`Cursor.executescript`."""
        return self.cursor().executescript(sql_script)

    # Transactions

    def commit(self) -> None:
        """Commit the transaction; no error when there is none.

        Cursors that have not fetched all their rows first read what is left into memory, up to 32 MiB each; behind
        that much they raise OperationalError.

        Raises:
            OperationalError: Another transaction committed first (``TransactionConflictError``): nothing of this one
                was applied. Or the store cannot now.
        """
        with self._locked(), mapped():
            self._check_open()
            self._commit()

    def rollback(self) -> None:
        """Give up the transaction; no error when there is none. Rows that were not fetched yet are lost."""
        with self._locked(), mapped():
            self._check_open()
            self._rollback()

    def run_transaction(self, function: Callable[[Connection], T], *, attempts: int = 20) -> T:
        """Call ``function(connection)`` and commit; on conflict, roll back and do it again from the start.

        Args:
            function: Must be safe to call again.
            attempts: Tries at the most; then the conflict is raised.

        Returns:
            What the function returned.

        Raises:
            OperationalError: A transaction has begun already.
        """
        with mapped():
            waits = conflict_delays(attempts)
        while True:
            with self._locked(), mapped():
                self._check_open()
                self._begin()
            try:
                result = function(self)
                self.commit()
                return result
            except BaseException as error:
                if not self._closed:
                    self.rollback()
                wait = next(waits, None) if isinstance(error, TransactionConflictError) else None
                if wait is None:
                    raise
            time.sleep(wait)

    def _begin(self) -> AnyTransaction:
        if self._transaction is not None:
            raise TransactionError(
                "a transaction has begun already.", remediation="End it with commit() or rollback() first."
            )
        self._transaction = self._store.begin_transaction(self._isolation)
        return self._transaction

    def _commit(self) -> None:
        transaction = self._transaction
        if transaction is None:
            return
        for cursor in list(self._reading):
            cursor._keep_rest()
        try:
            transaction.commit()
        finally:
            self._transaction = None
            if transaction.active:
                _abort(transaction)

    def _rollback(self) -> None:
        transaction = self._transaction
        if transaction is None:
            return
        for cursor in list(self._reading):
            cursor._drop_rest()
        self._transaction = None
        _abort(transaction)

    # What cursors use

    def _locked(self) -> threading.RLock:
        """The lock; in a forked child, where another thread may have held it for ever, an error."""
        if self._forked:
            raise translated(
                ForkedProcessError(
                    "the connection was made by the parent process.", remediation="Connect anew in the child process."
                )
            )
        return self._lock

    @property
    def _forked(self) -> bool:
        return self._pid != os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosedError("the connection is closed.", remediation="Connect again.")

    def _runner(self, verb: str) -> Store:
        """What runs a statement: the transaction, or the store."""
        if self._transaction is not None:
            return self._transaction
        if not self._autocommit:
            return self._begin()
        if verb in _IN_A_TRANSACTION:
            raise TransactionError(
                f"{verb} needs a transaction around it.", remediation="Execute BEGIN first, or set autocommit to False."
            )
        return self._store

    def _control(self, sql: str, verb: str) -> bool:
        """Begin or end the transaction when that is what a statement asks; answers whether it was."""
        control = control_of(sql) if verb in ("BEGIN", "COMMIT", "END", "ROLLBACK") else None
        if control is None:
            return False
        if control is Control.BEGIN:
            self._begin()
        else:
            if self._transaction is None and self._autocommit:
                raise TransactionError(f"{verb} without a transaction.", remediation="Execute BEGIN first.")
            if control is Control.COMMIT:
                self._commit()
            else:
                self._rollback()
        return True

    def _run_script(self, script: str) -> None:
        group: list[str] = []
        for statement in statements_of(script):
            control = control_of(statement)
            if control is None:
                group.append(statement)
                continue
            self._run_group(group)
            group = []
            self._control(statement, control.value)
        self._run_group(group)

    def _run_group(self, statements: list[str]) -> None:
        if statements:
            self._runner("").execute_script("".join(statements))

    def _opened(self, cursor: Cursor) -> None:
        """A cursor begins to fetch rows."""
        (self._reading_alone if self._transaction is None else self._reading).add(cursor)

    def _finished(self, cursor: Cursor) -> None:
        """A cursor has fetched its rows."""
        self._reading.discard(cursor)
        self._reading_alone.discard(cursor)

    # End

    def close(self) -> None:
        """Close it; a transaction that was not committed is rolled back. Idempotent.

        A store that was opened by :func:`connect` is closed with it.
        """
        if self._closed:
            return
        if self._forked:
            self._closed = True
            self._close_store()
            return
        with self._locked():
            self._rollback()
            for cursor in list(self._reading_alone):
                cursor._drop_rest()
            self._closed = True
            self._close_store()

    def _close_store(self) -> None:
        if self._owned:
            with mapped():
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            self.commit()
        elif not self._closed:
            self.rollback()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection cannot be pickled or copied; connect again where it is needed")

    def __repr__(self) -> str:
        how = "closed" if self._closed else "in a transaction" if self._transaction is not None else "open"
        return f"<Connection to {self._store!r} {how}>"


def _abort(transaction: AnyTransaction) -> None:
    # Nothing of it is applied in any case, also where the store is gone.
    with contextlib.suppress(ToonDBError):
        transaction.abort()
