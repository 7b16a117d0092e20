"""A clock that tests set, in the place of the one by which records expire; and no reclaiming behind their back."""

from __future__ import annotations

import pytest

from toondb import embedded
from toondb.engine import conditional, snapshot, transaction, write_batch
from toondb.engine.writer import Writer
from toondb_protocol import record

__all__ = ["Clock"]

_MODULES = (conditional, embedded, record, snapshot, transaction, write_batch)


class Clock:
    """The time, in milliseconds since 1970 UTC.

    Args:
        patch: Undoes it.

    Attributes:
        now: What every module of the engine reads.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000_000
        for module in _MODULES:
            patch.setattr(module, "now_ms", lambda: self.now)
        patch.setattr(Writer, "_reclaim", lambda _: 60.0)
