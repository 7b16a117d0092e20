"""FrameReader: any cut of a stream gives the same frames, and an over-cap header is refused unread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb_protocol.errors import FrameTooLargeError
from toondb_protocol.frames import (
    DEFAULT_MAX_FRAME,
    HEADER_SIZE,
    MAX_MAX_FRAME,
    FrameReader,
    encode_frame,
    pack_header,
    unpack_header,
)

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=12)


def test_header_bytes() -> None:
    assert encode_frame(0x0E) == b"\x0e\x00\x00\x00\x00"
    assert encode_frame(0x01, b"ab") == b"\x01\x02\x00\x00\x00ab"
    assert pack_header(0xFF, MAX_MAX_FRAME) == b"\xff" * 5
    assert unpack_header(b"\x81\x00\x00\x00\x01") == (0x81, 1 << 24)
    assert DEFAULT_MAX_FRAME == 1 << 24
    assert HEADER_SIZE == 5


@given(FRAMES, st.data())
def test_any_cut_gives_the_same_frames(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = FrameReader(max_frame=40)
    got: list[tuple[int, bytes]] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
        # Never more than one incomplete frame is held back.
        assert reader.buffered < HEADER_SIZE + 40
    assert got == frames
    assert reader.buffered == 0


@given(FRAMES, st.integers(0, 255), st.integers(41, MAX_MAX_FRAME), st.binary(max_size=60))
def test_frames_before_an_over_cap_header_are_given_and_none_after_it(
    frames: list[tuple[int, bytes]], opcode: int, length: int, rest: bytes
) -> None:
    reader = FrameReader(max_frame=40)
    got: list[tuple[int, bytes]] = []
    stream = b"".join(encode_frame(*frame) for frame in frames) + pack_header(opcode, length) + rest
    with pytest.raises(FrameTooLargeError) as caught:
        got.extend(reader.feed(stream))
    assert got == frames
    assert caught.value.details == {"limit": 40, "actual": length}
    assert f"0x{opcode:02x}" in caught.value.message
    with pytest.raises(FrameTooLargeError):
        got.extend(reader.feed(encode_frame(1, b"inside of the refused frame")))
    assert got == frames
    assert reader.buffered == 0


def test_the_cap_itself_is_allowed() -> None:
    assert list(FrameReader(3).feed(encode_frame(1, b"abc"))) == [(1, b"abc")]
    with pytest.raises(FrameTooLargeError):
        list(FrameReader(2).feed(encode_frame(1, b"abc")))


def test_an_over_cap_header_is_refused_when_its_last_byte_arrives() -> None:
    reader = FrameReader(10)
    for byte in pack_header(1, 11)[:4]:
        assert list(reader.feed(bytes([byte]))) == []
    with pytest.raises(FrameTooLargeError):
        list(reader.feed(pack_header(1, 11)[4:]))


def test_many_small_pieces_of_a_large_frame_are_joined_once() -> None:
    payload = bytes(range(256)) * 256
    frame = encode_frame(0x82, payload)
    reader = FrameReader()
    got: list[tuple[int, bytes]] = []
    for at in range(0, len(frame), 7):
        got += reader.feed(frame[at : at + 7])
        assert got or reader.buffered == min(at + 7, len(frame))
    assert got == [(0x82, payload)]


def test_empty_reads_change_nothing() -> None:
    reader = FrameReader()
    frame = encode_frame(1, b"abc")
    assert list(reader.feed(b"")) == []
    assert list(reader.feed(frame[:6])) == []
    assert list(reader.feed(b"")) == []
    assert list(reader.feed(frame[6:])) == [(1, b"abc")]
