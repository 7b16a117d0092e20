"""Declarative payload layouts: the vocabulary in which the message table is written.

A layout is a tuple of :class:`Field`. The generic codec here serves every payload that is not on a hot
path, the rendering of SPEC.md and the golden vectors, so that layout and code cannot drift apart.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgpack

from .errors import MalformedRequestError

__all__ = [
    "MAX_MAP_DEPTH",
    "Field",
    "Kind",
    "decode_fields",
    "decode_map",
    "decode_parts",
    "encode_fields",
    "encode_map",
]

MAX_MAP_DEPTH = 64
"""Arrays and maps inside each other in one msgpack body, the body itself included. Deeper ones would exhaust
the recursion limit of whoever prints, copies or re-encodes them."""

_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})
_CONTAINERS = frozenset({list, dict})
_TEXT = frozenset({str})
_SENDABLE = "Send None, bool, int (64 bits), float, str, bytes, and lists and string-keyed maps of these."


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
    MAP32 = "u32 length, msgpack map of plain values"
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
    Kind.MAP32: _INTEGERS[Kind.U32],
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
    """A msgpack map with text keys.

    Raises:
        MalformedRequestError: It is not a map, or holds a value that msgpack has no plain type for.
    """
    if not isinstance(value, Mapping):
        raise MalformedRequestError(f"a msgpack body must be a map, not {type(value).__name__}")
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedRequestError(f"the body cannot be sent: {error}", remediation=_SENDABLE) from None
    return packed


def decode_map(payload: bytes | memoryview) -> dict[str, Any]:
    """Decode a msgpack map with text keys; an empty payload is an empty map.

    Raises:
        MalformedRequestError: Not exactly one msgpack map with text keys (at every level), nested deeper
            than ``MAX_MAP_DEPTH``, or holding an extension type.
    """
    if not payload:
        return {}
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (RecursionError, msgpack.StackError):
        raise MalformedRequestError(_TOO_DEEP) from None
    except (ValueError, msgpack.UnpackException) as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise MalformedRequestError(f"the body is not valid msgpack: {reason}") from None
    if not isinstance(value, dict):
        raise MalformedRequestError(f"the body must be a msgpack map with text keys, got {type(value).__name__}")
    _check_plain(value)
    return value


def decode_parts(parts: list[bytes], most_items: int) -> dict[str, Any]:
    """Decode a msgpack map that came in parts, and takes the list of them: it is empty afterwards.

    Other threads run between the parts. Small bytes make large objects, so the values are counted.

    Args:
        parts: The bytes, in order.
        most_items: Values in all arrays and maps together, at the most; a name of a map counts as one, too.

    Raises:
        MalformedRequestError: As :func:`decode_map`, or there are more values.
    """
    left = most_items

    def counted(container: Any) -> Any:
        nonlocal left
        left -= 1 + (2 * len(container) if type(container) is dict else len(container))
        if left < 0:
            raise _TooManyItems
        return container

    limit = (1 << 32) - 1
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=0,
        max_str_len=limit,
        max_bin_len=limit,
        max_array_len=most_items,
        max_map_len=most_items,
        max_ext_len=0,
        list_hook=counted,
        object_hook=counted,
    )
    parts.reverse()
    size = 0
    values: list[Any] = []
    try:
        while parts:
            part = parts.pop()
            size += len(part)
            unpacker.feed(part)
            if not values:
                with contextlib.suppress(msgpack.OutOfData):
                    values.append(unpacker.unpack())
    except _TooManyItems:
        raise MalformedRequestError(
            f"the msgpack map holds more than {most_items} values",
            remediation="Spread them over several requests.",
            details={"limit": most_items},
        ) from None
    except (RecursionError, msgpack.StackError):
        raise MalformedRequestError(_TOO_DEEP) from None
    except (ValueError, msgpack.UnpackException) as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise MalformedRequestError(f"the body is not valid msgpack: {reason}") from None
    if not size:
        return {}
    value = values[0] if values else None
    if not isinstance(value, dict) or unpacker.tell() != size:
        raise MalformedRequestError("the body must be exactly one msgpack map with text keys")
    _check_plain(value)
    return value


class _TooManyItems(Exception):
    """More values than a map may hold."""


_MOST_OPTIONS = 64


def _decode_flat_map(payload: bytes) -> dict[str, Any]:
    """Decode a msgpack map that holds neither arrays nor maps; its values may be long."""
    maps = 0

    def only_one(value: dict[str, Any]) -> dict[str, Any]:
        # At the second map, not after all of them: small bytes make large objects.
        nonlocal maps
        maps += 1
        if maps > 1:
            raise MalformedRequestError("the options hold a map inside a map")
        return value

    try:
        value = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_map_len=_MOST_OPTIONS,
            max_array_len=0,
            max_ext_len=0,
            object_hook=only_one,
        )
    except (RecursionError, msgpack.StackError):
        raise MalformedRequestError(_TOO_DEEP) from None
    except (ValueError, msgpack.UnpackException) as error:
        if isinstance(error, MalformedRequestError):
            raise
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise MalformedRequestError(f"the options are not valid msgpack of plain values: {reason}") from None
    if not isinstance(value, dict):
        raise MalformedRequestError(f"the options must be a msgpack map with text keys, got {type(value).__name__}")
    return value


_TOO_DEEP = f"the msgpack body is nested too deeply, the limit is {MAX_MAP_DEPTH} levels"


def _check_plain(body: dict[str, Any]) -> None:
    """Refuse what other languages cannot represent alike: keys that are not text, extension types, deep nesting."""
    level: list[Any] = [body]
    for _ in range(MAX_MAP_DEPTH):
        below: list[Any] = []
        for container in level:
            values: Iterable[Any] = container
            if type(container) is dict:
                if not set(map(type, container)) <= _TEXT:
                    raise MalformedRequestError("a msgpack body may only have text keys in its maps")
                values = container.values()
            # Set arithmetic over types keeps long flat arrays (keys, parameters) at C speed.
            odd = set(map(type, values)) - _SCALARS
            if odd <= _CONTAINERS:
                if odd:
                    below.extend(value for value in values if type(value) in _CONTAINERS)
            else:
                names = ", ".join(sorted(kind.__name__ for kind in odd - _CONTAINERS))
                raise MalformedRequestError(f"a msgpack body may not hold extension types, got {names}")
        if not below:
            return
        level = below
    raise MalformedRequestError(_TOO_DEEP)


def encode_fields(fields: Sequence[Field], values: Mapping[str, Any]) -> bytes:
    """Encode ``values`` by a layout.

    Raises:
        MalformedRequestError: A value is missing or does not fit its field.
    """
    out: list[bytes] = []
    if not isinstance(values, Mapping):
        raise MalformedRequestError(f"fields are given as a mapping, not {type(values).__name__}")
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
            raw = _raw(field, value)
            out += (_LENGTHS[kind].pack(len(raw)), raw)
        elif kind in (Kind.TEXT16, Kind.MAP32):
            raw = _encoded(field, value) if kind is Kind.TEXT16 else encode_map(value)
            out += (_LENGTHS[kind].pack(len(raw)), raw)
        elif kind in (Kind.LIST16, Kind.LIST32):
            if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
                raise MalformedRequestError(f"field {field.name!r} must be a list, not {type(value).__name__}")
            out.append(_LENGTHS[kind].pack(len(value)))
            single = len(field.items) == 1
            for item in value:
                if single:
                    _encode_one(field.items[0], item, out)
                else:
                    out.append(encode_fields(field.items, item))
        elif kind is Kind.REST:
            out.append(_raw(field, value))
        elif kind is Kind.REST_TEXT:
            out.append(_encoded(field, value))
        else:
            # An empty map is sent as nothing at all; None is not a map and is refused.
            out.append(b"" if value == {} else encode_map(value))
    except (struct.error, UnicodeEncodeError) as error:
        raise MalformedRequestError(f"field {field.name!r} cannot be encoded: {error}") from None


def _raw(field: Field, value: object) -> bytes:
    # bytes(5) would be five zero bytes, and len() of a memoryview counts its elements.
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise MalformedRequestError(f"field {field.name!r} must be bytes, not {type(value).__name__}")


def _encoded(field: Field, value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    raise MalformedRequestError(f"field {field.name!r} must be text, not {type(value).__name__}")


def decode_fields(fields: Sequence[Field], payload: bytes, at: int = 0) -> dict[str, Any]:
    """Decode a payload by a layout, from offset ``at`` to its end.

    Raises:
        MalformedRequestError: The payload is too short, has bytes left over, or holds invalid text;
            the message names the field and the offset.
    """
    values, end = _decode_sequence(fields, payload, at)
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
    if kind is Kind.MAP32:
        return _decode_flat_map(raw), end
    return (_text(field, raw, at) if kind is Kind.TEXT16 else raw), end


def _text(field: Field, raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError(
            f"field {field.name!r} at offset {at} is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None
