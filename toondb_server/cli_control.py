"""Commands that talk to a running daemon: status, stop, stats."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import Any

import click

from toondb_protocol.errors import (
    ConnectionError,
    DatabaseError,
    OperationTimeoutError,
    PeerNotAllowedError,
    TooManyClientsError,
)
from toondb_protocol.hello import ServerHello

from .cli_options import (
    EXIT_ERROR,
    EXIT_NOT_ANSWERING,
    EXIT_NOT_RUNNING,
    database_option,
    json_option,
    print_json,
    socket_option,
    timeout_option,
)
from .config import default_socket
from .control import ControlConnection, NotRunningError, find_daemon, server_pid

__all__ = ["stats", "status", "stop"]

_POLL_SECONDS = 0.05


@click.command()
@database_option
@socket_option
@timeout_option(5.0, "How long the daemon may take to answer.")
@json_option
def status(database: str, socket: str | None, timeout: float, as_json: bool) -> None:
    """Say whether a daemon runs, by asking it.

    Exit status: 0 it runs, 3 it does not run, 4 it runs but does not answer, 1 it cannot be told.
    """
    body: dict[str, Any] = {
        "running": True,
        "answering": True,
        "pid": None,
        "socket": socket or default_socket(database),
        "database": os.path.abspath(os.path.expanduser(database)),
    }
    connection: ControlConnection | None = None
    note = ""
    code = 0
    try:
        connection = find_daemon(database, socket, timeout)
        body["socket"] = connection.path
        hello = connection.hello()
        body |= {
            "pid": server_pid(hello, connection.peer) or hello.pid,
            "database": hello.database or body["database"],
            "version": hello.software,
            "sync_mode": hello.sync_mode,
            "max_frame": hello.max_frame,
            "timeout_ms": hello.timeout_ms,
            "instance": hello.instance,
        }
    except NotRunningError:
        body |= {"running": False, "answering": False}
        code = EXIT_NOT_RUNNING
    except (TooManyClientsError, PeerNotAllowedError) as error:
        note = str(error)  # it refuses this connection, so it runs
    except OperationTimeoutError as error:
        body["answering"] = False
        note = str(error)
        code = EXIT_NOT_ANSWERING
    finally:
        if connection is not None:
            connection.close()
    if body["pid"] is None and connection is not None and connection.peer is not None:
        body["pid"] = connection.peer.pid or None
    if as_json:
        print_json(body | ({"note": note} if note else {}))
    elif not body["running"]:
        click.echo("[Server] Not running")
    else:
        state = "Running" if body["answering"] else "Not answering"
        click.echo(f"[Server] {state} (PID: {body['pid'] or 'unknown'})")
        click.echo(f"Socket: {body['socket']}")
        click.echo(f"Database: {body['database']}")
        if note:
            click.echo(note, err=True)
    sys.exit(code)


@click.command()
@database_option
@socket_option
@timeout_option(30.0, "How long to wait for its end.")
def stop(database: str, socket: str | None, timeout: float) -> None:
    """Stop the daemon and wait for its end.

    It finishes the requests it received and closes the store. Not running is not an error.

    Exit status: 0 it is stopped, 1 it could not be stopped or did not end in time.
    """
    deadline = time.monotonic() + timeout
    try:
        connection = find_daemon(database, socket, timeout)
    except NotRunningError:
        click.echo("[Server] Not running")
        return
    with connection:
        pid = _pid_to_stop(connection)
        process = _Process(pid)
        try:
            # It answers after the process was pinned: so this pid is still the daemon's, not one that was given
            # to another process in between.
            connection.hello()
            process.terminate()
            connection.close()
            if not process.wait(deadline):
                click.echo(f"[Server] Still stopping (PID: {pid}) after {timeout:g} s", err=True)
                click.echo(
                    f"Look at its log, or force it with: kill -TERM {pid} (acknowledged writes are kept).", err=True
                )
                sys.exit(EXIT_ERROR)
        finally:
            process.close()
    click.echo(f"[Server] Stopped (PID: {pid})")


def _pid_to_stop(connection: ControlConnection) -> int:
    hello: ServerHello | None = None
    try:
        hello = connection.hello()
    except TooManyClientsError as error:
        raise ConnectionError(
            f"the server on {connection.path} runs, but takes no connection to be stopped by: {error.message}",
            remediation="Try again in a moment, or stop it through what started it (systemctl stop, Ctrl-C).",
        ) from None
    pid = server_pid(hello, connection.peer)
    if pid is None or pid == os.getpid():
        raise ConnectionError(
            f"the server on {connection.path} runs where its process cannot be seen from here "
            f"(it calls itself pid {hello.pid}).",
            remediation="Stop it through what started it: systemctl stop, or the container's own stop command.",
        )
    return pid


class _Process:
    """A process, pinned by a pidfd where the system has one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1
        if hasattr(os, "pidfd_open"):
            # Otherwise an old kernel, or a sandbox that forbids it.
            with contextlib.suppress(OSError):
                self._fd = os.pidfd_open(pid)

    def terminate(self) -> None:
        """Send SIGTERM.

        Raises:
            DatabaseError: This user may not.
        """
        try:
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGTERM)
            else:
                os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            raise DatabaseError(
                f"uid {os.geteuid()} may not stop the server with pid {self.pid}.",
                remediation="Run as the daemon's user or as root, or stop it with systemctl stop.",
            ) from None

    def wait(self, deadline: float) -> bool:
        """Wait for its end; whether it came before the deadline."""
        if self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        while time.monotonic() < deadline:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def close(self) -> None:
        """Unpin it."""
        if self._fd >= 0:
            os.close(self._fd)


