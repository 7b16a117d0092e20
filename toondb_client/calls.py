"""What the clients say on the wire, written once for the sync and the async client.

A :data:`Call` is one request: its frame, how to decode its reply, and whether it may be sent again when the
connection is lost before the reply. Operations of several steps are generators that yield a :class:`Step` at a
time and receive the list of its replies; they never touch a socket.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Generator, Iterable, Mapping
from enum import Enum
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import msgpack

from toondb_protocol.arguments import (
    Items,
    ScanRange,
    answer_by_given,
    check_isolation,
    given_keys,
    integer,
    pairs,
)
from toondb_protocol.changes import Change, ChangeKind
from toondb_protocol.client_core import ReplyFrame as ReplyFrame
from toondb_protocol.client_core import raise_error as raise_error
from toondb_protocol.collections import READING
from toondb_protocol.columns import Columns, given_columns
from toondb_protocol.errors import MalformedRequestError, ProtocolError, ToonDBError, ValidationError
from toondb_protocol.frames import pack_header
from toondb_protocol.hello import ServerHello, client_hello, parse_server_hello
from toondb_protocol.keys import KeyLike
from toondb_protocol.layout import decode_map, encode_map
from toondb_protocol.messages import encode_request
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply
from toondb_protocol.sql_result import SQLQueryResult
from toondb_protocol.sql_values import (
    BAD_VALUES,
    SqlParameters,
    given_parameters,
    given_sql,
    only_reads,
    parameter_sets,
)

__all__ = [
    "Call",
    "ChangesPage",
    "Loss",
    "Operation",
    "SqlDone",
    "Step",
    "WatchPatience",
    "Window",
    "abort",
    "begin",
    "changes",
    "checkpoint",
    "commit",
    "compare_and_set",
    "create_table",
    "decode_ok",
    "decode_value",
    "delete",
    "delete_many",
    "delete_tree",
    "exists",
    "expire",
    "get",
    "get_frame",
    "get_many",
    "hello",
    "increment",
    "operate",
    "ping",
    "put",
    "put_for",
    "put_frame",
    "put_many",
    "query",
    "read_operation",
    "scan_close",
    "scan_next",
    "scan_start",
    "sql",
    "sql_many",
    "sql_result",
    "sql_rows",
    "sql_script",
    "sql_start",
    "stats",
    "ttl",
]

T = TypeVar("T")

SOFTWARE = "toondb-client/0.1.0"

_GET = int(Opcode.GET | EXTENDED)
_QUERY = int(Opcode.QUERY | EXTENDED)
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
_WATCH_POLL_SECONDS = 2.0


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


def _result(reply: ReplyFrame) -> Any:
    """What a PUT with options answers."""
    if reply.code != _END_STREAM or reply.rows:
        raise_error(reply)
    result = decode_map(reply.payload).get("result")
    if not isinstance(result, int):
        raise ProtocolError("the server closed a write with no result")
    return result


def _done(reply: ReplyFrame) -> None:
    _result(reply)


def _ttl(reply: ReplyFrame) -> float | None:
    rows = _rows(reply, _TTL_TYPES)
    if not rows:
        return None
    flat = rows[0]
    if list(map(type, flat)) not in ([bytes, int], [bytes, type(None)]) or (flat[1] or 0) < 0:
        raise ProtocolError("the server sent a time to live that is none")
    return None if flat[1] is None else flat[1] / 1000


def _rows(reply: ReplyFrame, types: frozenset[type]) -> list[list[Any]]:
    """The batches of a stream, whose items have these types."""
    if reply.code != _END_STREAM:
        raise_error(reply)
    try:
        batches = [msgpack.unpackb(row) for row in reply.rows]
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise ProtocolError("the server sent a ROW that is not msgpack") from None
    for batch in batches:
        if type(batch) is not list or not set(map(type, batch)) <= types:
            raise ProtocolError("the server sent a ROW with items of the wrong type")
    return batches


_BYTES: frozenset[type] = frozenset({bytes})
_TTL_TYPES: frozenset[type] = frozenset({bytes, int, type(None)})
_KINDS = {str(kind): kind for kind in ChangeKind}
_CHANGE_TYPES: frozenset[type] = frozenset({bytes, int, str, bool, type(None)})


class ChangesPage(NamedTuple):
    """Part of a history: its changes, and the LSN to go on after."""

    changes: list[Change]
    lsn: int


def _changes(reply: ReplyFrame) -> ChangesPage:
    batches = _rows(reply, _CHANGE_TYPES)
    lsn = decode_map(reply.payload).get("lsn")
    if type(lsn) is not int:
        raise ProtocolError("the server closed a history without its LSN")
    found: list[Change] = []
    for flat in batches:
        columns = [flat[at::5] for at in range(5)]
        kinds = [_KINDS.get(kind) for kind in columns[1]]
        types_fit = all(set(map(type, columns[at])) <= {kind} for at, kind in ((0, int), (2, bytes), (4, bool)))
        # A value comes with a put, and with nothing else.
        values_fit = all(
            type(value) is bytes if kind is ChangeKind.PUT else value is None
            for kind, value in zip(kinds, columns[3], strict=False)
        )
        if len(flat) % 5 or None in kinds or not types_fit or not values_fit:
            raise ProtocolError("the server sent a change that is none")
        found += map(Change, columns[0], cast(list[ChangeKind], kinds), *columns[2:])
    return ChangesPage(found, lsn)


def changes(since_lsn: int | None, start: bytes, end: bytes | None, wait_ms: int) -> Call:
    """The changes of a range after a commit, waiting for one; ``since_lsn`` None asks only where history ends."""
    body: dict[str, Any] = {"start": start, "since_lsn": since_lsn}
    if end is not None:
        body["end"] = end
    if wait_ms:
        body["wait_ms"] = wait_ms
    return Call(_frame(Opcode.SCAN, {"body": body}), _changes, True)


class WatchPatience:
    """How long a watch waits: for one poll, and until it ends.

    Args:
        seconds: It ends when no change came for so long; None = never.
        timeout: Seconds that one call may take.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, seconds: float | None, timeout: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._longest = min(_WATCH_POLL_SECONDS, timeout / 2)
        self._give_up = None if seconds is None else clock() + seconds

    def wait_ms(self) -> int:
        """How long the server is asked to wait for a change."""
        left = self._longest if self._give_up is None else self._give_up - self._clock()
        return math.ceil(max(0.0, min(left, self._longest)) * 1000)

    def over(self, found: bool) -> bool:
        """Whether the watch ends, after a poll that found changes or none."""
        if self._give_up is None or self._seconds is None:
            return False
        now = self._clock()
        if found:
            self._give_up = now + self._seconds
            return False
        return now >= self._give_up


