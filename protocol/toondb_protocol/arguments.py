"""What callers pass: checks and conversions that are the same in every mode."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from .errors import ValidationError
from .keys import BytesLike, KeyLike, as_bound, as_key, as_prefix, as_value, prefix_end
from .record import MAX_KEY_SIZE

__all__ = [
    "ISOLATIONS",
    "MAX_INTEGER",
    "MIN_INTEGER",
    "Items",
    "ScanRange",
    "answer_by_given",
    "check_isolation",
    "given_keys",
    "integer",
    "ms_or_none",
    "new_ttl_ms",
    "pairs",
    "pairs_as_dict",
    "plain_number",
    "scan_range",
    "sendable_filter",
    "several",
    "shown",
    "text",
    "ttl_to_ms",
    "value_or_none",
    "wait_seconds",
    "whole_number",
]

Items: TypeAlias = Mapping[Any, BytesLike] | Iterable[tuple[KeyLike, BytesLike]]
"""What ``put_many`` takes: a mapping, or pairs of key and value."""

ISOLATIONS = ("snapshot", "serializable")

MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 63) - 1
"""What a counter can hold: a signed 64-bit integer, so that a client in any language can."""

_MOST = 1 << 62
_MOST_FILTER_LEVELS = 48
_PLAIN = (int, float, bool, str, type(None), dict, list)
_MOST_TTL_MS = 1 << 52
_MOST_WAIT_SECONDS = 1e12


def shown(value: object) -> str:
    """A value in a message, in 60 characters at the most."""
    if isinstance(value, int) and value.bit_length() > 256:
        # Python refuses to write very long ones in decimal.
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.60}"


def plain_number(value: Any) -> Any:
    """A single number of NumPy (or of a library alike) as Python's own; anything else as it is."""
    if type(value) in _PLAIN:
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "dtype") and hasattr(value, "item"):
        item = value.item()
        return item if isinstance(item, (bool, int, float)) else value
    return value


def whole_number(name: str, value: int, least: int = 0) -> int:
    """``value`` when it is a number of ``least`` or more; more than any database holds is cut to what fits a frame.

    Raises:
        ValidationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValidationError(f"{name} must be a number of {least} or more, got {shown(value)}.")
    return min(value, _MOST)


def integer(name: str, value: int) -> int:
    """``value`` when it is a signed 64-bit integer.

    Raises:
        ValidationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_INTEGER <= value <= MAX_INTEGER:
        raise ValidationError(f"{name} must be an integer of 64 bits, got {shown(value)}.")
    return value


