"""What the clients say on the wire, written once for the sync and the async client.

A :data:`Call` is one request: its frame, how to decode its reply, and whether it may be sent again when the
connection is lost before the reply. Operations of several steps are generators that yield a :class:`Step` at a
time and receive the list of its replies; they never touch a socket.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgpack

from toondb_protocol.client_core import ReplyFrame as ReplyFrame
from toondb_protocol.client_core import raise_error as raise_error
from toondb_protocol.errors import ProtocolError, ToonDBError, TransactionConflictError, ValidationError
from toondb_protocol.frames import pack_header
from toondb_protocol.hello import ServerHello, client_hello, parse_server_hello
from toondb_protocol.keys import BytesLike, KeyLike, as_bound, as_key, as_prefix, as_value, prefix_end
from toondb_protocol.layout import decode_map
from toondb_protocol.messages import ColumnType, encode_request
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply

__all__ = [
    "Call",
    "Loss",
    "Operation",
    "ScanRange",
    "Step",
    "Window",
    "abort",
    "answer_by_given",
    "begin",
    "checkpoint",
    "commit",
    "create_table",
    "decode_ok",
    "decode_value",
    "delete",
    "delete_many",
    "delete_tree",
    "exists",
    "get",
    "get_frame",
    "get_many",
    "given_keys",
    "hello",
    "ping",
    "put",
    "put_frame",
    "put_many",
    "query",
    "scan_close",
    "scan_next",
    "scan_range",
    "scan_start",
    "stats",
    "text",
    "whole_number",
]

T = TypeVar("T")

SOFTWARE = "toondb-client/0.1.0"

_GET = int(Opcode.GET | EXTENDED)
_PUT = int(Opcode.PUT | EXTENDED)
_DELETE = int(Opcode.DELETE | EXTENDED)
_OK = int(Reply.OK)
_VALUE = int(Reply.VALUE)
_TXN_ID = int(Reply.TXN_ID)
_END_STREAM = int(Reply.END_STREAM)

_PING_FRAME = pack_header(Opcode.PING, 0)

_pack_head = struct.Struct("<BIQ").pack
_pack_put = struct.Struct("<BIQI").pack

FIRST_WINDOW = 64 * 1024
LAST_WINDOW = 4 * 1024 * 1024
_STEP_BYTES = 256 * 1024
_KEYS_PER_REQUEST = 4096
_CONFLICT_ATTEMPTS = 100


class Call(NamedTuple):
    """One request.

    Attributes:
        frame: The request frame.
        decode: Turns the reply into the result, or raises what it says.
        retry: It changes nothing on the server, so it may be sent again.
    """

    frame: bytes
    decode: Callable[[ReplyFrame], Any]
    retry: bool


class Loss(Enum):
    """What it means that the connection is lost before the replies of a step."""

    AGAIN = 0
    """Nothing depends on this connection yet and nothing changes: send the step again on another one."""
    NOTHING = 1
    """The server gives up the transaction of this operation: nothing was applied."""
    UNKNOWN = 2
    """It was committing: perhaps applied."""


class Step(NamedTuple):
    """Requests that an operation sends at once."""

    frames: list[bytes]
    loss: Loss


Operation: TypeAlias = Generator[Step, list[ReplyFrame], T]


# Decoders


def decode_ok(reply: ReplyFrame) -> None:
    """Nothing, when the reply is OK."""
    if reply.code != _OK:
        raise_error(reply)


def decode_value(reply: ReplyFrame) -> bytes | None:
    """The value, or None for an OK, which stands for a missing key."""
    code = reply.code
    if code == _VALUE:
        return reply.payload
    if code == _OK:
        return None
    raise_error(reply)


def _u64(reply: ReplyFrame) -> int:
    if reply.code != _TXN_ID or len(reply.payload) != 8:
        raise_error(reply)
    return int.from_bytes(reply.payload, "little")


def _json(reply: ReplyFrame) -> dict[str, Any]:
    if reply.code != Reply.STATS_RESP:
        raise_error(reply)
    try:
        stats: dict[str, Any] = json.loads(reply.payload)
    except (ValueError, RecursionError):
        raise ProtocolError("the server sent statistics that are not JSON") from None
    return stats


def _pong(reply: ReplyFrame) -> None:
    if reply.code != Reply.PONG:
        raise_error(reply)


def _hello(reply: ReplyFrame) -> ServerHello:
    if reply.code != Reply.PONG:
        raise_error(reply)
    return parse_server_hello(decode_map(reply.payload))


class Window(NamedTuple):
    """Part of a scan: batches of flat rows, how many rows, and the cursor that goes on, if any."""

    batches: list[list[bytes]]
    rows: int
    cursor: int | None


def _window(reply: ReplyFrame) -> Window:
    if reply.code != _END_STREAM:
        raise_error(reply)
    end = decode_map(reply.payload)
    rows, cursor = end.get("rows", 0), end.get("cursor")
    if not isinstance(rows, int) or not (cursor is None or isinstance(cursor, int)):
        raise ProtocolError("the server closed a stream with facts of the wrong type")
    try:
        batches = [msgpack.unpackb(row) for row in reply.rows]
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise ProtocolError("the server sent a ROW that is not msgpack") from None
    for batch in batches:
        if type(batch) is not list or not set(map(type, batch)) <= _BYTES:
            raise ProtocolError("the server sent a ROW that is no array of binary items")
    return Window(batches, rows, cursor)


_BYTES = frozenset({bytes})


# Arguments

_MOST = 1 << 62


def whole_number(name: str, value: int, least: int = 0) -> int:
    """``value`` when it is a number of ``least`` or more; more than any database holds is cut to what fits a frame.

    Raises:
        ValidationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValidationError(f"{name} must be a number of {least} or more, got {value!r:.60}.")
    return min(value, _MOST)


