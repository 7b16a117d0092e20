"""The record format: how a value is stored in LMDB.

It belongs to the contract between processes, because a client that reads the database file directly
(see ``toondb_client.direct``) decodes records itself. All integers are little-endian::

    offset  size  field
    0       1     tag: high nibble = format version (1), low nibble = flags
    1       8     LSN of the commit that wrote the record
    9       4     CRC-32 (zlib) of the 9 bytes before it, the key, and everything after this header
    13      8     only with flag 0x01 (FLAG_EXPIRES): milliseconds since 1970 UTC when the record expires
    ...     ...   the value

From that moment on a record is read as if it were not there, by every reader and in every snapshot; it is
deleted a little later. A reader refuses a tag that it does not know.

The CRC is not verified on the read path (the page cache is trusted as LMDB trusts it); ``check``,
``backup`` and ``restore`` verify it.
"""

from __future__ import annotations

import operator
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import NamedTuple
from zlib import crc32

from .errors import CorruptionError

__all__ = [
    "CATALOG_DATABASE",
    "CHANGES_DATABASE",
    "DOCUMENTS_DATABASE",
    "DOCUMENT_LOG_DATABASE",
    "EXPIRY_DATABASE",
    "EXPIRY_SIZE",
    "FLAG_EXPIRES",
    "FORMAT_VERSION",
    "HEADER_SIZE",
    "KV_DATABASE",
    "MAX_KEY_SIZE",
    "META_CHANGES_FROM",
    "META_DATABASE",
    "META_FORMAT",
    "META_LSN",
    "NAMESPACE_KV_DATABASE",
    "RECORD_V1",
    "SQL_DATABASE",
    "TEXT_DATABASE",
    "Expiring",
    "Record",
    "decode_expiry",
    "decode_lsn",
    "decode_record",
    "encode_record",
    "encode_records",
    "live_value",
    "now_ms",
]

FORMAT_VERSION = 3
"""Version of the store as a whole, kept in its format record. 1 had neither expiry nor a change log, 2 no documents."""

KV_DATABASE = b"kv"
META_DATABASE = b"meta"
CATALOG_DATABASE = b"catalog"
SQL_DATABASE = b"sql"
DOCUMENTS_DATABASE = b"documents"
DOCUMENT_LOG_DATABASE = b"document_log"
NAMESPACE_KV_DATABASE = b"namespace_kv"
TEXT_DATABASE = b"text"
EXPIRY_DATABASE = b"expiry"
CHANGES_DATABASE = b"changes"
META_FORMAT = b"format"
META_LSN = b"lsn"
META_CHANGES_FROM = b"changes_from"

MAX_KEY_SIZE = 511
RECORD_V1 = 0x10
FLAG_EXPIRES = 0x01
HEADER_SIZE = 13
EXPIRY_SIZE = 8

_EXPIRING = RECORD_V1 | FLAG_EXPIRES
_VALUE_AT = HEADER_SIZE + EXPIRY_SIZE
_HEADER = struct.Struct("<BQI")
_pack_stamp = struct.Struct("<BQ").pack
_pack_checksum = struct.Struct("<I").pack
_pack_expiry = struct.Struct("<Q").pack
_concat: Callable[[bytes, bytes], bytes] = operator.concat  # type: ignore[assignment]
_crc32: Callable[[bytes, int], int] = crc32
_pack_header = struct.Struct("<9sI").pack
_STAMP_SIZE = 9
_unpack_lsn = struct.Struct("<xQ").unpack_from
_unpack_expiry = struct.Struct("<Q").unpack_from


class Expiring(bytes):
    """A value that expires; it is passed on wherever a value is.

    Attributes:
        expires_ms: Milliseconds since 1970 UTC.
    """

    expires_ms: int

    def __new__(cls, value: bytes, expires_ms: int) -> Expiring:
        self = super().__new__(cls, value)
        self.expires_ms = expires_ms
        return self


class Record(NamedTuple):
    """A decoded record; ``expires_ms`` is None when it does not expire."""

    lsn: int
    value: bytes
    checksum_ok: bool
    expires_ms: int | None


def now_ms() -> int:
    """The time by which records expire: milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def encode_record(key: bytes, value: bytes, lsn: int) -> bytes:
    """The stored form of ``value`` under ``key``, written by the commit ``lsn``."""
    if type(value) is Expiring:
        stamp = _pack_stamp(_EXPIRING, lsn)
        value = _pack_expiry(value.expires_ms) + value
    else:
        stamp = _pack_stamp(RECORD_V1, lsn)
    return stamp + _pack_checksum(crc32(value, crc32(key, crc32(stamp)))) + value


def encode_records(keys: Iterable[bytes], values: list[bytes], lsn: int) -> Iterator[bytes]:
    """The stored forms of many plain values, written by one commit; see :func:`encode_record`.

    Built of iterators that run in C: for a bulk load this is most of the work.
    """
    stamp = _pack_stamp(RECORD_V1, lsn)
    checksums = map(_crc32, values, map(_crc32, keys, repeat(crc32(stamp))))
    return map(_concat, map(_pack_header, repeat(stamp), checksums), values)


def live_value(raw: bytes | None) -> bytes | None:
    """The value of a stored record; None when there is none or it has expired.

    Raises:
        CorruptionError: It has a tag that this version does not know.
    """
    if raw is None or raw[0] == RECORD_V1:
        return None if raw is None else raw[HEADER_SIZE:]
    if raw[0] != _EXPIRING or len(raw) < _VALUE_AT:
        raise CorruptionError(f"a record with the tag 0x{raw[0]:02x} and {len(raw)} bytes cannot be read.")
    return raw[_VALUE_AT:] if _unpack_expiry(raw, HEADER_SIZE)[0] > now_ms() else None


def decode_expiry(raw: bytes) -> int | None:
    """When a stored record expires; None = never."""
    if raw[0] != _EXPIRING or len(raw) < _VALUE_AT:
        return None
    expires: int = _unpack_expiry(raw, HEADER_SIZE)[0]
    return expires


def decode_lsn(raw: bytes) -> int:
    """The LSN of the commit that wrote a stored record."""
    lsn: int = _unpack_lsn(raw)[0]
    return lsn


def decode_record(key: bytes, raw: bytes) -> Record:
    """Decode and verify a stored record.

    Raises:
        ValueError: The header is truncated or of an unknown version or flag.
    """
    if len(raw) < HEADER_SIZE:
        raise ValueError(f"record of {len(raw)} bytes is shorter than its {HEADER_SIZE}-byte header")
    tag, lsn, checksum = _HEADER.unpack_from(raw)
    expires: int | None = None
    if tag == _EXPIRING:
        if len(raw) < _VALUE_AT:
            raise ValueError(f"record of {len(raw)} bytes is shorter than its header and expiry")
        expires = decode_expiry(raw)
    elif tag != RECORD_V1:
        raise ValueError(f"record tag 0x{tag:02x} is not a known version")
    checksum_ok = crc32(raw[HEADER_SIZE:], crc32(key, crc32(raw[:_STAMP_SIZE]))) == checksum
    return Record(lsn, raw[HEADER_SIZE if expires is None else _VALUE_AT :], checksum_ok, expires)
