"""Cursors of PEP 249."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from toondb_protocol.errors import DatabaseClosedError, SqlError, TransactionClosedError, ValidationError
from toondb_protocol.sql_values import SqlParameters

from .errors import Error, mapped, translated
from .statements import CHANGING, INSERTING, READING, verb_of
from .values import adapted, adapted_sets

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Column", "Cursor", "SqlRow"]

SqlRow: TypeAlias = tuple[Any, ...]
"""A row: None, int, float, str or bytes for each column."""

Column: TypeAlias = tuple[str, None, None, None, None, None, None]
"""The description of a column: its name, and six things that SQL here does not tell."""

_KEPT_BYTES = 32 << 20


class Cursor:
    """Runs statements of a connection, and fetches their rows a batch at a time. Made by ``Connection.cursor()``.

    Attributes:
        arraysize: Rows that :meth:`fetchmany` fetches by default; 1 at first.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.arraysize = 1
        self._closed = False
        self._lastrowid: int | None = None
        self._forget()

    def _forget(self) -> None:
        """As before the first statement."""
        self._description: tuple[Column, ...] | None = None
        self._rowcount = -1
        self._buffer: deque[SqlRow] = deque()
        self._source: Generator[list[Any], None, None] | None = None
        self._lost: Error | None = None

    # What the last statement gave

    @property
    def connection(self) -> Connection:
        """Its connection."""
        return self._connection

    @property
    def description(self) -> tuple[Column, ...] | None:
        """For each column of the rows its name and six times None; None when the last statement has no rows.

        The second of two columns alike is named ``name:1``.
        """
        return self._description

    @property
    def rowcount(self) -> int:
        """Rows that the last INSERT, REPLACE, UPDATE or DELETE changed; -1 after other statements."""
        return self._rowcount

    @property
    def lastrowid(self) -> int | None:
        """Row id of the last row that :meth:`execute` inserted here; None when there was none."""
        return self._lastrowid

    # Statements

    def execute(self, operation: str, parameters: SqlParameters = None) -> Self:
        """Run one statement.

        Args:
            operation: The statement. ``BEGIN``, ``COMMIT`` and ``ROLLBACK`` are those of the connection.
            parameters: A sequence for ``?``, a mapping for ``:name``. Values are None, int, float, str, bytes, and
                dates and times, which become text in ISO 8601.

        Returns:
            The cursor.

        Raises:
            ProgrammingError: The statement or its parameters are wrong, or it is closed.
            IntegrityError: A constraint forbids it.
            NotSupportedError: SQL may not do that here.
            OperationalError: Another transaction was first (``TransactionConflictError``), or the store cannot now.
        """
        with self._connection._locked(), mapped():
            self._reset()
            verb = verb_of(operation) if isinstance(operation, str) else ""
            if self._connection._control(operation, verb):
                return self
            runner = self._connection._runner(verb)
            if verb in READING:
                source = runner._sql_batches(operation, adapted(parameters))
                self._describe(next(source, []))
                self._source = source
                self._connection._opened(self)
                # Begun at once: what goes wrong is told here, and short results hold nothing open.
                self._fetch_batch()
                self._fetch_batch()
                return self
            result = runner.execute_sql(operation, adapted(parameters))
            self._describe(result.columns)
            self._buffer.extend(result.tuples)
            if verb in CHANGING:
                self._rowcount = result.rows_affected
                if verb in INSERTING and result.rows_affected:
                    self._lastrowid = result.last_row_id
        return self

    def _describe(self, columns: list[str]) -> None:
        if columns:
            self._description = tuple((name, None, None, None, None, None, None) for name in columns)

    def executemany(self, operation: str, seq_of_parameters: Iterable[SqlParameters]) -> Self:
        """Run one INSERT, REPLACE, UPDATE or DELETE for each set of parameters; all or, when one fails, none.

        Args:
            operation: The statement.
            seq_of_parameters: Sequences of the same length, or mappings with the same names.

        Raises:
            ProgrammingError: It is another statement. Others: see :meth:`execute`.
        """
        with self._connection._locked(), mapped():
            self._reset()
            verb = verb_of(operation) if isinstance(operation, str) else ""
            if verb and verb not in CHANGING:
                raise SqlError(
                    f"executemany() runs {', '.join(sorted(CHANGING))}, not {verb}.",
                    remediation="Use execute(), or executescript() for several statements.",
                )
            # All of them first: an iterator may use the connection itself.
            sets = adapted_sets(seq_of_parameters)
            result = self._connection._runner(verb).executemany(operation, sets)
            self._rowcount = result.rows_affected
        return self

    def executescript(self, sql_script: str) -> Self:
        """Run any number of statements, separated by ``;``; what rows they give is dropped.

        They are run together: all or, when one fails, none of them. ``BEGIN``, ``COMMIT`` and ``ROLLBACK`` among them
        end one such group and begin the next.
        """
        with self._connection._locked(), mapped():
            self._reset()
            if not isinstance(sql_script, str):
                raise ValidationError(f"a script is text, got {type(sql_script).__name__}.")
            self._connection._run_script(sql_script)
        return self

    def setinputsizes(self, sizes: Sequence[Any]) -> None:
        """Does nothing; PEP 249 wants it."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Does nothing; PEP 249 wants it."""

    # Rows

    def fetchone(self) -> SqlRow | None:
        """The next row; None after the last."""
        with self._connection._locked():
            if self._buffer and not self._connection.closed:
                return self._buffer.popleft()
            with mapped():
                self._check_rows()
                self._fetch_batch()
            return self._buffer.popleft() if self._buffer else None

    def fetchmany(self, size: int | None = None) -> list[SqlRow]:
        """The next rows.

        Args:
            size: Rows at the most; None = ``arraysize``.
        """
        with self._connection._locked(), mapped():
            self._check_rows()
            wanted = self.arraysize if size is None else size
            if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
                raise ValidationError(f"a number of rows to fetch is 0 or more, got {wanted!r:.60}.")
            buffer = self._buffer
            while len(buffer) < wanted and self._source is not None:
                self._fetch_batch()
            return [buffer.popleft() for _ in range(min(wanted, len(buffer)))]

    def fetchall(self) -> list[SqlRow]:
        """All rows that are left."""
        with self._connection._locked(), mapped():
            self._check_rows()
            while self._source is not None:
                self._fetch_batch()
            rows = list(self._buffer)
            self._buffer.clear()
            return rows

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SqlRow:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def _fetch_batch(self) -> None:
        source = self._source
        if source is None:
            return
        try:
            rows = next(source, None)
        except BaseException:
            self._end_source()
            raise
        if rows is None:
            self._end_source()
        else:
            self._buffer.extend(rows)

    def _end_source(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            self._connection._finished(self)
            source.close()

    # The end of the transaction that the rows belong to; called by the connection

    def _keep_rest(self) -> None:
        """Read what is left, before the transaction is committed; what goes wrong is told to whoever fetches on."""
        try:
            with mapped():
                kept = 0
                while self._source is not None and kept < _KEPT_BYTES:
                    before = len(self._buffer)
                    self._fetch_batch()
                    if len(self._buffer) > before:
                        kept += (len(self._buffer) - before) * _memory(self._buffer[-1])
        except Error as error:
            self._lost = error
        if self._source is not None:
            self._end_source()
            self._lost = translated(
                TransactionClosedError(
                    "the transaction of these rows was committed, and there are more rows than are kept in memory.",
                    remediation="Fetch them before commit(), or on a connection with autocommit=True.",
                )
            )

    def _drop_rest(self) -> None:
        """Give up what is left, before the transaction is rolled back."""
        self._end_source()
        self._buffer.clear()
        self._lost = translated(
            TransactionClosedError(
                "the transaction of these rows was rolled back.", remediation="Run the statement again."
            )
        )

    # State

    def _reset(self) -> None:
        """Begin a new statement."""
        self._check_open()
        self._end_source()
        self._forget()

    def _check_open(self) -> None:
        self._connection._check_open()
        if self._closed:
            raise DatabaseClosedError("the cursor is closed.", remediation="Make a new one with cursor().")

    def _check_rows(self) -> None:
        self._check_open()
        if self._description is None:
            raise SqlError(
                "there are no rows to fetch: no statement was run, or the last one gives none.",
                remediation="Run a SELECT, or another statement that gives rows, first.",
            )
        if self._lost is not None and not self._buffer:
            raise self._lost

    def close(self) -> None:
        """Close it; it cannot be used any more. Idempotent."""
        if self._closed:
            return
        if self._connection._forked:
            self._closed = True  # what it reads is the parent's
            return
        with self._connection._locked():
            self._closed = True
            self._end_source()
            self._buffer.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cursor {'closed' if self._closed else 'of ' + repr(self._connection)}>"


def _memory(row: SqlRow) -> int:
    """The memory that a row takes, about."""
    return 64 * (1 + len(row)) + sum([len(value) for value in row if isinstance(value, (str, bytes))])
