"""Forked children of the test process that report back."""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["in_child"]


def in_child(function: Callable[[], Any], *, exits: bool = True, seconds: float = 30.0) -> Any:
    """Fork, call ``function`` in the child, and return its result here.

    Args:
        function: What the child does; its result must be picklable.
        exits: The child leaves at once (``os._exit``); False collects garbage and leaves the interpreter
            through its usual end, with all finalizers.
        seconds: Bound of the wait; a child that hangs fails the test.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            try:
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(answer, pipe)
            if not exits:
                import ctypes

                ctypes.pythonapi.Py_FinalizeEx()
        finally:
            os._exit(0)
    os.close(write)
    chunks: list[bytes] = []
    try:
        while True:
            if not select.select([read], [], [], seconds)[0]:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError("the child hangs")
            chunk = os.read(read, 65536)
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        os.close(read)
        os.waitpid(pid, 0)
    fine, result = pickle.loads(b"".join(chunks))
    assert fine, result
    return result
