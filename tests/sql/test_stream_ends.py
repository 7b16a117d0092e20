"""A stream that was read to its end leaves nothing open in the daemon."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemon import Daemon
from toondb import IpcClient

ROWS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 40000) SELECT x, 'some text' FROM n"


def test_streams_of_several_windows_leave_no_cursor(tmp_db: Path) -> None:
    # More of them on one connection than may be open on it at once.
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket, max_connections=1) as client:
        for _ in range(20):
            assert sum(1 for _ in client.stream_sql(ROWS)) == 40_000
            assert client.stats()["open_cursors"] == 0
