"""The page checker finds every damage, and answers with a report, never with a crash, whatever it reads."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.file_images import (
    META_FREE_OFFSET,
    META_LAST_PAGE_OFFSET,
    META_MAIN_OFFSET,
    META_TXN_OFFSET,
    PAGE,
    ROOT,
    Image,
    Store,
    check_bytes,
    kinds,
    small_store,
    text,
)
from toondb.engine import pages
from toondb.engine.file_check import FileReport, check_file, check_live
from toondb_protocol.errors import DatabaseNotFoundError
from toondb_protocol.record import decode_record, encode_record


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    store = small_store(tmp_path_factory.mktemp("small"))
    store.close()
    return store.path.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.mdb"


@pytest.fixture
def image(small: bytes) -> Image:
    return Image(bytearray(small))


# --- not a database at all -----------------------------------------------------------------------------


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "data.mdb", tmp_path):
        with pytest.raises(DatabaseNotFoundError, match=str(tmp_path)):
            check_file(path)
    with pytest.raises(DatabaseNotFoundError):
        check_live(tmp_path)


def test_a_fifo_neither_blocks_nor_counts_as_a_file(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(DatabaseNotFoundError, match="not a file"):
        check_file(file)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"x", "cut off"),
        (b"SQLite format 3\0" + bytes(20_000), "magic number"),
        (bytes(1 << 17), "magic number"),
        (os.urandom(1 << 17), "magic number"),
    ],
    ids=["empty", "one byte", "other format", "zeros", "noise"],
)
def test_a_file_of_something_else_is_told(file: Path, data: bytes, words: str) -> None:
    report = check_bytes(file, data)
    assert [damage.kind for damage in report.damages] == ["file"]
    assert words in text(report)
    assert check_live(file.parent).damages == report.damages


def test_another_format_version_is_told(file: Path, image: Image) -> None:
    for slot in (0, 1):
        image.put(slot * PAGE + 20, "<I", 999)
    assert "format version 999" in text(check_bytes(file, image.data))


def test_no_file_descriptor_is_left_open(file: Path, small: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"", small, small[:10_000]):
        check_bytes(file, data)
        check_live(file.parent)
    assert len(os.listdir("/proc/self/fd")) == before


# --- meta pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [True, False], ids=["newer", "older"])
@pytest.mark.parametrize(
    "how", ["zeros", "magic", "version", "page size", "small page size", "all fields", "wrong slot", "header"]
)
def test_damage_to_either_meta_page_is_found(file: Path, image: Image, newest: bool, how: str) -> None:
    good = image.meta()
    slot = good.slot if newest else 1 - good.slot
    at = slot * PAGE
    match how:
        case "zeros":
            image.data[at : at + PAGE] = bytes(PAGE)
        case "magic":
            image.data[at + 16] ^= 1
        case "version":
            image.data[at + 20] ^= 2
        case "page size":
            image.put(at + META_FREE_OFFSET, "<I", 8192)
        case "small page size":
            image.put(at + META_FREE_OFFSET, "<I", 512)
        case "all fields":
            image.data[at : at + pages.META_SIZE] = b"\xff" * pages.META_SIZE
        case "wrong slot":
            image.put(at + META_TXN_OFFSET, "<Q", good.txn_id + (1 if newest else 0))
        case "header":
            image.data[at] ^= 7
    report = check_bytes(file, image.data)
    assert "meta" in kinds(report)
    assert f"meta page {slot}" in text(report)
    assert report.page_size == PAGE  # the other meta page showed the rest of the file
    assert report.pages_used > 10
    # and LMDB is never shown such a file
    assert not check_live(file.parent).ok
    assert not (file.parent / "lock.mdb").exists()


@pytest.mark.parametrize("field", [META_LAST_PAGE_OFFSET, META_FREE_OFFSET + ROOT, META_MAIN_OFFSET + ROOT])
@pytest.mark.parametrize("value", [0, 1, 3, 1 << 20, 1 << 40, (1 << 63) + 5, (1 << 64) - 1])
def test_any_number_in_the_newest_meta_page_is_survived(file: Path, image: Image, field: int, value: int) -> None:
    image.put(image.meta().slot * PAGE + field, "<Q", value)
    assert not check_bytes(file, image.data).ok


def test_metas_that_are_not_one_transaction_apart_are_damage(file: Path, image: Image) -> None:
    meta = image.meta()
    image.put((1 - meta.slot) * PAGE + META_TXN_OFFSET, "<Q", meta.txn_id - 3)
    report = check_bytes(file, image.data)
    assert kinds(report) == {"meta"}
    assert f"transaction {meta.txn_id - 3}" in text(report)


def test_a_root_of_the_older_snapshot_that_is_gone_is_damage(file: Path, image: Image) -> None:
    older = pages.parse_meta(bytes(image.page(1 - image.meta().slot)), 1 - image.meta().slot)
    image.data[older.main.root * PAGE : (older.main.root + 1) * PAGE] = bytes(PAGE)
    report = check_bytes(file, image.data)
    assert [(damage.kind, damage.page) for damage in report.damages] == [("meta", older.slot)]


# --- whole pages ---------------------------------------------------------------------------------------


def test_zeroing_any_page_is_found_unless_it_is_free(file: Path, image: Image, small: bytes) -> None:
    free = image.free_pages()
    total = image.meta().last_page + 1
    assert 20 < total < 200
    assert len(free) > 2
    undetected = set()
    for page in range(total):
        damaged = bytearray(small)
        damaged[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
        if check_bytes(file, damaged).ok:
            undetected.add(page)
    # Free pages that still hold the roots of the older snapshot are looked at as well.
    assert undetected <= free
    assert len(free - undetected) <= 2


def test_swapping_two_used_pages_is_found(file: Path, image: Image, small: bytes) -> None:
    used = sorted(set(range(image.meta().last_page + 1)) - image.free_pages())
    rng = random.Random(5)
    for _ in range(150):
        a, b = rng.sample(used, 2)
        damaged = Image(bytearray(small))
        damaged.page(a)[:], damaged.page(b)[:] = bytes(damaged.page(b)), bytes(damaged.page(a))
        assert not check_bytes(file, damaged.data).ok, (a, b)


def test_truncation_anywhere_is_found(file: Path, image: Image, small: bytes) -> None:
    used = set(range(image.meta().last_page + 1)) - image.free_pages()
    end = (max(used) + 1) * PAGE
    rng = random.Random(6)
    for cut in {0, 1, 15, 16, 151, PAGE - 1, PAGE, 2 * PAGE, end - 1, *(rng.randrange(end) for _ in range(150))}:
        report = check_bytes(file, small[:cut])
        assert "file" in kinds(report), cut
    assert check_bytes(file, small[:end]).ok  # free pages at the end need not exist


def test_a_file_that_shrinks_during_the_check_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit({b"%06d" % i: bytes(1500) for i in range(5000)})
    store.close()
    report = check_file(store.path, progress=lambda *_: os.truncate(store.path, 3 * PAGE))
    assert kinds(report) == {"file"}


def test_the_number_of_damages_is_limited(file: Path, image: Image) -> None:
    tree, _ = image.tree(b"kv")
    for leaf in image.leaves(tree):
        image.page(leaf)[:] = bytes(PAGE)
    report = check_bytes(file, image.data, limit=3)
    assert len(report.damages) == 3
    assert report.truncated
    assert not report.ok
    everything = check_bytes(file, image.data, limit=1000)
    assert not everything.truncated
    assert everything.damages[:3] == report.damages
    nothing = check_file(file, limit=0)
    assert (nothing.ok, nothing.truncated) == (False, True)


# --- trees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["itself", "sibling", "meta", "far", "huge", "overflow", "free", "main"])
def test_a_branch_that_points_to_a_wrong_page_is_found(file: Path, image: Image, target: str) -> None:
    tree, _ = image.tree(b"kv")
    assert tree.depth == 2
    nodes = image.nodes(tree.root)
    big = next(node for leaf in image.leaves(tree) for node in image.nodes(leaf) if node[2] == pages.NODE_BIG)
    leaf_of_big = next(leaf for leaf in image.leaves(tree) if big in image.nodes(leaf))
    wrong = {
        "itself": tree.root,
        "sibling": nodes[2][1],
        "meta": 1,
        "far": image.meta().last_page + 1,
        "huge": (1 << 48) - 1,
        "overflow": struct.unpack_from("<Q", image.page(leaf_of_big), big[3])[0],
        "free": min(image.free_pages()),
        "main": image.meta().main.root,
    }[target]
    at = tree.root * PAGE + nodes[1][3] - len(nodes[1][0]) - 8
    image.data[at : at + 6] = wrong.to_bytes(6, "little")
    report = check_bytes(file, image.data)
    assert kinds(report) & {"tree", "page", "freelist"}
    assert any(damage.database == "kv" for damage in report.damages)


def test_keys_out_of_order_are_found(file: Path, image: Image) -> None:
    leaf = next(iter(image.leaves(image.tree(b"kv")[0])))
    pointers = leaf * PAGE + 16
    image.data[pointers : pointers + 4] = image.data[pointers + 2 : pointers + 4] + image.data[pointers : pointers + 2]
    assert "out of order" in text(check_bytes(file, image.data))


def test_keys_outside_of_the_separators_are_found(file: Path, image: Image) -> None:
    tree, _ = image.tree(b"kv")
    key, _, _, end = image.nodes(tree.root)[1]
    at = tree.root * PAGE + end - len(key)
    image.data[at : at + 1] = b"\x01"
    assert "range its parent gives it" in text(check_bytes(file, image.data))


@pytest.mark.parametrize(
    "field", [4, 6, 8, 16, 24, 32], ids=["flags", "depth", "branch", "leaf", "overflow", "entries"]
)
@pytest.mark.parametrize("name", [b"kv", b"catalog", b"meta"])
def test_wrong_numbers_in_a_root_record_are_found(file: Path, image: Image, name: bytes, field: int) -> None:
    _, at = image.tree(name)
    image.data[at + field] += 1
    report = check_bytes(file, image.data)
    assert kinds(report) & {"tree", "page"}
    assert name.decode() in {damage.database for damage in report.damages}


@pytest.mark.parametrize("field", [0, 2, 4, 6, 10, 12, 14])  # 8 is the pad, without meaning in these pages
def test_a_damaged_page_header_is_found(file: Path, image: Image, field: int) -> None:
    for page in (image.tree(b"kv")[0].root, *list(image.leaves(image.tree(b"kv")[0]))[:2]):
        for bit in (0, 1, 4, 7):
            image.data[page * PAGE + field] ^= 1 << bit
            report = check_bytes(file, image.data)
            assert [damage.page for damage in report.damages if damage.kind == "page"] == [page]
            image.data[page * PAGE + field] ^= 1 << bit


@pytest.mark.parametrize("field", [0, 10, 12], ids=["number", "flags", "pages"])
def test_a_damaged_overflow_page_is_found(file: Path, image: Image, field: int) -> None:
    tree, _ = image.tree(b"kv")
    for leaf in image.leaves(tree):
        for _, _, flags, offset in image.nodes(leaf):
            if flags == pages.NODE_BIG:
                first = struct.unpack_from("<Q", image.page(leaf), offset)[0]
                for value in (0, 1, 2, 200, 0xFFFF):
                    damaged = Image(bytearray(image.data))
                    if struct.unpack_from("<H", damaged.data, first * PAGE + field)[0] == value:
                        continue
                    damaged.put(first * PAGE + field, "<H", value)
                    assert not check_bytes(file, damaged.data).ok


def test_a_missing_key_value_database_is_found(file: Path, image: Image) -> None:
    _, at = image.tree(b"kv")
    image.data[at - 2 : at] = b"kw"
    assert "has no sub-database 'kv'" in text(check_bytes(file, image.data))


# --- free list -----------------------------------------------------------------------------------------


def test_damage_to_the_free_list_is_found(file: Path, image: Image, small: bytes) -> None:
    at, count = max(image.free_list(), key=lambda item: item[1])
    assert count >= 3
    first, second = struct.unpack_from("<QQ", small, at + 8)
    last = image.meta().last_page
    for offset, value, words in (
        (at + 8, image.tree(b"kv")[0].root, "is in use and in the free list"),
        (at + 8, image.meta().free.root, "which is in use"),
        (at + 8, second, "in it already"),
        (at + 8, last + 1, "the file has the pages up to"),
        (at + 8, 1 << 60, "the file has the pages up to"),
        (at + 16, 0, "the file has the pages up to"),
        (at + 16, first + 1, "not in descending order"),
        (at, count - 1, "neither used nor free"),
        (at, count + 1, "has room for"),
        (at, (1 << 64) - 1, "has room for"),
        (at - 8, image.meta().txn_id + 1, "not of the past"),
        (at - 8, 0, "not of the past"),
    ):
        damaged = Image(bytearray(small))
        damaged.put(offset, "<Q", value)
        report = check_bytes(file, damaged.data)
        assert "freelist" in kinds(report), words
        assert words in text(report)


# --- records -------------------------------------------------------------------------------------------


def records(image: Image) -> Iterator[tuple[bytes, int, int]]:
    """(key, offset of the record in the file, its size) of each record that is kept in a leaf."""
    for name in (b"kv", b"catalog"):
        for leaf in image.leaves(image.tree(name)[0]):
            for key, size, flags, offset in image.nodes(leaf):
                if not flags:
                    yield key, leaf * PAGE + offset, size


def test_a_flip_in_any_byte_of_a_key_a_checksum_or_a_value_is_found(file: Path, image: Image) -> None:
    found = list(records(image))
    assert len(found) > 200
    rng = random.Random(7)
    for key, at, size in rng.sample(found, 25):
        stored = bytes(image.data[at : at + size])
        assert decode_record(key, stored).checksum_ok
        for offset in [*range(-len(key), 1), *range(9, size)]:  # bytes 1 to 8 are the LSN
            image.data[at + offset] ^= 1 << rng.randrange(8)
            report = check_bytes(file, image.data)
            assert not report.ok, (key, offset)
            if offset >= 0:
                assert [(damage.kind, damage.key) for damage in report.damages] == [("record", key)]
            image.data[at : at + size] = stored
            image.data[at - len(key) : at] = key


def test_a_flip_in_a_large_value_is_found(file: Path, image: Image, small: bytes) -> None:
    rng = random.Random(8)
    tree, _ = image.tree(b"kv")
    for leaf in image.leaves(tree):
        for key, size, flags, offset in image.nodes(leaf):
            if flags == pages.NODE_BIG:
                first = struct.unpack_from("<Q", image.page(leaf), offset)[0]
                for at in [9, 13, size - 1, *(rng.randrange(13, size) for _ in range(20))]:
                    where = first * PAGE + 16 + at
                    image.data[where] ^= 1 << rng.randrange(8)
                    report = check_bytes(file, image.data)
                    assert [(damage.kind, damage.key) for damage in report.damages] == [("record", key)]
                    assert "checksum" in text(report)
                    image.data[where] = small[where]


def put_raw(folder: Path, puts: dict[bytes, dict[bytes, bytes | None]]) -> FileReport:
    store = small_store(folder)
    with store.environment.begin(write=True) as txn:
        for name, entries in puts.items():
            for key, value in entries.items():
                if value is None:
                    assert txn.delete(key, db=store.databases[name])
                else:
                    txn.put(key, value, db=store.databases[name])
    report = check_file(store.path)
    store.close()
    return report


@pytest.mark.parametrize("database", [b"kv", b"catalog"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "shorter than its"),
        (b"raw", "shorter than its"),
        (b"\x20" + bytes(30), "not a known version"),
        (encode_record(b"other", b"value", 1), "checksum is wrong"),
        (encode_record(b"key", b"value", 6), "is after the LSN 5 of the store"),
        (encode_record(b"key", bytes(20_000), 1 << 60), "is after the LSN 5 of the store"),
    ],
)
def test_values_that_are_no_records_are_found(tmp_path: Path, database: bytes, value: bytes, words: str) -> None:
    report = put_raw(tmp_path, {database: {b"key": value}})
    assert [(damage.kind, damage.database, damage.key) for damage in report.damages] == [
        ("record", database.decode(), b"key")
    ]
    assert words in text(report)
    assert "'key'" in text(report)


def test_a_missing_or_malformed_store_lsn_is_found(tmp_path: Path) -> None:
    missing = put_raw(tmp_path / "missing", {b"meta": {b"lsn": None}})
    assert (missing.lsn, kinds(missing)) == (None, {"lsn"})
    short = put_raw(tmp_path / "short", {b"meta": {b"lsn": b"12345"}})
    assert (short.lsn, kinds(short)) == (None, {"lsn"})
    assert "5 bytes instead of 8" in text(short)
    old = put_raw(tmp_path / "old", {b"meta": {b"lsn": struct.pack("<Q", 2)}})
    assert kinds(old) == {"record"}


def test_a_key_of_any_bytes_is_reported_in_json(tmp_path: Path) -> None:
    key = b"\xff\x00" + b"k" * 300
    damage = put_raw(tmp_path, {b"kv": {key: b""}}).to_json()["damages"][0]
    assert damage["key_hex"] == key.hex()
    assert damage["key"].startswith("\\xff\x00kkk")
    assert "(302 bytes)" in damage["message"]


# --- anything at all -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_makes_it_raise_or_hang(file: Path, small: bytes, data: st.DataObject) -> None:
    damaged = bytearray(small)
    # Bytes at the start of a page (headers, node offsets) are hit as often as all others together.
    offsets = st.integers(0, len(small) - 1) | st.builds(
        lambda page, at: page * PAGE + at, st.integers(0, len(small) // PAGE - 1), st.integers(0, 200)
    )
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(offsets)
        junk = data.draw(
            st.binary(min_size=1, max_size=16) | st.sampled_from([bytes(8), b"\xff" * 8, b"\x02" + bytes(7)])
        )
        damaged[at : at + len(junk)] = junk
    del damaged[len(small) :]
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    check_bytes(file, damaged)


DUMP = """
import sys, lmdb, zlib
for folder in sys.stdin.read().split():
    environment = lmdb.open(folder, readonly=True, lock=False, max_dbs=8, map_size=1 << 30)
    crc = 0
    with environment.begin() as txn:
        for name in (b"kv", b"catalog"):
            for key, value in txn.cursor(db=environment.open_db(name, txn=txn, create=False)):
                crc = zlib.crc32(key + b"=" + value[:1] + value[9:] + b";", crc)
    print(folder, crc, flush=True)
    environment.close()
