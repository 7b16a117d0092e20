"""Files of vectors, mapped into memory and read in parts, so they may be larger than it.

======= ================ =============================================================================================
format  suffixes         layout
======= ================ =============================================================================================
npy     .npy             NumPy's own: a matrix of real numbers, one row for each vector
fvecs   .fvecs           for each vector its dimension as int32, then float32 (the format of the TEXMEX corpora,
                         http://corpus-texmex.irisa.fr)
raw_f32 .raw .f32 .bin   float32 one after the other; the dimension must be given
======= ================ =============================================================================================

All numbers are little-endian, except where a .npy file says otherwise.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ConfigurationError, DimensionMismatchError, ValidationError

from .atomic_file import Name, open_regular
from .metrics import MAX_DIMENSION, Floats, as_matrix, check_dimension

__all__ = ["Format", "Vectors", "convert_to", "format_of_name", "parts", "read_integers", "vectors_of"]

_SUFFIXES = {".npy": "npy", ".fvecs": "fvecs", ".raw": "raw_f32", ".f32": "raw_f32", ".bin": "raw_f32"}
_NUMPY_MAGIC = b"\x93NUMPY"


class Format(StrEnum):
    """The formats of files of vectors."""

    NPY = "npy"
    FVECS = "fvecs"
    RAW_F32 = "raw_f32"

    @classmethod
    def named(cls, name: object) -> Format:
        """The format of that name.

        Raises:
            ConfigurationError: There is none.
        """
        if name in {one.value for one in cls}:
            return cls(str(name))
        raise ConfigurationError(f"the format is {name!r}.", remediation=f"Choose one of {', '.join(cls)}.")


class Vectors:
    """Vectors in a file or an array, read in parts.

    Args:
        name: What they are called in errors.
        rows: How many there are.
        dimension: Numbers in each.
        format: Of the file; None for an array.
        take: Gives the rows from ``start`` to ``stop``, of any numeric type.
    """

    def __init__(
        self, name: str, rows: int, dimension: int, format: Format | None, take: Callable[[int, int], NDArray[Any]]
    ) -> None:
        self.name = name
        self.rows = rows
        self.dimension = dimension
        self.format = format
        self._take = take

    def read(self, start: int, stop: int) -> Floats:
        """Rows as float32.

        Raises:
            ValidationError: A number is NaN or infinite, or a row is not what it should be.
        """
        return as_matrix(self._take(start, stop), self.dimension, self.name, start)


def _rows_at_a_time(dimension: int) -> int:
    """How many vectors to handle together: 64 MiB of float32."""
    return max(1, (1 << 24) // dimension)


def vectors_of(
    source: Any, what: str, dimension: int | None = None, format: str | None = None, *, one_is_enough: bool = False
) -> Vectors:
    """Vectors from a file or an array.

    Args:
        source: The path of a file, or a matrix.
        what: What they are, for errors.
        dimension: What it must be. A raw file does not say it, and needs it.
        format: Of the file; by default its suffix tells, or its first bytes.
        one_is_enough: A single vector, of one axis, counts as one row.

    Raises:
        ValidationError: There is no such file, it is cut short, or it is not what its name says.
        DimensionMismatchError: The dimension is another.
        ConfigurationError: The format or the dimension is unknown.
    """
    if dimension is not None:
        check_dimension(dimension)
    if isinstance(source, str | Path) or hasattr(source, "__fspath__"):
        return _file(source, what, dimension, format, one_is_enough)
    try:
        array = np.asarray(source)
    except ValueError as error:
        raise ValidationError(f"{what}: {error}.", remediation="Give rows of equal length.") from None
    return _array(array, what, dimension, None, one_is_enough)


def format_of_name(path: Name, what: str = "the output") -> Format:
    """The format that the suffix of a file names.

    Raises:
        ConfigurationError: It names none.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _SUFFIXES:
        return Format(_SUFFIXES[suffix])
    raise ConfigurationError(
        f"{what}: the suffix of {os.fspath(path)} does not tell its format.",
        remediation=f"Name the format, one of {', '.join(Format)}, or use one of the suffixes {', '.join(_SUFFIXES)}.",
    )


