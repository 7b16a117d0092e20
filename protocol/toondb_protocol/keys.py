"""Checks and conversions of keys, values and ranges, the same in every mode."""

from __future__ import annotations

from typing import TypeAlias

from .errors import InvalidKeyError, KeyTooLargeError, ValidationError
from .record import MAX_KEY_SIZE

__all__ = [
    "MAX_NAMESPACE_KEY_SIZE",
    "BytesLike",
    "KeyLike",
    "as_bound",
    "as_key",
    "as_namespace_key",
    "as_prefix",
    "as_value",
    "check_key",
    "check_namespace_key",
    "prefix_end",
]

MAX_NAMESPACE_KEY_SIZE = 500
"""A key of a namespace is stored behind the number of the namespace, and must fit with it."""

BytesLike: TypeAlias = bytes | bytearray | memoryview
KeyLike: TypeAlias = bytes | bytearray | memoryview | str


def check_key(key: bytes) -> bytes:
    """Return ``key`` when its length is 1 to 511 bytes.

    Raises:
        InvalidKeyError: It is empty.
        KeyTooLargeError: It is too long.
    """
    if 0 < len(key) <= MAX_KEY_SIZE:
        return key
    raise _wrong_size(key, MAX_KEY_SIZE)


def _wrong_size(key: bytes, most: int, allowed: str | None = None) -> InvalidKeyError | KeyTooLargeError:
    """The error for an empty or too long key; ``allowed`` tells what to do, unless it is what always is to be done."""
    if not key:
        return InvalidKeyError("the key is empty.", remediation=allowed and f"{allowed}.")
    return KeyTooLargeError(
        f"the key has {len(key)} bytes, the limit is {most}.",
        remediation=allowed and f"{allowed}; store a hash of a longer name.",
        details={"limit": most, "actual": len(key)},
    )


def _as_bytes(value: object, what: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise InvalidKeyError(f"the {what} {value!r} is not valid Unicode text.") from None
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise InvalidKeyError(f"the {what} must be bytes or str, not {type(value).__name__}.", remediation="")


def as_key(key: KeyLike) -> bytes:
    """A key as bytes; text is encoded as UTF-8.

    Raises:
        InvalidKeyError, KeyTooLargeError: See :func:`check_key`; also for another type.
    """
    if type(key) is bytes and 0 < len(key) <= MAX_KEY_SIZE:
        return key
    return check_key(_as_bytes(key, "key"))


def as_namespace_key(key: KeyLike) -> bytes:
    """A key of a namespace as bytes; text is encoded as UTF-8.

    Raises:
        InvalidKeyError, KeyTooLargeError: It is not 1 to 500 bytes.
    """
    return check_namespace_key(_as_bytes(key, "key"))


def check_namespace_key(key: bytes) -> bytes:
    """Return ``key`` when its length is 1 to 500 bytes.

    Raises:
        InvalidKeyError: It is empty.
        KeyTooLargeError: It is too long.
    """
    if 0 < len(key) <= MAX_NAMESPACE_KEY_SIZE:
        return key
    raise _wrong_size(key, MAX_NAMESPACE_KEY_SIZE, f"Keys of a namespace are 1 to {MAX_NAMESPACE_KEY_SIZE} bytes")


def as_prefix(prefix: KeyLike) -> bytes:
    """A scan prefix as bytes: any length, also empty.

    Raises:
        InvalidKeyError: It is neither bytes nor text.
    """
    return _as_bytes(prefix, "prefix")


def as_bound(bound: KeyLike | None) -> bytes | None:
    """The bound of a range as bytes; None = unbounded."""
    return None if bound is None else _as_bytes(bound, "range bound")


def as_value(value: BytesLike) -> bytes:
    """A value as bytes.

    Raises:
        ValidationError: It is not bytes-like; text is refused so that no encoding is guessed.
    """
    if type(value) is bytes:
        return value
    given: object = value  # callers without a type checker pass anything
    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    hint = "Encode it first, for example value.encode()." if isinstance(given, str) else "Values are bytes."
    raise ValidationError(f"the value must be bytes, not {type(given).__name__}.", remediation=hint)


def prefix_end(prefix: bytes) -> bytes | None:
    """The end of the range of keys that start with ``prefix``; None = no end.

    >>> prefix_end(b"ab"), prefix_end(b"a" + bytes([255])), prefix_end(b"")
    (b'ac', b'b', None)
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes([stripped[-1] + 1])
