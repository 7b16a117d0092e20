"""The change log: the history that ``watch`` reads, kept in the store itself.

It is written in the LMDB transaction of the commit that it describes, so it never disagrees with the data, outlives
a restart, and is shared by all processes that have the folder open. All integers are big-endian in keys and
little-endian in values::

    key     LSN u64, part u32
    value   CRC-32 (zlib) u32 of the key and all that follows, then one entry after another:
            kind u8, key length u16, value length u32, key, value

A commit has one part, or several when it is large. Kinds: 0 a put with its value; 1 a put without it, because it
is long or one of very many: a reader finds it in the store, unless the key was written again since (then a later
entry tells of it); 2 a delete; 3 a record that expired; 4 a range, from the key to the one in the place of the value,
both included: every record in it that has the LSN of this commit was put by it (a bulk load).

The log is bounded in bytes. What is older is deleted, and ``changes_from`` in the meta sub-database is the LSN
after which it is complete.
"""

from __future__ import annotations

import operator
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import repeat
from typing import Any
from zlib import crc32

import lmdb

from toondb_protocol.changes import Change, ChangeKind
from toondb_protocol.errors import CorruptionError, HistoryTrimmedError, ValidationError
from toondb_protocol.record import META_CHANGES_FROM, decode_lsn, live_value

from .environment import Environment, storage_error
from .snapshot import Snapshot, records

__all__ = ["DELETED", "EXPIRED", "changes_from", "is_intact", "read_changes", "trim", "write_commit"]

PUT, PUT_BY_REFERENCE, DELETED, EXPIRED, PUT_RANGE = range(5)

INLINE_VALUE_BYTES = 1024
"""Longer values are not copied into the log."""

INLINE_COMMIT_BYTES = 64 * 1024
"""Of the values of one commit so many bytes are copied; a bulk load is not stored twice."""

_PART_BYTES = 256 * 1024
_RANGE_KEYS = 4096
_RANGE_SHARE = 8
_TRIM_KEEPS = 7 / 8
_TRIM_ENTRIES = 256
_TRIM_SHARE = 4
_CHECKS_PER_HISTORY = 64
_PAGE_HEAD, _NODE_HEAD = 16, 10
_STEP_BYTES = 256 * 1024
_KEYS_AT_ONCE = 4096

_KINDS = {PUT: ChangeKind.PUT, PUT_BY_REFERENCE: ChangeKind.PUT, DELETED: ChangeKind.DELETE, EXPIRED: ChangeKind.EXPIRE}
_HEAD = struct.Struct("<BHI")
_KEY = struct.Struct(">QI")
_LSN = struct.Struct("<Q")
_CHECKSUM_SIZE = 4
_concat: Callable[[bytes, bytes], bytes] = operator.concat  # type: ignore[assignment]


# Writing, inside the LMDB transaction of a commit


def write_commit(
    environment: Environment,
    txn: Any,
    lsn: int,
    changes: list[tuple[bytes, bytes | int]],
    by_reference: Sequence[bytes] = (),
    *,
    dense: bool = False,
) -> None:
    """Log one commit.

    Args:
        environment: The open environment.
        txn: Its LMDB write transaction.
        lsn: Its LSN, after every LSN in the log.
        changes: Each key with its new value, or with ``DELETED`` or ``EXPIRED``.
        by_reference: More keys that were put, in key order; their values are not copied.
        dense: There are no other keys between these.
    """
    if len(changes) == 1 and not by_reference:
        # The usual write of a user, without the machinery for many.
        _write_one(environment, txn, lsn, *changes[0])
        return
    part = _Part(environment, txn, lsn)
    inline = INLINE_COMMIT_BYTES
    head = _HEAD.pack
    for key, value in changes:
        if not isinstance(value, bytes):
            part.add(head(value, len(key), 0) + key)
        elif len(value) <= INLINE_VALUE_BYTES and len(value) <= inline:
            inline -= len(value)
            part.add(head(PUT, len(key), len(value)) + key + value)
        else:
            part.add(head(PUT_BY_REFERENCE, len(key), 0) + key)
    # A reader looks at all records of a range, so the keys must be a good share of these.
    if len(by_reference) >= _RANGE_KEYS and (
        dense or len(by_reference) >= txn.stat(environment.kv)["entries"] // _RANGE_SHARE
    ):
        first, last = by_reference[0], by_reference[-1]
        part.add(head(PUT_RANGE, len(first), len(last)) + first + last)
        by_reference = ()
    for at in range(0, len(by_reference), _KEYS_AT_ONCE):
        keys = by_reference[at : at + _KEYS_AT_ONCE]
        # Built of iterators that run in C: a bulk load has very many.
        heads = map(head, repeat(PUT_BY_REFERENCE), map(len, keys), repeat(0))
        part.add(b"".join(map(_concat, heads, keys)))
    part.write()


