"""Prefix queries: a table, or the JSON objects under a key prefix, read as rows of TOON.

The row set is that of the SQL table or view with just this name; when there is none, every key of the range whose
value is a JSON object; and when there is none of these either, every pair of the range, with the columns ``key`` and
``value``. All reads come from one snapshot or transaction. Results are
produced in steps so that a caller on an event loop can interleave other work; a step of None only yields.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot, SnapshotScan
from toondb.engine.transaction import Transaction
from toondb.engine.write_set import Scan
from toondb.filters import compile_filter
from toondb.toon import MISSING, encode_header, encode_row
from toondb_protocol.errors import ValidationError
from toondb_protocol.keys import prefix_end
from toondb_protocol.record import now_ms

if TYPE_CHECKING:
    from toondb.sql.table import TableRows

__all__ = ["RESULT_NAME", "PrefixQuery", "RowStep", "View"]

RESULT_NAME = "result"
"""The table name in the TOON text of a query."""

View: TypeAlias = Snapshot | Transaction
RowStep: TypeAlias = list[tuple[bytes, dict[str, Any]]]
"""Some rows, each with its key."""

_STEP_ROWS = 256
_STEP_CELLS = 16_384
_STEP_BYTES = 256 * 1024


def _open_scan(view: View, start: bytes, end: bytes | None, now: int) -> Scan:
    if isinstance(view, Transaction):
        return view.scan(start, end, now=now)
    return SnapshotScan(view, Space.KV, start, end, now=now)


def _json_object(value: bytes) -> dict[str, Any] | None:
    """The JSON object in a value, or None when it is anything else."""
    if value.lstrip()[:1] != b"{":
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _shown(raw: bytes) -> str | bytes:
    """Text where it is text; TOON has a typed form for other bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


class PrefixQuery:
    """A query over a table or a key prefix.

    Args:
        prefix: A table's name, or the prefix of the keys.
        columns: Fields to show; none = the table's columns, or the union of the fields in first-seen order.
        limit: Rows at the most; 0 = no limit.
        offset: Rows to skip first.
        where: A filter that rows must meet, see ``toondb.filters``.
        table: The table that ``prefix`` names, when it names one.

    Raises:
        ValidationError: A column is asked for twice, or the filter is none.

    Attributes:
        row_count: Rows given out, once a result was read to its end.
    """

    def __init__(
        self,
        prefix: bytes,
        *,
        columns: Sequence[str] = (),
        limit: int = 0,
        offset: int = 0,
        where: Mapping[str, Any] | None = None,
        table: TableRows | None = None,
    ) -> None:
        self._table = table
        self._prefix = prefix
        self._matches = compile_filter(where) if where else None
        self._columns = list(columns)
        if len(set(self._columns)) != len(self._columns):
            raise ValidationError(f"a column is asked for twice in {self._columns!r}.")
        self._limit = limit
        self._offset = offset
        # A result is read twice: what expires in between must not be counted and then be missing.
        self._now = now_ms()
        self.row_count = 0

    def toon(self, view: View) -> Generator[bytes | None, None, None]:
        """The whole result as one TOON text, in parts of UTF-8.

        The header holds the count, so the range is read twice: flat memory instead of a second copy.
        """
        columns: list[str] = list(self._columns)
        seen = set(columns)
        count = 0
        objects = yield from self._has_objects(view)
        if self._table is not None and not columns:
            columns = list(self._table.columns)
        fixed = bool(columns)
        for step in self._read(view, objects=objects):
            for _, row in step:
                count += 1
                if not fixed:
                    for name in row:
                        if name not in seen:
                            seen.add(name)
                            columns.append(name)
            yield None
        yield encode_header(RESULT_NAME, count, columns).encode()
        first = True
        for step in self._read(view, objects=objects, width=len(columns)):
            lines = [self._line(key, row, columns) for key, row in step]
            if lines:
                yield (("" if first else ";") + ";".join(lines)).encode()
                first = False
            else:
                yield None
        self.row_count = count

    def rows(self, view: View) -> Generator[list[bytes], None, None]:
        """Steps of ``[key, TOON text of that row, key, ...]``; an empty step only yields."""
        plan = self._has_objects(view)
        while True:
            try:
                next(plan)
            except StopIteration as stop:
                objects: bool = stop.value
                break
            yield []
        fields = self._columns or (self._table.columns if self._table is not None else [])
        for step in self._read(view, objects=objects, width=len(fields)):
            flat: list[bytes] = []
            for key, row in step:
                columns = fields or list(row)
                flat.append(key)
                flat.append((encode_header(RESULT_NAME, 1, columns) + self._line(key, row, columns)).encode())
                self.row_count += 1
            yield flat

    def count(self, view: View) -> Generator[int | None, None, None]:
        """Steps of None, then the number of rows."""
        objects = yield from self._has_objects(view)
        count = 0
        for step in self._read(view, objects=objects):
            count += len(step)
            yield None
        self.row_count = count
        yield count

    def _has_objects(self, view: View) -> Generator[None, None, bool]:
        """Whether rows are JSON objects (or there are none), and not plain pairs."""
        if self._table is not None:
            return True
        any_row = False
        scan = _open_scan(view, self._prefix, prefix_end(self._prefix), self._now)
        try:
            while not scan.exhausted:
                values = scan.batch(_STEP_ROWS, _STEP_BYTES)[1::2]
                any_row = any_row or bool(values)
                if any(_json_object(value) is not None for value in values):
                    return True
                yield None
        finally:
            scan.close()
        return not any_row

    def _read(self, view: View, *, objects: bool, width: int = 1) -> Iterator[RowStep]:
        """The rows within offset and limit, in steps of a bounded number of cells, ``width`` in each row."""
        step_rows = max(1, min(_STEP_ROWS, _STEP_CELLS // max(1, width)))
        skip = self._offset
        left = self._limit or -1
        source = self._read_keys(view, step_rows, objects) if self._table is None else self._table.read(step_rows)
        with contextlib.closing(source):
            for found in source:
                step: RowStep = []
                for key, row in found:
                    if self._matches is not None and not self._matches(row):
                        continue
                    if skip:
                        skip -= 1
                        continue
                    step.append((key, row))
                    left -= 1
                    if not left:
                        break
                yield step
                if not left:
                    return

    def _read_keys(self, view: View, rows: int, objects: bool) -> Generator[RowStep, None, None]:
        """The rows of the key range, in steps."""
        scan = _open_scan(view, self._prefix, prefix_end(self._prefix), self._now)
        try:
            while not scan.exhausted:
                pairs = iter(scan.batch(rows, _STEP_BYTES))
                step = []
                for key, value in zip(pairs, pairs, strict=True):
                    row = _json_object(value) if objects else {"key": _shown(key), "value": _shown(value)}
                    if row is not None:
                        step.append((key, row))
                yield step
        finally:
            scan.close()

    @staticmethod
    def _line(key: bytes, row: dict[str, Any], columns: Sequence[str]) -> str:
        try:
            return encode_row([row.get(name, MISSING) for name in columns])
        except ValidationError as error:
            raise ValidationError(f"the row {key[:64]!r} cannot be shown as TOON: {error.message}") from None
