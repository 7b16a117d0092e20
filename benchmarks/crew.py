"""The multi-process driver: client processes that connect, wait at a barrier, and run together.

Workers are executed afresh (never forked from this process) and started once for a whole run. All of a
cell's workers connect first; each says that it is armed and blocks on one shared pipe; one write to that
pipe releases them all. Nothing sleeps, and the clock of each worker runs only while it works.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from benchmarks.children import Child, Children
from benchmarks.workload import Workload

__all__ = ["Crew", "CrewError"]


class CrewError(RuntimeError):
    """A worker failed, or did not answer in time."""


class Crew:
    """A growing set of worker processes; a context manager.

    Args:
        children: Starts and ends the processes.
        workload: The records that the contestants hold.
        timeout: Seconds within which every command must be answered, on top of its own running time.
    """

    def __init__(self, children: Children, workload: Workload, timeout: float = 60.0) -> None:
        self._children, self._workload, self._timeout = children, workload, timeout
        self._workers: list[Child] = []
        self._buffers: dict[int, bytes] = {}
        self._barrier_read, self._barrier_write = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._discard()
        os.close(self._barrier_read)
        os.close(self._barrier_write)

    def open(self, cell: str, driver: str, address: str, processes: int) -> None:
        """Connect ``processes`` workers to a contestant.

        Raises:
            CrewError: One of them could not connect.
        """
        while len(self._workers) < processes:
            self._start_worker()
        self._command(processes, {"do": "open", "cell": cell, "driver": driver, "address": address})

    def load(self, cell: str) -> None:
        """Let the first worker store all records."""
        self._command(1, {"do": "load", "cell": cell})

    def close(self, cell: str, processes: int) -> None:
        """Disconnect the workers from a contestant."""
        self._command(processes, {"do": "close", "cell": cell})

    def run(self, cell: str, operation: str, seconds: float, processes: int) -> tuple[float, int]:
        """Run an operation in ``processes`` workers at the same time.

        Returns:
            The sum of their rates (operations a second), and the number of operations.

        Raises:
            CrewError: One of them failed.
        """
        workers = self._workers[:processes]
        self._send(workers, {"do": "run", "cell": cell, "operation": operation, "seconds": seconds})
        armed = self._receive(workers, self._timeout)
        ready = [worker for worker, answer in zip(workers, armed, strict=True) if "error" not in answer]
        # The byte of a worker that failed to arm must not be left for the next run.
        os.write(self._barrier_write, b"g" * len(ready))
        results = self._receive(ready, self._timeout + seconds)
        self._raise_errors([*armed, *results])
        rate = sum(result["count"] / result["seconds"] for result in results)
        return rate, sum(result["count"] for result in results)

    def median_seconds(self, cell: str, operation: str, seconds: float) -> float:
        """Let the first worker perform an operation again and again.

        Returns:
            The median time of one.

        Raises:
            CrewError: It failed.
        """
        command = {"do": "median", "cell": cell, "operation": operation, "seconds": seconds}
        return float(self._command(1, command)[0]["median"])

    def recall(self, cell: str, operation: str) -> float:
        """Let the first worker compare the answers of an operation with the truth.

        Returns:
            The share of the true nearest that were found.

        Raises:
            CrewError: It failed.
        """
        return float(self._command(1, {"do": "recall", "cell": cell, "operation": operation})[0]["recall"])

    def pids(self, processes: int) -> list[int]:
        """The process ids of the first workers."""
        return [worker.pid for worker in self._workers[:processes]]

    def _discard(self) -> None:
        """End all workers; the next cell starts new ones."""
        for worker in self._workers:
            self._children.stop(worker)
        self._workers.clear()
        self._buffers.clear()

    def _broken(self, reason: str) -> CrewError:
        """After a missing answer, nobody knows whose answer comes next: the whole crew is replaced."""
        self._discard()
        os.close(self._barrier_read)
        os.close(self._barrier_write)
        self._barrier_read, self._barrier_write = os.pipe()
        return CrewError(reason)

    def _start_worker(self) -> None:
        number = len(self._workers)
        arguments = [sys.executable, "-m", "benchmarks.worker", str(self._barrier_read), str(number + 1)]
        arguments += [str(self._workload.keys), str(self._workload.value_size)]
        worker = self._children.start(arguments, label=f"worker {number}", pipes=True, pass_fds=[self._barrier_read])
        self._workers.append(worker)
        self._buffers[worker.pid] = b""

    def _command(self, processes: int, command: Mapping[str, object]) -> list[dict[str, Any]]:
        workers = self._workers[:processes]
        self._send(workers, command)
        answers = self._receive(workers, self._timeout)
        self._raise_errors(answers)
        return answers

    def _send(self, workers: Sequence[Child], command: Mapping[str, object]) -> None:
        line = json.dumps(command).encode() + b"\n"
        for worker in workers:
            stdin = worker.process.stdin
            assert stdin is not None
            try:
                stdin.write(line)
                stdin.flush()
            except OSError as error:
                raise self._broken(f"{worker.label} ended early: {worker.last_words()}") from error

    def _receive(self, workers: Sequence[Child], timeout: float) -> list[dict[str, Any]]:
        """One answer from each worker, in their order."""
        deadline = time.monotonic() + timeout
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout.fileno(), selectors.EVENT_READ, worker)
            while len(answers) < len(workers):
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    late = len(workers) - len(answers)
                    raise self._broken(f"no answer from {late} workers in {timeout:.0f} s")
                for key, _ in events:
                    worker = key.data
                    data = os.read(key.fd, 65536)
                    if not data:
                        raise self._broken(f"{worker.label} ended early: {worker.last_words()}")
                    line, newline, rest = (self._buffers[worker.pid] + data).partition(b"\n")
                    if newline:
                        answers[worker.pid] = json.loads(line)
                        self._buffers[worker.pid] = rest
                        selector.unregister(key.fd)
                    else:
                        self._buffers[worker.pid] = line
        return [answers[worker.pid] for worker in workers]

    @staticmethod
    def _raise_errors(answers: Sequence[Mapping[str, Any]]) -> None:
        errors = [answer["error"] for answer in answers if "error" in answer]
        if errors:
            raise CrewError(errors[0] if len(errors) == 1 else f"{errors[0]} ({len(errors)} workers)")
