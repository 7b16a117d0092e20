"""The change log: the history that ``watch`` reads, kept in the store itself.

It is written in the LMDB transaction of the commit that it describes, so it never disagrees with the data, outlives
a restart, and is shared by all processes that have the folder open. All integers are big-endian in keys and
little-endian in values::

    key     LSN u64, part u32
    value   CRC-32 (zlib) u32 of the key and all that follows, then one entry after another:
            kind u8, key length u16, value length u32, key, value

A commit has one part, or several when it is large. Kinds: 0 a put with its value; 1 a put without it, because it
is long or one of very many: a reader finds it in the store, unless the key was written again since (then a later
entry tells of it); 2 a delete; 3 a record that expired.

The log is bounded in bytes. What is older is deleted, and ``changes_from`` in the meta sub-database is the LSN
after which it is complete.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from typing import Any
from zlib import crc32

import lmdb

from toondb_protocol.changes import Change, ChangeKind
from toondb_protocol.errors import HistoryTrimmedError, ValidationError
from toondb_protocol.record import META_CHANGES_FROM, decode_lsn, live_value

from .environment import Environment, storage_error
from .snapshot import read_lsn

__all__ = ["DELETED", "EXPIRED", "changes_from", "is_intact", "read_changes", "trim", "write_commit"]

PUT, PUT_BY_REFERENCE, DELETED, EXPIRED = range(4)

INLINE_VALUE_BYTES = 1024
"""Longer values are not copied into the log."""

INLINE_COMMIT_BYTES = 256 * 1024
"""Of the values of one commit so many bytes are copied; a bulk load is not stored twice."""

_PART_BYTES = 256 * 1024
_TRIM_KEEPS = 7 / 8
_TRIM_ENTRIES = 256
_STEP_BYTES = 256 * 1024

_KINDS = {PUT: ChangeKind.PUT, PUT_BY_REFERENCE: ChangeKind.PUT, DELETED: ChangeKind.DELETE, EXPIRED: ChangeKind.EXPIRE}
_HEAD = struct.Struct("<BHI")
_KEY = struct.Struct(">QI")
_LSN = struct.Struct("<Q")
_CHECKSUM_SIZE = 4


# Writing, inside the LMDB transaction of a commit


def write_commit(environment: Environment, txn: Any, lsn: int, changes: list[tuple[bytes, bytes | int]]) -> None:
    """Log one commit.

    Args:
        environment: The open environment.
        txn: Its LMDB write transaction.
        lsn: Its LSN, after every LSN in the log.
        changes: Each key with its new value, or with ``DELETED`` or ``EXPIRED``.
    """
    inline = INLINE_COMMIT_BYTES
    head = _HEAD.pack
    parts: list[bytes] = []
    part = size = written = 0
    for key, value in changes:
        if not isinstance(value, bytes):
            parts.append(head(value, len(key), 0) + key)
        elif len(value) <= INLINE_VALUE_BYTES and len(value) <= inline:
            inline -= len(value)
            parts.append(head(PUT, len(key), len(value)) + key + value)
        else:
            parts.append(head(PUT_BY_REFERENCE, len(key), 0) + key)
        size += len(parts[-1])
        if size >= _PART_BYTES:
            _put_part(environment, txn, _KEY.pack(lsn, part), b"".join(parts))
            part += 1
            written += size
            if written > environment.history_bytes // 2:
                # This commit alone would push out nearly everything: there is no history up to it.
                _forget_all(environment, txn, lsn)
                return
            parts, size = [], 0
    if parts:
        _put_part(environment, txn, _KEY.pack(lsn, part), b"".join(parts))


def _put_part(environment: Environment, txn: Any, key: bytes, entries: bytes) -> None:
    checksum = crc32(entries, crc32(key))
    txn.put(key, checksum.to_bytes(4, "little") + entries, db=environment.changes, append=True)


def is_intact(key: bytes, value: bytes) -> bool:
    """Whether an entry of the log is what was written, for ``check``."""
    return len(value) > _CHECKSUM_SIZE and crc32(value[_CHECKSUM_SIZE:], crc32(key)) == int.from_bytes(
        value[:_CHECKSUM_SIZE], "little"
    )


def _forget_all(environment: Environment, txn: Any, lsn: int) -> None:
    txn.drop(environment.changes, delete=False)
    txn.put(META_CHANGES_FROM, _LSN.pack(lsn), db=environment.meta)


def trim(environment: Environment, txn: Any) -> None:
    """Delete the oldest commits of the log when it is over its bound.

    A few at a time: the log shrinks a little faster than commits of that size let it grow, so no single commit
    waits for long.
    """
    stat = txn.stat(environment.changes)
    if _bytes(stat) <= environment.history_bytes:
        return
    # LMDB counts whole pages; entries are of all sizes, so the share to delete is an estimate.
    surplus = 1 - _TRIM_KEEPS * environment.history_bytes / _bytes(stat)
    left = max(_TRIM_ENTRIES, int(surplus * stat["entries"] / 8))
    cursor = txn.cursor(db=environment.changes)
    last: int | None = None
    found = cursor.first()
    while found:
        lsn = _KEY.unpack(cursor.key())[0]
        if left <= 0 and lsn != last:
            break
        last = lsn
        left -= 1
        found = cursor.delete() and bool(cursor.key())
    if last is not None:
        txn.put(META_CHANGES_FROM, _LSN.pack(last), db=environment.meta)


def _bytes(stat: dict[str, int]) -> int:
    return (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"]


# Reading


def changes_from(environment: Environment, txn: Any) -> int:
    """The LSN after which the log is complete, as an LMDB transaction sees it."""
    raw = txn.get(META_CHANGES_FROM, db=environment.meta)
    lsn: int = _LSN.unpack(raw)[0] if raw else 0
    return lsn


def read_changes(
    environment: Environment, since_lsn: int | None, start: bytes, end: bytes | None, *, max_bytes: int
) -> Generator[list[Change], None, int]:
    """The changes of keys in [start, end) after the commit ``since_lsn``, in steps of bounded size.

    Args:
        environment: The open environment.
        since_lsn: None gives no changes, only where history ends now.
        start, end: The range; ``end`` None = to the last key.
        max_bytes: Stop after the commit that reaches so many bytes of log.

    Yields:
        Changes in order; an empty list only gives the caller a turn.

    Returns:
        History was read up to this commit, always whole commits: go on after it.

    Raises:
        HistoryTrimmedError: The log no longer has everything after ``since_lsn``.
        ValidationError: ``since_lsn`` is after the newest commit.
    """
    view = environment.begin_view()
    try:
        newest = read_lsn(environment, view)
        if since_lsn is None or since_lsn == newest:
            return newest
        _check_since(environment, view, since_lsn, newest)
        return (yield from _read(environment, view, since_lsn, newest, start, end, max_bytes))
    except lmdb.Error as error:
        raise storage_error(error, "reading changes") from None
    finally:
        environment.end_view(view)


def _check_since(environment: Environment, view: Any, since_lsn: int, newest: int) -> None:
    if since_lsn > newest:
        raise ValidationError(
            f"since_lsn is {since_lsn}, the newest commit is {newest}.",
            remediation="The store is another one, or was restored: read its keys anew, then watch from now.",
            details={"since_lsn": since_lsn, "lsn": newest},
        )
    oldest = changes_from(environment, view)
    if since_lsn < oldest:
        raise HistoryTrimmedError(
            f"the changes after LSN {since_lsn} are no longer all there, only those after LSN {oldest}.",
            details={"since_lsn": since_lsn, "oldest_lsn": oldest, "lsn": newest},
        )


def _read(
    environment: Environment, view: Any, since_lsn: int, newest: int, start: bytes, end: bytes | None, max_bytes: int
) -> Generator[list[Change], None, int]:
    cursor = view.cursor(db=environment.changes)
    pairs = cursor.iternext() if cursor.set_range(_KEY.pack(since_lsn + 1, 0)) else iter(())
    step: list[Change] = []
    # The change before this one: whether it is the last of its commit shows with the next.
    held: tuple[int, ChangeKind, bytes, bytes | None] | None = None
    at = since_lsn
    size = total = 0
    for log_key, entries in pairs:
        lsn = _KEY.unpack(log_key)[0]
        if lsn != at:
            if held is not None:
                step.append(Change(*held, True))
                held = None
            if total >= max_bytes:
                yield step
                return at
            at = lsn
        total += len(entries)
        size += len(entries)
        for kind, key, value in _decode(environment, view, lsn, entries, start, end):
            if held is not None:
                step.append(Change(*held, False))
            held = (lsn, kind, key, value)
            size += len(value or b"")
            if size >= _STEP_BYTES:
                yield step
                step, size = [], 0
        if size >= _STEP_BYTES:
            yield step
            step, size = [], 0
    if held is not None:
        step.append(Change(*held, True))
    yield step
    return newest


def _decode(
    environment: Environment, view: Any, lsn: int, raw: bytes, start: bytes, end: bytes | None
) -> Iterator[tuple[ChangeKind, bytes, bytes | None]]:
    """The changes of a part of a commit, of keys in [start, end)."""
    at, size = _CHECKSUM_SIZE, len(raw)
    unpack, width = _HEAD.unpack_from, _HEAD.size
    while at < size:
        kind, key_size, value_size = unpack(raw, at)
        at += width + key_size + value_size
        key = raw[at - value_size - key_size : at - value_size]
        if key < start or (end is not None and key >= end):
            continue
        value: bytes | None = raw[at - value_size : at] if kind == PUT else None
        if kind == PUT_BY_REFERENCE:
            record = view.get(key, db=environment.kv)
            if record is None or decode_lsn(record) != lsn:
                continue
            value = live_value(record)
            if value is None:
                continue
        yield _KINDS[kind], key, value
