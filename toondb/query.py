"""Prefix queries: a table, or the JSON objects under a key prefix, read as rows of TOON.

The row set is every key of the range whose value is a JSON object; when there is none, every pair of the
range, with the columns ``key`` and ``value``. All reads come from one snapshot or transaction. Results are
produced in steps so that a caller on an event loop can interleave other work; a step of None only yields.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from toondb.engine.catalog import TableSchema, decode_schema, schema_from_record, table_key
from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot, SnapshotScan
from toondb.engine.transaction import Transaction
from toondb.engine.write_set import Scan
from toondb.filters import compile_filter
from toondb.toon import MISSING, encode_header, encode_row
from toondb_protocol.errors import ValidationError
from toondb_protocol.keys import prefix_end
from toondb_protocol.record import now_ms

__all__ = ["RESULT_NAME", "PrefixQuery", "View", "find_table"]

RESULT_NAME = "result"
"""The table name in the TOON text of a query."""

View: TypeAlias = Snapshot | Transaction

_Plan: TypeAlias = tuple[bytes, bytes | None, list[str], bool]
"""Start and end of the range, the columns of a table, and whether rows are JSON objects."""

_STEP_ROWS = 256
_STEP_CELLS = 16_384
_STEP_BYTES = 256 * 1024


def find_table(view: View, name: bytes) -> TableSchema | None:
    """The schema of the table called ``name``, or None."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    key = table_key(text)
    if not text or len(key) > 511:
        return None
    if not isinstance(view, Transaction):
        return schema_from_record(text, view.record(Space.CATALOG, key))
    value = view.get(key, Space.CATALOG)
    return None if value is None else decode_schema(text, value)


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
    ) -> None:
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
        start, end, fields, objects = yield from self._plan(view)
        if fields and not columns:
            columns, seen = list(fields), set(fields)
            fixed = True
        else:
            fixed = bool(columns)
        for step in self._read(view, start, end, objects=objects):
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
        for step in self._read(view, start, end, objects=objects, width=len(columns)):
            lines = [self._line(key, row, columns) for key, row in step]
            if lines:
                yield (("" if first else ";") + ";".join(lines)).encode()
                first = False
            else:
                yield None
        self.row_count = count

    def rows(self, view: View) -> Generator[list[bytes], None, None]:
        """Steps of ``[key, TOON text of that row, key, ...]``; an empty step only yields."""
        start, end, fields, objects = yield from self._plan_rows(view)
        width = len(self._columns or fields)
        for step in self._read(view, start, end, objects=objects, width=width):
            flat: list[bytes] = []
            for key, row in step:
                columns = self._columns or fields or list(row)
                flat.append(key)
                flat.append((encode_header(RESULT_NAME, 1, columns) + self._line(key, row, columns)).encode())
                self.row_count += 1
            yield flat

    def count(self, view: View) -> Generator[int | None, None, None]:
        """Steps of None, then the number of rows."""
        start, end, _, objects = yield from self._plan(view)
        count = 0
        for step in self._read(view, start, end, objects=objects):
            count += len(step)
            yield None
        self.row_count = count
        yield count

    def _plan(self, view: View) -> Generator[None, None, _Plan]:
        """Decide the range, the fixed columns of a table, and whether rows are objects or plain pairs."""
        table = find_table(view, self._prefix)
        if table is not None:
            start = table.name.encode() + b"/"
            return start, prefix_end(start), [column.name for column in table.columns], True
        start, end = self._prefix, prefix_end(self._prefix)
        any_row = False
        scan = _open_scan(view, start, end, self._now)
        try:
            while not scan.exhausted:
                values = scan.batch(_STEP_ROWS, _STEP_BYTES)[1::2]
                any_row = any_row or bool(values)
                if any(_json_object(value) is not None for value in values):
                    return start, end, [], True
                yield None
        finally:
            scan.close()
        return start, end, [], not any_row

    def _plan_rows(self, view: View) -> Generator[list[bytes], None, _Plan]:
        plan = self._plan(view)
        while True:
            try:
                next(plan)
            except StopIteration as stop:
                decided: _Plan = stop.value
                return decided
            yield []

    def _read(
        self, view: View, start: bytes, end: bytes | None, *, objects: bool, width: int = 1
    ) -> Iterator[list[tuple[bytes, dict[str, Any]]]]:
        """The rows within offset and limit, in steps of a bounded number of cells, ``width`` in each row."""
        step_rows = max(1, min(_STEP_ROWS, _STEP_CELLS // max(1, width)))
        skip = self._offset
        left = self._limit or -1
        scan = _open_scan(view, start, end, self._now)
        try:
            while left and not scan.exhausted:
                step: list[tuple[bytes, dict[str, Any]]] = []
                pairs = iter(scan.batch(step_rows, _STEP_BYTES))
                for key, value in zip(pairs, pairs, strict=True):
                    row = _json_object(value) if objects else {"key": _shown(key), "value": _shown(value)}
                    if row is None or (self._matches is not None and not self._matches(row)):
                        continue
                    if skip:
                        skip -= 1
                        continue
                    step.append((key, row))
                    left -= 1
                    if not left:
                        break
                yield step
        finally:
            scan.close()

    @staticmethod
    def _line(key: bytes, row: dict[str, Any], columns: Sequence[str]) -> str:
        try:
            return encode_row([row.get(name, MISSING) for name in columns])
        except ValidationError as error:
            raise ValidationError(f"the value of key {key[:64]!r} cannot be shown as TOON: {error.message}") from None
