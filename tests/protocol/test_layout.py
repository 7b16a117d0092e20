"""The generic codec: round trips of every message, and nothing but MalformedRequestError for bad input."""

from __future__ import annotations

import math
import re
from array import array
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toondb_protocol.errors import MalformedRequestError
from toondb_protocol.layout import (
    MAX_MAP_DEPTH,
    Field,
    Kind,
    decode_fields,
    decode_map,
    decode_parts,
    encode_fields,
    encode_map,
)
from toondb_protocol.messages import (
    MESSAGES,
    QUERY_KEYS,
    REPLIES,
    SCAN_KEYS,
    MapKey,
    check_body,
    decode_request,
    encode_request,
)
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | TEXT | st.binary()
)
MAPS = st.dictionaries(
    TEXT,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)),
    max_size=4,
)


def values_of(fields: tuple[Field, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field.name: value_of(field) for field in fields})


def value_of(field: Field) -> st.SearchStrategy[Any]:
    bits = {Kind.U8: 8, Kind.U16: 16, Kind.U32: 32, Kind.U64: 64}
    if field.kind in bits:
        return st.integers(0, (1 << bits[field.kind]) - 1)
    if field.kind in (Kind.LIST16, Kind.LIST32):
        item = value_of(field.items[0]) if len(field.items) == 1 else values_of(field.items)
        return st.lists(item, max_size=4)
    if field.kind in (Kind.TEXT16, Kind.REST_TEXT):
        return TEXT
    return MAPS if field.kind is Kind.MAP else st.binary(max_size=30)


@pytest.mark.parametrize("opcode", Opcode)
@given(data=st.data(), txn=st.none() | st.integers(0, (1 << 64) - 1))
def test_requests_round_trip(opcode: Opcode, data: st.DataObject, txn: int | None) -> None:
    message = MESSAGES[opcode]
    values = data.draw(values_of(message.classic if txn is None else message.extended))
    code, payload = encode_request(opcode, values, txn=txn)
    assert code == (opcode if txn is None else opcode | EXTENDED)
    assert decode_request(code, payload) == (opcode, txn, values)
    for end in range(len(payload)):
        try:
            decode_request(code, payload[:end])
        except MalformedRequestError:
            pass


@pytest.mark.parametrize("reply", Reply)
@given(data=st.data())
def test_replies_round_trip(reply: Reply, data: st.DataObject) -> None:
    layout = REPLIES[reply].fields
    values = data.draw(values_of(layout))
    assert decode_fields(layout, encode_fields(layout, values)) == values


@given(st.integers(0, 255), st.binary(max_size=80))
@example(0x47, bytes(8) + b"\x81\xa1k\xdd\xff\xff\xff\xff")
@example(0x08, b"\x00\x00\xff\xff")
def test_arbitrary_requests_raise_only_what_is_documented(opcode: int, payload: bytes) -> None:
    known = opcode & ~EXTENDED in MESSAGES
    try:
        decoded, _, _ = decode_request(opcode, payload)
    except MalformedRequestError:
        assert known
    except KeyError:
        assert not known
    else:
        assert decoded == opcode & ~EXTENDED


def test_offsets_in_messages_count_from_the_start_of_the_payload() -> None:
    with pytest.raises(MalformedRequestError, match="needs 4 bytes at offset 8, the payload has 11"):
        decode_request(Opcode.PUT | EXTENDED, bytes(8) + b"\x01\x02\x03")
    with pytest.raises(MalformedRequestError, match="3 bytes left over after the last field, at offset 8"):
        decode_request(Opcode.COMMIT_TXN | EXTENDED, bytes(8) + b"abc")
    with pytest.raises(MalformedRequestError, match="'prefix' at offset 2 is not valid UTF-8"):
        decode_request(Opcode.QUERY, b"\x01\x00\xff")


# --- encoding refuses what would not arrive as it was meant ----------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.U8, 256),
        (Kind.U8, -1),
        (Kind.U64, 1 << 64),
        (Kind.U16, "1"),
        (Kind.U32, 1.0),
        (Kind.REST, 5),
        (Kind.REST, "text"),
        (Kind.REST, None),
        (Kind.BYTES32, "text"),
        (Kind.BYTES16, bytes(1 << 16)),
        (Kind.TEXT16, b"bytes"),
        (Kind.TEXT16, "x" * (1 << 16)),
        (Kind.TEXT16, "\ud800"),
        (Kind.REST_TEXT, None),
        (Kind.LIST16, "ab"),
        (Kind.LIST16, None),
        (Kind.LIST16, {"a": 1}),
        (Kind.LIST16, [1]),
        (Kind.LIST16, ["a"] * (1 << 16)),
        (Kind.MAP, [1]),
        (Kind.MAP, None),
        (Kind.MAP, {"k": 1 << 64}),
        (Kind.MAP, {"k": object()}),
        (Kind.MAP, {"k": "\ud800"}),
    ],
)
def test_values_that_do_not_fit_are_refused(kind: Kind, value: object) -> None:
    field = Field("f", kind, items=(Field("item", Kind.TEXT16),))
    with pytest.raises(MalformedRequestError):
        encode_fields((field,), {"f": value})


