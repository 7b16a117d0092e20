"""Keys, values, ranges and paths: the same checks in every mode."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb_protocol.errors import InvalidKeyError, InvalidPathError, KeyTooLargeError, ValidationError
from toondb_protocol.keys import as_bound, as_key, as_prefix, as_value, check_key, prefix_end
from toondb_protocol.paths import check_segments, join_path, path_key, split_path


@pytest.mark.parametrize("size", [1, 2, 510, 511])
def test_keys_of_legal_size(size: int) -> None:
    assert check_key(b"k" * size) == b"k" * size


def test_keys_of_illegal_size() -> None:
    with pytest.raises(InvalidKeyError, match="empty"):
        check_key(b"")
    with pytest.raises(KeyTooLargeError) as caught:
        check_key(bytes(512))
    assert caught.value.details == {"limit": 511, "actual": 512}
    # The limit is in bytes of UTF-8.
    with pytest.raises(KeyTooLargeError):
        as_key("é" * 256)
    assert len(as_key("é" * 255)) == 510


def test_conversions() -> None:
    for key in ("key", b"key", bytearray(b"key"), memoryview(b"key")):
        assert as_key(key) == as_prefix(key) == as_bound(key) == b"key"
        assert type(as_key(key)) is bytes
    assert as_key("é") == "é".encode()
    assert as_prefix("") == as_prefix(b"") == as_bound("") == b""
    assert as_bound(None) is None
    assert as_prefix(bytes(600)) == bytes(600)
    for value in (b"v", bytearray(b"v"), memoryview(b"v"), b""):
        assert as_value(value) == bytes(value)
        assert type(as_value(value)) is bytes
    assert len(as_value(memoryview(array("I", [1, 2])))) == 2 * array("I").itemsize


@pytest.mark.parametrize("wrong", [1, None, 1.5, ["k"], ("k",), {"k": 1}, object()])
def test_keys_of_other_types_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidKeyError, match=type(wrong).__name__):
        as_key(wrong)
    with pytest.raises(InvalidKeyError, match=type(wrong).__name__):
        as_prefix(wrong)
    with pytest.raises(ValidationError, match=type(wrong).__name__):
        as_value(wrong)
    if wrong is not None:
        with pytest.raises(InvalidKeyError):
            as_bound(wrong)


def test_text_is_not_a_value() -> None:
    text: Any = "text"
    with pytest.raises(ValidationError) as caught:
        as_value(text)
    assert "encode" in caught.value.remediation


def test_text_that_is_not_unicode_is_refused() -> None:
    for convert in (as_key, as_prefix, as_bound):
        with pytest.raises(InvalidKeyError, match="not valid Unicode"):
            convert("\ud800")
    with pytest.raises(InvalidPathError, match="not valid Unicode"):
        path_key("a/\ud800")


BYTE = st.sampled_from([0, 1, 0x61, 0xFE, 0xFF])
SMALL = st.lists(BYTE, max_size=4).map(bytes)


@given(SMALL, SMALL)
def test_prefix_end_bounds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    inside = key >= prefix and (end is None or key < end)
    assert inside == key.startswith(prefix)


def test_prefix_end_of_edge_cases() -> None:
    assert prefix_end(b"") is None
    assert prefix_end(b"\xff\xff") is None
    assert prefix_end(b"a\xff") == b"b"


def test_paths() -> None:
    assert split_path("users/alice/email") == ["users", "alice", "email"]
    assert split_path(("users", "alice")) == ["users", "alice"]
    assert path_key("users/alice") == path_key(["users", "alice"]) == b"users/alice"
    assert join_path(["é"]) == "é".encode()


@pytest.mark.parametrize(
    "wrong",
    ["", "/", "a/", "/a", "a//b", [], ["a", ""], ["a/b"], ["a", 1], [b"a"], b"a/b", bytearray(b"a"), None, 5, 1.5],
)
def test_bad_paths_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidPathError):
        path_key(wrong)


def test_check_segments_names_the_segment() -> None:
    with pytest.raises(InvalidPathError, match="'a/b' contains a slash"):
        check_segments(["x", "a/b"])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1), min_size=1))
def test_every_path_round_trips(segments: list[str]) -> None:
    assert split_path(path_key(segments).decode()) == segments
