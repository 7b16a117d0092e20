"""The engine against a model: every version of the store kept as a dict, and the rules of conflict in a few lines."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, Isolation, SyncMode
from toondb.engine.transaction import Transaction
from toondb.engine.write_set import Scan
from toondb_protocol.errors import ToonDBError, TransactionConflictError

KEYS = st.sampled_from([b"a", b"aa", b"ab", b"b", b"ba", b"c", b"\xff", b"k" * 511])
VALUES = st.sampled_from([b"", b"1", b"2", b"v" * 5000])
BOUNDS = st.sampled_from([b"", b"a", b"ab", b"b", b"bb", b"c", b"\xff\xff"])
ENDS = st.none() | BOUNDS

Rows = dict[bytes, tuple[bytes, int]]
"""A version of the store: value and LSN by key."""


@dataclass
class Begun:
    """A transaction, and what the model knows of it."""

    real: Transaction
    seen: Rows
    lsn: int
    writes: dict[bytes, bytes | None] = field(default_factory=dict)
    points: set[bytes] = field(default_factory=set)
    ranges: list[tuple[bytes, bytes | None]] = field(default_factory=list)

    def view(self) -> dict[bytes, bytes]:
        merged: dict[bytes, bytes | None] = {key: value for key, (value, _) in self.seen.items()}
        merged |= self.writes
        return {key: value for key, value in merged.items() if value is not None}

    def conflicts(self, now: Rows) -> bool:
        """First committer wins on what was written; backward validation of what was read."""
        keys = set(self.writes)
        if self.real.isolation is Isolation.SERIALIZABLE:
            keys |= self.points
            keys |= {key for key in self.seen.keys() | now.keys() if any(inside(key, *r) for r in self.ranges)}
        return any(self.seen.get(key) != now.get(key) for key in keys)


def inside(key: bytes, start: bytes, end: bytes | None) -> bool:
    return key >= start and (end is None or key < end)


def expected_rows(
    view: dict[bytes, bytes], start: bytes, end: bytes | None, reverse: bool
) -> list[tuple[bytes, bytes]]:
    return sorted(((k, v) for k, v in view.items() if inside(k, start, end)), reverse=reverse)


def read(scan: Scan, limit: int, max_rows: int) -> list[tuple[bytes, bytes]]:
    """At most ``limit`` rows, in batches."""
    rows: list[tuple[bytes, bytes]] = []
    while len(rows) < limit and not scan.exhausted:
        flat = scan.batch(min(max_rows, limit - len(rows)), 6000)
        rows += zip(flat[::2], flat[1::2], strict=True)
    return rows


class EngineMachine(RuleBasedStateMachine):
    transactions: Bundle[Begun] = Bundle("transactions")

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp(prefix="toondb-"))
        self.rows: Rows = {}
        self.lsn = 0
        self.open: list[Begun] = []

    @initialize()
    def start(self) -> None:
        self.engine = Engine(self.parent / "db", EngineOptions(sync_mode=SyncMode.OFF, map_size=64 << 20))
        self.reader = self.engine.reader()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.reader.release()
            self.engine.close()
        shutil.rmtree(self.parent)

    def values(self) -> dict[bytes, bytes]:
        return {key: value for key, (value, _) in self.rows.items()}

    def apply(self, writes: dict[bytes, bytes | None]) -> None:
        self.lsn += 1
        self.rows = dict(self.rows)
        for key, value in writes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = (value, self.lsn)

    # Single operations

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        self.apply({key: value})
        assert self.engine.put(key, value) == self.lsn

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        if key in self.rows:
            self.apply({key: None})
        assert self.engine.delete(key) == self.lsn

    @rule(writes=st.lists(st.tuples(KEYS, st.none() | VALUES), min_size=1, max_size=5))
    def write(self, writes: list[tuple[bytes, bytes | None]]) -> None:
        expected = []
        for key, value in writes:
            if value is not None or key in self.rows:
                self.apply({key: value})
            expected.append(self.lsn)
        assert self.engine.write(list(writes)) == expected

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        expected = self.values().get(key)
        assert self.engine.get(key) == expected
        raw = self.reader.get(key)
        assert (None if raw is None else raw[13:]) == expected

    @rule(start=BOUNDS, end=ENDS, reverse=st.booleans(), limit=st.integers(1, 9), max_rows=st.integers(1, 4))
    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int, max_rows: int) -> None:
        scan = self.engine.scan(start, end, reverse=reverse)
        assert read(scan, limit, max_rows) == expected_rows(self.values(), start, end, reverse)[:limit]
        scan.close()

    # Transactions

    @rule(target=transactions, isolation=st.sampled_from(Isolation))
    def begin(self, isolation: Isolation) -> Begun:
        begun = Begun(self.engine.begin(isolation), self.rows, self.lsn)
        assert begun.real.snapshot.lsn == self.lsn
        self.open.append(begun)
        return begun

    @rule(begun=transactions, key=KEYS, value=st.none() | VALUES)
    def txn_put(self, begun: Begun, key: bytes, value: bytes | None) -> None:
        if begun in self.open:
            begun.real.put(key, value)
            begun.writes[key] = value

    @rule(begun=transactions, key=KEYS)
    def txn_get(self, begun: Begun, key: bytes) -> None:
        if begun in self.open:
            assert begun.real.get(key) == begun.view().get(key)
            if key not in begun.writes:
                begun.points.add(key)

    @rule(
        begun=transactions,
        start=BOUNDS,
        end=ENDS,
        reverse=st.booleans(),
        limit=st.integers(0, 9),
        max_rows=st.integers(1, 4),
    )
    def txn_scan(self, begun: Begun, start: bytes, end: bytes | None, reverse: bool, limit: int, max_rows: int) -> None:
        if begun not in self.open:
            return
        scan = begun.real.scan(start, end, reverse=reverse)
        rows = read(scan, limit, max_rows)
        assert rows == expected_rows(begun.view(), start, end, reverse)[:limit]
        # What was read: all of it at the end, else as far as the last row, and nothing before the first step.
        if scan.exhausted and limit:
            begun.ranges.append((start, end))
        elif rows:
            last = rows[-1][0]
            begun.ranges.append((last, end) if reverse else (start, last + b"\0"))

    @rule(begun=consumes(transactions))
    def commit(self, begun: Begun) -> None:
        if begun not in self.open:
            return
        self.open.remove(begun)
        if not begun.writes:
            assert self.engine.commit(begun.real) == begun.lsn
        elif begun.conflicts(self.rows):
            try:
                lsn = self.engine.commit(begun.real)
            except TransactionConflictError:
                return
            raise AssertionError(f"committed as {lsn} in spite of a conflict")
        else:
            self.apply(begun.writes)
            assert self.engine.commit(begun.real) == self.lsn

    @rule(
        isolation=st.sampled_from(Isolation),
        gets=st.sets(KEYS, max_size=2),
        scans=st.lists(st.tuples(BOUNDS, ENDS, st.booleans(), st.integers(0, 3)), max_size=1),
        writes=st.dictionaries(KEYS, st.none() | VALUES, max_size=2),
        theirs=st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=3),
    )
    def race(
        self,
        isolation: Isolation,
        gets: set[bytes],
        scans: list[tuple[bytes, bytes | None, bool, int]],
        writes: dict[bytes, bytes | None],
        theirs: list[tuple[bytes, bytes | None]],
    ) -> None:
        """A whole transaction around writes of others: what the rules above rarely come to by themselves."""
        begun = self.begin(isolation)
        for key in gets:
            self.txn_get(begun, key)
        for start, end, reverse, limit in scans:
            self.txn_scan(begun, start, end, reverse, limit, 2)
        for key, value in writes.items():
            self.txn_put(begun, key, value)
        if theirs:
            self.write(theirs)
        self.commit(begun)

    @rule(begun=consumes(transactions))
    def abort(self, begun: Begun) -> None:
        if begun in self.open:
            self.open.remove(begun)
            self.engine.abort(begun.real)

    # The store

    @rule()
    def checkpoint(self) -> None:
        assert self.engine.checkpoint() == self.lsn

    @rule(really=st.integers(0, 7))
    def reopen(self, really: int) -> None:
        if really:  # rarely: it ends every transaction
            return
        self.engine.close()
        for begun in self.open:
            try:
                begun.real.get(b"a")
            except ToonDBError:
                continue
            raise AssertionError("a transaction outlived its engine")
        self.open.clear()
        self.start()

    @invariant()
    def counts_match(self) -> None:
        if hasattr(self, "engine"):
            stats = self.engine.stats()
            assert stats["lsn"] == self.lsn
            assert stats["keys_count"] == len(self.rows)
            assert stats["active_transactions"] == len(self.open)


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineModel = EngineMachine.TestCase
