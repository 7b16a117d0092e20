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
from collections.abc import Generator, Mapping

from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb.engine.transaction import Transaction
from toondb.sql.engine import SqlEngine, SqlSession
from toondb.sql.options import SqlOptions
from toondb.sql.page_keys import PageSpace
from toondb_protocol.errors import ValidationError

from .catalog import CollectionEntry

__all__ = ["MOST_WORDS", "TextIndex", "match_any", "words_of"]

_SCHEMA = """
CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE VIRTUAL TABLE words USING fts5 (
    content, content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
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

    def _session(self, transaction: Transaction, collection: CollectionEntry) -> SqlSession:
        dropped: list[SqlEngine] = []
        with self._lock:
            sql = self._open.get(collection.id)
            if sql is None:
                pages = PageSpace(Space.TEXT, collection.prefix)
                sql = self._open[collection.id] = SqlEngine(self._engine, SqlOptions(), pages)
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
        long. So the documents that have others of the words come first, as if it had not been asked for.
        """
        words = words_of(text)
        if not words:
            return
        session = self._session(transaction, collection)
        rare = self._rare(session, words)
        if not 0 < len(rare) < len(words):
            yield from self._rows(session, words)
            return
        seen: set[str] = set()
        for row in self._rows(session, rare):
            seen.add(row[0])
            yield row
        for row in self._rows(session, words):
            if row[0] not in seen:
                yield row

    def _rare(self, session: SqlSession, words: list[str]) -> list[str]:
        """Those of the words that at most half of the documents have."""
        if not 1 < len(words) <= _MOST_LOOKED_UP:
            return words
        having = {word: sum(count for (count,) in session.execute(_IS_IN, (word,)).rows) for word in words}
        if max(having.values()) < _MANY_ROWS:
            return words
        half = session.execute(_COUNT).rows[0][0] / 2
        return [word for word, count in having.items() if count <= half]

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
            sql = self._open.pop(collection, None)
        if sql is not None:
            sql.close()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            opened, self._open = list(self._open.values()), OrderedDict()
        for sql in opened:
            sql.close()
