"""Malformed frames, cut frames, oversized frames, other protocols: a clear error, and the daemon goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.protocol.golden import EVERY_FRAME, MALFORMED, REQUESTS, names
from tests.server.raw import (
    BEGIN,
    CAP,
    COMMIT,
    CREATE_TABLE,
    DELETE,
    ERROR,
    EXT,
    GET,
    GET_PATH,
    LOOPS,
    OK,
    PING,
    PONG,
    PUT,
    PUT_PATH,
    QUERY,
    SCAN,
    STATS_RESP,
    VALUE,
    Raw,
    daemon_on,
    error_code,
    frame,
    put,
    scan,
)
from tests.support.daemon import Daemon


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon for all tests of this file; it must survive every one of them."""
    with daemon_on(request.param) as running:
        yield running


@pytest.mark.parametrize("vector", MALFORMED, ids=names(MALFORMED))
def test_malformed_frame_is_refused_with_its_code(raw: Raw, vector: dict[str, Any]) -> None:
    got = raw.call(vector["frame"])
    assert (got.code, got.error) == (ERROR, vector["code"])
    if vector["survives"] and vector["level"] != "frame":
        raw.ping()
    elif not vector["survives"]:
        assert raw.at_end()


def test_all_malformed_frames_in_one_packet_are_answered_in_order(raw: Raw) -> None:
    vectors = [vector for vector in MALFORMED if vector["level"] != "frame"]
    stream = b"".join(vector["frame"] + put(b"k%d" % at, b"v") for at, vector in enumerate(vectors))
    raw.send(stream, frame(PING))
    for vector in vectors:
        assert raw.answer().error == vector["code"], vector["name"]
        assert raw.answer().code == OK
    assert raw.answer().code == PONG


def test_the_form_of_an_error_follows_the_request(raw: Raw) -> None:
    for opcode in (GET, 0x0F, 0x8F):
        assert raw.call(frame(opcode)).payload[:1] < b"\x80"
    for opcode in (GET | EXT, 0x4F, 0xCF):
        assert raw.call(frame(opcode)).payload[:1] >= b"\x80"


@pytest.mark.parametrize("opcode", range(256))
def test_any_opcode_with_any_small_payload_gets_one_reply(daemon: Daemon, opcode: int) -> None:
    rng = random.Random(opcode)
    payloads = [bytes(size) for size in (0, 1, 7, 8, 9, 16)] + [rng.randbytes(size) for size in (1, 2, 8, 12, 40)]
    with Raw(daemon.socket) as raw:
        for payload in payloads:
            raw.send(frame(opcode, payload), frame(PING))
            raw.answer()
            assert raw.answer() == (PONG, b"", []), payload


# Cut and glued


MIXED = (
    put(b"cut", b"one"),
    frame(GET, b"cut"),
    put(b"cut", b"two" * 30, txn=0),
    frame(0x33, b"junk"),
    frame(GET, b"cut", txn=0),
    frame(DELETE, b"cut"),
    frame(GET, b"cut", txn=0),
    frame(COMMIT, bytes(8)),
    scan(prefix=b"cut"),
    frame(PING),
)


def _check_mixed(raw: Raw) -> None:
    got = raw.answers(len(MIXED))
    assert [reply.code for reply in got] == [OK, VALUE, OK, ERROR, VALUE, OK, OK, ERROR, 0x85, PONG]
    assert (got[1].payload, got[4].payload) == (b"one", b"two" * 30)
    assert (got[3].error, got[7].error) == ("UNKNOWN_OPCODE", "TRANSACTION_NOT_FOUND")


def test_frames_arrive_byte_by_byte(daemon: Daemon, raw: Raw) -> None:
    with Raw(daemon.socket) as other:
        for at, byte in enumerate(b"".join(MIXED)):
            raw.send(bytes([byte]))
            if at % 7 == 0:
                other.ping()  # lets the daemon see the pieces apart
    _check_mixed(raw)


def test_frames_split_everywhere(daemon: Daemon, raw: Raw) -> None:
    stream = b"".join(MIXED)
    with Raw(daemon.socket) as other:
        for at in range(1, len(stream)):
            raw.send(stream[:at])
            other.ping()
            raw.send(stream[at:])
            _check_mixed(raw)


def test_many_frames_in_one_packet(raw: Raw) -> None:
    raw.send(b"".join(MIXED) * 500)
    for _ in range(500):
        _check_mixed(raw)


def test_golden_requests_in_one_packet_get_one_reply_each(daemon: Daemon, raw: Raw) -> None:
    raw.send(b"".join(vector["frame"] + frame(PING) for vector in REQUESTS))
    for vector in REQUESTS:
        body = vector["fields"].get("body", {})
        if "wait_ms" in body:
            # It asks for changes to come: here is one, before it waits or while it does.
            with Raw(daemon.socket) as other:
                other.call(put(body["prefix"] + b"new", b""))
        raw.answer()
        assert raw.answer().code == PONG, vector["name"]