def text(what: str, value: object) -> str:
    """``value`` when it is text that UTF-8 can carry.

    Raises:
        ValidationError: It is not.
    """
    if not isinstance(value, str):
        raise ValidationError(f"{what} is text, got {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationError(f"{what} {value!r} is not valid Unicode text.") from None
    return value


def ttl_to_ms(ttl: float) -> int:
    """A time to live in whole milliseconds, at least 1.

    Args:
        ttl: Seconds, more than 0.

    Raises:
        ValidationError: It is not a positive, finite number.
    """
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl < math.inf:
        raise ValidationError(f"ttl must be a positive number of seconds, got {shown(ttl)}.")
    # Cut before it is rounded: a thousandfold of the largest floats is infinite.
    return max(1, math.ceil(min(_MOST_TTL_MS, ttl * 1000)))


def ms_or_none(ttl: float | None) -> int | None:
    """A time to live in whole milliseconds, when there is one; see :func:`ttl_to_ms`."""
    return None if ttl is None else ttl_to_ms(ttl)


def value_or_none(value: BytesLike | None) -> bytes | None:
    """A value as bytes, when there is one."""
    return None if value is None else as_value(value)


def new_ttl_ms(new: object, ttl: float | None) -> int | None:
    """The time to live of what ``compare_and_set`` stores, in milliseconds, when there is one.

    Raises:
        ValidationError: See :func:`ttl_to_ms`; also when nothing is stored that could expire.
    """
    if ttl is None:
        return None
    if new is None:
        raise ValidationError(
            "ttl goes with a new value, and new is None, which deletes the key.", remediation="Leave ttl out."
        )
    return ttl_to_ms(ttl)


def wait_seconds(timeout: float | None) -> float | None:
    """How long a watch waits for the next change; None = for ever.

    Raises:
        ValidationError: It is not a number of 0 or more.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ValidationError(f"timeout must be a number of seconds, 0 or more, got {shown(timeout)}.")
    return None if timeout > _MOST_WAIT_SECONDS else float(timeout)


def check_isolation(isolation: str) -> str:
    """``isolation`` as plain text when it is known.

    Raises:
        ValidationError: It is not; the message lists what is.
    """
    if isolation not in ISOLATIONS:
        raise ValidationError(f"isolation {isolation!r} is unknown; known: {', '.join(ISOLATIONS)}.")
    return str(isolation)


# Collections of keys and pairs


def several(what: str, items: object) -> Iterable[Any]:
    """``items`` when it is a collection; a single key must not be taken for a collection of its characters."""
    if isinstance(items, (str, bytes, bytearray, memoryview)) or not isinstance(items, Iterable):
        raise ValidationError(f"{what} must be a collection, not {type(items).__name__}.")
    return items


def given_keys(keys: Iterable[KeyLike]) -> list[tuple[bytes, Any]]:
    """Each key as bytes and as the caller wrote it (bytes, when that cannot be a key of a dict)."""
    return [
        (name, name if isinstance(key, (bytearray, memoryview)) else key)
        for key in several("keys", keys)
        for name in (as_key(key),)
    ]


def answer_by_given(given: list[tuple[bytes, Any]], found: Mapping[bytes, bytes]) -> dict[Any, bytes]:
    """The values found, by the key as the caller wrote it, in the caller's order."""
    return {key: found[name] for name, key in given if name in found}


def pairs(items: Items, as_key: Callable[[KeyLike], bytes] = as_key) -> list[tuple[bytes, bytes]]:
    """The pairs of ``put_many`` as bytes.

    Args:
        items: A mapping or pairs.
        as_key: Checks a key and makes it bytes.

    Raises:
        ValidationError: Something is not a pair of key and value.
    """
    rows = several("items", items.items() if isinstance(items, Mapping) else items)
    out: list[tuple[bytes, bytes]] = []
    for row in rows:
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise ValidationError(f"an item is a pair of key and value, got {type(row).__name__}.")
        out.append((as_key(row[0]), as_value(row[1])))
    return out


def pairs_as_dict(items: Items) -> tuple[dict[bytes, bytes], int]:
    """The last value of each key of ``put_many``, and how many pairs there were.

    Raises:
        ValidationError: Something is not a pair of key and value.
    """
    given: dict[Any, Any] | list[Any]
    if isinstance(items, Mapping):
        given = items if isinstance(items, dict) else dict(items)
    else:
        given = items if isinstance(items, list) else list(several("items", items))
    # The usual case of a bulk load is checked without Python code for each item. To dict() a set of two is a pair, too.
    plain = isinstance(given, dict) or all(issubclass(kind, (tuple, list)) for kind in set(map(type, given)))
    with contextlib.suppress(TypeError, ValueError):
        found: dict[Any, Any] = dict(given) if plain else {}
        if set(map(type, found)) == set(map(type, found.values())) == {bytes}:
            sizes = set(map(len, found))
            if min(sizes) > 0 and max(sizes) <= MAX_KEY_SIZE:
                return found, len(given)
    rows = pairs(given)
    return dict(rows), len(rows)


# Filters


def sendable_filter(value: Any, levels: int = _MOST_FILTER_LEVELS) -> Any:
    """A copy of a condition, made of what every mode can carry; what it means is checked where it is run."""
    value = plain_number(value)
    if value is None or isinstance(value, (bool, float, bytes)):
        return value
    if isinstance(value, int):
        if not MIN_INTEGER <= value < 1 << 64:
            raise ValidationError(f"a filter compares with integers of 64 bits, got {shown(value)}.")
        return value
    if isinstance(value, str):
        return text("a name or value in a filter", value)
    if not levels:
        raise ValidationError(f"the filter is nested more than {_MOST_FILTER_LEVELS} levels deep.")
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValidationError(f"a field in a filter is named by text, not {name!r:.60}.")
        return {text("a field in a filter", name): sendable_filter(item, levels - 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [sendable_filter(item, levels - 1) for item in value]
    raise ValidationError(
        f"a filter cannot have the value {value!r:.60} ({type(value).__name__}).",
        remediation="Compare with None, bool, int, float, str, bytes, and lists and dicts of these.",
    )


# Ranges


class ScanRange(NamedTuple):
    """A half-open key range with its options; ``limit`` and ``batch`` 0 = none given."""

    start: bytes
    end: bytes | None
    limit: int
    reverse: bool
    batch: int


def scan_range(
    start: KeyLike | None,
    end: KeyLike | None,
    *,
    limit: int | None,
    reverse: bool,
    batch: int | None = None,
    prefix: bool | None = None,
) -> ScanRange:
    """The range that ``scan(prefix)`` or ``scan(start, end)`` means.

    Args:
        start: The prefix, when ``end`` is None (or ``prefix`` is true); else the first key.
        end: End of the range, exclusive.
        limit: Rows at the most; None = all.
        reverse: Descending order.
        batch: Rows fetched at a time; None = as many as suits.
        prefix: Force one reading; None decides by ``end``.

    Raises:
        ValidationError: A limit or batch is not a number, or negative.
    """
    limit = None if limit is None else whole_number("limit", limit)
    batch = 0 if batch is None else whole_number("batch_size", batch, 1)
    if prefix or (prefix is None and end is None):
        low = as_prefix(start if start is not None else b"")
        high = prefix_end(low)
    else:
        low = as_bound(start) or b""
        high = as_bound(end)
    if limit == 0:
        high = low  # nothing was asked for; a limit of 0 means none is set
    return ScanRange(low, high, limit or 0, bool(reverse), batch)
