"""The words of documents: full-text search with BM25, by FTS5 of SQLite.

Each collection with words has a database of SQLite of its own, whose pages are in the sub-database ``text`` under the
number of the collection; no SQL of users reaches it. The text itself stays in the documents: the index is contentless.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the k1 and b of
FTS5 (1.2 and 0.75). Source: https://www.sqlite.org/fts5.html
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping

from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb.engine.transaction import Transaction
from toondb.sql.engine import SqlEngine, SqlSession
from toondb.sql.options import SqlOptions
from toondb.sql.page_keys import PageSpace, page_lsn
from toondb_protocol.errors import ValidationError
from toondb_protocol.keys import prefix_end

from .catalog import CollectionEntry
from .word_cache import Looked, WordCache
from .word_ranking import Scores, best_first, summed
from .word_tokens import LONGEST_TOKEN, TOKENIZER, Tokenizer

__all__ = ["MOST_WORDS", "TextIndex", "match_any", "words_of"]

_SCHEMA = f"""
CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE VIRTUAL TABLE words USING fts5 (
    content, content = '', contentless_delete = 1, tokenize = '{" ".join(TOKENIZER)}'
);
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row);
"""
_FORGET = (
    "DELETE FROM words WHERE rowid = (SELECT number FROM documents WHERE id = ?)",
    "DELETE FROM documents WHERE id = ?",
)
_ADD = (
    "INSERT INTO documents (id) VALUES (?)",
    "INSERT INTO words (rowid, content) VALUES ((SELECT number FROM documents WHERE id = ?), ?)",
)
_SEARCH = (
    "SELECT documents.id, -words.rank FROM words JOIN documents ON documents.number = words.rowid "
    "WHERE words MATCH ? ORDER BY words.rank"
)
_IS_IN = "SELECT doc FROM vocabulary WHERE term = ?"
_COUNT = "SELECT count(*) FROM documents"
_WORD = re.compile(r"\w+")
_FIRST_ROWS = 32
_MOST_ROWS = 1024
_MOST_OPEN = 64
_MOST_LOOKED_UP = 64
_MANY_ROWS = 1000
_MOST_IN_MEMORY = 256
_MOST_BYTES = 256 << 20
"""What all words in memory of a store may take."""


MOST_WORDS = 4096
"""Different words in one search; the time that FTS5 takes grows with their square."""


def words_of(text: str) -> list[str]:
    """The words of a text, each once.

    Raises:
        ValidationError: They are more than ``MOST_WORDS``.
    """
    words = list(dict.fromkeys(_WORD.findall(text.lower())))
    if len(words) > MOST_WORDS:
        raise ValidationError(f"the text_query has {len(words)} different words, {MOST_WORDS} are allowed.")
    return words


def match_any(words: list[str]) -> str:
    """The FTS5 expression for documents with any of these words."""
    return " OR ".join(f'"{word}"' for word in words)


class TextIndex:
    """The words of all collections of a store.

    Args:
        engine: The open engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._open: OrderedDict[int, SqlEngine] = OrderedDict()
        self._caches: OrderedDict[int, WordCache] = OrderedDict()
        self._tokens = Tokenizer()

    def _session(self, transaction: Transaction, collection: CollectionEntry) -> SqlSession:
        dropped: list[SqlEngine] = []
        with self._lock:
            sql = self._open.get(collection.id)
            if sql is None:
                sql = self._open[collection.id] = SqlEngine(self._engine, SqlOptions(), _pages(collection))
            self._open.move_to_end(collection.id)
            while len(self._open) > _MOST_OPEN:
                dropped.append(self._open.popitem(last=False)[1])
        for old in dropped:
            old.close()
        return sql.session(transaction)

    def create(self, transaction: Transaction, collection: CollectionEntry) -> None:
        """Make the tables of a new collection."""
        self._session(transaction, collection).execute_script(_SCHEMA)

    def replace(
        self, transaction: Transaction, collection: CollectionEntry, known: list[str], texts: Mapping[str, str]
    ) -> None:
        """Change the words of documents; all of it or, when it fails, nothing.

        Args:
            transaction: What it is part of.
            collection: Their collection.
            known: Ids of documents that may be in the index, and leave it.
            texts: The new texts by id.
        """
        session = self._session(transaction, collection)
        if known:
            rows = [(id,) for id in known]
            for statement in _FORGET:
                session.execute_many(statement, rows)
        if texts:
            session.execute_many(_ADD[0], [(id,) for id in texts])
            session.execute_many(_ADD[1], list(texts.items()))

    def search(
        self, transaction: Transaction, collection: CollectionEntry, text: str
    ) -> Generator[tuple[str, float], None, None]:
        """The documents with any of the words of a text, and their scores, best first; read as they are asked for.

        A word that more than half of the documents have weighs next to nothing (1e-6), and to rank all of these takes
        long. So the documents that have others of the words come first, as if it had not been asked for. That is so
        from 1,000 documents with such a word on, for up to 64 words. Equal scores are in the order in which the
        documents were put.
        """
        words = words_of(text)
        if not words:
            return
        transaction.check_active()
        tokens = [self._tokens(word) for word in words]
        looked = self._look_up(transaction, collection, tokens)
        if looked is not None:
            yield from _ranked(looked, tokens)
        else:
            yield from self._by_fts(transaction, collection, words, tokens)

    # From memory

    def _look_up(self, transaction: Transaction, collection: CollectionEntry, tokens: list[list[str]]) -> Looked | None:
        """What the documents have of the words; None = FTS5 must be asked."""
        pages, prefix, snapshot = _pages(collection), collection.prefix, transaction.snapshot
        lsn = page_lsn(snapshot.record(pages.space, pages.first))
        if not lsn or transaction.writes[Space.DOCUMENTS].range(prefix, prefix_end(prefix)):
            return None  # it has words of its own
        phrases = [tuple(found) for found in tokens]
        if any(len(token) >= LONGEST_TOKEN // 4 for phrase in phrases for token in phrase):
            return None
        transaction.note_read(pages.first, pages.space)
        with self._lock:
            cache = self._caches.get(collection.id)
            if cache is None:
                cache = self._caches[collection.id] = WordCache(collection, self._tokens, _MOST_BYTES // 2)
            self._caches.move_to_end(collection.id)
        before = cache.size
        looked = cache.look_up(snapshot, lsn, phrases, lambda: self._session(transaction, collection))
        if cache.size > before:
            self._shrink()
        return looked

    def _shrink(self) -> None:
        """Let go what was not asked for the longest time, when all of it takes too much memory."""
        with self._lock:
            size = sum(cache.size for cache in self._caches.values())
            while len(self._caches) > _MOST_IN_MEMORY or (size > _MOST_BYTES and len(self._caches) > 1):
                size -= self._caches.popitem(last=False)[1].size
            last = next(iter(self._caches.values()), None)
        if size > _MOST_BYTES and last is not None:
            last.shrink(_MOST_BYTES)

    # From FTS5

    def _by_fts(
        self, transaction: Transaction, collection: CollectionEntry, words: list[str], tokens: list[list[str]]
    ) -> Iterator[tuple[str, float]]:
        """What a search answers, by FTS5 alone: for what is not in memory."""
        session = self._session(transaction, collection)
        rare = self._rare(session, words, tokens)
        if rare is None:
            yield from self._rows(session, words)
            return
        seen: set[str] = set()
        for row in self._rows(session, rare):
            seen.add(row[0])
            yield row
        for row in self._rows(session, words):
            if row[0] not in seen:
                yield row

    def _rare(self, session: SqlSession, words: list[str], tokens: list[list[str]]) -> list[str] | None:
        """Those of the words that at most half of the documents have; None = there is no need to tell them apart."""
        if not 1 < len(words) <= _MOST_LOOKED_UP:
            return None
        having = [
            sum(count for (count,) in session.execute(_IS_IN, found).rows) if len(found) == 1 else 0 for found in tokens
        ]
        if max(having) < _MANY_ROWS:
            return None
        is_rare = _which_are_rare(having, session.execute(_COUNT).rows[0][0])
        return None if is_rare is None else [word for word, rare in zip(words, is_rare, strict=True) if rare]

    def _rows(self, session: SqlSession, words: list[str]) -> Generator[tuple[str, float], None, None]:
        stream = session.stream(_SEARCH, (match_any(words),))
        try:
            count = _FIRST_ROWS
            while True:
                yield from stream.fetch(count)
                if stream.ended:
                    return
                count = min(2 * count, _MOST_ROWS)
        finally:
            stream.close()

    def forget(self, collection: int) -> None:
        """Close what is open of a collection that is gone."""
        with self._lock:
            self._caches.pop(collection, None)
            sql = self._open.pop(collection, None)
        if sql is not None:
            sql.close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            opened, self._open = list(self._open.values()), OrderedDict()
            self._caches.clear()
        for sql in opened:
            sql.close()


def _pages(collection: CollectionEntry) -> PageSpace:
    return PageSpace(Space.TEXT, collection.prefix)


def _ranked(looked: Looked, tokens: list[list[str]]) -> Iterator[tuple[str, float]]:
    words, documents, ids, places = looked
    having = [len(word.slots) if len(found) == 1 else 0 for word, found in zip(words, tokens, strict=True)]
    is_rare = _which_are_rare(having, documents)
    if is_rare is None:
        yield from _named(summed(words, places), ids)
        return
    first = summed([word for word, rare in zip(words, is_rare, strict=True) if rare], places)
    yield from _named(first, ids)
    others = summed(words, places)
    others[first > 0.0] = 0.0
    yield from _named(others, ids)


def _named(scores: Scores, ids: list[str]) -> Iterator[tuple[str, float]]:
    for piece in best_first(scores):
        for place, score in piece:
            yield ids[place], score


def _which_are_rare(having: list[int], documents: int) -> list[bool] | None:
    """Which words at most half of the documents have; None = all or none of them, or few documents have any.

    Args:
        having: How many documents have each word; 0 for what FTS5 takes for several words or for none.
        documents: How many there are.
    """
    if not 1 < len(having) <= _MOST_LOOKED_UP or max(having) < _MANY_ROWS:
        return None
    is_rare = [count <= documents / 2 for count in having]
    return is_rare if any(is_rare) and not all(is_rare) else None
