"""The arguments of an operation, checked: they may come from another process, which may be of any kind."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from toondb.filters import Predicate, compile_filter
from toondb_protocol.arguments import shown, text
from toondb_protocol.collections import check_id, given_metadata
from toondb_protocol.errors import DimensionMismatchError, ValidationError
from toondb_protocol.search import check_name
from toondb_protocol.vectors import MAX_DIMENSION

from .field_index import Required, required_by

__all__ = ["Filter", "Given", "Vectors"]

MAX_K = 100_000
MAX_EF = 1_000_000
_FLOAT_SIZE = 4


class Filter(NamedTuple):
    """A filter over metadata.

    Attributes:
        key: The same for the same filter.
        matches: Whether metadata meets it.
        required: What it demands by equality.
    """

    key: bytes
    matches: Predicate
    required: Required = Required({}, alone=False)


class Vectors(NamedTuple):
    """Vectors of one dimension, a row for each."""

    rows: NDArray[np.float32]

    @property
    def dimension(self) -> int:
        """Numbers in each."""
        return int(self.rows.shape[1])


class Given:
    """The arguments of one operation.

    Args:
        arguments: As they came.
        names: What they may be called, in order.

    Raises:
        ValidationError: They are no map, or one is unknown.
    """

    def __init__(self, arguments: object, names: dict[str, None]) -> None:
        if not isinstance(arguments, Mapping):
            raise ValidationError(f"the arguments of an operation are a map, got {shown(arguments)}.")
        if not arguments.keys() <= names.keys():
            unknown = next(name for name in arguments if name not in names)
            raise ValidationError(f"the argument {shown(unknown)} is unknown; known: {', '.join(names)}.")
        self._arguments = arguments

    def get(self, name: str) -> Any:
        """An argument as it came, None when it did not."""
        return self._arguments.get(name)

    def name(self, what: str = "namespace", argument: str = "namespace") -> str:
        """The name of a namespace or collection."""
        return check_name(what, self.get(argument))

    def text_or_none(self, name: str) -> str | None:
        """A text, if there is one."""
        value = self.get(name)
        return None if value is None else text(name, value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ValidationError(f"{name} is True or False, got {shown(value)}.")
        return value

    def number(self, name: str, most: int, default: int | None = None) -> int:
        """A whole number of 1 to ``most``."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValidationError(f"{name} is a number of 1 to {most}, got {shown(value)}.")
        return value

    def real(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number within bounds."""
        value = self.get(name)
        if value is None:
            return default
        return real(name, value, low, high)

    def listed(self, name: str) -> list[Any]:
        """An array."""
        value = self.get(name)
        if not isinstance(value, (list, tuple)):
            raise ValidationError(f"{name} is a list, got {shown(value)}.")
        return list(value)

    def ids(self) -> list[str]:
        """The ids of documents, each once."""
        ids = [check_id(id) for id in self.listed("ids")]
        if len(set(ids)) != len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise ValidationError(f"the id {shown(twice)} comes twice.")
        return ids

    def metadatas(self, count: int) -> list[dict[str, Any]]:
        """The metadata of documents."""
        return [given_metadata(one) for one in self._each("metadatas", count)]

    def contents(self, count: int) -> list[str | None]:
        """The texts of documents."""
        return [None if one is None else text("content", one) for one in self._each("contents", count)]

    def _each(self, name: str, count: int) -> list[Any]:
        found = self.listed(name)
        if len(found) != count:
            raise ValidationError(f"there are {count} documents and {len(found)} {name}.")
        return found

    def vectors(self, count: int, dimension: object) -> Vectors | None:
        """So many vectors, or none at all."""
        data = self.get("vectors")
        if data is None:
            return None
        if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= MAX_DIMENSION:
            raise ValidationError(f"dimension is a number of 1 to {MAX_DIMENSION}, got {shown(dimension)}.")
        return Vectors(_rows("vectors", data, count, dimension))

    def vector(self) -> Vectors | None:
        """One vector, of the length that it has; None when there is none. Whoever compares it looks at its numbers."""
        data = self.get("vector")
        if data is None:
            return None
        size = len(data) if isinstance(data, (bytes, bytearray, memoryview)) else 0
        dimension = size // _FLOAT_SIZE
        if not 1 <= dimension <= MAX_DIMENSION:
            raise ValidationError(f"a vector has 1 to {MAX_DIMENSION} numbers of 4 bytes, got {shown(data)}.")
        if size != dimension * _FLOAT_SIZE:
            raise DimensionMismatchError(
                f"the query vector: {size} bytes are no numbers of 4 bytes.",
                details={"expected": dimension * _FLOAT_SIZE, "actual": size},
            )
        return Vectors(np.frombuffer(data, dtype="<f4").reshape(1, dimension))

    def names(self) -> list[str]:
        """The names of several vectors."""
        names = [text("the name of a vector", name) for name in self.listed("names")]
        if not names or "" in names:
            raise ValidationError("a document of several vectors has one at the least, and each has a name.")
        if len(set(names)) != len(names):
            raise ValidationError("the name of a vector comes twice.")
        if len(names) > MAX_NAMED:
            raise ValidationError(f"there are {len(names)} vectors with names, {MAX_NAMED} are allowed.")
        return names

    def filter(self) -> Filter | None:
        """The filter, None when there is none."""
        value = self.get("filter")
        if value is None:
            return None
        matches = compile_filter(value)
        return Filter(_key_of(value), matches, required_by(value))


MAX_NAMED = 1024
"""Vectors of one document at the most."""


def real(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bounds = "" if math.isinf(high) else f" of {low:g} to {high:g}"
        raise ValidationError(f"{name} is a number{bounds}, got {shown(value)}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValidationError(f"{name} is a finite number, got {shown(value)}.")
    return number


def _rows(what: str, data: object, count: int, dimension: int) -> NDArray[np.float32]:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ValidationError(f"{what} are bytes of float32, little-endian, got {shown(data)}.")
    if len(data) != count * dimension * _FLOAT_SIZE:
        raise DimensionMismatchError(
            f"{what}: {len(data)} bytes are not {count} times {dimension} numbers of 4 bytes.",
            details={"expected": count * dimension * _FLOAT_SIZE, "actual": len(data)},
        )
    rows = np.frombuffer(data, dtype="<f4").reshape(count, dimension)
    if not np.isfinite(rows).all():
        row, at = (int(index[0]) for index in np.nonzero(~np.isfinite(rows)))
        raise ValidationError(f"{what}: vector {row} holds {rows[row, at]} at {at}; numbers must be finite.")
    return rows


def _key_of(value: Mapping[str, Any]) -> bytes:
    """The same bytes for the same filter. The order of names is kept: it is the order in which they are tested."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True, default=_listed)
    except (TypeError, ValueError, OverflowError, RecursionError):
        packed = repr(value).encode(errors="surrogatepass")
    return packed


def _listed(value: object) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return dict(value)
    return json.loads(json.dumps(value))
