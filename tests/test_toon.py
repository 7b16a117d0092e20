"""The TOON notation: the guides' examples byte for byte, round trips of anything, refusals with a position."""

from __future__ import annotations

import doctest
import math
import pickle
import re
import sys
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from datetime import date
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toondb import toon
from toondb.toon import (
    MAX_NESTING,
    MISSING,
    ToonSyntaxError,
    encode_header,
    encode_row,
    from_toon,
    to_toon,
)
from toondb_protocol.errors import ErrorCode, ValidationError, error_class

# --- The guides' examples ---------------------------------------------------------------------------------

USERS = [
    {"id": 1, "name": "Alice", "email": "alice@example.com"},
    {"id": 2, "name": "Bob", "email": "bob@example.com"},
]
LAPTOP, MOUSE = {"name": "Laptop", "price": 999}, {"name": "Mouse", "price": 25}


@pytest.mark.parametrize(
    ("table", "records", "fields", "text"),
    [
        ("users", USERS, ["name", "email"], "users[2]{name,email}:Alice,alice@example.com;Bob,bob@example.com"),
        (
            "users",
            [{"name": "Alice", "email": "alice@ex.com"}, {"name": "Bob", "email": "bob@ex.com"}],
            None,
            "users[2]{name,email}:Alice,alice@ex.com;Bob,bob@ex.com",
        ),
        ("result", [LAPTOP], ["name", "price"], "result[1]{name,price}:Laptop,999"),
        ("result", [MOUSE], None, "result[1]{name,price}:Mouse,25"),
        ("result", [LAPTOP, MOUSE], None, "result[2]{name,price}:Laptop,999;Mouse,25"),
        ("result", [], ["a", "b"], "result[0]{a,b}:"),
    ],
)
def test_guide_examples(table: str, records: list[dict[str, Any]], fields: list[str] | None, text: str) -> None:
    assert to_toon(table, records, fields) == text
    name, names, read = from_toon(text)
    assert name == table
    assert names == (fields or list(records[0]))
    assert read == [{field: record[field] for field in names} for record in records]


def test_docs() -> None:
    page = Path(__file__).parent.parent / "docs" / "toon.md"
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.attempted > 10
    assert result.failed == 0


# --- Every kind of value ----------------------------------------------------------------------------------

CELLS: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    (False, "false"),
    (0, "0"),
    (-7, "-7"),
    (2**64, "18446744073709551616"),
    (10**600 - 1, "9" * 600),
    (10**600, f'i"{10**600:x}"'),
    (-(16**600), f'i"-1{"0" * 600}"'),
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (0.1 + 0.2, "0.30000000000000004"),
    (1e300, "1e+300"),
    (5e-324, "5e-324"),
    (math.inf, "Infinity"),
    (-math.inf, "-Infinity"),
    ("", '""'),
    ("Alice", "Alice"),
    ("San José", "San José"),
    ("https://a.b/c?d=[e]{f}", "https://a.b/c?d=[e]{f}"),
    ("a,b", '"a,b"'),
    ("a;b", '"a;b"'),
    ('say "hi"', r'"say \"hi\""'),
    ("C:\\dir", r'"C:\\dir"'),
    (" padded ", '" padded "'),
    ("\u3000", '"\u3000"'),
    ("a\u00a0b", "a\u00a0b"),
    ("\b\f\n\r\t", r'"\b\f\n\r\t"'),
    ("\x00\x1f\x7f\x85", r'"\u0000\u001f\u007f\u0085"'),
    ("\u2028\u2029\ufeff", r'"\u2028\u2029\ufeff"'),
    ("\ud800", r'"\ud800"'),
    ("\udc00\ud800", r'"\udc00\ud800"'),
    ("\ud83d\ude00", r'"\u{d83d}\ude00"'),
    ("\U0001f600", "\U0001f600"),
    ("999", '"999"'),
    ("-1", '"-1"'),
    ("1e5", '"1e5"'),
    ("1.5", '"1.5"'),
    ("true", '"true"'),
    ("null", '"null"'),
    ("NaN", '"NaN"'),
    ("-Infinity", '"-Infinity"'),
    ("007", "007"),
    ("1_000", "1_000"),
    ("+1", "+1"),
    ("0x10", "0x10"),
    ("1.", "1."),
    (".5", ".5"),
    ("-", "-"),
    ("\u0661", "\u0661"),
    ("True", "True"),
    ("nan", "nan"),
    ("nullable", "nullable"),
    ([], 'j"[]"'),
    ({}, 'j"{}"'),
    ({"a": [1, 2.5, None, True]}, r'j"{\"a\":[1,2.5,null,true]}"'),
    ([{"x,y": "a;b\n"}], r'j"[{\"x,y\":\"a;b\\n\"}]"'),
    ('j"[]"', r'"j\"[]\""'),
    (["é\ud83d\ude00\U0001f600"], 'j"[\\"é\\u{d83d}\\ude00\U0001f600\\"]"'),
    ([math.inf], 'j"[Infinity]"'),
    (b"", 'b""'),
    (b"text, more", 'b"text, more"'),
    ("é".encode(), 'b"é"'),
    (b"\x00\n", r'b"\u0000\n"'),
    (b"\xff\xfe", 'b64"//4="'),
    (MISSING, ""),
]


