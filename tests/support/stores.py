"""One store, in this process or behind a daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from toondb import Database, IpcClient

__all__ = ["KINDS", "open_store"]

KINDS = ["embedded", "ipc"]


@contextlib.contextmanager
def open_store(kind: str, folder: Path) -> Iterator[Any]:
    """A store of one of the kinds on a folder; a daemon ends with it."""
    if kind == "embedded":
        with Database.open(folder) as db:
            yield db
    else:
        with Daemon(folder) as daemon, IpcClient.connect(daemon.socket) as client:
            yield client
