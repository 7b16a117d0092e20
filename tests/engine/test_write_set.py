"""The write set, and scans merged over it, against a dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toondb.engine.write_set import ABSENT, MergedScan, Scan, WriteSet

KEYS = st.binary(min_size=1, max_size=2)
VALUES = st.none() | st.binary(max_size=3)
WRITES = st.lists(st.tuples(KEYS, VALUES), max_size=30)
BOUND = st.none() | st.binary(max_size=2)


class ListScan:
    """Stored rows as a scan; the reference for what lies below a write set."""

    def __init__(self, rows: list[tuple[bytes, bytes]]) -> None:
        self._rows = rows[::-1]
        self.exhausted = False
        self.last_key: bytes | None = None
        self.closed = False

    def batch(self, max_rows: int, max_bytes: int) -> list[bytes]:
        out: list[bytes] = []
        size = 0
        while self._rows and max_rows > len(out) // 2 and size < max_bytes:
            key, value = self._rows.pop()
            out += (key, value)
            size += len(key) + len(value)
            self.last_key = key
        # As a real scan: it learns of its end only when it looks for one more row.
        self.exhausted = not self._rows and len(out) // 2 < max_rows and size < max_bytes
        return out

    def pairs(self, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        flat = self.batch(max_rows, max_bytes)
        return list(zip(flat[::2], flat[1::2], strict=True))

    def close(self) -> None:
        self.closed = True


ROOM = 1 << 30


@given(WRITES, KEYS, BOUND)
def test_it_is_a_sorted_dict(writes: list[tuple[bytes, bytes | None]], start: bytes, end: bytes | None) -> None:
    written = WriteSet()
    model: dict[bytes, bytes | None] = {}
    for at, (key, value) in enumerate(writes):
        before = written.size
        grows = written.put(key, value, ROOM)
        assert grows is not None
        model[key] = value
        assert written.size - before == grows
        assert written.put(key, b"x" * 100, 99 - len(value or b"")) is None
        assert written.size == sum(len(k) + len(v or b"") for k, v in model.items())
        if at % 3 == 0:
            assert written.keys() == sorted(model)
    assert len(written) == len(model)
    assert list(written.items()) == sorted(model.items())
    assert written.values() == [value for _, value in sorted(model.items())]
    assert written.is_disjoint([b"never written"])
    assert not model or not written.is_disjoint(list(model)[-1:])
    for key in [*model, start]:
        assert written.get(key) == model.get(key, ABSENT)
        assert (key in written) == (key in model)
    expected = [(k, v) for k, v in sorted(model.items()) if k >= start and (end is None or k < end)]
    assert written.range(start, end) == expected


def test_a_range_does_not_show_later_writes() -> None:
    written = WriteSet()
    written.put(b"a", b"1", ROOM)
    frozen = written.range(b"", None)
    written.put(b"a", b"2", ROOM)
    written.put(b"b", b"3", ROOM)
    assert frozen == [(b"a", b"1")]


def rows_of(scan: Scan, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
    """All rows of a scan; every batch is checked against its limits."""
    rows: list[tuple[bytes, bytes]] = []
    while not scan.exhausted:
        flat = scan.batch(max_rows, max_bytes)
        batch = list(zip(flat[::2], flat[1::2], strict=True))
        assert len(batch) <= max_rows
        assert sum(len(k) + len(v) for k, v in batch[:-1]) < max_bytes
        assert batch or scan.exhausted
        rows += batch
        if rows:
            assert scan.last_key == rows[-1][0]
    assert scan.batch(max_rows, max_bytes) == []
    return rows


@given(
    st.dictionaries(KEYS, st.binary(max_size=3), max_size=20),
    st.dictionaries(KEYS, VALUES, max_size=20),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_a_merged_scan_is_the_merged_dict(
    stored: dict[bytes, bytes], changes: dict[bytes, bytes | None], reverse: bool, max_rows: int, max_bytes: int
) -> None:
    base = ListScan(sorted(stored.items(), reverse=reverse))
    scan = MergedScan(base, sorted(changes.items()), reverse=reverse)
    merged = {key: value for key, value in (stored | changes).items() if value is not None}
    assert rows_of(scan, max_rows, max_bytes) == sorted(merged.items(), reverse=reverse)
    scan.close()
    assert base.closed


def test_a_closed_merged_scan_gives_nothing_more() -> None:
    base = ListScan([(b"a", b"1"), (b"c", b"3")])
    scan = MergedScan(base, [(b"b", b"2"), (b"d", b"4")])
    assert scan.batch(1, 100) == [b"a", b"1"]
    scan.close()
    scan.close()
    assert scan.exhausted
    assert base.closed


def test_very_many_deletes_do_not_hold_a_batch_up() -> None:
    writes = WriteSet()
    for number in range(20_000):
        writes.put(b"%06d" % number, None, ROOM)
    writes.put(b"last", b"v", ROOM)

    class Empty:
        exhausted = True
        last_key = None

        def batch(self, max_rows: int, max_bytes: int) -> list[bytes]:
            return []

        def pairs(self, max_rows: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
            return []

        def close(self) -> None:
            pass

    scan = MergedScan(Empty(), writes.range(b"", None))
    first = scan.batch(100, 1000)
    assert (first, scan.exhausted) == ([], False)
    rows: list[bytes] = []
    while not scan.exhausted:
        rows += scan.batch(100, 1000)
    assert rows == [b"last", b"v"]
