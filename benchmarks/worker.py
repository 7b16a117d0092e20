"""One client process, driven over its standard input: ``python -m benchmarks.worker BARRIER_FD SEED KEYS VALUE_SIZE``.

It reads one JSON command a line and writes one JSON answer a line:

``{"do": "open", "cell": id, "driver": name, "address": path}``
    Connect. Answers ``{}``.
``{"do": "load", "cell": id}``
    Store all records. Answers ``{}``.
``{"do": "run", "cell": id, "operation": name, "seconds": s}``
    Prepare, answer ``{"armed": true}``, read one byte from the barrier pipe, run, answer
    ``{"count": n, "seconds": elapsed}``.
``{"do": "median", "cell": id, "operation": name, "seconds": s}``
    Perform it one by one, with a look at the clock between. Answers ``{"median": seconds}``.
``{"do": "recall", "cell": id, "operation": name}``
    Compare the answers of an operation with the truth. Answers ``{"recall": share}``.
``{"do": "close", "cell": id}``
    Disconnect. Answers ``{}``.

Any failure is answered with ``{"error": text}``. The end of standard input ends the process.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from time import perf_counter
from typing import Any

from benchmarks.drivers import Driver, open_driver
from benchmarks.workload import Workload


def _answer(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    barrier, seed = int(sys.argv[1]), int(sys.argv[2])
    workload = Workload(int(sys.argv[3]), int(sys.argv[4]))
    drivers: dict[str, Driver] = {}

    def perform(command: dict[str, Any]) -> dict[str, object]:
        cell = command["cell"]
        match command["do"]:
            case "open":
                drivers[cell] = open_driver(command["driver"], command["address"], workload, seed)
            case "load":
                drivers[cell].load(workload)
            case "close":
                driver = drivers.pop(cell, None)
                if driver is not None:
                    driver.close()
            case "run":
                loop, seconds = drivers[cell].loop(command["operation"]), command["seconds"]
                _answer({"armed": True})
                os.read(barrier, 1)
                start = perf_counter()
                count = loop(start + seconds)
                return {"count": count, "seconds": perf_counter() - start}
            case "median":
                loop, taken = drivers[cell].loop(command["operation"]), list[float]()
                deadline = perf_counter() + command["seconds"]
                while not taken or perf_counter() < deadline:
                    start = perf_counter()
                    loop(start)  # it is over: one operation is the least
                    taken.append(perf_counter() - start)
                return {"median": statistics.median(taken)}
            case "recall":
                asked: Any = drivers[cell]
                return {"recall": asked.recall(command["operation"])}
            case other:
                return {"error": f"unknown command {other!r}"}
        return {}

    for line in sys.stdin:
        try:
            answer = perform(json.loads(line))
        except Exception as error:  # reported to the driver of the run, which shows it in the row
            answer = {"error": f"{type(error).__name__}: {error}"}
        _answer(answer)


if __name__ == "__main__":
    main()
