"""Database files for the tests of the page checker: stores written with plain LMDB, images to damage."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb

from toondb.engine import pages
from toondb.engine.file_check import FileReport, check_file
from toondb_protocol.record import encode_record

PAGE = 4096
MAP_SIZE = 1 << 30
META_TXN_OFFSET = pages.PAGE_HEADER_SIZE + 24 + 96 + 8
META_LAST_PAGE_OFFSET = META_TXN_OFFSET - 8
META_FREE_OFFSET = pages.PAGE_HEADER_SIZE + 24
META_MAIN_OFFSET = META_FREE_OFFSET + pages.TREE_SIZE
ROOT = 40  # offset of the root page in a tree record


class Store:
    """A database folder written with plain LMDB in ToonDB's record format."""

    def __init__(self, folder: Path, *, databases: tuple[bytes, ...] = (b"kv", b"catalog", b"meta")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "data.mdb"
        self.lsn = 0
        self.environment = lmdb.open(str(folder), map_size=MAP_SIZE, max_dbs=16, sync=False)
        with self.environment.begin(write=True) as txn:
            self.databases = {name: self.environment.open_db(name, txn=txn) for name in databases}

    def commit(
        self,
        puts: dict[bytes, bytes] | None = None,
        deletes: list[bytes] | None = None,
        database: bytes = b"kv",
    ) -> None:
        self.lsn += 1
        with self.environment.begin(write=True) as txn:
            for key, value in (puts or {}).items():
                txn.put(key, encode_record(key, value, self.lsn), db=self.databases[database])
            for key in deletes or []:
                txn.delete(key, db=self.databases[database])
            txn.put(b"lsn", struct.pack("<Q", self.lsn), db=self.databases[b"meta"])

    def close(self) -> None:
        self.environment.close()


def small_store(folder: Path) -> Store:
    """About 60 pages: branches, leaves, overflow runs, a free list; every page is checked by something."""
    rng = random.Random(1)
    store = Store(folder)
    store.commit({b"user/%04d" % i: rng.randbytes(rng.randrange(60)) for i in range(400)})
    store.commit({b"big/%d" % i: rng.randbytes(5000 + 4000 * i) for i in range(4)})
    store.commit({b"table/%d" % i: rng.randbytes(100) for i in range(10)}, database=b"catalog")
    store.commit(deletes=[b"user/%04d" % i for i in range(100, 200)])
    store.commit({b"last": b"value"}, deletes=[b"big/2"])
    return store


@dataclass
class Image:
    """A file in memory, with what the tests need to aim at."""

    data: bytearray

    def page(self, number: int) -> memoryview:
        return memoryview(self.data)[number * PAGE : (number + 1) * PAGE]

    def meta(self) -> pages.Meta:
        metas = [pages.parse_meta(bytes(self.page(slot)), slot) for slot in (0, 1)]
        return max(metas, key=lambda meta: meta.txn_id)

    def nodes(self, number: int) -> list[pages.Node]:
        raw = bytes(self.page(number))
        flags, lower, upper = struct.unpack_from("<HHH", raw, 10)
        return pages.parse_nodes(raw, lower, upper, branch=flags == pages.PAGE_BRANCH)

    def tree(self, name: bytes) -> tuple[pages.Tree, int]:
        """The root record of a sub-database and its offset in the file."""
        root = self.meta().main.root
        for key, _, _, offset in self.nodes(root):
            if key == name:
                return pages.parse_tree(bytes(self.page(root)), offset), root * PAGE + offset
        raise KeyError(name)

    def leaves(self, tree: pages.Tree) -> Iterator[int]:
        level = [tree.root]
        for _ in range(tree.depth - 1):
            level = [node[1] for page in level for node in self.nodes(page)]
        yield from level

    def free_list(self) -> list[tuple[int, int]]:
        """(offset in the file, count) of each free-list record kept in a leaf."""
        found = []
        for page in self.leaves(self.meta().free):
            for _, _, flags, offset in self.nodes(page):
                if not flags:
                    at = page * PAGE + offset
                    found.append((at, struct.unpack_from("<Q", self.data, at)[0]))
        return found

    def free_pages(self) -> set[int]:
        return {page for at, count in self.free_list() for page in struct.unpack_from(f"<{count}Q", self.data, at + 8)}

    def put(self, offset: int, layout: str, value: int) -> None:
        struct.pack_into(layout, self.data, offset, value)


def check_bytes(file: Path, data: bytes | bytearray, limit: int = 100) -> FileReport:
    file.write_bytes(data)
    report = check_file(file, limit=limit)
    json.dumps(report.to_json())
    assert report.ok == (not report.damages)
    return report


def kinds(report: FileReport) -> set[str]:
    return {damage.kind for damage in report.damages}


def text(report: FileReport) -> str:
    return "\n".join(damage.message for damage in report.damages)
