"""A lock that can be tried where Ctrl-C may come."""

from __future__ import annotations

import threading

import pytest

from tests.support.ctrl_c import cut_at_every_step
from tests.support.daemon import SECONDS
from toondb_protocol.own_lock import OwnLock


def is_free(lock: OwnLock) -> bool:
    """Whether another thread gets it."""
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(lock.if_free(lambda: None)))
    thread.start()
    thread.join(SECONDS)
    return results[0]


def test_it_is_tried() -> None:
    lock = OwnLock()
    done: list[bool] = []

    def work() -> None:
        assert lock.mine
        assert not is_free(lock)
        assert not lock.if_free(lambda: done.append(False))
        assert lock.mine
        done.append(True)

    assert lock.if_free(work)
    assert done == [True]
    assert not lock.mine
    with lock.held:
        assert not is_free(lock)
        assert not lock.if_free(work)
    assert is_free(lock)


def test_what_the_work_raises() -> None:
    lock = OwnLock()
    with pytest.raises(ZeroDivisionError):
        lock.if_free(lambda: 1 // 0)
    assert not lock.mine
    assert is_free(lock)


def test_ctrl_c_at_every_step() -> None:
    lock = OwnLock()
    steps = 0
    for steps in cut_at_every_step(lambda: lock.if_free(lambda: lock.mine)):
        assert not lock.mine, steps
        assert is_free(lock), steps
    assert steps > 5