def _write_one(environment: Environment, txn: Any, lsn: int, key: bytes, value: bytes | int) -> None:
    if not isinstance(value, bytes):
        entry = _HEAD.pack(value, len(key), 0) + key
    elif len(value) <= INLINE_VALUE_BYTES:
        entry = _HEAD.pack(PUT, len(key), len(value)) + key + value
    else:
        entry = _HEAD.pack(PUT_BY_REFERENCE, len(key), 0) + key
    _put_part(environment, txn, _KEY.pack(lsn, 0), entry)


def _put_part(environment: Environment, txn: Any, log_key: bytes, entries: bytes) -> bool:
    checksum = crc32(entries, crc32(log_key)).to_bytes(_CHECKSUM_SIZE, "little")
    if not txn.put(log_key, checksum + entries, db=environment.changes, append=True):
        # A damaged log has a later commit. Whoever watches must not miss this one without being told.
        _forget_all(environment, txn, int.from_bytes(log_key[: _LSN.size], "big"))
        return False
    environment.unchecked_history += len(entries)
    return True


def _forget_all(environment: Environment, txn: Any, lsn: int) -> None:
    """There is no history up to the commit ``lsn``."""
    txn.drop(environment.changes, delete=False)
    txn.put(META_CHANGES_FROM, _LSN.pack(lsn), db=environment.meta)


class _Part:
    """The part of a commit that is being filled."""

    def __init__(self, environment: Environment, txn: Any, lsn: int) -> None:
        self._environment, self._txn, self._lsn = environment, txn, lsn
        self._entries: list[bytes] = []
        self._size = self._written = self._number = 0
        self._most = environment.history_bytes // 2

    def add(self, entries: bytes) -> None:
        self._entries.append(entries)
        self._size += len(entries)
        if self._size >= _PART_BYTES:
            self.write()

    def write(self) -> None:
        if not self._entries or self._written > self._most:
            return
        entries = b"".join(self._entries)
        self._entries, self._size = [], 0
        self._written += len(entries)
        if self._written > self._most:
            # This commit alone would push out nearly everything.
            _forget_all(self._environment, self._txn, self._lsn)
            return
        if not _put_part(self._environment, self._txn, _KEY.pack(self._lsn, self._number), entries):
            self._written = self._most + 1
        self._number += 1


def is_intact(key: bytes, value: bytes) -> bool:
    """Whether an entry of the log is what was written, for ``check``."""
    return len(value) > _CHECKSUM_SIZE and crc32(value[_CHECKSUM_SIZE:], crc32(key)) == int.from_bytes(
        value[:_CHECKSUM_SIZE], "little"
    )


