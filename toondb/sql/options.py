"""Options of SQL."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SqlOptions"]


@dataclass(frozen=True, slots=True)
class SqlOptions:
    """How statements are run.

    Args:
        foreign_keys: Enforce FOREIGN KEY constraints.
        statement_seconds: A statement may run for so long; None = for ever.
        memory: Bytes that SQLite may take in this process, all databases together; 0 = any.
        longest_value: A text or blob may have so many bytes; 0 = as many as SQLite's own limit here, 256 MiB.
    """

    foreign_keys: bool = False
    statement_seconds: float | None = None
    memory: int = 0
    longest_value: int = 0
