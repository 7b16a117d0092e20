"""The container of a saved index: named sections behind a header that describes and guards them.

All numbers are little-endian. The header takes the first 4,096 bytes::

    0   8  magic, the bytes "TOONDBVX"
    8   4  version of the format, 1
    12  4  length of the description
    16  4  CRC-32 of the description
    20  n  description, a msgpack map; zeros up to 4,096

The description has ``size`` (of the whole file, bytes), ``about`` (a map of the index's own: dimension, metric, ...)
and ``sections``, for each its name, offset, length and CRC-32. Sections begin at multiples of 64.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import msgpack
import numpy as np
from numpy.typing import NDArray

from toondb_protocol.errors import CorruptionError, UnsupportedFeatureError, ValidationError

__all__ = ["HEADER_BYTES", "MAGIC", "VERSION", "SectionReader", "SectionWriter"]

MAGIC = b"TOONDBVX"
VERSION = 1
HEADER_BYTES = 4096
ALIGNMENT = 64
_HEADER = struct.Struct("<8sIII")
_BLOCK = 1 << 22
_REBUILD = "Build or save the index again."

Bytes = NDArray[np.uint8]


class SectionWriter:
    """Writes sections one after the other, and the header at the end. The file is empty and at its start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sections: list[list[Any]] = []
        self._at = HEADER_BYTES
        file.write(bytes(HEADER_BYTES))

    def add(self, name: str, fill: Callable[[Callable[[bytes], int]], object]) -> None:
        """Write a section: ``fill`` is given a function that takes the next bytes and tells how many."""
        padding = -self._at % ALIGNMENT
        self._file.write(bytes(padding))
        start = self._at + padding
        length, crc = 0, 0

        def write(data: bytes) -> int:
            nonlocal length, crc
            self._file.write(data)
            crc = zlib.crc32(data, crc)
            length += len(data)
            return len(data)

        fill(write)
        self._at = start + length
        self._sections.append([name, start, length, crc])

    def add_array(self, name: str, array: NDArray[Any]) -> None:
        """Write the numbers of an array as a section; nothing when it is empty."""
        if array.size:
            data = np.ascontiguousarray(array).data.cast("B")
            steps = range(0, len(data), _BLOCK)
            self.add(name, lambda write: [write(data[at : at + _BLOCK]) for at in steps])  # type: ignore[arg-type]

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the header.

        Raises:
            ValidationError: ``about`` is too large.
        """
        description = msgpack.packb({"size": self._at, "about": dict(about), "sections": self._sections})
        room = HEADER_BYTES - _HEADER.size
        if len(description) > room:
            raise ValidationError(
                f"{len(description):,} bytes describe the index, and there is room for {room:,}.",
                remediation="Keep what is large in a section.",
            )
        self._file.seek(0)
        self._file.write(_HEADER.pack(MAGIC, VERSION, len(description), zlib.crc32(description)) + description)


class SectionReader:
    """A file of sections, mapped into memory.

    Args:
        file: The open file.
        name: Its name in errors.

    Attributes:
        about: What the writer's :meth:`SectionWriter.finish` was given.
        size: Bytes of the file.

    Raises:
        ValidationError: It is another kind of file.
        UnsupportedFeatureError: It is of a later version.
        CorruptionError: It is damaged or cut short.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        self.size = file.seek(0, 2)
        file.seek(0)
        head = file.read(HEADER_BYTES)
        if not head.startswith(MAGIC):
            raise ValidationError(
                f"{name} is not a ToonDB vector index: it begins with {head[:8]!r}, not with {MAGIC!r}.",
                remediation="Build an index from vectors with toondb-bulk build-index.",
            )
        if len(head) < HEADER_BYTES:
            raise self._damaged(f"it has {len(head):,} bytes, less than its header")
        _, version, length, crc = _HEADER.unpack_from(head)
        if version != VERSION:
            raise UnsupportedFeatureError(
                f"{name} has version {version} of the format, this ToonDB reads version {VERSION}.",
                remediation="Update ToonDB, or build the index again.",
            )
        description = head[_HEADER.size : _HEADER.size + length]
        if len(description) != length or zlib.crc32(description) != crc:
            raise self._damaged("the checksum of its header is wrong")
        try:
            fields = msgpack.unpackb(description)
            declared, self.about = int(fields["size"]), dict(fields["about"])
            self._sections = {str(one[0]): (int(one[1]), int(one[2]), int(one[3])) for one in fields["sections"]}
        except (ValueError, KeyError, TypeError, IndexError, msgpack.UnpackException) as error:
            raise self._damaged(f"its header cannot be read ({error})") from None
        if declared != self.size:
            raise self._damaged(f"it has {self.size:,} bytes of {declared:,}")
        for start, size, _ in self._sections.values():
            if start < HEADER_BYTES or size < 0 or start + size > self.size:
                raise self._damaged("a section lies outside of it")
        self._map: Bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)

    def verify(self) -> None:
        """Read everything once and compare the checksums.

        Raises:
            CorruptionError: One is wrong.
        """
        for name, (start, length, expected) in self._sections.items():
            crc = 0
            for at in range(start, start + length, _BLOCK):
                crc = zlib.crc32(self._map[at : min(at + _BLOCK, start + length)].data, crc)
            if crc != expected:
                raise self._damaged(f"the checksum of its section {name} is wrong")

    def section(self, name: str) -> Bytes:
        """The bytes of a section, as a view of the file; empty when it is not there."""
        start, length, _ = self._sections.get(name, (0, 0, 0))
        return self._map[start : start + length]

    def array(self, name: str, dtype: Any, size: int | None = None) -> NDArray[Any]:
        """The numbers of a section, as a view of the file.

        Raises:
            CorruptionError: There are not ``size`` of them.
        """
        data = self.section(name)
        item = np.dtype(dtype).itemsize
        if len(data) % item or (size is not None and len(data) != size * item):
            wanted = "" if size is None else f", not {size:,} numbers of {item}"
            raise self._damaged(f"its section {name} has {len(data):,} bytes{wanted}")
        return data.view(dtype)

    def damaged(self, why: str) -> CorruptionError:
        """The error for content that contradicts itself."""
        return self._damaged(why)

    def _damaged(self, why: str) -> CorruptionError:
        return CorruptionError(f"{self._name} is damaged: {why}.", remediation=_REBUILD)
