"""faiss, loaded so that it shares the processor with others.

The OpenMP library that faiss brings lets threads that wait for each other spin, by default. Where other processes use
the same processors, as the workers beside a daemon do, each then waits for threads that are not running: two threads
were two to three times slower than with sleeping waits, and slower than one. On an idle machine it made no difference.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__all__ = ["faiss"]

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def _load() -> Any:
    if any(name in os.environ for name in _CHOICES):
        return import_module("faiss")
    # The library reads it once, when it is loaded; children need not inherit it.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        return import_module("faiss")
    finally:
        del os.environ["OMP_WAIT_POLICY"]


faiss: Any = _load()
