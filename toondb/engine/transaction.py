"""Transactions: a snapshot, a write set over it, and what must still hold when it commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable, Iterator
from enum import Enum
from itertools import zip_longest
from typing import Any, Protocol

from toondb_protocol.errors import (
    ToonDBError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
    TransactionExpiredError,
    TransactionTooLargeError,
    ValidationError,
)
from toondb_protocol.keys import check_key
from toondb_protocol.record import HEADER_SIZE, RECORD_V1, Expiring, decode_expiry, decode_lsn, live_value, now_ms

from .environment import Environment, Space
from .options import Isolation
from .snapshot import Snapshot, SnapshotScan, records
from .write_batch import WriteBatch
from .write_set import ABSENT, MergedScan, Scan, WriteSet

__all__ = ["Attachment", "State", "Transaction", "TransactionScan"]


class State(Enum):
    """Life of a transaction."""

    ACTIVE = "active"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ABORTED = "aborted"


_ACTIVE = State.ACTIVE
_monotonic = time.monotonic


def _read_only() -> TransactionError:
    return TransactionError("the transaction is read-only.", remediation="Begin it without read_only.")


class _Nothing(WriteSet):
    """The write set of who cannot write, shared by all of them. It stays empty, also when an end races with a write."""

    __slots__ = ()

    def put(self, key: bytes, value: bytes | None, room: int) -> int | None:
        return 0

    def put_new(self, values: dict[bytes, bytes], size: int) -> None:
        pass


# To make some for each transaction would take as long as the rest of its beginning.
_NO_WRITES: tuple[WriteSet, ...] = tuple(_Nothing() for _ in Space)
_SPACES = range(len(_NO_WRITES))


class Attachment(Protocol):
    """What takes part in a transaction beside its keys: an open SQL connection."""

    def flush(self) -> None:
        """Put what is not yet in the write set there; called before the commit, by the caller's thread."""

    def ended(self, lsn: int | None) -> None:
        """The transaction is over: committed with this LSN, or not at all. Called by any thread; must not raise."""


class _ReadRange:
    """A key range that a serializable transaction has read: [start, end) as far as its scan came."""

    __slots__ = ("end", "space", "start")

    def __init__(self, space: Space, start: bytes, end: bytes | None) -> None:
        self.space, self.start, self.end = space, start, end


