"""Life of the daemon: lock, open, listen, serve, and stop without losing anything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from toondb.engine.engine import Engine
from toondb_protocol.errors import ConfigurationError

from . import __version__
from .config import ServerConfig
from .listener import Listener, ListenOptions, activated_listener, open_listener
from .logs import get_logger
from .notify import Notifier
from .server import Server
from .session import Session

__all__ = ["run"]

_DESCRIPTORS_BESIDE_CLIENTS = 64


def run(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: The daemon's options.

    Returns:
        The exit status: 0 after a graceful stop.

    Raises:
        DatabaseLockedError, ConfigurationError, StorageError: It cannot start.
    """
    log = get_logger()
    notifier = Notifier()
    _raise_descriptor_limit(config.max_clients, log)
    with contextlib.ExitStack() as stack:
        listener = activated_listener()
        if listener is not None:
            stack.callback(listener.close)
        # The owner lock comes first: only its holder may replace a stale socket in this folder.
        engine = Engine(config.database, config.engine_options(), role="daemon", socket=_absolute_socket(config))
        stack.callback(engine.close)
        stack.callback(notifier.status, "Closing the store")
        if listener is None:
            options = ListenOptions(config.socket_file, mode=config.socket_mode, group=config.socket_group)
            listener = open_listener(options)
            stack.callback(listener.close)
        with asyncio.Runner(loop_factory=_loop_factory(config.loop)) as runner:
            status = runner.run(_serve(engine, config, listener, notifier, log))
    log.info("stopped")
    return status


def _absolute_socket(config: ServerConfig) -> str:
    return os.path.abspath(config.socket_path)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise ConfigurationError("uvloop is not installed.", remediation="pip install uvloop") from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def _raise_descriptor_limit(max_clients: int, log: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_clients + _DESCRIPTORS_BESIDE_CLIENTS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            log.warning("the limit on open files is below --max-clients", limit=limit, max_clients=max_clients)


async def _serve(engine: Engine, config: ServerConfig, listener: Listener, notifier: Notifier, log: Any) -> int:
    loop = asyncio.get_running_loop()
    server = Server(engine, config, loop, log, activated=listener.activated)
    stopping = asyncio.Event()

    def stop(name: str) -> None:
        if stopping.is_set():
            log.warning("forced to stop", signal=name)
            # Every acknowledged write is on its way to the disk already as --sync-mode promised.
            os._exit(128 + getattr(signal, name))
        log.info("stopping", signal=name)
        stopping.set()

    for name in ("SIGTERM", "SIGINT"):
        loop.add_signal_handler(getattr(signal, name), stop, name)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)

    options: dict[str, Any] = {"sock": listener.socket, "backlog": 1024}
    if sys.version_info >= (3, 13):
        options["cleanup_socket"] = False
    acceptor = await loop.create_unix_server(lambda: Session(server), **options)
    server.on_sweep = _watch(listener, engine, notifier, log)
    server.start()
    watchdog = _start_watchdog(loop, notifier)
    # What is alive now lives as long as the daemon; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    log.info(
        "ready",
        version=__version__,
        pid=os.getpid(),
        database=str(engine.folder),
        socket=config.socket_path if not listener.activated else "(activated)",
        sync_mode=str(config.sync_mode),
        loop=type(loop).__module__.split(".")[0],
    )
    notifier.ready(f"Serving {engine.folder}")
    try:
        await stopping.wait()
        notifier.stopping("Finishing requests")
    finally:
        # First the file: clients then find no server rather than one that does not answer.
        listener.unlink()
        acceptor.close()
        await server.drain(config.drain_ms / 1000)
        server.stop()
        watchdog()
    return 0


def _watch(listener: Listener, engine: Engine, notifier: Notifier, log: Any) -> Callable[[], None]:
    """Say once what an operator must know and no client would tell: a lost socket file, a failed device."""
    reachable = True
    storing = True

    def check() -> None:
        nonlocal reachable, storing
        if reachable and not listener.still_ours():
            # New clients cannot reach this daemon any more.
            reachable = False
            log.error(
                "the socket file was deleted or replaced; connected clients are still served, "
                "restart to accept new ones",
                socket=str(listener.path),
            )
        if storing and engine.writer.failed is not None:
            storing = False
            log.error(
                "the storage failed; writes are refused until a restart, reads go on", reason=str(engine.writer.failed)
            )
            notifier.status("The storage failed: writes are refused until a restart")

    return check


def _start_watchdog(loop: asyncio.AbstractEventLoop, notifier: Notifier) -> Callable[[], None]:
    """Tell the service manager regularly that the loop turns; returns what ends it."""
    interval = notifier.watchdog_interval()
    handle: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal handle
        notifier.watchdog()
        assert interval is not None
        handle = loop.call_later(interval, beat)

    if interval is not None:
        beat()

    def end() -> None:
        if handle is not None:
            handle.cancel()

    return end