@click.command()
@database_option
@socket_option
@timeout_option(5.0, "How long the daemon may take to answer.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    default=None,
    metavar="SECONDS",
    help="Print again every so many seconds, until Ctrl-C.",
)
@json_option
def stats(database: str, socket: str | None, timeout: float, watch: float | None, as_json: bool) -> None:
    """Print counters of the daemon and the store.

    With --watch the rates since the last time are printed, too; with --json then one object on each line.

    Exit status: 0, 3 it does not run, 1 it could not be asked.
    """
    try:
        connection = find_daemon(database, socket, timeout)
    except NotRunningError as error:
        click.echo("[Server] Not running", err=True)
        click.echo(error.remediation.replace("FOLDER", database), err=True)
        sys.exit(EXIT_NOT_RUNNING)
    with connection:
        before: dict[str, Any] | None = None
        asked = 0.0
        while True:
            now = time.monotonic()
            counters = connection.stats()
            rates = {} if before is None else _rates(before, counters, now - asked)
            before, asked = counters, now
            if as_json:
                print_json(counters | rates, indent=2 if watch is None else None)
            else:
                if watch is not None and sys.stdout.isatty():
                    click.clear()
                _print_table(counters | rates)
            if watch is None:
                return
            if not as_json and not sys.stdout.isatty():
                click.echo()
            time.sleep(watch)


def _rates(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, float]:
    names = ("requests", "bytes_received", "bytes_sent", "transactions_committed")
    counters = {name: f"{name}_total" if name == "requests" else name for name in names}
    return {
        f"{name}_per_second": round((after[counter] - before[counter]) / max(seconds, 1e-9), 1)
        for name, counter in counters.items()
        if counter in before and counter in after
    }


def _print_table(counters: dict[str, Any]) -> None:
    width = max(map(len, counters), default=0)
    for name, value in counters.items():
        shown = "-" if value is None else f"{value:,}" if type(value) in (int, float) and name != "pid" else str(value)
        if name.endswith("_bytes") and type(value) is int and value >= 1024:
            shown += f" ({_size(value)})"
        click.echo(f"{name:<{width}}  {shown}")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