def test_replies_sent_to_the_daemon_are_unknown_requests(raw: Raw) -> None:
    replies = [bytes_ for bytes_ in EVERY_FRAME if bytes_[0] >= 0x80]
    raw.send(*replies, frame(PING))
    assert {raw.answer().error for _ in replies} == {"UNKNOWN_OPCODE"}
    assert raw.answer().code == PONG


# Oversized frames


@pytest.mark.parametrize("opcode", [PUT, PUT | EXT, SCAN | EXT, PING], ids=hex)
def test_oversized_frame_of_a_known_opcode_is_skipped(raw: Raw, opcode: int) -> None:
    payload = bytes(CAP + 1)
    raw.send(frame(opcode, payload), put(b"after", b"yes"), frame(GET, b"after"))
    assert raw.answer().error == "FRAME_TOO_LARGE"
    assert raw.answer().code == OK
    assert raw.answer().payload == b"yes"


def test_oversized_frame_is_refused_on_its_header(raw: Raw) -> None:
    raw.send(frame(PUT, length=CAP + 10))
    assert raw.answer().error == "FRAME_TOO_LARGE"
    # The payload is skipped whatever it looks like, and however it is cut.
    pings = frame(PING) * ((CAP + 10) // 5)
    payload = pings + bytes(CAP + 10 - len(pings))
    cut = len(payload) - 3
    raw.send(payload[:cut])
    raw.send(payload[cut:], put(b"x", b"y"))
    assert raw.answer().code == OK
    raw.ping()


def test_oversized_frame_amid_writes_is_answered_in_its_place(raw: Raw) -> None:
    big = frame(PUT, bytes(CAP + 1))
    raw.send(put(b"a", b"1"), put(b"b", b"2"), big, put(b"c", b"3"), frame(PUT | EXT, bytes(CAP + 2)), frame(GET, b"c"))
    got = raw.answers(6)
    assert [reply.error or reply.code for reply in got] == [
        OK,
        OK,
        "FRAME_TOO_LARGE",
        OK,
        "FRAME_TOO_LARGE",
        VALUE,
    ]


def test_a_frame_of_exactly_the_cap_is_served(raw: Raw) -> None:
    value = bytes(CAP - 4 - 3)
    assert raw.call(put(b"cap", value)).code == OK
    assert raw.call(frame(GET, b"cap")).payload == value
    got = raw.call(scan(prefix=b"cap"))
    assert got.rows == [b"cap", value]
    assert raw.call(scan(keys=[b"cap"])).rows == [b"cap", value]
    assert len(raw.call(frame(SCAN, b"cap")).payload) == 4 + 2 + 3 + 4 + len(value)
    assert raw.call(frame(DELETE, b"cap")).code == OK


@pytest.mark.parametrize(
    "junk",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x05\x01\x00\x02\x01\x03\x03" + bytes(506),  # TLS 1.x client hello
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\xff" * 64,
        b"\x00\xff\xff\xff\xff",
    ],
    ids=["http", "tls", "ssh", "redis", "ones", "opcode0"],
)
def test_another_protocol_is_told_and_closed(raw: Raw, junk: bytes) -> None:
    raw.send(junk)
    got = raw.answer()
    assert got.error == "UNKNOWN_OPCODE"
    assert got.payload[:1] < b"\x80"  # text: nobody knows what the peer speaks
    assert raw.at_end()


def test_http_get_is_told_at_once(raw: Raw) -> None:
    # Its first byte is an extended QUERY, so framing holds and the rest is skipped.
    assert raw.call(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").error == "FRAME_TOO_LARGE"


def test_unknown_opcode_is_refused_on_its_header(raw: Raw) -> None:
    # A TLS hello of 512 bytes reads as opcode 0x16 and 131,331 bytes, which never come.
    raw.send(b"\x16\x03\x01\x02\x00\x01")
    assert raw.answer().error == "UNKNOWN_OPCODE"
    raw.send(bytes(0x20103 - 1), frame(PING))
    assert raw.answer().code == PONG


def test_answers_before_a_lost_stream_are_delivered(raw: Raw) -> None:
    raw.send(put(b"k", b"v" * 1000), *[frame(GET, b"k")] * 300, b"\xff" * 5000)
    got = raw.answers(301)
    assert [reply.code for reply in got] == [OK] + [VALUE] * 300
    assert raw.answer().error == "UNKNOWN_OPCODE"
    assert raw.at_end()


# Bodies


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"cursor": 1, "limit": 3}, "MALFORMED_REQUEST"),
        ({"cursor": 1, "prefix": b"a"}, "MALFORMED_REQUEST"),
        ({"close": True}, "MALFORMED_REQUEST"),
        ({"keys": [b"a"], "prefix": b"a"}, "MALFORMED_REQUEST"),
        ({"keys": [b"a"], "limit": 1}, "MALFORMED_REQUEST"),
        ({"keys": [b"a"], "reverse": True}, "MALFORMED_REQUEST"),
        ({"keys": [b"a"], "window": 10}, "MALFORMED_REQUEST"),
        ({"keys": [b""]}, "INVALID_KEY"),
        ({"keys": [bytes(512)]}, "KEY_TOO_LARGE"),
        ({"keys": [None]}, "MALFORMED_REQUEST"),
        ({"keys": {}}, "MALFORMED_REQUEST"),
        ({"prefix": b"a", "start": b"a"}, "MALFORMED_REQUEST"),
        ({"prefix": None}, "MALFORMED_REQUEST"),
        ({"limit": None}, "MALFORMED_REQUEST"),
        ({"limit": 1.0}, "MALFORMED_REQUEST"),
        ({"window": -1}, "MALFORMED_REQUEST"),
        ({"batch": "many"}, "MALFORMED_REQUEST"),
        ({"cursor": None}, "MALFORMED_REQUEST"),
        ({"cursor": True}, "MALFORMED_REQUEST"),
        ({"cursor": 2**63}, "CURSOR_NOT_FOUND"),
    ],
    ids=str,
)
def test_scan_options_that_cannot_be_honoured_are_refused(raw: Raw, body: dict[str, Any], code: str) -> None:
    assert raw.call(frame(SCAN, msgpack.packb(body), txn=0)).error == code
    raw.ping()


