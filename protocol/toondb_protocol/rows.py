"""Rows of a scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, SupportsIndex, overload

from .errors import ProtocolError

__all__ = ["Row", "pair_rows"]


class Row(tuple[bytes, bytes]):
    """A ``(key, value)`` tuple that also answers ``row["key"]`` and ``row["value"]``."""

    __slots__ = ()

    @property
    def key(self) -> bytes:
        """The key."""
        return tuple.__getitem__(self, 0)

    @property
    def value(self) -> bytes:
        """The value."""
        return tuple.__getitem__(self, 1)

    @overload
    def __getitem__(self, index: Literal["key", "value"] | SupportsIndex, /) -> bytes: ...
    @overload
    def __getitem__(self, index: slice, /) -> tuple[bytes, ...]: ...
    def __getitem__(self, index: Any, /) -> Any:
        if index == "key":
            return tuple.__getitem__(self, 0)
        if index == "value":
            return tuple.__getitem__(self, 1)
        return tuple.__getitem__(self, index)


def pair_rows(flat: list[bytes]) -> Iterator[Row]:
    """The rows of a flat list ``[key, value, key, value, ...]``."""
    if len(flat) % 2:
        raise ProtocolError("the server sent a key without a value")
    items = iter(flat)
    return map(Row, zip(items, items, strict=True))
