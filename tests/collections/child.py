"""A process that works on a collection until it is killed: ``python -m tests.collections.child FOLDER SEED SHARED``.

It says what it is about to do and when that is done, a line for each.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from toondb import Database
from toondb.collections import vector_caches
from toondb_protocol.collections import Collection

IDS = 60
DIMENSION = 4


def say(*words: object) -> None:
    print(*words, flush=True)


def vector_of(number: int) -> list[float]:
    """The vector of a document whose metadata has this number."""
    rng = random.Random(number)
    return [rng.uniform(-1, 1) for _ in range(DIMENSION)]


def put(docs: Collection, id: str, number: int) -> None:
    docs.insert(id, vector_of(number), {"n": number, "odd": number % 2}, f"word{number} common")


def work(folder: str, seed: int, shared: bool) -> None:
    vector_caches._SAVED_FROM = 1
    vector_caches._SAVE_AFTER = 10
    db = (Database.open_concurrent if shared else Database.open)(folder)
    docs = db.collection("n", "c")
    rng = random.Random(seed)
    number = seed * 1_000_000
    say("ready")
    while True:
        number += 1
        id = f"{seed if shared else 0}-{rng.randrange(IDS)}"
        kind = rng.choice(["put", "put", "delete", "both", "search", "save"])
        if kind == "put":
            say("put", id, number)
            put(docs, id, number)
        elif kind == "delete":
            say("delete", id, 0)
            docs.delete(id)
        elif kind == "both":
            say("both", id, number)

            def both(txn: Any, id: str = id, number: int = number) -> None:
                put(txn.collection("n", "c"), id, number)
                txn.put(f"key/{id}", str(number).encode())
                txn.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (id, number))

            db.run_transaction(both)
        elif kind == "search":
            docs.vector_search(vector_of(number), 5, {"odd": 1})
            continue
        else:
            collections = db._shared.collections()
            collections._caches.tend(lambda: False)
            for cache in list(collections._caches._caches.values()):
                with cache.updating:
                    collections._caches._save(cache)
            continue
        say("done")


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "shared")