def text(what: str, value: object) -> str:
    """``value`` when it is text that UTF-8 can carry.

    Raises:
        ValidationError: It is not.
    """
    if not isinstance(value, str):
        raise ValidationError(f"{what} is text, got {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationError(f"{what} {value!r} is not valid Unicode text.") from None
    return value


def _several(what: str, items: object) -> Iterable[Any]:
    """``items`` when it is a collection; a single key must not be taken for a collection of its characters."""
    if isinstance(items, (str, bytes, bytearray, memoryview)) or not isinstance(items, Iterable):
        raise ValidationError(f"{what} must be a collection, not {type(items).__name__}.")
    return items


def given_keys(keys: Iterable[KeyLike]) -> list[tuple[bytes, Any]]:
    """Each key as bytes and as the caller wrote it (bytes, when that cannot be a key of a dict)."""
    return [
        (name, name if isinstance(key, (bytearray, memoryview)) else key)
        for key in _several("keys", keys)
        for name in (as_key(key),)
    ]


def answer_by_given(given: list[tuple[bytes, Any]], found: Mapping[bytes, bytes]) -> dict[Any, bytes]:
    """The values found, by the key as the caller wrote it, in the caller's order."""
    return {key: found[name] for name, key in given if name in found}


# Single requests


def _frame(opcode: Opcode, values: Mapping[str, Any], txn: int = 0) -> bytes:
    code, payload = encode_request(opcode, values, txn=txn)
    return pack_header(code, len(payload)) + payload


def get(txn: int, key: bytes) -> Call:
    """Read a key."""
    return Call(get_frame(txn, key), decode_value, True)


def get_frame(txn: int, key: bytes) -> bytes:
    """The frame alone of :func:`get`, for pipelines."""
    return _pack_head(_GET, 8 + len(key), txn) + key


def put(txn: int, key: bytes, value: bytes) -> Call:
    """Write a key."""
    return Call(put_frame(txn, key, value), decode_ok, False)


def put_frame(txn: int, key: bytes, value: bytes) -> bytes:
    """The frame alone of :func:`put`, for pipelines and bulk writes."""
    size = 12 + len(key) + len(value)
    if size > 0xFFFF_FFFF:
        raise ValidationError(f"the value has {len(value)} bytes, a frame carries less than 4 GiB.")
    return _pack_put(_PUT, size, txn, len(key)) + key + value


def delete(txn: int, key: bytes) -> Call:
    """Delete a key."""
    return Call(_pack_head(_DELETE, 8 + len(key), txn) + key, decode_ok, False)


def hello() -> Call:
    """Exchange hellos; also the ping."""
    return Call(_frame(Opcode.PING, {"body": client_hello(SOFTWARE)}), _hello, True)


def ping() -> Call:
    """A round trip in the classic form, which carries nothing."""
    return Call(_PING_FRAME, _pong, True)


def begin(isolation: str, *, read_only: bool) -> Call:
    """Begin a transaction."""
    if isolation not in ("snapshot", "serializable"):
        raise ValidationError(f"isolation {isolation!r} is unknown; known: snapshot, serializable.")
    body: dict[str, Any] = {}
    if isolation != "snapshot":
        body["isolation"] = isolation
    if read_only:
        body["read_only"] = True
    return Call(_frame(Opcode.BEGIN_TXN, {"body": body}), _u64, True)


def commit(txn: int) -> Call:
    """Commit a transaction; answers the LSN."""
    return Call(_frame(Opcode.COMMIT_TXN, {}, txn), _u64, False)


def abort(txn: int) -> Call:
    """Abort a transaction."""
    return Call(_frame(Opcode.ABORT_TXN, {}, txn), decode_ok, False)


def checkpoint() -> Call:
    """Make everything durable; answers the LSN."""
    return Call(_frame(Opcode.CHECKPOINT, {}), _u64, True)


def stats() -> Call:
    """Read the counters."""
    return Call(_frame(Opcode.STATS, {}), _json, True)


def exists(txn: int, key: bytes) -> Call:
    """Whether a key exists, without moving its value."""
    body = {"start": key, "end": key + b"\0", "limit": 1, "values": False}
    return Call(_frame(Opcode.SCAN, {"body": body}, txn), lambda reply: bool(_window(reply).rows), True)


_COLUMN_TYPES = {
    **{member.name.lower(): member for member in ColumnType},
    "int": ColumnType.INT64,
    "integer": ColumnType.INT64,
    "float": ColumnType.FLOAT64,
    "real": ColumnType.FLOAT64,
    "str": ColumnType.TEXT,
    "string": ColumnType.TEXT,
    "bytes": ColumnType.BINARY,
    "blob": ColumnType.BINARY,
    "boolean": ColumnType.BOOL,
}


def create_table(txn: int, name: str, columns: Mapping[str, str] | Sequence[Sequence[Any]]) -> Call:
    """Create a table. ``columns`` maps names to types, or lists (name, type[, nullable])."""
    text("a table name", name)
    rows = list(_several("columns", columns.items() if isinstance(columns, Mapping) else columns))
    fields: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, (str, bytes)) or not isinstance(row, Sequence) or not 2 <= len(row) <= 3:
            raise ValidationError(f"a column is (name, type) or (name, type, nullable), got {row!r}.")
        column, kind = text("a column name", row[0]), row[1]
        known = _COLUMN_TYPES.get(kind.lower()) if isinstance(kind, str) else None
        if isinstance(kind, int) and not isinstance(kind, bool) and kind in _COLUMN_TYPES.values():
            known = ColumnType(kind)
        if known is None:
            raise ValidationError(
                f"column type {kind!r} is unknown; known: {', '.join(m.name.lower() for m in ColumnType)}."
            )
        nullable = row[2] if len(row) == 3 else True
        if not isinstance(nullable, (bool, int)):
            raise ValidationError(f"nullable of column {column!r} is true or false, got {nullable!r}.")
        fields.append({"name": column, "type": int(known), "nullable": int(bool(nullable))})
    if max(len(fields), len(name.encode()), *(len(field["name"].encode()) for field in fields), 0) > 0xFFFF:
        raise ValidationError("a table has at most 65535 columns, and names at most 65535 bytes.")
    return Call(_frame(Opcode.CREATE_TABLE, {"name": name, "columns": fields}, txn), decode_ok, False)


