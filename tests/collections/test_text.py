"""Words in memory: scores and order are those of FTS5, in every view, whatever happens to the documents."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.collections.brute import by_id
from tests.support.daemon import Daemon, child_environ
from toondb import Database
from toondb.collections import text as text_module
from toondb.collections import word_cache
from toondb.collections.catalog import CollectionEntry, collection_named
from toondb.collections.text import TextIndex, words_of
from toondb.collections.word_cache import WordCache
from toondb.engine import document_log
from toondb_client import IpcClient
from toondb_protocol.collections import Collection, Namespace
from toondb_protocol.errors import TransactionConflictError, TransactionError

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "the",
    "ant",
    "bee",
    "café",
    "CAFE",
    "Straße",
    "snake_case",
    "snake",
    "case",
    "日本",
    "x",
    "Ünï",
    "naïve",
    "42",
]
QUERIES = [
    "the",
    "ant",
    "none",
    "",
    "_",
    "_ ant",
    "ant bee the",
    "cafe café CAFÉ",
    "snake_case",
    "case_snake the",
    "snake_snake",
    "日本 x straße",
    "ant none bee x 42 naive uni snake_case",
    " ".join(WORDS),
    " ".join(f"ant bee x{at}" for at in range(70)),
]
Found = list[tuple[str, float]]


def text_index(db: Database) -> TextIndex:
    found: TextIndex = db._shared.collections()._text
    return found


def cache_of(db: Database) -> WordCache:
    (found,) = text_index(db)._caches.values()
    return found


def of(transaction: Any) -> CollectionEntry:
    return collection_named(transaction, "ns", "c")


def by_fts(index: TextIndex, transaction: Any, query: str) -> Found:
    """What FTS5 answers."""
    words = words_of(query)
    tokens = [index._tokens(word) for word in words]
    return list(index._by_fts(transaction, of(transaction), words, tokens)) if words else []


def compare(db: Database, txn: Any, query: str) -> bool:
    """Whether a search equals FTS5's; answers whether memory could tell."""
    index, transaction = text_index(db), txn._inner
    found = list(index.search(transaction, of(transaction), query))
    expected = by_fts(index, transaction, query)
    assert [id for id, _ in found] == [id for id, _ in expected], query
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-12, abs=0)
    tokens = [index._tokens(word) for word in words_of(query)]
    return index._look_up(transaction, of(transaction), tokens) is not None


def compare_all(db: Database, *, in_memory: bool | None = True) -> None:
    with db.transaction() as txn:
        for query in QUERIES:
            told = compare(db, txn, query)
            assert in_memory is None or told is in_memory


@pytest.fixture
def docs(ns: Namespace) -> Collection:
    return ns.create_collection("c", enable_hybrid_search=True)