@pytest.mark.parametrize(("value", "cell"), CELLS, ids=[repr(cell)[:40] for _, cell in CELLS])
@pytest.mark.parametrize("rows", [1, 20])  # columns of many rows are encoded in another way
def test_cells(value: Any, cell: str, rows: int) -> None:
    record = {} if value is MISSING else {"a": value}
    assert encode_row([value, value]) == f"{cell},{cell}"
    text = to_toon("t", [record] * rows, ["a"])
    assert text == f"t[{rows}]{{a}}:" + ";".join([cell] * rows)
    _, _, records = from_toon(text)
    assert records == [record] * rows
    if record:
        assert type(records[0]["a"]) is type(value)
        assert repr(records[0]["a"]) == repr(value)  # tells -0.0 from 0.0


def test_nan() -> None:
    text = to_toon("t", [{"a": math.nan, "b": [math.nan]}])
    assert text == 't[1]{a,b}:NaN,j"[NaN]"'
    record = from_toon(text)[2][0]
    assert math.isnan(record["a"])
    assert math.isnan(record["b"][0])


def test_values_that_come_back_as_their_base_type() -> None:
    class Level(IntEnum):
        HIGH = 3

    class Colour(StrEnum):
        RED = "re,d"

    class Text(str):
        def __str__(self) -> str:
            return "something else"

    class Real(float):
        def __repr__(self) -> str:
            return "something else"

    values = [Level.HIGH, Colour.RED, Text("x"), Real(1.5), OrderedDict(a=1), (1, (2,)), bytearray(b"x")]
    expected = [3, "re,d", "x", 1.5, {"a": 1}, [1, [2]], b"x"]
    names = list("abcdefg")
    (record,) = from_toon(to_toon("t", [dict(zip(names, values, strict=True))]))[2]
    assert list(record.values()) == expected
    assert [type(value) for value in record.values()] == [int, str, str, float, dict, list, bytes]
    assert encode_row([memoryview(b"xyz")[::2]]) == 'b"xz"'
    assert encode_header(Colour.RED, 1, [Text("x")]) == '"re,d"[1]{x}:'


def test_a_field_that_is_absent_differs_from_one_that_is_none() -> None:
    records: list[dict[str, Any]] = [{"a": 1}, {"a": None, "b": ""}, {}]
    text = to_toon("t", records)
    assert text == 't[3]{a,b}:1,;null,"";,'
    assert from_toon(text) == ("t", ["a", "b"], records)


@pytest.mark.parametrize(
    ("records", "fields", "text"),
    [
        ([], None, "t[0]{}:"),
        ([{}], None, "t[1]{}:"),
        ([{}, {}, {}], None, "t[3]{}:;;"),
        ([{}], ["a"], "t[1]{a}:"),
        ([{}, {}], ["a"], "t[2]{a}:;"),
        ([{"": ""}], None, 't[1]{""}:""'),
        ([{"": 1, " ": 2, "a b": 3}], None, 't[1]{""," ",a b}:1,2,3'),
        ([{"true": 1, "1": 2}], None, "t[1]{true,1}:1,2"),
        ([{"a,b": 1, "c}": 2, "d:e": 3}], None, 't[1]{"a,b","c}","d:e"}:1,2,3'),
    ],
)
def test_shapes(records: list[dict[str, Any]], fields: list[str] | None, text: str) -> None:
    assert to_toon("t", records, fields) == text
    table, names, read = from_toon(text)
    assert (table, read) == ("t", records)
    assert names == (fields or list(records[0] if records else []))


def test_union_of_fields_is_in_first_seen_order() -> None:
    assert to_toon("t", [{"b": 1}, {"a": 2, "b": 3}]) == "t[2]{b,a}:1,;3,2"


def test_any_mapping_and_any_iterable() -> None:
    calls = defaultdict(int, a=1)
    several: list[Mapping[str, Any]] = [calls, UserDict({"b": 2})]
    assert to_toon("t", iter(several)) == "t[2]{a,b}:1,;,2"
    assert dict(calls) == {"a": 1}  # asking for b must not have added it


