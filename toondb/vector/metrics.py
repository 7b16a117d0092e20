"""What near means: the metrics, how vectors are stored for them, and the limits of an index.

A cosine index stores unit vectors and searches by their squared Euclidean distance, because for unit vectors
``|a - b|² = 2 (1 - cos)``. Unlike ``1 - a·b`` it is exactly 0 for equal vectors, and never negative.
"""

from __future__ import annotations

import operator
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ConfigurationError, DimensionMismatchError, ValidationError

__all__ = [
    "DEFAULT_EF_CONSTRUCTION",
    "DEFAULT_EF_SEARCH",
    "DEFAULT_M",
    "MAX_DIMENSION",
    "MAX_EF",
    "MAX_M",
    "Floats",
    "Labels",
    "Metric",
    "as_matrix",
    "as_vector",
    "check_dimension",
    "count",
    "stored",
    "stored_vector",
]

MAX_DIMENSION = 65_536
MAX_M = 512
MAX_EF = 1_000_000
DEFAULT_M = 16
DEFAULT_EF_CONSTRUCTION = 100
DEFAULT_EF_SEARCH = 64
MAX_NORM = 1e18
"""Of a longer vector the squared distance can be more than a float32 holds."""
MIN_NORM = 1e-18
"""Of a shorter vector the square cannot be told from 0 in float32: its norm is taken in float64."""

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class Metric(StrEnum):
    """How the distance of two vectors is measured; lower is nearer for all of them.

    Members:
        COSINE: 1 - cos of the angle, 0 to 2.
        EUCLIDEAN: The length of the difference (not its square).
        DOT_PRODUCT: The negated inner product.
    """

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT_PRODUCT = "dot_product"

    @classmethod
    def named(cls, name: object) -> Metric:
        """The metric of that name.

        Raises:
            ConfigurationError: There is none.
        """
        found = _NAMED.get(name) if isinstance(name, str) else None
        if found is not None:
            return found
        raise ConfigurationError(f"metric is {_short(name)}.", remediation=f"Choose one of {', '.join(cls)}.")

    def distances(self, raw: Floats) -> Floats:
        """Distances from what the index computed: squared lengths, or inner products."""
        if self is Metric.DOT_PRODUCT:
            return -raw
        squares: Floats = np.maximum(raw, np.float32(0))
        return squares * np.float32(0.5) if self is Metric.COSINE else np.sqrt(squares)


_NAMED: dict[str, Metric] = {metric.value: metric for metric in Metric}


