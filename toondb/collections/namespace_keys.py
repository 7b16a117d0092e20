"""Keys of a namespace: records of the sub-database ``namespace_kv`` under its number (u32, big-endian) and the key.

So no namespace ever sees a key of another one, whatever their names are.
"""

from __future__ import annotations

from typing import Any

from toondb.engine.environment import Space
from toondb.engine.transaction import Transaction
from toondb_protocol.arguments import shown
from toondb_protocol.errors import InvalidKeyError, ValidationError
from toondb_protocol.keys import check_namespace_key, prefix_end

from .catalog import NamespaceEntry

__all__ = ["delete", "get", "given_keys", "given_pairs", "put", "scan"]

_PAGE_BYTES = 4 << 20
_ROWS = 512
_SPACE = Space.NAMESPACE_KV


def given_keys(keys: list[Any]) -> list[bytes]:
    """Keys as they were given.

    Raises:
        InvalidKeyError, KeyTooLargeError: One is not 1 to 500 bytes.
    """
    for key in keys:
        if not isinstance(key, bytes):
            raise InvalidKeyError(f"a key is bytes, got {shown(key)}.")
        check_namespace_key(key)
    return keys


def given_pairs(keys: list[Any], values: list[Any]) -> dict[bytes, bytes]:
    """Keys with their values as they were given; of the same key the last one counts.

    Raises:
        ValidationError: They are not as many, or a value is not bytes.
    """
    if len(keys) != len(values):
        raise ValidationError(f"there are {len(keys)} keys and {len(values)} values.")
    for value in values:
        if not isinstance(value, bytes):
            raise ValidationError(f"a value is bytes, got {shown(value)}.")
    return dict(zip(given_keys(keys), values, strict=True))


def get(transaction: Transaction, namespace: NamespaceEntry, keys: list[bytes]) -> list[bytes | None]:
    """The values of keys, None where there is none; those of the first keys only when they are large."""
    found: list[bytes | None] = []
    size = 0
    for key in keys:
        value = transaction.get(namespace.prefix + key, _SPACE)
        found.append(value)
        size += len(value or b"")
        if size >= _PAGE_BYTES:
            break
    return found


def put(transaction: Transaction, namespace: NamespaceEntry, pairs: dict[bytes, bytes]) -> None:
    """Store pairs: all of them or, when there is no room, none."""
    transaction.require(namespace.key, Space.CATALOG)
    prefix = namespace.prefix
    transaction.put_records(_SPACE, {prefix + key: value for key, value in pairs.items()})


def delete(transaction: Transaction, namespace: NamespaceEntry, keys: list[bytes]) -> None:
    """Delete keys, those that are there."""
    transaction.require(namespace.key, Space.CATALOG)
    prefix = namespace.prefix
    transaction.check_room(sum(len(prefix) + len(key) for key in keys))
    for key in keys:
        transaction.delete(prefix + key, _SPACE)


def scan(
    transaction: Transaction,
    namespace: NamespaceEntry,
    start: bytes,
    end: bytes | None,
    limit: int,
    *,
    reverse: bool,
) -> list[bytes]:
    """Keys and values of a range, flat; fewer than ``limit`` pairs also when they are large."""
    prefix = namespace.prefix
    high = prefix_end(prefix) if end is None else prefix + end
    opened = transaction.scan(prefix + start, high, reverse=reverse, space=_SPACE)
    found: list[bytes] = []
    size = 0
    try:
        while not opened.exhausted and len(found) < 2 * limit and size < _PAGE_BYTES:
            for key, value in opened.pairs(min(_ROWS, limit - len(found) // 2), _PAGE_BYTES - size):
                found += (key[len(prefix) :], value)
                size += len(key) + len(value)
    finally:
        opened.close()
    return found
