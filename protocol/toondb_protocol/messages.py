"""The message table: what every opcode carries, in classic and extended form, and what answers it.

This table is the single source of the wire format. ``protocol/SPEC.md`` is rendered from it
(``python -m toondb_protocol.spec``), the golden vectors are checked against it, and payloads off the hot
path are encoded and decoded by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from .errors import MalformedRequestError
from .layout import Field, Kind, decode_fields, encode_fields
from .opcodes import EXTENDED, Opcode, Reply

__all__ = [
    "BEGIN_OPTIONS",
    "COLUMN_TYPES",
    "END_STREAM_KEYS",
    "ERROR_KEYS",
    "HELLO_KEYS",
    "MESSAGES",
    "OPTIONS_FLAG",
    "PUT_OPTIONS",
    "QUERY_KEYS",
    "REPLIES",
    "SCAN_KEYS",
    "TXN_FIELD",
    "ColumnType",
    "MapKey",
    "Message",
    "ReplyLayout",
    "check_body",
    "decode_options",
    "decode_request",
    "encode_request",
]


class ColumnType(IntEnum):
    """Column types of CREATE_TABLE."""

    INT64 = 0
    UINT64 = 1
    FLOAT64 = 2
    TEXT = 3
    BINARY = 4
    BOOL = 5


COLUMN_TYPES = {member.value: member.name.lower() for member in ColumnType}

TXN_FIELD = Field("txn", Kind.U64, "transaction id from BEGIN_TXN; 0 = outside any transaction")
_PATH = Field("path", Kind.LIST16, "path segments", (Field("segment", Kind.TEXT16),))


@dataclass(frozen=True, slots=True)
class MapKey:
    """One key of a msgpack map body.

    Args:
        name: The key.
        types: Accepted msgpack types, in words.
        doc: Meaning, default and limits.
    """

    name: str
    types: str
    doc: str


@dataclass(frozen=True, slots=True)
class Message:
    """One request.

    Args:
        opcode: Its opcode.
        summary: What it does, one sentence.
        classic: Layout of the classic payload.
        classic_reply: Replies to the classic form other than ERROR.
        extended: Layout of the extended body, after ``u64 txn``.
        extended_reply: Replies to the extended form other than ERROR.
        keys: For map bodies, the keys.
        optioned: Layout of the extended body with options: when ``OPTIONS_FLAG`` is set in its first u32.
        notes: Rules that a client author must know.
    """

    opcode: Opcode
    summary: str
    classic: tuple[Field, ...]
    classic_reply: tuple[Reply, ...]
    extended: tuple[Field, ...]
    extended_reply: tuple[Reply, ...]
    keys: tuple[MapKey, ...] = ()
    optioned: tuple[Field, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyLayout:
    """One reply: its code, layout and meaning."""

    reply: Reply
    fields: tuple[Field, ...]
    summary: str


_KEY = Field("key", Kind.REST, "1 to 511 bytes")
_PUT = (Field("key", Kind.BYTES32, "1 to 511 bytes"), Field("value", Kind.REST, "the value, may be empty"))
OPTIONS_FLAG = 0x8000_0000
"""Set in the key length of an extended PUT that has options; a key's length needs 9 bits of the 32."""

_PUT_OPTIONED = (
    Field("key", Kind.BYTES32, "1 to 511 bytes; the length is sent with its top bit set: plus 0x80000000"),
    Field("options", Kind.MAP32, "what to do, see the keys below"),
    Field("value", Kind.REST, "the value that `put` stores, may be empty; empty for every other `op`"),
)
_CREATE_TABLE = (
    Field("name", Kind.TEXT16, "table name"),
    Field(
        "columns",
        Kind.LIST16,
        "at least one column",
        (
            Field("name", Kind.TEXT16),
            Field("type", Kind.U8, "0 int64, 1 uint64, 2 float64, 3 text, 4 binary, 5 bool"),
            Field("nullable", Kind.U8, "0 or 1"),
        ),
    ),
)
_BODY = (Field("body", Kind.MAP),)

BEGIN_OPTIONS = (
    MapKey("isolation", "text", '`"snapshot"` (default) or `"serializable"`'),
    MapKey("read_only", "bool", "true refuses writes in this transaction; default false"),
    MapKey(
        "blind",
        "bool",
        "true commits without asking whether others wrote the same keys since it began, for plain writes of several "
        "keys; default false",
    ),
)

