"""Search in real texts by words and by meaning: ``make demo-search``, or ``python -m examples.demo_search``.

Starts the daemon on an empty folder. Several worker processes take what Python's standard library says of its own
functions, classes and modules, and what Debian says of the installed packages, embed it with a real model (see
``examples/embedding.py``) and store it in one collection. Then questions are answered by words, by meaning and by
both, the answers are compared with those of brute force, and again after a restart of the daemon.

Nothing is downloaded, and nothing is left behind, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from examples.demo import Crew, Progress, Server, finish, rate, say, temporary_folder
from examples.embedding import Floats, MiniLM, MissingModelError, model_folder
from examples.texts import Text, docstrings, installed_packages, library_files
from toondb import IpcClient
from toondb_protocol.collections import Collection
from toondb_protocol.search import SearchRequest, SearchResult

NAMESPACE, COLLECTION = "demo", "descriptions"
QUESTIONS = (
    "which files in a folder match a pattern",
    "find where a program spends its time",
    "guess the type of a file by its name",
)
_FILTERED = "download a web page"
_BATCH = 64
_SHOWN = 2
_SAMPLE = 100
_K = 10
_WIDTH = 108
# One of the nearest may be missed in twenty, see docs/vectors.md.
_RECALL = 0.95
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


# The texts


def load_texts(limit: int | None = None) -> list[Text]:
    """The texts, in an order that spreads long and short ones over the workers.

    Args:
        limit: Only so many, evenly chosen; None = all.
    """
    texts = [*docstrings(library_files()), *installed_packages()]
    if limit is not None and limit < len(texts):
        texts = [texts[at * len(texts) // limit] for at in range(limit)]
    random.Random(1).shuffle(texts)
    return texts


def id_of(text: Text) -> str:
    """The id of a text's document."""
    return f"{text.source}/{text.name}"


# Worker processes


def embed_share(socket: str, model: Path, texts: list[Text], progress: Connection) -> None:
    """Embed texts and store them. Sends, for each batch, how many and the seconds of embedding and of storing."""
    encoder = MiniLM(model)
    with IpcClient.connect(socket) as client:
        collection = client.collection(NAMESPACE, COLLECTION)
        for at in range(0, len(texts), _BATCH):
            batch = texts[at : at + _BATCH]
            contents = [text.summary for text in batch]
            started = time.perf_counter()
            vectors = encoder.embed(contents)
            embedded = time.perf_counter()
            collection.insert_batch(
                vectors,
                [{"source": text.source, "kind": text.kind, "part": text.part} for text in batch],
                [id_of(text) for text in batch],
                contents,
            )
            progress.send((len(batch), embedded - started, time.perf_counter() - embedded))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Processes started meanwhile use one thread each for matrix products: there are as many of them as processors."""
    before = {name: os.environ.get(name) for name in _BLAS_THREADS}
    os.environ.update(dict.fromkeys(_BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# The steps


def index(server: Server, model: Path, texts: Sequence[Text], workers: int) -> int:
    """Embed and store all texts from several processes at once; returns how many they stored."""
    say(f"\n2. Embed and index {len(texts):,} texts from {workers} processes at once")
    done = 0
    embedding = storing = 0.0
    started = time.perf_counter()
    jobs = [(server.socket, model, list(texts[worker::workers])) for worker in range(workers)]
    with one_blas_thread(), Crew(embed_share, jobs) as crew, Progress("indexed", len(texts)) as bar:
        for count, embedded, stored in crew.reports():
            bar.add(count)
            done, embedding, storing = done + count, embedding + embedded, storing + stored
    seconds = time.perf_counter() - started
    say(f"   {done:,} durable documents in {seconds:.1f} s ({rate(done, seconds)}, with start-up of the processes);")
    say(f"   the workers spent {embedding:.1f} s in the model and {storing:.1f} s in insert_batch")
    return done


def shown(result: SearchResult) -> str:
    """A result in one line."""
    line = result.content or result.id
    return f"{result.score:7.3f}  {line if len(line) <= _WIDTH else line[: _WIDTH - 1] + '…'}"


def ask(collection: Collection, encoder: MiniLM) -> None:
    """Ask questions by words, by meaning and by both."""
    say("\n3. Ask the same by words (BM25), by meaning (cosine) and by both (reciprocal rank fusion)")
    for question in QUESTIONS:
        vector = encoder.embed([question])[0]
        say(f'   "{question}"')
        for kind, results in (
            ("words", collection.keyword_search(question, k=_SHOWN)),
            ("meaning", collection.vector_search(vector, k=_SHOWN)),
            ("both", collection.hybrid_search(vector, question, k=_SHOWN)),
        ):
            for at, result in enumerate(results):
                say(f"     {kind if at == 0 else '':8}{shown(result)}")
    say("\n4. Ask in a part of the collection only, by meaning")
    for filter in (None, {"source": "python", "kind": {"$in": ["function", "module"]}}):
        say(f'   "{_FILTERED}"{f" where {filter}" if filter else ""}')
        for result in collection.vector_search(encoder.embed([_FILTERED])[0], k=_SHOWN, filter=filter):
            say(f"     {shown(result)}")


def speed(collection: Collection, encoder: MiniLM, questions: Sequence[str]) -> None:
    """How long one search takes, over the socket."""
    say(f"\n5. Time of a search over the socket, {len(questions)} different ones, k={_K}")
    vectors = encoder.embed(questions)
    searches: dict[str, Callable[[int], list[SearchResult]]] = {
        "words": lambda at: collection.keyword_search(questions[at], k=_K),
        "meaning": lambda at: collection.vector_search(vectors[at], k=_K),
        "both": lambda at: collection.hybrid_search(vectors[at], questions[at], k=_K),
    }
    for kind, search in searches.items():
        seconds: list[float] = []
        for at in range(len(questions)):
            started = time.perf_counter()
            search(at)
            seconds.append(time.perf_counter() - started)
        say(f"   {kind:8} median {statistics.median(seconds) * 1000:.2f} ms, slowest {max(seconds) * 1000:.2f} ms")


# Verification


def words_of(text: str) -> set[str]:
    """The words of a text as its index has them: letters and digits, without case and accents."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return set(re.findall(r"[^\W_]+", plain.lower()))


