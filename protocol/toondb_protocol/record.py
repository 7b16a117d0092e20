"""The record format: how a value is stored in LMDB.

It belongs to the contract between processes, because a client that reads the database file directly
(see ``toondb_client.direct``) decodes records itself. All integers are little-endian::

    offset  size  field
    0       1     tag: high nibble = format version (1), low nibble = flags
    1       8     LSN of the commit that wrote the record
    9       4     CRC-32 (zlib) of the 9 bytes before it, the key, and everything after this header
    13      ...   the value

Flag 0x01 (FLAG_EXPIRES) is reserved for records whose value follows an 8-byte expiry time; version 1 writes no
flags, and a reader refuses a tag that it does not know.

The CRC is not verified on the read path (the page cache is trusted as LMDB trusts it); ``check``,
``backup`` and ``restore`` verify it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

__all__ = [
    "CATALOG_DATABASE",
    "FLAG_EXPIRES",
    "HEADER_SIZE",
    "KV_DATABASE",
    "MAX_KEY_SIZE",
    "META_DATABASE",
    "META_FORMAT",
    "META_LSN",
    "RECORD_V1",
    "Record",
    "decode_lsn",
    "decode_record",
    "decode_value",
    "encode_record",
]

KV_DATABASE = b"kv"
META_DATABASE = b"meta"
CATALOG_DATABASE = b"catalog"
META_FORMAT = b"format"
META_LSN = b"lsn"

MAX_KEY_SIZE = 511
RECORD_V1 = 0x10
FLAG_EXPIRES = 0x01
HEADER_SIZE = 13

_HEADER = struct.Struct("<BQI")
_pack_stamp = struct.Struct("<BQ").pack
_pack_checksum = struct.Struct("<I").pack
_STAMP_SIZE = 9
_unpack_lsn = struct.Struct("<xQ").unpack_from


class Record(NamedTuple):
    """A decoded record."""

    lsn: int
    value: bytes
    checksum_ok: bool


def encode_record(key: bytes, value: bytes, lsn: int) -> bytes:
    """The stored form of ``value`` under ``key``, written by the commit ``lsn``."""
    stamp = _pack_stamp(RECORD_V1, lsn)
    return stamp + _pack_checksum(crc32(value, crc32(key, crc32(stamp)))) + value


def decode_value(raw: bytes) -> bytes:
    """The value of a stored record, without looking at its header: for folders whose format is known."""
    return raw[HEADER_SIZE:]


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
    if tag != RECORD_V1:
        raise ValueError(f"record tag 0x{tag:02x} is not a known version")
    body = raw[HEADER_SIZE:]
    return Record(lsn, body, crc32(body, crc32(key, crc32(raw[:_STAMP_SIZE]))) == checksum)
