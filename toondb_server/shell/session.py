"""Running statements one after another, inside the transaction that was begun by one of them, or each on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from toondb_protocol.errors import (
    SqlError,
    SqlForbiddenError,
    ToonDBError,
    TransactionClosedError,
    TransactionError,
    TransactionExpiredError,
    TransactionNotFoundError,
)

from .statements import Control, control_of, first_word, reads_only
from .store import AnyStore, AnyTransaction

__all__ = ["Outcome", "Parameters", "Session"]

Parameters: TypeAlias = Mapping[str, Any] | Sequence[Any] | None

_CHANGES_ROWS = ("insert", "update", "delete", "replace", "with")


@dataclass(slots=True)
class Outcome:
    """What a statement gives.

    Attributes:
        columns: Names of the columns; empty for a statement without rows.
        rows: The rows.
        rows_affected: Rows inserted, changed or deleted; None for a statement that does not do that.
    """

    columns: list[str]
    rows: Iterator[Mapping[str, Any]]
    rows_affected: int | None = None


class Session:
    """Statements on one store. Used by one thread.

    Args:
        store: The store; it is not closed here.
        read_only: Refuse what writes.
    """

    def __init__(self, store: AnyStore, *, read_only: bool = False) -> None:
        self.store = store
        self.read_only = read_only
        self._transaction: AnyTransaction | None = None
        self._is_over = False

    # Transactions

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was begun and not ended by a statement."""
        return self._transaction is not None

    @property
    def is_broken(self) -> bool:
        """Whether that transaction is over all the same: it conflicted, expired or lost its connection."""
        return self._transaction is not None and (self._is_over or not self._transaction.active)

    def begin(self) -> None:
        """Begin a transaction.

        Raises:
            TransactionError: There is one.
        """
        if self._transaction is not None:
            raise TransactionError("a transaction is open already.", remediation="End it with COMMIT or ROLLBACK.")
        self._is_over = False
        self._transaction = self.store.begin_transaction(read_only=self.read_only)

    def commit(self) -> None:
        """Commit the transaction.

        Raises:
            TransactionError: There is none, or it cannot be committed; it is over then.
        """
        transaction = self._taken()
        try:
            transaction.commit()
        except BaseException:
            _abort(transaction)
            raise

    def rollback(self) -> None:
        """Undo the transaction.

        Raises:
            TransactionError: There is none.
        """
        _abort(self._taken())

    def _taken(self) -> AnyTransaction:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            raise TransactionError("no transaction is open.", remediation="Begin one with BEGIN.")
        return transaction

    @contextlib.contextmanager
    def runner(self, *, reads: bool = False) -> Iterator[AnyStore | AnyTransaction]:
        """What a statement is run on now.

        Args:
            reads: It certainly is a query.
        """
        if self._transaction is not None:
            if self.is_broken:
                raise TransactionError(
                    "the transaction is over, and nothing of it was kept.",
                    remediation="Acknowledge that with ROLLBACK; then begin again.",
                )
            try:
                yield self._transaction
            except (TransactionClosedError, TransactionExpiredError, TransactionNotFoundError):
                self._is_over = True
                raise
        elif self.read_only and not reads:
            transaction = self.store.begin_transaction(read_only=True)
            try:
                yield transaction
            finally:
                _abort(transaction)
        else:
            yield self.store

    # Statements

    @contextlib.contextmanager
    def run(self, text: str, parameters: Parameters = None) -> Iterator[Outcome]:
        """Run a statement; its rows are to be read inside the block.

        Raises:
            SqlError and others: See ``Store.execute_sql``.
        """
        control = control_of(text)
        if control is not None:
            {Control.BEGIN: self.begin, Control.COMMIT: self.commit, Control.ROLLBACK: self.rollback}[control]()
            yield Outcome([], iter(()))
            return
        word = first_word(text)
        if word in ("savepoint", "release", "rollback") and self._transaction is None:
            raise SqlForbiddenError(
                f"{word.upper()} needs a transaction around it.", remediation="Begin one with BEGIN."
            )
        reads = reads_only(text)
        with self.runner(reads=reads) as runner:
            if not reads:
                result = runner.execute_sql(text, parameters)
                affected = result.rows_affected if word in _CHANGES_ROWS else None
                yield Outcome(result.columns, iter(result), affected)
                return
            with contextlib.closing(_closable(runner.stream_sql(text, parameters))) as rows:
                first = next(rows, None)
                if first is None:
                    yield Outcome(self._columns_of(runner, text, parameters), iter(()))
                else:
                    yield Outcome(list(first), chain([first], rows))

    def _columns_of(self, runner: AnyStore | AnyTransaction, text: str, parameters: Parameters) -> list[str]:
        """The names of the columns of a query that has no rows."""
        # A comment may end it, so the parenthesis is on a line of its own.
        inner = text.rstrip().rstrip(";")
        with contextlib.suppress(SqlError):
            return runner.execute_sql(f"SELECT * FROM (\n{inner}\n) LIMIT 0", parameters).columns
        return runner.execute_sql(text, parameters).columns

    def rows_of(self, text: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """All rows of a small query of the shell's own."""
        with self.runner() as runner:
            return runner.execute_sql(text, parameters).tuples

    def close(self) -> bool:
        """Undo what is open; whether there was anything. The store stays open."""
        if self._transaction is None:
            return False
        _abort(self._taken())
        return True


def _closable(rows: Iterator[dict[str, Any]]) -> Any:
    """Rows that can be given up."""
    return rows if hasattr(rows, "close") else (row for row in rows)


def _abort(transaction: AnyTransaction) -> None:
    # It may be over already, or its daemon gone: nothing of it is kept in any case.
    with contextlib.suppress(ToonDBError):
        transaction.abort()
