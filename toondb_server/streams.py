"""Requests that are answered by streams: scans, histories and queries.

Each is a job, a generator of frames that the session steps between the events of other connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot, SnapshotScan
from toondb.engine.transaction import Transaction
from toondb.engine.write_set import Scan
from toondb.query import PrefixQuery, View
from toondb_protocol.errors import (
    CursorNotFoundError,
    FrameTooLargeError,
    MalformedRequestError,
    TransactionError,
    ValidationError,
)
from toondb_protocol.frames import REPLY_SLACK, pack_header
from toondb_protocol.keys import check_key, prefix_end
from toondb_protocol.layout import decode_fields
from toondb_protocol.messages import MESSAGES, QUERY_KEYS, SCAN_KEYS
from toondb_protocol.opcodes import Opcode, Reply
from toondb_protocol.record import decode_expiry, live_value, now_ms

from .operations import operation_job
from .requests import (
    Job,
    Parked,
    Result,
    binary,
    boolean,
    end_stream,
    find_transaction,
    map_body,
    only,
    row_frames,
    txn_id,
    uint,
)
from .sql import names_table, resume_cursor, run_sql, table_job

if TYPE_CHECKING:
    from toondb.sql.table import TableRows

    from .session import Session

__all__ = ["Cursor", "drop_cursor", "query_classic", "query_extended", "scan_classic", "scan_extended"]

_MAX_CURSORS_PER_SESSION = 256
_MAX_KEYS = 65_536
_KEYS_PER_STEP = 1024
_DEFAULT_BATCH_ROWS = 1024
_MAX_BATCH_ROWS = 65_536
_BATCH_BYTES = 256 * 1024

_VALUE = int(Reply.VALUE)


class Cursor:
    """A scan that a client reads window by window."""

    __slots__ = ("batch", "id", "remaining", "scan", "snapshot", "transaction", "values")

    def __init__(
        self,
        cursor_id: int,
        scan: Scan,
        snapshot: Snapshot,
        *,
        values: bool,
        remaining: int,
        batch: int,
        transaction: int,
    ) -> None:
        self.id = cursor_id
        self.scan = scan
        self.values = values
        self.remaining = remaining
        self.batch = batch
        self.transaction = transaction
        self.snapshot = snapshot


# Scans


def _range(body: dict[str, Any]) -> tuple[bytes, bytes | None]:
    prefix, start, end = binary(body, "prefix"), binary(body, "start"), binary(body, "end")
    if prefix is None:
        return start or b"", end
    if start is not None or end is not None:
        raise MalformedRequestError("give either 'prefix' or 'start' and 'end'")
    return prefix, prefix_end(prefix)


def scan_classic(session: Session, prefix: bytes) -> Result:
    """A classic SCAN."""
    return _classic_scan_job(session, prefix)


def _classic_scan_job(session: Session, prefix: bytes) -> Job:
    scan = session.engine.scan(prefix, prefix_end(prefix))
    cap = session.server.config.max_frame
    parts: list[bytes] = []
    count, size = 0, 4
    try:
        while not scan.exhausted:
            part: list[bytes] = []
            pairs = iter(scan.batch(_DEFAULT_BATCH_ROWS, _BATCH_BYTES))
            for key, value in zip(pairs, pairs, strict=True):
                part += (len(key).to_bytes(2, "little"), key, len(value).to_bytes(4, "little"), value)
                count += 1
            # Joined at once: small rows would take many times their size as objects of their own.
            parts.append(b"".join(part))
            size += len(parts[-1])
            if size > cap + REPLY_SLACK:
                raise FrameTooLargeError(
                    f"the result does not fit into one frame of {cap} bytes.",
                    remediation="Use the streamed form: SCAN with the extended bit 0x40.",
                    details={"limit": cap},
                )
            if not scan.exhausted:
                yield None
        yield pack_header(_VALUE, size) + count.to_bytes(4, "little") + b"".join(parts)
    finally:
        scan.close()


def scan_extended(session: Session, payload: bytes) -> Result:
    """An extended SCAN: a range, some keys, a cursor, or the changes after a commit."""
    transaction_id = txn_id(payload)
    body = map_body(payload, SCAN_KEYS)
    window = uint(body, "window")
    batch = min(uint(body, "batch"), _MAX_BATCH_ROWS)
    if "cursor" in body:
        only(body, "cursor", _CURSOR_KEYS)
        statement = session.sql_cursors.get(body["cursor"])
        if statement is not None and statement.transaction == transaction_id:
            only(body, "cursor", _STATEMENT_KEYS)
            return resume_cursor(session, statement, window, close=boolean(body, "close", default=False))
        cursor = session.cursors.get(body["cursor"])
        if cursor is None or cursor.transaction != transaction_id:
            raise CursorNotFoundError(f"no cursor {body['cursor']} is open on this connection.")
        if boolean(body, "close", default=False):
            drop_cursor(session, cursor)
            return _end_stream(0, None)
        cursor.batch = batch or cursor.batch
        return _scan_job(session, lambda: cursor, window)
    if "since_lsn" in body:
        only(body, "since_lsn", _CHANGES_KEYS)
        if transaction_id:
            raise MalformedRequestError("changes are read with transaction id 0; a transaction sees one snapshot")
        return _changes_job(session, body)
    if "wait_ms" in body:
        raise MalformedRequestError("'wait_ms' goes with 'since_lsn'")
    if "close" in body:
        raise MalformedRequestError("'close' goes with 'cursor', which names what to close")
    values = boolean(body, "values", default=True)
    batch = batch or _DEFAULT_BATCH_ROWS
    keys = body.get("keys")
    if keys is not None:
        only(body, "keys", _MULTI_GET_KEYS)
        if boolean(body, "expiry", default=False):
            if values:
                raise MalformedRequestError("'expiry' goes with 'values' false")
            return _expiry_job(session, _checked_keys(session, transaction_id, keys), keys, batch)
        return _multi_get_job(session, _checked_keys(session, transaction_id, keys), keys, values=values, batch=batch)
    if "expiry" in body:
        raise MalformedRequestError("'expiry' goes with 'keys'")
    start, end = _range(body)
    reverse = boolean(body, "reverse", default=False)
    remaining = uint(body, "limit") or -1
    transaction = find_transaction(session, transaction_id) if transaction_id else None

    def start_scan() -> Cursor:
        # Called at the first step of the job: a job that is never stepped must not hold a snapshot.
        scan: Scan
        if transaction is None:
            scan = session.engine.scan(start, end, reverse=reverse, values=values)
            snapshot = cast(SnapshotScan, scan).snapshot
        else:
            scan = transaction.scan(start, end, reverse=reverse, values=values)
            snapshot = transaction.snapshot
        session.next_cursor += 1
        return Cursor(
            session.next_cursor,
            scan,
            snapshot,
            values=values,
            remaining=remaining,
            batch=batch,
            transaction=transaction_id,
        )

    return _scan_job(session, start_scan, window)


_CURSOR_KEYS = frozenset({"cursor", "window", "batch", "close"})
_STATEMENT_KEYS = frozenset({"cursor", "window", "close"})
_MULTI_GET_KEYS = frozenset({"keys", "values", "batch", "expiry"})
_CHANGES_KEYS = frozenset({"since_lsn", "wait_ms", "prefix", "start", "end"})


def drop_cursor(session: Session, cursor: Cursor) -> None:
    """Close a cursor of a connection."""
    session.cursors.pop(cursor.id, None)
    cursor.scan.close()


def _end_stream(rows: int, cursor: int | None) -> bytes:
    return end_stream({"rows": rows, "cursor": cursor})


def _scan_job(session: Session, start: Callable[[], Cursor], window: int) -> Job:
    """Stream ROW frames until the end, or until ``window`` bytes went out and a cursor can take over."""
    sent = rows = 0
    cursor = start()
    scan = cursor.scan
    session.view = cursor.snapshot
    batch_bytes = min(_BATCH_BYTES, max(1, session.server.config.max_frame // 2))
    keep = False
    try:
        while cursor.remaining and not scan.exhausted:
            limit = cursor.batch if cursor.remaining < 0 else min(cursor.batch, cursor.remaining)
            flat = scan.batch(limit, batch_bytes)
            if not flat:
                yield None
                continue
            count = len(flat) // 2
            rows += count
            session.engine.bytes_read += sum(map(len, flat[1::2]))
            if cursor.remaining > 0:
                cursor.remaining -= count
            rows_out, width = (flat, 2) if cursor.values else (flat[::2], 1)
            for frame in row_frames(session, rows_out, width):
                sent += len(frame)
                yield frame
            if window and sent >= window and cursor.remaining and not scan.exhausted:
                if cursor.id not in session.cursors and len(session.cursors) >= _MAX_CURSORS_PER_SESSION:
                    raise TransactionError(
                        f"{_MAX_CURSORS_PER_SESSION} cursors are open on this connection already.",
                        remediation="Finish or close some scans.",
                    )
                session.cursors[cursor.id] = cursor
                keep = True
                yield _end_stream(rows, cursor.id)
                return
        yield _end_stream(rows, None)
    finally:
        if not keep:
            drop_cursor(session, cursor)


def _checked_keys(session: Session, transaction_id: int, keys: list[bytes]) -> Transaction | None:
    """Check the keys of a request; answers the transaction that they are read in."""
    if len(keys) > _MAX_KEYS:
        raise MalformedRequestError(
            f"'keys' holds {len(keys)} keys, the limit is {_MAX_KEYS}",
            remediation="Spread them over several requests.",
            details={"limit": _MAX_KEYS, "actual": len(keys)},
        )
    for key in keys:
        check_key(key)
    return find_transaction(session, transaction_id) if transaction_id else None


def _expiry_job(session: Session, transaction: Transaction | None, keys: list[bytes], batch: int) -> Job:
    """How long the keys that exist have to live."""
    snapshot = None if transaction is not None else session.engine.snapshot()
    session.view = snapshot or transaction.snapshot  # type: ignore[union-attr]
    now = now_ms()
    flat: list[Any] = []
    try:
        for at, key in enumerate(keys, 1):
            if transaction is not None:
                value, expires_ms = transaction.get_with_expiry(key)
            else:
                raw = cast(Snapshot, snapshot).record(Space.KV, key)
                value, expires_ms = live_value(raw), decode_expiry(raw or b"\0")
            if value is not None:
                flat += (key, None if expires_ms is None else max(0, expires_ms - now))
            if not at % _KEYS_PER_STEP:
                yield None
    finally:
        if snapshot is not None:
            snapshot.close()
    for at in range(0, len(flat), 2 * batch):
        yield from row_frames(session, flat[at : at + 2 * batch], 2)
    yield _end_stream(len(flat) // 2, None)


def _changes_job(session: Session, body: dict[str, Any]) -> Job:
    """The changes after a commit; when there are none, those of the next commit that brings some.

    The history is read in pages, and one without a change of this range says nothing of the pages behind it: what was
    there at the start is read to its end in any case.
    """
    start, end = _range(body)
    since: int | None = body["since_lsn"]
    server = session.server
    wait = min(uint(body, "wait_ms"), server.config.timeout_ms // 2) / 1000
    give_up = server.loop.time() + wait
    environment = session.engine.environment
    newest = environment.announced_lsn
    session.view = None
    while True:
        rows = 0
        pages = session.engine.read_changes(since, start, end)
        try:
            while True:
                step = next(pages)
                if step:
                    # Before the client hears of it: what it reads next must not be older.
                    environment.seen(step[-1].lsn)
                rows += len(step)
                flat = [item for c in step for item in (c.lsn, str(c.kind), c.key, c.value, c.last)]
                if flat:
                    yield from row_frames(session, flat, 5)
                else:
                    yield None
        except StopIteration as stop:
            lsn: int = stop.value
            environment.seen(lsn)
        finally:
            pages.close()
        if not rows and since is not None and lsn < newest:
            since = lsn
            yield None
            continue
        left = give_up - server.loop.time()
        if rows or since is None or left <= 0 or server.draining or session.input_ended:
            yield end_stream({"rows": rows, "lsn": lsn})
            return
        since = lsn
        yield Parked(lsn, left)


def _multi_get_job(
    session: Session, transaction: Transaction | None, keys: list[bytes], *, values: bool, batch: int
) -> Job:
    snapshot = None if transaction is not None else session.engine.snapshot()
    session.view = snapshot or transaction.snapshot  # type: ignore[union-attr]
    get: Callable[[bytes], bytes | None] = (snapshot or transaction).get  # type: ignore[union-attr]
    cap = session.server.config.max_frame
    flat: list[bytes] = []
    width = 2 if values else 1
    size = rows = 0
    try:
        for at, key in enumerate(keys, 1):
            value = get(key)
            if value is None:
                if not at % _KEYS_PER_STEP:
                    yield None
                continue
            rows += 1
            weight = len(key) + len(value) + 16
            # Values are read before it is known whether they fit: flush so that one more never overflows.
            if flat and (size + weight > min(cap, _BATCH_BYTES) or len(flat) >= width * batch):
                yield from row_frames(session, flat, width)
                flat, size = [], 0
            flat.append(key)
            session.engine.bytes_read += len(value)
            if values:
                flat.append(value)
            size += weight
        if flat:
            yield from row_frames(session, flat, width)
        yield _end_stream(rows, None)
    finally:
        if snapshot is not None:
            snapshot.close()


# Queries


def query_classic(session: Session, payload: bytes) -> Result:
    """A classic QUERY."""
    fields = decode_fields(MESSAGES[Opcode.QUERY].classic, payload)
    asked = _Asked(fields["prefix"].encode(), fields["columns"], fields["limit"], fields["offset"], None)
    cap = session.server.config.max_frame

    def frames(view: View, table: TableRows | None) -> Iterator[bytes | None]:
        return _classic_frames(asked.query(table), view, cap)

    return _query_job(session, None, asked, frames)


def _classic_frames(query: PrefixQuery, view: View, cap: int) -> Iterator[bytes | None]:
    parts: list[bytes] = []
    size = 0
    for part in query.toon(view):
        if part is None:
            yield None
            continue
        parts.append(part)
        size += len(part)
        if size > cap + REPLY_SLACK:
            raise FrameTooLargeError(
                f"the result does not fit into one frame of {cap} bytes.",
                remediation="Use the streamed form: QUERY with the extended bit 0x40, or a limit.",
                details={"limit": cap},
            )
    yield pack_header(_VALUE, size) + b"".join(parts)


def query_extended(session: Session, payload: bytes) -> Result:
    """An extended QUERY: SQL, or the rows of a table or a key prefix."""
    transaction_id = txn_id(payload)
    body = map_body(payload, QUERY_KEYS, largest=session.server.config.max_frame)
    if "sql" in body:
        return run_sql(session, transaction_id, body, payload)
    if "op" in body:
        return operation_job(session, transaction_id, body)
    for name in _OF_SQL:
        if name in body:
            raise MalformedRequestError(f"{name!r} goes with 'sql'" + (" or 'op'" if name in _OF_OP else ""))
    prefix = body.get("prefix", b"")
    if isinstance(prefix, str):
        prefix = prefix.encode(errors="surrogatepass")
    form = body.get("form", "toon")
    if form not in ("toon", "rows", "count"):
        raise ValidationError(f"the query form {form!r:.60} is unknown; known: toon, rows, count.")
    asked = _Asked(prefix, body.get("columns") or [], uint(body, "limit"), uint(body, "offset"), body.get("where"))
    transaction = find_transaction(session, transaction_id) if transaction_id else None

    def frames(view: View, table: TableRows | None) -> Iterator[bytes | None]:
        return _query_frames(session, asked.query(table), form, view)

    return _query_job(session, transaction, asked, frames)


_OF_OP = ("args", "more", "part")
_OF_SQL = ("params", "runs", "names", "more", "part", "script", "window", "args")


class _Asked:
    """What a query asks for."""

    def __init__(
        self, prefix: bytes, columns: list[str], limit: int, offset: int, where: dict[str, Any] | None
    ) -> None:
        self.prefix = prefix
        self._columns, self._limit, self._offset, self._where = columns, limit, offset, where
        self.query(None)  # what cannot be asked is refused at once

    def query(self, table: TableRows | None) -> PrefixQuery:
        return PrefixQuery(
            self.prefix,
            columns=self._columns,
            limit=self._limit,
            offset=self._offset,
            where=self._where,
            table=table,
        )


def _query_job(
    session: Session,
    transaction: Transaction | None,
    asked: _Asked,
    frames: Callable[[View, TableRows | None], Iterator[bytes | None]],
) -> Job:
    """Keys are read here, turn by turn; the rows of a table on a worker thread."""
    session.engine.queries_executed += 1
    if transaction is not None:
        session.view = transaction.snapshot
        if transaction.attachment is not None or names_table(session, transaction.snapshot, asked.prefix) is not False:
            yield from table_job(session, transaction, asked.prefix, frames)
        else:
            yield from frames(transaction, None)
        return
    snapshot = session.view = session.engine.snapshot()
    try:
        of_keys = names_table(session, snapshot, asked.prefix) is False
        if of_keys:
            yield from frames(snapshot, None)
    finally:
        snapshot.close()
    if not of_keys:
        session.view = None
        yield from table_job(session, None, asked.prefix, frames)


def _query_frames(session: Session, query: PrefixQuery, form: str, view: View) -> Iterator[bytes | None]:
    rows = 0
    if form == "count":
        for step in query.count(view):
            if step is None:
                yield None
            else:
                rows = step
    elif form == "rows":
        for batch in query.rows(view):
            if batch:
                rows += len(batch) // 2
                yield from row_frames(session, batch, 2)
            else:
                yield None
    else:
        step_bytes = min(_BATCH_BYTES, session.server.config.max_frame)
        for part in query.toon(view):
            if part is None:
                yield None
                continue
            for at in range(0, len(part), step_bytes):
                yield from row_frames(session, [part[at : at + step_bytes]], 1)
        rows = query.row_count
    yield _end_stream(rows, None)
