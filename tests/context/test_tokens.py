"""What counts tokens: callables, tiktoken, and the estimate."""

from __future__ import annotations

import array
import sys
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tiktoken.registry
from hypothesis import given
from hypothesis import strategies as st

from tests.context.tokenizers import byte_pairs
from toondb.context import estimate_tokens
from toondb.context.tokens import _CACHED_AS, default_counter, token_counter
from toondb.errors import UnsupportedFeatureError, ValidationError


class Batch(UserDict[str, Any]):
    """What the tokenizers of transformers answer."""


class WithEncode:
    """As the Tokenizer of the package tokenizers."""

    def encode(self, text: str) -> list[str]:
        return text.split()


@pytest.mark.parametrize(
    ("tokenizer", "tokens"),
    [
        (len, 9),
        (str.split, 2),
        (lambda text: tuple(text), 9),
        (lambda text: np.int64(5), 5),
        (lambda text: np.asarray(5), 5),
        (lambda text: np.zeros(4), 4),
        (lambda text: array.array("I", [1, 2, 3]), 3),
        (lambda text: Batch(input_ids=[1, 2, 3], attention_mask=[1, 1, 1]), 3),
        (WithEncode(), 2),
        (byte_pairs(), 8),
        (byte_pairs().encode_ordinary, 8),
        ("estimate", 4),
    ],
)
def test_what_a_tokenizer_may_be(tokenizer: Any, tokens: int) -> None:
    assert token_counter(tokenizer)("the naïve") == tokens


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (None, "None"),
        (True, "True"),
        (-1, "-1"),
        (2.5, "2.5"),
        ("tokens", "'tokens'"),
        (b"tokens", "b'tokens'"),
        ({"tokens": 3}, "{'tokens': 3}"),
        (Batch(input_ids=np.zeros((1, 3))), "{'input_ids'"),
        (np.asarray(2.5), "array(2.5)"),
        (np.zeros((1, 3)), "array"),
    ],
)
def test_what_a_tokenizer_may_not_answer(answer: Any, shown: str) -> None:
    with pytest.raises(ValidationError, match="must answer an int, or the tokens as a sequence, got") as error:
        token_counter(lambda text: answer)("text")
    assert shown in error.value.message


@pytest.mark.parametrize("tokenizer", [None, 7, object(), ["estimate"]])
def test_what_is_no_tokenizer(tokenizer: Any) -> None:
    with pytest.raises(ValidationError, match="a tokenizer is a callable") as error:
        token_counter(tokenizer)
    assert repr(tokenizer)[:20] in error.value.message


def test_a_tokenizer_that_fails() -> None:
    counter = token_counter(byte_pairs().encode)
    with pytest.raises(ValidationError, match=r"the tokenizer Encoding\.encode failed: ValueError"):
        counter("what is <|endoftext|>?")
    # The encoding itself counts it as the text that it is.
    assert token_counter(byte_pairs())("<|endoftext|>") > 3


# tiktoken


def test_names_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its vocabularies are on the network; a small one takes the place of one.
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "o200k_base", byte_pairs("o200k_base"))
    for name in ("o200k_base", "gpt-4o"):
        counter = token_counter(name)
        assert (counter.name, counter("the naïve <|endoftext|>")) == ("o200k_base", 22)


def test_the_default_is_tiktoken_where_it_is_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert default_counter().name == "estimate"
    with monkeypatch.context() as loaded:
        loaded.setitem(tiktoken.registry.ENCODINGS, "o200k_base", byte_pairs("o200k_base"))
        assert default_counter().name == "o200k_base"
        loaded.setitem(sys.modules, "tiktoken", None)
        assert default_counter().name == "estimate"
    for value in ("", str(tmp_path / "nowhere")):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", value)
        assert default_counter().name == "estimate"


def test_the_default_finds_the_cache_of_tiktoken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / _CACHED_AS).write_bytes(b"a vocabulary")
    assert default_counter().name == "estimate"  # it is there, but tiktoken is not


def test_tiktoken_does_not_know_a_name() -> None:
    with pytest.raises(ValidationError, match="knows no encoding or model 'gpt-0'") as error:
        token_counter("gpt-0")
    assert "o200k_base" in error.value.remediation
    assert '"estimate"' in error.value.remediation


def test_tiktoken_cannot_load_a_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / _CACHED_AS).mkdir()
    with pytest.raises(ValidationError, match="could not load 'o200k_base': IsADirectoryError"):
        token_counter("o200k_base")


def test_tiktoken_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UnsupportedFeatureError, match="needs the package tiktoken"):
        token_counter("o200k_base")


# The estimate


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        (" ", 1),
        ("a", 1),
        ("search", 1),
        ("searching", 2),  # 1.75
        ("two words", 2),
        ("two\nlines\n\n", 4),
        ("the year 1999", 4),
        ("12345", 3),
        ("end.", 2),
        ("f(x[1])", 7),  # f 1, ( 1, x 1, [ 1, 1 1, ]) 1.5
        ("naïve", 3),  # na 1, ï 0.5, ve 1
        ("привет мир", 5),
        ("שלום", 3),  # 2.8
        ("検索する", 4),
        ("🦊", 1),
    ],
)
def test_the_estimate(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@given(st.text(), st.text())
def test_the_estimate_is_about_additive(left: str, right: str) -> None:
    apart = estimate_tokens(left) + estimate_tokens(right)
    assert abs(estimate_tokens(left + right) - apart) <= 3
    assert (estimate_tokens(left) == 0) is (left == "")
