"""Fixtures for the whole suite."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

Printed = Callable[[], str]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "daemon(*args): command line options of the `daemon` fixture")


def pytest_collection_finish() -> None:
    # What is there now (modules, the tests themselves) stays to the end. Otherwise the garbage collector looks at these
    # hundreds of thousands of objects again whenever a test, or Python by itself, runs it.
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """What was printed since the last call."""

    def out() -> str:
        found = capsys.readouterr()
        assert found.err == ""
        return found.out

    return out
