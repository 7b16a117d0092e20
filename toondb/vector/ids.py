"""The ids of a saved index: what users call the vectors that the index knows by label.

The section ``ids`` holds one id for each living label, in the order of the labels; ``about["ids"]`` says how:

======= =====================================================================
label   every id is its label: there is no section
uint64  numbers
msgpack a list of strings and integers; larger ones as text in extension 1
======= =====================================================================
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ValidationError

from .metrics import Labels
from .sections import SectionReader, SectionWriter

__all__ = ["Id", "Numbers", "as_id", "as_ids", "read_ids", "write_ids", "write_numbers"]

Id = str | int
Numbers = NDArray[np.uint64]
_BIG_INTEGER = 1


def as_id(value: object) -> Id:
    """An id: a string, or an integer of any kind (those of NumPy count as the plain ones).

    Raises:
        ValidationError: It is neither.
    """
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise ValidationError(
        f"the id is {shown(value)} ({type(value).__name__}).",
        remediation="Ids are strings or integers.",
    )


def as_ids(values: Any) -> list[Id]:
    """The ids of a batch, each once.

    Raises:
        ValidationError: One is no id, or is there twice.
    """
    if isinstance(values, str | bytes):
        raise ValidationError(f"the ids are {shown(values)}.", remediation="Give a list of ids.")
    try:
        ids = [as_id(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]
    except TypeError as error:
        raise ValidationError(f"the ids cannot be listed: {error}.", remediation="Give a list of ids.") from None
    if len(set(ids)) != len(ids):
        seen: set[Id] = set()
        for one in ids:
            if one in seen:
                raise ValidationError(
                    f"the id {shown(one)} is there twice.", remediation="Give each id once in a batch."
                )
            seen.add(one)
    return ids


def write_ids(writer: SectionWriter, ids: Sequence[Id], labels: Labels) -> str:
    """Write the ids of ``labels``, which ascend; what ``about["ids"]`` must be."""
    numbers = [one for one in ids if isinstance(one, int) and 0 <= one < 1 << 64]
    if len(numbers) == len(ids):
        return write_numbers(writer, np.array(numbers, dtype=np.uint64), labels)
    packed = msgpack.packb([_packable(one) for one in ids], unicode_errors="surrogatepass")
    writer.add("ids", lambda write: write(packed))
    return "msgpack"


def write_numbers(writer: SectionWriter, numbers: Numbers, labels: Labels) -> str:
    """Write ids that are numbers; what ``about["ids"]`` must be."""
    if np.array_equal(numbers, labels.astype(np.uint64)):
        return "label"
    writer.add_array("ids", numbers.astype("<u8", copy=False))
    return "uint64"


def read_ids(reader: SectionReader, labels: Labels) -> Numbers | list[Id]:
    """The ids of ``labels``, which ascend.

    Raises:
        CorruptionError: They cannot be read, or are not as many.
    """
    kind = reader.about.get("ids")
    if kind == "label":
        return labels.astype(np.uint64)
    if kind == "uint64":
        return reader.array("ids", "<u8", len(labels))
    if kind != "msgpack":
        raise reader.damaged(f"its ids are of the unknown kind {kind!r}")
    try:
        ids = msgpack.unpackb(
            reader.section("ids").tobytes(),
            unicode_errors="surrogatepass",
            ext_hook=_unpacked,
            strict_map_key=False,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise reader.damaged(f"its ids cannot be read ({error})") from None
    if not isinstance(ids, list) or len(ids) != len(labels) or not all(type(one) in (str, int) for one in ids):
        raise reader.damaged("its ids are not those of its vectors")
    return ids


def _packable(one: Id) -> Any:
    if isinstance(one, int) and not -(1 << 63) <= one < 1 << 64:
        return msgpack.ExtType(_BIG_INTEGER, hex(one).encode())
    return one


def _unpacked(code: int, data: bytes) -> Any:
    if code != _BIG_INTEGER:
        raise ValueError(f"extension {code}")
    return int(data, 16)
