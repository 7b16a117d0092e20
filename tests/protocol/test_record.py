"""The record format, against bytes written by hand."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb_protocol.record import (
    FLAG_EXPIRES,
    HEADER_SIZE,
    RECORD_V1,
    Expiring,
    Record,
    decode_expiry,
    decode_lsn,
    decode_record,
    encode_record,
    live_value,
    now_ms,
)

LSN = st.integers(0, (1 << 64) - 1)


def test_the_bytes_of_a_record() -> None:
    stamp = b"\x10" + (1001).to_bytes(8, "little")
    checksum = zlib.crc32(stamp + b"user:1" + b"Ann")
    expected = stamp + checksum.to_bytes(4, "little") + b"Ann"
    assert encode_record(b"user:1", b"Ann", 1001) == expected
    assert len(expected) == HEADER_SIZE + 3


def test_the_bytes_of_a_record_that_expires() -> None:
    stamp = b"\x11" + (1001).to_bytes(8, "little")
    body = (1_700_000_000_123).to_bytes(8, "little") + b"Ann"
    checksum = zlib.crc32(stamp + b"user:1" + body)
    expected = stamp + checksum.to_bytes(4, "little") + body
    assert encode_record(b"user:1", Expiring(b"Ann", 1_700_000_000_123), 1001) == expected
    assert decode_expiry(expected) == 1_700_000_000_123
    assert live_value(expected) is None


@given(st.binary(min_size=1, max_size=511), st.binary(max_size=100), LSN, st.integers(1, 10**9))
def test_records_that_expire_round_trip(key: bytes, value: bytes, lsn: int, later: int) -> None:
    expires = now_ms() + 60_000 + later
    raw = encode_record(key, Expiring(value, expires), lsn)
    assert decode_record(key, raw) == Record(lsn, value, True, expires)
    assert live_value(raw) == value
    assert decode_lsn(raw) == lsn
    gone = encode_record(key, Expiring(value, now_ms()), lsn)
    assert live_value(gone) is None
    assert decode_record(key, gone).value == value


@given(st.binary(min_size=1, max_size=511), st.binary(max_size=100), LSN)
def test_records_round_trip(key: bytes, value: bytes, lsn: int) -> None:
    raw = encode_record(key, value, lsn)
    assert decode_record(key, raw) == Record(lsn, value, True, None)
    assert live_value(raw) == value
    assert decode_expiry(raw) is None
    assert decode_lsn(raw) == lsn


@given(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20), st.data())
def test_any_flipped_bit_after_the_tag_is_seen(key: bytes, value: bytes, data: st.DataObject) -> None:
    raw = bytearray(encode_record(key, data.draw(st.sampled_from([value, Expiring(value, 5)])), 7))
    bit = data.draw(st.integers(8, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert not decode_record(key, bytes(raw)).checksum_ok
    assert not decode_record(key + b"x", encode_record(key, value, 7)).checksum_ok


@pytest.mark.parametrize("size", range(HEADER_SIZE))
def test_a_cut_header_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"record of {size} bytes is shorter"):
        decode_record(b"k", encode_record(b"k", b"v", 1)[:size])


@pytest.mark.parametrize("tag", [0x00, 0x0F, RECORD_V1 | 0x02, RECORD_V1 | FLAG_EXPIRES | 0x02, 0x20, 0xFF])
def test_unknown_versions_and_flags_are_refused(tag: int) -> None:
    with pytest.raises(ValueError, match=f"record tag 0x{tag:02x}"):
        decode_record(b"k", bytes([tag]) + encode_record(b"k", b"v", 1)[1:])


@pytest.mark.parametrize("size", range(HEADER_SIZE, HEADER_SIZE + 8))
def test_a_cut_expiry_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"record of {size} bytes is shorter"):
        decode_record(b"k", encode_record(b"k", Expiring(b"v", 1), 1)[:size])


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_only_value_errors(raw: bytes) -> None:
    try:
        record = decode_record(b"k", raw)
    except ValueError:
        return
    assert record.value == raw[13 if record.expires_ms is None else 21 :]
    assert record.lsn == struct.unpack_from("<Q", raw, 1)[0]
