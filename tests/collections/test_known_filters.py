"""Filters are answered from what is known of fields as they are by reading every document."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb import Database
from toondb.collections import known_filters, vector_cache
from toondb.collections.field_index import FieldIndex, hashes_of, required_by
from toondb.filters import compile_filter
from toondb_protocol.collections import Collection, Namespace

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    -2,
    1.0,
    0.5,
    -0.0,
    2**60,
    2**61 - 1,
    2**63,
    2**64 - 1,
    1e300,
    math.inf,
    math.nan,
    "",
    "1",
    "a",
    "ä",
    b"",
    b"a",
    b"1",
]
scalars = st.sampled_from(VALUES)
nested = st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)
fields = scalars | nested | st.lists(nested, max_size=2)
rows = st.dictionaries(st.sampled_from(["f", "g", "x.y"]), fields, max_size=3)
conditions = (
    fields
    | st.builds(lambda value: {"$eq": value}, fields)
    | st.builds(lambda values: {"$in": values}, st.lists(fields, max_size=3))
    | st.builds(lambda value, values: {"$eq": value, "$in": values}, scalars, st.lists(scalars, max_size=3))
    | st.builds(lambda value: {"$ne": value}, scalars)
    | st.builds(lambda value: {"$not": {"$eq": value}}, scalars)
    | st.builds(lambda values, other: {"$in": values, "$ne": other}, st.lists(scalars, max_size=3), scalars)
)
simple = st.dictionaries(st.sampled_from(["f", "g", "x.y", "f.0"]), conditions, min_size=1, max_size=2)
filters = simple | st.builds(
    lambda name, parts, more: {name: parts, **more},
    st.sampled_from(["$and", "$or"]),
    st.lists(simple, min_size=1, max_size=2),
    st.just({}) | simple,
)


@given(rows, filters)
def test_what_a_filter_demands_is_there_wherever_it_is_met(row: dict[str, Any], filter: dict[str, Any]) -> None:
    required = required_by(filter)
    has_all = all(set(hashes_of(row.get(name))) & wanted for name, wanted in required.fields.items())
    meets = compile_filter(filter)(row)
    if meets:
        assert has_all
    if required.alone:
        assert required.fields
        assert meets or not has_all


@pytest.mark.parametrize(
    ("filter", "names", "alone"),
    [
        ({"a": 1}, ["a"], True),
        ({"a": {"$eq": 1}}, ["a"], True),
        ({"a": {"$in": [1, "x"]}}, ["a"], True),
        ({"$and": [{"a": 1}]}, ["a"], True),
        ({"a": 1, "b": 2}, ["a", "b"], False),
        ({"a": 1, "n": {"$gt": 2}}, ["a"], False),
        ({"$and": [{"a": 1}, {"$or": [{"b": 1}, {"c": 1}]}], "d": None}, ["a", "d"], False),
        ({"$or": [{"a": 1}]}, [], False),
        ({"$not": {"a": 1}}, [], False),
        ({"a.b": 1}, [], False),
        ({"a": [1]}, [], False),
        ({"a": {"b": 1}}, [], False),
        ({"a": {"$in": [1, [2]]}}, [], False),
        ({"a": {"$ne": 1}}, [], False),
        ({}, [], False),
    ],
)
def test_what_is_demanded_by_equality(filter: dict[str, Any], names: list[str], alone: bool) -> None:
    required = required_by(filter)
    assert (sorted(required.fields), required.alone) == (names, alone)


def test_an_index_of_a_field() -> None:
    index = FieldIndex()
    rng = random.Random(1)
    pairs = [(rng.randrange(50), label) for label in range(3000)]
    for start in range(0, 3000, 7):
        some = pairs[start : start + 7]
        index.add([each for each, _ in some], [label for _, label in some])
    assert len(index) == 3000
    for wanted in (frozenset({3}), frozenset({1, 49}), frozenset({77}), frozenset[int]()):
        assert index.labels(wanted).tolist() == [label for hashed, label in pairs if hashed in wanted]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each time that all documents were read, one entry; and for each document that was read by itself, minus 1."""
    seen: list[int] = []
    everything = vector_cache.documents_of

    def all_of(*arguments: Any) -> Iterator[Any]:
        seen.append(1)
        return everything(*arguments)

    some = vector_cache._Reading.some

    def some_of(self: Any, ids: Any) -> Iterator[Any]:
        ids = list(ids)
        seen.extend([-1] * len(ids))
        return some(self, ids)

    monkeypatch.setattr(vector_cache, "documents_of", all_of)
    monkeypatch.setattr(vector_cache._Reading, "some", some_of)
    return seen


def vector(number: int) -> list[float]:
    rng = random.Random(number)
    return [rng.uniform(-1, 1) for _ in range(4)]


