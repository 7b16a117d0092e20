"""Ctrl-C at every step of what searches and writes do beside their work: nobody waits for ever for it afterwards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from random import Random
from types import FrameType
from typing import Any

import pytest

from tests.support.daemon import SECONDS
from tests.test_review_facade import Interrupt
from toondb import Database
from toondb.collections.background import Background
from toondb.collections.given import Filter
from toondb.engine.engine import Engine


def ends(work: Callable[[], object]) -> bool:
    """Whether ``work`` comes to an end, in a thread of its own: this one must not wait for ever."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_in_a_wake(started: bool) -> None:
    step = 0
    cut = True
    while cut:
        step += 1
        rounds: SimpleQueue[None] = SimpleQueue()

        def work(stopping: Callable[[], bool], rounds: SimpleQueue[None] = rounds) -> None:
            rounds.put(None)

        background = Background(work)
        if started:
            background.wake()
            rounds.get(timeout=SECONDS)
        cut = Interrupt(step).during(background.wake)
        while not rounds.empty():
            rounds.get()
        assert ends(background.wake), step
        rounds.get(timeout=SECONDS)
        assert ends(background.close), step
    assert step > 3


def test_a_wake_while_it_works_is_another_round() -> None:
    rounds: SimpleQueue[None] = SimpleQueue()
    go_on: SimpleQueue[None] = SimpleQueue()

    def work(stopping: Callable[[], bool]) -> None:
        rounds.put(None)
        go_on.get(timeout=SECONDS)

    background = Background(work)
    background.wake()
    rounds.get(timeout=SECONDS)
    for _ in range(5):
        background.wake()
    go_on.put(None)
    rounds.get(timeout=SECONDS)
    go_on.put(None)
    background.close()
    background.wake()  # nothing is left that could work
    assert rounds.empty()


def test_ctrl_c_while_a_snapshot_is_read(tmp_path: Path) -> None:
    """The reading thread itself closes it then, with what was interrupted still on its stack."""
    with Engine(tmp_path / "db") as engine:

        def read() -> None:
            with contextlib.closing(engine.private_snapshot()) as snapshot, snapshot.reading():
                pass

        def interrupted_at_every_step() -> None:
            step = 1
            while Interrupt(step).during(read):
                step += 1
            assert step > 20
            done.append(step)

        done: list[int] = []
        assert ends(interrupted_at_every_step)
        assert done


def test_ctrl_c_while_a_cache_is_brought_up_to_date(tmp_path: Path) -> None:
    step = 0
    cut = True
    with Database.open(tmp_path / "db", config={"sync_mode": "off"}) as db:
        docs = db.create_namespace("ns").create_collection("docs", dimension=2)
        docs.insert([1.0, 0.0])
        docs.vector_search([1.0, 0.0])
        caches = db._shared.collections()._caches
        (cache,) = caches._caches.values()
        filter = Filter(b"n", lambda metadata: True)
        while cut:
            step += 1
            docs.insert([0.0, 1.0], id=str(step))
            view = db._engine.begin(read_only=True)
            cut = Interrupt(step).during(lambda view=view: caches._bring(cache, view, filter, wait=False))  # type: ignore[misc]
            db._engine.abort(view)

            def take() -> None:
                with cache.updating:
                    pass

            assert ends(take), step
            assert len(docs.vector_search([0.0, 1.0], 1000)) == step + 1
    assert step > 5


class _InWords(Interrupt):
    """Ctrl-C where the words in memory are changed; not at the end of a ``with``, where only a tracer can come."""

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith("word_cache.py") or code.co_name in ("look_up", "_advance", "shrink"):
            return None
        return super().__call__(frame, event, arg)


def test_ctrl_c_while_words_are_searched(tmp_path: Path) -> None:
    random = Random(7)
    step, cuts = 1, 0
    cut = True
    with Database.open(tmp_path / "db", config={"sync_mode": "off"}) as db:
        docs = db.create_namespace("ns").create_collection("docs", dimension=2, enable_hybrid_search=True)
        texts = {f"d{at}": f"alpha word{at % 7}" for at in range(50)}
        docs.insert_batch([(id, [1.0, 0.0], {}, text) for id, text in texts.items()])
        docs.keyword_search("alpha")
        while cut:
            id = f"d{random.randrange(60)}"
            texts[id] = f"alpha word{step % 7}" if random.random() < 0.8 else "beta"
            docs.upsert([1.0, 0.0], {}, id, texts[id])
            word = f"word{step % 7}"
            cut = _InWords(step).during(lambda word=word: docs.keyword_search(word, 100))  # type: ignore[misc]
            cuts += cut
            for asked in (word, "alpha"):
                found = {result.id for result in docs.keyword_search(asked, 100)}
                assert found == {id for id, text in texts.items() if asked in text.split()}, (step, asked)
            step += random.randint(1, 3)
    assert cuts > 30
