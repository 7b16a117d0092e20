"""Renders ``protocol/SPEC.md`` from the message table, the error hierarchy and the record format.

::

    python -m toondb_protocol.spec                  print it
    python -m toondb_protocol.spec --write PATH     write it
    python -m toondb_protocol.spec --check PATH     exit 1 with a diff when PATH is stale

The prose lives in :mod:`toondb_protocol.spec_text`; every layout, code, hex example and number comes from the
code that clients and server run.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from . import spec_text
from .collections import MAX_VALUES, OPERATIONS, READING
from .errors import ErrorCode, FrameTooLargeError, KeyTooLargeError, TooManyClientsError, ToonDBError, error_class
from .frames import DEFAULT_MAX_FRAME, HEADER_SIZE, MAX_MAX_FRAME, REPLY_SLACK, encode_frame
from .hello import FEATURES, ServerHello
from .layout import MAX_MAP_DEPTH, Field, Kind, encode_fields, encode_map
from .messages import (
    COLUMN_TYPES,
    END_STREAM_KEYS,
    ERROR_KEYS,
    HELLO_KEYS,
    MESSAGES,
    OPTIONS_FLAG,
    REPLIES,
    TXN_FIELD,
    MapKey,
    Message,
    encode_request,
)
from .opcodes import EXTENDED, PROTOCOL_VERSION, Opcode, Reply
from .record import (
    FLAG_EXPIRES,
    FORMAT_VERSION,
    KV_DATABASE,
    MAX_KEY_SIZE,
    META_DATABASE,
    RECORD_V1,
    encode_record,
)
from .record import HEADER_SIZE as RECORD_HEADER_SIZE
from .search import SearchRequest
from .vectors import MAX_DIMENSION

__all__ = ["main", "render"]

_TXN = 7
_CLIENT_HELLO = {"version": PROTOCOL_VERSION, "features": ["extended"], "software": "example 1.0", "pid": 4242}
_SERVER_HELLO = ServerHello(
    version=PROTOCOL_VERSION,
    features=frozenset(FEATURES),
    software="toondb-server 0.1.0",
    pid=4100,
    database="/srv/data",
    socket="/srv/data/toondb.sock",
    max_frame=DEFAULT_MAX_FRAME,
    timeout_ms=30_000,
    instance="5f0c2f1e",
    sync_mode="full",
)
_PATH = ["users", "alice", "email"]
_TABLE = {
    "name": "users",
    "columns": [{"name": "id", "type": 0, "nullable": 0}, {"name": "name", "type": 3, "nullable": 1}],
}

_EXAMPLES: dict[Opcode, tuple[Mapping[str, Any], int, Mapping[str, Any]]] = {
    Opcode.PUT: ({"key": b"user:1", "value": b"Ann"}, _TXN, {"key": b"user:1", "value": b""}),
    Opcode.GET: ({"key": b"user:1"}, 0, {"key": b"user:1"}),
    Opcode.DELETE: ({"key": b"user:1"}, _TXN, {"key": b"user:1"}),
    Opcode.BEGIN_TXN: ({}, 0, {"body": {"isolation": "serializable"}}),
    Opcode.COMMIT_TXN: ({"txn": _TXN}, _TXN, {}),
    Opcode.ABORT_TXN: ({"txn": _TXN}, _TXN, {}),
    Opcode.QUERY: (
        {"prefix": "users", "limit": 10, "offset": 0, "columns": ["id", "name"]},
        0,
        {"body": {"prefix": "users", "columns": ["name"], "limit": 10}},
    ),
    Opcode.CREATE_TABLE: (_TABLE, 0, _TABLE),
    Opcode.PUT_PATH: ({"path": _PATH, "value": b"a@b.c"}, 0, {"path": _PATH, "value": b"a@b.c"}),
    Opcode.GET_PATH: ({"path": _PATH}, 0, {"path": _PATH}),
    Opcode.SCAN: ({"prefix": b"user:"}, 0, {"body": {"prefix": b"user:", "limit": 100, "reverse": True}}),
    Opcode.CHECKPOINT: ({}, 0, {}),
    Opcode.STATS: ({}, 0, {}),
    Opcode.PING: ({}, 0, {"body": _CLIENT_HELLO}),
}

_OPTIONED_EXAMPLES: dict[Opcode, Mapping[str, Any]] = {
    Opcode.PUT: {"key": b"user:1", "options": {"ttl_ms": 60_000, "expected": None}, "value": b"Ann"},
}


# --- small pieces of Markdown -------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows), ""]


def _layout(fields: Sequence[Field]) -> str:
    if not fields:
        return "empty"
    return ", then ".join(f"`{field.name}`: {_kind(field)}" for field in fields)


def _kind(field: Field) -> str:
    if field.kind in (Kind.LIST16, Kind.LIST32):
        inside = ", ".join(f"`{item.name}`: {_kind(item)}" for item in field.items)
        return f"{field.kind.value.removesuffix(', items')}, then that many times ({inside})"
    layout: str = field.kind.value
    return layout


def _fields(fields: Sequence[Field]) -> list[str]:
    rows: list[list[str]] = []
    for field in fields:
        rows.append([f"`{field.name}`", field.kind.value, field.doc])
        rows += [[f"`{field.name}[].{item.name}`", item.kind.value, item.doc] for item in field.items]
    return _table(("field", "layout", "meaning"), rows) if rows else ["No payload.", ""]


def _keys(keys: Sequence[MapKey]) -> list[str]:
    return _table(("key", "type", "meaning"), ([f"`{key.name}`", key.types, key.doc] for key in keys))


def _hex(lines: Iterable[tuple[bytes, str]]) -> list[str]:
    """A fenced block of bytes with what they are; all the bytes of one block are whole frames."""
    out = ["```hex"]
    for raw, what in lines:
        pieces = [raw[at : at + 16].hex(" ") for at in range(0, len(raw), 16)]
        texts = [what, *(_printable(raw[at : at + 16]) for at in range(16, len(raw), 16))]
        out += [f"{piece:<48}# {text}" for piece, text in zip(pieces, texts, strict=True)]
    return [*out, "```", ""]


def _printable(raw: bytes) -> str:
    text = raw.decode("ascii", "replace")
    return repr(text) if text.isascii() and text.isprintable() else "..."


def _frame(opcode: int, name: str, parts: Sequence[tuple[bytes, str]]) -> list[tuple[bytes, str]]:
    length = sum(len(raw) for raw, _ in parts)
    head = encode_frame(opcode) if not length else encode_frame(opcode, bytes(length))[:HEADER_SIZE]
    return [(head[:1], name), (head[1:], f"payload length {length}"), *parts]


def _parts(fields: Sequence[Field], values: Mapping[str, Any]) -> list[tuple[bytes, str]]:
    parts = []
    for field in fields:
        raw = encode_fields((field,), values)
        if raw:
            parts.append((raw, f"{field.name} = {_shown(values[field.name])}"))
    return parts


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return repr(value)[1:].strip("'") or "empty"
    return repr(value)


def _request(opcode: Opcode, values: Mapping[str, Any], txn: int | None) -> list[tuple[bytes, str]]:
    message = MESSAGES[opcode]
    if txn is None:
        lines = _frame(opcode, opcode.name, _parts(message.classic, values))
    else:
        head = _parts((TXN_FIELD,), {"txn": txn})
        optioned = "options" in values
        parts = _parts(message.optioned if optioned else message.extended, values)
        if optioned:
            raw, what = parts[0]
            parts[0] = (raw[:3] + bytes([raw[3] | OPTIONS_FLAG >> 24]) + raw[4:], what)
        lines = _frame(opcode | EXTENDED, f"{opcode.name}, extended", head + parts)
    if b"".join(raw for raw, _ in lines) != encode_frame(*encode_request(opcode, values, txn=txn)):
        raise AssertionError(f"the example of {opcode.name} is not what encode_request() gives")
    return lines


def _reply(reply: Reply, payload: bytes, what: str) -> list[tuple[bytes, str]]:
    return _frame(reply, f"{reply.name} (reply)", [(payload, what)] if payload else [])


def _rows(*items: object) -> bytes:
    packed: bytes = msgpack.packb(list(items), use_bin_type=True)
    return packed


# --- sections -------------------------------------------------------------------------------------------------


def _numbers() -> dict[str, object]:
    return {
        "version": PROTOCOL_VERSION,
        "header": HEADER_SIZE,
        "cap": DEFAULT_MAX_FRAME,
        "cap_mib": DEFAULT_MAX_FRAME >> 20,
        "max_cap": MAX_MAX_FRAME,
        "slack": REPLY_SLACK,
        "max_key": MAX_KEY_SIZE,
        "depth": MAX_MAP_DEPTH,
        "extended": f"0x{EXTENDED:02x}",
        "features": ", ".join(f"`{feature}`" for feature in FEATURES),
        "timeout": _SERVER_HELLO.timeout_ms,
        "max_values": MAX_VALUES,
        "max_dimension": MAX_DIMENSION,
        "kv": KV_DATABASE.decode(),
        "meta": META_DATABASE.decode(),
        "format": FORMAT_VERSION,
        "record_tag": f"0x{RECORD_V1:02x}",
        "expiring_tag": f"0x{RECORD_V1 | FLAG_EXPIRES:02x}",
        "record_header": RECORD_HEADER_SIZE,
    }


def _opcodes() -> list[str]:
    rows = [
        [
            f"`0x{opcode:02x}`",
            f"`0x{opcode | EXTENDED:02x}`",
            f"[{opcode.name}](#{opcode.name.lower()})",
            message.summary,
            ", ".join(reply.name for reply in message.classic_reply),
            ", ".join(reply.name for reply in message.extended_reply),
        ]
        for opcode, message in MESSAGES.items()
    ]
    return _table(("classic", "extended", "request", "what it does", "classic reply", "extended reply"), rows)


def _message(message: Message) -> list[str]:
    opcode = message.opcode
    classic, txn, extended = _EXAMPLES[opcode]
    lines = [f"### {opcode.name}", "", message.summary, ""]
    lines += [f"- {note}" for note in message.notes]
    lines += [""] if message.notes else []
    lines += [f"**Classic `0x{opcode:02x}`**, answered by {_answers(message.classic_reply)}.", ""]
    lines += [*_fields(message.classic), *_hex(_request(opcode, classic, None))]
    lines += [f"**Extended `0x{opcode | EXTENDED:02x}`**, answered by {_answers(message.extended_reply)}.", ""]
    if message.extended == message.classic and message.classic:
        lines += ["After `u64 txn`: the classic payload.", ""]
        if message.optioned:
            lines += _hex(_request(opcode, extended, txn))
            lines += ["With options, after `u64 txn`:", "", *_fields(message.optioned)]
            lines += ["Keys of the options, all optional:", "", *_keys(message.keys)]
            extended = _OPTIONED_EXAMPLES[opcode]
            txn = 0
    elif message.keys:
        lines += ["After `u64 txn`: a msgpack map with these keys, all optional.", "", *_keys(message.keys)]
    else:
        lines += ["Only `u64 txn`.", ""]
    return [*lines, *_hex(_request(opcode, extended, txn))]


def _answers(replies: Sequence[Reply]) -> str:
    names = [reply.name for reply in replies]
    if Reply.ROW in replies:
        return "any number of ROW, then END_STREAM; or ERROR at any point of the stream"
    return f"{' or '.join(names)}, or ERROR"


def _replies() -> list[str]:
    rows = [
        [f"`0x{reply:02x}`", reply.name, _layout(layout.fields), layout.summary] for reply, layout in REPLIES.items()
    ]
    error = KeyTooLargeError("the key has 600 bytes, the limit is 511.", details={"limit": 511, "actual": 600})
    lines = _table(("code", "reply", "payload", "meaning"), rows)
    lines += ["Keys of the END_STREAM map:", "", *_keys(END_STREAM_KEYS)]
    lines += ["Keys of an extended ERROR's map:", "", *_keys(ERROR_KEYS)]
    samples: list[list[tuple[bytes, str]]] = [
        _reply(Reply.OK, b"", ""),
        _reply(Reply.VALUE, b"Ann", "the value"),
        _reply(Reply.VALUE, b"", ""),
        _reply(Reply.TXN_ID, (_TXN).to_bytes(8, "little"), f"transaction {_TXN}"),
        _reply(Reply.ROW, _rows(b"user:1", b"Ann"), "[bin user:1, bin Ann]"),
        _reply(Reply.END_STREAM, encode_map({"rows": 1}), '{"rows": 1}'),
        _reply(Reply.END_STREAM, encode_map({"result": True}), '{"result": true}, to a PUT with options'),
        _reply(Reply.STATS_RESP, b'{"requests_total":3}', "JSON text"),
        _reply(Reply.PONG, b"", ""),
        _reply(Reply.ERROR, error.to_text().encode(), "to a classic request: text"),
        _reply(Reply.ERROR, encode_map(error.to_wire()), "to an extended request: the map"),
    ]
    for sample in samples:
        lines += _hex(sample)
    return lines


def _errors() -> list[str]:
    rows = []
    for code in ErrorCode:
        kind = error_class(code)
        doc = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        if kind is ToonDBError:
            doc = "Any other failure; also what a client should make of a code that it does not know."
        rows.append([f"`{code}`", f"`{kind.__name__}`", f"`{kind.__mro__[1].__name__}`", doc, kind.default_remediation])
    rows[0][2] = ""
    return _table(("code", "class in Python", "parent", "meaning", "remediation"), rows)


def _exchange(steps: Sequence[tuple[str, list[tuple[bytes, str]]]]) -> list[str]:
    lines: list[str] = []
    for text, frame in steps:
        lines += [text, "", *_hex(frame)]
    return lines


def _scan_exchange() -> list[str]:
    return _exchange(
        (
            (
                "Client: all pairs under `user:`, at most about 10 bytes of rows at a time.",
                _request(Opcode.SCAN, {"body": {"prefix": b"user:", "window": 10}}, 0),
            ),
            ("Server: one batch,", _reply(Reply.ROW, _rows(b"user:1", b"Ann"), "[user:1, Ann]")),
            (
                "then the early end of the stream, with cursor 3.",
                _reply(Reply.END_STREAM, encode_map({"rows": 1, "cursor": 3}), '{"rows": 1, "cursor": 3}'),
            ),
            (
                "Client: go on.",
                _request(Opcode.SCAN, {"body": {"cursor": 3, "window": 10}}, 0),
            ),
            ("Server: the rest,", _reply(Reply.ROW, _rows(b"user:2", b"Bo"), "[user:2, Bo]")),
            (
                "and the end: no cursor, nothing is left to close.",
                _reply(Reply.END_STREAM, encode_map({"rows": 1, "cursor": None}), '{"rows": 1, "cursor": nil}'),
            ),
            (
                "A client that loses interest instead of going on closes the cursor (answered by END_STREAM):",
                _request(Opcode.SCAN, {"body": {"cursor": 3, "close": True}}, 0),
            ),
        )
    )


def _changes_exchange() -> list[str]:
    def watch(since_lsn: int | None) -> list[tuple[bytes, str]]:
        wait = {} if since_lsn is None else {"wait_ms": 2000}
        return _request(Opcode.SCAN, {"body": {"prefix": b"user:", "since_lsn": since_lsn, **wait}}, 0)

    def end(rows: int, lsn: int) -> list[tuple[bytes, str]]:
        return _reply(Reply.END_STREAM, encode_map({"rows": rows, "lsn": lsn}), f'{{"rows": {rows}, "lsn": {lsn}}}')

    change = _rows(43, "put", b"user:1", b"Ann", True)
    return _exchange(
        (
            ("Client: where does history end?", watch(None)),
            ("Server:", end(0, 41)),
            ("Client: what is new under `user:`? Wait up to two seconds.", watch(41)),
            ("Server, as soon as commit 43 stored it:", _reply(Reply.ROW, change, "[43, put, user:1, Ann, true]")),
            ("and the end. The client goes on after 43.", end(1, 43)),
        )
    )


def _sql_exchange() -> list[str]:
    end = {"rows": 2, "cursor": None, "affected": 0, "last_row_id": 0}
    shown = '{"rows": 2, "cursor": nil, "affected": 0, "last_row_id": 0}'
    body = {"sql": "SELECT id, name FROM users WHERE id > ?", "params": [1]}
    return _exchange(
        (
            ("Client:", _request(Opcode.QUERY, {"body": body}, 0)),
            ("Server: the names,", _reply(Reply.ROW, _rows("id", "name"), "[id, name]")),
            ("two rows,", _reply(Reply.ROW, _rows(2, "Bo", 3, None), "[2, Bo, 3, nil]")),
            ("and the end.", _reply(Reply.END_STREAM, encode_map(end), shown)),
        )
    )


def _operations() -> list[str]:
    rows = []
    for name, doc in OPERATIONS.items():
        arguments, _, answer = doc.partition("-> ")
        rows.append([f"`{name}`", arguments.strip() or "none", answer, "reads" if name in READING else "writes"])
    note = ["`ef_search`, `min_score` and the other fields of a SearchRequest, with their defaults:", ""]
    fields = [
        [f"`{field.name}`", "nil" if field.default is None else f"`{json.dumps(field.default)}`"]
        for field in dataclasses.fields(SearchRequest)
    ]
    lines = _table(("operation", "arguments", "answer", ""), rows)
    lines += [
        "A document is `[id, metadata, content, vector (bin), names, vectors (bin)]`, a result of a search is",
        "",
    ]
    lines += ["    [id, score, metadata, content, vector (bin), distance]", ""]
    lines += ["with nil for what is not there or was not asked for.", "", *note]
    return lines + _table(("field of `search`", "default"), fields)


def _operation_exchange() -> list[str]:
    vector = struct.pack("<2f", 1.0, 0.5)
    arguments = {"namespace": "ns", "collection": "docs", "vector": vector, "k": 1}
    found = [["a", 0.75, {"lang": "en"}, None, None, 0.25]]
    shown = '[["a", 0.75, {"lang": "en"}, nil, nil, 0.25]] in a bin'
    return _exchange(
        (
            (
                "Client: the document nearest to `[1.0, 0.5]`. `args` holds "
                '`{"namespace": "ns", "collection": "docs", "vector": 00 00 80 3f 00 00 00 3f, "k": 1}`.',
                _request(Opcode.QUERY, {"body": {"op": "search", "args": encode_map(arguments)}}, 0),
            ),
            ("Server: the result, in one part,", _reply(Reply.ROW, _rows(msgpack.packb(found)), shown)),
            ("and the end.", _reply(Reply.END_STREAM, encode_map({"rows": 1}), '{"rows": 1}')),
        )
    )


def _transaction_exchange() -> list[str]:
    lsn = (1001).to_bytes(8, "little")
    return _exchange(
        (
            ("Client:", _request(Opcode.BEGIN_TXN, {"body": {}}, 0)),
            ("Server:", _reply(Reply.TXN_ID, (_TXN).to_bytes(8, "little"), f"transaction {_TXN}")),
            ("Client:", _request(Opcode.PUT, {"key": b"k", "value": b"v"}, _TXN)),
            ("Server:", _reply(Reply.OK, b"", "")),
            ("Client:", _request(Opcode.COMMIT_TXN, {}, _TXN)),
            ("Server: committed, with LSN 1001.", _reply(Reply.TXN_ID, lsn, "LSN 1001")),
        )
    )


def _hello() -> list[str]:
    wire = _SERVER_HELLO.to_wire()
    return [
        *_keys(HELLO_KEYS),
        *_exchange(
            (
                ("Client:", _request(Opcode.PING, {"body": _CLIENT_HELLO}, 0)),
                ("Server:", _reply(Reply.PONG, encode_map(wire), "the server's hello")),
            )
        ),
    ]


def _refusals() -> list[str]:
    full = TooManyClientsError("the server already serves 100 connections.")
    large = FrameTooLargeError(f"a frame announces 16777217 bytes, the cap is {DEFAULT_MAX_FRAME}.")
    lines = ["A connection over `--max-clients` reads this, and then the end of the stream:", ""]
    lines += _hex(_reply(Reply.ERROR, full.to_text().encode(), "classic text"))
    lines += ["A classic request over the cap is answered like this, and the connection goes on:", ""]
    return lines + _hex(_reply(Reply.ERROR, large.to_text().encode(), "classic text"))


def _record_example() -> list[str]:
    raw = encode_record(b"user:1", b"Ann", 1001)
    return [
        "The record of key `user:1` with value `Ann`, written by commit 1001:",
        "",
        "```",
        f"{raw[:1].hex():<26}tag",
        f"{raw[1:9].hex(' '):<26}LSN 1001",
        f"{raw[9:13].hex(' '):<26}CRC-32 of 10 e9 03 00 00 00 00 00 00, user:1 and Ann",
        f"{raw[13:].hex(' '):<26}value",
        "```",
        "",
    ]


def _column_types() -> list[str]:
    meaning = {
        0: "signed 64-bit integer",
        1: "unsigned 64-bit integer",
        2: "IEEE 754 double",
        3: "UTF-8 text",
        4: "bytes",
        5: "true or false",
    }
    return _table(
        ("type", "name", "meaning"), ([str(code), name, meaning[code]] for code, name in COLUMN_TYPES.items())
    )


def render() -> str:
    """The text of SPEC.md."""
    numbers = _numbers()
    generated = {
        "frame-example": lambda: _hex(_request(Opcode.PUT, {"key": b"user:1", "value": b"Ann"}, None)),
        "opcodes": _opcodes,
        "messages": lambda: [line for message in MESSAGES.values() for line in _message(message)],
        "column-types": _column_types,
        "replies": _replies,
        "errors": _errors,
        "hello": _hello,
        "transaction-exchange": _transaction_exchange,
        "scan-exchange": _scan_exchange,
        "changes-exchange": _changes_exchange,
        "refusals": _refusals,
        "sql-exchange": _sql_exchange,
        "operations": _operations,
        "operation-exchange": _operation_exchange,
        "record-example": _record_example,
    }
    lines: list[str] = []
    for line in spec_text.TEXT.strip().splitlines():
        if line.startswith("{{") and line.endswith("}}"):
            lines += generated.pop(line[2:-2])()
        else:
            lines.append(line.format(**numbers))
    if generated:
        raise AssertionError(f"not placed in the text: {', '.join(generated)}")
    # Blocks end with an empty line and so do paragraphs of the text: keep one.
    kept = [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]
    return "\n".join(kept).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m toondb_protocol.spec", description=(__doc__ or "").split("\n")[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", metavar="PATH", type=Path, help="write the specification to PATH")
    group.add_argument("--check", metavar="PATH", type=Path, help="exit 1 with a diff when PATH is stale")
    options = parser.parse_args(arguments)
    text = render()
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    elif options.check:
        return _check(options.check, text)
    else:
        sys.stdout.write(text)
    return 0


def _check(path: Path, text: str) -> int:
    try:
        present = path.read_text(encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"{path} cannot be read: {error.strerror}\n")
        return 1
    if present == text:
        return 0
    diff = difflib.unified_diff(
        present.splitlines(keepends=True), text.splitlines(keepends=True), str(path), "rendered from the code"
    )
    sys.stdout.writelines(diff)
    sys.stderr.write(f"{path} is stale: run python -m toondb_protocol.spec --write {path}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