class Window(NamedTuple):
    """Part of a scan: batches of flat rows, how many rows, and the cursor that goes on, if any."""

    batches: list[list[Any]]
    rows: int
    cursor: int | None


def _window(reply: ReplyFrame) -> Window:
    return _window_of(reply, _BYTES)


def _sql_window(reply: ReplyFrame) -> Window:
    return _window_of(reply, _SQL_TYPES)


def _window_of(reply: ReplyFrame, types: frozenset[type]) -> Window:
    batches = _rows(reply, types)
    end = decode_map(reply.payload)
    rows, cursor = end.get("rows", 0), end.get("cursor")
    if not isinstance(rows, int) or not (cursor is None or isinstance(cursor, int)):
        raise ProtocolError("the server closed a stream with facts of the wrong type")
    return Window(batches, rows, cursor)


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


def put_for(txn: int, key: bytes, value: bytes, ttl_ms: int) -> Call:
    """Write a key that expires."""
    return Call(_frame(Opcode.PUT, {"key": key, "options": {"ttl_ms": ttl_ms}, "value": value}, txn), _done, False)


def compare_and_set(txn: int, key: bytes, expected: bytes | None, new: bytes | None, ttl_ms: int | None) -> Call:
    """Write (or with ``new`` None delete) a key that has the expected value; answers whether."""
    options: dict[str, Any] = {"op": "put" if new is not None else "delete", "expected": expected}
    if ttl_ms is not None:
        options["ttl_ms"] = ttl_ms
    return Call(_frame(Opcode.PUT, {"key": key, "options": options, "value": new or b""}, txn), _result, False)


