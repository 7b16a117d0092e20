"""The words of one collection in memory: for each that was asked for, which documents have it, and how often.

It is a cache of what FTS5 has, from which BM25 is computed many times faster than by FTS5; the scores are the same.

Every version of a document has a place (*slot*) of its own, used once. Places are in the order of the numbers of FTS5,
by which equal scores are ordered: a new document has a higher number than all that there are. The cache goes forward
from commit to commit that changed the words: the document log names the documents that differ, and their texts tell
the rest. Each such commit that a search has seen is a *point*. Places keep the points at which they began and ended,
so a search in an older snapshot finds what it should, as long as that is one of the last points.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toondb.engine import document_log
from toondb.engine.environment import Space
from toondb.engine.snapshot import Snapshot
from toondb.sql.engine import SqlSession
from toondb_protocol.record import HEADER_SIZE

from .catalog import CollectionEntry
from .documents import decode
from .word_ranking import Slots, Weighed, weights

__all__ = ["Looked", "Phrase", "WordCache"]

Phrase: TypeAlias = tuple[str, ...]
"""A word of a search: mostly one token of FTS5, several in a row where it has an underscore, none for that alone."""

_INSTANCES = "CREATE VIRTUAL TABLE IF NOT EXISTS temp.instances USING fts5vocab (main, words, instance)"
_WHERE_IS = "SELECT group_concat(doc) FROM temp.instances WHERE term = ?"
_WHERE_IN = "SELECT group_concat(doc), group_concat(offset) FROM temp.instances WHERE term = ?"
_HOW_OFTEN = "SELECT cnt FROM vocabulary WHERE term = ?"
_ALL = (
    "SELECT documents.number, documents.id, sizes.sz FROM documents JOIN words_docsize AS sizes "
    "ON sizes.id = documents.number WHERE documents.number > ? ORDER BY documents.number LIMIT ?"
)
_NUMBER = "SELECT number FROM documents WHERE id = ?"
_TOTALS = "SELECT block FROM words_data WHERE id = 1"

_ROWS_AT_ONCE = 16384
_FOLLOWED_AT_LEAST = 64
_FOLLOWED_SHARE = 64
"""Up to a 64th of the documents are followed one by one: that takes about as long as to read all anew."""
_MOST_POINTS = 16
_DEAD_AT_LEAST = 1024
_BYTES_PER_DOCUMENT = 240
_BYTES_PER_WORD = 600
_BYTES_PER_LATE = 120
_MOST_INSTANCES = 4_000_000
"""A word that occurs more often is left to FTS5: its places come as one text."""

_ALIVE = 1 << 62
_OFFSET_BITS = 32
_ROOM = 64


class _Point(NamedTuple):
    """What there was at a commit.

    Attributes:
        at: Which point it is.
        documents: How many documents there are.
        rows: How many FTS5 counts.
        tokens: How many words they have, as FTS5 counts.
    """

    at: int
    documents: int
    rows: int
    tokens: int


class _Postings:
    """Where a word is.

    Attributes:
        since: The point at which it was read: it knows all versions of documents from that on.
        slots: Places, ascending.
        counts: How often each has it.
        late: The same of later documents.
        weighed: What it weighs at a point.
    """

    __slots__ = ("counts", "late", "since", "slots", "weighed")

    def __init__(self, since: int, slots: Slots, counts: NDArray[Any]) -> None:
        self.since = since
        self.slots = slots
        self.counts = counts
        self.late: list[tuple[int, int]] = []
        self.weighed: tuple[int, Weighed] | None = None

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        size = _BYTES_PER_WORD + self.slots.nbytes + self.counts.nbytes + _BYTES_PER_LATE * len(self.late)
        if self.weighed is not None:
            size += self.weighed[1].slots.nbytes + self.weighed[1].weights.nbytes
        return size

    def fold(self) -> None:
        """Take over what came late."""
        if self.late:
            slots, counts = zip(*self.late, strict=True)
            self.slots = np.concatenate([self.slots, np.array(slots, np.int32)])
            self.counts = np.concatenate([self.counts, _small(np.array(counts))])
            self.late = []


class Looked(NamedTuple):
    """What a search found.

    Attributes:
        words: For each word the documents that have it.
        documents: How many documents there are.
        ids: Their ids by place.
        places: How many places there are.
    """

    words: list[Weighed]
    documents: int
    ids: list[str]
    places: int


class WordCache:
    """The words of a collection. May be used from any thread.

    Args:
        collection: The collection.
        tokens: Splits a text into words.
        room: The documents alone may take so many bytes; with more of them the cache stays empty.
    """

    def __init__(self, collection: CollectionEntry, tokens: Callable[[str], list[str]], room: int) -> None:
        self.collection = collection
        self._tokens = tokens
        self._room = room
        self._lock = threading.Lock()
        self._torn = False
        self._forget()

    def _forget(self) -> None:
        self._lsn = 0
        # Who asks once, or once after each of many large changes, is answered sooner by FTS5.
        self._asked = False
        self._points: OrderedDict[int, _Point] = OrderedDict()
        self._ids: list[str] = []
        self._slots: dict[str, int] = {}
        self._rows = np.zeros((4, 0), np.int64)
        self._postings: OrderedDict[Phrase, _Postings] = OrderedDict()
        self._phrases: set[Phrase] = set()
        self._words_size = 0

    # Of each place: the number of FTS5, how many words, the first point that has it, the first that has it no more.

    @property
    def _numbers(self) -> NDArray[np.int64]:
        return self._rows[0, : len(self._ids)]

    @property
    def _lengths(self) -> NDArray[np.int64]:
        return self._rows[1, : len(self._ids)]

    @property
    def _born(self) -> NDArray[np.int64]:
        return self._rows[2, : len(self._ids)]

    @property
    def _died(self) -> NDArray[np.int64]:
        return self._rows[3, : len(self._ids)]

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return _BYTES_PER_DOCUMENT * len(self._ids) + self._words_size

    def look_up(
        self, snapshot: Snapshot, lsn: int, words: Sequence[Phrase], session: Callable[[], SqlSession]
    ) -> Looked | None:
        """What the documents of a snapshot have of some words.

        Args:
            snapshot: What to see.
            lsn: That of the last commit that changed the words, as the snapshot sees it.
            words: The words.
            session: Gives the SQL of the words in that snapshot, with nothing written.

        Returns:
            None when FTS5 must tell: this is the first search, the cache is ahead, or there is too much.
        """
        with self._lock:
            if self._torn:
                self._forget()
            # Ctrl-C, or an error, may end it half-way, at any step: the next who comes begins anew.
            self._torn = True
            found = self._look_up(snapshot, lsn, words, session)
            self._torn = False
            return found

    def _look_up(
        self, snapshot: Snapshot, lsn: int, words: Sequence[Phrase], session: Callable[[], SqlSession]
    ) -> Looked | None:
        if lsn > self._lsn and not self._advance(snapshot, lsn, session()):
            return None
        point = self._points.get(lsn)
        if point is None:
            return None
        found: list[Weighed] = []
        for word in words:
            postings = self._postings.get(word)
            if postings is None or postings.since > point.at:
                if lsn != self._lsn:
                    return None
                postings = self._read(word, point, session())
                if postings is None:
                    return None
                self._postings[word] = postings
                if len(word) > 1:
                    self._phrases.add(word)
                self._words_size += postings.size
            else:
                self._postings.move_to_end(word)
            found.append(self._weighed(postings, point))
        return Looked(found, point.documents, self._ids, len(self._ids))

    def _weighed(self, postings: _Postings, point: _Point) -> Weighed:
        if postings.weighed is not None and postings.weighed[0] == point.at:
            return postings.weighed[1]
        before = postings.size
        postings.fold()
        slots, counts = postings.slots, postings.counts
        there = (self._born[slots] <= point.at) & (self._died[slots] > point.at)
        if not there.all():
            slots, counts = slots[there], counts[there]
        average = point.tokens / max(1, point.rows)
        weighed = Weighed(slots, weights(point.rows, average, counts, self._lengths[slots]))
        postings.weighed = point.at, weighed
        self._words_size += postings.size - before
        return weighed

    def shrink(self, most: int) -> None:
        """Let the words go that were not asked for the longest time, until it takes so many bytes."""
        with self._lock:
            while self._postings and self.size > most and not self._torn:
                phrase, postings = self._postings.popitem(last=False)
                self._phrases.discard(phrase)
                self._words_size -= postings.size

    # Reading the index of FTS5

    def _read(self, phrase: Phrase, point: _Point, session: SqlSession) -> _Postings | None:
        """Where a word is, at the newest point."""
        if point.tokens > _MOST_INSTANCES:
            for token in phrase:
                ((often,),) = session.execute(_HOW_OFTEN, (token,)).rows or [(0,)]
                if often > _MOST_INSTANCES:
                    return None
        session.run(lambda connection: connection.run_own(_INSTANCES))
        documents = _documents(session, phrase)
        numbers, counts = np.unique(documents, return_counts=True)
        alive = np.flatnonzero(self._died == _ALIVE)
        known = self._numbers[alive]
        at = np.minimum(np.searchsorted(known, numbers), max(0, len(known) - 1))
        if len(numbers) and (not len(known) or not np.array_equal(known[at], numbers)):
            return None  # no store of ours is so; what FTS5 makes of it is the answer
        return _Postings(point.at, alive[at].astype(np.int32), _small(counts))

    def _advance(self, snapshot: Snapshot, lsn: int, session: SqlSession) -> bool:
        """Go to a commit; False when that is not worth it: for the first search, or for too many documents."""
        changed: Iterable[str] | None = None
        if self._lsn:
            dead = len(self._ids) - len(self._slots)
            most = max(_FOLLOWED_AT_LEAST, len(self._slots) // _FOLLOWED_SHARE)
            if dead <= max(_DEAD_AT_LEAST, len(self._slots)):
                with snapshot.reading() as view:
                    changed = document_log.changed_ids(
                        snapshot.environment, view, self.collection.id, self._lsn, lsn, most
                    )
        if changed is not None:
            self._follow(snapshot, lsn, session, changed)
            return True
        asked = self._asked
        self._forget()
        self._asked = not asked
        return asked and self._load(lsn, session)

    def _load(self, lsn: int, session: SqlSession) -> bool:
        """Read which documents there are."""
        rows, tokens = _totals(session)
        if rows * _BYTES_PER_DOCUMENT > self._room:
            return False
        found: list[tuple[int, str, bytes]] = []
        while True:
            some = session.execute(_ALL, (found[-1][0] if found else 0, _ROWS_AT_ONCE)).rows
            found += some
            if len(some) < _ROWS_AT_ONCE:
                break
        self._add([(number, id, _varint(size, 0)[0]) for number, id, size in found], 0)
        self._points[lsn] = _Point(0, len(found), rows, tokens)
        self._lsn = lsn
        return True

    def _follow(self, snapshot: Snapshot, lsn: int, session: SqlSession, changed: Iterable[str]) -> None:
        """Take over the documents that changed."""
        at = self._points[self._lsn].at + 1
        prefix = self.collection.prefix
        added: list[tuple[int, str, list[str]]] = []
        for id in changed:
            slot = self._slots.pop(id, None)
            if slot is not None:
                self._died[slot] = at
            for (number,) in session.execute(_NUMBER, (id,)).rows:
                raw = snapshot.record(Space.DOCUMENTS, prefix + id.encode())
                text = None if raw is None else decode(raw[HEADER_SIZE:]).content
                added.append((number, id, self._tokens(text or "")))
        added.sort()
        slot = len(self._ids)
        self._add([(number, id, len(tokens)) for number, id, tokens in added], at)
        for _, _, tokens in added:
            for token, count in Counter(tokens).items():
                self._note((token,), slot, count)
            for phrase in self._phrases:
                self._note(phrase, slot, _occurrences(phrase, tokens))
            slot += 1
        self._points[lsn] = _Point(at, len(self._slots), *_totals(session))
        while len(self._points) > _MOST_POINTS:
            self._points.popitem(last=False)
        self._lsn = lsn

    def _note(self, phrase: Phrase, slot: int, count: int) -> None:
        postings = self._postings.get(phrase)
        if postings is not None and count:
            postings.late.append((slot, count))
            self._words_size += _BYTES_PER_LATE

    def _add(self, documents: list[tuple[int, str, int]], at: int) -> None:
        """Give places to documents: number, id, how many words; by number."""
        first = len(self._ids)
        end = first + len(documents)
        if end > self._rows.shape[1]:
            grown = np.zeros((4, max(_ROOM, end + end // 2)), np.int64)
            grown[:, :first] = self._rows[:, :first]
            self._rows = grown
        rows = self._rows[:, first:end]
        rows[0] = [number for number, _, _ in documents]
        rows[1] = [length for _, _, length in documents]
        rows[2], rows[3] = at, _ALIVE
        ids = [id for _, id, _ in documents]
        self._slots.update(zip(ids, range(first, end), strict=True))
        self._ids += ids


def _documents(session: SqlSession, phrase: Phrase) -> NDArray[np.int64]:
    """The numbers of the documents that have a word, as often as they have it."""
    if len(phrase) == 1:
        ((documents,),) = session.execute(_WHERE_IS, phrase).rows
        return _integers(documents)
    # Where it would begin if this token is part of it.
    begins: NDArray[np.int64] | None = None
    for at, token in enumerate(phrase):
        ((documents, offsets),) = session.execute(_WHERE_IN, (token,)).rows
        found = (_integers(documents) << _OFFSET_BITS) + _integers(offsets) + (len(phrase) - at)
        begins = found if begins is None else np.intersect1d(begins, found, assume_unique=True)
    return np.zeros(0, np.int64) if begins is None else begins >> _OFFSET_BITS


def _integers(text: str | None) -> NDArray[np.int64]:
    return np.fromstring(text or "", np.int64, sep=",")


def _occurrences(phrase: Phrase, tokens: list[str]) -> int:
    wanted, size = list(phrase), len(phrase)
    return sum(tokens[at : at + size] == wanted for at in range(len(tokens) - size + 1))


def _small(counts: NDArray[Any]) -> NDArray[Any]:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _totals(session: SqlSession) -> tuple[int, int]:
    """How many documents and how many words FTS5 counts.

    Source: the "averages record" in ``fts5_index.c`` of SQLite.
    """
    ((block,),) = session.execute(_TOTALS).rows or [(b"",)]
    if not block:
        return 0, 0
    rows, end = _varint(block, 0)
    return rows, _varint(block, end)[0]


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """An integer of SQLite, and where it ends. Source: https://www.sqlite.org/fileformat2.html#varint"""
    value = 0
    for end in range(at, at + 8):
        value = value << 7 | raw[end] & 0x7F
        if raw[end] < 0x80:
            return value, end + 1
    return value << 8 | raw[at + 8], at + 9
