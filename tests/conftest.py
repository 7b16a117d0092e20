"""Fixtures for the whole suite."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "daemon(*args): command line options of the `daemon` fixture")


@pytest.fixture
def tmp_db() -> Iterator[Path]:
    """A database folder that does not exist yet, in a fresh parent.

    The path is short: a Unix socket in it must fit in 107 bytes, and pytest's ``tmp_path`` may be longer.
    """
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    yield parent / "db"
    shutil.rmtree(parent)


@pytest.fixture
def loop() -> str:
    """The event loop of the ``daemon`` fixture; parametrise ``loop`` to run a test on several."""
    return "auto"


@pytest.fixture
def daemon(tmp_db: Path, loop: str, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A running daemon on ``tmp_db``; options come from ``@pytest.mark.daemon("--option", "value")``."""
    marker = request.node.get_closest_marker("daemon")
    with Daemon(tmp_db, *(() if marker is None else marker.args), loop=loop) as running:
        yield running
