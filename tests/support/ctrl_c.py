"""Ctrl-C at a chosen step, or at random ones: exactly where the interpreter itself looks for signals."""

from __future__ import annotations

import contextlib
import ctypes
import dis
import gc
import inspect
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from types import CodeType, FrameType
from typing import Any

__all__ = ["CtrlC", "cut_at_every_step", "nothing_reported", "reported", "storm"]

# Tracers without a step of Python of their own, in which the signal would be noticed: one that sends it, and one that
# does nothing. Neither looks at its arguments.
_TRACER = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.py_object, ctypes.py_object)
_interrupt = _TRACER(("PyErr_SetInterrupt", ctypes.pythonapi))
_idle = _TRACER(("PyGILState_Check", ctypes.pythonapi))
_AGAIN_SECONDS = 0.05
_TRACED = ("toondb", "threading", "contextlib", "_weakrefset")


# Signals are noticed at the end of a call, at the begin of a function and where a loop begins again.
_NOTICES = {code for name, code in dis.opmap.items() if name.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))}


class CtrlC:
    """SIGINT that arrives at the n-th step of our code in the main thread.

    A step is where the interpreter looks for signals. Unlike an exception of a tracer this one never comes between a
    ``with`` and the lock that it takes or gives back, for one.

    Args:
        at: Which step, from 1.
        within: The modules whose steps count, by how their names begin.
    """

    def __init__(self, at: int, within: tuple[str, ...] = _TRACED) -> None:
        self._left = at
        self._within = within
        self._sent = False
        self._generators: list[FrameType] = []

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_globals.get("__name__", "").startswith(self._within):
            return None
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            self._generators.append(frame)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step(frame, event, arg)

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "call" or (event == "opcode" and frame.f_lasti in _steps(frame.f_code)):
            self._left -= 1
            if self._left == 0:
                # The next step sends it, here, in a caller or in a generator that waits.
                sys.settrace(_idle)
                for traced in (*self._generators, *_callers(frame)):
                    if traced.f_trace is not None:
                        traced.f_trace = _interrupt
                self._generators.clear()
                return _interrupt
        return self._step

    def during(self, work: Callable[[], object]) -> bool:
        """Whether ``work`` was interrupted; perhaps in a finalizer, which only reports it."""
        tracer = sys.gettrace()
        handler = signal.signal(signal.SIGINT, self._raise)
        try:
            sys.settrace(self)
            work()
            sys.settrace(None)  # notices what came last
        except KeyboardInterrupt:
            assert self._sent
        finally:
            sys.settrace(tracer)
            signal.signal(signal.SIGINT, handler)
        return self._sent

    def _raise(self, *_: object) -> None:
        sys.settrace(None)
        self._sent = True
        raise KeyboardInterrupt


@cache
def _steps(code: CodeType) -> frozenset[int]:
    return frozenset(step.offset for step in dis.get_instructions(code) if step.opcode in _NOTICES)


def _callers(frame: FrameType) -> Iterator[FrameType]:
    outer = frame.f_back
    while outer is not None:
        yield outer
        outer = outer.f_back


def cut_at_every_step(work: Callable[[], object], within: tuple[str, ...] = _TRACED) -> Iterator[int]:
    """Run ``work`` again and again, each time cut one step later, until it comes to its end; gives the step."""
    step = 1
    while CtrlC(step, within).during(work):
        yield step
        step += 1


@contextlib.contextmanager
def reported() -> Iterator[list[BaseException | None]]:
    """What finalizers raised meanwhile, except for the interrupts themselves."""
    found: list[BaseException | None] = []

    def report(args: sys.UnraisableHookArgs) -> None:
        if args.exc_type is not KeyboardInterrupt:
            found.append(args.exc_value)

    before = sys.unraisablehook
    sys.unraisablehook = report
    try:
        yield found
        gc.collect()
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def nothing_reported() -> Iterator[None]:
    """Finalizers report nothing, but for what was cut and is closed by the collector, which says so."""
    with warnings.catch_warnings(), reported() as errors:
        warnings.simplefilter("ignore", ResourceWarning)
        yield
    assert errors == []


def storm(work: Callable[[], object], cuts: int, longest: float, seed: int) -> None:
    """Run ``work`` until it was cut so many times, each time after up to ``longest`` seconds, by a real signal.

    One that a finalizer or a callback of C code has swallowed comes again.
    """
    random = Random(seed)
    armed = False

    def alarm(*_: object) -> None:
        nonlocal armed
        if armed:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        while cuts:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest))
                work()
                armed = False
            except KeyboardInterrupt:
                armed = False
                cuts -= 1
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
