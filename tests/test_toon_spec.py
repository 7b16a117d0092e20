"""The published TOON format: what it looks like, round trips of anything it carries, refusals of all else."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import IntEnum, StrEnum
from types import ModuleType
from typing import Any

import pytest
import toon_format
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toondb.toon import DIALECTS, MAX_NESTING, MISSING, ToonSyntaxError, from_toon, to_toon
from toondb_protocol.errors import ErrorCode, UnsupportedFeatureError, ValidationError

USERS = [{"id": 1, "name": "Alice"}, {"id": 2, "name": "Bob"}]


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


def write(records: Any, fields: Any = None, table: str = "t") -> str:
    return to_toon(table, records, fields, dialect="spec")


def read(text: str) -> tuple[str, list[str], list[dict[str, Any]]]:
    return from_toon(text, dialect="spec")


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down; the keys of a dict in any order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) and repr(left) == repr(right)


# --- What it looks like -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "fields", "text"),
    [
        (USERS, None, "t[2]{id,name}:\n  1,Alice\n  2,Bob"),
        (USERS, ["name"], "t[2]{name}:\n  Alice\n  Bob"),
        (USERS, ("name", "id"), "t[2]{name,id}:\n  Alice,1\n  Bob,2"),
        ([], None, "t: []"),
        ([{}, {}], None, "t[2]:\n  -\n  -"),
        ([{"a": None, "b": True, "c": -7, "d": 1.5, "e": "x,y"}], None, 't[1]{a,b,c,d,e}:\n  null,true,-7,1.5,"x,y"'),
        ([{"a": "1", "b": "true", "c": "", "d": "- x"}], None, 't[1]{a,b,c,d}:\n  "1","true","","- x"'),
        ([{"a": 1}, {"a": 2, "b": 3}], None, "t[2]:\n  - a: 1\n  - a: 2\n    b: 3"),
        ([{"a": {"x": 1, "y": 2}}, {"a": {"x": 3, "y": 4}}], None, "t[2]{a{x,y}}:\n  1,2\n  3,4"),
        ([{"a": [1, 2]}], None, "t[1]:\n  - a[2]: 1,2"),
        ([{"a b": 1, "ä": 2}], None, 't[1]{"a b","ä"}:\n  1,2'),
    ],
)
def test_looks(records: list[dict[str, Any]], fields: list[str] | None, text: str) -> None:
    assert write(records, fields) == text
    names = list(fields) if fields is not None else list({name: None for record in records for name in record})
    assert read(text) == ("t", names, [{name: row[name] for name in names if name in row} for row in records])


@pytest.mark.parametrize("table", ["", "a b", "t[1]{x}:", "a:b", "#t", "- t", "true", "1", "\ufeff", 'say "t"', "a\nb"])
def test_any_table_name(table: str) -> None:
    assert read(write(USERS, table=table)) == (table, ["id", "name"], USERS)


def test_it_is_what_the_library_writes() -> None:
    assert to_toon("users", USERS, dialect="spec") == toon_format.dumps({"users": USERS})


def test_classic_is_the_default() -> None:
    assert to_toon("t", USERS) == to_toon("t", USERS, dialect="classic") == "t[2]{id,name}:1,Alice;2,Bob"
    assert from_toon("t[0]{a}:") == from_toon("t[0]{a}:", dialect="classic")


@pytest.mark.parametrize("call", [lambda: to_toon("t", [], dialect="csv"), lambda: from_toon("", dialect="csv")])
def test_an_unknown_dialect(call: Callable[[], object]) -> None:
    with pytest.raises(ValidationError, match="'csv'") as caught:
        call()
    assert all(repr(name) in caught.value.remediation for name in DIALECTS)


def test_values_come_as_their_base_types() -> None:
    records: list[Any] = [
        UserDict({Colour.RED: Colour.RED, "level": Level.HIGH, "list": (1, (2,)), "dict": OrderedDict(a=Level.HIGH)})
    ]
    assert same(read(write(records))[2], [{"red": "red", "level": 3, "list": [1, [2]], "dict": {"a": 3}}])


def test_records_from_a_generator_and_absent_fields() -> None:
    records = [{"a": 1, "b": MISSING}, {"b": 2}]
    assert read(write(record for record in records)) == ("t", ["a", "b"], [{"a": 1}, {"b": 2}])


# --- Round trips ------------------------------------------------------------------------------------------

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test is timed
any_text = st.text(st.characters(exclude_categories=["Cs"]))
tricky_text = st.one_of(
    any_text,
    st.text(alphabet=' ,:"\\{}[]\n\r\t-#|0123456789.eEtrufalsn\u00a0\u2028\x85\ufeff', max_size=8),
    st.sampled_from(["true", "null", "0", "-0", "1e5", "1.0", "00", "", "[]", "{}", "[1]: x", "a: b", "-", "- a", "#"]),
)
carried_floats = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda value: not value.is_integer() or abs(value) >= 1e21
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**590, 10**600 - 1), carried_floats, tricky_text, tricky_text
)


def nested_in(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def wrap(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=4) | st.dictionaries(tricky_text, inner, max_size=4)

    return leaves | st.recursive(leaves, wrap, max_leaves=10)


def tables_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[list[str], list[dict[str, Any]]]]:
    def rows(names: list[str]) -> st.SearchStrategy[tuple[list[str], list[dict[str, Any]]]]:
        columns = dict.fromkeys(names, values)
        uniform, sparse = st.fixed_dictionaries(columns), st.fixed_dictionaries({}, optional=columns)
        return st.tuples(st.just(names), st.lists(uniform, max_size=6) | st.lists(sparse, max_size=6))

    return st.lists(tricky_text, max_size=4, unique=True).flatmap(rows)


@unhurried
@given(tricky_text, tables_of(nested_in(scalars)))
@example("t", (["a"], [{"a": {"x": 1, "y": 2}}, {"a": {"y": 3, "x": 4}}]))
@example("t", (["a"], [{"a": {}}, {"a": {}}]))
@example("t", (["a"], [{"a": []}, {"a": [[]]}]))
@example("t", (["a"], [{"a": [{"b": [{"c": 1}]}, {}]}]))
@example("t", (["a"], [{"a": 1e21}, {"a": -5e-324}, {"a": 1e-7}]))
def test_round_trip(table: str, content: tuple[list[str], list[dict[str, Any]]]) -> None:
    _, records = content
    text = to_toon(table, records, dialect="spec")
    names = list({name: None for record in records for name in record})
    assert same(from_toon(text, dialect="spec"), (table, names, records))
    assert [list(record) for record in read(text)[2]] == [[n for n in names if n in record] for record in records]
    assert text.encode().decode() == text


anything = st.one_of(
    scalars,
    st.floats(),
    st.binary(max_size=4),
    st.text(st.characters(exclude_categories=())),
    st.integers(10**599, 10**5000),
    st.dates(),
    st.decimals(),
    st.tuples(st.integers()),
)


@unhurried
@given(tables_of(nested_in(anything)), st.booleans())
def test_anything_comes_back_or_is_refused(content: tuple[list[str], list[dict[str, Any]]], with_fields: bool) -> None:
    fields, records = content
    refused = None
    try:
        text = write(records, fields if with_fields else None)
    except ValidationError as error:
        refused = error
    if refused is not None:
        assert refused.remediation
        assert str(refused).encode()
        assert repr(refused.to_wire()).encode()
        assert refused.details["field"] in {name.encode("utf-8", "backslashreplace").decode() for name in fields}
        return
    names = fields if with_fields else list({name: None for record in records for name in record})
    table, read_names, read_records = read(text)
    assert (table, read_names) == ("t", names)
    assert same(read_records, as_lists(records))


def as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = wrap(1)
    for _ in range(depth - 1):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"k": value}, lambda value: [{"k": value}, 1]])
def test_the_deepest_nesting_comes_back(wrap: Callable[[Any], Any]) -> None:
    per_level = 2 if isinstance(wrap(1), list) and len(wrap(1)) == 2 else 1
    records = [{"a": nested(MAX_NESTING // per_level, wrap)}]
    assert read(write(records))[2] == records


# --- Refusals: writing ------------------------------------------------------------------------------------

LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "holds nan, and the published TOON format would write null"),
        (-math.inf, "holds -inf"),
        (1.0, "holds the float 1.0, which the published TOON format writes as 1: it would come back as an int"),
        (-0.0, "holds the float -0.0, which the published TOON format writes as 0"),
        (1e20, "holds the float 1e+20"),
        (10**600, "holds an int of more than 600 digits"),
        (-(10**5000), "holds an int of more than 600 digits"),
        ("\ud800", "holds text with a lone surrogate"),
        ("\ud83d\ude00", "holds text with a lone surrogate"),
        (b"x", "holds a value of type bytes"),
        (bytearray(b"x"), "holds a value of type bytearray"),
        (date(2024, 1, 1), "holds a value of type date"),
        (Decimal(1), "holds a value of type Decimal"),
        ({1}, "holds a value of type set"),
        ({1: 2}, "holds a dict with a key of type int"),
        ({None: 2}, "holds a dict with a key of type NoneType"),
        ({"\ud800": 2}, "holds text with a lone surrogate"),
        (nested(MAX_NESTING + 1, lambda value: [value]), "is nested more than 128 deep"),
        (LOOP, "is nested more than 128 deep, or contains itself"),
    ],
    ids=lambda item: item[:40] if isinstance(item, str) and item.isascii() else "value",
)
def test_values_that_cannot_be_carried(value: Any, says: str) -> None:
    for held in (value, [value], {"x": (value,)}):
        with pytest.raises(ValidationError, match=re.escape(says)) as caught:
            write([{"the field": 1}, {"the field": held}])
        assert caught.value.message.startswith('Field "the field" of record 1 ')
        assert caught.value.details["field"] == "the field"
        assert caught.value.details["record"] == 1
        assert 'dialect="classic"' in caught.value.remediation


@pytest.mark.parametrize(
    ("records", "fields", "says"),
    [
        ([], ["a", "b"], 'Field "a" is in no record'),
        ([{"a": 1}], ["a", "b"], 'Field "b" is in no record'),
        ([{}], ["a"], 'Field "a" is in no record'),
        ([{"b": 1}, {"a": 1, "b": 2}], ["a", "b"], 'Field "a" is absent from the first records'),
        ([{"a": 1}], ["a", "a"], '"a" is named twice'),
        ([{1: 1}], None, "fields a list of str"),
        ([{"\ud800": 1}], None, r'The name of a field, "\\ud800", holds a lone surrogate'.replace("\\\\", "\\")),
        ({"a": 1}, None, "not one dict"),
        ([1], None, "Record 0 is of type int"),
    ],
)
def test_tables_that_cannot_be_carried(records: Any, fields: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)) as caught:
        write(records, fields)
    assert str(caught.value).encode()


def test_table_names_that_cannot_be_carried() -> None:
    with pytest.raises(ValidationError, match=r"table name.*surrogate"):
        write([], table="\udc00")
    with pytest.raises(ValidationError, match="table name must be a str"):
        write([], table=1)  # type: ignore[arg-type]


def test_little_stack_is_no_recursion_error() -> None:
    value = nested(MAX_NESTING, lambda value: [{"k": value}][0])

    def deeper(frames: int) -> str:
        if frames:
            return deeper(frames - 1)
        try:
            return write([{"a": value}])
        except ValidationError as error:
            return error.message

    def most_frames(frames: int) -> int:
        try:
            return most_frames(frames + 1)
        except RecursionError:
            return frames

    room = most_frames(0)
    answers = [deeper(frames) for frames in range(0, room - 40, 20)]
    assert answers[0].startswith("t[1]{a{k{")
    assert answers[-1].startswith('Field "a" of record 0 is nested too deep for the stack')
    said = re.compile(
        r't\[1\]\{a\{|Field "a" of record 0 is nested too deep|The table cannot be written in the published'
    )
    assert [answer for answer in answers if not said.match(answer)] == []


# --- Refusals: reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 0, "expected one table"),
        ("t", 0, "the root is no object of one key"),
        ("[2]: 1,2", 0, "the root is no object of one key"),
        ("a: []\nb: []", 0, "the root is no object of one key"),
        ("t: 1", 0, 'the value of "t" is no array'),
        ("t:\n  a: 1", 0, 'the value of "t" is no array'),
        ("t[1:]{a}:\n  x: 1", 0, 'the value of "t" is no array'),
        ("t[1]: 1", 0, "record 0 is no object"),
        ("t[2]:\n  - a: 1\n  - 2", 0, "record 1 is no object"),
        ("t[2]{a}:\n  1", 0, "Declared length 2"),
        ("t[1]{a}:\n  1\n  2", 0, "Declared length 1"),
        ("t[1]{a,b}:\n  1", 11, "Expected 2 values but found 1"),
        ("t[1]{a,a}:\n  1,2", 0, "Duplicate field name"),
        ("t[1]:\n  - a: 1\n    a: 2", 15, "Duplicate key"),
        ('t[1]{a}:\n  "x', 9, "Unterminated string"),
        ('t[1]{a}:\n  "\\x"', 9, "Invalid escape"),
        ('t[1]{a}:\n  "\\ud800"', 9, "Surrogate escape"),
        ("t[2]{a}:\n  1\n\n  2", 13, "Blank line"),
        ("t[1]{a}:\n\t1", 9, "Tabs are not allowed"),
        ("t[1]{a}:\n   1", 9, "multiple of 2"),
        ("t[1]{a}:\n  1e400", 9, "out of range"),
        (f"t[1]{{a}}:\n  {'9' * 5000}", 9, "digits"),
        (f"t[{'9' * 5000}]:", 0, "digits"),
        (f"t[1]{'{a' * 100_000}:", 0, "nested too deep"),
        ("\n".join("  " * depth + "a:" for depth in range(2000)), 0, "nested too deep"),
        ("t[1]:" + "".join("\n" + "  " * depth + "- [1]:" for depth in range(1, 2000)), 0, "nested too deep"),
        ("t[1]{a}:\n  \ud800", 11, "without lone surrogates"),
        ("t[2]{name,email}:Alice,a@example.com;Bob,b@example.com", 0, "Unexpected content"),
    ],
    ids=lambda item: repr(item)[:40],
)
def test_refused_texts(text: str, position: int, says: str) -> None:
    with pytest.raises(ToonSyntaxError, match=re.escape(says)) as caught:
        read(text)
    error = caught.value
    assert error.code is ErrorCode.VALIDATION
    assert error.position == position
    assert error.details["line"] == text.count("\n", 0, position) + 1
    assert len(error.message) < 500
    assert str(error).encode()


def test_bytes_are_not_text() -> None:
    with pytest.raises(ValidationError, match=r"not bytes.*decode"):
        from_toon(b"t: []", dialect="spec")  # type: ignore[arg-type]


def reads_or_refuses(text: str) -> None:
    position, whole_floats = 0, False
    try:
        table, fields, records = read(text)
    except ToonSyntaxError as error:
        position = -1 if error.position is None else error.position
    else:  # whatever was read can be written and is stable, but for floats that others may write as 1.0
        try:
            written = write(records, fields, table)
        except ValidationError as error:
            whole_floats = "holds the float" in error.message
            written = text
        assert whole_floats or same(read(written), (table, fields, records))
    assert 0 <= position <= len(text)


SAMPLE = 't[2]:\n  - a: "x,\\n"\n    b[2]{c,d{e}}:\n      1,true\n      null,-1.5\n  -\n    # note'


def test_every_single_edit_reads_or_is_refused() -> None:
    for position in range(len(SAMPLE) + 1):
        before, after = SAMPLE[:position], SAMPLE[position:]
        reads_or_refuses(before)
        reads_or_refuses(before + after[1:])
        for character in ',:"\\{}[]-#0.e \n\r\t|\x00\ud800\ufeff':
            reads_or_refuses(before + character + after)
            reads_or_refuses(before + character + after[1:])


@unhurried
@given(
    st.text(st.characters(exclude_categories=()))
    | st.text(alphabet='t[]{}:,"\\u01e-.# \n\t|').map(lambda end: "t[2]{a,b}:\n  " + end)
    | st.lists(st.sampled_from(["t[1]", "{a", "}", ":", "\n", "  ", "- ", "a: 1", '"', ",", "1", "[1]"])).map("".join)
)
def test_any_text_reads_or_is_refused(text: str) -> None:
    reads_or_refuses(text)


# --- The library ------------------------------------------------------------------------------------------


def test_it_is_imported_only_when_used() -> None:
    code = "from toondb.toon import to_toon; to_toon('t', [])\nimport sys; print('toon_format' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("module", "says"), [(None, "not installed"), (ModuleType("toon_format"), "newer version")])
def test_without_the_library(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, says: str) -> None:
    monkeypatch.setitem(sys.modules, "toon_format", module)
    for call in (lambda: write(USERS), lambda: read("t: []")):
        with pytest.raises(UnsupportedFeatureError, match=says) as caught:
            call()
        assert "pip install 'toondb-client[toon]'" in caught.value.remediation
    assert to_toon("t", []) == "t[0]{}:"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t[2]{id,name}:\n  1,Alice\n  2,Rob", 'reads back something else in field "name" of record 1'),
        ("t[2]:\n  - id: 1\n    name: Alice\n  - id: 2", 'reads back something else in field "name" of record 1'),
        ("t[2]:\n  - id: 1\n    name: Alice\n  - 2", "reads back something else in record 1"),
        ("t[1]{id,name}:\n  1,Alice", "reads back something else in its table"),
        ("other: []", "reads back something else in its table"),
        ("[]", "reads back something else in its table"),
        ("t[2]{id,name}:\n  1", "could not write or read it: line 2: Expected 2 values"),
    ],
)
def test_a_version_that_loses_data_is_noticed(monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    # The version under test has no such defect that is known, so one is put in.
    monkeypatch.setattr(toon_format, "dumps", lambda value: text)
    with pytest.raises(ValidationError, match=re.escape(says)):
        write(USERS)
