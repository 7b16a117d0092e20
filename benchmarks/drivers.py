"""How each contestant is driven: an operation name becomes the tightest loop that performs it.

A loop takes a deadline (``time.perf_counter()``) and returns the number of operations done by then; it
always does at least one. Loops are spelled out one by one, because a shared, flexible loop would cost as
much as some of what is measured. Libraries are imported on first use: a worker that only talks to one
peer loads only that peer's client.

Operations: ``ping``, ``get``, ``put``, ``scan`` (counts items), and ``get*N`` / ``put*N``, pipelined in
batches of N.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from benchmarks.workload import KEY_PREFIX, Workload

__all__ = [
    "DRIVERS",
    "Driver",
    "DriverError",
    "Loop",
    "check_value",
    "each_key",
    "each_put",
    "open_driver",
    "ping_frame",
    "scans",
    "toondb_get_frame",
]

Loop = Callable[[float], int]

_HEADER = struct.Struct("<BI")
_OPCODE_GET, _OPCODE_PUT, _OPCODE_PING, _OPCODE_VALUE = 0x02, 0x01, 0x0E, 0x82
_LOAD_BATCH = 10_000
_SOCKET_TIMEOUT = 30


class DriverError(RuntimeError):
    """A contestant gave a wrong answer, or cannot perform the operation."""


def toondb_get_frame(key: bytes) -> bytes:
    """A classic GET request (opcode u8, length u32 little-endian, key)."""
    return _HEADER.pack(_OPCODE_GET, len(key)) + key


def ping_frame() -> bytes:
    """A classic PING request."""
    return _HEADER.pack(_OPCODE_PING, 0)


def _toondb_put_frame(key: bytes, value: bytes) -> bytes:
    payload = struct.pack("<I", len(key)) + key + value
    return _HEADER.pack(_OPCODE_PUT, len(payload)) + payload


# ---- loops ----------------------------------------------------------------------------------------------


def repeat(call: Callable[[], object]) -> Loop:
    """Call without arguments."""

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        while True:
            call()
            count += 1
            if clock() >= deadline:
                return count

    return loop


def each_key(get: Callable[[bytes], object], keys: Sequence[bytes]) -> Loop:
    """Call with one key after the other."""
    endless = cycle(keys)

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        for key in endless:
            get(key)
            count += 1
            if clock() >= deadline:
                break
        return count

    return loop


def each_put(put: Callable[[bytes, bytes], object], keys: Sequence[bytes], value: bytes) -> Loop:
    """Call with one key after the other and always the same value."""
    endless = cycle(keys)

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        for key in endless:
            put(key, value)
            count += 1
            if clock() >= deadline:
                break
        return count

    return loop


def _batches(keys: Sequence[bytes], size: int) -> list[list[bytes]]:
    endless = cycle(keys)
    return [list(islice(endless, size)) for _ in range(max(1, len(keys) // size))]


def pipelined_gets(pipeline: Callable[[], Any], keys: Sequence[bytes], size: int) -> Loop:
    """Batches of gets through ``with pipeline() as p: p.get(key) ...; p.execute()``."""
    endless = cycle(_batches(keys, size))

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        for batch in endless:
            with pipeline() as pending:
                get = pending.get
                for key in batch:
                    get(key)
                answers = pending.execute()
            if len(answers) != size or answers[-1] is None:
                raise DriverError(f"a pipeline of {size} gets gave {len(answers)} answers")
            count += size
            if clock() >= deadline:
                break
        return count

    return loop


def pipelined_puts(pipeline: Callable[[], Any], method: str, keys: Sequence[bytes], value: bytes, size: int) -> Loop:
    """Batches of writes through a pipeline; ``method`` is its name for a write."""
    endless = cycle(_batches(keys, size))

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        for batch in endless:
            with pipeline() as pending:
                put = getattr(pending, method)
                for key in batch:
                    put(key, value)
                answers = pending.execute()
            if len(answers) != size:
                raise DriverError(f"a pipeline of {size} puts gave {len(answers)} answers")
            count += size
            if clock() >= deadline:
                break
        return count

    return loop


def scans(scan: Callable[[], Iterable[object]], expected: int) -> Loop:
    """Whole scans, each read to its end; counts items."""

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        while True:
            before = count
            for _item in scan():
                count += 1
            if count - before != expected:
                raise DriverError(f"a scan gave {count - before} items instead of {expected}")
            if clock() >= deadline:
                return count

    return loop


def exchanges(channel: socket.socket, frames: Sequence[bytes], reply_size: int) -> Loop:
    """Send a frame, read a reply of a known size: as lean as a blocking client gets."""
    endless = cycle(frames)
    room = max(4096, reply_size)

    def loop(deadline: float) -> int:
        clock, count = perf_counter, 0
        send, receive = channel.sendall, channel.recv
        for frame in endless:
            send(frame)
            missing = reply_size - len(receive(room))
            if missing:
                _receive_rest(channel, missing, reply_size)
            count += 1
            if clock() >= deadline:
                break
        return count

    return loop


def _receive_rest(channel: socket.socket, missing: int, size: int) -> None:
    while missing > 0:
        part = channel.recv(missing)
        if not part:
            raise DriverError("the server closed the connection")
        missing -= len(part)
    if missing:
        raise DriverError(f"a reply is longer than {size} bytes")


# ---- contestants ----------------------------------------------------------------------------------------


class Driver(Protocol):
    """An open connection to one contestant."""

    def loop(self, operation: str) -> Loop:
        """The loop for an operation; a wrong or missing answer is found here, before anything is timed."""
        ...

    def load(self, workload: Workload) -> None:
        """Store all records of the workload."""
        ...

    def close(self) -> None: ...


def _split(operation: str) -> tuple[str, int]:
    name, _, size = operation.partition("*")
    return name, int(size or 1)


def _unsupported(driver: object, operation: str) -> DriverError:
    return DriverError(f"{type(driver).__name__} has no operation {operation!r}")


def check_value(value: object, workload: Workload) -> None:
    """Raise DriverError unless ``value`` is one of the workload."""
    if not isinstance(value, bytes) or len(value) != workload.value_size:
        raise DriverError(f"a get gave {value!r} instead of {workload.value_size} bytes")


class ToonDBDriver:
    """The public synchronous client; ``direct`` asks for direct reads."""

    direct = False

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        from toondb_client import IpcClient

        self._workload, self._keys = workload, workload.sample(seed)
        self._client: Any = IpcClient.connect(address, timeout=_SOCKET_TIMEOUT, direct_reads=self.direct)

    def loop(self, operation: str) -> Loop:
        client, workload = self._client, self._workload
        name, size = _split(operation)
        if name == "ping":
            return repeat(client.ping)
        if name == "put":
            if "*" in operation:
                return pipelined_puts(client.pipeline, "put", self._keys, workload.value, size)
            return each_put(client.put, self._keys, workload.value)
        check_value(client.get(self._keys[0]), workload)
        if name == "get":
            if "*" in operation:
                return pipelined_gets(client.pipeline, self._keys, size)
            return each_key(client.get, self._keys)
        if name == "scan":
            return scans(lambda: client.scan(KEY_PREFIX), workload.keys)
        raise _unsupported(self, operation)

    def load(self, workload: Workload) -> None:
        records = workload.records()
        while batch := list(islice(records, _LOAD_BATCH)):
            self._client.put_many(batch)

    def close(self) -> None:
        self._client.close()


class ToonDBDirectDriver(ToonDBDriver):
    """The public client with direct reads."""

    direct = True


class _SocketDriver:
    """A blocking socket without a client library."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        self._workload, self._keys = workload, workload.sample(seed)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A kernel-side timeout: Python's own settimeout() adds a poll() to every recv().
        limit = struct.pack("ll", _SOCKET_TIMEOUT, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.connect(address)

    def load(self, workload: Workload) -> None:
        raise _unsupported(self, "load")

    def close(self) -> None:
        self._socket.close()


class ToonDBSocketDriver(_SocketDriver):
    """Classic frames on a bare socket: the cost of the server without that of the client library."""

    def loop(self, operation: str) -> Loop:
        if operation == "get":
            frames, size = [toondb_get_frame(key) for key in self._keys], 5 + self._workload.value_size
            expected = _OPCODE_VALUE
        elif operation == "put":
            value = self._workload.value
            frames, size, expected = [_toondb_put_frame(key, value) for key in self._keys], 5, 0x80
        elif operation == "ping":
            frames, size, expected = [ping_frame()], 5, 0x87
        else:
            raise _unsupported(self, operation)
        self._socket.sendall(frames[0])
        opcode, length = _HEADER.unpack(self._socket.recv(5, socket.MSG_WAITALL))
        body = self._socket.recv(length, socket.MSG_WAITALL) if length else b""
        if opcode != expected or 5 + length != size:
            raise DriverError(f"{operation} was answered with opcode 0x{opcode:02x}: {body[:200]!r}")
        return exchanges(self._socket, frames, size)


class EchoDriver(_SocketDriver):
    """The bare echo server: requests and replies as long as those of a ToonDB GET."""

    def loop(self, operation: str) -> Loop:
        if operation != "get":
            raise _unsupported(self, operation)
        return exchanges(self._socket, [toondb_get_frame(key) for key in self._keys], 5 + self._workload.value_size)


class RedisDriver:
    """redis-py, with the hiredis parser where that is installed (redis-py picks it by itself)."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        import redis

        self._workload, self._keys = workload, workload.sample(seed)
        self._client: Any = redis.Redis(unix_socket_path=address)

    def loop(self, operation: str) -> Loop:
        client, workload = self._client, self._workload
        name, size = _split(operation)

        def pipeline() -> Any:
            return client.pipeline(transaction=False)

        if name == "ping":
            return repeat(client.ping)
        if name == "put":
            if "*" in operation:
                return pipelined_puts(pipeline, "set", self._keys, workload.value, size)
            return each_put(client.set, self._keys, workload.value)
        check_value(client.get(self._keys[0]), workload)
        if name == "get":
            if "*" in operation:
                return pipelined_gets(pipeline, self._keys, size)
            return each_key(client.get, self._keys)
        raise _unsupported(self, operation)

    def load(self, workload: Workload) -> None:
        records = workload.records()
        while batch := list(islice(records, _LOAD_BATCH)):
            with self._client.pipeline(transaction=False) as pending:
                for key, value in batch:
                    pending.set(key, value)
                pending.execute()

    def close(self) -> None:
        self._client.close()


class LmdbDriver:
    """LMDB in this process: one transaction for each get, one synchronous commit for each put."""

    def __init__(self, address: str, workload: Workload, seed: int) -> None:
        import lmdb

        self._workload, self._keys = workload, workload.sample(seed)
        Path(address).mkdir(exist_ok=True)
        self._env: Any = lmdb.open(address, map_size=1 << 36, max_dbs=2, max_readers=256)
        self._db: Any = self._env.open_db(b"kv")

    def loop(self, operation: str) -> Loop:
        env, db, value = self._env, self._db, self._workload.value

        def get(key: bytes) -> object:
            with env.begin(db=db) as txn:
                return txn.get(key)

        def put(key: bytes) -> None:
            with env.begin(db=db, write=True) as txn:
                txn.put(key, value)

        def scan_all() -> Iterable[object]:
            with env.begin(db=db) as txn, txn.cursor() as cursor:
                if cursor.set_range(KEY_PREFIX):
                    yield from cursor

        if operation == "put":
            return each_key(put, self._keys)
        check_value(get(self._keys[0]), self._workload)
        if operation == "get":
            return each_key(get, self._keys)
        if operation == "scan":
            return scans(scan_all, self._workload.keys)
        raise _unsupported(self, operation)

    def load(self, workload: Workload) -> None:
        with self._env.begin(db=self._db, write=True) as txn:
            deque((txn.put(key, value) for key, value in workload.records()), maxlen=0)

    def close(self) -> None:
        self._env.close()


DRIVERS: dict[str, type[Driver]] = {
    "toondb": ToonDBDriver,
    "toondb-direct": ToonDBDirectDriver,
    "toondb-socket": ToonDBSocketDriver,
    "redis": RedisDriver,
    "lmdb": LmdbDriver,
    "echo": EchoDriver,
}


def open_driver(name: str, address: str, workload: Workload, seed: int) -> Driver:
    """Connect to a contestant.

    Args:
        name: A name of :data:`DRIVERS`, :data:`benchmarks.embedded.EMBEDDED` or
            :data:`benchmarks.sql_drivers.SQL_DRIVERS`, or of :data:`benchmarks.vector_drivers.VECTOR_DRIVERS`.
        address: Its socket, or its folder for what runs in process.
        workload: The records it holds.
        seed: Draws the keys to ask for; different in every worker.
    """
    from benchmarks.embedded import EMBEDDED  # which needs what is above
    from benchmarks.sql_drivers import SQL_DRIVERS

    factory: Any = DRIVERS.get(name) or EMBEDDED.get(name) or SQL_DRIVERS.get(name)
    if factory is None:
        from benchmarks.vector_drivers import VECTOR_DRIVERS  # which loads NumPy

        factory = VECTOR_DRIVERS[name]
    driver: Driver = factory(address, workload, seed)
    return driver