def increment(txn: int, key: bytes, by: int) -> Call:
    """Add to a number; answers the sum."""
    options = {"op": "add", "by": integer("by", by)}
    return Call(_frame(Opcode.PUT, {"key": key, "options": options, "value": b""}, txn), _result, False)


def expire(txn: int, key: bytes, ttl_ms: int | None) -> Call:
    """Give a key another time to live; answers whether there is such a key."""
    options: dict[str, Any] = {"op": "expire"}
    if ttl_ms is not None:
        options["ttl_ms"] = ttl_ms
    return Call(_frame(Opcode.PUT, {"key": key, "options": options, "value": b""}, txn), _result, False)


def ttl(txn: int, key: bytes) -> Call:
    """The seconds that a key has to live, or None."""
    body = {"keys": [key], "values": False, "expiry": True}
    return Call(_frame(Opcode.SCAN, {"body": body}, txn), _ttl, True)


def delete(txn: int, key: bytes) -> Call:
    """Delete a key."""
    return Call(_pack_head(_DELETE, 8 + len(key), txn) + key, decode_ok, False)


def hello() -> Call:
    """Exchange hellos; also the ping."""
    return Call(_frame(Opcode.PING, {"body": client_hello(SOFTWARE)}), _hello, True)


def ping() -> Call:
    """A round trip in the classic form, which carries nothing."""
    return Call(_PING_FRAME, _pong, True)


def begin(isolation: str, *, read_only: bool, blind: bool = False) -> Call:
    """Begin a transaction; a blind one commits without asking whether others wrote the same keys since."""
    body: dict[str, Any] = {}
    if check_isolation(isolation) != "snapshot":
        body["isolation"] = isolation
    if read_only:
        body["read_only"] = True
    if blind:
        body["blind"] = True
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


def create_table(txn: int, name: str, columns: Columns) -> Call:
    """Create a table."""
    return Call(
        _frame(Opcode.CREATE_TABLE, {"name": name, "columns": given_columns(name, columns)}, txn), decode_ok, False
    )


def query(txn: int, body: Mapping[str, Any]) -> Call:
    """A prefix query; answers a :class:`Window`."""
    return Call(_frame(Opcode.QUERY, {"body": dict(body)}, txn), _window, True)


# SQL


class SqlDone(NamedTuple):
    """What a statement did, and its rows in flat batches; the first batch has the names of its columns."""

    batches: list[list[Any]]
    affected: int
    last_row_id: int


def _sql_done(reply: ReplyFrame) -> SqlDone:
    batches = _rows(reply, _SQL_TYPES)
    end = decode_map(reply.payload)
    affected, last_row_id = end.get("affected", 0), end.get("last_row_id", 0)
    if type(affected) is not int or type(last_row_id) is not int:
        raise ProtocolError("the server closed a statement with facts of the wrong type")
    return SqlDone(batches, affected, last_row_id)


def sql_result(done: SqlDone) -> SQLQueryResult:
    """The result that a caller gets."""
    columns = done.batches[0] if done.batches else []
    rows: list[tuple[Any, ...]] = []
    for flat in done.batches[1:]:
        rows += sql_rows(columns, flat)
    return SQLQueryResult(columns, rows, done.affected, done.last_row_id)


