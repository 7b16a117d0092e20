"""The whole daemon under a service manager: readiness, watchdog, socket activation, orderly end."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import SECONDS, Daemon, child_environ, server_command
from toondb_client import IpcClient

ACTIVATE = shutil.which("systemd-socket-activate")
needs_activate = pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")


def test_it_announces_its_life(tmp_db: Path, loop: str) -> None:
    with Daemon(tmp_db, loop=loop, env={"WATCHDOG_USEC": "200000"}) as daemon:
        ready = daemon.notifications[-1]
        assert "READY=1" in ready
        assert f"STATUS=Serving {tmp_db}" in ready
        for _ in range(3):
            assert daemon.wait_notified("WATCHDOG=1")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait_notified("STOPPING=1")
        assert daemon.wait() == 0


@needs_activate
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_an_activated_socket_is_served_and_left_alone(tmp_db: Path, loop: str) -> None:
    assert ACTIVATE is not None
    path = tmp_db.parent / "activated.sock"
    environment = child_environ()
    passed = [word for name in environment for word in ("-E", name)]
    process = subprocess.Popen(
        [ACTIVATE, f"--listen={path}", *passed, *server_command("--db", tmp_db, "--loop", loop)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "Listening on" in process.stderr.readline()
        identity = path.stat().st_ino
        # The connection is what starts the daemon; it waits in the socket until somebody accepts.
        with IpcClient.connect(path, timeout=SECONDS) as client:
            client.put("k", b"v")
            assert client.get("k") == b"v"
            assert client.server.pid == process.pid
            assert client.server.socket == ""
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert path.stat().st_ino == identity, "the manager's socket was replaced"
        assert not (tmp_db / "toondb.sock").exists()
        log = process.stderr.read()
        assert '"(activated)"' in log
        assert "Traceback" not in log
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
