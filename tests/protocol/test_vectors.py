"""The golden frames: against the package, and against an encoder that shares nothing with it."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest

from tests.protocol.golden import (
    ALL_REPLIES,
    CLASSIC,
    ERRORS,
    EVERY_FRAME,
    EXTENDED,
    HEADER,
    MALFORMED,
    REPLIES,
    REQUESTS,
    names,
)
from toondb_protocol.client_core import ClientCore, decode_error
from toondb_protocol.errors import (
    FrameTooLargeError,
    MalformedRequestError,
    ToonDBError,
    error_class,
)
from toondb_protocol.frames import DEFAULT_MAX_FRAME, FrameReader, encode_frame
from toondb_protocol.hello import parse_server_hello
from toondb_protocol.keys import check_key
from toondb_protocol.layout import decode_fields, encode_fields
from toondb_protocol.messages import END_STREAM_KEYS, MESSAGES, check_body, decode_request, encode_request
from toondb_protocol.messages import REPLIES as REPLY_LAYOUTS
from toondb_protocol.opcodes import EXTENDED as EXTENDED_BIT
from toondb_protocol.opcodes import Opcode, Reply
from toondb_protocol.paths import join_path

Vector = dict[str, Any]

OTHER = encode_frame(Reply.VALUE, b"the next frame")


# --- an encoder of its own, from the tables of SPEC.md alone ---------------------------------------------------


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<H", len(raw)) + raw


def _put(f: Vector) -> bytes:
    if "options" in f:
        options = msgpack.packb(f["options"])
        head = struct.pack("<I", len(f["key"]) + (1 << 31)) + bytes(f["key"])
        return head + struct.pack("<I", len(options)) + bytes(options) + bytes(f["value"])
    return struct.pack("<I", len(f["key"])) + bytes(f["key"]) + bytes(f["value"])


def _key(f: Vector) -> bytes:
    return bytes(f["key"])


def _txn(f: Vector) -> bytes:
    return struct.pack("<Q", f["txn"])


def _query(f: Vector) -> bytes:
    head = _text(f["prefix"]) + struct.pack("<IIH", f["limit"], f["offset"], len(f["columns"]))
    return head + b"".join(_text(column) for column in f["columns"])


def _create_table(f: Vector) -> bytes:
    columns = (_text(c["name"]) + struct.pack("<BB", c["type"], c["nullable"]) for c in f["columns"])
    return _text(f["name"]) + struct.pack("<H", len(f["columns"])) + b"".join(columns)


def _path(f: Vector) -> bytes:
    return struct.pack("<H", len(f["path"])) + b"".join(_text(s) for s in f["path"]) + bytes(f.get("value", b""))


def _prefix(f: Vector) -> bytes:
    return bytes(f["prefix"])


def _nothing(f: Vector) -> bytes:
    assert not f
    return b""


ENCODERS = {
    "PUT": (0x01, _put),
    "GET": (0x02, _key),
    "DELETE": (0x03, _key),
    "BEGIN_TXN": (0x04, _nothing),
    "COMMIT_TXN": (0x05, _txn),
    "ABORT_TXN": (0x06, _txn),
    "QUERY": (0x07, _query),
    "CREATE_TABLE": (0x08, _create_table),
    "PUT_PATH": (0x09, _path),
    "GET_PATH": (0x0A, _path),
    "SCAN": (0x0B, _prefix),
    "CHECKPOINT": (0x0C, _nothing),
    "STATS": (0x0D, _nothing),
    "PING": (0x0E, _nothing),
}


@pytest.mark.parametrize("vector", CLASSIC, ids=names(CLASSIC))
def test_classic_frames_agree_with_an_independent_encoder(vector: Vector) -> None:
    code, encode = ENCODERS[vector["opcode"]]
    payload = encode(vector["fields"])
    assert struct.pack("<BI", code, len(payload)) + payload == vector["frame"]


@pytest.mark.parametrize("vector", EXTENDED, ids=names(EXTENDED))
def test_extended_frames_agree_with_an_independent_encoder(vector: Vector) -> None:
    code, encode = ENCODERS[vector["opcode"]]
    frame, fields = vector["frame"], vector["fields"]
    assert frame[0] == code | 0x40
    assert struct.unpack("<I", frame[1:5])[0] == len(frame) - 5
    assert struct.unpack("<Q", frame[5:13])[0] == vector["txn"]
    body = frame[13:]
    if "body" in fields:
        assert (msgpack.unpackb(body) if body else {}) == fields["body"]
    elif vector["opcode"] in ("COMMIT_TXN", "ABORT_TXN"):
        assert body == b""
    else:
        assert encode(fields) == body


def test_a_few_frames_written_out_by_hand() -> None:
    frames = {vector["name"]: vector["frame"] for vector in CLASSIC}
    assert frames["put"] == b"\x01\x0c\0\0\0\x03\0\0\0keyvalue"
    assert frames["commit"] == b"\x05\x08\0\0\0\x07\0\0\0\0\0\0\0"
    assert frames["query all"] == b"\x07\x11\0\0\0\x05\0users\0\0\0\0\0\0\0\0\0\0"
    assert frames["get path"] == b"\x0a\x17\0\0\0\x03\0\x05\0users\x05\0alice\x05\0email"
    assert frames["ping"] == b"\x0e\0\0\0\0"


# --- the package against the vectors --------------------------------------------------------------------------


@pytest.mark.parametrize("vector", REQUESTS, ids=names(REQUESTS))
def test_requests_decode_and_encode(vector: Vector) -> None:
    frame, txn = vector["frame"], vector.get("txn")
    opcode, got_txn, fields = decode_request(frame[0], frame[HEADER:])
    assert (opcode.name, got_txn, fields) == (vector["opcode"], txn, vector["fields"])
    assert encode_frame(*encode_request(opcode, vector["fields"], txn=txn)) == frame
    for part in ("body", "options"):
        if part in fields:
            check_body(MESSAGES[opcode].keys, fields[part])


@pytest.mark.parametrize("vector", REPLIES, ids=names(REPLIES))
def test_replies_decode_and_encode(vector: Vector) -> None:
    frame = vector["frame"]
    reply = Reply(frame[0])
    layout = REPLY_LAYOUTS[reply].fields
    assert reply.name == vector["reply"]
    assert decode_fields(layout, frame[HEADER:]) == vector["fields"]
    assert encode_frame(reply, encode_fields(layout, vector["fields"])) == frame
    if "items" in vector:
        assert msgpack.unpackb(frame[HEADER:]) == vector["items"]
    if "pairs" in vector:
        assert _unpack_pairs(frame[HEADER:]) == vector["pairs"]


def _unpack_pairs(payload: bytes) -> list[list[bytes]]:
    (count,) = struct.unpack_from("<I", payload)
    at, pairs = 4, []
    for _ in range(count):
        (size,) = struct.unpack_from("<H", payload, at)
        key = payload[at + 2 : at + 2 + size]
        at += 2 + size
        (size,) = struct.unpack_from("<I", payload, at)
        pairs.append([key, payload[at + 4 : at + 4 + size]])
        at += 4 + size
    assert at == len(payload)
    return pairs


def test_the_server_hello_is_understood() -> None:
    vector = next(vector for vector in REPLIES if vector["name"] == "pong with hello")
    assert parse_server_hello(vector["fields"]["hello"]).to_wire() == vector["fields"]["hello"]


@pytest.mark.parametrize("vector", ERRORS, ids=names(ERRORS))
def test_errors_decode(vector: Vector) -> None:
    error = decode_error(vector["frame"][HEADER:])
    assert (error.code, error.message) == (vector["code"], vector["message"])
    assert type(error) is error_class(vector["code"])
    assert error.remediation == vector.get("remediation", "")
    assert error.details == vector.get("details", {})


# --- cut in every way ------------------------------------------------------------------------------------------


def _pieces(frame: bytes) -> list[list[bytes]]:
    """The frame whole, byte by byte, with the next one behind it, and split in two at every position."""
    stream = frame + OTHER
    ways = [[stream], [bytes([byte]) for byte in stream], [frame, OTHER]]
    return ways + [[stream[:at], stream[at:]] for at in range(1, len(stream))]


@pytest.mark.parametrize("frame", EVERY_FRAME, ids=names(REQUESTS + ALL_REPLIES))
def test_frames_are_cut_wherever_they_are_split(frame: bytes) -> None:
    expected = [(frame[0], frame[HEADER:]), (OTHER[0], OTHER[HEADER:])]
    for pieces in _pieces(frame):
        reader = FrameReader()
        got: list[tuple[int, bytes]] = []
        for piece in pieces:
            got += reader.feed(piece)
        assert got == expected
        assert reader.buffered == 0


@pytest.mark.parametrize("vector", ALL_REPLIES, ids=names(ALL_REPLIES))
def test_replies_reach_the_client_wherever_they_are_split(vector: Vector) -> None:
    frame, row = vector["frame"], vector["reply"] == "ROW"
    end = encode_frame(Reply.END_STREAM)
    stream = frame + end if row else frame
    for pieces in _pieces(stream):
        core = ClientCore()
        core.sent(2)
        for piece in pieces:
            core.receive(piece)
        first, second = core.replies
        assert first == ((end[0], b"", [frame[HEADER:]]) if row else (frame[0], frame[HEADER:], ()))
        assert second == (OTHER[0], OTHER[HEADER:], ())
        core.replies.clear()
        assert core.clean


# --- what must be refused --------------------------------------------------------------------------------------


def _refuse(vector: Vector) -> ToonDBError | KeyError | None:
    """What the layers of the package say to a malformed request; None when only a server can know."""
    frame = vector["frame"]
    try:
        frames = list(FrameReader(DEFAULT_MAX_FRAME).feed(frame))
        assert len(frames) == 1, "a malformed vector is one whole frame unless its header is refused"
        opcode, _, fields = decode_request(*frames[0])
        if "body" in fields:
            check_body(MESSAGES[opcode].keys, fields["body"])
        if "key" in fields:
            check_key(fields["key"])
        if "path" in fields:
            check_key(join_path(fields["path"]))
    except (ToonDBError, KeyError) as error:
        return error
    return None


@pytest.mark.parametrize("vector", MALFORMED, ids=names(MALFORMED))
def test_malformed_requests_are_refused(vector: Vector) -> None:
    refused, level = _refuse(vector), vector["level"]
    known = Opcode.__members__.values()
    if level == "opcode":
        assert isinstance(refused, KeyError)
    elif level == "frame":
        assert isinstance(refused, FrameTooLargeError)
        assert vector["survives"] == (vector["frame"][0] & ~EXTENDED_BIT in known)
    elif level in ("meaning", "session"):
        assert refused is None
    else:
        assert isinstance(refused, ToonDBError)
        assert refused.code == vector["code"]
        assert isinstance(refused, MalformedRequestError) == (level in ("layout", "body"))


def test_the_vectors_cover_the_protocol() -> None:
    for vectors in (CLASSIC, EXTENDED):
        assert {vector["opcode"] for vector in vectors} == set(Opcode.__members__)
    assert {vector["reply"] for vector in ALL_REPLIES} == set(Reply.__members__)
    assert {vector["form"] for vector in ERRORS} == {"classic", "extended"}
    for message in MESSAGES.values():
        part = "options" if message.optioned else "body"
        maps = [v["fields"].get(part, {}) for v in EXTENDED if v["opcode"] == message.opcode.name]
        used = {key for one in maps for key in one}
        reply_only = {key.name for key in message.keys if key.doc.startswith("reply only")}
        assert {key.name for key in message.keys} - reply_only == used
    ends = [v["fields"]["end"] for v in REPLIES if v["reply"] == "END_STREAM"]
    assert {key.name for key in END_STREAM_KEYS} == {key for end in ends for key in end}
    for vectors in (CLASSIC, EXTENDED, REPLIES, ERRORS, MALFORMED):
        assert len(set(names(vectors))) == len(vectors)