"""


def test_what_it_calls_healthy_lmdb_reads_to_the_same_end(tmp_path: Path, small: bytes) -> None:
    """Random flips: in the files that pass the check, LMDB finds exactly the records of the original."""
    rng = random.Random(9)
    folders = [tmp_path / "original"]
    folders[0].mkdir()
    (folders[0] / "data.mdb").write_bytes(small)
    found = 0
    for number in range(600):
        folder = tmp_path / str(number)
        folder.mkdir()
        damaged = bytearray(small)
        at = rng.randrange(len(small)) if number % 2 else rng.randrange(len(small) // PAGE) * PAGE + rng.randrange(200)
        damaged[at] ^= 1 << rng.randrange(8)
        if check_bytes(folder / "data.mdb", damaged).ok:
            folders.append(folder)
        else:
            found += 1
            (folder / "data.mdb").unlink()
    assert found > 150
    assert len(folders) > 50
    names = "\n".join(map(str, folders))
    child = subprocess.run([sys.executable, "-c", DUMP], input=names, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr + child.stdout[-300:]
    sums = [line.split()[1] for line in child.stdout.splitlines()]
    assert len(sums) == len(folders)
    assert set(sums) == {sums[0]}


def test_a_pinned_snapshot_of_a_file_without_good_metas_is_a_report(file: Path, image: Image) -> None:
    image.data[16] ^= 1
    file.write_bytes(image.data)
    assert kinds(check_file(file, txn_id=10_000)) == {"meta"}
