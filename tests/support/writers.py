"""Processes that write to a daemon until it is killed, and print a number for each commit that was acknowledged."""

from __future__ import annotations

import subprocess
import sys

from tests.support.daemon import SECONDS, Daemon, child_environ

__all__ = ["acknowledged", "start_writer"]


def start_writer(program: str, daemon: Daemon, name: str) -> subprocess.Popen[str]:
    """A process that runs a program; its arguments are the daemon's socket and a name of its own."""
    command = [sys.executable, "-W", "error", "-c", program, str(daemon.socket), name]
    return subprocess.Popen(command, env=child_environ(), stdout=subprocess.PIPE, text=True)


def acknowledged(writer: subprocess.Popen[str]) -> int:
    """The last number that a writer was told of, once it has ended."""
    assert writer.stdout is not None
    numbers = writer.stdout.read().split()
    writer.stdout.close()
    assert writer.wait(SECONDS) == 0
    return int(numbers[-1]) if numbers else 0
