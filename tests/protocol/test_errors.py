"""The error hierarchy: one code per class, the tree in the docstring is the real one, and errors travel whole."""

from __future__ import annotations

import builtins
import copy
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb_protocol import errors
from toondb_protocol.client_core import decode_error
from toondb_protocol.errors import (
    ErrorCode,
    InternalError,
    KeyTooLargeError,
    ToonDBError,
    error_class,
    error_from_wire,
)
from toondb_protocol.layout import decode_map, encode_map


def _below(kind: type[ToonDBError]) -> list[type[ToonDBError]]:
    found = [kind]
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            found += _below(child)
    return found


CLASSES = _below(ToonDBError)


def test_every_class_has_its_own_code_and_every_code_a_class() -> None:
    for kind in CLASSES:
        assert "code" in kind.__dict__, f"{kind.__name__} inherits its code"
        assert error_class(kind.code) is kind
        assert kind.__doc__
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert set(codes) == set(ErrorCode)


def test_all_is_complete() -> None:
    public = {kind.__name__ for kind in CLASSES} | {"ErrorCode", "error_class", "error_from_wire"}
    assert set(errors.__all__) == public


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    drawn: list[tuple[str, str]] = []
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+(?:Error|Abort))\b", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        del parents[depth:]
        if parents:
            drawn.append((match[2], parents[-1]))
        parents.append(match[2])
    real = {(kind.__name__, kind.__mro__[1].__name__) for kind in CLASSES if kind is not ToonDBError}
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == real