def query(txn: int, body: Mapping[str, Any]) -> Call:
    """A prefix query; answers a :class:`Window`."""
    return Call(_frame(Opcode.QUERY, {"body": dict(body)}, txn), _window, True)


# Scans


class ScanRange(NamedTuple):
    """A half-open key range with its options."""

    start: bytes
    end: bytes | None
    limit: int
    reverse: bool
    batch: int


def scan_range(
    start: KeyLike | None,
    end: KeyLike | None,
    *,
    limit: int | None,
    reverse: bool,
    batch: int | None = None,
    prefix: bool | None = None,
) -> ScanRange:
    """The range that ``scan(prefix)`` or ``scan(start, end)`` means.

    Args:
        start: The prefix, when ``end`` is None (or ``prefix`` is true); else the first key.
        end: End of the range, exclusive.
        limit: Rows at the most; None = all.
        reverse: Descending order.
        batch: Rows per frame; None = the server's choice.
        prefix: Force one reading; None decides by ``end``.

    Raises:
        ValidationError: A limit or batch is not a number, or negative.
    """
    limit = None if limit is None else whole_number("limit", limit)
    batch = 0 if batch is None else whole_number("batch_size", batch, 1)
    if prefix or (prefix is None and end is None):
        low = as_prefix(start if start is not None else b"")
        high = prefix_end(low)
    else:
        low = as_bound(start) or b""
        high = as_bound(end)
    if limit == 0:
        high = low  # nothing was asked for; on the wire 0 means no limit
    return ScanRange(low, high, limit or 0, bool(reverse), batch)


