"""One program on an embedded database: a cache that expires, counters, a lock, and a feed of changes.

It needs no server::

    python examples/embedded.py                       # in a temporary folder
    python examples/embedded.py ./data                # in a folder of yours
    python examples/embedded.py ./data/toondb.sock    # the same program, on a running toondb-server

Threads answer requests for articles. A rendered page is kept for a while, each view is counted, one thread at a time
writes the report, and another thread keeps an index of the words up to date by watching what changes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from toondb import ChangeKind, Database, HistoryTrimmedError, IpcClient, Store, ToonDBError, connect

_ARTICLES = {"snapshots": b"a snapshot never changes", "group-commit": b"one sync for all who wait"}
_THREADS = 4
_VIEWS = 40
_PATIENCE_SECONDS = 30.0


def cached(store: Store, key: str, seconds: float, make: Callable[[], bytes]) -> bytes:
    """A value from the cache; made, and kept for so long, when it is not there (any more)."""
    value = store.get(key)
    if value is None:
        value = make()
        store.put(key, value, ttl=seconds)
    return value


def view(store: Store, name: str) -> bytes:
    """Answer one request: the page of an article."""

    def render() -> bytes:
        store.increment("demo/rendered")
        return b"<p>" + (store.get(f"demo/article/{name}") or b"not found") + b"</p>"

    store.increment(f"demo/views/{name}")  # in one step: none is lost
    return cached(store, f"demo/page/{name}", 60, render)


def write_report(store: Database | IpcClient) -> bool:
    """Write the report, unless another thread or process is at it; returns whether this one did.

    The lock is released by its time to live when its holder dies. A holder that was paused for longer may still be at
    work when the next one begins; so the work is committed together with a change of ``demo/report-number``, which
    everybody who takes the lock changes too: of two, one conflicts.
    """
    ours = uuid.uuid4().bytes
    if not store.compare_and_set("demo/lock", None, ours, ttl=30):
        return False
    number = store.increment("demo/report-number")
    with store.transaction() as txn:
        lines = [f"{key.decode().rpartition('/')[2]}: {int(value)}" for key, value in txn.scan("demo/views/")]
        txn.put("demo/report", ", ".join(lines).encode())
        if txn.increment("demo/report-number", 0) != number:
            txn.abort()
    return store.compare_and_set("demo/lock", ours, None)


class Index:
    """Which articles have a word, kept up to date by a thread of its own."""

    def __init__(self, store: Database | IpcClient) -> None:
        self._store = store
        self._words: dict[bytes, set[bytes]] = {}
        self._position = 0
        self._reached = threading.Condition()
        self._read()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _read(self) -> None:
        # In this order: what is committed in between is seen twice instead of never.
        position = self._store.stats()["lsn"]
        articles = dict(self._store.scan("demo/article/"))
        with self._reached:
            self._words = {key: set(value.split()) for key, value in articles.items()}
            self._position = position

    def _follow(self) -> None:
        while True:
            try:
                for change in self._store.watch("demo/", since_lsn=self._position):
                    if change.key == b"demo/stop":
                        return
                    with self._reached:
                        if change.key.startswith(b"demo/article/"):
                            if change.kind is ChangeKind.PUT:
                                self._words[change.key] = set((change.value or b"").split())
                            else:
                                self._words.pop(change.key, None)
                        if change.last:
                            self._position = change.lsn
                            self._reached.notify_all()
            except HistoryTrimmedError:
                self._read()

    def find(self, word: bytes, lsn: int) -> list[str]:
        """The articles with a word, once the changes up to a commit were seen."""
        with self._reached:
            self._reached.wait_for(lambda: self._position >= lsn, _PATIENCE_SECONDS)
            return sorted(key.decode().rpartition("/")[2] for key, words in self._words.items() if word in words)

    def close(self) -> None:
        """End the thread."""
        self._store.put("demo/stop", b"")
        self._thread.join()


def run(store: Database | IpcClient) -> bool:
    """Show it; returns whether everything came out right."""
    store.delete_path("demo", recursive=True)
    store.put_many({f"demo/article/{name}": text for name, text in _ARTICLES.items()})
    index = Index(store)
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            names = [name for _ in range(_VIEWS // len(_ARTICLES)) for name in _ARTICLES]
            pages = set(threads.map(lambda name: view(store, name), names))
            written = list(threads.map(lambda _: write_report(store), range(_THREADS)))
        views = {key.decode().rpartition("/")[2]: int(value) for key, value in store.scan("demo/views/")}
        rendered = int(store.get("demo/rendered") or 0)
        print(f"{sum(views.values())} views of {len(pages)} pages, rendered {rendered} times; kept for a minute")
        print(f"report: {(store.get('demo/report') or b'').decode()}")

        store.put("demo/article/locks", b"who may wait and who may not")
        store.delete("demo/article/snapshots")
        found = index.find(b"who", store.stats()["lsn"])
        print(f"articles about who waits: {', '.join(found)}")
    finally:
        index.close()
    right = sum(views.values()) == _VIEWS and any(written) and found == ["group-commit", "locks"]
    print("all counted, reported and indexed" if right else "WRONG")
    return right


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("target", nargs="?", help="a folder, or the socket of a running toondb-server")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="toondb-") as folder, connect(options.target or folder) as store:
            return 0 if run(store) else 1
    except ToonDBError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