def test_the_builtins_that_callers_catch() -> None:
    assert issubclass(errors.ConnectionError, builtins.ConnectionError)
    assert issubclass(errors.OperationTimeoutError, builtins.TimeoutError)
    assert issubclass(errors.ValidationError, ValueError)
    for kind in CLASSES:
        also = {builtins.ConnectionError, builtins.TimeoutError, ValueError} & set(kind.__mro__)
        assert len(also) <= 1


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_every_journey(kind: type[ToonDBError]) -> None:
    details = {"limit": 511, "path": "/x", "raw": b"\x00", "list": [1, None, {"a": True}]}
    error = kind("it failed: café", remediation="Do this: then that.", details=details)
    by_map = error_from_wire(decode_map(encode_map(error.to_wire())))
    frame = decode_error(encode_map(error.to_wire()))
    for twin in (by_map, frame, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert (twin.message, twin.remediation, twin.details) == (error.message, error.remediation, details)
        assert str(twin) == str(error) == "it failed: café Do this: then that."
    for by_text in (error_from_wire(error.to_text()), decode_error(error.to_text().encode())):
        assert type(by_text) is kind
        assert str(by_text) == str(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_defaults(kind: type[ToonDBError]) -> None:
    error = kind()
    assert error.message == kind.__name__
    assert error.remediation == kind.default_remediation
    assert error.details == {}
    assert str(error).strip() == str(error)
    assert kind("m", remediation="").remediation == ""
    assert kind.default_remediation == "" or kind.default_remediation.endswith((".", "PATH."))


def test_details_are_a_copy() -> None:
    given_details = {"a": 1}
    error = ToonDBError("m", details=given_details)
    error.details["b"] = 2
    assert given_details == {"a": 1}


def test_dimension_mismatch_shows_both_sides() -> None:
    error = errors.DimensionMismatchError("m", details={"expected": 3, "actual": 4})
    assert (error.expected, error.actual) == (3, 4)
    assert errors.DimensionMismatchError("m", details={"expected": "3"}).expected is None


def test_a_trigger_abort_keeps_the_code_of_its_plugin() -> None:
    error = errors.TriggerAbort("Age cannot be negative", "INVALID_AGE", details={"field": "age"})
    assert error.to_wire()["code"] == "TRIGGER_ABORT"
    by_map = error_from_wire(decode_map(encode_map(error.to_wire())))
    for twin in (error, by_map, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is errors.TriggerAbort
        assert (twin.code, twin.message) == ("INVALID_AGE", "Age cannot be negative")
        assert twin.details == {"field": "age", "code": "INVALID_AGE"}
    assert errors.TriggerAbort.code is ErrorCode.TRIGGER_ABORT
    # A classic ERROR has no room for the code of the plugin.
    assert error.to_text() == "TRIGGER_ABORT: Age cannot be negative"
    assert error_from_wire(error.to_text()).code == "TRIGGER_ABORT"


def test_a_trigger_abort_without_a_code_has_that_of_its_class() -> None:
    assert errors.TriggerAbort("no").code is ErrorCode.TRIGGER_ABORT
    assert errors.TriggerAbort("no").details == {}
    assert errors.TriggerAbort("no", details={"code": 5}).code is ErrorCode.TRIGGER_ABORT


def test_a_second_class_with_a_known_code_is_refused() -> None:
    namespace = {"code": ErrorCode.INTERNAL, "__module__": errors.__name__}
    with pytest.raises(TypeError, match="share the error code INTERNAL"):
        type("Another", (ToonDBError,), namespace)
    assert error_class(ErrorCode.INTERNAL) is InternalError


def test_a_subclass_elsewhere_keeps_the_code_of_its_parent() -> None:
    class Special(KeyTooLargeError):
        pass

    assert Special("m").to_wire()["code"] == "KEY_TOO_LARGE"
    assert error_class("KEY_TOO_LARGE") is KeyTooLargeError


# --- foreign and damaged input ---------------------------------------------------------------------------------


def test_a_code_of_a_newer_version_is_kept() -> None:
    error = error_from_wire({"code": "NEWER", "message": "m", "remediation": "r"})
    assert type(error) is ToonDBError
    assert (error.message, error.remediation, error.details) == ("m", "r", {"code": "NEWER"})
    assert error_from_wire("NEWER: m").message == "NEWER: m"


def test_texts_that_only_look_like_codes() -> None:
    for text in ("", ":", ": ", "KEY_TOO_LARGE", "KEY_TOO_LARGE:x", " KEY_TOO_LARGE: x", "no such key: x"):
        assert type(error_from_wire(text)) is ToonDBError
    assert type(error_from_wire("KEY_TOO_LARGE: ")) is KeyTooLargeError


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.binary() | st.integers(), inner),
)


@given(JUNK | st.dictionaries(st.sampled_from(["code", "message", "remediation", "details"]), JUNK))
def test_anything_from_the_wire_gives_an_error(wire: object) -> None:
    error = error_from_wire(wire)
    assert isinstance(error, ToonDBError)
    assert isinstance(str(error), str)
    # What was received can be passed on, whatever it was.
    decode_map(encode_map(error.to_wire()))
    error.to_text().encode()
    pickle.loads(pickle.dumps(error))


def test_deeply_nested_maps_give_an_error() -> None:
    deep: Any = {}
    for _ in range(5_000):
        deep = {"message": 1, "a": deep}
    for wire in (deep, [deep], {"message": "m", "details": deep}):
        error = error_from_wire(wire)
        assert isinstance(error, ToonDBError)
        decode_map(encode_map(error.to_wire()))


def test_what_cannot_travel_is_replaced_by_something_readable() -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    error = ToonDBError(
        "bad name \udcff",
        remediation="\udcfe",
        details={"big": 1 << 70, "set": {1}, "tuple": (1, 2), "name": "\udcff", "no": Unprintable(), "\udcff": 1},
    )
    wire = decode_map(encode_map(error.to_wire()))
    assert wire["message"] == "bad name \\udcff"
    assert wire["details"]["big"] == str(1 << 70)
    assert wire["details"]["set"] == "{1}"
    assert wire["details"]["tuple"] == [1, 2]
    assert wire["details"]["name"] == "\\udcff"
    assert wire["details"]["no"] == "<Unprintable>"
    assert error.to_text().encode().decode() == "ERROR: bad name \\udcff \\udcfe"
