"""The servers of a run, each started on first use with its own configuration, loaded once, and measured.

``toondb-full``, ``toondb-normal``, ``toondb-off``
    The daemon in each sync mode.
``redis``
    redis-server without persistence: the peer of rows that do not wait for the disk.
``redis-always``
    redis-server with an append-only file synced before every reply: the peer of durable rows.
``lmdb``, ``embedded``, ``concurrent``, ``rawlmdb``, ``sqlite``, ``apsw``, ``diskcache``, ``sochdb``, ``faiss``,
``hnswlib``
    A folder; the clients open it in process.

What follows a further ``-`` (for what is in process, the first) only tells folders apart.
``echo``
    The bare uvloop server of :mod:`benchmarks.echo`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from benchmarks.children import Child, Children
from benchmarks.crew import Crew
from benchmarks.embedded import EMBEDDED
from benchmarks.workload import Workload

__all__ = [
    "MAX_CLIENTS",
    "Servers",
    "cpu_seconds",
    "memory_mb",
    "missing",
    "place",
    "sochdb_bulk",
    "toondb_arguments",
]

MAX_CLIENTS = 2000
_READY_TIMEOUT = 30.0


def _importable(*modules: str) -> bool:
    for module in modules:
        try:
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                return False
        except ModuleNotFoundError:
            return False
    return True


def sochdb_bulk() -> str | None:
    """The path of the command that builds sochdb's indexes, which its package carries; None when there is none."""
    found = importlib.util.find_spec("sochdb")
    if found is None or found.origin is None:
        return None
    # The script of that name that pip installs asks for a module that the package lacks (0.8.3).
    programs = sorted(Path(found.origin).parent.glob("_bin/*/sochdb-bulk"))
    return str(programs[0]) if programs else None


def missing(server: str, driver: str = "") -> bool:
    """Whether a contestant cannot take part because something is not installed."""
    if driver == "vector-build-sochdb":
        return sochdb_bulk() is None
    match server.partition("-")[0]:
        case "toondb":
            return not _importable("toondb_server.__main__", "toondb_client")
        case "redis":
            return shutil.which("redis-server") is None or (driver == "redis" and not _importable("redis"))
        case "lmdb" | "rawlmdb":
            return not _importable("lmdb")
        case "embedded" | "concurrent":
            return not _importable("toondb.database")
        case "sqlite":
            return not _importable("sqlite3")
        case "apsw" | "diskcache" | "sochdb" as module:
            return not _importable(module)
        case "faiss":
            return not _importable("faiss")
        case "hnswlib" as module:
            return not _importable(module)
        case "echo":
            return not _importable("uvloop")
    raise ValueError(f"unknown server {server!r}")


def toondb_arguments(folder: Path, path: Path, sync_mode: str | None) -> list[str]:
    """The command line of a daemon; ``sync_mode`` None leaves its default."""
    arguments = [sys.executable, "-m", "toondb_server", "--db", str(folder), "--socket", str(path)]
    arguments += ["--max-clients", str(MAX_CLIENTS), "--log-level", "error"]
    return arguments + (["--sync-mode", sync_mode] if sync_mode else [])


def _redis_arguments(folder: Path, path: Path, always: bool) -> list[str]:
    options = {
        "--port": "0",
        "--unixsocket": str(path),
        "--dir": str(folder),
        "--save": "",
        "--appendonly": "yes" if always else "no",
        "--appendfsync": "always" if always else "no",
        # No rewrite of the log in the middle of a measurement.
        "--auto-aof-rewrite-percentage": "0",
        "--supervised": "systemd",
        "--loglevel": "warning",
        "--maxclients": str(MAX_CLIENTS),
    }
    return [shutil.which("redis-server") or "redis-server", *(word for option in options.items() for word in option)]


class Servers:
    """Starts servers.

    Args:
        children: Owns the processes.
        data: Folder on the disk to measure.
        sockets: Folder with a short path (a Unix socket path has 107 bytes at most).
        workload: The records to load.
    """

    def __init__(self, children: Children, data: Path, sockets: Path, workload: Workload) -> None:
        self._children, self._data, self._sockets, self._workload = children, data, sockets, workload
        self._running: dict[str, Child | None] = {}
        self._addresses: dict[str, str] = {}
        self._loaded: set[str] = set()
        self._count = 0

    def start(self, server: str, folder: Path | None = None) -> tuple[Child | None, str]:
        """Start one more server of a kind, on its own or the given data folder.

        Returns:
            The process (None for what runs in process) and the address for clients.

        Raises:
            ChildError: It did not become ready.
        """
        self._count += 1
        folder = folder or self._data / f"{server}-{self._count}"
        path = self._sockets / f"{self._count}.sock"
        kind, _, mode = server.partition("-")
        if kind in ("lmdb", "apsw", "faiss", "hnswlib") or kind in EMBEDDED:
            return None, str(folder)
        folder.mkdir(exist_ok=True)
        if kind == "toondb":
            arguments = toondb_arguments(folder, path, mode.partition("-")[0] or None)
        elif kind == "redis":
            arguments = _redis_arguments(folder, path, mode == "always")
        else:
            size = 5 + self._workload.value_size
            arguments = [sys.executable, "-m", "benchmarks.echo", str(path), str(size)]
        return self._children.start(arguments, label=server, ready_timeout=_READY_TIMEOUT), str(path)

    def stop(self, child: Child) -> None:
        """End one server."""
        self._children.stop(child)

    def shared(self, server: str) -> tuple[Child | None, str]:
        """The server that all rows share, started on first use. Raises as :meth:`start`."""
        if server not in self._addresses:
            self._running[server], self._addresses[server] = self.start(server)
        return self._running[server], self._addresses[server]

    def load(self, server: str, crew: Crew, cell: str) -> None:
        """Store the records in a shared server, once, through an open cell of the crew."""
        if server != "echo" and server not in self._loaded:
            crew.load(cell)
            self._loaded.add(server)

    def loaded_folder(self, server: str, crew: Crew) -> Path:
        """A data folder that holds the records and is not served.

        Raises:
            ChildError: The server did not become ready.
            CrewError: The records could not be stored.
        """
        folder = self._data / f"{server}-loaded"
        child, address = self.start(server, folder)
        assert child is not None
        name = f"load@{server}"
        crew.open(name, server.partition("-")[0], address, 1)
        crew.load(name)
        crew.close(name, 1)
        self.stop(child)
        return folder


def place(pid: int, cores: Collection[int]) -> None:
    """Confine all threads of a process to some cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, to the nanosecond (/proc/PID/task/*/schedstat).

    Falls back to the clock ticks of ``/proc/PID/stat`` where the kernel keeps no scheduler statistics.
    """
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process in MB (10^6 bytes): ``rss``, and ``pss`` where the kernel tells.

    PSS counts a page shared by N processes as 1/N. Source: /proc/PID/smaps_rollup, /proc/PID/statm.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return {"rss": pages * os.sysconf("SC_PAGE_SIZE") / 1e6}
    found: dict[str, float] = {}
    for line in lines:
        name, _, amount = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.lower()] = int(amount.split()[0]) * 1024 / 1e6
    return found
