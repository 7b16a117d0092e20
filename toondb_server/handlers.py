"""What each opcode does.

A handler takes the session and the payload and returns

* ``bytes``: the complete reply, sent at once;
* ``(unit, style)``: a write for the writer thread and how to answer it;
* a generator of frames: a job, stepped by the session (None yields the turn without a frame).

It raises ``ToonDBError`` for an ERROR reply. ``HANDLERS`` is indexed by the opcode byte.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import msgpack

from toondb.engine.catalog import MAX_COLUMNS, CreateTable, check_schema, table_exists, table_key
from toondb.engine.environment import Space
from toondb.engine.options import Isolation
from toondb.engine.snapshot import Snapshot, SnapshotScan
from toondb.engine.transaction import State, Transaction
from toondb.engine.write_set import Scan
from toondb.engine.writer import Checkpoint, Unit
from toondb.query import PrefixQuery
from toondb_protocol.errors import (
    CursorNotFoundError,
    FrameTooLargeError,
    MalformedRequestError,
    ToonDBError,
    TransactionError,
    TransactionNotFoundError,
    UnknownOpcodeError,
    ValidationError,
)
from toondb_protocol.frames import REPLY_SLACK, pack_header
from toondb_protocol.keys import check_key, prefix_end
from toondb_protocol.layout import decode_fields, decode_map, encode_map
from toondb_protocol.messages import BEGIN_OPTIONS, MESSAGES, QUERY_KEYS, SCAN_KEYS, MapKey, check_body
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply
from toondb_protocol.paths import join_path
from toondb_protocol.record import HEADER_SIZE, MAX_KEY_SIZE

if TYPE_CHECKING:
    from .session import Session

__all__ = ["HANDLERS", "PURE", "Answered", "Cursor", "Job", "Kind", "Refused", "Write"]

_MAX_TRANSACTIONS_PER_SESSION = 256
_MAX_CURSORS_PER_SESSION = 256
_MAX_BODY_BYTES = 4 * 1024 * 1024
_MAX_CONTAINERS = 1024
_MAX_KEYS = 65_536
_KEYS_PER_STEP = 1024
_DEFAULT_BATCH_ROWS = 1024
_MAX_BATCH_ROWS = 65_536
_BATCH_BYTES = 256 * 1024

_OK = pack_header(Reply.OK, 0)
_EMPTY_VALUE = pack_header(Reply.VALUE, 0)
_PONG = pack_header(Reply.PONG, 0)
_VALUE = int(Reply.VALUE)

_NO_TXN = bytes(8)
_LONGEST_GET = 8 + MAX_KEY_SIZE
_CERTAIN_VALUE_BYTES = 1024
"""Values up to this size fit into a frame whatever --max-frame is."""

Job: TypeAlias = Generator[bytes | None, None, None]


class Kind(Enum):
    """How a request is ordered against gathered writes."""

    READ = 0
    WRITE = 1
    WRITE_IF_AUTOCOMMIT = 2
    UNKNOWN = 3


class Write(IntFlag):
    """How a write is answered."""

    CLASSIC = 0
    EXTENDED = 1
    LSN = 2


class Refused:
    """A unit that is refused in its place among other writes."""

    __slots__ = ("error",)

    def __init__(self, error: ToonDBError) -> None:
        self.error = error

    def apply(self, txn: Any, lsn: int) -> int:
        raise self.error


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


Result: TypeAlias = bytes | tuple[Unit, Write] | Job
Handler: TypeAlias = "Callable[[Session, bytes], Result]"


# Transactions


def _txn_id(payload: bytes) -> int:
    if len(payload) < 8:
        raise MalformedRequestError(f"an extended request starts with 8 bytes of transaction id, got {len(payload)}")
    return int.from_bytes(payload[:8], "little")


def _transaction(session: Session, transaction_id: int) -> Transaction:
    transaction = session.transactions.get(transaction_id)
    if transaction is None:
        raise TransactionNotFoundError(f"no transaction {transaction_id} is open on this connection.")
    return transaction


def _map_body(payload: bytes, keys: tuple[MapKey, ...] | None) -> dict[str, Any]:
    """The msgpack map after the transaction id; ``keys`` None takes any map.

    Small bytes can make large objects (an empty array is one byte on the wire and some 70 in memory), so both
    the body and what it is made of are bounded before it is decoded.
    """
    size = len(payload) - 8
    if size > _MAX_BODY_BYTES:
        raise FrameTooLargeError(
            f"the msgpack body has {size} bytes, the limit is {_MAX_BODY_BYTES}.",
            remediation="Spread it over several requests, for example fewer keys in each.",
            details={"limit": _MAX_BODY_BYTES, "actual": size},
        )
    raw = payload[8:]
    if size > _MAX_CONTAINERS:
        _check_containers(raw)
    body = decode_map(raw)
    if keys is not None:
        check_body(keys, body)
    return body


def _check_containers(raw: bytes) -> None:
    """Refuse a body of very many arrays and maps, holding only one of them at a time."""
    count = 0

    def drop(_: object) -> None:
        nonlocal count
        count += 1
        if count > _MAX_CONTAINERS:
            raise MalformedRequestError(f"the msgpack body holds more than {_MAX_CONTAINERS} arrays and maps")

    # What is wrong otherwise is told by the decoder proper.
    with contextlib.suppress(ValueError, msgpack.UnpackException, RecursionError):
        msgpack.unpackb(raw, raw=False, strict_map_key=False, list_hook=drop, object_hook=drop)


def _begin(session: Session, isolation: Isolation, *, read_only: bool) -> bytes:
    if len(session.transactions) >= _MAX_TRANSACTIONS_PER_SESSION:
        # Those that expired are kept only to say so.
        for expired in [txn.id for txn in session.transactions.values() if txn.state is not State.ACTIVE]:
            _end(session, expired)
    if len(session.transactions) >= _MAX_TRANSACTIONS_PER_SESSION:
        raise TransactionError(
            f"{_MAX_TRANSACTIONS_PER_SESSION} transactions are open on this connection already.",
            remediation="Commit or abort some of them.",
        )
    transaction = session.engine.begin(isolation, read_only=read_only)
    session.transactions[transaction.id] = transaction
    return pack_header(Reply.TXN_ID, 8) + transaction.id.to_bytes(8, "little")


def _begin_classic(session: Session, payload: bytes) -> Result:
    _expect_empty(payload)
    return _begin(session, Isolation.SNAPSHOT, read_only=False)


def _begin_extended(session: Session, payload: bytes) -> Result:
    if _txn_id(payload):
        raise MalformedRequestError("BEGIN_TXN takes transaction id 0; transactions do not nest")
    body = _map_body(payload, BEGIN_OPTIONS)
    try:
        isolation = Isolation(body.get("isolation", Isolation.SNAPSHOT))
    except ValueError:
        raise ValidationError(f"isolation {body['isolation']!r} is unknown; known: {', '.join(Isolation)}.") from None
    return _begin(session, isolation, read_only=_bool(body, "read_only", default=False))


def _end(session: Session, transaction_id: int) -> Transaction:
    """Take a transaction from the session at its end, whatever the end will be, and its cursors with it."""
    transaction = _transaction(session, transaction_id)
    del session.transactions[transaction_id]
    for cursor in [cursor for cursor in session.cursors.values() if cursor.transaction == transaction_id]:
        _drop_cursor(session, cursor)
    return transaction


def _commit(session: Session, transaction_id: int, style: Write) -> Result:
    transaction = _end(session, transaction_id)
    lsn = session.engine.commit_read_only(transaction)
    if lsn is None:
        transaction.start_commit()
        return transaction, style | Write.LSN
    # In its place among writes that are still on their way: a unit that changes nothing.
    return Answered(lsn), style | Write.LSN


class Answered:
    """A unit whose LSN is known already."""

    __slots__ = ("lsn",)

    def __init__(self, lsn: int) -> None:
        self.lsn = lsn

    def apply(self, txn: Any, lsn: int) -> int:
        """Nothing to write: the LSN after it is the LSN before it, which is not the one that is answered."""
        return lsn


def _abort(session: Session, transaction_id: int) -> bytes:
    session.engine.abort(_end(session, transaction_id))
    return _OK


def _commit_classic(session: Session, payload: bytes) -> Result:
    return _commit(session, _exactly_u64(payload), Write.CLASSIC)


def _commit_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    _expect_empty(payload[8:])
    return _commit(session, transaction_id, Write.EXTENDED)


def _abort_classic(session: Session, payload: bytes) -> Result:
    return _abort(session, _exactly_u64(payload))


def _abort_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    _expect_empty(payload[8:])
    return _abort(session, transaction_id)


def _exactly_u64(payload: bytes) -> int:
    if len(payload) != 8:
        raise MalformedRequestError(f"the payload must be 8 bytes of transaction id, got {len(payload)}")
    return int.from_bytes(payload, "little")


def _expect_empty(payload: bytes) -> None:
    if payload:
        raise MalformedRequestError(f"this request carries no body, got {len(payload)} bytes")


# Point reads and writes


def _value_frame(session: Session, value: bytes) -> bytes:
    if len(value) > session.server.config.max_frame:
        raise FrameTooLargeError(
            f"the value has {len(value)} bytes, the frame cap is {session.server.config.max_frame}.",
            remediation="Restart the server with a larger --max-frame.",
        )
    return pack_header(_VALUE, len(value)) + value


def _get(session: Session, key: bytes) -> Result:
    if not 0 < len(key) <= 511:
        check_key(key)
    raw = session.reader.get(key)
    if raw is None:
        return _EMPTY_VALUE
    size = len(raw) - HEADER_SIZE
    if size > _CERTAIN_VALUE_BYTES:
        return _value_frame(session, raw[HEADER_SIZE:])
    return pack_header(_VALUE, size) + raw[HEADER_SIZE:]


def _get_extended(session: Session, payload: bytes) -> Result:
    if payload[:8] == _NO_TXN and 8 < len(payload) <= _LONGEST_GET:
        # The hottest request of all, so its usual case is spelled out.
        raw = session.reader.get(payload[8:])
        if raw is None:
            return _OK
        size = len(raw) - HEADER_SIZE
        if size <= _CERTAIN_VALUE_BYTES:
            return pack_header(_VALUE, size) + raw[HEADER_SIZE:]
    return _read_extended(session, _txn_id(payload), payload[8:])


def _read_extended(session: Session, transaction_id: int, key: bytes) -> bytes:
    if not 0 < len(key) <= 511:
        check_key(key)
    if transaction_id:
        value = _transaction(session, transaction_id).get(key)
        return _OK if value is None else _value_frame(session, value)
    raw = session.reader.get(key)
    if raw is None:
        return _OK
    return _value_frame(session, raw[HEADER_SIZE:])


def _split_put(payload: bytes, at: int) -> tuple[bytes, bytes]:
    start = at + 4
    if len(payload) < start:
        raise MalformedRequestError("PUT needs 4 bytes of key length before the key")
    length = int.from_bytes(payload[at:start], "little")
    end = start + length
    if end > len(payload):
        raise MalformedRequestError(f"PUT announces a key of {length} bytes, {len(payload) - start} are left")
    key = payload[start:end]
    if not 0 < length <= 511:
        check_key(key)
    return key, payload[end:]


def _put(session: Session, payload: bytes) -> Result:
    return _split_put(payload, 0), Write.CLASSIC


def _put_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    key, value = _split_put(payload, 8)
    return _write_extended(session, transaction_id, key, value)


def _write_extended(session: Session, transaction_id: int, key: bytes, value: bytes | None) -> Result:
    if transaction_id:
        _transaction(session, transaction_id).put(key, value)
        return _OK
    return (key, value), Write.EXTENDED


def _delete(session: Session, key: bytes) -> Result:
    return (check_key(key), None), Write.CLASSIC


def _delete_extended(session: Session, payload: bytes) -> Result:
    return _write_extended(session, _txn_id(payload), check_key(payload[8:]), None)


def _path_and_value(payload: bytes, opcode: Opcode) -> tuple[bytes, bytes]:
    fields = decode_fields(MESSAGES[opcode].classic, payload)
    return check_key(join_path(fields["path"])), fields.get("value", b"")


def _put_path(session: Session, payload: bytes) -> Result:
    return _path_and_value(payload, Opcode.PUT_PATH), Write.CLASSIC


def _put_path_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    key, value = _path_and_value(payload[8:], Opcode.PUT_PATH)
    return _write_extended(session, transaction_id, key, value)


def _get_path(session: Session, payload: bytes) -> Result:
    return _get(session, _path_and_value(payload, Opcode.GET_PATH)[0])


def _get_path_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    return _read_extended(session, transaction_id, _path_and_value(payload[8:], Opcode.GET_PATH)[0])


# Scans


def _uint(body: dict[str, Any], name: str, default: int = 0) -> int:
    value = body.get(name, default)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        raise MalformedRequestError(f"{name!r} must be a number of 0 or more, got {value!r:.60}")
    return value


def _bool(body: dict[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name, default)
    if type(value) is not bool:
        raise MalformedRequestError(f"{name!r} must be true or false, got {value!r:.60}")
    return value


def _bin(body: dict[str, Any], name: str) -> bytes | None:
    value = body.get(name)
    if value is not None and type(value) is not bytes:
        raise MalformedRequestError(f"{name!r} must be binary, got {type(value).__name__}")
    return value


def _range(body: dict[str, Any]) -> tuple[bytes, bytes | None]:
    prefix, start, end = _bin(body, "prefix"), _bin(body, "start"), _bin(body, "end")
    if prefix is None:
        return start or b"", end
    if start is not None or end is not None:
        raise MalformedRequestError("give either 'prefix' or 'start' and 'end'")
    return prefix, prefix_end(prefix)


def _scan_classic(session: Session, prefix: bytes) -> Result:
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


def _scan_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    body = _map_body(payload, SCAN_KEYS)
    window = _uint(body, "window")
    batch = min(_uint(body, "batch"), _MAX_BATCH_ROWS)
    if "cursor" in body:
        _only(body, "cursor", _CURSOR_KEYS)
        cursor = session.cursors.get(body["cursor"])
        if cursor is None or cursor.transaction != transaction_id:
            raise CursorNotFoundError(f"no cursor {body['cursor']} is open on this connection.")
        if _bool(body, "close", default=False):
            _drop_cursor(session, cursor)
            return _end_stream(0, None)
        cursor.batch = batch or cursor.batch
        return _scan_job(session, lambda: cursor, window)
    if "close" in body:
        raise MalformedRequestError("'close' goes with 'cursor', which names what to close")
    values = _bool(body, "values", default=True)
    batch = batch or _DEFAULT_BATCH_ROWS
    keys = body.get("keys")
    if keys is not None:
        _only(body, "keys", _MULTI_GET_KEYS)
        return _multi_get(session, transaction_id, keys, values=values, batch=batch)
    start, end = _range(body)
    reverse = _bool(body, "reverse", default=False)
    remaining = _uint(body, "limit") or -1
    transaction = _transaction(session, transaction_id) if transaction_id else None

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
_MULTI_GET_KEYS = frozenset({"keys", "values", "batch"})


def _only(body: dict[str, Any], name: str, allowed: frozenset[str]) -> None:
    """Refuse what would be accepted and ignored."""
    others = body.keys() - allowed
    if others:
        raise MalformedRequestError(f"{sorted(others)[0]!r} has no meaning together with {name!r}")


def _drop_cursor(session: Session, cursor: Cursor) -> None:
    session.cursors.pop(cursor.id, None)
    cursor.scan.close()


def _end_stream(rows: int, cursor: int | None) -> bytes:
    payload = encode_map({"rows": rows, "cursor": cursor})
    return pack_header(Reply.END_STREAM, len(payload)) + payload


def _row_frames(session: Session, rows: list[Any], width: int) -> Iterator[bytes]:
    """ROW frames of a flat list of rows of ``width`` items; halved until each fits into a frame."""
    payload: bytes = msgpack.packb(rows)
    if len(payload) <= session.server.config.max_frame + REPLY_SLACK:
        yield pack_header(Reply.ROW, len(payload)) + payload
        return
    count = len(rows) // width
    if count == 1:
        # It was stored when the cap was larger.
        raise FrameTooLargeError(
            f"a row of {len(payload)} bytes does not fit into a frame.",
            remediation="Restart the server with a larger --max-frame, or scan with values off.",
            details={"limit": session.server.config.max_frame, "actual": len(payload)},
        )
    half = count // 2 * width
    yield from _row_frames(session, rows[:half], width)
    yield from _row_frames(session, rows[half:], width)


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
            if cursor.remaining > 0:
                cursor.remaining -= count
            rows_out, width = (flat, 2) if cursor.values else (flat[::2], 1)
            for frame in _row_frames(session, rows_out, width):
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
            _drop_cursor(session, cursor)


def _multi_get(session: Session, transaction_id: int, keys: list[bytes], *, values: bool, batch: int) -> Job:
    """The pairs of the keys that exist, in the order asked, from one snapshot."""
    if len(keys) > _MAX_KEYS:
        raise MalformedRequestError(
            f"'keys' holds {len(keys)} keys, the limit is {_MAX_KEYS}",
            remediation="Spread them over several requests.",
            details={"limit": _MAX_KEYS, "actual": len(keys)},
        )
    for key in keys:
        check_key(key)
    transaction = _transaction(session, transaction_id) if transaction_id else None
    return _multi_get_job(session, transaction, keys, values=values, batch=batch)


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
                yield from _row_frames(session, flat, width)
                flat, size = [], 0
            flat.append(key)
            if values:
                flat.append(value)
            size += weight
        if flat:
            yield from _row_frames(session, flat, width)
        yield _end_stream(rows, None)
    finally:
        if snapshot is not None:
            snapshot.close()


# Queries


def _query_classic(session: Session, payload: bytes) -> Result:
    fields = decode_fields(MESSAGES[Opcode.QUERY].classic, payload)
    query = PrefixQuery(
        fields["prefix"].encode(), columns=fields["columns"], limit=fields["limit"], offset=fields["offset"]
    )
    return _classic_query_job(session, query)


def _classic_query_job(session: Session, query: PrefixQuery) -> Job:
    session.server.queries_executed += 1
    cap = session.server.config.max_frame
    snapshot = session.engine.snapshot()
    parts: list[bytes] = []
    size = 0
    try:
        for part in query.toon(snapshot):
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
    finally:
        snapshot.close()


def _query_extended(session: Session, payload: bytes) -> Result:
    transaction_id = _txn_id(payload)
    body = _map_body(payload, QUERY_KEYS)
    prefix = body.get("prefix", b"")
    if isinstance(prefix, str):
        prefix = prefix.encode(errors="surrogatepass")
    if not isinstance(prefix, bytes):
        raise MalformedRequestError("'prefix' must be text or binary")
    columns = body.get("columns") or []
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise MalformedRequestError("'columns' must be an array of text")
    form = body.get("form", "toon")
    if form not in ("toon", "rows", "count"):
        raise ValidationError(f"the query form {form!r:.60} is unknown; known: toon, rows, count.")
    query = PrefixQuery(prefix, columns=columns, limit=_uint(body, "limit"), offset=_uint(body, "offset"))
    transaction = _transaction(session, transaction_id) if transaction_id else None
    return _query_job(session, query, form, transaction)


def _query_job(session: Session, query: PrefixQuery, form: str, transaction: Transaction | None) -> Job:
    session.server.queries_executed += 1
    snapshot = None if transaction is not None else session.engine.snapshot()
    session.view = snapshot or transaction.snapshot  # type: ignore[union-attr]
    view: Any = transaction if transaction is not None else snapshot
    rows = 0
    try:
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
                    yield from _row_frames(session, batch, 2)
                else:
                    yield None
        else:
            step_bytes = min(_BATCH_BYTES, session.server.config.max_frame)
            for part in query.toon(view):
                if part is None:
                    yield None
                    continue
                for at in range(0, len(part), step_bytes):
                    yield from _row_frames(session, [part[at : at + step_bytes]], 1)
            rows = query.row_count
        yield _end_stream(rows, None)
    finally:
        if snapshot is not None:
            snapshot.close()


def _create_table(session: Session, payload: bytes, transaction_id: int, style: Write) -> Result:
    # Before the columns are decoded: 65,535 of them would keep the loop busy.
    after_name = 2 + int.from_bytes(payload[:2], "little")
    count = int.from_bytes(payload[after_name : after_name + 2], "little")
    if count > MAX_COLUMNS:
        raise ValidationError(f"the table has {count} columns, 1 to {MAX_COLUMNS} are allowed.")
    fields = decode_fields(MESSAGES[Opcode.CREATE_TABLE].classic, payload)
    schema = check_schema(fields["name"], [(c["name"], c["type"], c["nullable"]) for c in fields["columns"]])
    if not transaction_id:
        return CreateTable(session.engine.environment, schema), style
    transaction = _transaction(session, transaction_id)
    key = table_key(schema.name)
    if transaction.get(key, Space.CATALOG) is not None:
        raise table_exists(schema.name)
    transaction.put(key, schema.encode(), Space.CATALOG)
    return _OK


def _create_table_classic(session: Session, payload: bytes) -> Result:
    return _create_table(session, payload, 0, Write.CLASSIC)


def _create_table_extended(session: Session, payload: bytes) -> Result:
    return _create_table(session, payload[8:], _txn_id(payload), Write.EXTENDED)


# Server


def _checkpoint(session: Session, payload: bytes) -> Result:
    _expect_empty(payload)
    return Checkpoint(), Write.CLASSIC


def _checkpoint_extended(session: Session, payload: bytes) -> Result:
    _txn_id(payload)
    _expect_empty(payload[8:])
    return Checkpoint(), Write.EXTENDED | Write.LSN


def _stats(session: Session, payload: bytes) -> Result:
    _expect_empty(payload)
    body = json.dumps(session.server.stats()).encode()
    return pack_header(Reply.STATS_RESP, len(body)) + body


def _stats_extended(session: Session, payload: bytes) -> Result:
    _txn_id(payload)
    return _stats(session, payload[8:])


def _ping(session: Session, payload: bytes) -> Result:
    _expect_empty(payload)
    return _PONG


def _ping_extended(session: Session, payload: bytes) -> Result:
    _txn_id(payload)
    # Unknown keys in a hello are not an error: that is how newer clients stay compatible.
    _map_body(payload, None)
    body = session.server.hello_payload
    return pack_header(Reply.PONG, len(body)) + body


def _unknown(session: Session, payload: bytes) -> NoReturn:
    raise UnknownOpcodeError("the opcode is not one of the 14 requests.")


_TABLE: dict[Opcode, tuple[Handler, Handler, Kind, Kind]] = {
    Opcode.PUT: (_put, _put_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.GET: (_get, _get_extended, Kind.READ, Kind.READ),
    Opcode.DELETE: (_delete, _delete_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.BEGIN_TXN: (_begin_classic, _begin_extended, Kind.READ, Kind.READ),
    Opcode.COMMIT_TXN: (_commit_classic, _commit_extended, Kind.WRITE, Kind.WRITE),
    Opcode.ABORT_TXN: (_abort_classic, _abort_extended, Kind.READ, Kind.READ),
    Opcode.QUERY: (_query_classic, _query_extended, Kind.READ, Kind.READ),
    Opcode.CREATE_TABLE: (_create_table_classic, _create_table_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.PUT_PATH: (_put_path, _put_path_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.GET_PATH: (_get_path, _get_path_extended, Kind.READ, Kind.READ),
    Opcode.SCAN: (_scan_classic, _scan_extended, Kind.READ, Kind.READ),
    Opcode.CHECKPOINT: (_checkpoint, _checkpoint_extended, Kind.WRITE, Kind.WRITE),
    Opcode.STATS: (_stats, _stats_extended, Kind.READ, Kind.READ),
    Opcode.PING: (_ping, _ping_extended, Kind.READ, Kind.READ),
}


def _build() -> list[tuple[Handler, Kind]]:
    handlers: list[tuple[Handler, Kind]] = [(_unknown, Kind.UNKNOWN)] * 256
    for opcode, (classic, extended, classic_kind, extended_kind) in _TABLE.items():
        handlers[opcode] = (classic, classic_kind)
        handlers[opcode | EXTENDED] = (extended, extended_kind)
    return handlers


HANDLERS = _build()

PURE = frozenset({Opcode.GET, Opcode.GET | EXTENDED, Opcode.PING, Opcode.PING | EXTENDED})
"""Opcodes whose handlers change nothing, not even the session."""
