"""One blocking connection: moves bytes between a socket and the protocol core."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import Any

from toondb_protocol.client_core import ClientCore, ReplyFrame
from toondb_protocol.errors import (
    ConfigurationError,
    ConnectionError,
    OperationTimeoutError,
    ToonDBError,
    ValueTooLargeError,
)
from toondb_protocol.frames import HEADER_SIZE, MAX_MAX_FRAME
from toondb_protocol.hello import ServerHello

from . import calls

__all__ = ["MAX_PATH", "LostBeforeSending", "SyncConnection", "connect_error"]

_RECEIVE_BYTES = 64 * 1024
_PUMP_BYTES = 256 * 1024
_SMALL_FRAME = 64 * 1024
_LONGEST_POLL = 2_000_000_000
MAX_PATH = 107


class LostBeforeSending(Exception):
    """The peer had closed an idle connection; nothing of the request was delivered."""


def connect_error(path: str, error: OSError) -> ToonDBError:
    """The typed error for a failed connect."""
    if error.errno == errno.ENOENT:
        return ConnectionError(
            f"there is no socket at {path}.",
            remediation="Start the server: toondb-server --db FOLDER (its socket is FOLDER/toondb.sock).",
        )
    if error.errno in (errno.ECONNREFUSED, errno.ENOTSOCK):
        return ConnectionError(
            f"nothing listens on {path}.", remediation="Start the server: toondb-server --db FOLDER --socket " + path
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConnectionError(
            f"uid {os.geteuid()} may not connect to {path}.",
            remediation="Run as the server's user, or start it with --socket-mode and --socket-group.",
        )
    return ConnectionError(f"cannot connect to {path}: {error.strerror or error}.")


def check_frames(frames: list[bytes], cap: int) -> None:
    """Refuse what the server would refuse, before any of it is sent.

    Raises:
        ValueTooLargeError: A frame's payload is over the server's ``--max-frame``.
    """
    longest = max(map(len, frames), default=0) - HEADER_SIZE
    if longest > cap:
        raise ValueTooLargeError(
            f"the request has {longest} bytes, the server's --max-frame is {cap}.",
            details={"limit": cap, "actual": longest},
        )


def _interval(seconds: float) -> bytes:
    """A ``struct timeval`` for the kernel, to which zero would mean no limit."""
    whole, rest = divmod(max(0.001, seconds), 1)
    return struct.pack("ll", int(whole), int(rest * 1_000_000))


class SyncConnection:
    """A connected socket and its protocol core. Used by one thread at a time.

    Args:
        path: Socket path.
        timeout: Seconds that one call may take.
        deadline: ``time.monotonic()`` until which connecting and the hello may take.

    Attributes:
        slot: What its pool counts it by.

    Raises:
        ConnectionError, OperationTimeoutError, ProtocolError: No ToonDB server answered.
    """

    __slots__ = ("_cap", "_core", "_poll", "_timeout", "hello", "slot", "sock")

    def __init__(self, path: str, timeout: float, deadline: float) -> None:
        if len(os.fsencode(path)) > MAX_PATH:
            raise ConfigurationError(
                f"the socket path has {len(os.fsencode(path))} bytes, the system allows {MAX_PATH}.",
                remediation="Use a shorter or a relative path.",
            )
        self._core = ClientCore()
        self.slot: object = None
        self._timeout = timeout
        self._poll: Any = None
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(None)
            # Kernel timeouts instead of Python's: those would poll before every send and receive, and connect
            # would fail at once, instead of waiting, while the server's queue of new connections is full.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _interval(deadline - time.monotonic()))
            try:
                self.sock.connect(path)
            except BlockingIOError:
                raise OperationTimeoutError(f"connecting to {path} took too long.") from None
            except OSError as error:
                raise connect_error(path, error) from None
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _interval(timeout))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _interval(timeout))
            self._cap = MAX_MAX_FRAME
            call = calls.hello()
            try:
                self.hello: ServerHello = call.decode(self._pump([call.frame], 1, deadline)[0])
            except LostBeforeSending:
                raise ConnectionError(f"the peer at {path} closed the connection at once.") from None
            self._cap = self.hello.max_frame
        except BaseException:
            self.sock.close()
            raise

    @property
    def clean(self) -> bool:
        """Whether no reply is outstanding, so that the next call can use it."""
        return self._core.clean

    def roundtrip(self, frame: bytes) -> ReplyFrame:
        """Send one request and receive its reply.

        Raises:
            LostBeforeSending: The peer was gone already.
            ConnectionLostError, OperationTimeoutError, ProtocolError: Close this connection then.
        """
        if len(frame) > _SMALL_FRAME:
            return self.exchange([frame])[0]
        rest = self._talk(frame, 1)
        replies = self._core.replies
        if replies and not rest:
            return replies.popleft()
        return self._pump([rest], 1, time.monotonic() + self._timeout, counted=True)[0]

    def exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        """Send requests and receive all their replies, in order; sends and receives at the same time."""
        check_frames(frames, self._cap)
        if len(frames) == 1 and len(frames[0]) <= _SMALL_FRAME:
            return [self.roundtrip(frames[0])]
        deadline = time.monotonic() + self._timeout
        data = b"".join(frames)
        if len(data) > _SMALL_FRAME:
            return self._pump([data], len(frames), deadline)
        # So little fits into the socket's buffer: neither side can wait for the other, and polling is spared.
        rest = self._talk(data, len(frames))
        return self._pump([rest], len(frames), deadline, counted=True)

    def _talk(self, data: bytes, requests: int) -> bytes:
        """Send, and receive once. Answers what the socket did not take; then nothing was received."""
        core, sock = self._core, self.sock
        core.sent(requests)
        try:
            sent = sock.send(data)
        except OSError as error:
            raise self._send_failed(error) from None
        if sent < len(data):
            return data[sent:]
        try:
            received = sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            raise self._timed_out() from None
        except OSError as error:
            raise core.lost(f"the connection broke: {error.strerror}.") from None
        if not received:
            raise core.lost("the server closed the connection before it answered.")
        core.receive(received)
        return b""

    def _pump(self, frames: list[bytes], replies: int, deadline: float, *, counted: bool = False) -> list[ReplyFrame]:
        core, sock = self._core, self.sock
        if not counted:
            core.sent(replies)
        out = memoryview(b"".join(frames))
        untouched = bool(out) and not counted
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(sock.fileno(), 0)
        # A server may answer before it has the whole request (a refused one); the rest must still go out, or
        # the next request would be taken for it.
        while out or len(core.replies) < replies:
            poll.modify(sock.fileno(), select.POLLIN | (select.POLLOUT if out else 0))
            wait = deadline - time.monotonic()
            if wait <= 0 or not poll.poll(min(wait * 1000 + 1, _LONGEST_POLL)):
                raise self._timed_out()
            if out:
                try:
                    out = out[sock.send(out[:_PUMP_BYTES], socket.MSG_DONTWAIT) :]
                    untouched = False
                except BlockingIOError:
                    pass
                except OSError as error:
                    if untouched or isinstance(error, BlockingIOError):
                        raise self._send_failed(error) from None
                    raise core.lost("the server closed the connection during the request.") from None
            try:
                data = sock.recv(_PUMP_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise core.lost(f"the connection broke: {error.strerror}.") from None
            if not data:
                raise core.lost("the server closed the connection before it answered.")
            core.receive(data)
            if core.goodbye is not None:
                raise core.goodbye
        found = core.replies
        if len(found) == replies:
            result = list(found)
            found.clear()
            return result
        return [found.popleft() for _ in range(replies)]

    def _send_failed(self, error: OSError) -> Exception:
        if isinstance(error, BlockingIOError):
            return self._timed_out()
        # The peer may have said why before it closed.
        try:
            data = self.sock.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            if data:
                self._core.receive(data)
        except (OSError, ToonDBError):
            pass
        if self._core.replies:
            # An ERROR without a request was taken for the reply to this one.
            try:
                reply = self._core.replies.popleft()
                calls.raise_error(reply)
            except ToonDBError as refusal:
                return refusal
        return self._core.goodbye or LostBeforeSending()

    def _timed_out(self) -> OperationTimeoutError:
        return OperationTimeoutError(
            f"the server did not answer within {self._timeout:g} s.", details={"timeout_seconds": self._timeout}
        )

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()