def convert_to(file: BinaryIO, vectors: Vectors, format: Format, progress: Callable[[int, int], object]) -> None:
    """Write vectors in another format.

    Args:
        file: Where to; empty.
        vectors: What to write.
        format: How.
        progress: Called with the rows written and their number.

    Raises:
        ValidationError: A number is NaN or infinite.
    """
    if format is Format.NPY:
        head: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (vectors.rows, vectors.dimension)}
        np.lib.format.write_array_header_1_0(file, head)
    for start, rows in parts(vectors):
        if format is Format.FVECS:
            head_column = np.full((len(rows), 1), vectors.dimension, "<i4").view("<f4")
            rows = np.concatenate([head_column, rows.astype("<f4", copy=False)], axis=1)
        file.write(rows.astype("<f4", copy=False).tobytes())
        progress(start + len(rows), vectors.rows)


def parts(vectors: Vectors) -> Iterator[tuple[int, Floats]]:
    """All vectors, some at a time, with the number of the first."""
    step = _rows_at_a_time(vectors.dimension)
    for start in range(0, vectors.rows, step):
        yield start, vectors.read(start, min(start + step, vectors.rows))


def read_integers(path: Name, what: str) -> NDArray[Any]:
    """Integers from a file: ids, or the true neighbours of queries.

    Args:
        path: ``.npy`` of any integer type; ``.ivecs``, rows like those of fvecs with int32 (a matrix); ``.txt``, one on
            a line; ``.u64``, raw uint64.
        what: What they are, for errors.

    Raises:
        ValidationError: There is no such file, or it is not what its name says.
    """
    suffix = Path(path).suffix.lower()
    with open_regular(path, what) as file:
        if suffix == ".npy":
            array = _numpy(file, path, what)
            if array.dtype.kind not in "iu":
                raise ValidationError(
                    f"{what}: {path} has numbers of type {array.dtype}.", remediation="Give a file of integers."
                )
            return array
        data = file.read()
    if suffix == ".ivecs":
        return _vecs(np.frombuffer(data, np.uint8), path, what, None, "<i4")(0, -1)
    if suffix == ".txt":
        return _listed(data, path, what)
    if suffix == ".u64":
        if len(data) % 8:
            raise ValidationError(
                f"{what}: {path} has {len(data):,} bytes, no multiple of 8.",
                remediation="Write uint64, 8 bytes for each.",
            )
        return np.frombuffer(data, "<u8")
    raise ValidationError(
        f"{what}: the suffix of {path} does not tell what it is.",
        remediation="Use .npy, .ivecs, .txt (one integer on a line) or .u64 (raw uint64).",
    )


def _listed(data: bytes, path: Name, what: str) -> NDArray[Any]:
    """The integers of a text file, one on a line."""
    numbers: list[int] = []
    for line in data.split():
        try:
            numbers.append(int(line.decode("ascii")))
        except ValueError:
            number = None
        else:
            number = numbers[-1]
        if number is None or not -(1 << 63) <= number < 1 << 64:
            raise ValidationError(
                f"{what}: {path} has {shown(line.decode(errors='replace'))}.",
                remediation="Write one integer on a line, from 0 to 2^64 - 1.",
            )
    return np.array(numbers, dtype=np.int64 if any(one < 0 for one in numbers) else np.uint64)


def _array(
    array: NDArray[Any], what: str, dimension: int | None, format: Format | None, one_is_enough: bool
) -> Vectors:
    if array.dtype.kind not in "fiu":
        raise ValidationError(f"{what}: the type of the numbers is {array.dtype}.", remediation="Give real numbers.")
    if array.ndim == 1 and one_is_enough:
        array = array[np.newaxis]
    if array.ndim != 2:
        raise ValidationError(
            f"{what}: the shape is {array.shape}.", remediation="Give a matrix, one row for each vector."
        )
    rows, found = array.shape
    _fits(what, found, dimension)
    return Vectors(what, rows, found, format, lambda start, stop: array[start:stop])