def hits(results: Sequence[SearchResult], exact: Sequence[float], k: int) -> int:
    """How many results are as near as the ``k`` nearest.

    Args:
        results: What was found.
        exact: The true scores of all documents that could be found, in any order.
        k: How many were asked for.
    """
    best = np.sort(np.asarray(exact))[::-1][:k]
    return sum(result.score >= best[-1] - 1e-5 for result in results[:k])


def brute_force(collection: Collection, encoder: MiniLM, questions: Sequence[str]) -> dict[str, bool]:
    """Compare searches with looking at every document; answers what holds."""
    documents = list(collection.iterate())
    matrix: Floats = np.array([document.vector for document in documents], np.float32)
    place = {document.id: at for at, document in enumerate(documents)}
    is_class = np.array([document.metadata["kind"] == "class" for document in documents])
    found = wanted = classes = wanted_classes = 0
    furthest = 0.0
    for vector in encoder.embed(questions):
        exact = matrix @ vector
        results = collection.vector_search(vector, k=_K)
        found += hits(results, exact.tolist(), _K)
        wanted += min(_K, len(exact))
        furthest = max(furthest, *(abs(result.score - float(exact[place[result.id]])) for result in results))
        results = collection.vector_search(vector, k=_K, filter={"kind": "class"})
        if all(is_class[place[result.id]] for result in results):
            classes += hits(results, exact[is_class].tolist(), _K) if results else 0
        wanted_classes += min(_K, int(is_class.sum()))
    words = [words_of(document.content or "") for document in documents]
    known = sorted(set().union(*words))
    asked = random.Random(2).sample(known, min(20, len(known)))
    same = all(
        {result.id for result in collection.keyword_search(word, k=len(documents))}
        == {document.id for document, own in zip(documents, words, strict=True) if word in own}
        for word in asked
    )
    return {
        f"{found:,} of the {wanted:,} nearest were found (at least {_RECALL:.0%} expected)": found >= _RECALL * wanted,
        f"{classes:,} of the {wanted_classes:,} nearest classes, by a filter": classes >= _RECALL * wanted_classes,
        f"the scores are the cosines (largest difference {furthest:.0e})": furthest < 1e-4,
        f"{len(asked)} words at random: exactly the documents that contain them": same,
    }


