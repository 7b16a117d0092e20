"""The processes that a run starts: every one is known by its pid and ended at the end.

Children get a session of their own, so Ctrl-C reaches the benchmark alone, which then ends them in order.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Child", "ChildError", "Children", "project_environment"]

ROOT = Path(__file__).resolve().parent.parent


class ChildError(RuntimeError):
    """A child process did not start, or ended before its time."""


def project_environment() -> dict[str, str]:
    """The environment in which a child imports the packages of this source tree."""
    environment = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "protocol"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment.pop("NOTIFY_SOCKET", None)
    return environment


@dataclass(slots=True)
class Child:
    """A running child process.

    Attributes:
        ready_seconds: Time from before the start of the process to its ``READY=1``; 0.0 when not awaited.
    """

    label: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_seconds: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    def last_words(self) -> str:
        """The end of what it wrote, for an error message."""
        text = self.log.read_text(encoding="utf-8", errors="replace").strip() if self.log.exists() else ""
        return text[-600:] or "it wrote nothing"


class Children:
    """Starts children and ends all that are left when the ``with`` block ends.

    Args:
        folder: A folder with a short path, for logs and notification sockets.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Child] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._running):
            child.process.terminate()
        for child in reversed(self._running.copy()):
            self.stop(child)

    def start(
        self,
        arguments: Sequence[str],
        *,
        label: str,
        ready_timeout: float | None = None,
        pipes: bool = False,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a process.

        Args:
            arguments: Program and arguments.
            label: Its name in messages.
            ready_timeout: Seconds to wait for ``READY=1`` on ``NOTIFY_SOCKET`` (sd_notify(3)); None = do not wait.
            pipes: Give it a pipe as standard input and output.
            pass_fds: Descriptors that it inherits.
            environment: Its environment; default: :func:`project_environment`.

        Raises:
            ChildError: It could not be started, ended early or did not become ready in time.
        """
        self._count += 1
        log = self._folder / f"{self._count}.log"
        env = dict(environment or project_environment())
        with contextlib.ExitStack() as stack:
            notify: socket.socket | None = None
            if ready_timeout is not None:
                path = self._folder / f"{self._count}.notify"
                notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                notify.bind(str(path))
                stack.callback(path.unlink)
                env["NOTIFY_SOCKET"] = str(path)
            output = stack.enter_context(log.open("wb"))
            started = time.perf_counter()
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipes else output,
                    stderr=output,
                    env=env,
                    cwd=ROOT,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            except OSError as error:
                raise ChildError(f"{label} could not be started: {error}") from error
            child = Child(label, process, log)
            self._running.append(child)
            if notify is not None and ready_timeout is not None:
                try:
                    self._await_ready(child, notify, started + ready_timeout)
                except BaseException:
                    self.stop(child)
                    raise
                child.ready_seconds = time.perf_counter() - started
        return child

    @staticmethod
    def _await_ready(child: Child, notify: socket.socket, deadline: float) -> None:
        exited = os.pidfd_open(child.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(notify, selectors.EVENT_READ)
                selector.register(exited, selectors.EVENT_READ)
                while True:
                    events = selector.select(max(0.0, deadline - time.perf_counter()))
                    if not events:
                        raise ChildError(f"{child.label} was not ready in time: {child.last_words()}")
                    for key, _ in events:
                        if key.fileobj is notify and b"READY=1" in notify.recv(4096).split(b"\n"):
                            return
                    if any(key.fileobj == exited for key, _ in events):
                        raise ChildError(f"{child.label} ended before it was ready: {child.last_words()}")
        finally:
            os.close(exited)

    def stop(self, child: Child, timeout: float = 15.0) -> None:
        """End one child: SIGTERM, and SIGKILL when it is still there after ``timeout`` seconds."""
        if child not in self._running:
            return
        self._running.remove(child)
        process = child.process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
