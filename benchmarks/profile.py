"""Where the daemon spends its time under a fixed load: ``python -m benchmarks.profile LOAD``.

The daemon runs under cProfile, which slows it down and sees its main thread (the event loop) alone; the
processor time of every thread is printed beside it. Compare shares, not rates.
"""

from __future__ import annotations

import argparse
import pstats
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.__main__ import data_parent
from benchmarks.children import ChildError, Children
from benchmarks.crew import Crew, CrewError
from benchmarks.servers import missing, toondb_arguments
from benchmarks.workload import Workload

# name: driver, operation, client processes, sync mode
LOADS = {
    "ping": ("toondb-socket", "ping", 8, "off"),
    "get": ("toondb-socket", "get", 8, "off"),
    "put": ("toondb", "put", 8, "full"),
    "pipeline": ("toondb", "get*1000", 1, "off"),
    "pipeline-put": ("toondb", "put*1000", 1, "off"),
    "scan": ("toondb", "scan", 1, "off"),
    "sql-point": ("sql-ipc", "point", 1, "off"),
    "sql-insert": ("sql-ipc", "insert", 8, "full"),
}


def thread_times(pid: int) -> dict[str, float]:
    """Processor time in seconds of each thread of a process, by ``thread id name``."""
    times: dict[str, float] = {}
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        name = (task / "comm").read_text().strip()
        times[f"{task.name} {name}"] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return times


def _profile(load: str, seconds: float, folder: Path, sockets: Path) -> Path:
    driver, operation, processes, sync_mode = LOADS[load]
    workload, output, path = Workload(), folder / "daemon.prof", sockets / "d.sock"
    server = toondb_arguments(folder / "db", path, sync_mode)
    arguments = [server[0], "-m", "cProfile", "-o", str(output), *server[1:]]
    with Children(sockets) as children, Crew(children, workload) as crew:
        daemon = children.start(arguments, label="toondb under cProfile", ready_timeout=60.0)
        crew.open("load", "toondb", str(path), 1)
        crew.load("load")
        crew.close("load", 1)
        crew.open(load, driver, str(path), processes)
        before = thread_times(daemon.pid)
        rate, _ = crew.run(load, operation, seconds, processes)
        after = thread_times(daemon.pid)
        crew.close(load, processes)
        children.stop(daemon)
        if not output.exists():
            raise ChildError(f"the daemon left no profile: {daemon.last_words()}")
    print(f"{load}: {rate:,.0f} /s from {processes} processes for {seconds:g} s, profiler on, sync {sync_mode}")
    for name, time in after.items():
        print(f"  thread {name:<24} {time - before.get(name, 0.0):8.3f} s of processor time")
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 when the daemon or its load failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.split("\n")[0])
    parser.add_argument("load", choices=sorted(LOADS))
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the load (default %(default)s)")
    parser.add_argument("--top", type=int, default=30, help="functions to show (default %(default)s)")
    parser.add_argument("--sort", default="tottime", choices=["tottime", "cumtime", "ncalls"])
    parser.add_argument("--dir", type=Path, help="folder on the disk to use")
    arguments = parser.parse_args(argv)
    if missing("toondb"):
        print("ToonDB's server or client cannot be imported here.", file=sys.stderr)
        return 1
    try:
        parent = data_parent(arguments.dir)
    except ValueError as error:
        parser.error(str(error))
    with (
        tempfile.TemporaryDirectory(prefix="toondb-profile-", dir=parent) as folder,
        tempfile.TemporaryDirectory(prefix="tb-") as sockets,
    ):
        try:
            output = _profile(arguments.load, arguments.seconds, Path(folder), Path(sockets))
        except (ChildError, CrewError) as error:
            print(f"The profile failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted; every process was ended.", file=sys.stderr)
            return 130
        pstats.Stats(str(output)).sort_stats(arguments.sort).print_stats(arguments.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
