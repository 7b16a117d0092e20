"""A Unix-socket proxy that cuts, holds or corrupts what passes between a client and a daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Proxy"]


class _Way:
    """One direction of one connection."""

    def __init__(self, proxy: Proxy, source: socket.socket, target: socket.socket, *, up: bool) -> None:
        self._proxy, self._source, self._target, self._up = proxy, source, target, up
        self.passed = 0

    def run(self) -> None:
        proxy = self._proxy
        with contextlib.suppress(OSError):
            while data := self._source.recv(65536):
                if not self._up:
                    proxy.open_gate.wait()
                cut = proxy.cut_up if self._up else proxy.cut_down
                rest = data if cut is None else data[: max(0, cut - self.passed)]  # the next byte brings the cut
                flip = proxy.corrupt_down
                if not self._up and flip is not None and self.passed <= flip < self.passed + len(rest):
                    at = flip - self.passed
                    rest = rest[:at] + bytes([rest[at] ^ proxy.corrupt_mask]) + rest[at + 1 :]
                self.passed += len(data)
                with proxy.changed:
                    if self._up:
                        proxy.bytes_up += len(rest)
                    else:
                        proxy.bytes_down += len(rest)
                    proxy.changed.notify_all()
                # Counted first: who has received something finds it counted.
                self._target.sendall(rest)
                if len(rest) < len(data):
                    break
        for end in (self._source, self._target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on a socket of its own and connects every client through to ``target``.

    Positions count the bytes of one connection and direction. They hold for the connections that exist and
    those that come; None switches them off.

    Attributes:
        path: Where clients connect.
        cut_up: Cut a connection after so many bytes of the client.
        cut_down: Cut a connection after so many bytes of the daemon.
        corrupt_down: Flip bits of this byte of the daemon.
        corrupt_mask: Which bits.
        bytes_up: Bytes of clients passed on so far, over all connections.
        bytes_down: Bytes of the daemon passed on so far, over all connections.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self._target = os.fspath(target)
        self._folder = tempfile.mkdtemp(prefix="toondb-proxy-")
        self.path = Path(self._folder, "proxy.sock")
        self.cut_up: int | None = None
        self.cut_down: int | None = None
        self.corrupt_down: int | None = None
        self.corrupt_mask = 0xFF
        self.bytes_up = self.bytes_down = 0
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sockets += (client, server)
            if self._closing:
                client.close()
                return
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                continue
            for way in (_Way(self, client, server, up=True), _Way(self, server, client, up=False)):
                thread = threading.Thread(target=way.run)
                self._threads.append(thread)
                thread.start()

    def hold(self) -> None:
        """Keep everything that the daemon says from now on until :meth:`let_go`."""
        self.open_gate.clear()

    def let_go(self) -> None:
        """Pass on what was held."""
        self.open_gate.set()

    def wait_up(self, count: int, timeout: float = 30.0) -> None:
        """Wait until so many bytes of clients were passed on in all."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.bytes_up >= count, timeout), "the client sent nothing"

    def cut(self) -> None:
        """Cut all connections now."""
        for item in list(self._sockets):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def losing_the_reply(self) -> Iterator[None]:
        """Hold replies, and cut all connections as soon as the call in this block has sent some bytes."""
        self.hold()
        before = self.bytes_up

        def cut() -> None:
            self.wait_up(before + 5)
            self.cut()
            self.let_go()

        thread = threading.Thread(target=cut)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def heal(self) -> None:
        """No more faults for connections that come."""
        self.cut_up = self.cut_down = self.corrupt_down = None
        self.let_go()

    def close(self) -> None:
        """End everything."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.let_go()
        self.cut()
        for thread in self._threads:
            thread.join()
        for item in self._sockets:
            item.close()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
