"""Fixtures that the tests of hostile clients share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.raw import Raw, settled
from tests.support.daemon import Daemon


@pytest.fixture
def raw(daemon: Daemon) -> Iterator[Raw]:
    """A connection to the ``daemon`` of the test's file; nothing of it may be left behind."""
    with Raw(daemon.socket) as client:
        yield client
    with Raw(daemon.socket) as observer:
        settled(observer)
