"""The replies to SQL, packed."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from .requests import end_stream, frames_of_rows

if TYPE_CHECKING:
    from toondb.sql.connection import Outcome

__all__ = ["end_of_rows", "whole_reply"]

_LONGEST_KEPT_NAMES = 4096
_KEPT = 512


def end_of_rows(rows: int, cursor: int | None, affected: int = 0, last_row_id: int = 0) -> bytes:
    """The END_STREAM of a statement.

    Args:
        rows: Rows sent since the last END_STREAM.
        cursor: Where its next rows are, None = it has ended.
        affected: Rows that it changed.
        last_row_id: Of the last row that it inserted.
    """
    return end_stream({"rows": rows, "cursor": cursor, "affected": affected, "last_row_id": last_row_id})


def whole_reply(outcome: Outcome, max_frame: int) -> bytes:
    """The reply to a read whose few rows are all there.

    Args:
        outcome: The rows.
        max_frame: Cap of a frame's payload in bytes.

    Raises:
        FrameTooLargeError: A row does not fit into a frame.
    """
    columns, rows, _, _ = outcome
    head, end = _around(max_frame, columns, len(rows))
    if not rows:
        return head + end
    values = rows[0] if len(rows) == 1 else list(chain.from_iterable(rows))
    return b"".join((head, *frames_of_rows(values, len(columns), max_frame), end))


def _around(max_frame: int, columns: list[str], rows: int) -> tuple[bytes, bytes]:
    """What comes before and after the rows; kept, as far as it is short."""
    if sum(map(len, columns)) > _LONGEST_KEPT_NAMES:
        return _pack_around(max_frame, columns, rows)
    return _kept_around(max_frame, tuple(columns), rows)


def _pack_around(max_frame: int, columns: list[str] | tuple[str, ...], rows: int) -> tuple[bytes, bytes]:
    return b"".join(frames_of_rows(columns, len(columns), max_frame)), end_of_rows(rows, None)


_kept_around = lru_cache(_KEPT)(_pack_around)
