"""Documents, keys and rows in one transaction, conflicts and writers at once, in every mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from toondb import Database, Document, SearchRequest
from toondb_protocol.errors import (
    CollectionNotFoundError,
    NamespaceNotFoundError,
    ToonDBError,
    TransactionConflictError,
    ValidationError,
)

from .collection_stores import clear, ids, make, refused, vector
from .conftest import Places
from .sql_tables import drop_all, one


@pytest.fixture
def client(places: Places, mode: str) -> Iterator[Any]:
    """A store, plain, with an empty collection and an empty table."""
    with places.open(mode) as client:
        clear(client)
        drop_all(client)
        client.execute_sql("CREATE TABLE t (id TEXT PRIMARY KEY)")
        make(client)
        yield client


def docs_of(store: Any) -> Any:
    return store.collection("ns", "docs")


def everything(store: Any) -> list[list[str]]:
    """What the store has of each kind; a commit writes the same ids to all of them."""
    docs = docs_of(store)
    return [
        sorted(key.decode() for key, _ in store.scan()),
        sorted(name for (name,) in store.execute_sql("SELECT id FROM t").tuples),
        sorted(key.decode() for key, _ in store.namespace("ns").scan()),
        ids(docs.iterate()),
        sorted(ids(docs.vector_search(vector(1), k=1000))),
        sorted(ids(docs.keyword_search("word", k=1000))),
    ]


def write(store: Any, id: str) -> None:
    store.put(id, b"")
    store.execute_sql("INSERT INTO t VALUES (?)", [id])
    store.namespace("ns").put(id, b"")
    docs_of(store).insert(vector(1, len(id)), id=id, content=f"word {id}")


def test_documents_keys_and_rows_commit_together(client: Any, other: Any, end: str) -> None:
    transaction = client.begin_transaction()
    write(transaction, "a")
    write(transaction, "b")
    transaction.create_namespace("new").create_collection("made").insert([1.0], id="x")
    assert everything(transaction) == [["a", "b"]] * 6
    assert ids(transaction.collection("new", "made").vector_search([1.0])) == ["x"]
    # Nobody else sees any of it yet.
    assert everything(client) == [[]] * 6
    assert client.list_namespaces() == ["ns"]
    assert other.execute_sql("SELECT * FROM t")[:] == []
    getattr(transaction, end)()
    committed = end == "commit"
    assert everything(client) == ([["a", "b"]] * 6 if committed else [[]] * 6)
    assert client.list_namespaces() == (["new", "ns"] if committed else ["ns"])
    # What was not committed left no trace that a later one would meet.
    if not committed:
        docs_of(client).insert(vector(1), id="c", content="other")
        assert docs_of(client).keyword_search("word") == []
    assert len(other.execute_sql("SELECT * FROM t")) == 2 * committed


def test_a_transaction_sees_its_own_writes_over_its_snapshot(client: Any) -> None:
    docs = docs_of(client)
    docs.insert_batch([(f"d{at}", vector(1, at), {"n": at}, f"word{at}") for at in range(5)])
    transaction = client.begin_transaction()
    inside = docs_of(transaction)
    inside.insert("d1", vector(1, -1), {"n": 10}, "changed")
    inside.delete("d0")
    inside.insert("new", vector(1, -0.5), {"n": 11}, "word0")
    docs.insert("later", vector(1), {"n": 12}, "word0")
    docs.delete("d4")
    assert ids(inside.iterate()) == ["d1", "d2", "d3", "d4", "new"]
    assert ids(inside.vector_search(vector(1), k=9)) == ["new", "d1", "d2", "d3", "d4"]
    assert ids(inside.vector_search(vector(1), filter={"n": {"$gte": 4}})) == ["new", "d1", "d4"]
    assert ids(inside.keyword_search("word0 word4 changed word1")) != []
    assert sorted(ids(inside.keyword_search("word0 word4 changed word1"))) == ["d1", "d4", "new"]
    assert sorted(ids(inside.hybrid_search(vector(1), "word0"))) == ["d1", "d2", "d3", "d4", "new"]
    assert (inside.count(), inside.count({"n": {"$gt": 9}}), inside.get("d0")) == (5, 2, None)
    assert ids(docs.vector_search(vector(1), k=9)) == ["d0", "later", "d1", "d2", "d3"]
    assert sorted(ids(docs.keyword_search("word0"))) == ["d0", "later"]
    inside.insert("d1", vector(1, 3), {"n": 1})  # again, as it was nearly
    assert ids(inside.vector_search(vector(1), k=2)) == ["new", "d2"]
    transaction.abort()
    assert ids(docs.vector_search(vector(1), k=9)) == ["d0", "later", "d1", "d2", "d3"]


def test_a_snapshot_stays_as_it_was(client: Any) -> None:
    docs = docs_of(client)
    docs.insert("a", vector(1), {"v": 1}, "apple")
    with client.transaction() as transaction:
        inside = docs_of(transaction)
        assert inside.get("a").metadata == {"v": 1}
        docs.insert("a", vector(0, 1), {"v": 2}, "pear")
        docs.insert("b", vector(1), {"v": 2}, "apple")
        client.namespace("ns").put("k", b"1")
        for _ in range(2):
            assert inside.get("a") == Document("a", {"v": 1}, "apple", vector(1))
            assert [(each.id, each.metadata) for each in inside.vector_search(vector(1))] == [("a", {"v": 1})]
            assert ids(inside.keyword_search("apple pear")) == ["a"]
            assert list(transaction.namespace("ns").scan()) == []
            client.namespace("ns").delete_collection("docs")
    with pytest.raises(CollectionNotFoundError):
        docs.get("a")


def conflicts(client: Any, mine: Callable[[Any], Any], yours: Callable[[Any], Any]) -> bool:
    transaction = client.begin_transaction()
    try:
        mine(transaction)
        yours(client)
        mine(transaction)
        transaction.commit()
    except TransactionConflictError:
        transaction.abort()
        return True
    return False


def test_conflicts(client: Any) -> None:
    client.namespace("ns").create_collection("bare")

    def bare(store: Any) -> Any:
        return store.collection("ns", "bare")

    assert conflicts(client, lambda s: bare(s).insert([1.0], id="x"), lambda s: bare(s).insert([2.0], id="x"))
    assert bare(client).get("x").vector == [2.0]
    assert not conflicts(client, lambda s: bare(s).insert([1.0], id="y"), lambda s: bare(s).insert([2.0], id="z"))
    assert conflicts(client, lambda s: bare(s).delete("x"), lambda s: bare(s).insert([2.0], id="x"))
    assert conflicts(client, lambda s: s.namespace("ns").put("k", b"1"), lambda s: s.namespace("ns").put("k", b"2"))
    assert not conflicts(client, lambda s: s.namespace("ns").put("k", b"1"), lambda s: s.put("k", b"2"))
    # What it depends on was taken away.
    assert conflicts(
        client, lambda s: bare(s).insert([1.0], id="w"), lambda s: s.namespace("ns").delete_collection("bare")
    )
    assert conflicts(client, lambda s: s.namespace("ns").put("k", b"1"), lambda s: s.delete_namespace("ns"))
    with pytest.raises(NamespaceNotFoundError):
        bare(client)
    assert conflicts(
        client, lambda s: "x" in s.list_namespaces() or s.create_namespace("x"), lambda s: s.create_namespace("x")
    )


def test_a_conflict_takes_everything_with_it(client: Any) -> None:
    transaction = client.begin_transaction()
    write(transaction, "mine")
    write(client, "yours")
    docs_of(client).insert(vector(1), id="mine", content="word")
    with pytest.raises(TransactionConflictError):
        transaction.commit()
    transaction.abort()
    docs_of(client).delete("mine")
    assert everything(client) == [["yours"]] * 6


def test_run_transaction_repeats_what_conflicts(client: Any) -> None:
    docs = docs_of(client)
    docs.insert("counter", metadata={"n": 0})
    tried = []

    def add(transaction: Any) -> None:
        inside = transaction.collection("ns", "docs")
        count = inside.get("counter").metadata["n"]
        tried.append(count)
        if len(tried) == 1:
            docs.insert("counter", metadata={"n": 5})
        inside.insert("counter", metadata={"n": count + 1})

    if hasattr(client, "unwrapped"):
        # The handles of an async transaction are async, too.
        async def add_async(transaction: Any) -> None:
            inside = await transaction.collection("ns", "docs")
            count = (await inside.get("counter")).metadata["n"]
            tried.append(count)
            if len(tried) == 1:
                other = await client.unwrapped.collection("ns", "docs")
                await other.insert("counter", metadata={"n": 5})
            await inside.insert("counter", metadata={"n": count + 1})

        client._await(client.unwrapped.run_transaction(add_async))
    else:
        client.run_transaction(add)
    assert (tried, docs.get("counter").metadata) == ([0, 5], {"n": 6})


def test_a_failed_write_leaves_the_transaction_as_it_was(client: Any) -> None:
    with client.transaction() as transaction:
        write(transaction, "a")
        inside = docs_of(transaction)
        refused(
            ToonDBError,
            lambda: inside.insert_batch([vector(1), vector(0)], ids=["b", "c"], contents=["word", "word"]),
            lambda: inside.insert([1.0], id="b"),
            lambda: inside.search(SearchRequest(vector(1), filter={"$no": 1})),
            lambda: transaction.namespace("nowhere"),
            lambda: transaction.create_namespace("ns"),
        )
        with pytest.raises(ValidationError):
            transaction.namespace("ns").put_many({"k": b"1", "l": "text"})
        assert everything(transaction) == [["a"]] * 6
    assert everything(client) == [["a"]] * 6


def test_writers_at_once_lose_nothing(places: Places, mode: str, client: Any) -> None:
    writers, each = 4, 12
    start = threading.Barrier(writers)
    failures: list[BaseException] = []

    def insert(number: int) -> None:
        try:
            with Database.open_concurrent(places.shared) if mode == "concurrent" else places.open_another(mode) as mine:
                docs = docs_of(mine)
                start.wait(30)
                for at in range(each):
                    docs.insert(vector(1, number, at), {"by": number}, f"{number}-{at:02}", "word")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    docs = docs_of(client)
    assert docs.count() == writers * each
    assert [docs.count({"by": number}) for number in range(writers)] == [each] * writers
    assert len(docs.vector_search(vector(1), k=100)) == len(docs.keyword_search("word", k=100)) == writers * each
    assert one(client, "SELECT count(*) FROM t") == 0


def test_two_processes_see_each_other(places: Places) -> None:
    where = ("ns", "docs")
    with places.open("concurrent") as client:
        clear(client)
        docs = make(client)
        places.neighbour.insert(where, "theirs", vector(1), "word of theirs")
        assert ids(docs.vector_search(vector(1))) == ids(docs.keyword_search("theirs")) == ["theirs"]
        docs.insert("ours", vector(0.5, 1), content="word of ours")
        assert places.neighbour.search(where, vector(0.5, 1), "word ours") == ["ours", "theirs"]
        docs.delete("theirs")
        assert places.neighbour.search(where, vector(0.5, 1), "word ours") == ["ours"]
        places.neighbour.insert(where, "ours", vector(0, 0, 1), "changed")
        assert docs.vector_search(vector(0, 0, 1))[0].distance == pytest.approx(0)
        assert docs.keyword_search("word") == []
