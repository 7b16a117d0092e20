"""Filters: every operator and every error, and agreement with an evaluator that was written from the definitions."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toondb.filters import (
    FIELD_OPERATORS,
    FILTER_OPERATORS,
    MAX_CONDITIONS,
    MAX_DEPTH,
    check_filter,
    compile_filter,
)
from toondb_protocol.errors import ToonDBError, ValidationError

NAN = math.nan
BIG = 2**53


def matches(filter: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    found = compile_filter(filter)(row)
    assert isinstance(found, bool)
    return found


# --- what filters mean -----------------------------------------------------------------------------------------

YES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"a": 1}),
    ({"a": "x"}, {"a": "x", "b": 1}),
    ({"": 1}, {"": 1}),
    ({"a": 1, "b": 2}, {"a": 1, "b": 2}),
    ({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}),
    # numbers are equal and ordered by their exact value
    ({"a": 1}, {"a": 1.0}),
    ({"a": 1.0}, {"a": 1}),
    ({"a": 0.0}, {"a": -0.0}),
    ({"a": float(BIG)}, {"a": BIG}),
    ({"a": {"$gt": float(BIG)}}, {"a": BIG + 1}),
    ({"a": {"$lt": BIG + 1}}, {"a": float(BIG)}),
    ({"a": {"$gt": 1.5}}, {"a": 10**400}),
    ({"a": {"$lt": math.inf}}, {"a": 10**400}),
    ({"a": {"$gte": -math.inf}}, {"a": -(10**400)}),
    ({"a": {"$in": [float(BIG), 7]}}, {"a": BIG}),
    # operators
    ({"a": {"$eq": 1}}, {"a": 1}),
    ({"a": {"$ne": 1}}, {"a": 2}),
    ({"a": {"$ne": 1}}, {}),
    ({"a": {"$ne": 1}}, {"a": True}),
    ({"a": {"$gt": 10, "$lt": 20}}, {"a": 15}),
    ({"a": {"$gte": 10, "$lte": 10}}, {"a": 10}),
    ({"a": {"$gt": "a"}}, {"a": "b"}),
    ({"a": {"$gt": ""}}, {"a": "b"}),
    ({"a": {"$lte": b"b"}}, {"a": b"ab"}),
    ({"a": {"$in": ["x", "y"]}}, {"a": "y"}),
    ({"a": {"$in": [1, b"y", None, True, [1]]}}, {"a": True}),
    ({"a": {"$in": [1, b"y", None, True, [1]]}}, {"a": b"y"}),
    ({"a": {"$in": [1, b"y", None, True, [1]]}}, {}),
    ({"a": {"$in": [2, [1]]}}, {"a": [1.0]}),
    ({"a": {"$in": {1, 2}}}, {"a": 1}),
    ({"a": {"$in": ("x",)}}, {"a": "x"}),
    ({"a": {"$nin": ["x", "y"]}}, {"a": "z"}),
    ({"a": {"$nin": ["x", "y"]}}, {}),
    ({"a": {"$nin": []}}, {"a": 1}),
    ({"a": {"$exists": True}}, {"a": None}),
    ({"a": {"$exists": False}}, {"b": 1}),
    ({"a": {"$not": {"$gt": 5}}}, {"a": 5}),
    ({"a": {"$not": {"$gt": 5}}}, {"a": "text"}),
    ({"a": {"$not": {"$gt": 5}}}, {}),
    ({"a": {"$not": {"$gt": 5, "$lt": 9}}}, {"a": 9}),
    ({"a": {"$not": {"$not": 5}}}, {"a": 5}),
    ({"a": {"$not": 5}}, {"a": 6}),
    ({"a": {"$not": {"b": 1}}}, {"a": {"b": 2}}),
    ({"$not": {"a": 1, "b": 1}}, {"a": 1, "b": 2}),
    ({"$and": [{"a": 1}, {"b": 2}]}, {"a": 1, "b": 2}),
    ({"$or": [{"a": 1}, {"b": 2}]}, {"b": 2}),
    ({"$or": [{"a": 1}]}, {"a": 1}),
    ({"$or": [{"a": 1}, {}]}, {}),
    ({"c": 3, "$or": [{"a": 1}, {"b": 2}], "$not": {"d": 4}}, {"c": 3, "b": 2}),
    # null
    ({"a": None}, {}),
    ({"a": None}, {"a": None}),
    ({"a": None}, {"a": [1, None]}),
    ({"a": {"$ne": None}}, {"a": 0}),
    # lists: as a whole or any element
    ({"a": 1}, {"a": [3, 1]}),
    ({"a": [1, 2]}, {"a": [1, 2.0]}),
    ({"a": [1, 2]}, {"a": [[1, 2], 3]}),
    ({"a": (1, 2)}, {"a": [1, 2]}),
    ({"a": [1]}, {"a": (1,)}),
    ({"a": []}, {"a": []}),
    ({"a": {"$gt": 10}}, {"a": [1, 11]}),
    ({"a": {"$gt": 10, "$lt": 5}}, {"a": [1, 11]}),
    ({"a": {"$in": [9, 11]}}, {"a": [1, 11]}),
    ({"a": {"$ne": 1}}, {"a": [2, 3]}),
    ({"a": {"$nin": [1]}}, {"a": []}),
    # nested objects
    ({"a": {"b": 1}}, {"a": {"b": 1.0}}),
    ({"a": {"b": 1, "c": [True]}}, {"a": {"c": [True], "b": 1}}),
    ({"a": {}}, {"a": {}}),
    ({"a": {"b": 1}}, {"a": [{"b": 1}]}),
    ({"a": {"$eq": {"$ref": 1}}}, {"a": {"$ref": 1}}),
    ({"a": {"$in": [{"$ref": 1}]}}, {"a": {"$ref": 1}}),
    ({"a.b.c": 1}, {"a": {"b": {"c": 1}}}),
    ({"a.b": 1}, {"a.b": 1}),
    ({"a.b": 1}, {"a.b": 1, "a": {"b": 2}}),
    ({"a.b": None}, {"a.b": None, "a": {"b": 2}}),
    ({"a.b": None}, {"a": 5}),
    ({"a.b": {"$exists": False}}, {"a": "text"}),
    ({"a.b": {"$exists": False}}, {"a": [5]}),
    ({"a.": 1}, {"a": {"": 1}}),
    # list segments
    ({"a.0": 5}, {"a": [5, 6]}),
    ({"a.1.b": 5}, {"a": [0, {"b": 5}]}),
    ({"a.0": 5}, {"a": {"0": 5}}),
    ({"a.2": {"$exists": False}}, {"a": [5, 6]}),
    ({"a.00": {"$exists": False}}, {"a": [5]}),
    ({"a.-1": {"$exists": False}}, {"a": [5]}),
    ({"a." + "9" * 5000: {"$exists": False}}, {"a": [5]}),
    ({"a.b": 2}, {"a": [{"b": 1}, {"b": 2}]}),
    ({"a.b": {"$ne": 3}}, {"a": [{"b": 1}, {"b": 2}]}),
    ({"a.b": 2}, {"a": [{"b": [1, 2]}]}),
    ({"a.b.c": 2}, {"a": [{"b": [{"c": 1}, {"c": 2}]}, {"b": 5}]}),
    ({"a.b": None}, {"a": [{"b": 1}, {"c": 2}]}),
    ({"a.b": None}, {"a": []}),
    ({"a.b": {"$exists": True}}, {"a": [{"b": 1}, {"c": 2}]}),
    # NaN
    ({"a": {"$ne": NAN}}, {"a": NAN}),
    ({"a": {"$nin": [NAN, 1]}}, {"a": NAN}),
    ({"a": {"$not": {"$lt": 5}}}, {"a": NAN}),
]

NO: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"a": "x"}, {"a": "y"}),
    ({"a": "x"}, {}),
    ({"a": 1, "b": 2}, {"a": 1}),
    # a bool is no number, text is not bytes
    ({"a": 1}, {"a": True}),
    ({"a": True}, {"a": 1}),
    ({"a": 0}, {"a": False}),
    ({"a": [1]}, {"a": [True]}),
    ({"a": {"b": True}}, {"a": {"b": 1}}),
    ({"a": "x"}, {"a": b"x"}),
    ({"a": {"$in": ["x", "y"]}}, {"a": b"x"}),
    ({"a": {"$in": [0, 1]}}, {"a": True}),
    ({"a": {"$in": [True, False]}}, {"a": 1}),
    ({"a": float(BIG)}, {"a": BIG + 1}),
    ({"a": {"$gt": float(BIG)}}, {"a": BIG}),
    # unlike kinds are never ordered
    ({"a": {"$gt": 0}}, {"a": True}),
    ({"a": {"$gt": 0}}, {"a": "1"}),
    ({"a": {"$lt": 0}}, {"a": None}),
    ({"a": {"$lt": 0}}, {}),
    ({"a": {"$gt": ""}}, {"a": b"x"}),
    ({"a": {"$gt": b""}}, {"a": "x"}),
    ({"a": {"$gt": ""}}, {"a": {"b": "x"}}),
    ({"a": {"$gte": 0}}, {"a": [[1]]}),
    ({"a": {"$gt": 10, "$lt": 20}}, {"a": 20}),
    # NaN
    ({"a": NAN}, {"a": NAN}),
    ({"a": [NAN]}, {"a": [NAN]}),
    ({"a": {"$in": [NAN, 1]}}, {"a": NAN}),
    ({"a": {"$in": [NAN]}}, {"a": NAN}),
    ({"a": {"$gte": NAN}}, {"a": 1}),
    ({"a": {"$lte": 1}}, {"a": NAN}),
    # negations
    ({"a": {"$ne": 1}}, {"a": [1, 2]}),
    ({"a": {"$ne": None}}, {}),
    ({"a": {"$nin": [1, None]}}, {}),
    ({"a": {"$not": 1}}, {"a": [1, 2]}),
    ({"a": {"$not": {"$exists": False}}}, {}),
    ({"$not": {}}, {"a": 1}),
    ({"a.b": {"$ne": 2}}, {"a": [{"b": 1}, {"b": 2}]}),
    # the rest
    ({"a": {"$in": []}}, {"a": 1}),
    ({"a": {"$in": []}}, {}),
    ({"a": {"$exists": True}}, {}),
    ({"a": {"$exists": False}}, {"a": None}),
    ({"a": []}, {"a": [1]}),
    ({"a": [1, 2]}, {"a": [2, 1]}),
    ({"a": 1}, {"a": [[1]]}),
    ({"a": None}, {"a": []}),
    ({"a": {}}, {"a": {"b": 1}}),
    ({"a": {"b": None}}, {"a": {}}),
    ({"a": {"b": None}}, {"a": {"c": None}}),
    ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}),
    ({"a": {"b": 1}}, {"a": 1}),
    ({"a.b": 2}, {"a.b": 1, "a": {"b": 2}}),
    ({"a.b": 1}, {"a": [[{"b": 1}]]}),
    ({"a.b": {"$exists": True}}, {"a": [{"c": 1}]}),
    ({"a.b": None}, {"a": [{"b": 1}]}),
    ({"a.5": 5}, {"a": [5]}),
    ({"$and": [{"a": 1}, {"b": 2}]}, {"a": 1}),
    ({"$or": [{"a": 1}, {"b": 2}]}, {"c": 1}),
]


@pytest.mark.parametrize(("filter", "row"), YES, ids=repr)
def test_it_matches(filter: dict[str, Any], row: dict[str, Any]) -> None:
    assert matches(filter, row)
    assert not matches({"$not": filter}, row)
    check_filter(filter)


@pytest.mark.parametrize(("filter", "row"), NO, ids=repr)
def test_it_does_not_match(filter: dict[str, Any], row: dict[str, Any]) -> None:
    assert not matches(filter, row)
    assert matches({"$not": filter}, row)


def test_every_operator_is_shown_above() -> None:
    shown = repr(YES)
    for name in (*FIELD_OPERATORS, *FILTER_OPERATORS):
        assert f"'{name}'" in shown


def test_rows_may_be_any_mapping() -> None:
    row = MappingProxyType({"a": MappingProxyType({"b": [MappingProxyType({"c": 1})]})})
    assert matches({"a.b.c": 1}, row)
    assert matches({"a": {"b": [{"c": 1}]}}, row)
    assert matches(MappingProxyType({"a": MappingProxyType({"$exists": True})}), row)


def test_enums_are_their_values() -> None:
    class Source(StrEnum):
        WEB = "web"

    class Level(IntEnum):
        HIGH = 3

    assert matches({"source": Source.WEB, "level": {"$gte": Level.HIGH}}, {"source": "web", "level": 3})
    assert matches({"source": {"$in": [Source.WEB, "x"]}}, {"source": "web"})


def test_a_compiled_filter_does_not_change_with_its_source() -> None:
    filter: dict[str, Any] = {"a": {"$in": [[1], 5]}, "b": {"c": [1]}, "$or": [{"d": 1}]}
    match = compile_filter(filter)
    row = {"a": [1], "b": {"c": [1]}, "d": 1}
    assert match(row)
    filter["a"]["$in"][0].append(2)
    filter["b"]["c"].append(2)
    filter["$or"][0]["d"] = 2
    filter["e"] = 1
    assert match(row)


def test_a_row_may_be_nested_much_deeper_than_a_filter() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert not matches({"a": [[1]], "b": {"$ne": {"c": 1}}}, {"a": deep})
    assert not matches({"a.b.c": 1}, {"a": deep})


# --- errors ----------------------------------------------------------------------------------------------------


class Color(Enum):
    RED = 1


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int, inner: Any, wrap: Any) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


ERRORS: list[tuple[Any, str, str]] = [
    # the filter, where, what
    (5, "", "a filter is a dict, not 5 (int)"),
    (None, "", "a filter is a dict, not None"),
    ([{"a": 1}], "", "a filter is a dict, not a list"),
    ({1: 2}, "", "a field is named by a str, not 1 (int)"),
    ({b"a": 2}, "", "a field is named by a str, not b'a' (bytes)"),
    # unknown operators
    ({"price": {"$gtt": 1}}, "price.$gtt", f"no operator '$gtt'. Inside a field: {' '.join(FIELD_OPERATORS)}."),
    ({"$and": [{}, {"price": {"$gtt": 1}}]}, "$and[1].price.$gtt", "there is no operator '$gtt'"),
    ({"a": {"$not": {"$regex": "x"}}}, "a.$not.$regex", "there is no operator '$regex'"),
    ({"a": {"$": 1}}, "a.$", "there is no operator '$'"),
    ({"a": {"$EQ": 1}}, "a.$EQ", "there is no operator '$EQ'"),
    ({"$nor": [{}]}, "$nor", f"there is no operator '$nor'. Beside fields: {' '.join(FILTER_OPERATORS)}."),
    ({"$or": [{"$where": 1}]}, "$or[0].$where", "there is no operator '$where'"),
    # misplaced operators
    ({"$gt": 5}, "$gt", '$gt belongs inside a field. Write {"FIELD": {"$gt": ...}}.'),
    ({"$exists": True}, "$exists", "$exists belongs inside a field"),
    ({"a": {"$or": [1]}}, "a.$or", "$or does not belong inside a field"),
    ({"a": {"$and": [1]}}, "a.$and", "$and does not belong inside a field"),
    ({"a": {"$gt": 1, "b": 2}}, "a", "operators and the plain key 'b' are mixed"),
    ({"a": {"b": 2, "$gt": 1}}, "a", "operators and the plain key 'b' are mixed"),
    ({"a": {"$gt": 1, 5: 2}}, "a", "operators and the plain key 5 (int) are mixed"),
    ({"a": {"b": {"$gt": 1}}}, "a.b.$gt", "the operator '$gt' stands inside a plain value"),
    ({"a": [{"$gt": 1}]}, "a[0].$gt", "the operator '$gt' stands inside a plain value"),
    ({"a": {"$not": [{"$gt": 1}]}}, "a.$not[0].$gt", "the operator '$gt' stands inside a plain value"),
    # operands
    ({"$and": []}, "$and", "the list of $and is empty"),
    ({"$or": []}, "$or", "the list of $or is empty"),
    ({"$or": {"a": 1}}, "$or", "$or takes a list of filters, not a dict"),
    ({"$and": "ab"}, "$and", "$and takes a list of filters, not 'ab'"),
    ({"$and": [{}, 7]}, "$and[1]", "a filter is a dict, not 7 (int)"),
    ({"$not": 7}, "$not", "a filter is a dict, not 7 (int)"),
    ({"$not": [{}]}, "$not", "a filter is a dict, not a list"),
    ({"a": {"$in": "abc"}}, "a.$in", "$in takes a list of values, not 'abc'"),
    ({"a": {"$in": 5}}, "a.$in", "$in takes a list of values, not 5 (int)"),
    ({"a": {"$nin": {"b": 1}}}, "a.$nin", "$nin takes a list of values, not a dict"),
    ({"a": {"$nin": None}}, "a.$nin", "$nin takes a list of values, not None"),
    ({"a": {"$exists": 1}}, "a.$exists", "$exists takes True or False, not 1 (int)"),
    ({"a": {"$exists": None}}, "a.$exists", "$exists takes True or False, not None"),
    ({"a": {"$gt": None}}, "a.$gt", "$gt compares numbers, str or bytes, not None"),
    ({"a": {"$gte": True}}, "a.$gte", "$gte compares numbers, str or bytes, not True"),
    ({"a": {"$lt": [1]}}, "a.$lt", "$lt compares numbers, str or bytes, not a list"),
    ({"a": {"$lte": {"b": 1}}}, "a.$lte", "$lte compares numbers, str or bytes, not a dict"),
    # values
    ({"a": Color.RED}, "a", "a row cannot have the value <Color.RED: 1> (Color)"),
    ({"a": {1, 2}}, "a", "a row cannot have the value a set"),
    ({"a": bytearray(b"x")}, "a", "bytearray"),
    ({"a": Unprintable()}, "a", "a row cannot have the value ? (Unprintable)"),
    ({"a": {"$eq": 1j}}, "a.$eq", "complex"),
    ({"a": {"$in": [1, Color.RED]}}, "a.$in[1]", "Compare with None, bool, int, float, str, bytes, list or dict."),
    ({"a": {"b": [1, Color.RED]}}, "a.b[1]", "Color"),
    ({"a": {"b": {1: 2}}}, "a.b", "the keys of an object are str, not 1 (int)"),
    ({"a": {"$eq": {None: 2}}}, "a.$eq", "the keys of an object are str, not None"),
    ({"$and": ["x" * 5000]}, "$and[0]", "not '" + "x" * 59 + "..."),
]


@pytest.mark.parametrize(("filter", "path", "what"), ERRORS, ids=lambda item: item if isinstance(item, str) else None)
def test_an_error_says_where_and_what(filter: Any, path: str, what: str) -> None:
    for compile_or_check in (compile_filter, check_filter):
        with pytest.raises(ValidationError) as caught:
            compile_or_check(filter)
        assert what in str(caught.value)
        assert str(caught.value).startswith(f"in the filter at {path}: " if path else "in the filter: ")
        assert caught.value.details == {"path": path}
        assert len(str(caught.value)) < 500


DEPTH_CASES: dict[str, Any] = {
    # what to wrap, and how often it fits
    "and": (lambda inner: {"$and": [inner]}, {}, MAX_DEPTH - 1),
    "or": (lambda inner: {"$or": [inner]}, {"a": 1}, MAX_DEPTH - 1),
    "not": (lambda inner: {"$not": inner}, {}, MAX_DEPTH - 1),
}


@pytest.mark.parametrize("case", DEPTH_CASES)
def test_filters_are_nested_32_deep_at_most(case: str) -> None:
    wrap, inner, fits = DEPTH_CASES[case]
    assert matches(nested(fits, inner, wrap), {"a": 1}) is (case != "not" or fits % 2 == 0)
    for depth in (fits + 1, 100_000):
        with pytest.raises(ValidationError, match="nested 32 levels deep at most"):
            compile_filter(nested(depth, inner, wrap))


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"b": inner}])
def test_values_are_nested_32_deep_at_most(wrap: Any) -> None:
    value = nested(MAX_DEPTH - 1, 1, wrap)
    assert matches({"a": value}, {"a": value})
    assert not matches({"a": value}, {"a": nested(MAX_DEPTH - 1, 2, wrap)})
    assert not matches({"a": value}, {"a": nested(1000, 1, wrap)})
    for depth in (MAX_DEPTH, 100_000):
        for filter in ({"a": nested(depth, 1, wrap)}, {"a": {"$in": [nested(depth, 1, wrap)]}}):
            with pytest.raises(ValidationError, match="nested 32 levels deep at most") as caught:
                compile_filter(filter)
            assert caught.value.details["path"].startswith("a")


def test_not_inside_a_field_is_bounded() -> None:
    assert matches({"a": nested(30, 1, lambda inner: {"$not": inner})}, {"a": 1})
    with pytest.raises(ValidationError, match="nested 32 levels deep at most"):
        compile_filter({"a": nested(100_000, 1, lambda inner: {"$not": inner})})


def test_a_filter_that_contains_itself_is_refused() -> None:
    filter: dict[str, Any] = {}
    filter["$and"] = [filter, filter]
    values: list[Any] = []
    values.append(values)
    for wrong in (filter, {"a": values}):
        with pytest.raises(ValidationError, match="nested 32 levels deep at most"):
            compile_filter(wrong)


def test_a_field_has_32_segments_at_most() -> None:
    row = nested(MAX_DEPTH, 1, lambda inner: {"a": inner})
    assert matches({".".join("a" * MAX_DEPTH): 1}, row)
    for count in (MAX_DEPTH + 1, 1_000_000):
        with pytest.raises(ValidationError, match="a field has 32 segments at most") as caught:
            compile_filter({"a." * count: 1})
        assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "condition",
    [{"a": 1}, {}, {"a": {"$gt": 1}}, {"a": {"$exists": True}}, {"a": {"$not": 1}}, {"a": {"$in": [1]}}],
    ids=repr,
)
def test_a_filter_has_1000_conditions_at_most(condition: dict[str, Any]) -> None:
    compile_filter({"$or": [condition] * MAX_CONDITIONS})
    with pytest.raises(ValidationError, match="1000 conditions at most") as caught:
        compile_filter({"$or": [condition] * (MAX_CONDITIONS + 1)})
    assert caught.value.details["path"].startswith(f"$or[{MAX_CONDITIONS}]")
    assert "$in" in caught.value.remediation


def test_shared_parts_do_not_multiply() -> None:
    with pytest.raises(ValidationError, match="1000 conditions at most"):
        compile_filter(nested(MAX_DEPTH - 1, {"a": 1}, lambda inner: {"$or": [inner, inner]}))


def test_in_takes_any_number_of_plain_values_but_not_of_objects() -> None:
    match = compile_filter({"a": {"$in": list(range(100_000))}})
    assert match({"a": 99_999})
    assert not match({"a": 100_000})
    compile_filter({"a": {"$in": [[1]] * (MAX_CONDITIONS - 1)}})
    with pytest.raises(ValidationError, match="1000 conditions at most"):
        compile_filter({"a": {"$in": [[1]] * MAX_CONDITIONS}})


# --- an evaluator written from the definitions -----------------------------------------------------------------
# It interprets the filter again for each row, and compares normal forms instead of values.

MISSING = object()


def normal(value: Any) -> Any:
    """Equal values have equal normal forms, and no others; every NaN is different from everything."""
    if value is MISSING or value is None:
        return ("null",)
    if value is True or value is False:
        return ("bool", str(value))
    if type(value) is float and math.isnan(value):
        return object()
    if type(value) is float and math.isinf(value):
        return ("infinity", str(value))
    if type(value) in (int, float):
        return ("number", Fraction(value))
    if type(value) is dict:
        return ("object", frozenset((key, normal(item)) for key, item in value.items()))
    if type(value) is list:
        return ("list", tuple(normal(item) for item in value))
    return (type(value).__name__, value)


def compared(left: Any, right: Any) -> int | None:
    """-1, 0 or 1; None where there is no order."""
    kinds = [
        "number" if type(item) in (int, float) else type(item).__name__ if type(item) in (str, bytes) else None
        for item in (left, right)
    ]
    if kinds[0] is None or kinds[0] != kinds[1]:
        return None
    if kinds[0] == "number":
        if left != left or right != right:
            return None
        far = 1 << 5000
        left, right = (
            Fraction(item) if not math.isinf(item) else far * (1 if item > 0 else -1) for item in (left, right)
        )
    return -1 if left < right else 0 if left == right else 1


def found(row: Any, field: str) -> list[Any]:
    """All values that a field has in a row; [MISSING] when it has none."""
    if field in row:
        return [row[field]]

    def follow(value: Any, path: list[str]) -> list[Any]:
        if not path:
            return [value]
        head, rest = path[0], path[1:]
        if type(value) is dict:
            return follow(value[head], rest) if head in value else [MISSING]
        if type(value) is list and re.fullmatch("0|[1-9][0-9]*", head):
            return follow(value[int(head)], rest) if int(head) < len(value) else [MISSING]
        if type(value) is list:
            each = [follow(item, path) for item in value if type(item) is dict]
            return list(itertools.chain.from_iterable(each)) or [MISSING]
        return [MISSING]

    return follow(row, field.split("."))


def satisfied(values: list[Any], wanted: Any) -> bool:
    if not (type(wanted) is dict and any(key.startswith("$") for key in wanted)):
        wanted = {"$eq": wanted}
    considered = [*values, *(item for value in values if type(value) is list for item in value)]
    for name, operand in wanted.items():
        if name == "$not":
            good = not satisfied(values, operand)
        elif name == "$exists":
            good = any(value is not MISSING for value in values) == operand
        elif name in ("$eq", "$ne"):
            good = any(normal(value) == normal(operand) for value in considered) == (name == "$eq")
        elif name in ("$in", "$nin"):
            good = any(normal(value) == normal(item) for value in considered for item in operand) == (name == "$in")
        else:
            signs = {"$gt": (1,), "$gte": (0, 1), "$lt": (-1,), "$lte": (-1, 0)}[name]
            good = any(compared(value, operand) in signs for value in considered)
        if not good:
            return False
    return True


def expected(filter: dict[str, Any], row: dict[str, Any]) -> bool:
    for name, wanted in filter.items():
        if name == "$and":
            good = all(expected(item, row) for item in wanted)
        elif name == "$or":
            good = any(expected(item, row) for item in wanted)
        elif name == "$not":
            good = not expected(wanted, row)
        else:
            good = satisfied(found(row, name), wanted)
        if not good:
            return False
    return True


# Few names and values, so that they meet.
NAMES = st.sampled_from(["a", "b", "0", "a.b", ""])
FIELDS = st.sampled_from(["a", "b", "a.b", "a.0", "a.0.b", "a.b.a", "b.a.b", "a.b.0", "a.1", "0", "", "a.", "b.b"])
NUMBERS = st.sampled_from([0, 1, -1, 1.0, 0.5, -0.0, BIG, BIG + 1, float(BIG), 10**400, math.inf, -math.inf, NAN])
TEXTS = st.sampled_from(["", "a", "b", "ab", "\U0001f600"]) | st.sampled_from([b"", b"a", b"b"])
SCALARS = NUMBERS | TEXTS | st.sampled_from([None, True, False])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=6
)
ROWS = st.dictionaries(NAMES, VALUES, max_size=4)
OPERATORS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("$eq", "$ne"), VALUES),
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), NUMBERS | TEXTS),
        **dict.fromkeys(("$in", "$nin"), st.lists(VALUES, max_size=4)),
        "$exists": st.booleans(),
    },
)
CONDITIONS = st.recursive(OPERATORS | VALUES, lambda inner: st.fixed_dictionaries({"$not": inner}), max_leaves=3)
FILTERS = st.recursive(
    st.dictionaries(FIELDS, CONDITIONS, max_size=2),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "$and": st.lists(inner, min_size=1, max_size=3),
            "$or": st.lists(inner, min_size=1, max_size=3),
            "$not": inner,
            "a": CONDITIONS,
        },
    ),
    max_leaves=5,
)


@settings(max_examples=600)
@given(FILTERS, ROWS)
@example({"a": {"$in": [NAN, 1]}}, {"a": [NAN]})
@example({"a.b": {"$ne": None}}, {"a": [{"b": 1}, {}]})
def test_it_agrees_with_the_definitions(filter: dict[str, Any], row: dict[str, Any]) -> None:
    assert matches(filter, row) is expected(filter, row)


@settings(max_examples=300)
@given(FIELDS, CONDITIONS, ROWS)
def test_one_condition_agrees_with_the_definitions(field: str, condition: Any, row: dict[str, Any]) -> None:
    assert matches({field: condition}, row) is expected({field: condition}, row)


@given(FILTERS, ROWS)
def test_negation(filter: dict[str, Any], row: dict[str, Any]) -> None:
    assert matches({"$not": filter}, row) is not matches(filter, row)
    assert matches({"$not": {"$not": filter}}, row) is matches(filter, row)


@given(FIELDS, VALUES, st.lists(VALUES, max_size=4), ROWS)
def test_negated_operators_are_negations(field: str, value: Any, values: list[Any], row: dict[str, Any]) -> None:
    assert matches({field: {"$ne": value}}, row) is not matches({field: value}, row)
    assert matches({field: {"$not": value}}, row) is not matches({field: value}, row)
    assert matches({field: {"$nin": values}}, row) is not matches({field: {"$in": values}}, row)
    assert matches({field: {"$exists": False}}, row) is not matches({field: {"$exists": True}}, row)
    equal_to_any = any(matches({field: {"$eq": item}}, row) for item in values)
    assert matches({field: {"$in": values}}, row) is equal_to_any


@given(st.lists(FILTERS, min_size=1, max_size=4), ROWS)
def test_de_morgan(filters: list[dict[str, Any]], row: dict[str, Any]) -> None:
    negated = [{"$not": filter} for filter in filters]
    assert matches({"$not": {"$and": filters}}, row) is matches({"$or": negated}, row)
    assert matches({"$not": {"$or": filters}}, row) is matches({"$and": negated}, row)


KEYS = st.sampled_from([*FIELD_OPERATORS, *FILTER_OPERATORS, "$gtt", "$", "a", "a.b", ""]) | st.integers(0, 1)
JUNK: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.just(Color.RED) | st.just({1}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def refusal(filter: Any) -> ToonDBError | None:
    try:
        compile_filter(filter)
    except ToonDBError as error:
        return error
    return None


@settings(max_examples=500)
@given(JUNK, ROWS)
def test_anything_compiles_or_is_refused(filter: Any, row: dict[str, Any]) -> None:
    error = refusal(filter)
    if error is None:
        assert matches(filter, row) is expected(filter, row)
    else:
        assert type(error) is ValidationError
        assert error.message.startswith("in the filter")
