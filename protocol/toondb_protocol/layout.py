"""Declarative payload layouts: the vocabulary in which the message table is written.

A layout is a tuple of :class:`Field`. The generic codec here serves every payload that is not on a hot
path, the rendering of SPEC.md and the golden vectors, so that layout and code cannot drift apart.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgpack

from .errors import MalformedRequestError

__all__ = ["Field", "Kind", "decode_fields", "decode_map", "encode_fields", "encode_map"]


class Kind(Enum):
    """How a field is laid out. All integers are little-endian."""

    U8 = "u8"
    U16 = "u16"
    U32 = "u32"
    U64 = "u64"
    BYTES16 = "u16 length, bytes"
    BYTES32 = "u32 length, bytes"
    TEXT16 = "u16 length, UTF-8 text"
    LIST16 = "u16 count, items"
    LIST32 = "u32 count, items"
    REST = "bytes to the end of the payload"
    REST_TEXT = "UTF-8 text to the end of the payload"
    MAP = "msgpack map to the end of the payload; nothing at all means an empty map"


_INTEGERS = {
    Kind.U8: struct.Struct("<B"),
    Kind.U16: struct.Struct("<H"),
    Kind.U32: struct.Struct("<I"),
    Kind.U64: struct.Struct("<Q"),
}
_LENGTHS = {
    Kind.BYTES16: _INTEGERS[Kind.U16],
    Kind.TEXT16: _INTEGERS[Kind.U16],
    Kind.BYTES32: _INTEGERS[Kind.U32],
    Kind.LIST16: _INTEGERS[Kind.U16],
    Kind.LIST32: _INTEGERS[Kind.U32],
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a payload.

    Args:
        name: Name in the decoded mapping and in SPEC.md.
        kind: Its layout.
        doc: What it means, one line.
        items: For lists, the fields of each item. A list of one field decodes to a plain list of values.
    """

    name: str
    kind: Kind
    doc: str = ""
    items: tuple[Field, ...] = ()


def encode_map(value: Mapping[str, Any]) -> bytes:
    """A msgpack map with text keys."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode_map(payload: bytes | memoryview) -> dict[str, Any]:
    """Decode a msgpack map with text keys; an empty payload is an empty map.

    Raises:
        MalformedRequestError: Not exactly one msgpack map with text keys.
    """
    if not payload:
        return {}
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except RecursionError:
        raise MalformedRequestError("the msgpack body is nested too deeply") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedRequestError(f"the body is not valid msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MalformedRequestError(f"the body must be a msgpack map with text keys, got {type(value).__name__}")
    return value


def encode_fields(fields: Sequence[Field], values: Mapping[str, Any]) -> bytes:
    """Encode ``values`` by a layout.

    Raises:
        MalformedRequestError: A value is missing or does not fit its field.
    """
    out: list[bytes] = []
    for field in fields:
        if field.name not in values:
            raise MalformedRequestError(f"field {field.name!r} is missing")
        _encode_one(field, values[field.name], out)
    return b"".join(out)


def _encode_one(field: Field, value: Any, out: list[bytes]) -> None:
    kind = field.kind
    try:
        if kind in _INTEGERS:
            out.append(_INTEGERS[kind].pack(value))
        elif kind in (Kind.BYTES16, Kind.BYTES32):
            out += (_LENGTHS[kind].pack(len(value)), bytes(value))
        elif kind is Kind.TEXT16:
            raw = value.encode()
            out += (_LENGTHS[kind].pack(len(raw)), raw)
        elif kind in (Kind.LIST16, Kind.LIST32):
            out.append(_LENGTHS[kind].pack(len(value)))
            single = len(field.items) == 1
            for item in value:
                if single:
                    _encode_one(field.items[0], item, out)
                else:
                    out.append(encode_fields(field.items, item))
        elif kind is Kind.REST:
            out.append(bytes(value))
        elif kind is Kind.REST_TEXT:
            out.append(value.encode())
        else:
            out.append(encode_map(value) if value else b"")
    except (struct.error, UnicodeEncodeError) as error:
        raise MalformedRequestError(f"field {field.name!r} cannot be encoded: {error}") from None


def decode_fields(fields: Sequence[Field], payload: bytes) -> dict[str, Any]:
    """Decode a whole payload by a layout.

    Raises:
        MalformedRequestError: The payload is too short, has bytes left over, or holds invalid text;
            the message names the field and the offset.
    """
    values, end = _decode_sequence(fields, payload, 0)
    if end != len(payload):
        raise MalformedRequestError(f"{len(payload) - end} bytes left over after the last field, at offset {end}")
    return values


def _decode_sequence(fields: Sequence[Field], payload: bytes, at: int) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    for field in fields:
        values[field.name], at = _decode_one(field, payload, at)
    return values, at


def _integer(field: Field, layout: struct.Struct, payload: bytes, at: int) -> tuple[int, int]:
    end = at + layout.size
    if end > len(payload):
        raise MalformedRequestError(
            f"field {field.name!r} needs {layout.size} bytes at offset {at}, the payload has {len(payload)}"
        )
    value: int = layout.unpack_from(payload, at)[0]
    return value, end


def _decode_one(field: Field, payload: bytes, at: int) -> tuple[Any, int]:
    kind = field.kind
    if kind in _INTEGERS:
        return _integer(field, _INTEGERS[kind], payload, at)
    if kind is Kind.REST:
        return payload[at:], len(payload)
    if kind is Kind.REST_TEXT:
        return _text(field, payload[at:], at), len(payload)
    if kind is Kind.MAP:
        return decode_map(payload[at:]), len(payload)
    length, at = _integer(field, _LENGTHS[kind], payload, at)
    if kind in (Kind.LIST16, Kind.LIST32):
        items: list[Any] = []
        single = len(field.items) == 1
        for _ in range(length):
            if single:
                item, at = _decode_one(field.items[0], payload, at)
            else:
                item, at = _decode_sequence(field.items, payload, at)
            items.append(item)
        return items, at
    end = at + length
    if end > len(payload):
        raise MalformedRequestError(
            f"field {field.name!r} announces {length} bytes at offset {at}, the payload has {len(payload) - at} left"
        )
    raw = payload[at:end]
    return (_text(field, raw, at) if kind is Kind.TEXT16 else raw), end


def _text(field: Field, raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError(
            f"field {field.name!r} at offset {at} is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None
