"""SQL rows that are not rates: the size of a store, the memory that streaming takes, and how quick PING stays."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.children import ChildError, Children
from benchmarks.crew import Crew, CrewError
from benchmarks.drivers import ping_frame
from benchmarks.report import CellResult
from benchmarks.row import Cell
from benchmarks.servers import Servers, missing
from benchmarks.timing import Samples, turns
from benchmarks.workload import Workload

__all__ = ["failure", "measure_latency", "measure_peak", "measure_size"]

_LOOKS_SECONDS = 0.002
_BETWEEN_PINGS_SECONDS = 0.001
_WRONG = "WrongAnswerError: "


def failure(error: Exception) -> str:
    """The status of a contestant that raised: that a peer cannot do something is a result, not a failure of the run."""
    text = str(error)
    return f"cannot do it: {text.removeprefix(_WRONG)}" if text.startswith(_WRONG) else f"failed: {text}"


def _results(cells: Sequence[Cell], values: dict[str, list[float]], failures: dict[str, str]) -> list[CellResult]:
    return [
        CellResult(cell.label, status=failures[cell.label])
        if cell.label in failures
        else CellResult(cell.label, Samples(tuple(values[cell.label])))
        for cell in cells
    ]


def _disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def measure_size(cells: Sequence[Cell], servers: Servers, crew: Crew) -> list[CellResult]:
    """Fill a new store, close it, and look at its folder. Done once: it hardly differs from run to run."""
    values: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, str] = {}
    for cell in cells:
        if missing(cell.server, cell.driver):
            failures[cell.label] = "not installed"
            continue
        name = f"size of {cell.label}"
        try:
            _, address = servers.start(cell.server)
            crew.open(name, cell.driver, address, 1)
            _, rows = crew.run(name, cell.operation, 0.0, 1)
            crew.close(name, 1)
        except (ChildError, CrewError) as error:
            failures[cell.label] = failure(error)
            continue
        values[cell.label].append(_disk_bytes(Path(address)) / rows)
    return _results(cells, values, failures)


def _private_mb(pid: int) -> float:
    """Memory of a process that is its own, in MB (10^6 bytes): not the pages of files that it has mapped.

    Source: RssAnon of /proc/PID/status (proc(5)).
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"process {pid} has no RssAnon")


class _Peak:
    """Looks at the memory of processes again and again while a block runs.

    Attributes:
        grown: How much each process had more at its peak than before, in MB.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before = [_private_mb(pid) for pid in pids]
        self.grown = [0.0 for _ in pids]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(_LOOKS_SECONDS):
            for at, pid in enumerate(self._pids):
                with contextlib.suppress(OSError):
                    self.grown[at] = max(self.grown[at], _private_mb(pid) - self._before[at])

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()


def measure_peak(
    cells: Sequence[Cell], servers: Servers, children: Children, workload: Workload, data: Path
) -> list[CellResult]:
    """Stream from a daemon that has just been started to a client that has just been started.

    The operation of a cell is ``operation@client`` or ``operation@server``: one run gives both figures.

    Args:
        cells: All of one kind of server.
        servers: Starts it.
        children: Starts the clients.
        workload: How many rows there are.
        data: An empty folder on a disk; the store goes there.
    """
    operations: dict[str, dict[str, str]] = defaultdict(dict)
    for cell in cells:
        operation, _, side = cell.operation.partition("@")
        operations[operation][side] = cell.label
    values: dict[str, list[float]] = defaultdict(list)
    server, driver = cells[0].server, cells[0].driver
    if missing(server, driver):
        return _results(cells, values, dict.fromkeys((cell.label for cell in cells), "not installed"))
    try:
        folder = data / "sql-stream"
        child, address = servers.start(server, folder)
        assert child is not None
        with Crew(children, workload) as crew:
            crew.open("fill", driver, address, 1)
            crew.run("fill", "fill", 0.0, 1)
            crew.close("fill", 1)
        servers.stop(child)
        for operation, labels in operations.items():
            child, address = servers.start(server, folder)
            assert child is not None
            with Crew(children, workload) as crew:
                crew.open("stream", driver, address, 1)
                with _Peak([*crew.pids(1), child.pid]) as peak:
                    crew.run("stream", operation, 0.0, 1)
            servers.stop(child)
            for side, grown in zip(("client", "server"), peak.grown, strict=True):
                values[labels[side]].append(grown)
    except (ChildError, CrewError, OSError) as error:
        return _results(cells, values, dict.fromkeys((cell.label for cell in cells), failure(error)))
    return _results(cells, values, {})


def _pings(address: str, seconds: float, over: Callable[[], bool]) -> list[float]:
    """Round trips in microseconds, one about every millisecond, for some time or until it is ``over``."""
    frame, taken = ping_frame(), list[float]()
    deadline = time.perf_counter() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.connect(address)
        while not taken or (time.perf_counter() < deadline and not over()):
            begun = time.perf_counter()
            channel.sendall(frame)
            channel.recv(5, socket.MSG_WAITALL)
            taken.append((time.perf_counter() - begun) * 1e6)
            time.sleep(_BETWEEN_PINGS_SECONDS)
    return taken


@contextlib.contextmanager
def _load(crew: Crew, name: str, seconds: float, clients: int) -> Iterator[Callable[[], bool]]:
    """Clients that run heavy queries while the block runs; gives what tells that they are done."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            crew.run(name, "heavy", seconds, clients)
        except (CrewError, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="heavy queries")
    thread.start()
    try:
        yield lambda: not thread.is_alive()
    finally:
        thread.join()
    if errors:
        raise errors[0]


def _figure(name: str, taken: Sequence[float]) -> float:
    """``p50``, ``p99`` (nearest rank) or ``max``."""
    ordered = sorted(taken)
    if name == "max":
        return ordered[-1]
    return ordered[math.ceil(len(ordered) * int(name[1:]) / 100) - 1]


def measure_latency(
    cells: Sequence[Cell], servers: Servers, crew: Crew, rounds: int, seconds: float
) -> list[CellResult]:
    """PING a daemon alone, and while clients run heavy queries on it; a cell's operation is the figure to give."""
    values: dict[str, list[float]] = defaultdict(list)
    server, driver = cells[0].server, cells[0].driver
    if missing(server, driver):
        return _results(cells, values, dict.fromkeys((cell.label for cell in cells), "not installed"))
    loads = list(dict.fromkeys(cell.processes for cell in cells))
    try:
        _, address = servers.shared(server)
        name = "heavy queries"
        crew.open(name, driver, address, max(loads))
        crew.run(name, "fill", 0.0, 1)
        for _, clients in turns(loads, rounds):
            if clients:
                with _load(crew, name, seconds, clients) as over:
                    taken = _pings(address, seconds, over)
            else:
                taken = _pings(address, seconds, lambda: False)
            for cell in cells:
                if cell.processes == clients:
                    values[cell.label].append(_figure(cell.operation, taken))
        crew.close(name, max(loads))
    except (ChildError, CrewError, OSError) as error:
        return _results(cells, values, dict.fromkeys((cell.label for cell in cells), failure(error)))
    return _results(cells, values, {})
