"""Vectors as callers write them, packed as float32 little-endian: the same in every mode, with or without NumPy."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from .arguments import shown
from .errors import DimensionMismatchError, ValidationError

__all__ = ["MAX_DIMENSION", "PackedVectors", "pack_vector", "pack_vectors", "unpack_vector"]

MAX_DIMENSION = 65_536
"""Numbers in a vector at the most."""

_FLOAT32 = "<f4"
_ALLOWED = "a list, tuple, array or NumPy array of finite numbers"


class PackedVectors(NamedTuple):
    """Vectors of one dimension.

    Attributes:
        data: All numbers, float32 little-endian, one vector after the other.
        vectors: How many.
        dimension: How many numbers in each.
    """

    data: bytes
    vectors: int
    dimension: int


def pack_vector(vector: Any, what: str = "the vector") -> PackedVectors:
    """One vector.

    Args:
        vector: A sequence of numbers, an ``array.array`` or a one-dimensional NumPy array.
        what: What it is called in an error.

    Raises:
        ValidationError: It is no vector, is empty or too long, or holds NaN, an infinity or what float32 cannot hold.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(vector, numpy.ndarray):
        if vector.ndim != 1:
            raise ValidationError(f"{what} has {vector.ndim} axes, a vector has one.")
        usual = type(vector) is numpy.ndarray and vector.dtype == _FLOAT32 and 1 <= len(vector) <= MAX_DIMENSION
        if usual and math.isfinite(numpy.vdot(vector, vector)):
            # The sum of squares is finite only if all numbers are. Little code: where client and server share a core,
            # all of it is cold at every call.
            return PackedVectors(vector.tobytes(), 1, len(vector))
        return _packed_rows(vector.reshape(1, -1), what)
    if isinstance(vector, (str, bytes, bytearray)) or not isinstance(vector, (Sequence, array, memoryview)):
        raise ValidationError(f"{what} is {_ALLOWED}, got {shown(vector)}.")
    _check_dimension(len(vector), what)
    data = _packed(vector, what)
    return PackedVectors(data, 1, len(vector))


def pack_vectors(vectors: Any, what: str = "the vectors") -> PackedVectors:
    """Several vectors of one dimension.

    Args:
        vectors: A sequence of vectors, or a two-dimensional NumPy array.
        what: What they are called in an error.

    Raises:
        DimensionMismatchError: One has another dimension than the first.
        ValidationError: See :func:`pack_vector`.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(vectors, numpy.ndarray):
        if vectors.ndim != 2:
            raise ValidationError(f"{what} have {vectors.ndim} axes, several vectors have two.")
        return _packed_rows(vectors, what)
    if isinstance(vectors, (str, bytes, bytearray)) or not isinstance(vectors, Sequence):
        raise ValidationError(f"{what} are a list of vectors or a NumPy array, got {shown(vectors)}.")
    parts: list[bytes] = []
    dimension = 0
    for at, vector in enumerate(vectors):
        one = pack_vector(vector, f"vector {at} of {what}")
        if at and one.dimension != dimension:
            raise DimensionMismatchError(
                f"vector {at} of {what} has {one.dimension} numbers, the first one {dimension}.",
                details={"expected": dimension, "actual": one.dimension},
            )
        dimension = one.dimension
        parts.append(one.data)
    return PackedVectors(b"".join(parts), len(parts), dimension)


def _check_dimension(dimension: int, what: str) -> None:
    if not 1 <= dimension <= MAX_DIMENSION:
        raise ValidationError(f"{what} has {dimension} numbers, 1 to {MAX_DIMENSION} are allowed.")


def _packed(vector: Any, what: str) -> bytes:
    try:
        packed = array("f", vector)
    except (TypeError, ValueError):
        raise ValidationError(f"{what} is {_ALLOWED}, got {shown(vector)}.") from None
    except OverflowError:
        raise ValidationError(f"{what} holds a number that no float32 can hold.") from None
    if not all(map(math.isfinite, packed)):
        at = next(at for at, number in enumerate(packed) if not math.isfinite(number))
        raise ValidationError(f"{what} holds {vector[at]!r} at {at}; its numbers must be finite as float32.")
    if sys.byteorder != "little":
        packed.byteswap()
    return packed.tobytes()


def _packed_rows(rows: Any, what: str) -> PackedVectors:
    numpy = sys.modules["numpy"]
    count, dimension = rows.shape
    _check_dimension(dimension, what)
    if rows.dtype.kind not in "fiub":
        raise ValidationError(f"{what} is {_ALLOWED}, got an array of {rows.dtype}.")
    with numpy.errstate(over="ignore"):
        packed = numpy.ascontiguousarray(rows, dtype=_FLOAT32)
    if not numpy.isfinite(packed).all():
        row, at = (int(index[0]) for index in numpy.nonzero(~numpy.isfinite(packed)))
        raise ValidationError(
            f"{what} holds {rows[row, at]!r} at {at}{f' of vector {row}' if count > 1 else ''}; "
            "its numbers must be finite as float32."
        )
    return PackedVectors(packed.tobytes(), count, dimension)


def unpack_vector(data: bytes) -> list[float]:
    """The numbers of one packed vector."""
    unpacked = array("f")
    unpacked.frombytes(data)
    if sys.byteorder != "little":
        unpacked.byteswap()
    return unpacked.tolist()
