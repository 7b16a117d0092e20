"""Fork detection: sockets and memory maps must not be shared between a parent and its forked child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["generation", "reset_in_child"]


class _Resettable(Protocol):
    def _reset_in_child(self) -> None: ...


_generation = 0
_resettable: weakref.WeakSet[_Resettable] = weakref.WeakSet()


def generation() -> int:
    """How many forks lie between the first process and this one; handles compare it with their own."""
    return _generation


def reset_in_child(item: _Resettable) -> None:
    """Have ``item._reset_in_child()`` called in every forked child, before any of its code runs."""
    _resettable.add(item)


def _after_fork() -> None:
    global _generation
    _generation += 1
    for item in list(_resettable):
        item._reset_in_child()


os.register_at_fork(after_in_child=_after_fork)