PUT_OPTIONS = (
    MapKey(
        "op",
        "text",
        '`"put"` (default) stores the value; `"delete"` deletes the key and needs `expected`; `"add"` adds `by` to the '
        'number that the value is; `"expire"` keeps the value and gives the key another time to live',
    ),
    MapKey(
        "ttl_ms",
        "uint",
        "with `put` and `expire`: the key is gone after so many milliseconds, 1 to 2^52; absent = it stays for ever, "
        "also when it had a time to live",
    ),
    MapKey(
        "expected",
        "bin or nil",
        "with `put` and `delete`: do it only when this is the value of the key, nil = only when there is no such key; "
        "absent = in any case",
    ),
    MapKey("by", "int", "with `add`: a signed 64-bit integer; default 1"),
)

SCAN_KEYS = (
    MapKey("prefix", "bin", "keys that start with it; not together with start/end"),
    MapKey("start", "bin", "first key, inclusive; default: the first of all"),
    MapKey("end", "bin", "end of the range, exclusive; default: after the last of all"),
    MapKey("keys", "array of bin", "instead of a range: just these keys (those that exist), in the order asked"),
    MapKey("limit", "uint", "rows at the most; 0 or absent = no limit"),
    MapKey("reverse", "bool", "descending key order; default false"),
    MapKey("values", "bool", "false sends keys only; default true"),
    MapKey("batch", "uint", "rows per ROW frame at the most; default 1024"),
    MapKey(
        "window",
        "uint",
        "bytes of rows after which the stream ends early with a cursor, so that a slow consumer never "
        "blocks the connection; 0 or absent = the whole result in one stream",
    ),
    MapKey(
        "cursor",
        "uint",
        "continue this cursor instead of starting a scan (only window, batch and close apply)",
    ),
    MapKey("close", "bool", "with cursor: close it; answers END_STREAM"),
    MapKey(
        "expiry",
        "bool",
        "with keys, and values false: `[key, ms, key, ms, ...]`, the milliseconds that each of those that exist has "
        "to live, nil = for ever",
    ),
    MapKey(
        "since_lsn",
        "uint or nil",
        "instead of the pairs of the range (`prefix`, or `start` and `end`), its changes after this commit, see "
        "section 8; nil = no changes, only the LSN to begin after. Not in a transaction",
    ),
    MapKey(
        "wait_ms",
        "uint",
        "with since_lsn: when there is no change yet, wait so many milliseconds for one; more than half of the "
        "server's `--timeout-ms` is cut to that; default 0",
    ),
)

QUERY_KEYS = (
    MapKey("prefix", "text or bin", "a table's name, or a key prefix"),
    MapKey("columns", "array of text", "columns to show; absent or empty = all"),
    MapKey("limit", "uint", "rows at the most; 0 or absent = no limit"),
    MapKey("offset", "uint", "rows to skip first; default 0"),
    MapKey(
        "form",
        "text",
        '`"toon"` (default): ROW batches hold parts of one TOON text; `"rows"`: ROW batches hold key, TOON text '
        'of that one row, key, ...; `"count"`: no rows, only the count in END_STREAM',
    ),
    MapKey("where", "map", "only rows whose fields meet this filter, see docs/filters.md; default: all"),
    MapKey("sql", "text", "instead of `prefix`: a SQL statement, see section 15"),
    MapKey("params", "array of values or map of values", "with sql: the values of its parameters; default: none"),
    MapKey(
        "runs",
        "uint",
        "with sql: run it so many times, `params` holds the values of all runs, one after the other; rows are dropped",
    ),
    MapKey("names", "array of text", "with runs: the names of the parameters; absent = they go by position"),
    MapKey(
        "more",
        "bool",
        "with runs and op: true = keep these values, a QUERY with the same `sql` or `op` and further ones follows at "
        "once; the last one, without it, runs all of them; default false",
    ),
    MapKey("part", "uint", "with runs and op: how many QUERYs with `more` came before it; default 0"),
    MapKey("script", "bool", "with sql: true = any number of statements, all or none; rows are dropped; default false"),
    MapKey("op", "text", "instead of `prefix` and `sql`: an operation of namespaces and collections, see section 16"),
    MapKey(
        "args",
        "bin",
        "with op: its arguments, a msgpack map; with `more` and `part` a part of it, as large as the frame cap allows",
    ),
    MapKey("window", "uint", "with sql: the same as in SCAN, which continues and closes the cursor; default 0"),
)