class Transaction:
    """A transaction of the engine. Used by one thread at a time, except that any thread may expire or abort it.

    Reads see the snapshot with the transaction's own writes over it. ``Engine.commit`` (or the writer thread,
    for the daemon) validates and applies it.

    Attributes:
        id: Unique in this run of the engine, never 0.
        snapshot: What it reads.
        attachments: What takes part in it beside its keys, by what it is.
        isolation: See :class:`Isolation`.
        state: See :class:`State`.
        blind: Its commit does not ask whether others wrote the same keys since it began: for plain writes of several
            keys, which no read depends on.
    """

    __slots__ = (
        "__weakref__",
        "_began_ms",
        "_ended",
        "_environment",
        "_limit",
        "_lock",
        "_points",
        "_ranges",
        "_required",
        "_size",
        "attachments",
        "blind",
        "id",
        "isolation",
        "read_only",
        "snapshot",
        "state",
        "writes",
    )

    def __init__(
        self,
        environment: Environment,
        transaction_id: int,
        *,
        isolation: Isolation = Isolation.SNAPSHOT,
        read_only: bool = False,
        max_bytes: int,
    ) -> None:
        self.id = transaction_id
        try:
            # A plain "serializable" must not pass for less, which an identity test would make of it.
            self.isolation = isolation = Isolation(isolation)
        except ValueError:
            known = ", ".join(Isolation)
            raise ValidationError(f"isolation {isolation!r} is unknown; known: {known}.") from None
        self.read_only = read_only
        self.blind = False
        self.state = State.ACTIVE
        self.writes: tuple[WriteSet, ...] = _NO_WRITES if read_only else tuple([WriteSet() for _ in _SPACES])
        self._environment = environment
        self._limit = max_bytes
        self._lock = threading.Lock()
        self._size = 0
        self._ended: ToonDBError | None = None
        self.attachments: dict[Hashable, Attachment] = {}
        self._required: set[tuple[Space, bytes]] = set()
        self._points: set[tuple[Space, bytes]] | None = set() if isolation is Isolation.SERIALIZABLE else None
        self._ranges: list[_ReadRange] = []
        self._began_ms = now_ms()
        self.snapshot = Snapshot(environment)

    # Reads

    def get(self, key: bytes, space: Space = Space.KV) -> bytes | None:
        """The value of a key as this transaction sees it, or None."""
        self.check_active()
        if not 0 < len(key) <= 511:
            check_key(key)
        self.snapshot.touched_at = time.monotonic()
        written = self.writes[space].get(key)
        if written is not ABSENT:
            return _live(written) if type(written) is Expiring else written  # type: ignore[return-value]
        raw = self.snapshot.record(space, key)
        if self._points is not None:
            self._points.add((space, key))
        value = live_value(raw)
        if value is not None and raw[0] != RECORD_V1:  # type: ignore[index]
            # When the clock was set back, it sees what had expired when it began; validation must know.
            self._began_ms = min(self._began_ms, now_ms())
        return value

    def get_with_expiry(self, key: bytes) -> tuple[bytes | None, int | None]:
        """The value of a key as this transaction sees it, and when it expires (milliseconds since 1970 UTC)."""
        value = self.get(key)
        if value is None:
            return None, None
        written = self.writes[Space.KV].get(key)
        if written is not ABSENT:
            return value, written.expires_ms if type(written) is Expiring else None
        raw = self.snapshot.record(Space.KV, key)
        return value, None if raw is None else decode_expiry(raw)

    def written(self, key: bytes, space: Space) -> object:
        """What this transaction has written to a key: a value, None for a delete, or ``ABSENT`` for nothing."""
        return self.writes[space].get(key)

    def note_read(self, key: bytes, space: Space) -> None:
        """Let a serializable transaction depend on a key that somebody read for it."""
        if self._points is not None:
            self._points.add((space, key))

    def note_range(self, start: bytes, end: bytes | None, space: Space) -> None:
        """Let a serializable transaction depend on a range that somebody read for it."""
        if self._points is not None:
            self._ranges.append(_ReadRange(space, start, end))

    def require(self, key: bytes, space: Space) -> None:
        """Let the commit fail when somebody else changes this record meanwhile, whatever the isolation."""
        self._required.add((space, key))

    def require_range(self, start: bytes, end: bytes | None, space: Space) -> None:
        """Let the commit fail when somebody else changes a record of this range meanwhile, whatever the isolation."""
        self._ranges.append(_ReadRange(space, start, end))

    @property
    def attachment(self) -> Attachment | None:
        """Anything that takes part in it beside its keys; None = nothing does."""
        return next(iter(self.attachments.values()), None)

    def flush(self) -> None:
        """Complete the write set before the commit."""
        for attachment in list(self.attachments.values()):
            if self.state is State.ACTIVE:
                attachment.flush()

    def scan(
        self,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        values: bool = True,
        space: Space = Space.KV,
        now: int | None = None,
    ) -> Scan:
        """A scan of [start, end) over snapshot and write set, both as of now: later writes do not show in it.

        ``now`` is the time by which records have expired, see :class:`SnapshotScan`.
        """
        self.check_active()
        now = now_ms() if now is None else now
        self._began_ms = min(self._began_ms, now)  # see get()
        base: Scan = SnapshotScan(self.snapshot, space, start, end, reverse=reverse, values=values, now=now)
        changes = self.writes[space].range(start, end)
        if changes:
            changes = [(key, _live(value, now)) for key, value in changes]
            if not values:
                changes = [(key, None if value is None else b"") for key, value in changes]
            base = MergedScan(base, changes, reverse=reverse)
        covered = None if self._points is None else _ReadRange(space, start, end)
        return TransactionScan(self, base, covered, reverse)

    # Writes

    def put(self, key: bytes, value: bytes | None, space: Space = Space.KV) -> None:
        """Record a write; ``value`` None deletes the key.

        Raises:
            TransactionTooLargeError: The write set would exceed its cap; it stays as it was.
            TransactionError: The transaction is read-only or over.
            InvalidKeyError, KeyTooLargeError: The key is not 1 to 511 bytes.
        """
        if self.state is not _ACTIVE or self._environment.forked:
            self.check_active()
        if not 0 < len(key) <= 511:
            check_key(key)
        if self.read_only:
            raise _read_only()
        self.snapshot.touched_at = _monotonic()
        grown = self.writes[space].put(key, value, self._limit - self._size)
        if grown is None:
            raise self._too_large(len(key) + len(value or b""))
        self._size += grown

    def put_all(self, values: dict[bytes, bytes]) -> None:
        """Record the writes of many keys; see :meth:`put`."""
        self.check_active()
        writes = self.writes[Space.KV]
        sizes = list(map(len, values))
        if self.read_only or not sizes or min(sizes) < 1 or max(sizes) > 511 or not writes.is_disjoint(values):
            for key, value in values.items():
                self.put(key, value)
            return
        self.snapshot.touched_at = time.monotonic()
        added = sum(sizes) + sum(map(len, values.values()))
        if self._size + added > self._limit:
            raise self._too_large(added)
        writes.put_new(values, added)
        self._size += added

    def check_room(self, size: int) -> None:
        """Raise TransactionTooLargeError when there is no room for so many bytes more of keys and values."""
        if self._size + size > self._limit:
            raise self._too_large(size)

    def put_records(self, space: Space, records: dict[bytes, bytes]) -> None:
        """Record the writes of many records of another space: all of them or, when there is no room, none."""
        self.check_active()
        writes = self.writes[space]
        added = 0
        for key, value in records.items():
            old = writes.get(key)
            added += len(value)
            if old is ABSENT:
                added += len(key)
            elif old is not None:
                added -= len(old)  # type: ignore[arg-type]
        if self._size + added > self._limit:
            raise self._too_large(added)
        for key, value in records.items():
            self.put(key, value, space)

    def _too_large(self, added: int) -> TransactionTooLargeError:
        size = self._size + added
        return TransactionTooLargeError(
            f"the transaction would hold {size} bytes of writes, its cap is {self._limit}.",
            details={"limit": self._limit, "actual": size},
        )

    def delete(self, key: bytes, space: Space = Space.KV) -> None:
        """Record the delete of a key."""
        self.put(key, None, space)

    @property
    def lost(self) -> bool:
        """Whether it was aborted for being idle or open for too long, or by a statement that cannot be undone alone."""
        return isinstance(self._ended, TransactionError)

    @property
    def size(self) -> int:
        """Bytes of the keys and values written."""
        return self._size

    @property
    def written_keys(self) -> list[bytes]:
        """The keys that it has written, in order."""
        return self.writes[Space.KV].keys()

    @property
    def written_count(self) -> int:
        """How many keys it has written, in all spaces."""
        return sum(map(len, self.writes))

    @property
    def dirty(self) -> bool:
        """Whether it has written anything."""
        return self.writes is not _NO_WRITES and any(map(len, self.writes))

    # End

    def abort(self, ended: ToonDBError | None = None) -> bool:
        """End it without applying anything. Idempotent; ``ended`` is what later use raises.

        Returns:
            Whether this call ended it.

        Raises:
            TransactionError: Its commit is under way: only the writer knows the outcome.
        """
        if self._end(State.ACTIVE, State.ABORTED, ended):
            return True
        if self.state is State.COMMITTING:
            raise TransactionError(
                f"transaction {self.id} is being committed.", remediation="Wait for the outcome of its commit."
            )
        return False

    def expire(self, why: str) -> bool:
        """Abort it because it was ``why`` (idle or open for too long); whether this call ended it."""
        error = TransactionExpiredError(f"transaction {self.id} was {why} and has been aborted.")
        return self._end(State.ACTIVE, State.ABORTED, error)

    def start_commit(self) -> None:
        """Freeze it for the writer thread."""
        with self._lock:
            self.check_active()
            self.state = State.COMMITTING

    def end_unwritten(self) -> int:
        """Commit it without a writer, which has nothing to do for it; the LSN that it saw.

        Raises:
            TransactionError: It is over, or being committed.
        """
        # In one step: Ctrl-C between two of them would leave it in the middle of a commit that nobody makes.
        lsn = self.snapshot.lsn
        if not self._end(State.ACTIVE, State.COMMITTED, None, lsn):
            self.check_active()
        return lsn

    def committed(self, lsn: int) -> bool:
        """Note that the writer applied it as commit ``lsn``; whether this call ended it."""
        return self._end(State.COMMITTING, State.COMMITTED, None, lsn)

    def rejected(self, error: ToonDBError) -> bool:
        """Note that the writer refused it; whether this call ended it."""
        # A conflict was told by the commit; from then on it is a transaction that is over, like any other.
        ended = None if isinstance(error, TransactionConflictError) else error
        return self._end(State.COMMITTING, State.ABORTED, ended)

    def _end(self, before: State, after: State, ended: ToonDBError | None, lsn: int | None = None) -> bool:
        # Two threads may race to end it, for example a commit and the sweep for idle ones: one of them wins, and
        # a write set that the writer was given is never emptied under it.
        with self._lock:
            if self.state is not before:
                return False
            self.state = after
            self._ended = ended
        if self.attachments:
            attachments, self.attachments = self.attachments, {}
            for attachment in attachments.values():
                attachment.ended(lsn)
        self.snapshot.close(ended or self._closed_error())
        self.writes = _NO_WRITES
        self._ranges = []
        self._required = set()
        if self._points is not None:
            self._points = set()
        return True

    def _closed_error(self) -> ToonDBError:
        return TransactionClosedError(f"transaction {self.id} is already {self.state.value}.")

    def check_active(self) -> None:
        """Raise when it is over; the error says why."""
        if self._environment.forked:
            raise self._environment.forked_error()
        if self.state is not State.ACTIVE:
            raise self._ended or self._closed_error()

    # Validation and application, on the writer thread

    def validate(self, txn: Any) -> None:
        """Check against the state inside the LMDB write transaction ``txn``.

        First committer wins: a written key must have the record that the snapshot has. LSNs only grow, so a
        record not newer than the snapshot is that record; only for a key that has none now must the
        snapshot be asked. A serializable transaction also checks every point and range that it read. A record that
        had expired when the transaction began is no record; one that expired since was perhaps seen alive, so if it
        is gone that is a change like any other.

        Raises:
            TransactionConflictError: Names the first key that another transaction changed.
        """
        since = self.snapshot.lsn
        spaces = self._environment.spaces
        for space in Space:
            database = spaces[space]
            get = txn.get
            for key in self.writes[space].keys():
                self._check_key(space, key, get(key, db=database), since, "wrote")
        self._validate_read(txn, self._points or ())

    def _validate_read(self, txn: Any, points: Iterable[tuple[Space, bytes]]) -> None:
        since, spaces = self.snapshot.lsn, self._environment.spaces
        for space, key in (*self._required, *points):
            self._check_key(space, key, txn.get(key, db=spaces[space]), since, "read")
        for covered in self._ranges:
            self._check_range(txn, covered)

    def _check_key(self, space: Space, key: bytes, now: bytes | None, since: int, did: str) -> None:
        if now is not None:
            changed = decode_lsn(now) > since
        else:
            before = self.snapshot.record(space, key)
            # One that had expired when the transaction began was never seen by it: to reclaim it changed nothing.
            changed = before is not None and _alive_at(before, self._began_ms)
        if changed:
            raise _conflict(self.id, did, space, key)

    def _check_range(self, txn: Any, covered: _ReadRange) -> None:
        start, end = covered.start, covered.end
        if end is not None and start >= end:
            return
        began = self._began_ms
        now = _until(records(txn, self._environment.spaces[covered.space], start, end), end, began)
        then = _until(self.snapshot.records(covered.space, start, end), end, began)
        for old, new in zip_longest(then, now):
            if old is None or new is None or old[0] != new[0] or old[1][:HEADER_SIZE] != new[1][:HEADER_SIZE]:
                key = min(pair[0] for pair in (old, new) if pair is not None)
                raise _conflict(self.id, "scanned past", covered.space, key)

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Write the write set into a batch as commit ``lsn`` + 1.

        Returns:
            The LSN of this commit.

        Raises:
            TransactionConflictError: See :meth:`validate`; nothing was written then.
        """
        if self.state is not State.COMMITTING:
            raise self._ended or self._closed_error()
        if lsn != self.snapshot.lsn:
            if self.blind:
                self._validate_read(batch.txn, ())
            else:
                self.validate(batch.txn)
        lsn += 1
        writes = self.writes[Space.KV]
        if len(writes) < _MANY or not batch.put_all(writes.keys(), writes.values(), lsn):
            put, delete = batch.put, batch.delete
            for key, value in writes.items():
                if value is None:
                    delete(key, lsn)
                else:
                    put(key, value, lsn)
        for space in _OTHER_SPACES:
            for key, value in self.writes[space].items():
                batch.put_record(space, key, value, lsn)
        return lsn


_MANY = 16
_OTHER_SPACES = tuple(space for space in Space if space is not Space.KV)


class TransactionScan:
    """A scan of a transaction: marks it as touched, and records how far a serializable one has read."""

    __slots__ = ("_covered", "_reverse", "_scan", "_whole", "transaction")

    def __init__(self, transaction: Transaction, scan: Scan, whole: _ReadRange | None, reverse: bool) -> None:
        self.transaction = transaction
        self._scan, self._reverse = scan, reverse
        # What it may read, and what it has read: a scan that was never stepped has read nothing.
        self._whole = whole
        self._covered: _ReadRange | None = None

    @property
    def exhausted(self) -> bool:
        return self._scan.exhausted

    @property
    def last_key(self) -> bytes | None:
        return self._scan.last_key

    def batch(self, max_rows: int, max_bytes: int) -> list[bytes]:
        """The next rows, see ``SnapshotScan.batch``."""
        self.transaction.check_active()
        out = self._scan.batch(max_rows, max_bytes)
        self.transaction.snapshot.touched_at = time.monotonic()
        if self._whole is not None:
            self._cover(self._whole, out)
        return out

    def pairs(self, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """The next rows as pairs."""
        if self._whole is not None:
            flat = self.batch(max_rows, max_bytes)
            return list(zip(flat[::2], flat[1::2], strict=True))
        self.transaction.check_active()
        out = self._scan.pairs(max_rows, max_bytes)
        self.transaction.snapshot.touched_at = time.monotonic()
        return out

    def _cover(self, whole: _ReadRange, out: list[bytes]) -> None:
        covered = self._covered
        if covered is None:
            covered = self._covered = _ReadRange(whole.space, whole.start, whole.end)
            self.transaction._ranges.append(covered)
        if self._scan.exhausted:
            covered.start, covered.end = whole.start, whole.end
        elif out and self._reverse:
            covered.start = out[-2]
        elif out:
            covered.end = out[-2] + b"\0"

    def close(self) -> None:
        """Give the scan up. Idempotent."""
        self._scan.close()


def _until(pairs: Iterator[tuple[bytes, bytes]], end: bytes | None, moment: int) -> Iterator[tuple[bytes, bytes]]:
    """The pairs before ``end`` whose record had not expired at that moment."""
    for pair in pairs:
        if end is not None and pair[0] >= end:
            return
        if _alive_at(pair[1], moment):
            yield pair


def _alive_at(raw: bytes, moment: int) -> bool:
    expires = decode_expiry(raw)
    return expires is None or expires > moment


def _live(value: bytes | None, now: int | None = None) -> bytes | None:
    """A written value as of now: None when it has expired."""
    if type(value) is Expiring:
        return bytes(value) if value.expires_ms > (now_ms() if now is None else now) else None
    return value


def _conflict(transaction_id: int, did: str, space: Space, key: bytes) -> TransactionConflictError:
    if space is not Space.KV:
        # The number of a page says nothing to a user.
        return TransactionConflictError(
            f"transaction {transaction_id} {did} {_told(space, key)}, which another transaction changed first."
        )
    return TransactionConflictError(
        f"transaction {transaction_id} {did} the key {key[:64]!r}, which another transaction changed first.",
        details={"key": key},
    )


def _told(space: Space, key: bytes) -> str:
    """A record of another space than the keys of users, in their words."""
    if space is Space.SQL:
        return "SQL tables"
    if space is Space.TEXT:
        return "the words of a collection"
    if space is Space.CATALOG:
        return "what there is of namespaces and collections"
    name = key[4:].decode(errors="replace")
    return f"the {'document' if space is Space.DOCUMENTS else 'key'} {name[:64]!r}"
