"""A client without manners: raw frames over a real socket, and a look at the daemon from outside.

Nothing here shares code with the clients, so that a mistake in the codec cannot hide one in the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgpack

from tests.support.daemon import Daemon

__all__ = [
    "CAP",
    "LOOPS",
    "MIB",
    "SECONDS",
    "Answer",
    "Raw",
    "daemon_on",
    "error_code",
    "fill",
    "flood",
    "frame",
    "hung_up",
    "memory",
    "peak_memory",
    "put",
    "put_with",
    "reset_peak",
    "scan",
    "settled",
    "until",
]

LOOPS = ("uvloop", "asyncio")
MIB = 1 << 20
CAP = 16 * MIB
"""The frame cap of a daemon that was not told another one."""

SECONDS = 30.0
"""Bound of every wait; never reached in a passing run."""

PUT, GET, DELETE, BEGIN, COMMIT, ABORT, QUERY, CREATE_TABLE = range(1, 9)
PUT_PATH, GET_PATH, SCAN, CHECKPOINT, STATS, PING = range(9, 15)
EXT = 0x40
OK, ERROR, VALUE, TXN_ID, ROW, END_STREAM, STATS_RESP, PONG = range(0x80, 0x88)


def frame(opcode: int, payload: bytes = b"", *, txn: int | None = None, length: int | None = None) -> bytes:
    """One frame; ``txn`` makes it extended, ``length`` lies about its length."""
    if txn is not None:
        opcode |= EXT
        payload = txn.to_bytes(8, "little") + payload
    return struct.pack("<BI", opcode, len(payload) if length is None else length) + payload


def put(key: bytes, value: bytes, *, txn: int | None = None) -> bytes:
    """A PUT frame."""
    return frame(PUT, len(key).to_bytes(4, "little") + key + value, txn=txn)


def put_with(key: bytes, value: bytes = b"", *, txn: int = 0, **options: Any) -> bytes:
    """A PUT frame with options."""
    packed: bytes = msgpack.packb(options)
    head = (len(key) + (1 << 31)).to_bytes(4, "little") + key + len(packed).to_bytes(4, "little")
    return frame(PUT, head + packed + value, txn=txn)


def scan(*, txn: int = 0, **body: Any) -> bytes:
    """An extended SCAN frame."""
    return frame(SCAN, msgpack.packb(body), txn=txn)


def error_code(payload: bytes) -> str:
    """The code in an ERROR payload of either form; both must also say what is wrong and what to do."""
    if payload[:1] >= b"\x80":
        body = msgpack.unpackb(payload)
        assert body.keys() == {"code", "message", "remediation", "details"}
        assert body["message"]
        assert len(payload) < 16_384, "an error that nobody can read"
        return str(body["code"])
    text = payload.decode()
    code, colon, message = text.partition(": ")
    assert colon
    assert message
    assert len(text) < 16_384, "an error that nobody can read"
    return code


class Answer(NamedTuple):
    """One complete reply."""

    code: int
    payload: bytes
    rows: list[Any]

    @property
    def error(self) -> str:
        """The code of an ERROR, else the empty string."""
        return error_code(self.payload) if self.code == ERROR else ""

    @property
    def number(self) -> int:
        """The number in a TXN_ID."""
        assert self.code == TXN_ID, (self.code, self.payload[:200])
        return int.from_bytes(self.payload, "little")

    @property
    def result(self) -> Any:
        """The result of a PUT with options."""
        assert self.end.keys() == {"result"}
        assert not self.rows
        return self.end["result"]

    @property
    def changes(self) -> list[tuple[int, str, bytes, bytes | None, bool]]:
        """The changes in a stream of them."""
        assert len(self.rows) == 5 * self.end["rows"]
        items = iter(self.rows)
        return list(zip(*[items] * 5, strict=True))

    @property
    def end(self) -> dict[str, Any]:
        """The map in an END_STREAM."""
        assert self.code == END_STREAM, (self.code, self.payload[:200])
        body: dict[str, Any] = msgpack.unpackb(self.payload)
        return body


class Raw:
    """A connection to the daemon that sends what it is told to."""

    def __init__(self, path: str | Path, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(SECONDS)
        try:
            self.sock.connect(str(path))
        except BaseException:
            self.sock.close()
            raise
        self._buffer = bytearray()

    def send(self, *frames: bytes) -> Self:
        """Send bytes."""
        self.sock.sendall(b"".join(frames))
        return self

    def read(self) -> bool:
        """Receive something; False at the end of the stream."""
        try:
            data = self.sock.recv(1 << 20)
        except (ConnectionResetError, BrokenPipeError):
            # Linux tells so when the daemon closed with our bytes unread.
            return False
        self._buffer += data
        return bool(data)

    def frame(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the stream, which must not cut a frame."""
        while True:
            buffer = self._buffer
            if len(buffer) >= 5:
                code, length = struct.unpack_from("<BI", buffer)
                if len(buffer) >= 5 + length:
                    payload = bytes(memoryview(buffer)[5 : 5 + length])
                    del buffer[: 5 + length]
                    return code, payload
            if not self.read():
                assert not buffer, f"half a frame before the end of the stream: {bytes(buffer[:40])!r}"
                return None

    def answer(self) -> Answer:
        """The next complete reply."""
        rows: list[Any] = []
        while True:
            got = self.frame()
            assert got is not None, "the daemon closed the connection"
            if got[0] != ROW:
                return Answer(got[0], got[1], rows)
            rows += msgpack.unpackb(got[1])

    def answers(self, count: int) -> list[Answer]:
        """The next replies."""
        return [self.answer() for _ in range(count)]

    def call(self, *frames: bytes) -> Answer:
        """Send one request and read its reply."""
        return self.send(*frames).answer()

    def begin(self, **body: Any) -> int:
        """Begin a transaction."""
        return self.call(frame(BEGIN, msgpack.packb(body) if body else b"", txn=0)).number

    def stats(self) -> dict[str, Any]:
        """The daemon's statistics."""
        reply = self.call(frame(STATS))
        assert reply.code == STATS_RESP
        body: dict[str, Any] = json.loads(reply.payload)
        return body

    def ping(self) -> None:
        """A round trip."""
        assert self.call(frame(PING)) == (PONG, b"", [])

    def drain(self) -> int:
        """Read to the end of the stream and drop it all; returns how many bytes came."""
        count = len(self._buffer)
        self._buffer.clear()
        while self.read():
            count += len(self._buffer)
            self._buffer.clear()
        return count

    def at_end(self) -> bool:
        """Whether the stream ends here, without another byte."""
        return self.frame() is None

    def half_close(self) -> Self:
        """Say that nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def close(self) -> None:
        """Vanish."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def until(condition: Callable[[], object], what: str) -> None:
    """Poll, because no event tells of another process's counters; bounded."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.005)


COUNTS = ("active_transactions", "open_snapshots", "open_cursors")


def settled(observer: Raw, *, connections: int = 1, names: Iterable[str] = COUNTS) -> None:
    """Wait until nothing is left of other clients: connections, transactions, snapshots, cursors."""
    last: dict[str, Any] = {}

    def clean() -> bool:
        last.update(observer.stats())
        return last["connections_active"] == connections and not any(last[name] for name in names)

    until(clean, f"a daemon without leftovers, last seen {last}")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name} for process {pid}")


def memory(pid: int) -> int:
    """Resident bytes of a process that are its own, without the mapped database."""
    return _status(pid, "RssAnon")


def reset_peak(pid: int) -> int:
    """Forget the peak of the resident size so far; returns the present size."""
    (Path("/proc") / str(pid) / "clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> int:
    """The largest resident size since :func:`reset_peak`, in bytes, the mapped database included."""
    return _status(pid, "VmHWM")


def process_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@contextlib.contextmanager
def daemon_on(loop: str, *args: str) -> Iterator[Daemon]:
    """A daemon on a folder of its own, which is removed with it."""
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    try:
        with Daemon(parent / "db", *args, loop=loop) as daemon:
            yield daemon
    finally:
        shutil.rmtree(parent)


def fill(client: Raw, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Store pairs, a few thousand at a time."""
    frames = [put(key, value) for key, value in pairs]
    for at in range(0, len(frames), 2000):
        part = frames[at : at + 2000]
        client.send(*part)
        assert {client.answer().code for _ in part} == {OK}


def flood(raw: Raw, data: bytes, beside: Raw, *, limit: int = 64 << 20) -> int:
    """Send ``data`` over and over without ever reading, until the daemon hangs up; ping ``beside`` meanwhile.

    Returns:
        How many bytes the daemon and the kernel took. More than ``limit`` fails: nobody was paused.
    """
    sock, sent, view = raw.sock, 0, memoryview(data)
    sock.setblocking(False)
    waiter = select.poll()
    waiter.register(sock, select.POLLOUT)  # POLLHUP comes in any case
    beside.ping()
    while True:
        events = waiter.poll(SECONDS * 1000)
        assert events, "neither paused nor dropped"
        if events[0][1] & (select.POLLHUP | select.POLLERR):
            break
        try:
            sent += sock.send(view[sent % len(data) :])
        except BlockingIOError:
            beside.ping()
        except (BrokenPipeError, ConnectionResetError):
            break
        assert sent < limit, f"the daemon took {sent} bytes from a client that never reads"
    beside.ping()
    return sent


def hung_up(raw: Raw) -> None:
    """Wait until the daemon closed the connection, without reading what it sent."""
    waiter = select.poll()
    waiter.register(raw.sock, 0)
    assert waiter.poll(SECONDS * 1000), "the connection was not closed"