def _file(path: Name, what: str, dimension: int | None, format: str | None, one_is_enough: bool) -> Vectors:
    named = f"{what} {path}"
    with open_regular(path, what) as file:
        kind = Format.named(format) if format is not None else _format_of(file, path, what)
        if kind is Format.NPY:
            return _array(_numpy(file, path, what), named, dimension, kind, one_is_enough)
        data = _mapped(file)
    if bytes(data[: len(_NUMPY_MAGIC)]) == _NUMPY_MAGIC:
        raise ValidationError(
            f"{what}: {path} is a .npy file, not {kind}.", remediation="Give it that suffix, or the format npy."
        )
    if kind is Format.FVECS:
        take = _vecs(data, path, what, dimension, "<f4")
        found = int(data[:4].view("<i4")[0]) if len(data) else dimension or 1
        return Vectors(named, len(data) // (4 * found + 4), found, kind, take)
    if dimension is None:
        raise ConfigurationError(
            f"{what}: {path} is a raw file, which does not say how many numbers a vector has.",
            remediation="Give the dimension.",
        )
    if len(data) % (4 * dimension):
        raise ValidationError(
            f"{what}: {path} has {len(data):,} bytes, no multiple of the {4 * dimension:,} of a vector of "
            f"{dimension:,} float32.",
            remediation="Check the dimension, and whether the file was cut short.",
        )
    matrix = data.view("<f4").reshape(-1, dimension)
    return Vectors(named, len(matrix), dimension, kind, lambda start, stop: matrix[start:stop])


def _format_of(file: BinaryIO, path: Name, what: str) -> Format:
    if Path(path).suffix.lower() not in _SUFFIXES:
        magic = file.read(len(_NUMPY_MAGIC))
        file.seek(0)
        if magic == _NUMPY_MAGIC:
            return Format.NPY
    return format_of_name(path, what)


def _numpy(file: BinaryIO, path: Name, what: str) -> NDArray[Any]:
    """The array of a .npy file, as a view of it. Pickled objects are code, and are refused."""

    def refused(why: object) -> ValidationError:
        return ValidationError(
            f"{what}: {path} is not a whole .npy file: {why}.",
            remediation="Write it again with numpy.save, or name its real format.",
        )

    # The header is read from a copy of its first bytes: a wrong length in it must not make NumPy read gigabytes.
    head = io.BytesIO(file.read(1 << 16))
    try:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"version {version[0]}.{version[1]}")
        shape, by_columns, dtype = read[version](head)
    except (ValueError, EOFError, struct.error) as error:
        raise refused(str(error).partition("\n")[0].rstrip(".")) from None
    except Exception:  # whatever NumPy's parser says of a header that is no Python literal
        raise refused("its header cannot be read") from None
    if any(type(size) is not int or not 0 <= size < 1 << 62 for size in shape):
        raise refused(f"it announces the shape {shape!r:.60}")
    if dtype.hasobject or dtype.kind not in "fiu":
        raise ValidationError(
            f"{what}: {path} has values of the type {dtype}.", remediation="Save real numbers, such as float32."
        )
    data = _mapped(file)[head.tell() :]
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise refused(f"it has {len(data):,} bytes of data, and {size:,} are announced")
    return data.view(dtype).reshape(shape, order="F" if by_columns else "C")


def _vecs(
    data: NDArray[np.uint8], path: Name, what: str, dimension: int | None, dtype: str
) -> Callable[[int, int], NDArray[Any]]:
    def refused(why: str) -> ValidationError:
        return ValidationError(
            f"{what}: {path} is not a whole file of vectors with their dimensions: {why}.",
            remediation="Check where it comes from, or name its real format.",
        )

    if len(data) == 0:
        return lambda start, stop: np.empty((0, dimension or 1), dtype)
    if len(data) < 4:
        raise refused(f"it has {len(data)} bytes")
    found = int(data[:4].view("<i4")[0])
    if not 1 <= found <= MAX_DIMENSION:
        raise refused(f"the first vector announces {found:,} numbers")
    _fits(f"{what} {path}", found, dimension)
    if len(data) % (4 * found + 4):
        raise refused(f"{len(data):,} bytes are no multiple of the {4 * found + 4:,} of a vector of {found:,} numbers")
    matrix = data.view("<i4").reshape(-1, found + 1)

    def take(start: int, stop: int) -> NDArray[Any]:
        rows = matrix[start:] if stop < 0 else matrix[start:stop]
        wrong = np.flatnonzero(rows[:, 0] != found)
        if wrong.size:
            row = int(wrong[0])
            raise refused(f"vector {start + row:,} announces {rows[row, 0]:,} numbers, the first {found:,}")
        return rows[:, 1:].view(dtype) if dtype == "<i4" else np.ascontiguousarray(rows[:, 1:]).view(dtype)

    return take


def _fits(what: str, found: int, dimension: int | None) -> None:
    if dimension is not None and found != dimension:
        raise DimensionMismatchError(
            f"{what}: the vectors have {found:,} dimensions where {dimension:,} are expected.",
            remediation=f"Give vectors of {dimension:,} numbers.",
            details={"expected": dimension, "actual": found},
        )
    if not 1 <= found <= MAX_DIMENSION:
        raise ValidationError(
            f"{what}: the vectors have {found:,} dimensions.", remediation=f"1 to {MAX_DIMENSION:,} are possible."
        )


def _mapped(file: BinaryIO) -> NDArray[np.uint8]:
    size = file.seek(0, 2)
    if size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