def test_streaming_gives_the_same_text() -> None:
    rows = [encode_row([record.get(name, MISSING) for name in ("name", "email")]) for record in USERS]
    streamed = encode_header("users", len(rows), ["name", "email"]) + ";".join(rows)
    assert streamed == to_toon("users", USERS, ["name", "email"])


def test_missing_is_one_object() -> None:
    assert repr(MISSING) == "MISSING"
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING


# --- Round trips of anything ------------------------------------------------------------------------------

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test is timed
any_text = st.text(st.characters(exclude_categories=()))  # surrogates too
tricky_text = st.one_of(
    any_text,
    st.text(alphabet=' ,;:"\\{}[]\n\t-0123456789.eEtrufalsnINy\u00a0\ud83d\ude00jb4i', max_size=8),
    st.sampled_from(["true", "null", "NaN", "Infinity", "-Infinity", "0", "-0", "1e5", "1.0", "00", "1e", ""]),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), tricky_text, tricky_text)
values = st.one_of(
    scalars,
    st.binary(max_size=20),
    st.integers(10**590, 10**610),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tricky_text, inner, max_size=4),
        max_leaves=10,
    ),
)
tables = st.lists(tricky_text, max_size=4, unique=True).flatmap(
    lambda names: st.tuples(
        st.just(names), st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)), max_size=9)
    )
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down (1 == True == 1.0 would not do)."""
    return bool(left == right) and repr(left) == repr(right)


@unhurried
@given(tricky_text, tables)
def test_round_trip(table: str, content: tuple[list[str], list[dict[str, Any]]]) -> None:
    fields, records = content
    records = [{name: record[name] for name in fields if name in record} for record in records]
    text = to_toon(table, records, fields)
    assert same(from_toon(text), (table, fields, records))
    assert text == encode_header(table, len(records), fields) + ";".join(
        encode_row([record.get(name, MISSING) for name in fields]) for record in records
    )
    assert len(text.splitlines()) == 1
    assert text.encode().decode() == text


@unhurried
@given(st.lists(tricky_text, min_size=6, max_size=12))
@example(["a"] * 5 + ["1"])
@example(["1"] + ["a"] * 5)
@example(["a ", "a", " a", "a", "a", "a"])
@example(["a", "a;b", "c", "d", "e", "f"])
@example(["a", "", "c", "d", "e", "f"])
def test_round_trip_of_a_column_of_text(column: list[str]) -> None:
    records = [{"a": value} for value in column]
    text = to_toon("t", records)
    assert same(from_toon(text)[2], records)
    assert text == f"t[{len(column)}]{{a}}:" + ";".join(encode_row([value]) for value in column)


# --- Refusals: reading ------------------------------------------------------------------------------------

BAD_TEXTS: list[tuple[str, int, str]] = [
    ("", 0, "a table name"),
    ("\ufefft[0]{}:", 0, "a table name"),
    (" t[0]{}:", 0, "a table name without space"),
    ("t [0]{}:", 1, "a table name without space"),
    ("t[0]{a, b}:", 7, "a field name without space"),
    ("t", 1, "row count"),
    ("t[-1]{}:", 1, "row count"),
    ("t[01]{}:", 1, "row count"),
    ("t[]{}:", 1, "row count"),
    ("t[\u0661]{}:", 1, "row count"),
    ("t[9999999999999999999]{}:", 1, "row count"),
    ("t[0]", 4, "'{'"),
    ("t[0]{", 5, "a field name"),
    ("t[0]{a", 6, "',' or '}'"),
    ("t[0]{a,}:", 7, "a field name"),
    ("t[0]{a,b,a}:", 9, 'other than "a"'),
    ('t[0]{a,"\\u0061"}:', 7, 'other than "a"'),
    ("t[0]{a}", 7, "':'"),
    ("t[0]{a}:1", 8, "the count is 0"),
    ("t[0]{a}:\n", 8, "the count is 0"),
    ('"t', 2, "to close the string that begins at position 0"),
    ('t[0]{"a\\x"}:', 7, "one of the escapes"),
    ('t[1]{a}:"x', 10, "to close the string that begins at position 8"),
    ('t[1]{a}:"\\', 9, "one of the escapes"),
    ('t[1]{a}:"\\u12"', 9, "one of the escapes"),
    ('t[1]{a}:"\\\\\\x"', 11, "one of the escapes"),
    ('t[1]{a}:j"\\x"', 10, "one of the escapes"),
    ('t[1]{a}:"\\\n"', 9, "one of the escapes"),
    ('t[1]{a}:"\\u{110000}"', 9, "one of the escapes"),
    ('t[1]{a}:"\\u{}"', 9, "one of the escapes"),
    ('t[1]{a}:"a\nb"', 10, r"the escape \u000a"),
    ('t[1]{a}:"\ud800"', 9, r"the escape \ud800"),
    ('t[1]{a}:"x"y', 11, "after a string"),
    ('t[1]{a}:"x" ', 11, "after a string"),
    ('t[1]{a}:x"y"', 9, "quotes around this cell"),
    ('t[1]{a}:J"[]"', 9, "quotes around this cell"),
    ("t[1]{a}:a\\,b", 9, "quotes around this cell"),
    ("t[1]{a}:a\n", 9, "quotes around this cell"),
    ("t[1]{a}: a", 8, "without space before"),
    ("t[1]{a,b}:a, b", 12, "without space before"),
    ("t[1]{a,b}:a ,b", 11, "without space after"),
    ("t[1]{a}:a\u00a0", 9, "without space after"),
    ("t[2]{a}:1", 9, "2 rows, not 1"),
    ("t[2]{a}:1;2;3", 11, "the end of the text after 2 rows"),
    ("t[2]{a}:1;2;", 11, "the end of the text after 2 rows"),
    ("t[1]{a,b}:1", 11, "a row of 2 cells, not 1"),
    ("t[2]{a,b}:1;2,3", 11, "a row of 2 cells, not 1"),
    ("t[1]{a}:1,2", 9, "the end of a row of 1 cells"),
    ('t[1]{a}:"1",', 11, "the end of a row of 1 cells"),
    ("t[1]{}:x", 8, "a row of 0 cells"),
    ("t[2]{}:,;", 7, "the end of a row of 0 cells"),
    ("t[2]{}:", 7, "2 rows, not 1"),
    ('t[1]{a}:j"1"', 8, "object or array"),
    ('t[1]{a}:j"[1"', 8, "object or array"),
    (f't[1]{{a}}:j"{"[" * 100_000}"', 8, "object or array"),
    ('t[1]{a}:b"\\ud800"', 8, "UTF-8"),
    ('t[1]{a}:b64"é"', 8, "base64"),
    ('t[1]{a}:b64"AAA"', 8, "base64"),
    ('t[1]{a}:i""', 8, "hexadecimal"),
    ('t[1]{a}:i"0x1"', 8, "hexadecimal"),
    ('t[1]{a}:i"1_0"', 8, "hexadecimal"),
    (f"t[1]{{a}}:{'9' * 5000}", 8, "hexadecimal"),
]


@pytest.mark.parametrize(("text", "position", "expected"), BAD_TEXTS, ids=[repr(row[0])[:40] for row in BAD_TEXTS])
def test_refused_texts(text: str, position: int, expected: str) -> None:
    with pytest.raises(ToonSyntaxError, match=re.escape(expected)) as caught:
        from_toon(text)
    error = caught.value
    assert error.position == position
    assert error.expected is not None
    assert error.expected in error.message
    assert f"position {position}:" in error.message
    assert str(error).encode()  # can be printed and sent, whatever the text


def test_the_error_is_a_validation_error_with_its_code() -> None:
    with pytest.raises(ValueError) as caught:
        from_toon("nothing")
    error = caught.value
    assert isinstance(error, ValidationError)
    assert isinstance(error, ToonSyntaxError)
    assert error.code is ErrorCode.VALIDATION
    assert error_class(ErrorCode.VALIDATION) is ValidationError
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.position) == (ToonSyntaxError, str(error), error.position)
    assert ToonSyntaxError("x").position is None
    assert ToonSyntaxError("x").expected is None


def test_bytes_are_not_text() -> None:
    with pytest.raises(ValidationError, match=r"not bytes.*decode"):
        from_toon(b"t[0]{}:")  # type: ignore[arg-type]


SAMPLE = (
    't,1[3]{name,"a:b",c}:Al ice,"x,\\n\\u00e9",-1.5e3;null,j"{\\"k\\":[1,2]}",b"\\u{1f600}";,b64"/w==",i"-f"'
).replace("t,1", '"t,1"')


def reads_or_refuses(text: str) -> None:
    try:
        table, fields, records = from_toon(text)
    except ToonSyntaxError as error:
        position = error.position
    else:  # whatever was read must be writable, and then be stable
        position = 0
        assert same(from_toon(to_toon(table, records, fields)), (table, fields, records))
    assert position is not None
    assert 0 <= position <= len(text)


def test_every_single_edit_reads_or_is_refused() -> None:
    from_toon(SAMPLE)
    for position in range(len(SAMPLE) + 1):
        before, after = SAMPLE[:position], SAMPLE[position:]
        reads_or_refuses(before)
        reads_or_refuses(before + after[1:])
        for character in ',;:"\\{}[]0-9.eE+ufnN aj\n\x00\u00a0\u0661\ud800\ufeff':
            reads_or_refuses(before + character + after)
            reads_or_refuses(before + character + after[1:])


@unhurried
@given(any_text | st.text(alphabet='t[]{}:,;"\\u01e-.nj b').map(lambda end: "t[2]{a,b}:" + end))
def test_any_text_reads_or_is_refused(text: str) -> None:
    reads_or_refuses(text)


@unhurried
@given(st.integers(1, 3), st.text(alphabet='ab10-.e,,;; \\"\n\u00a0', max_size=12))
def test_the_quick_and_the_thorough_reader_agree(count: int, body: str) -> None:
    for fields in (["a"], ["a", "b"]):
        quick = toon._split_rows(body, 0, count, fields)
        if quick is not None:
            assert same(quick, toon._scan_rows(body, 0, count, fields))


# --- Refusals: writing ------------------------------------------------------------------------------------

LOOP: list[Any] = []
LOOP += [LOOP, LOOP]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (date(2024, 1, 1), "is of type date"),
        (1j, "is of type complex"),
        ({1}, "is of type set"),
        (object, "is of type type"),
        ([date(2024, 1, 1)], "holds a value of type date inside its list"),
        ({"a": [b"x"]}, "holds a value of type bytes inside its dict"),
        ({"a": MISSING}, "holds a value of type _Missing inside its dict"),
        ({1: 2}, "key of type int"),
        ([{None: 2}], "key of type NoneType"),
        (nested(MAX_NESTING + 1), "nested more than 128 deep"),
        (LOOP, "contains itself"),
        ([10**5000], "too many digits inside its list"),
    ],
)
@pytest.mark.parametrize("rows", [2, 20])
def test_values_that_cannot_be_carried(value: Any, says: str, rows: int) -> None:
    records = [{"a": 1, "the field": 1} for _ in range(rows - 1)] + [{"a": 1, "the field": value}]
    with pytest.raises(ValidationError, match=re.escape(says)) as caught:
        to_toon("t", records)
    assert caught.value.message.startswith(f'Field "the field" of record {rows - 1} ')
    assert caught.value.details["field"] == "the field"
    assert caught.value.details["record"] == rows - 1
    with pytest.raises(ValidationError, match=r"^Column 1 of the row .*" + re.escape(says)) as caught:
        encode_row([1, value])
    assert caught.value.details["column"] == 1


def test_the_deepest_nesting_comes_back() -> None:
    deep = nested(MAX_NESTING)
    assert from_toon(to_toon("t", [{"a": deep}]))[2] == [{"a": deep}]


def test_error_details_can_travel() -> None:
    with pytest.raises(ValidationError) as caught:
        to_toon("t", [{"\ud800" * 100: 1j}])
    assert repr(caught.value.to_wire()).encode()
    assert caught.value.details["field"].encode()
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("t", [{"a": 1}], ["a", "b", "a"]), '"a" is named twice'),
        (("t", [{"a": 1}], "a"), "fields a list of str"),
        (("t", [{"a": 1}], [1]), "fields a list of str"),
        (("t", [{1: 1}]), "fields a list of str"),
        ((b"t", []), "table name must be a str"),
        (("t", {"a": 1}), "not one dict"),
        (("t", "abc"), "not one str"),
        (("t", [{"a": 1}, ("a", 1)]), "Record 1 is of type tuple"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        to_toon(*arguments)


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", 10**18])
def test_wrong_counts(count: Any) -> None:
    with pytest.raises(ValidationError, match="row count"):
        encode_header("t", count, [])


# --- What the patterns rely on ----------------------------------------------------------------------------


def test_the_patterns_know_every_space_and_line_break() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    unsafe = set(re.findall(f"[{toon._UNSAFE}]", "".join(every)))
    odd = set(re.findall(f"[{toon._ODD_SPACE}]", "".join(every)))
    assert {character for character in every if len(f"a{character}b".splitlines()) > 1} <= unsafe
    assert {character for character in every if character.isspace()} - unsafe == odd | {" "}


def test_first_characters_of_typed_cells() -> None:
    samples = [*toon._WORDS, *map(str, range(-9, 10)), "1.5", "-0.0", "1e5"]
    assert {sample[:1] for sample in samples} == toon._TYPED_FIRST
