"""The hello that an extended PING carries in both directions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import ProtocolError
from .frames import DEFAULT_MAX_FRAME
from .opcodes import PROTOCOL_VERSION

__all__ = ["FEATURES", "ServerHello", "client_hello", "parse_server_hello"]

_T = TypeVar("_T")

FEATURES = (
    "extended",
    "cursors",
    "serializable",
    "direct-reads",
    "options",
    "changes",
    "filters",
    "sql",
    "collections",
)


@dataclass(frozen=True, slots=True)
class ServerHello:
    """What a server says of itself.

    Attributes:
        version: Protocol version.
        features: Optional parts it speaks.
        software: Name and version.
        pid: Its process id.
        database: Absolute path of the database folder.
        socket: Path of the socket as the server was given it.
        max_frame: Frame cap in bytes.
        timeout_ms: Idle limit of transactions, cursors and partial frames, in milliseconds.
        instance: Random id of this run of the server.
        sync_mode: ``full``, ``normal`` or ``off``.
    """

    version: int
    features: frozenset[str]
    software: str
    pid: int
    database: str
    socket: str
    max_frame: int
    timeout_ms: int
    instance: str
    sync_mode: str

    def to_wire(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "features": sorted(self.features),
            "software": self.software,
            "pid": self.pid,
            "database": self.database,
            "socket": self.socket,
            "max_frame": self.max_frame,
            "timeout_ms": self.timeout_ms,
            "instance": self.instance,
            "sync_mode": self.sync_mode,
        }


def client_hello(software: str) -> dict[str, Any]:
    """The hello that a client sends."""
    return {"version": PROTOCOL_VERSION, "features": list(FEATURES), "software": software, "pid": os.getpid()}


def parse_server_hello(wire: Mapping[str, Any]) -> ServerHello:
    """Check and build a :class:`ServerHello`.

    Raises:
        ProtocolError: Not a ToonDB hello, or a protocol version this code does not speak.
    """
    version = wire.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ProtocolError("the peer's hello names no protocol version: it is not a ToonDB server")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the server speaks protocol version {version}, this client version {PROTOCOL_VERSION}",
            remediation="Upgrade the older side.",
        )

    features = wire.get("features")
    return ServerHello(
        version=version,
        features=frozenset(f for f in features if isinstance(f, str)) if isinstance(features, list) else frozenset(),
        software=_of(wire, "software", str, ""),
        pid=_of(wire, "pid", int, 0),
        database=_of(wire, "database", str, ""),
        socket=_of(wire, "socket", str, ""),
        max_frame=_of(wire, "max_frame", int, DEFAULT_MAX_FRAME),
        timeout_ms=_of(wire, "timeout_ms", int, 30_000),
        instance=_of(wire, "instance", str, ""),
        sync_mode=_of(wire, "sync_mode", str, ""),
    )


def _of(wire: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    value = wire.get(name, default)
    if isinstance(value, bool) or (isinstance(value, int) and value < 0):  # none of the facts is either
        return default
    return value if isinstance(value, kind) else default
