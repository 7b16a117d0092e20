"""Filters over JSON-like objects: ``{"price": {"$gt": 10}, "$or": [...]}`` compiled once into a predicate.

The syntax and the meaning are those of MongoDB's query filters, for the operators in :data:`FIELD_OPERATORS` and
:data:`FILTER_OPERATORS`; ``docs/filters.md`` has the table. Two things are stricter. What could never match by mistake
(an unknown operator, a bound without an order, an operator inside a plain value) is an error when the filter is
compiled, never an empty result; and values are only equal or ordered within one kind, where a bool is not a number.

A filter may come from another process, so its depth and size are bounded, and a compiled filter shares nothing
with the objects it was made from.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

from toondb_protocol.errors import ValidationError

__all__ = [
    "FIELD_OPERATORS",
    "FILTER_OPERATORS",
    "MAX_CONDITIONS",
    "MAX_DEPTH",
    "Predicate",
    "check_filter",
    "compile_filter",
]

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]
"""A compiled filter: whether a row matches. Never raises for a row of JSON-like values; safe in any thread."""

FIELD_OPERATORS: Final = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$not", "$exists")
"""What may stand inside a field, ``{"price": {"$gt": 10}}``."""

FILTER_OPERATORS: Final = ("$and", "$or", "$not")
"""What may stand beside the fields of a filter, ``{"$or": [{...}, {...}]}``."""

MAX_DEPTH: Final = 32
"""Levels of filters, operators and nested values inside each other, and segments of a dotted field."""

MAX_CONDITIONS: Final = 1000
"""Conditions in one filter: operators and plain values on fields, empty filters, and lists or objects in a ``$in``."""

_Test: TypeAlias = Callable[[Any], bool]
"""Whether the value of a field satisfies something. The value may be _MISSING or a _Spread."""

_ORDERINGS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
# Tuples, because int | float builds an object each time; dict first, because asking an abstract class is slow.
_NUMBER: Final = (int, float)
_LIST: Final = (list, tuple)
_OBJECT: Final = (dict, Mapping)
_KINDS: Final = "None, bool, int, float, str, bytes, list or dict"


class _Missing:
    """The value of a field that a row does not have."""

    __slots__ = ()


class _Spread:
    """What a dotted path finds on its way through a list of objects: one value for each of them."""

    __slots__ = ("values",)

    def __init__(self, values: list[Any]) -> None:
        self.values = values


_MISSING: Final = _Missing()


def compile_filter(filter: Mapping[str, Any]) -> Predicate:
    """Compile a filter into a predicate over rows.

    Args:
        filter: Fields with a value or a map of operators, and ``$and``, ``$or``, ``$not``; all of them must hold.
            ``{}`` matches every row. Later changes to it, or to values in it, have no effect on the predicate.

    Returns:
        A function that takes a row (a mapping of str to JSON-like values, bytes allowed) and says whether it matches.

    Raises:
        ValidationError: Something in the filter is unknown, misplaced or of the wrong type, or it is too deep or too
            large. The message and ``details["path"]`` say where, as in ``$and[1].price.$gtt``.
    """
    return _Compiler().filter(filter, "", 1)


def check_filter(filter: Mapping[str, Any]) -> None:
    """Raise the ValidationError that :func:`compile_filter` would raise, if any."""
    compile_filter(filter)


class _Compiler:
    """Turns one filter into closures, counting its conditions. ``path`` is where in the filter it is, for messages."""

    def __init__(self) -> None:
        self._conditions = 0

    # Filters

    def filter(self, filter: object, path: str, depth: int) -> Predicate:
        self._go_deeper(path, depth)
        if not isinstance(filter, Mapping):
            _refuse(path, f"a filter is a dict, not {_shown(filter)}.", 'Write it like {"price": {"$gt": 10}}.')
        if not filter:
            self._count(path)
        parts: list[Predicate] = []
        for name, wanted in filter.items():
            if not isinstance(name, str):
                _refuse(path, f"a field is named by a str, not {_shown(name)}.")
            at = _join(path, name)
            if not name.startswith("$"):
                parts.append(_on_field(name, self._field(wanted, at, depth), at))
            elif name == "$not":
                parts.append(_negation(self.filter(wanted, at, depth + 1)))
            elif name in FILTER_OPERATORS:
                parts.append(self._combination(name, wanted, at, depth))
            elif name in FIELD_OPERATORS:
                _refuse(at, f"{name} belongs inside a field.", f'Write {{"FIELD": {{"{name}": ...}}}}.')
            else:
                _refuse(at, f"there is no operator {_shown(name)}.", f"Beside fields: {_listed(FILTER_OPERATORS)}.")
        return _all(parts)

    def _combination(self, name: str, filters: object, path: str, depth: int) -> Predicate:
        if not isinstance(filters, list | tuple):
            _refuse(path, f"{name} takes a list of filters, not {_shown(filters)}.")
        if not filters:
            _refuse(path, f"the list of {name} is empty.", "Give at least one filter.")
        parts = [self.filter(item, f"{path}[{at}]", depth + 1) for at, item in enumerate(filters)]
        return _all(parts) if name == "$and" else _any(parts)

    # Fields

    def _field(self, wanted: object, path: str, depth: int) -> _Test:
        """The test for what stands behind the name of a field, or in a ``$not`` there."""
        if not isinstance(wanted, Mapping) or not any(isinstance(key, str) and key[:1] == "$" for key in wanted):
            self._count(path)
            return _spreading(_equal(self._plain(wanted, path, depth, operators=False)))
        self._go_deeper(path, depth + 1)
        tests: list[_Test] = []
        for name, operand in wanted.items():
            if not isinstance(name, str) or name[:1] != "$":
                _refuse(
                    path,
                    f"operators and the plain key {_shown(name)} are mixed.",
                    "Put the keys of nested objects into dotted fields, or compare the whole object with $eq.",
                )
            tests.append(self._operator(name, operand, _join(path, name), depth + 1))
        return _all(tests)

    def _operator(self, name: str, operand: object, path: str, depth: int) -> _Test:
        if name == "$not":
            return _negation(self._field(operand, path, depth))
        self._count(path)
        if name == "$exists":
            if not isinstance(operand, bool):
                _refuse(path, f"$exists takes True or False, not {_shown(operand)}.")
            return _exists if operand else _negation(_exists)
        if name in ("$eq", "$ne"):
            test = _spreading(_equal(self._plain(operand, path, depth)))
            return test if name == "$eq" else _negation(test)
        if name in ("$in", "$nin"):
            test = _spreading(_member(self._candidates(name, operand, path, depth)))
            return test if name == "$in" else _negation(test)
        if name in _ORDERINGS:
            if isinstance(operand, bool) or not isinstance(operand, int | float | str | bytes):
                _refuse(path, f"{name} compares numbers, str or bytes, not {_shown(operand)}.")
            return _spreading(_ordered(_ORDERINGS[name], operand))
        if name in FILTER_OPERATORS:
            _refuse(path, f"{name} does not belong inside a field.", f'Write {{"{name}": [...]}} beside the fields.')
        _refuse(path, f"there is no operator {_shown(name)}.", f"Inside a field: {_listed(FIELD_OPERATORS)}.")

    def _candidates(self, name: str, operand: object, path: str, depth: int) -> list[Any]:
        if not isinstance(operand, list | tuple | set | frozenset):
            _refuse(path, f"{name} takes a list of values, not {_shown(operand)}.")
        found: list[Any] = []
        for at, item in enumerate(operand):
            place = f"{path}[{at}]"
            if isinstance(item, list | tuple | Mapping):
                # Plain values are looked up at once; these are compared one by one.
                self._count(place)
            found.append(self._plain(item, place, depth))
        return found

    # Values

    def _plain(self, value: object, path: str, depth: int, *, operators: bool = True) -> Any:
        """A copy of a value to compare with; ``operators`` says whether keys may look like operators."""
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        self._go_deeper(path, depth + 1)
        if isinstance(value, list | tuple):
            return [self._plain(item, f"{path}[{at}]", depth + 1, operators=operators) for at, item in enumerate(value)]
        if isinstance(value, Mapping):
            copied: dict[str, Any] = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    _refuse(path, f"the keys of an object are str, not {_shown(key)}.")
                if key[:1] == "$" and not operators:
                    _refuse(
                        _join(path, key),
                        f"the operator {_shown(key)} stands inside a plain value.",
                        "Name the nested field with dots, or compare the whole value with $eq.",
                    )
                copied[key] = self._plain(item, _join(path, key), depth + 1, operators=operators)
            return copied
        _refuse(path, f"a row cannot have the value {_shown(value)}.", f"Compare with {_KINDS}.")

    # Limits

    def _count(self, path: str) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            _refuse(path, f"a filter has {MAX_CONDITIONS} conditions at most.", "Use $in for many values of one field.")

    @staticmethod
    def _go_deeper(path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            _refuse(path, f"a filter is nested {MAX_DEPTH} levels deep at most.")


# Rows: from a field to its value


def _on_field(name: str, test: _Test, path: str) -> Predicate:
    if "." not in name:
        return lambda row: test(row.get(name, _MISSING))
    segments = name.split(".", MAX_DEPTH)
    if len(segments) > MAX_DEPTH:
        _refuse(path, f"a field has {MAX_DEPTH} segments at most.")
    steps = tuple((segment, int(segment) if _INDEX.fullmatch(segment) else -1) for segment in segments)

    def match(row: Mapping[str, Any]) -> bool:
        value = row.get(name, _MISSING)
        return test(_walk(row, steps) if value is _MISSING else value)

    return match


def _walk(value: Any, steps: tuple[tuple[str, int], ...]) -> Any:
    """Follow a path from a value. Each step is a segment and what it is as an index, -1 when it is none."""
    for at, (segment, index) in enumerate(steps):
        if isinstance(value, _LIST):
            if index < 0:
                return _walk_each(value, steps[at:])
            value = value[index] if index < len(value) else _MISSING
        elif isinstance(value, _OBJECT):
            value = value.get(segment, _MISSING)
        else:
            return _MISSING
    return value


def _walk_each(items: Iterable[Any], steps: tuple[tuple[str, int], ...]) -> Any:
    found: list[Any] = []
    for item in items:
        if isinstance(item, _OBJECT):
            value = _walk(item, steps)
            if isinstance(value, _Spread):
                found.extend(value.values)
            else:
                found.append(value)
    return _Spread(found) if found else _MISSING


# Tests of one value


def _spreading(test: _Test) -> _Test:
    """A test that a list also passes by any of its elements, and a _Spread by any of its values."""

    def holds(value: Any) -> bool:
        if test(value):
            return True
        if isinstance(value, _LIST):
            for item in value:
                if test(item):
                    return True
        elif isinstance(value, _Spread):
            for item in value.values:
                if holds(item):
                    return True
        return False

    return holds


def _exists(value: Any) -> bool:
    if isinstance(value, _Spread):
        return any(item is not _MISSING for item in value.values)
    return value is not _MISSING


def _equal(wanted: Any) -> _Test:
    if wanted is None:
        return lambda value: value is None or value is _MISSING
    if wanted is True or wanted is False:
        return lambda value: value is wanted
    if isinstance(wanted, str | bytes):
        kind = str if isinstance(wanted, str) else bytes
        # The kind is asked first because comparing str with bytes warns under python -b.
        return lambda value: isinstance(value, kind) and value == wanted
    if isinstance(wanted, int | float):
        # Python compares int with float exactly, and NaN with nothing.
        return lambda value: isinstance(value, _NUMBER) and value == wanted and not isinstance(value, bool)
    return lambda value: _same(value, wanted)


def _same(value: Any, wanted: Any) -> bool:
    """Deep equality. The equality of Python's containers will not do: there True is 1, and a NaN equals itself."""
    if isinstance(wanted, dict):
        if not isinstance(value, _OBJECT) or len(value) != len(wanted):
            return False
        return all(key in value and _same(value[key], item) for key, item in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(value, _LIST) or len(value) != len(wanted):
            return False
        return all(map(_same, value, wanted))
    if wanted is None or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, str | bytes):
        return isinstance(value, str if isinstance(wanted, str) else bytes) and bool(value == wanted)
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and bool(value == wanted)