def count(name: str, value: object, low: int, high: int) -> int:
    """An integer option within its bounds.

    Raises:
        ConfigurationError: It is not an integer, or out of bounds.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigurationError(
            f"{name} is {_short(value)}, which is no integer.", remediation=f"Give an integer from {low:,} to {high:,}."
        ) from None
    if not low <= number <= high:
        raise ConfigurationError(
            f"{name} is {_whole(number)}.", remediation=f"Give an integer from {low:,} to {high:,}."
        )
    return number


def check_dimension(value: object) -> int:
    """The number of dimensions of an index.

    Raises:
        ConfigurationError: It is not an integer from 1 to :data:`MAX_DIMENSION`.
    """
    return count("dimension", value, 1, MAX_DIMENSION)


def as_vector(value: Any, dimension: int, what: str = "the vector") -> Floats:
    """One vector as a matrix of one row.

    Args:
        value: An array or sequence of numbers, shape ``(dimension,)``.
        dimension: The dimension of the index.
        what: Its name in errors.

    Raises:
        DimensionMismatchError: It has another number of dimensions.
        ValidationError: It is not one vector of finite numbers.
    """
    array = _array(value, what)
    if array.ndim != 1:
        raise ValidationError(
            f"{what} has the shape {array.shape}.",
            remediation=f"Give one vector of shape ({dimension},); several go into the batch form of the call.",
        )
    return as_matrix(array[np.newaxis], dimension, what)


def stored_vector(value: Any, dimension: int, metric: Metric, what: str = "the vector") -> Floats:
    """One vector in the form in which an index stores it: :func:`as_vector` and :func:`stored`, and their errors.

    Args:
        value: An array or sequence of numbers, shape ``(dimension,)``.
        dimension: The dimension of the index.
        metric: The metric of the index.
        what: Its name in errors.
    """
    # What almost all vectors are, without the general case: a search takes hardly longer than the checks.
    if type(value) is np.ndarray and value.shape == (dimension,) and value.dtype == np.float32:
        row: Floats = np.ascontiguousarray(value)
        square = np.einsum("i,i->", row, row)  # rounded as in stored(): equal vectors stay equal
        if MIN_NORM * MIN_NORM <= square <= MAX_NORM * MAX_NORM:  # which NaN is not, nor infinity
            return (row / np.sqrt(square) if metric is Metric.COSINE else row)[np.newaxis]
    return stored(as_vector(value, dimension, what), metric, what)


def as_matrix(value: Any, dimension: int, what: str = "the vectors", first: int = 0) -> Floats:
    """Vectors as a C-contiguous float32 matrix, one row for each; a copy only when one is needed.

    Args:
        value: An array or sequence of sequences of numbers, shape ``(n, dimension)``. Wider types are rounded.
        dimension: The dimension of the index.
        what: Their name in errors.
        first: The number that the first row has in errors.

    Raises:
        DimensionMismatchError: They have another number of dimensions.
        ValidationError: They are not a matrix of finite float32 numbers.
    """
    array = _array(value, what)
    if array.ndim == 1 and array.size == 0:
        array = array.reshape(0, dimension)
    if array.ndim != 2:
        raise ValidationError(
            f"{what}: an array of the shape {array.shape}.", remediation=f"Give a matrix of shape (n, {dimension})."
        )
    if array.shape[1] != dimension:
        raise DimensionMismatchError(
            f"{what}: {array.shape[1]:,} dimensions where the index has {dimension:,}.",
            remediation=f"Give vectors of {dimension:,} numbers.",
            details={"expected": dimension, "actual": array.shape[1]},
        )
    with np.errstate(over="ignore"):  # to infinity, which is refused below
        rows: Floats = np.ascontiguousarray(array, dtype=np.float32)
    # One pass without a temporary matrix: a sum is finite only if all of it is. It may also overflow by itself.
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = np.flatnonzero(~np.isfinite(np.einsum("ij->i", rows)))
    for row in suspect.tolist():
        wrong = np.flatnonzero(~np.isfinite(rows[row]))
        if wrong.size:
            place = int(wrong[0])
            raise ValidationError(
                f"{_row(what, first + row, len(rows))} has {array[row, place]} at place {place}.",
                remediation="Give finite numbers within the range of float32.",
            )
    return rows


def stored(rows: Floats, metric: Metric, what: str = "the vectors", first: int = 0) -> Floats:
    """Rows in the form in which an index of this metric stores them and is asked.

    Args:
        rows: From :func:`as_matrix`.
        metric: The metric of the index; for cosine each row is scaled to length 1.
        what: Their name in errors.
        first: The number that the first row has in errors.

    Raises:
        ValidationError: A vector has length 0, which has no angle, or is too long for distances in float32.
    """
    squares = np.einsum("ij,ij->i", rows, rows)  # gives no warnings, when it overflows either
    norms: NDArray[Any] = np.sqrt(squares)
    if len(rows) and norms.min() >= MIN_NORM and norms.max() <= MAX_NORM:
        return rows / norms[:, np.newaxis] if metric is Metric.COSINE else rows
    extreme = np.flatnonzero(~((norms >= MIN_NORM) & (norms <= MAX_NORM)))
    if extreme.size:
        norms = norms.astype(np.float64)
        norms[extreme] = np.sqrt(np.einsum("ij,ij->i", rows[extreme], rows[extreme], dtype=np.float64))
        long = extreme[norms[extreme] > MAX_NORM]
        if metric is Metric.COSINE:
            zero = extreme[norms[extreme] == 0]
            if zero.size:
                raise ValidationError(
                    f"{_row(what, first + int(zero[0]), len(rows))} has length 0, so it has no angle.",
                    remediation="Leave it out, or use the metric euclidean or dot_product.",
                )
        elif long.size:
            raise ValidationError(
                f"{_row(what, first + int(long[0]), len(rows))} has length {norms[long[0]]:.3g}.",
                remediation=f"Give vectors of length {MAX_NORM:g} at the most: "
                "distances of longer ones do not fit in float32.",
            )
    if metric is not Metric.COSINE:
        return rows
    result: Floats = np.divide(rows, norms[:, np.newaxis]).astype(np.float32, copy=False)
    return result


def _array(value: Any, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):  # rows of different lengths, for example
        array = None
    if array is None or array.dtype.kind not in "fiu":
        kind = "" if array is None else f" of type {array.dtype}"
        raise ValidationError(
            f"{what}: {_short(value)} is no array of numbers{kind}.",
            remediation="Give numbers, in rows of equal length.",
        )
    return array


def _row(what: str, row: int, rows: int) -> str:
    return what if rows == 1 and row == 0 else f"{what}: row {row:,}"


def _whole(number: int) -> str:
    # Python refuses to write very long ones in decimal.
    return f"{number:,}" if number.bit_length() <= 256 else shown(number)


def _short(value: object) -> str:
    text = shown(value) if isinstance(value, int) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