END_STREAM_KEYS = (
    MapKey("rows", "uint", "rows sent in this stream: pairs, keys, changes or rows of a query"),
    MapKey("cursor", "uint or nil", "the cursor to continue with, when the stream ended early"),
    MapKey("lsn", "uint", "only of a SCAN with `since_lsn`: history was read up to this commit, go on after it"),
    MapKey("result", "bool or int", "only of a PUT with options: whether it was done, or the new number of `add`"),
    MapKey("affected", "uint", "only of a QUERY with `sql`: rows that it inserted, changed or deleted"),
    MapKey("last_row_id", "int", "only of a QUERY with `sql`: the row id of the last row inserted"),
)

ERROR_KEYS = (
    MapKey("code", "text", "stable identifier, see the table of error codes"),
    MapKey("message", "text", "what went wrong"),
    MapKey("remediation", "text", "what to do next"),
    MapKey("details", "map", "machine-readable facts"),
)

HELLO_KEYS = (
    MapKey("version", "uint", "protocol version of the sender (1)"),
    MapKey("features", "array of text", "optional parts that the sender speaks"),
    MapKey("software", "text", "name and version of the sender, for logs"),
    MapKey("pid", "uint", "process id of the sender"),
    MapKey("database", "text", "reply only: absolute path of the database folder"),
    MapKey("socket", "text", "reply only: path of the socket as the server was given it, empty when activated"),
    MapKey("max_frame", "uint", "reply only: frame cap in bytes"),
    MapKey("timeout_ms", "uint", "reply only: idle limit of transactions, cursors and partial frames"),
    MapKey("instance", "text", "reply only: random id of this run of the server"),
    MapKey("sync_mode", "text", "reply only: full, normal or off"),
)

_STREAM = (Reply.ROW, Reply.END_STREAM)