def sql_rows(columns: list[str], flat: list[Any]) -> Iterable[tuple[Any, ...]]:
    """The rows of a batch."""
    width = len(columns)
    if not width or len(flat) % width or set(map(type, columns)) != {str}:
        raise ProtocolError("the server sent rows that do not fit their columns")
    return zip(*[iter(flat)] * width, strict=True)


def sql(txn: int, text: str, params: SqlParameters) -> Call:
    """Run one statement; answers a :class:`SqlDone`."""
    body: dict[str, Any] = {"sql": given_sql(text)}
    values = given_parameters(params)
    if values is not None:
        body["params"] = values
    return Call(_sql_frame(body, txn), _sql_done, only_reads(text))


def sql_script(txn: int, text: str) -> Call:
    """Run any number of statements."""
    return Call(_sql_frame({"sql": given_sql(text), "script": True}, txn), _sql_done, False)


def sql_many(txn: int, text: str, params: Iterable[SqlParameters]) -> Operation[SqlDone]:
    """Run one statement for each set of values, atomically."""
    body: dict[str, Any] = {"sql": given_sql(text)}
    values = parameter_sets(params)
    if values.names is not None:
        body["names"] = values.names
    width = max(1, values.width)
    runs_each = runs_at_most = max(1, _VALUES_PER_REQUEST // width)
    at = 0
    step: list[bytes] = []
    size = 0
    while True:
        runs = min(runs_each, values.runs - at)
        flat = values.flat[at * width : (at + runs) * width]
        while runs > 1 and _long_bytes(flat) > _STEP_BYTES:
            # Together they may be more than a frame takes.
            runs //= 2
            del flat[runs * width :]
        runs_each = min(2 * runs, runs_at_most)
        body["params"], body["runs"] = flat, runs
        at += runs
        last = at >= values.runs
        if last:
            break
        frame = _sql_frame({**body, "more": True}, txn)
        body["part"] = body.get("part", 0) + 1
        step.append(frame)
        size += len(frame)
        if size >= _STEP_BYTES:
            _check_all((yield Step(step, Loss.NOTHING)))
            step, size = [], 0
    # It comes with those before it in one step, whose loss is that of the commit.
    replies = yield Step([*step, _sql_frame(body, txn)], Loss.UNKNOWN)
    _check_all(replies)
    return _sql_done(replies[-1])


def _long_bytes(values: list[Any]) -> int:
    return sum([len(value) for value in values if type(value) is bytes or type(value) is str])


def sql_start(txn: int, text: str, params: SqlParameters, window: int) -> Call:
    """Start a statement; answers its first :class:`Window`, whose first batch has the names of its columns."""
    body: dict[str, Any] = {"sql": given_sql(text), "window": window}
    values = given_parameters(params)
    if values is not None:
        body["params"] = values
    return Call(_sql_frame(body, txn), _sql_window, only_reads(text))


# Namespaces and collections


def read_operation(txn: int, operation: str, arguments: Mapping[str, Any], max_frame: int) -> Call | None:
    """An operation as one request; None = it writes, or has to be sent in parts. The arguments are those of operate."""
    if operation not in READING:
        return None
    packed = _packed_arguments(operation, arguments)
    if len(packed) > _part_size(max_frame):
        return None
    # The operation comes first: by that the server knows a short search before it decodes anything.
    return Call(_query_frame({"op": operation, "args": packed}, txn), _operation_result, True)


def _packed_arguments(operation: str, arguments: Mapping[str, Any]) -> bytes:
    try:
        packed: bytes = msgpack.packb(arguments)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValidationError(f"the arguments of {operation} cannot be sent: {error}.") from None
    return packed


def _part_size(max_frame: int) -> int:
    return min(_PART_BYTES, max_frame - _PART_HEAD)


def _operation_result(reply: ReplyFrame) -> Any:
    parts = _rows(reply, _BYTES)
    try:
        whole = parts[0][0] if len(parts) == 1 == len(parts[0]) else b"".join(chain.from_iterable(parts))
        return msgpack.unpackb(whole, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise ProtocolError("the server sent a result that is not msgpack") from None


def operate(txn: int, operation: str, arguments: Mapping[str, Any], max_frame: int) -> Operation[Any]:
    """Carry out an operation of namespaces and collections; answers its result.

    Args:
        txn: The transaction, 0 = none.
        operation: Its name.
        arguments: Its arguments; sent in parts when they are large.
        max_frame: The server's frame cap in bytes.
    """
    packed, size = _packed_arguments(operation, arguments), _part_size(max_frame)
    body: dict[str, Any] = {"op": operation}
    loss = Loss.AGAIN if operation in READING else Loss.UNKNOWN
    at = 0
    while len(packed) - at > size:
        body["args"] = packed[at : at + size]
        replies = yield Step([_query_frame({**body, "more": True}, txn)], Loss.NOTHING)
        _check_all(replies)
        at += size
        body["part"] = body.get("part", 0) + 1
        if loss is Loss.AGAIN:
            loss = Loss.NOTHING  # the parts before it are on this connection
    body["args"] = packed[at:] if at else packed
    (reply,) = yield Step([_query_frame(body, txn)], loss)
    return _operation_result(reply)


_PART_BYTES = 1 << 20
_PART_HEAD = 256


def _query_frame(body: dict[str, Any], txn: int) -> bytes:
    packed = encode_map(body)
    return _pack_head(_QUERY, 8 + len(packed), txn) + packed


def _sql_frame(body: dict[str, Any], txn: int) -> bytes:
    try:
        return _query_frame(body, txn)
    except (MalformedRequestError, OverflowError):
        params = body["params"]
        values = params.values() if isinstance(params, Mapping) else params
        integers = any(type(value) is int and not -(1 << 63) <= value < 1 << 63 for value in values)
        why = "an integer does not fit into 64 bits" if integers else "a text is not valid Unicode"
        raise ValidationError(
            f"the values do not fit the parameters of the statement: {why}.", remediation=BAD_VALUES
        ) from None


_VALUES_PER_REQUEST = 65_536
_SQL_TYPES: frozenset[type] = frozenset({bytes, int, float, str, type(None)})


# Scans


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


def scan_next(txn: int, cursor: int, window: int, decode: Callable[[ReplyFrame], Window] = _window) -> Call:
    """The next window of a cursor. Not retried: the cursor is gone with its connection.

    ``decode`` is that of the call that started it.
    """
    return Call(_frame(Opcode.SCAN, {"body": {"cursor": cursor, "window": window}}, txn), decode, False)


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


def put_many(txn: int, items: Items, ttl_ms: int | None) -> Operation[int]:
    """Write all pairs, atomically: in the given transaction or in one of its own. Answers how many."""
    rows = pairs(items)

    def frames(inside: int) -> Iterable[bytes]:
        if ttl_ms is None:
            return (put_frame(inside, key, value) for key, value in rows)
        return (put_for(inside, key, value, ttl_ms).frame for key, value in rows)

    yield from _write_all(txn, frames, bool(rows))
    return len(rows)


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
        if reply.code != _OK and reply.code != _END_STREAM:
            raise_error(reply)


def _in_transaction(body: Callable[[int], Operation[T]]) -> Operation[T]:
    """Run ``body`` in a transaction of its own. To the caller it is one plain write, which never conflicts."""
    (reply,) = yield Step([begin("snapshot", read_only=False, blind=True).frame], Loss.AGAIN)
    txn = _u64(reply)
    try:
        result = yield from body(txn)
    except ToonDBError:
        yield Step([abort(txn).frame], Loss.NOTHING)
        raise
    (reply,) = yield Step([commit(txn).frame], Loss.UNKNOWN)
    _u64(reply)
    return result


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
