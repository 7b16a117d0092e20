"""A model: whatever is done to a collection, every read equals brute force over a dict."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.collections.brute import distances
from toondb import Database
from toondb.collections import (
    exact,
    known_filters,
    multi_vector,
    operations,
    vector_cache,
    vector_caches,
    vector_search,
)
from toondb.engine import document_log
from toondb.filters import compile_filter
from toondb.vector import tail
from toondb_protocol.collections import Collection
from toondb_protocol.search import Document

DIMENSION = 3
IDS = [f"d{at}" for at in range(12)]
WORDS = ["ant", "bee", "cat", "dog"]
FILTERS: list[dict[str, Any] | None] = [None, {"n": {"$lt": 3}}, {"tag": "x"}, {"$not": {"tag": "x"}}, {"no": 1}]
components = st.integers(-3, 3).map(float)
vectors = st.lists(components, min_size=DIMENSION, max_size=DIMENSION).filter(any)
metadatas = st.fixed_dictionaries({"n": st.integers(0, 6)}, optional={"tag": st.sampled_from(["x", "y"])})
contents = st.none() | st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
Model = dict[str, tuple[list[float] | None, dict[str, list[float]], dict[str, Any], str | None]]


class CollectionMachine(RuleBasedStateMachine):
    """One collection with words, one handle, at most one open transaction."""

    LIMITS: ClassVar[dict[Any, dict[str, int]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for module, limits in self.LIMITS.items():
            for name, limit in limits.items():
                self.patch.setattr(module, name, limit)
        self.folder = tempfile.TemporaryDirectory()
        self.db: Database | None = None
        self.txn: Any = None
        self.committed: Model = {}
        self.inside: Model = {}

    @initialize(metric=st.sampled_from(["cosine", "euclidean", "dot_product"]))
    def create(self, metric: str) -> None:
        self.metric = metric
        self.db = Database.open(Path(self.folder.name) / "db")
        self.db.create_namespace("n").create_collection(
            "c", dimension=DIMENSION, metric=metric, enable_hybrid_search=True
        )

    def teardown(self) -> None:
        if self.txn is not None:
            self.txn.abort()
        if self.db is not None:
            self.db.close()
        self.folder.cleanup()
        self.patch.undo()

    @property
    def store(self) -> Any:
        return self.db if self.txn is None else self.txn

    @property
    def model(self) -> Model:
        return self.committed if self.txn is None else self.inside

    def collection(self) -> Collection:
        found: Collection = self.store.collection("n", "c")
        return found

    @rule(id=st.sampled_from(IDS), vector=st.none() | vectors, metadata=metadatas, content=contents)
    def insert(self, id: str, vector: Any, metadata: dict[str, Any], content: str | None) -> None:
        self.collection().insert(id=id, vector=vector, metadata=metadata, content=content)
        self.model[id] = (vector, {}, metadata, content)

    @rule(rows=st.dictionaries(st.sampled_from(IDS), st.tuples(vectors, metadatas, contents), max_size=5))
    def insert_batch(self, rows: dict[str, Any]) -> None:
        self.collection().insert_batch([(id, *row) for id, row in rows.items()])
        self.model.update({id: (row[0], {}, row[1], row[2]) for id, row in rows.items()})

    @rule(
        id=st.sampled_from(IDS),
        named=st.dictionaries(st.sampled_from("ab"), vectors, min_size=1),
        metadata=metadatas,
        content=contents,
    )
    def insert_multi(self, id: str, named: Any, metadata: dict[str, Any], content: str | None) -> None:
        self.collection().insert_multi_vector(id, named, metadata, content)
        self.model[id] = (None, named, metadata, content)

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=4, unique=True))
    def delete(self, ids: list[str]) -> None:
        assert self.collection().delete_batch(ids) == sum(self.model.pop(id, None) is not None for id in ids)

    @precondition(lambda self: self.txn is None)
    @rule()
    def begin(self) -> None:
        assert self.db is not None
        self.txn = self.db.begin_transaction()
        self.inside = dict(self.committed)

    @precondition(lambda self: self.txn is not None)
    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        if commit:
            self.txn.commit()
            self.committed = self.inside
        else:
            self.txn.abort()
        self.txn = None

    @precondition(lambda self: self.txn is None)
    @rule()
    def reopen(self) -> None:
        assert self.db is not None
        self.db.close()
        self.db = Database.open(Path(self.folder.name) / "db")

    @precondition(lambda self: self.db is not None)
    @invariant()
    def documents(self) -> None:
        model, docs = self.model, self.collection()
        assert len(docs) == len(model)
        stored = {each.id: (each.vector, each.vectors, each.metadata, each.content) for each in docs.iterate()}
        assert stored == model
        assert list(stored) == sorted(model)

    @precondition(lambda self: self.txn is not None)
    @rule(id=st.sampled_from(IDS), vector=vectors, metadata=metadatas)
    def insert_beside(self, id: str, vector: Any, metadata: dict[str, Any]) -> None:
        """Another one commits while the transaction is open: it keeps its view, and conflicts if it wrote the same."""
        if self.txn is None or self.db is None or self.inside != self.committed:
            return
        self.db.collection("n", "c").insert(id=id, vector=vector, metadata=metadata)
        assert self.collection().get(id) == self._document(id, self.inside)
        self.committed = {**self.committed, id: (vector, {}, metadata, None)}
        for k in (1, 14):
            rows = {id: row[0] for id, row in self.inside.items() if row[0] is not None}
            self._same(self.collection().vector_search(vector, k), vector, rows, k)
            rows = {id: row[0] for id, row in self.committed.items() if row[0] is not None}
            self._same(self.db.collection("n", "c").vector_search(vector, k), vector, rows, k)
        self.txn.abort()
        self.txn = None

    def _document(self, id: str, model: Model) -> Document | None:
        row = model.get(id)
        return None if row is None else Document(id, row[2], row[3], row[0], row[1])

    @rule(query=vectors, k=st.integers(1, 14), filter=st.sampled_from(FILTERS))
    def search(self, query: list[float], k: int, filter: Any) -> None:
        found = self.collection().vector_search(query, k, filter)
        matches = compile_filter(filter or {})
        there = {id: row for id, row in self.model.items() if row[0] is not None and matches(row[2])}
        self._same(found, query, {id: row[0] for id, row in there.items()}, k)
        if self.txn is not None and self.db is not None:  # others see what is committed
            there = {id: row for id, row in self.committed.items() if row[0] is not None and matches(row[2])}
            found = self.db.collection("n", "c").vector_search(query, k, filter)
            self._same(found, query, {id: row[0] for id, row in there.items()}, k)

    def _same(self, found: list[Any], query: list[float], rows: dict[str, Any], k: int) -> None:
        assert len(found) == min(k, len(rows))
        if not rows:
            return
        exact = distances(self.metric, np.array(query), np.array(list(rows.values())))
        by_id = dict(zip(rows, exact, strict=True))
        assert len({each.id for each in found}) == len(found)
        for each, best in zip(found, sorted(exact), strict=False):
            assert abs(each.distance - best) < 1e-4  # ties may come in any order
            assert abs(by_id[each.id] - each.distance) < 1e-4
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)

    @rule(
        queries=st.dictionaries(st.sampled_from("ab"), vectors, min_size=1),
        k=st.integers(1, 14),
        aggregation=st.sampled_from(["max_pooling", "mean_pooling", "weighted_sum"]),
        filter=st.sampled_from(FILTERS),
    )
    def search_multi(self, queries: dict[str, list[float]], k: int, aggregation: str, filter: Any) -> None:
        weights = {"a": 2.0} if aggregation == "weighted_sum" and "a" in queries else None
        found = self.collection().multi_vector_search(queries, k, aggregation, weights=weights, filter=filter)
        matches = compile_filter(filter or {})
        expected: list[float] = []
        for _, named, metadata, _ in self.model.values():
            scores = {name: self._score(query, named[name]) for name, query in queries.items() if name in named}
            if not scores or not matches(metadata):
                continue
            if aggregation == "max_pooling":
                expected.append(max(scores.values()))
            elif aggregation == "mean_pooling":
                expected.append(sum(scores.values()) / len(queries))
            else:
                expected.append(sum((weights or {}).get(name, 1.0) * score for name, score in scores.items()))
        expected.sort(reverse=True)
        np.testing.assert_allclose([each.score for each in found], expected[:k], atol=1e-4)

    def _score(self, query: list[float], vector: list[float]) -> float:
        distance = float(distances(self.metric, np.array(query), np.array([vector]))[0])
        if self.metric == "euclidean":
            return 1 / (1 + distance)
        return 1 - distance if self.metric == "cosine" else -distance

    @rule(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=2), k=st.integers(1, 14))
    def words(self, words: list[str], k: int) -> None:
        found = self.collection().keyword_search(" ".join(words), k)
        there = {id for id, row in self.model.items() if set(words) & set((row[3] or "").split())}
        assert {each.id for each in found} <= there
        assert len(found) == min(k, len(there))
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


CollectionMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCollection = CollectionMachine.TestCase


class SmallLimitsMachine(CollectionMachine):
    """The same where everything happens that usually takes thousands of documents."""

    LIMITS: ClassVar[dict[Any, dict[str, int]]] = {
        document_log: {"_KEPT_AT_LEAST": 4, "_KEPT_PER_DOCUMENT": 1, "_TRIMMED_AT_LEAST": 1, "_PART_BYTES": 4},
        tail: {"TAIL_ROWS": 4},
        vector_cache: {"_ROWS_AT_ONCE": 3, "_SCAN_ROWS": 2},
        known_filters: {"_MOST_FILTERS": 2, "_MOST_FIELDS": 1, "_PAIRS_AT_LEAST": 4, "_PAIRS_PER_LABEL": 2},
        vector_caches: {"_AT_ONCE": 2, "_MOST_EXACT": 5, "_SAVED_FROM": 1, "_SAVE_AFTER": 6},
        vector_search: {"MOST_DIFFERENT": 3},
        exact: {"_ROWS": 2},
        multi_vector: {"_RANKED_PER_RESULT": 1, "_RANKED_AT_LEAST": 1, "_WIDER": 2},
        operations: {"_PAGE_BYTES": 60},
    }


SmallLimitsMachine.TestCase.settings = CollectionMachine.TestCase.settings
TestCollectionWithSmallLimits = SmallLimitsMachine.TestCase
