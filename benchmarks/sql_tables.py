"""The tables that the SQL rows ask: the same rows for every contestant.

``people`` has as many rows as the run has records, ``big`` ten times as many, ``documents`` a fifth. ``events`` and
``bulk`` are written to. A row of a person holds about as many bytes as a value of the workload.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.workload import Workload

__all__ = ["AGGREGATE", "CREATE", "INSERT", "JOIN", "POINT", "SEARCH", "Person", "SqlTables"]

Person: TypeAlias = tuple[int, str, str, float, str]

_PERSON = "(id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, score REAL NOT NULL, note TEXT NOT NULL)"

CREATE = {
    "people": f"CREATE TABLE IF NOT EXISTS people {_PERSON}",
    "big": f"CREATE TABLE IF NOT EXISTS big {_PERSON}",
    "bulk": f"CREATE TABLE IF NOT EXISTS bulk {_PERSON}",
    "events": f"CREATE TABLE IF NOT EXISTS events {_PERSON}",
    "cities": "CREATE TABLE IF NOT EXISTS cities (name TEXT PRIMARY KEY, country TEXT NOT NULL)",
    "documents": "CREATE VIRTUAL TABLE IF NOT EXISTS documents USING fts5(body)",
}
INSERT = {
    **{
        table: f"INSERT INTO {table} (id, name, city, score, note) VALUES (?, ?, ?, ?, ?)"
        for table in ("people", "big", "bulk", "events")
    },
    "cities": "INSERT INTO cities (name, country) VALUES (?, ?)",
    "documents": "INSERT INTO documents (rowid, body) VALUES (?, ?)",
}
POINT = "SELECT name, city, score FROM people WHERE id = ?"
AGGREGATE = "SELECT count(*), sum(score), avg(score), min(score), max(score) FROM big"
JOIN = (
    "SELECT c.country, count(*), avg(p.score) FROM people p JOIN cities c ON c.name = p.city "
    "GROUP BY c.country ORDER BY c.country"
)
SEARCH = "SELECT rowid FROM documents WHERE documents MATCH ? ORDER BY rank LIMIT 10"

_CITIES, _COUNTRIES = 100, 10
_WORDS, _WORDS_IN_A_DOCUMENT = 2000, 40


@dataclass(frozen=True, slots=True)
class SqlTables:
    """What is in the tables.

    Args:
        workload: Its number of keys and the size of its values decide.
    """

    workload: Workload

    @property
    def note(self) -> str:
        """What fills a row up; the other columns have about 35 bytes."""
        return "n" * max(1, self.workload.value_size - 35)

    def person(self, number: int) -> Person:
        """One row; any number from 0 on."""
        return number, f"user {number:08d}", f"city {number * 7919 % _CITIES}", number * 37 % 1000 / 10, self.note

    def people(self, start: int, count: int) -> Iterator[Person]:
        """Rows in the order of their ids."""
        note = self.note
        for number in range(start, start + count):
            yield number, f"user {number:08d}", f"city {number * 7919 % _CITIES}", number * 37 % 1000 / 10, note

    @staticmethod
    def score_sum(count: int) -> float:
        """The sum of the scores of the first rows."""
        # 37 and 1000 have no common factor: every thousand rows have each score from 0.0 to 99.9 once.
        whole, rest = divmod(count, 1000)
        return whole * 49_950.0 + sum(number * 37 % 1000 for number in range(rest)) / 10

    def size(self, table: str) -> int:
        """How many rows a filled table has."""
        keys = self.workload.keys
        return {"people": keys, "big": 10 * keys, "cities": _CITIES, "documents": keys // 5}.get(table, 0)

    def batches(self, table: str) -> Iterator[list[tuple[object, ...]]]:
        """The rows of a table, in pieces for one transaction each."""
        size, keys = self.size(table), self.workload.keys
        if table == "cities":
            yield [(f"city {number}", f"country {number % _COUNTRIES}") for number in range(_CITIES)]
        elif table == "documents":
            yield list(self._documents(size))
        else:
            for start in range(0, size, keys):
                yield list(self.people(start, min(keys, size - start)))

    @staticmethod
    def _word(number: int) -> str:
        return f"word{number}"

    def _documents(self, count: int) -> Iterator[tuple[int, str]]:
        """Texts in which the n-th word of the vocabulary comes as often as 1/n, as words do (Zipf's law)."""
        chance = random.Random(7)
        weights = [1 / rank for rank in range(1, _WORDS + 1)]
        words = [self._word(number) for number in range(_WORDS)]
        for number in range(count):
            yield number, " ".join(chance.choices(words, weights, k=_WORDS_IN_A_DOCUMENT))

    def searches(self, seed: int) -> list[str]:
        """Questions of two words, neither among the very frequent nor the very rare."""
        chance = random.Random(seed)
        return [f"{self._word(chance.randrange(10, 100))} {self._word(chance.randrange(10, 100))}" for _ in range(1000)]

    def sample(self, seed: int, count: int = 10_000) -> list[int]:
        """Ids of ``people``, drawn at random; the same seed draws the same ids."""
        return random.Random(seed).choices(range(self.workload.keys), k=count)
