"""Loads the golden frames of ``protocol/vectors`` (format: the README there)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
HEADER = 5


def load(name: str) -> list[dict[str, Any]]:
    """The vectors of one file, with ``frame`` as bytes and all fields as Python values."""
    vectors = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    for vector in vectors:
        vector["frame"] = bytes.fromhex(vector["frame"])
    return [{key: _value(value) for key, value in vector.items()} for vector in vectors]


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"hex"}:
        return bytes.fromhex(value["hex"])
    if value.keys() == {"int"}:
        return int(value["int"])
    return {key: _value(item) for key, item in value.items()}


def names(vectors: list[dict[str, Any]]) -> list[str]:
    """Test ids."""
    return [vector["name"] for vector in vectors]


CLASSIC = load("requests_classic")
EXTENDED = load("requests_extended")
REPLIES = load("replies")
ERRORS = load("errors")
MALFORMED = load("malformed")
REQUESTS = CLASSIC + EXTENDED
ALL_REPLIES = REPLIES + ERRORS
EVERY_FRAME: list[bytes] = [vector["frame"] for vector in REQUESTS + ALL_REPLIES]