def test_missing_fields_and_wrong_items_are_refused() -> None:
    with pytest.raises(MalformedRequestError, match="field 'value' is missing"):
        encode_request(Opcode.PUT, {"key": b"k"})
    with pytest.raises(MalformedRequestError, match="as a mapping"):
        encode_request(Opcode.CREATE_TABLE, {"name": "t", "columns": [("id", 0, 0)]})


def test_the_length_of_a_memoryview_is_in_bytes() -> None:
    view = memoryview(array("I", [1, 2]))
    field = Field("f", Kind.BYTES16)
    assert encode_fields((field,), {"f": view})[:2] == (view.nbytes).to_bytes(2, "little")
    assert encode_fields((field,), {"f": bytearray(b"ab")}) == b"\x02\x00ab"


# --- msgpack maps ----------------------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    """A map with ``levels`` of nesting, itself included."""
    return b"\x81\xa1k" + b"\x91" * (levels - 1) + b"\xc0"


@given(MAPS)
def test_maps_round_trip(value: dict[str, Any]) -> None:
    packed = encode_map(value)
    assert decode_map(packed) == value
    assert decode_map(memoryview(packed)) == value


def test_an_empty_payload_is_an_empty_map() -> None:
    assert decode_map(b"") == decode_map(b"\x80") == decode_map(memoryview(b"")) == {}


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc0",
        b"\x90",
        b"\xc1",
        b"\x80\x80",
        b"\x81\xa1k",
        b"\x81\x01\x01",
        b"\x81\xc4\x01k\x01",
        b"\x81\x91\x01\x01",
        b"\x81\x80\x01",
        b"\x81\xd4\x05k\x01",
        b"\x81\xc0\x01",
        b"\x81\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\x01",
        b"\x81\xa1k\x81\xc4\x01k\x01",
        b"\x81\xa1k\x91\x81\x01\x01",
        b"\x81\xa1k\xa1\xff",
        b"\x81\xa1\xff\x01",
        b"\x81\xa3\xed\xa0\x80\x01",
        b"\x81\xa1k\xa3\xed\xa0\x80",
        b"\x81\xa1k\xd4\x05k",
        b"\x81\xa1k\x91\xd4\x05k",
        b"\x81\xa1k\xd6\xff\x00\x00\x00\x01",
        b"\x81\xa1k\xd7\xff" + b"\xff" * 8,
        b"\x81\xa1k\xc7\x0c\xff" + b"\xff" * 12,
        b"\x81\xa1k\xc7\x03\xffabc",
        b"\x81\xa1k\xdd\xff\xff\xff\xff",
        b"\x81\xa1k\xdc\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1k\xdb\xff\xff\xff\xff",
        b"\x81\xa1k\xc6\xff\xff\xff\xff",
        b"\x81\xa1k\xc9\xff\xff\xff\xff\x01",
        nested(MAX_MAP_DEPTH + 1),
        nested(1000),
        nested(100_000),
        b"\x81\xa1k" * 500 + b"\xc0",
        b"\x81\xa1k" * 50_000,
    ],
)
def test_bad_maps_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedRequestError) as caught:
        decode_map(payload)
    assert caught.value.message
    assert not caught.value.message.endswith((":", " "))


def test_nesting_up_to_the_limit_is_accepted() -> None:
    value: Any = decode_map(nested(MAX_MAP_DEPTH))["k"]
    for _ in range(MAX_MAP_DEPTH - 1):
        (value,) = value
    assert value is None
    with pytest.raises(MalformedRequestError, match="too deeply, the limit is 64 levels"):
        decode_map(nested(MAX_MAP_DEPTH + 1))


def test_numbers_keep_their_value_and_type() -> None:
    packed = b"\x86\xa1a\xcf" + b"\xff" * 8 + b"\xa1b\xd3\x80" + bytes(7) + b"\xa1c\xcb\x7f\xf8" + bytes(6)
    packed += b"\xa1d\xca\x7f\x80\x00\x00\xa1e\xc3\xa1f\xcd\x00\x01"
    value = decode_map(packed)
    assert math.isnan(value.pop("c"))
    assert value == {"a": (1 << 64) - 1, "b": -(1 << 63), "d": math.inf, "e": True, "f": 1}
    assert value["e"] is True


