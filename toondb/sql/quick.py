"""Short reads on the calling thread: for an event loop, where a hop to a thread and back costs more than they do.

Only statements that another connection has run before are tried, reads without functions that could take long. They
have a budget of virtual machine steps and of pages; whoever exceeds it, or meets any difficulty, is told nothing: the
caller runs the statement again where time does not matter. It changed nothing.
"""

from __future__ import annotations

import contextlib
import time

import apsw

from toondb_protocol.errors import ToonDBError

from .connection import Bindings, Outcome, SqlConnection, WantsToWrite
from .engine import SqlEngine
from .known_statements import LONGEST_QUICK_TEXT

__all__ = ["QuickReader"]

_STEPS = 1_000
_PAGES = 64
_ROWS = 256
_BYTES = 256 * 1024
_LONGEST_VALUE = 64 * 1024
_MOST_SCHEMA_BYTES = 128 * 1024
_PREPARING_SECONDS = 0.005
_SLOW = 512


class QuickReader:
    """Runs short reads; used by one thread.

    Args:
        sql: The SQL of the store, in exclusive mode: commits of other processes would not be noticed.
    """

    def __init__(self, sql: SqlEngine) -> None:
        self._sql = sql
        self._environment = sql.environment
        self._connection: SqlConnection | None = None
        self._running = False
        self._slow: dict[str, None] = {}

    def run(self, text: str, bindings: Bindings) -> Outcome | None:
        """Run a statement; None = run it elsewhere."""
        # The length first: to look a text up is to read all of it.
        if len(text) > LONGEST_QUICK_TEXT or text not in self._sql.quick_texts or text in self._slow:
            return None
        self._running = True
        try:
            connection = self._bound()
            if connection is None:
                return None
            connection.file.reads_left = _PAGES
            if connection.knows(text):
                columns, cursor = self._start(connection, text, bindings)
            else:
                # No budget ends this: time on the thread, so that others of a busy machine do not count.
                began = time.thread_time()
                try:
                    columns, cursor = self._start(connection, text, bindings)
                finally:
                    if time.thread_time() - began > _PREPARING_SECONDS:
                        self._note_slow(text)
            rows, ended, _ = connection.fetch(cursor, _ROWS, None, _BYTES)
            if ended:
                return Outcome(columns, rows, 0, 0)
            cursor.close(True)
            self._note_slow(text)
        except (ToonDBError, WantsToWrite, apsw.Error) as error:
            if isinstance(error.__context__, (apsw.InterruptError, apsw.IOError, apsw.TooBigError)):
                self._note_slow(text)
        finally:
            self._running = False
        return None

    @staticmethod
    def _start(connection: SqlConnection, text: str, bindings: Bindings) -> tuple[list[str], apsw.Cursor]:
        return connection.start(text, bindings, reading_only=True, in_transaction=False, seconds=None)

    @property
    def read_lsn(self) -> int | None:
        """The LSN of the commit that changed the tables last, as the last statement saw them."""
        return None if self._connection is None else self._connection.file.cached_lsn

    def newest_lsn(self) -> int | None:
        """The LSN of the commit that changed the tables last; None = it cannot be told here."""
        self._running = True
        try:
            return None if self._bound() is None else self.read_lsn
        except (ToonDBError, apsw.Error):
            return None
        finally:
            self._running = False

    def _note_slow(self, text: str) -> None:
        if len(self._slow) >= _SLOW:
            self._slow.clear()  # tables shrink and get indexes: everything has another chance
        self._slow[text] = None

    def _bound(self) -> SqlConnection | None:
        """The connection, reading the newest commit."""
        connection = self._connection
        mark = self._environment.mark
        if connection is not None and connection.reads_as_of(mark):
            return connection
        snapshot = self._sql.private_snapshot()
        try:
            size = self._sql.schema_size(snapshot)
            # It takes SQLite long to read a large schema, and all of it again after each change of it.
            if size is None or size > _MOST_SCHEMA_BYTES:
                snapshot.close()
                return None
            if connection is None:
                connection = self._connection = SqlConnection(
                    foreign_keys=False, steps=_STEPS, longest_value=_LONGEST_VALUE
                )
            else:
                connection.release(connection.file.cached_lsn)
            connection.file.reads_left = None
            connection.bind(snapshot, None, mark)
        except BaseException:
            snapshot.close()
            self._drop()
            raise
        return connection

    def committed(self) -> None:
        """After a commit, on any thread: what it reads is old, and must not keep pages from being used again."""
        connection = self._connection
        if connection is not None and not self._running:
            connection.let_go()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(ToonDBError, apsw.Error):
                connection.close()

    def close(self) -> None:
        """Close its connection. Idempotent."""
        self._drop()