def scan_start(txn: int, scan: ScanRange, window: int) -> Call:
    """Start a scan; answers its first :class:`Window`."""
    body: dict[str, Any] = {"start": scan.start, "window": window}
    if scan.end is not None:
        body["end"] = scan.end
    if scan.limit:
        body["limit"] = scan.limit
    if scan.reverse:
        body["reverse"] = True
    if scan.batch:
        body["batch"] = scan.batch
    return Call(_frame(Opcode.SCAN, {"body": body}, txn), _window, True)


def scan_next(txn: int, cursor: int, window: int) -> Call:
    """The next window of a cursor. Not retried: the cursor is gone with its connection."""
    return Call(_frame(Opcode.SCAN, {"body": {"cursor": cursor, "window": window}}, txn), _window, False)


def scan_close(txn: int, cursor: int) -> Call:
    """Close a cursor."""
    return Call(_frame(Opcode.SCAN, {"body": {"cursor": cursor, "close": True}}, txn), _window, False)


# Operations of several steps


def get_many(txn: int, keys: Iterable[KeyLike]) -> Operation[dict[Any, bytes]]:
    """The values of those keys that exist, by the key as the caller wrote it, in the caller's order.

    One snapshot inside a transaction; outside, one snapshot for every 4096 keys.
    """
    given = given_keys(keys)
    names = list(dict.fromkeys(name for name, _ in given))
    found: dict[bytes, bytes] = {}
    for at in range(0, len(names), _KEYS_PER_REQUEST):
        body = {"keys": names[at : at + _KEYS_PER_REQUEST]}
        (reply,) = yield Step([_frame(Opcode.SCAN, {"body": body}, txn)], Loss.AGAIN)
        for flat in _window(reply).batches:
            try:
                found.update(zip(flat[::2], flat[1::2], strict=True))
            except ValueError:
                raise ProtocolError("the server sent a key without a value") from None
    return answer_by_given(given, found)