MESSAGES: dict[Opcode, Message] = {
    message.opcode: message
    for message in (
        Message(
            Opcode.PUT,
            "Stores a value under a key.",
            _PUT,
            (Reply.OK,),
            _PUT,
            (Reply.OK, Reply.END_STREAM),
            keys=PUT_OPTIONS,
            optioned=_PUT_OPTIONED,
            notes=(
                "OK means the write is committed as `--sync-mode` promises (inside a transaction: recorded in it).",
                "An extended PUT whose `u32` key length has the top bit (0x80000000) set carries options between key "
                "and value; the lower 31 bits are the length. It looks at the key and writes in one step, and no other "
                "write comes in between. In a transaction it goes by what the transaction sees; a conflict shows when "
                "it commits.",
                "With options the reply is one END_STREAM and no ROW, and its map has `result` alone: true when it was "
                "done, false when `expected` did not match or `expire` found no such key (then nothing was written; "
                "that is no ERROR), and for `add` the new number.",
                "A number is decimal text, `-?[0-9]{1,19}`, within a signed 64-bit integer. `add` counts an absent key "
                "as 0 and leaves a time to live as it is; a value that is no number, or a sum beyond 64 bits, is an "
                "ERROR `VALIDATION`.",
                "A time to live is counted from when the server executes the request, by its clock. From its end on "
                "the key is absent for every request, `expected` nil included. A plain PUT ends a time to live.",
                "Also refused: an `op` that is not known, and a `ttl_ms` beyond its limits (`VALIDATION`); an option "
                "without a meaning for the `op`, a `delete` without `expected`, and a value where none is used "
                "(`MALFORMED_REQUEST`).",
            ),
        ),
        Message(
            Opcode.GET,
            "Reads the value of a key.",
            (_KEY,),
            (Reply.VALUE,),
            (_KEY,),
            (Reply.VALUE, Reply.OK),
            notes=(
                "Classic: a missing key answers an empty VALUE.",
                "Extended: a missing key answers OK, so an empty VALUE is an empty value.",
            ),
        ),
        Message(
            Opcode.DELETE,
            "Deletes a key; OK also when it was absent.",
            (_KEY,),
            (Reply.OK,),
            (_KEY,),
            (Reply.OK,),
        ),
        Message(
            Opcode.BEGIN_TXN,
            "Begins a transaction on a snapshot of now; it belongs to this connection and ends with it.",
            (),
            (Reply.TXN_ID,),
            _BODY,
            (Reply.TXN_ID,),
            keys=BEGIN_OPTIONS,
        ),
        Message(
            Opcode.COMMIT_TXN,
            "Commits; TXN_ID carries the LSN of the commit (of the snapshot, when nothing was written).",
            (TXN_FIELD,),
            (Reply.TXN_ID,),
            (),
            (Reply.TXN_ID,),
            notes=("A conflict is an ERROR; the transaction is then gone and nothing of it was applied.",),
        ),
        Message(
            Opcode.ABORT_TXN,
            "Ends a transaction without applying anything.",
            (TXN_FIELD,),
            (Reply.OK,),
            (),
            (Reply.OK,),
        ),
        Message(
            Opcode.QUERY,
            "Reads a table, or the JSON objects under a key prefix, as TOON text; or runs SQL.",
            (
                Field("prefix", Kind.TEXT16, "a table's name, or a key prefix"),
                Field("limit", Kind.U32, "rows at the most; 0 = no limit"),
                Field("offset", Kind.U32, "rows to skip first"),
                Field("columns", Kind.LIST16, "columns to show; none = all", (Field("column", Kind.TEXT16),)),
            ),
            (Reply.VALUE,),
            _BODY,
            _STREAM,
            keys=QUERY_KEYS,
            notes=(
                "The rows of a SQL table or view come when `prefix` is just its name, in the order of their rowid; the "
                "keys of form `rows` are then `name/rowid`.",
                "With `sql` the first ROW has the names of the columns, the others the values: "
                "`[row 1 column 1, row 1 column 2, ..., row 2 column 1, ...]`. A statement without rows has no ROW.",
            ),
        ),
        Message(
            Opcode.CREATE_TABLE,
            "Creates a SQL table whose columns hold just one type each.",
            _CREATE_TABLE,
            (Reply.OK,),
            _CREATE_TABLE,
            (Reply.OK,),
            notes=(
                "The types are declared as INTEGER, UNSIGNED BIG INT, DOUBLE, TEXT, BLOB and BOOLEAN, each with a "
                "CHECK that refuses other values.",
            ),
        ),
        Message(
            Opcode.PUT_PATH,
            "Stores a value under a path: the key is its segments joined by `/`.",
            (_PATH, Field("value", Kind.REST)),
            (Reply.OK,),
            (_PATH, Field("value", Kind.REST)),
            (Reply.OK,),
            notes=("A segment is not empty and contains no `/`.",),
        ),
        Message(
            Opcode.GET_PATH,
            "Reads the value of a path.",
            (_PATH,),
            (Reply.VALUE,),
            (_PATH,),
            (Reply.VALUE, Reply.OK),
            notes=("A missing path answers like a missing key.",),
        ),
        Message(
            Opcode.SCAN,
            "Reads the pairs of a key range, in key order, from one snapshot.",
            (Field("prefix", Kind.REST, "keys that start with it; empty = all"),),
            (Reply.VALUE,),
            _BODY,
            _STREAM,
            keys=SCAN_KEYS,
            notes=(
                "Classic VALUE payload: `u32 n`, then n times `u16 len, key, u32 len, value`. A result over the frame "
                "cap is an ERROR that names the extended form.",
                "Extended ROW payload: one flat msgpack array `[key, value, key, value, ...]` "
                "(`[key, key, ...]` with `values` false; other items with `expiry` and `since_lsn`).",
                "A cursor belongs to its connection (and to its transaction), keeps its snapshot, and is dropped when "
                "idle or open for too long.",
                "An option that would have no effect beside the others is refused as `MALFORMED_REQUEST`.",
            ),
        ),
        Message(
            Opcode.CHECKPOINT,
            "Flushes everything committed so far to the device.",
            (),
            (Reply.OK,),
            (),
            (Reply.TXN_ID,),
            notes=("Extended: TXN_ID carries the LSN that is now durable.",),
        ),
        Message(
            Opcode.STATS,
            "Reads the counters of the server and the storage engine.",
            (),
            (Reply.STATS_RESP,),
            (),
            (Reply.STATS_RESP,),
        ),
        Message(
            Opcode.PING,
            "Answers at once; the extended form exchanges hellos.",
            (),
            (Reply.PONG,),
            _BODY,
            (Reply.PONG,),
            keys=HELLO_KEYS,
        ),
    )
}

REPLIES: dict[Reply, ReplyLayout] = {
    layout.reply: layout
    for layout in (
        ReplyLayout(Reply.OK, (), "Done; or, to an extended GET or GET_PATH, there is no such key."),
        ReplyLayout(
            Reply.ERROR,
            (Field("error", Kind.REST),),
            "To a classic request: UTF-8 text `CODE: message`. To an extended one: a msgpack map. An ERROR that no "
            "request asked for (over `--max-clients`, peer not allowed, framing lost) is classic text, and the "
            "connection closes after it. The first byte tells them apart: 0x80 and above is a map.",
        ),
        ReplyLayout(Reply.VALUE, (Field("value", Kind.REST),), "A value, or the classic result of SCAN and QUERY."),
        ReplyLayout(Reply.TXN_ID, (Field("id", Kind.U64),), "A transaction id, or an LSN after COMMIT and CHECKPOINT."),
        ReplyLayout(Reply.ROW, (Field("rows", Kind.REST),), "A batch of rows: one flat msgpack array."),
        ReplyLayout(Reply.END_STREAM, (Field("end", Kind.MAP),), "The end of a stream of ROW."),
        ReplyLayout(Reply.STATS_RESP, (Field("stats", Kind.REST_TEXT),), "A JSON object of counters."),
        ReplyLayout(Reply.PONG, (Field("hello", Kind.MAP),), "Empty to a classic PING, a hello to an extended one."),
    )
}