@pytest.mark.parametrize("body", [{"limit": 2**64 - 1}, {"batch": 2**64 - 1}, {"window": 2**64 - 1}], ids=str)
def test_huge_numbers_in_a_scan_are_no_limit(raw: Raw, body: dict[str, Any]) -> None:
    assert raw.call(frame(SCAN, msgpack.packb({"prefix": b"none/", **body}), txn=0)).end == {"rows": 0, "cursor": None}


@pytest.mark.parametrize("size", [511, 512, 5000, 1 << 20])
@pytest.mark.parametrize("reverse", [False, True])
def test_bounds_and_prefixes_of_any_length(raw: Raw, size: int, reverse: bool) -> None:
    long = b"z" * size
    assert raw.call(put(b"z", b"1")).code == OK
    assert raw.call(scan(prefix=long, reverse=reverse)).rows == []
    assert raw.call(scan(start=b"z", end=long, reverse=reverse)).rows == [b"z", b"1"]
    assert raw.call(scan(start=long, reverse=reverse)).rows == []
    assert raw.call(scan(prefix=b"\xff" * size, reverse=reverse)).rows == []
    assert raw.call(scan(start=long, end=b"", reverse=reverse)).rows == []
    assert raw.call(scan(start=b"", end=b"", reverse=reverse)).rows == []
    assert raw.call(frame(SCAN, long)).payload == bytes(4)
    assert raw.call(frame(QUERY, msgpack.packb({"prefix": long}), txn=0)).code == 0x85
    assert raw.call(frame(DELETE, b"z")).code == OK


@pytest.mark.parametrize("opcode", [SCAN, QUERY, BEGIN, PING])
@pytest.mark.parametrize("unit", [b"\x90", b"\x80", b"\xc4\x00", b"\x91\xc0", b"\xa2ab", b"\xc4\x02ab"], ids=repr)
def test_a_body_that_would_swell_in_memory_is_refused(raw: Raw, opcode: int, unit: bytes) -> None:
    count = (CAP - 64) // len(unit)
    body = b"\x81\xa4keys\xdd" + count.to_bytes(4, "big") + unit * count
    got = raw.call(frame(opcode, body, txn=0))
    assert got.error in ("FRAME_TOO_LARGE", "MALFORMED_REQUEST")
    raw.ping()


def test_errors_stay_short(raw: Raw) -> None:
    text = b"x" * 65_535
    columns = (2).to_bytes(2, "little") + ((len(text)).to_bytes(2, "little") + text) * 2
    for request in (
        frame(PUT_PATH, b"\xff\xff" + b"\x01\x00/" * 65_535),
        frame(PUT_PATH, b"\xff\xff" + b"\x00\x00" * 65_535),
        frame(GET_PATH, b"\x01\x00\xff\xff" + text[:-1] + b"/"),
        frame(CREATE_TABLE, b"\xff\xff" + text + b"\x00\x00"),
        frame(CREATE_TABLE, b"\x01\x00t\x02\x00" + (b"\xff\xff" + text + b"\x00\x00") * 2),
        frame(CREATE_TABLE, b"\x01\x00t\xff\xff" + b"\x01\x00c\x00\x00" * 65_535),
        frame(QUERY, bytes(2) + bytes(8) + columns),
        frame(SCAN, msgpack.packb({"x" * 900_000: 1}), txn=0),
        frame(SCAN, msgpack.packb({"limit": "x" * 900_000}), txn=0),
        frame(QUERY, msgpack.packb({"form": "x" * 900_000}), txn=0),
        frame(BEGIN, msgpack.packb({"isolation": "x" * 900_000}), txn=0),
        frame(SCAN, msgpack.packb({"cursor": "x" * 900_000}), txn=0),
    ):
        got = raw.call(request)
        assert got.code == ERROR
        error_code(got.payload)
    assert raw.call(frame(0x0D)).code == STATS_RESP
