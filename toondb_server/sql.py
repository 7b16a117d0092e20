"""SQL requests: each runs on worker threads, as a task of its session."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import Transaction
from toondb.sql.page_keys import FIRST_PAGE
from toondb_protocol.errors import (
    MalformedRequestError,
    SnapshotExpiredError,
    ToonDBError,
    TransactionError,
)
from toondb_protocol.sql_values import ParameterSets, given_sql, only_reads

from .parts import Parts
from .requests import Job, Result, boolean, map_body, only, row_frames, sql_transaction, uint
from .sql_replies import end_of_rows, whole_reply
from .workers import Last, Steps, Task

if TYPE_CHECKING:
    from toondb.query import View
    from toondb.sql.connection import Outcome
    from toondb.sql.engine import SqlEngine, SqlSession
    from toondb.sql.stream import RowStream
    from toondb.sql.table import TableRows, TableSchema

    from .session import Session

__all__ = [
    "SqlCursor",
    "commit_job",
    "create_table_job",
    "drop_sql_cursor",
    "names_table",
    "resume_cursor",
    "run_sql",
    "table_job",
]

_STEP_BYTES = 256 * 1024
_MOST_ROWS = 16_384
_MOST_VALUES = 262_144
_MOST_CURSORS_PER_SESSION = 16

_SQL_KEYS = frozenset({"sql", "params", "runs", "names", "more", "part", "script", "window"})


def runner_of(session: Session, transaction_id: int) -> SqlEngine | SqlSession:
    """What runs the statements of a request."""
    sql = session.server.sql()
    if not transaction_id:
        return sql
    return sql.session(sql_transaction(session, transaction_id))


def run_sql(session: Session, transaction_id: int, body: dict[str, Any], payload: bytes) -> Result:
    """A QUERY with ``sql``."""
    only(body, "sql", _SQL_KEYS)
    text = given_sql(body["sql"])
    params = body.get("params")
    script = boolean(body, "script", default=False)
    before = session.parts.pop("statement", None)
    session.view = None
    if "runs" in body:
        if script or "window" in body:
            raise MalformedRequestError("'runs' does not go with 'script' or 'window'")
        part = _run_sets(body)
        gathered = Parts.following(before, "statement", text, transaction_id, uint(body, "part"))
        gathered.add(payload, session.engine.options.max_transaction_bytes, "parameters")
        if boolean(body, "more", default=False):
            session.parts["statement"] = gathered
            return end_of_rows(0, None)
        values = _Values(gathered.payloads[:-1], part)
        return _outcome_job(session, transaction_id, lambda runner: runner.execute_many(text, values))
    if body.keys() & {"names", "more", "part"}:
        raise MalformedRequestError("'names', 'more' and 'part' go with 'runs'")
    if script:
        if params is not None or "window" in body:
            raise MalformedRequestError("'script' goes without 'params' and 'window'")
        return _outcome_job(session, transaction_id, lambda runner: runner.execute_script(text))
    if not transaction_id:
        outcome = session.server.quick_sql(text, params)
        if outcome is not None:
            return whole_reply(outcome, session.server.config.max_frame)
    runner = runner_of(session, transaction_id)
    session.next_cursor += 1
    cursor = SqlCursor(session, session.next_cursor, lambda: runner.stream(text, params), transaction_id)
    return _cursor_job(session, cursor, uint(body, "window"), writes=not only_reads(text))


# Many runs


def _run_sets(body: dict[str, Any]) -> ParameterSets:
    runs, names, params = uint(body, "runs"), body.get("names"), body.get("params") or []
    if not isinstance(params, list):
        raise MalformedRequestError("'params' is an array where 'runs' is given")
    if len(params) > _MOST_VALUES or runs > _MOST_VALUES:
        raise MalformedRequestError(
            f"'params' holds {len(params)} values for {runs} runs, the limit of both is {_MOST_VALUES}",
            remediation="Spread them over several requests with 'more'.",
            details={"limit": _MOST_VALUES, "actual": max(len(params), runs)},
        )
    width = len(names) if names is not None else (len(params) // runs if runs else 0)
    if width * runs != len(params) or (names is not None and len(set(names)) != width):
        raise MalformedRequestError(f"'params' holds {len(params)} values, which do not make {runs} runs")
    return ParameterSets(names, width, params, runs)


class _Values:
    """The values for many runs of one statement; those of the parts before the last are decoded as they are used."""

    def __init__(self, before: list[bytes], last: ParameterSets) -> None:
        self._before = before
        self._last = last

    def __iter__(self) -> Iterator[Any]:
        return chain(chain.from_iterable(map(_decoded, self._before)), self._last)


def _decoded(payload: bytes) -> ParameterSets:
    return _run_sets(map_body(payload, None, largest=len(payload)))


# Statements


def _outcome_job(session: Session, transaction_id: int, run: Callable[[Any], Outcome]) -> Job:
    """Run something whose rows are dropped."""
    runner = runner_of(session, transaction_id)

    def work() -> bytes:
        outcome = run(runner)
        return end_of_rows(0, None, outcome.rows_affected, outcome.last_row_id)

    return on_worker(session, work, writes=True)


def on_worker(session: Session, work: Callable[[], bytes], *, writes: bool) -> Job:
    """A job whose one reply is made on a worker thread."""

    def steps() -> Steps:
        yield Last(work())

    return Task(session, steps(), session.server.writing_workers if writes else None).job()


def commit_job(session: Session, transaction: Transaction, reply: Callable[[int], bytes]) -> Job:
    """Commit a transaction that may have SQL pages to write: that takes time."""
    return on_worker(session, lambda: reply(session.engine.commit(transaction)), writes=True)


class SqlCursor:
    """The rows of a statement, which a client reads window by window.

    Args:
        session: Whose request it is.
        cursor_id: Its id on that connection.
        start: Starts the statement; called on a worker thread.
        transaction: The transaction it is in, 0 = none.

    Attributes:
        paused: A window was full, and a cursor can go on.
        opened_at: ``time.monotonic()`` of its start.
        touched_at: That of its latest use.
    """

    def __init__(self, session: Session, cursor_id: int, start: Callable[[], RowStream], transaction: int) -> None:
        self.id = cursor_id
        self.transaction = transaction
        self.batch = 0
        self.paused = False
        self.opened_at = self.touched_at = time.monotonic()
        self._session = session
        self._start = start
        self._stream: RowStream | None = None
        self._expired: ToonDBError | None = None
        self._lock = threading.Lock()

    def steps(self, window: int) -> Steps:
        """The frames of the next window."""
        session = self._session
        step_bytes = min(_STEP_BYTES, session.server.config.max_frame // 2, window or _STEP_BYTES)
        self.paused = False
        sent = total = 0
        out: list[bytes] = []
        size = 0
        try:
            self._check_expired()
            stream = self._stream
            if stream is None:
                stream = self._stream = self._start()
                if stream.columns:
                    out += row_frames(session, stream.columns, len(stream.columns))
            width = len(stream.columns)
            ended = False
            while not ended:
                # Packed, rows may have fewer bytes than they were thought to have.
                while size < (step_bytes + 1) // 2 and not ended:
                    self._check_expired()
                    rows = stream.fetch(_MOST_ROWS, step_bytes)
                    total += len(rows)
                    ended = stream.ended
                    for frame in row_frames(session, list(chain.from_iterable(rows)), width) if rows else ():
                        out.append(frame)
                        size += len(frame)
                sent += size
                size = 0
                if ended:
                    out.append(end_of_rows(total, None, stream.rows_affected, stream.last_row_id))
                elif window and sent >= window:
                    self.paused = True
                    self.touched_at = time.monotonic()
                    out.append(end_of_rows(total, self.id))
                data = b"".join(out)
                out = []
                if ended or self.paused:
                    yield Last(data)
                    return
                yield data
        finally:
            if not self.paused:
                self.close()

    def _check_expired(self) -> None:
        if self._expired is not None:
            raise self._expired

    def expire(self, why: str) -> None:
        """Give it up because it was ``why``; whoever asks for more of it is told."""
        self._expired = SnapshotExpiredError(f"the statement was {why} and has been closed.")
        if self.paused:
            self.close()

    @property
    def expired(self) -> bool:
        """Whether it was given up."""
        return self._expired is not None

    def close(self) -> None:
        """Close the statement. Idempotent."""
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _cursor_job(session: Session, cursor: SqlCursor, window: int, *, writes: bool = False) -> Job:
    server = session.server
    # Those that wait for their turn to write must not keep readers from a thread.
    workers = server.writing_workers if writes else server.workers
    if window and len(session.sql_cursors) >= _MOST_CURSORS_PER_SESSION:
        raise TransactionError(
            f"{_MOST_CURSORS_PER_SESSION} SQL statements are open on this connection already.",
            remediation="Read some of them to the end, or close them.",
        )
    server.sql_cursors.add(cursor)
    task = Task(session, cursor.steps(window), workers, cursor.close)
    job = task.job()
    try:
        for item in job:
            if cursor.paused:
                session.sql_cursors[cursor.id] = cursor
            yield item
    finally:
        job.close()
        if cursor.id not in session.sql_cursors:
            server.sql_cursors.discard(cursor)
            if not task.running:
                cursor.close()


def resume_cursor(session: Session, cursor: SqlCursor, window: int, *, close: bool) -> Result:
    """Go on with a statement, or close it."""
    if close:
        drop_sql_cursor(session, cursor)
        return end_of_rows(0, None)
    del session.sql_cursors[cursor.id]
    # Not left to the worker thread: until its first step this would look like the end of the next window.
    cursor.paused = False
    if cursor.transaction:
        sql_transaction(session, cursor.transaction)
    return _cursor_job(session, cursor, window)


def drop_sql_cursor(session: Session, cursor: SqlCursor) -> None:
    """Close a paused statement of a connection."""
    session.sql_cursors.pop(cursor.id, None)
    session.server.sql_cursors.discard(cursor)
    cursor.close()


# Tables


def names_table(session: Session, snapshot: Snapshot, name: bytes) -> bool | None:
    """Whether a name is that of a table or view; None = a worker thread has to look."""
    if snapshot.record(Space.SQL, FIRST_PAGE) is None:
        return False
    names = session.server.sql().table_names(snapshot)
    return None if names is None else name in names


def table_job(
    session: Session,
    transaction: Transaction | None,
    name: bytes,
    frames: Callable[[View, TableRows | None], Iterator[bytes | None]],
) -> Job:
    """Answer a query by the table of that name, should there be one; by keys otherwise.

    Args:
        session: Whose request it is.
        transaction: The transaction that it reads in; None = one of its own.
        name: The name.
        frames: Makes the reply out of what it reads and the table.
    """
    from toondb.sql.table import find_table

    engine, sql = session.engine, session.server.sql()
    if transaction is not None:
        session.uses_sql = True

    def steps() -> Steps:
        inner = transaction or engine.begin(read_only=True)
        try:
            if transaction is None and sql.table_names(inner.snapshot) is None:
                sql.learn_tables()
            for frame in frames(inner, find_table(sql.session(inner), name)):
                if frame is not None:
                    yield frame
        finally:
            if transaction is None:
                engine.commit_read_only(inner)

    return Task(session, steps()).job()


def create_table_job(session: Session, transaction_id: int, schema: TableSchema, reply: bytes) -> Job:
    """Create a typed table."""
    from toondb.sql.table import create_table

    runner = runner_of(session, transaction_id)

    def work() -> bytes:
        create_table(runner, schema)
        return reply

    return on_worker(session, work, writes=True)
