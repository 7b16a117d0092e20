"""Frames: opcode ``u8``, payload length ``u32`` little-endian, payload. No I/O here."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .errors import FrameTooLargeError

__all__ = [
    "DEFAULT_MAX_FRAME",
    "HEADER_SIZE",
    "MAX_MAX_FRAME",
    "REPLY_SLACK",
    "FrameReader",
    "encode_frame",
    "pack_header",
    "unpack_header",
]

HEADER_SIZE = 5
DEFAULT_MAX_FRAME = 16 * 1024 * 1024
"""Cap on a payload's length in bytes, unless the server is started with another one."""
REPLY_SLACK = 1024
"""Bytes by which a reply may exceed the cap, so that whatever a request could store can also be scanned."""

MAX_MAX_FRAME = 0xFFFF_FFFF

_HEADER = struct.Struct("<BI")
pack_header = _HEADER.pack
unpack_header = _HEADER.unpack_from


def encode_frame(opcode: int, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return pack_header(opcode, len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames.

    Args:
        max_frame: Largest payload that is accepted, in bytes. It is checked on the header, before any of
            the payload is buffered.
    """

    __slots__ = ("_chunks", "_have", "_lost", "_need", "max_frame")

    def __init__(self, max_frame: int = DEFAULT_MAX_FRAME) -> None:
        self.max_frame = max_frame
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER_SIZE
        self._lost: FrameTooLargeError | None = None

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete frame held back."""
        return self._have

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take received bytes and give the frames they complete, as (opcode, payload).

        Consume the iterator to its end before the next call.

        Raises:
            FrameTooLargeError: A header announces more than ``max_frame``; the stream is lost, and every
                later call raises the same.
        """
        if self._lost is not None:
            # What follows is the inside of the refused frame: it must never be read as frames.
            raise self._lost
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._have = 0
        at, size = 0, len(data)
        while size - at >= HEADER_SIZE:
            opcode, length = unpack_header(data, at)
            if length > self.max_frame:
                self._lost = FrameTooLargeError(
                    f"a frame with opcode 0x{opcode:02x} announces {length} bytes, the cap is {self.max_frame}",
                    details={"limit": self.max_frame, "actual": length},
                )
                raise self._lost
            end = at + HEADER_SIZE + length
            if end > size:
                self._need = end - at
                break
            yield opcode, data[at + HEADER_SIZE : end]
            at = end
        else:
            self._need = HEADER_SIZE
        if at < size:
            self._chunks.append(data[at:] if at else data)
            self._have = size - at
