"""Real embeddings to measure with, made once: ``python -m benchmarks.embeddings [--count N] [--again]``.

The texts are those of ``examples/texts.py``: the documentation strings of Python's standard library, filled up with the
descriptions of Debian's packages and, where that is not enough, the documentation strings of the installed packages.
The model is that of ``examples/embedding.py``, 384 numbers a text. Embedding takes minutes (it prints how many), so
the result is kept in ``build/embeddings``, which git ignores; ``load_embeddings`` gives it, and makes it when it
is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from examples.demo import Crew, Progress, finish, rate, say
from examples.demo_search import one_blas_thread
from examples.embedding import PACKAGE, Floats, MiniLM, MissingModelError, model_folder
from examples.texts import Text, available_packages, docstrings, library_files

__all__ = ["COUNT", "QUERIES", "Embeddings", "are_made", "choose_texts", "load_embeddings", "main"]

COUNT = 20_000
"""Texts to be found."""
QUERIES = 1_000
"""Further texts, which are asked for."""

_CACHE = Path(__file__).resolve().parent.parent / "build" / "embeddings"
_BATCH = 128


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Texts and their embeddings, in no order of their own.

    Attributes:
        texts: The texts to be found.
        vectors: Theirs: float32 of length 1, one row for each; mapped from the file.
        query_texts: Other texts of the same kind.
        queries: Their vectors.
    """

    texts: list[Text]
    vectors: Floats
    query_texts: list[Text]
    queries: Floats


def _sources() -> Iterator[Text]:
    yield from docstrings(library_files(), private=True)
    packages = available_packages()
    # They are sorted by name, and the first ones would not be like the others.
    random.Random(1).shuffle(packages)
    yield from packages
    site = Path(sysconfig.get_path("platlib"))
    yield from docstrings(library_files(site), site)


def choose_texts(count: int) -> list[Text]:
    """Texts that all differ, shuffled, the same each time on one machine.

    Args:
        count: How many; fewer when the machine has fewer.
    """
    chosen: dict[str, Text] = {}
    for text in _sources():
        if len(chosen) == count:
            break
        chosen.setdefault(text.text, text)
    texts = list(chosen.values())
    random.Random(2).shuffle(texts)
    return texts


def _embed_share(model: Path, texts: Sequence[str], first: int, progress: Connection) -> None:
    """Embed texts; sends the place of each batch and its vectors."""
    encoder = MiniLM(model)
    for at in range(0, len(texts), _BATCH):
        progress.send((first + at, encoder.embed(texts[at : at + _BATCH])))


def _make(folder: Path, total: int, model: Path) -> None:
    texts = choose_texts(total)
    workers = len(os.sched_getaffinity(0))
    say(f"Embedding {len(texts):,} texts with {workers} processes")
    started = time.perf_counter()
    vectors = np.empty((len(texts), MiniLM(model).dimension), np.float32)
    bounds = [len(texts) * worker // workers for worker in range(workers + 1)]
    jobs = [(model, [text.whole for text in texts[first:end]], first) for first, end in pairwise(bounds)]
    with one_blas_thread(), Crew(_embed_share, jobs) as crew, Progress("embedded", len(texts)) as bar:
        for first, found in crew.reports():
            vectors[first : first + len(found)] = found
            bar.add(len(found))
    seconds = time.perf_counter() - started
    say(f"{len(texts):,} texts in {seconds:.0f} s ({rate(len(texts), seconds)}), kept in {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        np.save(unfinished / "vectors.npy", vectors)
        with (unfinished / "texts.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(text)) + "\n" for text in texts)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _folder(cache: Path, model: Path | None, count: int, queries: int) -> Path:
    name = model.name if model else PACKAGE.replace("==", "-")
    return cache / f"{name}-{count}-{queries}"


def are_made(count: int = COUNT, queries: int = QUERIES, *, cache: Path = _CACHE) -> bool:
    """Whether the embeddings of the packaged model are in the cache."""
    return _folder(cache, None, count, queries).exists()


def load_embeddings(
    count: int = COUNT,
    queries: int = QUERIES,
    *,
    model: Path | None = None,
    cache: Path = _CACHE,
    again: bool = False,
) -> Embeddings:
    """The embeddings, from the cache when they are there.

    Args:
        count: Texts to be found; fewer when the machine has fewer, after those that are asked for.
        queries: Texts to be asked for.
        model: A folder with another model than the packaged one.
        cache: Where they are kept.
        again: Make them, even when they are there.

    Raises:
        MissingModelError: They have to be made, and the model is not installed.
    """
    folder = _folder(cache, model, count, queries)
    if again or not folder.exists():
        _make(folder, count + queries, model or model_folder())
    with (folder / "texts.jsonl").open(encoding="utf-8") as file:
        texts = [Text(**json.loads(line)) for line in file]
    vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r")
    asked = min(queries, len(texts))
    return Embeddings(texts[asked:], vectors[asked:], texts[:asked], vectors[:asked])


def _show(options: argparse.Namespace) -> None:
    found = load_embeddings(options.count, options.queries, again=options.again)
    own = sum(text.source == "python" for text in found.texts)
    say(
        f"{len(found.texts):,} texts ({own:,} documentation strings, {len(found.texts) - own:,} Debian packages) and "
        f"{len(found.queries):,} queries, {found.vectors.shape[1]} dimensions"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help="texts (default %(default)s)")
    parser.add_argument("--queries", type=int, default=QUERIES, metavar="N", help="queries (default %(default)s)")
    parser.add_argument("--again", action="store_true", help="make them, even when they are there")
    options = parser.parse_args(arguments)
    if min(options.count, options.queries) < 1:
        parser.error("--count and --queries must be at least 1")
    try:
        return finish(lambda: _show(options))
    except MissingModelError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