def stored(collection: Collection, encoder: MiniLM, texts: Sequence[Text]) -> dict[str, bool]:
    """Compare what is stored with the texts; answers what holds."""
    contents = {document.id: document.content for document in collection.iterate()}
    sample = random.Random(3).sample(texts, min(_SAMPLE, len(texts)))
    kept = [document.vector if document else None for document in collection.get_batch(map(id_of, sample))]
    fresh = encoder.embed([text.summary for text in sample])
    cosines = [float(np.dot(a, np.asarray(b, np.float32))) for a, b in zip(fresh, kept, strict=True) if b is not None]
    return {
        f"{len(contents):,} texts, each as it was": contents == {id_of(text): text.summary for text in texts},
        f"{len(cosines)} of their vectors, embedded once more": len(cosines) == len(sample) and min(cosines) > 0.9999,
    }


def check(checks: dict[str, bool]) -> None:
    """Show what holds, and end when something does not."""
    for what, holds in checks.items():
        say(f"   {'ok' if holds else 'WRONG'}: {what}")
    if not all(checks.values()):
        raise SystemExit("Something is wrong.")


def answers(collection: Collection, encoder: MiniLM) -> list[SearchResult]:
    """What the questions find, in every way."""
    vectors = encoder.embed(QUESTIONS)
    return [
        result
        for vector, question in zip(vectors, QUESTIONS, strict=True)
        for request in (
            SearchRequest(vector, k=_K),
            SearchRequest(text_query=question, k=_K),
            SearchRequest(vector, question, k=_K),
        )
        for result in collection.search(request)
    ]


def are_same(before: Sequence[SearchResult], after: Sequence[SearchResult]) -> bool:
    """Whether two lists of answers have the same documents, with the same scores."""
    if [result.id for result in before] != [result.id for result in after]:
        return False
    return np.allclose([result.score for result in before], [result.score for result in after], atol=1e-4)


def run(model: Path, workers: int, limit: int | None) -> None:
    """The whole demo in a temporary folder."""
    started = time.perf_counter()
    encoder = MiniLM(model)
    texts = load_texts(limit)
    python = sum(text.source == "python" for text in texts)
    questions = [text.name.replace(".", " ") for text in texts[:_SAMPLE]]
    with temporary_folder() as folder, Server(folder / "data", folder / "server.log") as server:
        say(f"1. Start toondb-server on the empty folder {server.database}")
        say(f"   ready after {server.start():.2f} s")
        with IpcClient.connect(server.socket) as client:
            collection = client.create_namespace(NAMESPACE).create_collection(
                COLLECTION, dimension=encoder.dimension, metric="cosine", enable_hybrid_search=True
            )
            say(f"   {python:,} descriptions from Python's library, {len(texts) - python:,} of Debian packages")
            done = index(server, model, texts, workers)
            ask(collection, encoder)
            speed(collection, encoder, questions)
            say(f"\n6. Compare with brute force over all {collection.count():,} documents, {len(questions)} searches")
            check({f"count() is the sum of what the processes stored, {done:,}": collection.count() == done})
            check(brute_force(collection, encoder, questions))
            before = answers(collection, encoder)
        say("\n7. Stop the daemon gracefully, start it again, verify")
        say(f"   stopped after {server.stop():.2f} s, {occupied(server.database):,} bytes on disk")
        say(f"   ready again after {server.start():.2f} s")
        with IpcClient.connect(server.socket) as client:
            collection = client.collection(NAMESPACE, COLLECTION)
            check(stored(collection, encoder, texts))
            check({"the same answers as before the stop": are_same(before, answers(collection, encoder))})
        server.stop()
        say(f"   {server.check()}")
    say(f"\nDone in {time.perf_counter() - started:.1f} s.")


def occupied(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    """The command line; returns the exit status."""
    processors = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--workers", type=int, default=max(2, processors), metavar="N", help="worker processes (default %(default)s)"
    )
    parser.add_argument("--texts", type=int, metavar="N", help="index only so many texts")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="another model of the same kind (default: the installed one)"
    )
    options = parser.parse_args()
    for name in ("workers", "texts"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    try:
        model = options.model or model_folder()
    except MissingModelError as error:
        print(f"Error: {error}\nOr run make demo-search, which does that.", file=sys.stderr)
        return 1
    return finish(lambda: run(model, options.workers, options.texts))


if __name__ == "__main__":
    sys.exit(main())
