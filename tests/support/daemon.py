"""A real daemon for tests: started exactly, waited for exactly, never left behind.

Readiness is what the daemon itself announces through ``NOTIFY_SOCKET``; nothing here sleeps. Every wait is
bounded, and what does not happen in time fails the test with the daemon's own log.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

__all__ = ["SECONDS", "Daemon", "DaemonError", "child_environ", "run_server", "server_command"]

SECONDS = 30.0
"""Bound of every wait for another process; never reached in a passing run."""


class DaemonError(AssertionError):
    """The daemon did not start, or did not end as it must; the message shows its log."""


def child_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: this one's without what would change a daemon, plus ``extra``."""
    private = ("TOONDB_", "NOTIFY_", "LISTEN_", "WATCHDOG_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    environ |= {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    environ.update(extra or {})
    return environ


def server_command(*args: str | os.PathLike[str]) -> list[str]:
    """The command line of ``toondb-server`` under this interpreter; warnings are errors there too."""
    return [sys.executable, "-W", "error", "-m", "toondb_server", *(os.fspath(arg) for arg in args)]


def run_server(
    *args: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = SECONDS,
    user: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a ``toondb-server`` command to its end and capture its text; one that hangs fails the test."""
    return subprocess.run(
        server_command(*args),
        env=child_environ(env),
        cwd=cwd,
        timeout=timeout,
        user=user,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


class Daemon:
    """A running ``toondb-server``; ready to be connected to when the constructor returns.

    As a context manager it stops the daemon at the end of the block (when it still runs) and then demands
    exit status 0 and a log without a traceback.

    Args:
        db: The database folder.
        args: More command line options.
        env: More environment variables.
        loop: ``--loop``: ``auto``, ``uvloop`` or ``asyncio``; None leaves the option out.
        cwd: Working directory of the daemon.
        timeout: Seconds within which it must be ready.

    Attributes:
        db: The database folder, as given.
        socket: The socket that it listens on (absolute).
        pid: Its process id.
        process: The child process.
        notifications: Datagrams sent to the service manager so far, as far as they were read.

    Raises:
        DaemonError: It ended, or was not ready in time.
    """

    def __init__(
        self,
        db: str | os.PathLike[str],
        *args: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        loop: str | None = "auto",
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = SECONDS,
    ) -> None:
        self.db = Path(db)
        self._args = [os.fspath(arg) for arg in args]
        self.socket = self._socket_path(env or {}, cwd)
        self.notifications: list[str] = []
        # Not below the database folder, which a test may make unreadable or compare.
        self._folder = Path(tempfile.mkdtemp(prefix="toondb-test-"))
        self._log = self._folder / "log"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            notify = self._folder / "notify"
            self._manager.bind(str(notify))
            command = server_command("--db", db, *(() if loop is None else ("--loop", loop)), *args)
            with self._log.open("wb") as log:
                self.process = subprocess.Popen(
                    command,
                    env=child_environ({"NOTIFY_SOCKET": str(notify), **(env or {})}),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        except BaseException:
            self._forget()
            raise
        self.pid = self.process.pid
        try:
            if not self.wait_notified("READY=1", timeout=timeout):
                self._fail(f"ended with status {self.process.returncode} before it was ready")
        except BaseException:
            self.kill()
            raise

    def _socket_path(self, env: Mapping[str, str], cwd: str | os.PathLike[str] | None) -> Path:
        path: str | os.PathLike[str] = env.get("TOONDB_SOCKET") or self.db / "toondb.sock"
        for at, arg in enumerate(self._args):
            if arg in ("--socket", "-s"):
                path = self._args[at + 1]
            elif arg.startswith("--socket="):
                path = arg.partition("=")[2]
        return Path(cwd or os.getcwd(), path).absolute()

    # What it says

    @property
    def log(self) -> str:
        """Everything it wrote to standard output and standard error so far."""
        if not self._log.exists():
            return self._last_log
        return self._log.read_text(errors="replace")

    _last_log = ""

    def wait_notified(self, text: str, *, timeout: float = SECONDS) -> bool:
        """Wait until a datagram to the service manager contains ``text``.

        Returns:
            Whether it came; False when the daemon ended without it.

        Raises:
            DaemonError: Neither happened within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        pidfd = os.pidfd_open(self.pid)
        try:
            while True:
                ready, _, _ = select.select(
                    [self._manager.fileno(), pidfd], [], [], max(0.0, deadline - time.monotonic())
                )
                if self._manager.fileno() in ready:
                    message = self._manager.recv(4096).decode()
                    self.notifications.append(message)
                    if text in message:
                        return True
                elif ready:
                    self.process.wait()
                    return False
                else:
                    self._fail(f"did not announce {text!r} within {timeout:g} s")
        finally:
            os.close(pidfd)

    # How it ends

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.process.poll() is None

    def wait(self, timeout: float = SECONDS) -> int:
        """Wait for its end; returns the exit status (negative: the signal that killed it)."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._fail(f"did not end within {timeout:g} s")

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = SECONDS) -> int:
        """Ask it to stop, wait, and return the exit status. Idempotent."""
        if self.running:
            self.send_signal(number)
        try:
            return self.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> int:
        """End it with SIGKILL when it still runs, reap it, and return the exit status. Idempotent."""
        if self.running:
            self.process.kill()
        status = self.process.wait(SECONDS)
        self._forget()
        return status

    def _forget(self) -> None:
        if self._log.exists():
            self._last_log = self._log.read_text(errors="replace")
        self._manager.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fail(self, what: str) -> NoReturn:
        raise DaemonError(f"the daemon on {self.db} {what}; its log:\n{self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_running = self.running
        try:
            status = self.stop()
        finally:
            self.kill()
        if error is None:
            if was_running and status != 0:
                self._fail(f"ended with status {status}")
            if "Traceback" in self.log:
                self._fail("logged a traceback")
