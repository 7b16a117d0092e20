"""A sentence embedding model of the real kind that is tiny: random weights, a vocabulary of letters and some words."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEADS", "LAYERS", "MOST_TOKENS", "VOCABULARY", "write_model"]

HEADS, LAYERS, MOST_TOKENS = 2, 2, 12
_HIDDEN, _INNER = 8, 20
_LETTERS = string.ascii_lowercase + string.digits
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] the file data ##base un ##believ ##able cafe 漢 字 . , - ( )".split()  # noqa: SIM905
    + list(_LETTERS)
    + ["##" + letter for letter in _LETTERS]
)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), _HIDDEN),
        "embeddings.position_embeddings.weight": (MOST_TOKENS, _HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, _HIDDEN),
        "embeddings.LayerNorm.weight": (_HIDDEN,),
        "embeddings.LayerNorm.bias": (_HIDDEN,),
    }
    linear = {
        "attention.self.query": (_HIDDEN, _HIDDEN),
        "attention.self.key": (_HIDDEN, _HIDDEN),
        "attention.self.value": (_HIDDEN, _HIDDEN),
        "attention.output.dense": (_HIDDEN, _HIDDEN),
        "intermediate.dense": (_INNER, _HIDDEN),
        "output.dense": (_HIDDEN, _INNER),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        for part, shape in linear.items():
            shapes[f"{name}{part}.weight"] = shape
            shapes[f"{name}{part}.bias"] = shape[:1]
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{name}{part}.weight"] = shapes[f"{name}{part}.bias"] = (_HIDDEN,)
    return shapes


def write_model(folder: Path, seed: int = 1) -> dict[str, NDArray[np.float64]]:
    """Write the files of a model into a new folder; returns its weights by name."""
    folder.mkdir()
    chance = random.Random(seed)
    weights: dict[str, NDArray[np.float64]] = {}
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in _shapes().items():
        middle = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        numbers = np.array([chance.gauss(middle, 0.4) for _ in range(int(np.prod(shape)))], "<f4")
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + numbers.nbytes]}
        data += numbers.tobytes()
        weights[name] = numbers.reshape(shape).astype(np.float64)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    config = {
        "hidden_size": _HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MOST_TOKENS}), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return weights