def _pairs(items: Mapping[Any, BytesLike] | Iterable[tuple[KeyLike, BytesLike]]) -> list[tuple[bytes, bytes]]:
    rows = _several("items", items.items() if isinstance(items, Mapping) else items)
    pairs: list[tuple[bytes, bytes]] = []
    for row in rows:
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise ValidationError(f"an item is a pair of key and value, got {type(row).__name__}.")
        pairs.append((as_key(row[0]), as_value(row[1])))
    return pairs


def put_many(txn: int, items: Mapping[Any, BytesLike] | Iterable[tuple[KeyLike, BytesLike]]) -> Operation[int]:
    """Write all pairs, atomically: in the given transaction or in one of its own. Answers how many."""
    pairs = _pairs(items)

    def frames(inside: int) -> Iterable[bytes]:
        return (put_frame(inside, key, value) for key, value in pairs)

    yield from _write_all(txn, frames, bool(pairs))
    return len(pairs)


def delete_many(txn: int, keys: Iterable[KeyLike]) -> Operation[int]:
    """Delete all keys, atomically; see :func:`put_many`. Answers how many keys were given."""
    names = [name for name, _ in given_keys(keys)]

    def frames(inside: int) -> Iterable[bytes]:
        return (_pack_head(_DELETE, 8 + len(key), inside) + key for key in names)

    yield from _write_all(txn, frames, bool(names))
    return len(names)


def _write_all(txn: int, frames: Callable[[int], Iterable[bytes]], needed: bool) -> Operation[None]:
    if not needed:
        return
    if txn:
        yield from _send_all(frames(txn))
        return

    def body(inside: int) -> Operation[None]:
        return _send_all(frames(inside))

    yield from _in_transaction(body)


def _send_all(frames: Iterable[bytes]) -> Operation[None]:
    """Pipeline writes in steps of bounded size; raises the first error after its step was read."""
    step: list[bytes] = []
    size = 0
    for frame in frames:
        step.append(frame)
        size += len(frame)
        if size >= _STEP_BYTES:
            _check_all((yield Step(step, Loss.NOTHING)))
            step, size = [], 0
    if step:
        _check_all((yield Step(step, Loss.NOTHING)))


def _check_all(replies: list[ReplyFrame]) -> None:
    for reply in replies:
        if reply.code != _OK:
            raise_error(reply)


def _in_transaction(body: Callable[[int], Operation[T]]) -> Operation[T]:
    """Run ``body`` in a transaction of its own, again on conflict: to the caller it is one plain write."""
    for attempt in range(_CONFLICT_ATTEMPTS):
        (reply,) = yield Step([begin("snapshot", read_only=False).frame], Loss.AGAIN)
        txn = _u64(reply)
        try:
            result = yield from body(txn)
        except ToonDBError:
            yield Step([abort(txn).frame], Loss.NOTHING)
            raise
        (reply,) = yield Step([commit(txn).frame], Loss.UNKNOWN)
        try:
            _u64(reply)
        except TransactionConflictError:
            if attempt == _CONFLICT_ATTEMPTS - 1:
                raise
            continue
        return result
    raise AssertionError("unreachable")


def delete_tree(txn: int, path: bytes) -> Operation[int]:
    """Delete the key of a path and every key below it, atomically. Answers how many keys went."""

    def body(inside: int) -> Operation[int]:
        count = 0
        for scan in ({"start": path, "end": path + b"\0"}, {"prefix": path + b"/"}):
            (reply,) = yield Step([_frame(Opcode.SCAN, {"body": {**scan, "values": False}}, inside)], Loss.NOTHING)
            for keys in _window(reply).batches:
                count += len(keys)
                yield from _send_all(_pack_head(_DELETE, 8 + len(key), inside) + key for key in keys)
        return count

    if txn:
        return (yield from body(txn))
    return (yield from _in_transaction(body))