def trim(environment: Environment, txn: Any) -> None:
    """Delete the oldest commits of the log when it is over its bound, which is looked at now and then.

    A few at a time, and never less than was logged: the log shrinks a little faster than commits let it grow, and
    no commit waits for much longer than it took itself.
    """
    logged = environment.unchecked_history
    if logged < environment.history_bytes // _CHECKS_PER_HISTORY:
        return
    environment.unchecked_history = 0
    stat = txn.stat(environment.changes)
    if _bytes(stat) <= environment.history_bytes:
        return
    surplus = int(_bytes(stat) - _TRIM_KEEPS * environment.history_bytes)
    left = max(_TRIM_ENTRIES, surplus * stat["entries"] // _bytes(stat) // _TRIM_SHARE)
    cursor = txn.cursor(db=environment.changes)
    last: int | None = None
    found = cursor.first()
    while found:
        log_key, entries = cursor.item()
        lsn = int.from_bytes(log_key[: _LSN.size], "big")
        if ((left <= 0 and logged <= 0) or surplus <= 0) and lsn != last:
            break
        last = lsn
        left -= 1
        room = _room(len(log_key) + len(entries), stat["psize"])
        surplus -= room
        logged -= room
        found = cursor.delete() and bool(cursor.key())
    if last is not None:
        txn.put(META_CHANGES_FROM, _LSN.pack(last), db=environment.meta)


def _room(size: int, page: int) -> int:
    """What an entry takes of the file: it was appended, so pages are as full as they can be."""
    fit = (page - _PAGE_HEAD) // (size + _NODE_HEAD)
    return page // fit if fit > 1 else -(-(size + _PAGE_HEAD) // page) * page


def _bytes(stat: dict[str, int]) -> int:
    return (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"]


# Reading


def changes_from(environment: Environment, txn: Any) -> int:
    """The LSN after which the log is complete, as an LMDB transaction sees it."""
    raw = txn.get(META_CHANGES_FROM, db=environment.meta)
    if raw is not None and len(raw) != _LSN.size:
        raise CorruptionError(f"the begin of the change log is damaged: it has {len(raw)} bytes.")
    lsn: int = _LSN.unpack(raw)[0] if raw else 0
    return lsn


def read_changes(
    snapshot: Snapshot, since_lsn: int | None, start: bytes, end: bytes | None, *, max_bytes: int
) -> Generator[list[Change], None, int]:
    """The changes of keys in [start, end) after the commit ``since_lsn``, in steps of bounded size.

    Args:
        snapshot: What to read; it is closed at the end, and may expire between two steps.
        since_lsn: None gives no changes, only where history ends now.
        start, end: The range; ``end`` None = to the last key.
        max_bytes: Stop after the commit that reaches so many bytes of log and of values.

    Yields:
        Changes in order; an empty list only gives the caller a turn.

    Returns:
        History was read up to this commit, always whole commits: go on after it.

    Raises:
        HistoryTrimmedError: The log no longer has everything after ``since_lsn``.
        ValidationError: ``since_lsn`` is after the newest commit.
        CorruptionError: What is there of the log is not what was written.
    """
    environment, newest = snapshot.environment, snapshot.lsn
    try:
        # Each step under the lock of the snapshot: whoever closes the database or ends what is idle must not take a
        # transaction away that LMDB is reading in.
        with snapshot.reading() as view:
            if since_lsn is None or since_lsn == newest:
                return newest
            _check_since(environment, view, since_lsn, newest)
            steps = _read(environment, view, since_lsn, newest, start, end, max_bytes)
        while True:
            with snapshot.reading():
                try:
                    step = next(steps)
                except StopIteration as stop:
                    upto: int = stop.value
                    return upto
            snapshot.touched_at = time.monotonic()
            yield step
    except lmdb.Error as error:
        raise storage_error(error, "reading changes") from None
    finally:
        snapshot.close()


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
        lsn = int.from_bytes(log_key[: _LSN.size], "big")
        if not is_intact(log_key, entries):
            raise CorruptionError(
                f"the change log is damaged in the commit with LSN {lsn}.",
                remediation="Read the keys themselves anew, and watch from now. The check command names all damage.",
            )
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
        for entry in _decode(environment, view, lsn, entries, start, end):
            if entry is None:
                yield step
                step, size = [], 0
                continue
            kind, key, value = entry
            if held is not None:
                step.append(Change(*held, False))
            held = (lsn, kind, key, value)
            size += len(value or b"")
            total += len(value or b"")
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
) -> Iterator[tuple[ChangeKind, bytes, bytes | None] | None]:
    """The changes of a part of a commit, of keys in [start, end); None only gives the caller a turn."""
    at, size = _CHECKSUM_SIZE, len(raw)
    unpack, width = _HEAD.unpack_from, _HEAD.size
    while at < size:
        kind, key_size, value_size = unpack(raw, at)
        at += width + key_size + value_size
        key = raw[at - value_size - key_size : at - value_size]
        if kind == PUT_RANGE:
            yield from _decode_range(environment, view, lsn, max(key, start), end, raw[at - value_size : at])
            continue
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


def _decode_range(
    environment: Environment, view: Any, lsn: int, start: bytes, end: bytes | None, last: bytes
) -> Iterator[tuple[ChangeKind, bytes, bytes | None] | None]:
    for count, (key, record) in enumerate(records(view, environment.kv, start, None), 1):
        if key > last or (end is not None and key >= end):
            return
        if decode_lsn(record) == lsn:
            value = live_value(record)
            if value is not None:
                yield ChangeKind.PUT, key, value
        if not count % _RANGE_KEYS:
            yield None
