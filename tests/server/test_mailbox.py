"""Handing things to the event loop from several threads: nothing is left lying, whoever comes at once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable

import pytest

from tests.support.daemon import SECONDS
from toondb_server.mailbox import Mailbox


class Meeting(deque[int]):
    """Where two threads that append have both appended before either goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._both = threading.Barrier(2)

    def append(self, item: int) -> None:
        super().append(item)
        self._both.wait(SECONDS)


async def in_threads(put: Callable[[int], None], items: Iterable[int], everything: asyncio.Event) -> None:
    """Put each item in a thread of its own, and wait until everything was taken."""
    threads = [threading.Thread(target=put, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(SECONDS):
        await everything.wait()
    for thread in threads:
        thread.join()


async def test_two_that_come_at_once() -> None:
    taken: list[int] = []
    everything = asyncio.Event()

    def take(item: int) -> None:
        taken.append(item)
        if len(taken) == 2:
            everything.set()

    mailbox = Mailbox(asyncio.get_running_loop(), lambda: None, take)
    mailbox._items = Meeting()
    await in_threads(mailbox.put, (1, 2), everything)
    assert sorted(taken) == [1, 2]


async def test_many_from_several_threads_in_their_order() -> None:
    count, openings = 5000, 0
    taken: list[tuple[int, int]] = []
    everything = asyncio.Event()

    def begin() -> None:
        nonlocal openings
        openings += 1

    def take(item: tuple[int, int]) -> None:
        taken.append(item)
        if len(taken) == 4 * count:
            everything.set()

    mailbox = Mailbox(asyncio.get_running_loop(), begin, take)

    def put(who: int) -> None:
        for number in range(count):
            mailbox.put((who, number))

    await in_threads(put, range(4), everything)
    assert Counter(who for who, _ in taken) == dict.fromkeys(range(4), count)
    for who in range(4):
        assert [number for one, number in taken if one == who] == list(range(count))
    assert 0 < openings <= 4 * count


@pytest.mark.parametrize("times", [1, 3])
def test_nobody_is_left_when_the_loop_is_closed(times: int) -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    def refuse(*_: object) -> None:
        raise AssertionError

    mailbox: Mailbox[int] = Mailbox(loop, refuse, refuse)
    for item in range(times):
        mailbox.put(item)
    assert not mailbox._items