@pytest.fixture(params=["usual limits", "small limits"])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same where everything happens that usually takes thousands of documents."""
    if request.param == "small limits":
        monkeypatch.setattr(text_module, "_MANY_ROWS", 3)
        monkeypatch.setattr(text_module, "_MOST_LOOKED_UP", 5)
        monkeypatch.setattr(text_module, "_MOST_BYTES", 30_000)
        monkeypatch.setattr(word_cache, "_ROWS_AT_ONCE", 7)
        monkeypatch.setattr(word_cache, "_FOLLOWED_AT_LEAST", 4)
        monkeypatch.setattr(word_cache, "_FOLLOWED_SHARE", 8)
        monkeypatch.setattr(word_cache, "_MOST_POINTS", 2)
        monkeypatch.setattr(word_cache, "_DEAD_AT_LEAST", 10)
        for name in ("_KEPT_AT_LEAST", "_KEPT_PER_DOCUMENT", "_TRIMMED_AT_LEAST"):
            monkeypatch.setattr(document_log, name, 1)
    return str(request.param)


def some_text(rng: random.Random) -> str | None:
    size = rng.choice([0, 1, 1, 2, 5, 30])
    weights = [1 / (at + 1) for at in range(len(WORDS))]
    return " ".join(rng.choices(WORDS, weights, k=size)) if rng.random() > 0.05 else None


def change(store: Any, rng: random.Random, ids: list[str], most: int) -> None:
    """Put, replace or delete some documents of a store or a transaction."""
    collection = store.collection("ns", "c")
    some = [rng.choice(ids) for _ in range(rng.randint(1, most))]
    if rng.random() < 0.3:
        collection.delete_batch(some)
    else:
        collection.insert_batch([(id, [1.0], {}, some_text(rng)) for id in dict.fromkeys(some)])


@pytest.mark.parametrize("seed", range(3))
def test_scores_and_order_are_those_of_fts5(db: Database, docs: Collection, limits: str, seed: int) -> None:
    """Put, replaced and deleted, in older snapshots, with own writes, after aborts."""
    rng = random.Random(seed)
    ids = [f"d{at}" for at in range(40)]
    compare_all(db)
    older: list[Any] = []
    told = newest = 0
    for _ in range(40):
        kind = rng.choice(["change", "change", "change", "many", "begin", "own", "search"])
        if kind == "change":
            change(db, rng, ids, 3)
        elif kind == "many":
            change(db, rng, ids, 40)
        elif kind == "begin":
            older.append(db.begin_transaction(read_only=True))
            if len(older) > 3:
                older.pop(0).abort()
        elif kind == "own":
            txn = db.begin_transaction()
            compare(db, txn, rng.choice(QUERIES))
            change(txn, rng, ids, 5)
            for query in rng.sample(QUERIES, 3):
                assert not compare(db, txn, query) or not is_written(txn)
            txn.commit() if rng.random() < 0.5 else txn.abort()
        for txn in older:
            told += compare(db, txn, rng.choice(QUERIES))
        with db.transaction() as txn:
            for query in rng.sample(QUERIES, 4):
                newest += compare(db, txn, query)
    for txn in older:
        txn.abort()
    assert newest > 40
    if limits == "usual limits":
        assert told > 40
        compare_all(db)


def is_written(txn: Any) -> bool:
    """Whether a transaction has written anything."""
    return any(len(written) for written in txn._inner.writes)


def test_reopened(folder: Path) -> None:
    with Database.open(folder) as db:
        docs = db.create_namespace("ns").create_collection("c", enable_hybrid_search=True)
        rng = random.Random(1)
        docs.insert_batch([(f"{at}", [1.0], {}, some_text(rng)) for at in range(200)])
        docs.delete_batch([f"{at}" for at in range(0, 200, 3)])
        compare_all(db)
    with Database.open(folder) as db:
        compare_all(db)
        db.collection("ns", "c").insert([1.0], {}, "new", "the ant")
        compare_all(db)


def test_the_first_search_asks_fts5(db: Database, docs: Collection) -> None:
    """Who asks only once does not wait until the documents are read."""
    size = 5 * word_cache._FOLLOWED_AT_LEAST
    for most in range(2):
        docs.insert_batch([(f"{at}", [1.0], {}, f"ant w{most}") for at in range(size)])
        for place in range(3):
            assert len(docs.keyword_search("ant", size)) == size
            assert bool(cache_of(db).size) is (place > 0)
    docs.insert_batch([(f"{at}", [1.0], {}, "few") for at in range(word_cache._FOLLOWED_AT_LEAST)])
    assert len(docs.keyword_search("few", size)) == word_cache._FOLLOWED_AT_LEAST
    assert cache_of(db).size


def test_many_rows(db: Database, docs: Collection) -> None:
    """More than are sorted at first, most of them equal, and words that most documents have."""
    rng = random.Random(2)
    docs.insert_batch([(f"{at}", [1.0], {}, "the " + (some_text(rng) or "")) for at in range(3000)])
    compare_all(db)
    found = docs.keyword_search("the ant", 3000)
    assert len(found) == 3000
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_old_snapshots_are_told_from_memory(db: Database, docs: Collection) -> None:
    docs.insert([1.0], {}, "a", "ant")
    compare_all(db)
    with db.transaction() as before:
        docs.insert([1.0], {}, "b", "ant bee")
        docs.insert([1.0], {}, "a", "bee")
        compare_all(db)
        assert compare(db, before, "ant bee")
        assert by_id(before.collection("ns", "c").keyword_search("ant bee")) == ["a"]
        docs.insert([1.0], {}, "c", "cat")
        docs.keyword_search("cat")
        assert not compare(db, before, "cat")  # it was not known when the snapshot was the newest
        for at in range(word_cache._MOST_POINTS):
            docs.insert([1.0], {}, f"{at}", "dog")
            docs.keyword_search("dog")
        assert not compare(db, before, "ant bee")
    compare_all(db)


def test_other_commits_change_nothing(db: Database, docs: Collection) -> None:
    """Only those that write words are looked at."""
    docs.insert([1.0], {}, "a", "ant")
    compare_all(db)
    lsn = cache_of(db)._lsn
    db.put("key", b"value")
    db.execute("CREATE TABLE t (a)")
    db.namespace("ns").create_collection("other", enable_hybrid_search=True).insert([1.0], {}, "a", "ant")
    with db.transaction() as txn:
        assert compare(db, txn, "ant")
    assert cache_of(db)._lsn == lsn


def test_a_serializable_transaction_depends_on_what_it_searched(db: Database, docs: Collection) -> None:
    docs.insert([1.0], {}, "a", "ant")
    compare_all(db)
    txn = db.begin_transaction("serializable")
    assert by_id(txn.collection("ns", "c").keyword_search("bee")) == []
    txn.put("found", b"nothing")
    docs.insert([1.0], {}, "b", "bee")
    with pytest.raises(TransactionConflictError):
        txn.commit()
    txn = db.begin_transaction("serializable")
    assert by_id(txn.collection("ns", "c").keyword_search("bee")) == ["b"]
    txn.put("found", b"b")
    txn.commit()
    with pytest.raises(TransactionError):
        txn.collection("ns", "c").keyword_search("bee")


def test_a_collection_of_an_aborted_transaction(db: Database, ns: Namespace) -> None:
    """Its number may be given to another one."""
    txn = db.begin_transaction()
    made = txn.namespace("ns").create_collection("c", enable_hybrid_search=True)
    assert made.keyword_search("ant") == []
    made.insert([1.0], {}, "a", "ant")
    assert by_id(made.keyword_search("ant")) == ["a"]
    txn.abort()
    ns.create_collection("c", enable_hybrid_search=True).insert([1.0], {}, "b", "bee")
    compare_all(db)
    assert by_id(db.collection("ns", "c").keyword_search("ant bee")) == ["b"]


def test_gone_with_its_collection(db: Database, ns: Namespace, docs: Collection) -> None:
    docs.insert([1.0], {}, "a", "ant")
    compare_all(db)
    (old,) = text_index(db)._caches
    with db.transaction() as before:
        ns.delete_collection("c")
        ns.create_collection("c", enable_hybrid_search=True).insert([1.0], {}, "b", "ant")
        assert by_id(db.collection("ns", "c").keyword_search("ant")) == ["b"]
        assert by_id(before.collection("ns", "c").keyword_search("ant")) == ["a"]
    text_index(db).forget(old)
    assert by_id(db.collection("ns", "c").keyword_search("ant")) == ["b"]
    assert old not in text_index(db)._caches


def test_long_words(db: Database, docs: Collection) -> None:
    """FTS5 cuts them, so what is not cut must not be taken for another."""
    long = "a" * 40_000
    docs.insert([1.0], {}, "a", f"{long} ant")
    docs.keyword_search("ant")
    docs.insert([1.0], {}, "b", f"{long}b ant é{'é' * 20_000}")
    with db.transaction() as txn:
        for query in (long, f"{long}b", "a" * 32_768, "a" * 20_000, "é" * 20_000, "a" * 8_000, "ant"):
            compare(db, txn, query)


def test_memory_stays_bounded(db: Database, ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_MOST_BYTES", 100_000)
    monkeypatch.setattr(text_module, "_MOST_IN_MEMORY", 3)
    for name in "ab":
        docs = ns.create_collection(name, enable_hybrid_search=True)
        docs.insert_batch([(f"{at}", [1.0], {}, f"all w{at}") for at in range(150)])
    index = text_index(db)
    for at in range(300):
        docs = ns.collection("ab"[at % 7 == 0])
        assert by_id(docs.keyword_search(f"w{at % 150} none_{at}")) == [f"{at % 150}"]
        assert sum(cache.size for cache in index._caches.values()) <= 100_000
    for cache in index._caches.values():
        assert cache._words_size == sum(postings.size for postings in cache._postings.values())
        assert cache._postings
        assert cache._phrases == {phrase for phrase in cache._postings if len(phrase) > 1}
    docs = ns.collection("b")
    docs.insert_batch([(f"{at}", [1.0], {}, f"all w{at}") for at in range(300)])
    for _ in range(3):
        assert by_id(docs.keyword_search("w299")) == ["299"]  # too many to be kept
        assert index._caches[max(index._caches)].size == 0
    for name in "cdefg":
        ns.create_collection(name, enable_hybrid_search=True).insert([1.0], {}, "a", "ant")
        for _ in range(2):
            assert by_id(ns.collection(name).keyword_search("ant")) == ["a"]
    assert len(index._caches) == 3


def test_churn_stays_bounded(db: Database, docs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced again and again: what is dead leaves memory."""
    monkeypatch.setattr(word_cache, "_DEAD_AT_LEAST", 30)
    docs.insert_batch([(f"{at}", [1.0], {}, "ant bee_bee") for at in range(20)])
    for at in range(150):
        docs.insert([1.0], {}, f"{at % 20}", f"ant w{at % 7} bee_bee bee_bee")
        assert docs.keyword_search("w3 ant bee_bee", 1)
    cache = cache_of(db)
    assert len(cache._slots) == 20
    assert len(cache._ids) <= 20 + word_cache._DEAD_AT_LEAST + 1
    assert len(cache._points) <= word_cache._MOST_POINTS
    assert cache._words_size == sum(postings.size for postings in cache._postings.values())
    compare_all(db)