def test_of_two_equal_keys_the_last_counts() -> None:
    assert decode_map(b"\x82\xa1k\x01\xa1k\x02") == {"k": 2}


def test_long_flat_bodies_are_decoded() -> None:
    keys = [b"key %d" % number for number in range(20_000)]
    assert decode_map(encode_map({"keys": keys})) == {"keys": keys}


# --- bodies against their keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "body"),
    [
        (SCAN_KEYS, {"prefix": b"", "limit": 0, "reverse": False}),
        (SCAN_KEYS, {"keys": []}),
        (QUERY_KEYS, {"prefix": "t", "columns": ["a"]}),
        (QUERY_KEYS, {"prefix": b"t"}),
        ((), {}),
    ],
)
def test_good_bodies_pass(keys: tuple[MapKey, ...], body: dict[str, Any]) -> None:
    check_body(keys, body)


@pytest.mark.parametrize(
    ("keys", "body", "message"),
    [
        (SCAN_KEYS, {"perfix": b""}, "unknown key 'perfix' in the body, known are: prefix, start"),
        (SCAN_KEYS, {"prefix": "text"}, "key 'prefix' of the body must be bin, got str"),
        (SCAN_KEYS, {"limit": -1}, "must be uint, got int"),
        (SCAN_KEYS, {"limit": True}, "must be uint, got bool"),
        (SCAN_KEYS, {"limit": 1.0}, "must be uint, got float"),
        (SCAN_KEYS, {"limit": math.nan}, "must be uint, got float"),
        (SCAN_KEYS, {"reverse": 1}, "must be bool, got int"),
        (SCAN_KEYS, {"keys": [b"a", "b"]}, "must be array of bin, got list"),
        (QUERY_KEYS, {"prefix": None}, "must be text or bin, got NoneType"),
        (QUERY_KEYS, {"columns": {"a": 1}}, "must be array of text, got dict"),
    ],
)
def test_bad_bodies_are_refused(keys: tuple[MapKey, ...], body: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedRequestError, match=message):
        check_body(keys, body)


@given(MAPS)
def test_check_body_raises_only_what_is_documented(body: dict[str, Any]) -> None:
    for message in MESSAGES.values():
        try:
            check_body(message.keys, body)
        except MalformedRequestError:
            pass


def test_the_packer_is_the_plain_one() -> None:
    # Text as str, bytes as bin: a peer tells them apart.
    assert encode_map({"t": "a", "b": b"a"}) == b"\x82\xa1t\xa1a\xa1b\xc4\x01a" == msgpack.packb({"t": "a", "b": b"a"})


# Maps in parts


@given(MAPS, st.lists(st.integers(0, 400), max_size=6))
def test_a_map_in_parts_is_the_same_map(value: dict[str, Any], at: list[int]) -> None:
    packed = encode_map(value)
    bounds = [0, *sorted(at), len(packed)]
    parts = [packed[low:high] for low, high in pairwise(bounds)]
    try:
        expected = decode_map(packed)
    except MalformedRequestError as error:
        with pytest.raises(MalformedRequestError, match=re.escape(error.message)):
            decode_parts(parts, 1000)
    else:
        assert decode_parts(parts, 1000) == expected
        assert parts == []


@given(st.lists(st.binary(max_size=20), max_size=6))
@example([b"\x80", b"\x80"])
@example([b"\xc0", b"\x80"])
@example([b"\x81\xa1a\xd4\x01", b"\x02"])
@example([b"\x81\xa1a", b"\x91" * 70, b"\x01"])
@example([b"\x81\xa1a", b"\x91" * 5000, b"\x01"])
@example([b"\x81\xa1a\xdd\xff\xff\xff\xff"])
@example([b"\x81\x01\x02"])
def test_parts_of_anything_are_decoded_or_refused_as_the_whole_is(parts: list[bytes]) -> None:
    try:
        expected = decode_map(b"".join(parts))
    except MalformedRequestError:
        with pytest.raises(MalformedRequestError):
            decode_parts(parts, 1000)
    else:
        assert decode_parts(parts, 1000) == expected


@pytest.mark.parametrize(
    ("value", "values"),
    [({}, 1), ({"a": 1}, 3), ({"a": [1, 2]}, 6), ({"a": [[], []]}, 8), ({"a": {"b": 1, "c": [2]}}, 10)],
)
def test_values_are_counted(value: dict[str, Any], values: int) -> None:
    assert decode_parts([encode_map(value)], values) == value
    with pytest.raises(MalformedRequestError, match=r"more than|exceeds"):
        decode_parts([encode_map(value)], values - 1)
