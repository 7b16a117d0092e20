"""Options that several commands share, and their common behaviour."""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

import click

from .config import DEFAULT_DATABASE

__all__ = [
    "EXIT_ERROR",
    "EXIT_NOT_ANSWERING",
    "EXIT_NOT_RUNNING",
    "ProgressLine",
    "database_option",
    "ends_on_sigterm",
    "json_option",
    "print_json",
    "setting",
    "socket_option",
    "timeout_option",
]

EXIT_ERROR = 1
EXIT_NOT_RUNNING = 3
EXIT_NOT_ANSWERING = 4
_REDRAW_SECONDS = 0.1


def setting(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option that can also be set in the environment: ``--max-clients`` by ``TOONDB_MAX_CLIENTS``.

    Args:
        names: As for ``click.option``; the long one names the variable.
        attributes: As for ``click.option``.
    """
    long = next(name for name in names if name.startswith("--"))
    variable = "TOONDB_" + long.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **attributes)


def database_option(function: Any) -> Any:
    """The ``--db`` option that every command takes."""
    return setting(
        "-d",
        "--db",
        "database",
        default=DEFAULT_DATABASE,
        show_default=True,
        metavar="PATH",
        help="Database folder.",
    )(function)


def socket_option(function: Any) -> Any:
    """The ``--socket`` option of the commands that talk to a daemon."""
    return setting(
        "-s",
        "--socket",
        "socket",
        default=None,
        metavar="PATH",
        help="Unix socket path.  [default: <db>/toondb.sock]",
    )(function)


def json_option(function: Any) -> Any:
    """The ``--json`` option."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def timeout_option(seconds: float, text: str) -> Callable[[Any], Any]:
    """A ``--timeout`` option in seconds."""
    kind = click.FloatRange(min=0, min_open=True, max=86_400)
    return click.option("--timeout", type=kind, default=seconds, show_default=True, metavar="SECONDS", help=text)


def print_json(body: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(body, indent=indent))


def ends_on_sigterm(function: Callable[..., None]) -> Callable[..., None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it removes what is unfinished."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            function(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, previous)

    return command


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


class ProgressLine:
    """One line on standard error that shows how far a command is; nothing when that is no terminal.

    Use as a context manager; the line is erased at the end.
    """

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` is reached."""
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _REDRAW_SECONDS
            percent = 100 * done // max(1, total)
            click.echo(f"\r{what} {percent:3d} %\x1b[K", nl=False, err=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shown and self._next:
            click.echo("\r\x1b[K", nl=False, err=True)
