"""What each opcode does.

A handler takes the session and the payload and returns

* ``bytes``: the complete reply, sent at once;
* ``(unit, style)``: a write for the writer thread and how to answer it;
* a generator of frames: a job, stepped by the session (None yields the turn without a frame).

It raises ``ToonDBError`` for an ERROR reply. ``HANDLERS`` is indexed by the opcode byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from toondb.engine.conditional import CompareAndSet, Conditional, Expire, Increment, PutFor
from toondb.engine.options import Isolation
from toondb.engine.transaction import State, Transaction
from toondb.engine.writer import Checkpoint
from toondb_protocol.arguments import integer
from toondb_protocol.errors import (
    FrameTooLargeError,
    MalformedRequestError,
    TransactionError,
    UnknownOpcodeError,
    ValidationError,
)
from toondb_protocol.frames import pack_header
from toondb_protocol.keys import check_key
from toondb_protocol.layout import decode_fields
from toondb_protocol.messages import BEGIN_OPTIONS, MESSAGES, OPTIONS_FLAG, decode_options
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply
from toondb_protocol.paths import join_path
from toondb_protocol.record import HEADER_SIZE, MAX_KEY_SIZE, RECORD_V1, live_value

from .requests import (
    Answered,
    Handler,
    Kind,
    Result,
    Volatile,
    Write,
    boolean,
    end_stream,
    exactly_u64,
    expect_empty,
    find_transaction,
    map_body,
    txn_id,
    uint,
)
from .short_reads import short_read
from .sql import commit_job, create_table_job, drop_sql_cursor
from .streams import drop_cursor, query_classic, query_extended, scan_classic, scan_extended

if TYPE_CHECKING:
    from .session import Session

__all__ = ["HANDLERS", "PURE", "result_frame"]

_MAX_TRANSACTIONS_PER_SESSION = 256

_OK = pack_header(Reply.OK, 0)
_EMPTY_VALUE = pack_header(Reply.VALUE, 0)
_PONG = pack_header(Reply.PONG, 0)
_VALUE = int(Reply.VALUE)

_NO_TXN = bytes(8)
_LONGEST_GET = 8 + MAX_KEY_SIZE
_CERTAIN_VALUE_BYTES = 1024
"""Values up to this size fit into a frame whatever --max-frame is."""


# Transactions


def _begin(session: Session, isolation: Isolation, *, read_only: bool, blind: bool = False) -> bytes:
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
    transaction.blind = blind
    session.transactions[transaction.id] = transaction
    return pack_header(Reply.TXN_ID, 8) + transaction.id.to_bytes(8, "little")


def _begin_classic(session: Session, payload: bytes) -> Result:
    expect_empty(payload)
    return _begin(session, Isolation.SNAPSHOT, read_only=False)


def _begin_extended(session: Session, payload: bytes) -> Result:
    if txn_id(payload):
        raise MalformedRequestError("BEGIN_TXN takes transaction id 0; transactions do not nest")
    body = map_body(payload, BEGIN_OPTIONS)
    try:
        isolation = Isolation(body.get("isolation", Isolation.SNAPSHOT))
    except ValueError:
        raise ValidationError(f"isolation {body['isolation']!r} is unknown; known: {', '.join(Isolation)}.") from None
    read_only, blind = (boolean(body, name, default=False) for name in ("read_only", "blind"))
    return _begin(session, isolation, read_only=read_only, blind=blind)


def _end(session: Session, transaction_id: int) -> Transaction:
    """Take a transaction from the session at its end, whatever the end will be, and its cursors with it."""
    transaction = find_transaction(session, transaction_id)
    del session.transactions[transaction_id]
    for cursor in [cursor for cursor in session.cursors.values() if cursor.transaction == transaction_id]:
        drop_cursor(session, cursor)
    for statement in [cursor for cursor in session.sql_cursors.values() if cursor.transaction == transaction_id]:
        drop_sql_cursor(session, statement)
    return transaction


def _commit(session: Session, transaction_id: int, style: Write) -> Result:
    transaction = _end(session, transaction_id)
    if transaction.attachment is not None:
        return commit_job(session, transaction, lambda lsn: pack_header(Reply.TXN_ID, 8) + lsn.to_bytes(8, "little"))
    lsn = session.engine.commit_read_only(transaction)
    if lsn is None:
        transaction.start_commit()
        return transaction, style | Write.LSN
    # In its place among writes that are still on their way: a unit that changes nothing.
    return Answered(lsn), style | Write.LSN


def _abort(session: Session, transaction_id: int) -> bytes:
    session.engine.abort(_end(session, transaction_id))
    return _OK


def _commit_classic(session: Session, payload: bytes) -> Result:
    return _commit(session, exactly_u64(payload), Write.CLASSIC)


def _commit_extended(session: Session, payload: bytes) -> Result:
    transaction_id = txn_id(payload)
    expect_empty(payload[8:])
    return _commit(session, transaction_id, Write.EXTENDED)


def _abort_classic(session: Session, payload: bytes) -> Result:
    return _abort(session, exactly_u64(payload))


def _abort_extended(session: Session, payload: bytes) -> Result:
    transaction_id = txn_id(payload)
    expect_empty(payload[8:])
    return _abort(session, transaction_id)


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
    if raw[0] != RECORD_V1:
        return _get_expiring(session, raw, _EMPTY_VALUE)
    size = len(raw) - HEADER_SIZE
    if size > _CERTAIN_VALUE_BYTES:
        return _value_frame(session, raw[HEADER_SIZE:])
    return pack_header(_VALUE, size) + raw[HEADER_SIZE:]


def _get_expiring(session: Session, raw: bytes, missing: bytes) -> bytes:
    value = live_value(raw)
    return Volatile(missing if value is None else _value_frame(session, value))


def _get_extended(session: Session, payload: bytes) -> Result:
    if payload[:8] == _NO_TXN and 8 < len(payload) <= _LONGEST_GET:
        # The hottest request of all, so its usual case is spelled out.
        raw = session.reader.get(payload[8:])
        if raw is None:
            return _OK
        size = len(raw) - HEADER_SIZE
        if size <= _CERTAIN_VALUE_BYTES and raw[0] == RECORD_V1:
            return pack_header(_VALUE, size) + raw[HEADER_SIZE:]
    return _read_extended(session, txn_id(payload), payload[8:])


def _read_extended(session: Session, transaction_id: int, key: bytes) -> bytes:
    if not 0 < len(key) <= 511:
        check_key(key)
    if transaction_id:
        value = find_transaction(session, transaction_id).get(key)
        return _OK if value is None else _value_frame(session, value)
    raw = session.reader.get(key)
    if raw is None:
        return _OK
    if raw[0] != RECORD_V1:
        return _get_expiring(session, raw, _OK)
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
    transaction_id = txn_id(payload)
    if len(payload) > _FLAGGED and payload[_FLAGGED] & _FLAG:
        return _put_optioned(session, transaction_id, payload)
    key, value = _split_put(payload, 8)
    return _write_extended(session, transaction_id, key, value)


_FLAGGED = 11  # the last byte of the key length
_FLAG = OPTIONS_FLAG >> 24


def result_frame(result: object) -> bytes:
    """The END_STREAM that answers a write with options."""
    return end_stream({"result": result})


def _put_optioned(session: Session, transaction_id: int, payload: bytes) -> Result:
    fields = decode_options(MESSAGES[Opcode.PUT], payload)
    unit = _conditional(check_key(fields["key"]), fields["options"], fields["value"])
    if transaction_id:
        return result_frame(unit.apply_in(find_transaction(session, transaction_id)))
    return unit, Write.EXTENDED | Write.RESULT


_OPTIONS_OF = {
    "put": {"ttl_ms", "expected"},
    "delete": {"expected"},
    "add": {"by"},
    "expire": {"ttl_ms"},
}


def _conditional(key: bytes, options: dict[str, Any], value: bytes) -> Conditional:
    """The write that the options of a PUT ask for."""
    op = options.get("op", "put")
    allowed = _OPTIONS_OF.get(op)
    if allowed is None:
        raise ValidationError(f"the op {op!r:.60} of PUT is unknown; known: {', '.join(_OPTIONS_OF)}.")
    others = options.keys() - allowed - {"op"}
    if others:
        raise MalformedRequestError(f"{sorted(others)[0]!r} has no meaning for the op {op!r}")
    if value and op != "put":
        raise MalformedRequestError(f"the op {op!r} takes no value, got {len(value)} bytes")
    ttl_ms = uint(options, "ttl_ms") if "ttl_ms" in options else None
    if ttl_ms is not None and not 0 < ttl_ms <= _MOST_TTL_MS:
        raise ValidationError(f"ttl_ms is {ttl_ms}, it must be 1 to {_MOST_TTL_MS}.")
    if op == "add":
        return Increment(key, integer("by", options.get("by", 1)))
    if op == "expire":
        return Expire(key, ttl_ms)
    if "expected" in options:
        return CompareAndSet(key, options["expected"], value if op == "put" else None, ttl_ms)
    if op == "delete":
        raise MalformedRequestError("the op 'delete' needs 'expected'; DELETE deletes whatever is there")
    return PutFor(key, value, ttl_ms)


_MOST_TTL_MS = 1 << 52


def _write_extended(session: Session, transaction_id: int, key: bytes, value: bytes | None) -> Result:
    if transaction_id:
        find_transaction(session, transaction_id).put(key, value)
        return _OK
    return (key, value), Write.EXTENDED


def _delete(session: Session, key: bytes) -> Result:
    return (check_key(key), None), Write.CLASSIC


def _delete_extended(session: Session, payload: bytes) -> Result:
    return _write_extended(session, txn_id(payload), check_key(payload[8:]), None)


def _path_and_value(payload: bytes, opcode: Opcode) -> tuple[bytes, bytes]:
    fields = decode_fields(MESSAGES[opcode].classic, payload)
    return check_key(join_path(fields["path"])), fields.get("value", b"")


def _put_path(session: Session, payload: bytes) -> Result:
    return _path_and_value(payload, Opcode.PUT_PATH), Write.CLASSIC


def _put_path_extended(session: Session, payload: bytes) -> Result:
    transaction_id = txn_id(payload)
    key, value = _path_and_value(payload[8:], Opcode.PUT_PATH)
    return _write_extended(session, transaction_id, key, value)


def _get_path(session: Session, payload: bytes) -> Result:
    return _get(session, _path_and_value(payload, Opcode.GET_PATH)[0])


def _get_path_extended(session: Session, payload: bytes) -> Result:
    transaction_id = txn_id(payload)
    return _read_extended(session, transaction_id, _path_and_value(payload[8:], Opcode.GET_PATH)[0])


# Tables


def _create_table(session: Session, payload: bytes, transaction_id: int) -> Result:
    from toondb.sql.table import MAX_COLUMNS, check_schema

    # Before the columns are decoded: 65,535 of them would keep the loop busy.
    after_name = 2 + int.from_bytes(payload[:2], "little")
    count = int.from_bytes(payload[after_name : after_name + 2], "little")
    if count > MAX_COLUMNS:
        raise ValidationError(f"the table has {count} columns, 1 to {MAX_COLUMNS} are allowed.")
    fields = decode_fields(MESSAGES[Opcode.CREATE_TABLE].classic, payload)
    schema = check_schema(fields["name"], [(c["name"], c["type"], c["nullable"]) for c in fields["columns"]])
    return create_table_job(session, transaction_id, schema, _OK)


def _create_table_classic(session: Session, payload: bytes) -> Result:
    return _create_table(session, payload, 0)


def _create_table_extended(session: Session, payload: bytes) -> Result:
    return _create_table(session, payload[8:], txn_id(payload))


# Server


def _checkpoint(session: Session, payload: bytes) -> Result:
    expect_empty(payload)
    return Checkpoint(), Write.CLASSIC


def _checkpoint_extended(session: Session, payload: bytes) -> Result:
    txn_id(payload)
    expect_empty(payload[8:])
    return Checkpoint(), Write.EXTENDED | Write.LSN


def _stats(session: Session, payload: bytes) -> Result:
    expect_empty(payload)
    body = json.dumps(session.server.stats()).encode()
    return pack_header(Reply.STATS_RESP, len(body)) + body


def _stats_extended(session: Session, payload: bytes) -> Result:
    txn_id(payload)
    return _stats(session, payload[8:])


def _ping(session: Session, payload: bytes) -> Result:
    expect_empty(payload)
    return _PONG


def _ping_extended(session: Session, payload: bytes) -> Result:
    txn_id(payload)
    # Unknown keys in a hello are not an error: that is how newer clients stay compatible.
    map_body(payload, None)
    body = session.server.hello_payload
    return pack_header(Reply.PONG, len(body)) + body


def _unknown(session: Session, payload: bytes) -> NoReturn:
    raise UnknownOpcodeError("the opcode is not one of the 14 requests.")


_TABLE: dict[Opcode, tuple[Handler, Handler, Kind, Kind]] = {
    Opcode.PUT: (_put, _put_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.GET: (_get, _get_extended, Kind.READ, Kind.READ),
    Opcode.DELETE: (_delete, _delete_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.BEGIN_TXN: (_begin_classic, _begin_extended, Kind.READ, Kind.READ),
    Opcode.COMMIT_TXN: (_commit_classic, _commit_extended, Kind.COMMIT, Kind.COMMIT),
    Opcode.ABORT_TXN: (_abort_classic, _abort_extended, Kind.READ, Kind.READ),
    Opcode.QUERY: (query_classic, query_extended, Kind.READ, Kind.READ),
    Opcode.CREATE_TABLE: (_create_table_classic, _create_table_extended, Kind.READ, Kind.READ),
    Opcode.PUT_PATH: (_put_path, _put_path_extended, Kind.WRITE, Kind.WRITE_IF_AUTOCOMMIT),
    Opcode.GET_PATH: (_get_path, _get_path_extended, Kind.READ, Kind.READ),
    Opcode.SCAN: (scan_classic, scan_extended, Kind.READ, Kind.READ),
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

PURE: dict[int, Callable[[Session, bytes], Result | None]] = {
    **{opcode: HANDLERS[opcode][0] for first in (Opcode.GET, Opcode.PING) for opcode in (first, first | EXTENDED)},
    Opcode.QUERY | EXTENDED: short_read,
}
"""Handlers by opcode that answer at once, or fail or answer None and have changed nothing, not even the session."""