def test_too_frequent_for_memory(db: Database, docs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "_MOST_INSTANCES", 5)
    docs.insert_batch([(f"{at}", [1.0], {}, "ant ant" + " bee" * (at == 2)) for at in range(4)])
    with db.transaction() as txn:
        assert compare(db, txn, "bee none")
        assert not compare(db, txn, "bee ant")
        assert not compare(db, txn, "bee_ant")


@pytest.mark.parametrize("fails", ["_tokens", "_add", "_note", "_totals"])
def test_a_failed_search_leaves_no_half_step(
    db: Database, docs: Collection, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Ctrl-C in the midst of taking over what changed."""
    docs.insert([1.0], {}, "a", "ant")
    compare_all(db)
    docs.insert_batch([("b", [1.0], {}, "ant bee"), ("a", [1.0], {}, "bee")])
    owner = word_cache if fails == "_totals" else cache_of(db)
    real = getattr(owner, fails)

    def interrupted(*given: Any) -> None:
        real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, fails, interrupted)
        with pytest.raises(KeyboardInterrupt):
            docs.keyword_search("ant")
    compare_all(db, in_memory=None)
    docs.insert_batch([("a", [1.0], {}, "ant ant"), ("b", [1.0], {}, "bee")])
    compare_all(db)


def test_phrases_are_never_too_frequent(db: Database, docs: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a word with an underscore nobody counts the documents: it counts like any that few have."""
    monkeypatch.setattr(text_module, "_MANY_ROWS", 1)
    texts = ["the snake_case", "the snake_case ant", "snake_case", "the snake ant ant"]
    docs.insert_batch([(f"{at}", [1.0], {}, text) for at, text in enumerate(texts)])
    with db.transaction() as txn:
        for query in ("snake_case ant", "the snake_case ant", "snake_case the", "the none"):
            compare(db, txn, query)
            assert compare(db, txn, query)


def test_threads(db: Database, docs: Collection) -> None:
    """Writers and searchers at once: every search equals FTS5's in its own snapshot."""
    docs.insert_batch([(f"{at}", [1.0], {}, "the ant bee") for at in range(100)])
    stop, failed, told = threading.Event(), [], [0, 0]

    def guarded(run: Any) -> None:
        try:
            run()
        except BaseException as error:
            failed.append(error)
            stop.set()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            change(db, rng, [f"{at}" for at in range(120)], 6)

    def search(which: int) -> None:
        rng = random.Random(100 + which)
        while not stop.is_set():
            with db.transaction() as txn:
                for query in rng.sample(QUERIES, 3):
                    told[which] += compare(db, txn, query)

    writers = [threading.Thread(target=guarded, args=(lambda seed=seed: write(seed),)) for seed in range(2)]
    searchers = [threading.Thread(target=guarded, args=(lambda at=at: search(at),)) for at in range(2)]
    for thread in (*writers, *searchers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in searchers:
        thread.join()
    assert failed == []
    assert sum(told) > 0
    compare_all(db)


def test_a_reader_beside_a_daemon(folder: Path) -> None:
    with Daemon(folder) as daemon, IpcClient.connect(daemon.socket) as client:
        docs = client.create_namespace("ns").create_collection("c", enable_hybrid_search=True)
        docs.insert([1.0], {}, "a", "the ant")
        with Database.open_concurrent(folder) as db:
            assert db.read_only
            compare_all(db)
            docs.insert_batch([("b", [1.0], {}, "the bee snake_case"), ("a", [1.0], {}, "the bee")])
            compare_all(db)
            for query in QUERIES:
                assert by_id(docs.keyword_search(query)) == by_id(db.collection("ns", "c").keyword_search(query))


WRITER = """
import random, sys
from tests.collections.test_text import change
from toondb import Database
db = Database.open_concurrent(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
for _ in range(60):
    change(db, rng, [f"{at}" for at in range(120)], 6)
    print("done", flush=True)
db.close()
"""


def test_another_process_writes(folder: Path) -> None:
    with Database.open_concurrent(folder) as db:
        docs = db.create_namespace("ns").create_collection("c", enable_hybrid_search=True)
        docs.insert_batch([(f"{at}", [1.0], {}, "the ant bee") for at in range(100)])
        compare_all(db)
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(folder), "7"],
            env=child_environ({}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        rng = random.Random(8)
        points = set()
        with process.stdout:
            for line in process.stdout:
                assert line == "done\n"
                with db.transaction() as txn:
                    for query in rng.sample(QUERIES, 3):
                        compare(db, txn, query)
                points.add(cache_of(db)._lsn)
                if len(points) % 5 == 0:
                    change(db, rng, [f"{at}" for at in range(120)], 3)
        assert process.wait() == 0
        assert len(points) > 1
        compare_all(db)