def filled(ns: Namespace, count: int = 600) -> tuple[Collection, dict[str, dict[str, Any]]]:
    docs = ns.create_collection("docs", dimension=4)
    model: dict[str, dict[str, Any]] = {
        f"{at:04}": {"user": f"u{at % 200}", "n": at, "tags": ["all", f"t{at % 5}"]} for at in range(count)
    }
    docs.insert_batch([(id, vector(at), metadata) for at, (id, metadata) in enumerate(model.items())])
    docs.vector_search(vector(0), 1)
    return docs, model


def ids(docs: Collection, filter: dict[str, Any]) -> list[str]:
    return sorted(each.id for each in docs.vector_search(vector(-1), 1000, filter))


def expected(model: dict[str, dict[str, Any]], filter: dict[str, Any]) -> list[str]:
    matches = compile_filter(filter)
    return sorted(id for id, metadata in model.items() if matches(metadata))


def test_all_documents_are_read_once_for_a_field(db: Database, ns: Namespace, read: list[int]) -> None:
    docs, model = filled(ns)
    read.clear()
    for user in range(100):
        of_user = {"user": f"u{user}"}
        assert ids(docs, of_user) == expected(model, of_user)
        assert len(ids(docs, of_user)) == 3
    assert read == [1]
    # More than equality: the few that meet it are read one by one.
    read.clear()
    filter: dict[str, Any] = {"user": "u7", "n": {"$gte": 200}}
    assert ids(docs, filter) == expected(model, filter) == ["0207", "0407"]
    assert read == [-1] * 3
    # Two fields, of which one is new.
    read.clear()
    filter = {"user": {"$in": ["u1", "u2"]}, "tags": "t1", "n": {"$lt": 300}}
    assert ids(docs, filter) == expected(model, filter) == ["0001", "0201"]
    assert read == [1] + [-1] * 3
    # Many meet it: to read all of them in their order is faster.
    read.clear()
    filter = {"tags": "all", "n": {"$lt": 300}}
    assert ids(docs, filter) == expected(model, filter)
    assert read == [1]


def test_every_change_is_followed(db: Database, ns: Namespace, read: list[int]) -> None:
    docs, model = filled(ns)
    assert ids(docs, {"user": "u1"})
    rng = random.Random(2)
    read.clear()
    for step in range(300):
        id = f"{rng.randrange(700):04}"
        if rng.random() < 0.3:
            docs.delete(id)
            model.pop(id, None)
        else:
            metadata = {"user": rng.choice([f"u{rng.randrange(20)}", None, 7, ["u1", "u2"], {"u": 1}]), "n": step}
            model[id] = metadata
            docs.upsert(vector(step), metadata, id)
        filter: dict[str, Any] = {"user": rng.choice([f"u{rng.randrange(20)}", None, 7.0])}
        if rng.random() < 0.3:
            filter["n"] = {"$lt": rng.randrange(300)}
        assert ids(docs, filter) == expected(model, filter)
    assert 1 not in read[1:]


def test_a_field_of_too_many_values_is_not_kept(
    db: Database, ns: Namespace, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_filters, "_PAIRS_AT_LEAST", 10)
    monkeypatch.setattr(known_filters, "_PAIRS_PER_LABEL", 1)
    docs, model = filled(ns)
    read.clear()
    assert ids(docs, {"tags": "t1"}) == expected(model, {"tags": "t1"})
    assert read == [1, 1]
    assert ids(docs, {"tags": "t2"}) == expected(model, {"tags": "t2"})
    assert read == [1, 1, 1]
    # What was written again and again is forgotten, and made anew.
    assert ids(docs, {"user": "u1"}) == expected(model, {"user": "u1"})
    read.clear()
    for at in range(20):
        docs.upsert(vector(at), {"user": "u1"}, f"{at:04}")
        model[f"{at:04}"] = {"user": "u1"}
    assert ids(docs, {"user": "u2"}) == expected(model, {"user": "u2"})
    assert read.count(1) == 1


def test_few_fields_are_kept(db: Database, ns: Namespace, read: list[int]) -> None:
    docs = ns.create_collection("docs", dimension=4)
    docs.insert_batch([(f"{at}", vector(at), {f"f{at % 20}": at}) for at in range(100)])
    docs.vector_search(vector(0), 1)
    for round in range(2):
        read.clear()
        for field in range(20):
            assert ids(docs, {f"f{field}": 20 * round + field}) == [f"{20 * round + field}"]
        assert read == [1] * 20
    read.clear()
    assert ids(docs, {f"f{field}": None for field in range(12)}) == sorted(
        f"{at}" for at in range(100) if at % 20 >= 12
    )
