"""A line on the terminal that shows how rows are coming along."""

from __future__ import annotations

import sys
import time

import click

__all__ = ["RowProgress", "rows_of"]

_REDRAW_SECONDS = 0.2


def rows_of(count: int) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} row{'' if count == 1 else 's'}"


class RowProgress:
    """Rows, bytes and the rate on standard error; nothing when that is no terminal.

    Use as a context manager; the line is erased at the end.

    Args:
        what: What is being done.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = 0.0
        self._drawn = False

    def restart(self, what: str) -> None:
        """Something else is being done from now on."""
        self._what = what
        self._started = time.monotonic()

    def __call__(self, rows: int, size: int, total: int = 0) -> None:
        """Show how far it is.

        Args:
            rows: Rows so far.
            size: Bytes so far.
            total: Bytes in all; 0 = unknown.
        """
        if not self._shown:
            return
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REDRAW_SECONDS
        self._drawn = True
        of_all = f" of {total / 1e6:,.1f}" if total else ""
        percent = f"  {min(100, 100 * size // total):3d} %" if total else ""
        rate = rows / max(now - self._started, 1e-9)
        line = f"{self._what} {rows_of(rows)}  {size / 1e6:,.1f}{of_all} MB{percent}  {rate:,.0f} rows/s"
        click.echo(f"\r{line}\x1b[K", nl=False, err=True)

    def __enter__(self) -> RowProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            click.echo("\r\x1b[K", nl=False, err=True)
