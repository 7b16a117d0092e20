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

from .catalog import CollectionEntry

__all__ = ["TextIndex", "match_any"]

_SCHEMA = """
CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE VIRTUAL TABLE words USING fts5 (
    content, content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
);
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
_WORD = re.compile(r"\w+")
_FIRST_ROWS = 32
_MOST_ROWS = 1024
_MOST_OPEN = 64


def match_any(text: str) -> str | None:
    """The FTS5 expression for documents with any of the words of a text; None when it has no words."""
    words = dict.fromkeys(_WORD.findall(text.lower()))
    return " OR ".join(f'"{word}"' for word in words) or None


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
        """The documents with any of the words of a text, and their scores, best first; read as they are asked for."""
        expression = match_any(text)
        if expression is None:
            return
        stream = self._session(transaction, collection).stream(_SEARCH, (expression,))
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