_SQL_VALUES = frozenset({type(None), bool, int, float, str, bytes})

_TYPES: dict[str, Callable[[Any], bool]] = {
    "bin": lambda value: type(value) is bytes,
    "text": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "uint": lambda value: type(value) is int and value >= 0,
    "int": lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63,
    "nil": lambda value: value is None,
    "map": lambda value: type(value) is dict,
    "array of bin": lambda value: type(value) is list and set(map(type, value)) <= {bytes},
    "array of text": lambda value: type(value) is list and set(map(type, value)) <= {str},
    "array of values": lambda value: type(value) is list and set(map(type, value)) <= _SQL_VALUES,
    "map of values": lambda value: type(value) is dict and set(map(type, value.values())) <= _SQL_VALUES,
}


def check_body(keys: Sequence[MapKey], body: Mapping[str, Any]) -> None:
    """Check a decoded map body of a request against its keys.

    An option that is not known is refused, so that none is ever accepted and ignored. Hellos are exempt:
    their unknown keys are how newer peers announce what they can do.

    Args:
        keys: The keys of the table, for example :data:`SCAN_KEYS`.
        body: The decoded map.

    Raises:
        MalformedRequestError: A key is unknown or its value has another type; the message lists what is known.
    """
    known = {key.name: key for key in keys}
    for name, value in body.items():
        key = known.get(name)
        if key is None:
            raise MalformedRequestError(f"unknown key {name!r} in the body, known are: {', '.join(known)}")
        if not any(_TYPES[kind](value) for kind in key.types.split(" or ")):
            raise MalformedRequestError(f"key {name!r} of the body must be {key.types}, got {type(value).__name__}")


def encode_request(
    opcode: Opcode, values: Mapping[str, Any] | None = None, *, txn: int | None = None
) -> tuple[int, bytes]:
    """Encode a request by the table.

    Args:
        opcode: The request.
        values: Its fields by name.
        txn: None for the classic form; a transaction id (0 = none) for the extended form.

    Returns:
        The opcode byte and the payload.
    """
    message = MESSAGES[opcode]
    values = values or {}
    if txn is None:
        return int(opcode), encode_fields(message.classic, values)
    head = encode_fields((TXN_FIELD,), {"txn": txn})
    if message.optioned and "options" in values:
        body = bytearray(encode_fields(message.optioned, values))
        body[3] |= _FLAG_BYTE
        return opcode | EXTENDED, head + body
    return opcode | EXTENDED, head + encode_fields(message.extended, values)


def decode_request(opcode: int, payload: bytes) -> tuple[Opcode, int | None, dict[str, Any]]:
    """Decode a request by the table.

    Returns:
        The opcode, the transaction id (None in the classic form), the fields by name.

    Raises:
        MalformedRequestError: The payload does not have the layout.
        KeyError: The opcode is unknown.
    """
    message = _BY_NUMBER[opcode & ~EXTENDED]
    if not opcode & EXTENDED:
        return message.opcode, None, decode_fields(message.classic, payload)
    txn: int = decode_fields((TXN_FIELD,), payload[:8])["txn"]
    if message.optioned and len(payload) > _FLAGGED and payload[_FLAGGED] & _FLAG_BYTE:
        return message.opcode, txn, decode_options(message, payload)
    return message.opcode, txn, decode_fields(message.extended, payload, 8)


_FLAGGED = 8 + 3
_FLAG_BYTE = OPTIONS_FLAG >> 24


def decode_options(message: Message, payload: bytes) -> dict[str, Any]:
    """The fields of an extended payload that has options.

    Raises:
        MalformedRequestError: The payload does not have the layout, or an option is unknown or of the wrong type.
    """
    plain = payload[8:_FLAGGED] + bytes([payload[_FLAGGED] & ~_FLAG_BYTE & 0xFF]) + payload[_FLAGGED + 1 :]
    fields = decode_fields(message.optioned, plain)
    check_body(message.keys, fields["options"])
    return fields


_BY_NUMBER: dict[int, Message] = {int(opcode): message for opcode, message in MESSAGES.items()}