def _ordered(compare: Callable[[Any, Any], bool], bound: float | str | bytes) -> _Test:
    if isinstance(bound, str | bytes):
        kind = str if isinstance(bound, str) else bytes
        return lambda value: isinstance(value, kind) and compare(value, bound)
    return lambda value: isinstance(value, _NUMBER) and compare(value, bound) and not isinstance(value, bool)


def _member(wanted: list[Any]) -> _Test:
    """Whether a value equals any of those wanted, by one look-up where its kind allows it."""
    if len(wanted) == 1:
        return _equal(wanted[0])
    texts = frozenset(item for item in wanted if isinstance(item, str))
    blobs = frozenset(item for item in wanted if isinstance(item, bytes))
    # A set finds an object that is not equal to itself; NaN must not be found.
    numbers = frozenset(
        item for item in wanted if isinstance(item, int | float) and not isinstance(item, bool) and item == item
    )
    truths = tuple(item for item in wanted if isinstance(item, bool))
    nothing = any(item is None for item in wanted)
    nested = tuple(item for item in wanted if isinstance(item, list | dict))

    def test(value: Any) -> bool:
        if isinstance(value, str):
            return value in texts
        if isinstance(value, bool):
            return value in truths
        if isinstance(value, _NUMBER):
            return value in numbers
        if isinstance(value, bytes):
            return value in blobs
        if value is None or value is _MISSING:
            return nothing
        return bool(nested) and any(_same(value, item) for item in nested)

    return test


