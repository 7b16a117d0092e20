"""The machine and the software that a run was measured on; a figure without them means nothing."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["describe_machine", "filesystem_of", "fsync_latency"]

_LIBRARIES = ("lmdb", "apsw", "faiss-cpu", "numpy", "msgpack", "uvloop", "redis", "hiredis", "hnswlib", "sochdb")


def _field(path: str, name: str) -> str | None:
    """The first ``name : value`` of a /proc text file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, separator, value = line.partition(":")
        if separator and key.strip() == name:
            return value.strip()
    return None


def _unescape(field: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo (proc(5))."""
    for code in (r"\040", r"\011", r"\012", r"\134"):
        field = field.replace(code, chr(int(code[1:], 8)))
    return field


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that holds ``path`` (``ext4``, ``tmpfs``, ...), or ``unknown``.

    Source: /proc/self/mountinfo, the last mount with the longest matching mount point.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    target = path.resolve()
    found, depth = "unknown", -1
    for line in mounts:
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        point = Path(_unescape(left.split()[4]))
        if target.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = right.split()[0], len(point.parts)
    return found


def fsync_latency(folder: Path, repetitions: int = 50) -> dict[str, float]:
    """Append 4 KiB and ``fdatasync``, again and again: the floor under every durable write.

    Returns:
        Median, minimum and maximum in milliseconds.
    """
    path = folder / "fsync.probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    block = b"\0" * 4096
    taken: list[float] = []
    try:
        for _ in range(repetitions):
            start = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - start) * 1e3)
    finally:
        os.close(descriptor)
        path.unlink()
    return {"median_ms": statistics.median(taken), "min_ms": min(taken), "max_ms": max(taken)}


def _library_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    program = shutil.which("redis-server")
    if program is None:
        versions["redis-server"] = "not installed"
    else:
        words = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()
        versions["redis-server"] = next((word[2:] for word in words if word.startswith("v=")), "unknown")
    return versions


def describe_machine(folder: Path) -> dict[str, object]:
    """Describe this machine for a report.

    Args:
        folder: Where the data of the run is; its filesystem and its sync latency are part of the result.
    """
    memory = _field("/proc/meminfo", "MemTotal")
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int(memory.split()[0]) * 1024 // 1_000_000 if memory else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": _library_versions(),
        "filesystem": filesystem_of(folder),
        "fsync": fsync_latency(folder),
        # A busy machine shows here; figures taken beside other work are not worth much.
        "load_average": list(os.getloadavg()),
    }
