"""Processes that write to a daemon until it is killed, and print a number for each commit that was acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys

from tests.support.daemon import SECONDS, Daemon, child_environ

__all__ = ["kill_amid_writes"]


def _start(program: str, daemon: Daemon, name: str) -> subprocess.Popen[str]:
    """A process that runs a program; its arguments are the daemon's socket and a name of its own."""
    command = [sys.executable, "-W", "error", "-c", program, str(daemon.socket), name]
    return subprocess.Popen(command, env=child_environ(), stdout=subprocess.PIPE, text=True)


def _acknowledged(writer: subprocess.Popen[str]) -> int:
    """The last number that a writer was told of, once it has ended."""
    assert writer.stdout is not None
    numbers = writer.stdout.read().split()
    writer.stdout.close()
    assert writer.wait(SECONDS) == 0
    return int(numbers[-1]) if numbers else 0


def kill_amid_writes(program: str, daemon: Daemon, told: dict[str, int], draw: random.Random, turns: range) -> None:
    """Kill a daemon while processes write to it.

    Args:
        program: What each of them runs.
        daemon: The daemon.
        told: The last number that each was told of, by name; brought up to date.
        draw: How many numbers each must have told before the kill.
        turns: Of so many.
    """
    writers = {name: _start(program, daemon, name) for name in told}
    for name, writer in writers.items():
        assert writer.stdout is not None
        for _ in range(draw.choice(turns)):
            told[name] = max(told[name], int(writer.stdout.readline()))
    daemon.kill()
    for name, writer in writers.items():
        told[name] = max(told[name], _acknowledged(writer))