# Combinations, of predicates over rows and of tests of values alike. Loops are written out because all() and any()
# over a generator take twice the time of the tests themselves.


def _negation(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: not test(value)


def _all(tests: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    if not tests:
        return lambda value: True
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda value: first(value) and second(value)
    every = tuple(tests)

    def match(value: Any) -> bool:
        for test in every:  # noqa: SIM110
            if not test(value):
                return False
        return True

    return match


def _any(tests: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    if len(tests) == 1:
        return tests[0]
    some = tuple(tests)

    def match(value: Any) -> bool:
        for test in some:  # noqa: SIM110
            if test(value):
                return True
        return False

    return match


# Messages


def _refuse(path: str, what: str, remediation: str = "") -> NoReturn:
    # A path may be as long as the keys in the filter; its end says more than its beginning.
    shown = path if len(path) <= 200 else "..." + path[-200:]
    where = f"in the filter at {shown}: " if path else "in the filter: "
    raise ValidationError(where + what, remediation=remediation, details={"path": shown})


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _listed(names: tuple[str, ...]) -> str:
    return " ".join(names)


def _shown(value: object) -> str:
    """A value for a message: short, with its type where the value alone does not tell it."""
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"a {type(value).__name__}"
    try:
        text = repr(value)
    except Exception:  # repr() of an object that is not ours may do anything
        text = "?"
    text = text if len(text) <= 60 else text[:60] + "..."
    return f"{text} ({type(value).__name__})" if not isinstance(value, str | bool | None) else text
