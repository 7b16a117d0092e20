"""One entry for every mode: ``toondb.connect``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toondb_protocol.errors import ConfigurationError, UnsupportedFeatureError

if TYPE_CHECKING:
    from toondb.database import Database
    from toondb_client import IpcClient

__all__ = ["MODES", "connect"]

MODES = ("embedded", "concurrent", "ipc", "grpc")

_HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_IPC_OPTIONS = ("timeout", "max_connections", "reconnect_timeout", "retry_writes", "direct_reads")


def connect(
    target: str | os.PathLike[str], mode: str | None = None, config: Mapping[str, Any] | None = None
) -> Database | IpcClient:
    """Open a store, wherever it is.

    Args:
        target: A folder is opened in this process (``Database.open``); a socket (an existing one, or a path that ends
            in ``.sock``) or a ``toondb+unix://`` URL is a daemon (``IpcClient.connect``); ``host:port`` is gRPC.
        mode: ``"embedded"``, ``"concurrent"`` (``Database.open_concurrent``), ``"ipc"`` or ``"grpc"``; None = what the
            target looks like. With ``"ipc"`` a folder stands for the socket in it.
        config: For a folder the config of ``Database.open``, for a daemon the keyword arguments of
            ``IpcClient.connect``.

    Returns:
        A store: both kinds have the same methods.

    Raises:
        ConfigurationError: The mode or an option is unknown, or the target cannot be.
        UnsupportedFeatureError: gRPC is not there yet.
        DatabaseLockedError: The folder is in use; the error says by whom.
        ConnectionError: No daemon listens on the socket.
    """
    text = _text(target)
    if mode is None:
        mode = _mode_of(text)
    if mode in ("embedded", "concurrent"):
        from toondb.database import Database

        return Database.open(target, config) if mode == "embedded" else Database.open_concurrent(target, config)
    if mode == "ipc":
        from toondb_client import IpcClient

        return IpcClient.connect(target, **_ipc_options(config))
    if mode == "grpc":
        raise UnsupportedFeatureError(
            f"{text!r} looks like the host and port of a gRPC server, which this version does not have.",
            remediation="Give a folder, a socket, or mode='embedded' when a folder has such a name.",
        )
    raise ConfigurationError(f"mode {mode!r:.60} is unknown; known: {', '.join(MODES)}.")


def _text(target: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(target)
    except TypeError:
        raise ConfigurationError(f"the target must be text or a path, not {type(target).__name__}.") from None
    if not isinstance(text, str):
        raise ConfigurationError(f"the target must be text or a path, not {type(text).__name__}.")
    return text


def _mode_of(text: str) -> str:
    if "://" in text:
        return "ipc"  # which refuses schemes that it does not know
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return "embedded"
    if os.path.exists(path) or text.endswith(".sock"):
        return "ipc"
    return "grpc" if _HOST_AND_PORT.fullmatch(text) else "embedded"


def _ipc_options(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"config is a mapping, got {type(config).__name__}.")
    for name in config:
        if name not in _IPC_OPTIONS:
            raise ConfigurationError(
                f"config {name!r} is unknown for a daemon; known: {', '.join(_IPC_OPTIONS)}.",
                remediation="How the daemon stores data is set where it is started: toondb-server --help.",
            )
    return dict(config)
