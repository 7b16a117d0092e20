"""Logging of the daemon: readable lines on a terminal, JSON lines otherwise, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

__all__ = ["LEVELS", "configure", "get_logger"]

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: str, stream: TextIO | None = None) -> None:
    """Set up logging for this process.

    Args:
        level: One of :data:`LEVELS`.
        stream: Where lines go; standard error when None.
    """
    target = stream if stream is not None else sys.stderr
    renderer: Any
    if target.isatty():
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    else:
        renderer = structlog.processors.JSONRenderer()
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.format_exc_info,
            renderer,
        ]
        if not target.isatty()
        else [structlog.processors.add_log_level, stamp, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=_Forgiving(target)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


class _Forgiving:
    """A stream that never fails its writer: a closed pipe or a full disk must not stop the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


def get_logger() -> Any:
    """The daemon's logger."""
    return structlog.get_logger("toondb")
