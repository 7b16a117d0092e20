"""A small connection to a running daemon, for the command line: hello and statistics.

It is not a client library (that is ``toondb_client``, which the server may not import): one request at a time,
and a deadline for each.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from toondb.engine.owner_lock import read_owner
from toondb_protocol.client_core import ClientCore, ReplyFrame, raise_error
from toondb_protocol.errors import ConfigurationError, ConnectionError, OperationTimeoutError, ProtocolError
from toondb_protocol.frames import encode_frame
from toondb_protocol.hello import ServerHello, client_hello, parse_server_hello
from toondb_protocol.layout import decode_map, encode_map
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply

from . import __version__
from .config import default_socket
from .listener import PeerCredentials, peer_credentials

__all__ = ["ControlConnection", "NotRunningError", "find_daemon", "server_pid"]

_NO_TXN = bytes(8)
_RECEIVE = 65536
_TIMEVAL = struct.Struct("ll")
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)


class NotRunningError(ConnectionError):
    """Nobody listens on the socket."""

    default_remediation = "Start it with: toondb-server --db FOLDER"


class ControlConnection:
    """A connection to a daemon.

    Args:
        path: The socket.
        timeout: Seconds for connecting, and for each request.

    Attributes:
        peer: Who listens, as the kernel recorded it; None where the platform does not say.

    Raises:
        NotRunningError: Nobody listens there.
        OperationTimeoutError: Somebody listens, but does not accept connections.
        ConnectionError, ConfigurationError: It cannot be reached; the message says why.
    """

    def __init__(self, path: str, timeout: float = 5.0) -> None:
        self.path = path
        self.timeout = timeout
        self._core = ClientCore()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect()
            self.peer: PeerCredentials | None = peer_credentials(self._socket)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self) -> None:
        # A blocking connect() waits for room in the backlog and ends by SO_SNDTIMEO; a non-blocking one fails at once.
        with contextlib.suppress(OSError, struct.error):
            whole = int(self.timeout)
            limit = _TIMEVAL.pack(whole, max(1, int((self.timeout - whole) * 1e6)))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._socket.connect(self.path)
        except BlockingIOError:
            raise self._silent("does not accept connections") from None
        except OSError as error:
            if error.errno in _NOBODY:
                raise NotRunningError(f"no server listens on {self.path}.") from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ConnectionError(
                    f"uid {os.geteuid()} may not connect to {self.path}.",
                    remediation="Run as the daemon's user, or start it with another --socket-mode or --socket-group.",
                ) from None
            if error.errno is None:  # longer than sun_path: raised by Python itself
                raise ConfigurationError(
                    f"the socket path {self.path} is too long: {error}.",
                    remediation="Name a shorter path with --socket, for example a relative one.",
                ) from None
            raise ConnectionError(f"{self.path} cannot be connected to: {error.strerror}.") from None

    def _silent(self, what: str) -> OperationTimeoutError:
        return OperationTimeoutError(
            f"the server on {self.path} {what} within {self.timeout:g} s.",
            remediation="It is overloaded or hangs: look at its log, or raise --timeout.",
        )

    def hello(self) -> ServerHello:
        """Exchange hellos.

        Raises:
            TooManyClientsError, PeerNotAllowedError: The daemon runs but refuses this connection.
            OperationTimeoutError: It does not answer in time.
            ProtocolError: It is not a ToonDB daemon.
        """
        body = encode_map(client_hello(f"toondb-server/{__version__}"))
        reply = self._request(Opcode.PING, Reply.PONG, body)
        return parse_server_hello(decode_map(reply.payload))

    def stats(self) -> dict[str, Any]:
        """The counters of the server and of the storage engine."""
        reply = self._request(Opcode.STATS, Reply.STATS_RESP)
        try:
            stats = json.loads(reply.payload)
        except ValueError:
            stats = None
        if not isinstance(stats, dict):
            raise ProtocolError("the server's statistics are not a JSON object")
        return stats

    def _request(self, opcode: Opcode, expected: Reply, body: bytes = b"") -> ReplyFrame:
        deadline = time.monotonic() + self.timeout
        core = self._core
        core.sent(1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A server that refuses us has closed already, but what it said can still be read.
            self._wait(deadline)
            try:
                self._socket.sendall(encode_frame(opcode | EXTENDED, _NO_TXN + body))
            except TimeoutError:
                raise self._silent("does not read") from None
        while not core.replies:
            self._wait(deadline)
            try:
                data = self._socket.recv(_RECEIVE)
            except TimeoutError:
                raise self._silent("does not answer") from None
            except OSError as error:
                raise core.lost(f"the connection to {self.path} broke: {error.strerror}.") from None
            if not data:
                raise core.lost(f"the server on {self.path} closed the connection.")
            core.receive(data)
        reply = core.replies.popleft()
        if reply.code != expected:
            raise_error(reply)
        return reply

    def _wait(self, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_daemon(database: str, socket_path: str | None, timeout: float) -> ControlConnection:
    """Connect to the daemon of a database.

    When no socket is named and nobody listens on the usual one, the daemon may have been started with another
    ``--socket``: the owner lock's text says which. It is only a hint, so whoever answers there is asked whether it
    serves this database.

    Args:
        database: ``--db`` as the user wrote it.
        socket_path: ``--socket``, when given.
        timeout: Seconds for connecting, and for each request.

    Raises:
        NotRunningError: Nobody serves it; the message names the socket as the user wrote or derived it.
    """
    path = socket_path or default_socket(database)
    try:
        return ControlConnection(path, timeout)
    except NotRunningError:
        hinted = None if socket_path else _hinted_socket(database)
        if hinted is None:
            raise
        other: ControlConnection | None = None
        try:
            other = ControlConnection(hinted, timeout)
            if os.path.realpath(other.hello().database) == os.path.realpath(os.path.expanduser(database)):
                return other
        except (ConnectionError, ProtocolError):
            pass  # a stale hint; what the user wrote counts
        if other is not None:
            other.close()
        raise


def _hinted_socket(database: str) -> str | None:
    owner = read_owner(Path(os.path.expanduser(database)))
    path = owner.get("socket")
    return path if owner.get("role") == "daemon" and isinstance(path, str) and path else None


def server_pid(hello: ServerHello, peer: PeerCredentials | None) -> int | None:
    """The daemon's process id as this process must name it, or None when that cannot be told.

    The hello has the pid in the daemon's own pid namespace; the kernel's peer credentials have the pid here, but of
    the process that called ``listen()``, which is the service manager when the socket was activated. Where the two
    differ, ``NSpid`` of proc_pid_status(5) tells which of the cases it is. Signalling the wrong one of them would
    end the user's service manager.
    """
    if peer is None or hello.pid == peer.pid:
        return hello.pid or None
    if peer.pid and _innermost_pid(peer.pid) == hello.pid:
        return peer.pid
    if hello.pid and _innermost_pid(hello.pid) == hello.pid and _is_server(hello.pid):
        return hello.pid
    return None


def _innermost_pid(pid: int) -> int | None:
    """The pid of a process in its own namespace."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


def _is_server(pid: int) -> bool:
    """Whether a process looks like a ToonDB daemon by its command line."""
    with contextlib.suppress(OSError):
        return b"toondb" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
