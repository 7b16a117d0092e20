"""The saved vectors of a collection: ``<database>/indexes/<id of the collection>.vectors``.

The container is that of every saved index (``toondb.vector.sections``); beside its own sections it has

======= ==============================================================
ids     msgpack, the id of the document of each label
lsns    int64, the LSN of the record that each label was made from
names   msgpack, the name of each vector; left out when none has one
======= ==============================================================

A file that is of no use is as good as none: the index is made anew. It is of use when it is whole, of this store and
this collection, and the log of the store knows the last change that it has seen (see ``document_log``).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from toondb.engine import document_log
from toondb.engine.document_log import LogState
from toondb.engine.file_swap import hand_over
from toondb.engine.snapshot import Snapshot
from toondb.vector.atomic_file import open_regular, replacing
from toondb.vector.hnsw_file import read_index, write_index
from toondb.vector.ids import read_ids, write_ids
from toondb.vector.sections import SectionReader, SectionWriter
from toondb_protocol.errors import ToonDBError

from .catalog import CollectionEntry
from .vector_cache import VectorCache, is_half

__all__ = ["FOLDER", "delete_saved", "load", "save", "saved_collections"]

FOLDER = "indexes"
_SUFFIX = ".vectors"


def _path(folder: Path, collection: int) -> Path:
    return folder / FOLDER / f"{collection:08x}{_SUFFIX}"


def saved_collections(folder: Path) -> set[int]:
    """The numbers of the collections that have a file."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for path in (folder / FOLDER).iterdir():
            if path.suffix == _SUFFIX and len(path.stem) == 8:
                with contextlib.suppress(ValueError):
                    found.add(int(path.stem, 16))
    return found


def delete_saved(folder: Path, collection: int) -> None:
    """Delete the file of a collection, if there is one."""
    with contextlib.suppress(OSError):
        _path(folder, collection).unlink()


def save(folder: Path, store: str, cache: VectorCache) -> None:
    """Save the vectors of a collection. Whoever calls it holds ``cache.updating``.

    Args:
        folder: The database folder.
        store: The id of the store.
        cache: What to save.

    Raises:
        StorageFullError, StorageError, ConfigurationError: It cannot be written; an older file is as it was.
    """
    if cache.lsn != cache.upto:
        return  # it stopped half-way
    home = folder / FOLDER
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
        hand_over(folder, FOLDER)
    with replacing(_path(folder, cache.collection.id)) as file, cache.reading():
        labels, ids, lsns, names = cache.rows_saved()
        writer = SectionWriter(file)
        kind = write_ids(writer, ids, labels)
        writer.add_array("lsns", lsns)
        if any(name is not None for name in names):
            packed = msgpack.packb(names)
            writer.add("names", lambda write: write(packed))
        about = {
            "ids": kind,
            "store": store,
            "collection": cache.collection.id,
            "changed": cache.state.changed,
            "token": cache.state.token,
            "next": cache.next_label,
        }
        write_index(writer, cache.hnsw, about)
        cache.unsaved = 0
    _path(folder, cache.collection.id).chmod(0o600)


def load(folder: Path, store: str, collection: CollectionEntry, snapshot: Snapshot) -> VectorCache | None:
    """What was saved of a collection; None when there is nothing of use.

    Args:
        folder: The database folder.
        store: The id of the store.
        collection: The collection.
        snapshot: The store as of now.
    """
    try:
        with open_regular(_path(folder, collection.id), "the index") as file:
            reader = SectionReader(file, "the index")
        state = _state_of(reader.about, store, collection, snapshot)
        if state is None:
            return None
        reader.verify()
        return _read(reader, collection, state)
    except (ToonDBError, OSError, ValueError, TypeError, KeyError, RuntimeError):
        # Damaged, foreign, or of a later version: nothing in it is needed.
        return None


def _state_of(about: dict[str, Any], store: str, collection: CollectionEntry, snapshot: Snapshot) -> LogState | None:
    """The state of the collection's log that a file has seen; None when this store never had it."""
    config = collection.config
    half = is_half(config)
    wanted = (store, collection.id, config.dimension, config.metric.value, config.m, config.ef_construction, half)
    if tuple(map(about.get, ("store", "collection", "dimension", "metric", "m", "ef_construction", "half"))) != wanted:
        return None
    changed, token = about.get("changed"), about.get("token")
    if not isinstance(changed, int) or not isinstance(token, bytes) or not 0 < changed <= snapshot.lsn:
        return None
    environment = snapshot.environment
    with snapshot.reading() as view:
        now = document_log.read_state(environment, view, collection.id)
        if changed < now.complete_from:
            return None
        is_newest = (changed, token) == (now.changed, now.token)
        if not is_newest and document_log.token_of(environment, view, collection.id, changed) != token:
            return None
    return LogState(changed=changed, token=token)


def _read(reader: SectionReader, collection: CollectionEntry, state: LogState) -> VectorCache | None:
    hnsw = read_index(reader)
    labels = hnsw.labels()
    ids = [str(id) for id in read_ids(reader, labels)] if len(labels) else []
    lsns = reader.array("lsns", "<i8", len(labels)).astype(np.int64)
    names: list[str | None] = [None] * len(labels)
    if len(packed := reader.section("names")):
        names = msgpack.unpackb(packed.tobytes())
        if len(names) != len(labels):
            return None
    cache = VectorCache(collection, hnsw)
    following = reader.about.get("next")
    if not isinstance(following, int):
        return None
    return cache if cache.restore((labels, ids, lsns, names), following, state.changed, state) else None
