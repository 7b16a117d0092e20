"""Queries with conditions, in every mode. What each operator means is tested with the filters themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest

ROWS = {
    "p/1": {"name": "Laptop", "price": 999, "tags": ["work"], "maker": {"country": "DE"}},
    "p/2": {"name": "Mouse", "price": 25, "tags": [], "maker": {"country": "CN"}},
    "p/3": {"name": "Desk", "price": 300.5, "maker": None},
    "p/4": {"name": "Lamp", "price": None, "sold": True},
    "p/5": {"name": "Größe; a,b", "price": -1},
}


@pytest.fixture
def products(store: Any) -> Any:
    store.put_many({key: json.dumps(row).encode() for key, row in ROWS.items()})
    store.put("p/note", b"no object")
    store.put("q/1", b'{"name": "another"}')
    return store


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({}, "12345"),
        ({"name": "Mouse"}, "2"),
        ({"price": {"$gt": 25}}, "13"),
        ({"price": {"$gte": 25, "$lt": 999}}, "23"),
        ({"price": {"$in": [999, -1]}}, "15"),
        ({"price": {"$in": (999, -1)}}, "15"),
        ({"price": {"$nin": [999, -1]}}, "234"),
        ({"price": None}, "4"),
        ({"price": {"$ne": 25}}, "1345"),
        ({"sold": {"$exists": True}}, "4"),
        ({"maker.country": "DE"}, "1"),
        ({"$or": [{"name": "Desk"}, {"price": {"$lt": 0}}]}, "35"),
        ({"$and": [{"price": {"$gt": 0}}, {"price": {"$lt": 500}}]}, "23"),
        ({"$not": {"price": {"$gt": 0}}}, "45"),
        ({"name": "Größe; a,b"}, "5"),
        ({"sold": True}, "4"),
        ({"nothing": 1}, ""),
    ],
    ids=str,
)
def test_where(products: Any, condition: dict[str, Any], found: str) -> None:
    query = products.query("p/").where(condition)
    assert "".join(row.key.decode()[2:] for row in query.to_list()) == found
    assert query.count() == len(found)
    assert query.exists() is bool(found)
    first = query.first()
    assert (first.key.decode() if first else "p/")[2:] == found[:1]
    assert query.select(["name"]).execute().startswith(f"result[{len(found)}]{{name}}:")


def test_conditions_add_up(products: Any) -> None:
    query = products.query("p/").where({"price": {"$gt": 0}}).where(name="Desk").where().where({}).where(None)
    assert (
        query.select(["name", "price"]).execute()
        == str(query.select(["name", "price"]))
        == ("result[1]{name,price}:Desk,300.5")
    )
    assert products.query("p/").where({"price": {"$gt": 0}}, name="Mouse").count() == 1
    assert products.query("p/").where(name="Mouse", price=999).count() == 0
    # A builder is not changed by what is made of it.
    base = products.query("p/").select(["name"])
    cheap, dear = base.where({"price": {"$lt": 100}}), base.where({"price": {"$gt": 100}})
    assert (cheap.count(), dear.count(), base.count()) == (2, 2, 5)


def test_limit_and_offset_count_what_meets_the_condition(products: Any) -> None:
    query = products.query("p/").where({"price": {"$exists": True}, "name": {"$ne": "Mouse"}}).select(["name"])
    assert query.limit(2).execute() == "result[2]{name}:Laptop;Desk"
    assert query.offset(1).limit(1).execute() == "result[1]{name}:Desk"
    assert query.offset(3).count() == 1
    assert query.limit(0).count() == 0


def test_a_query_of_a_transaction_sees_its_writes(client: Any) -> None:
    client.put("p/1", b'{"n": 1}')
    transaction = client.begin_transaction()
    transaction.put("p/2", b'{"n": 2}')
    transaction.delete("p/1")
    assert transaction.query("p/").where({"n": {"$gt": 0}}).execute() == "result[1]{n}:2"
    assert client.query("p/").where({"n": {"$gt": 0}}).execute() == "result[1]{n}:1"
    transaction.abort()


def test_values_that_are_no_objects(store: Any) -> None:
    store.put_many({"t/a": b"1", "t/b": b"\xff\x00", "t/c": b""})
    assert store.query("t/").execute() == 'result[3]{key,value}:t/a,"1";t/b,b64"/wA=";t/c,""'
    assert store.query("t/").where(key="t/a").count() == 1
    assert store.query("t/").where(value="1").count() == 1
    assert store.query("t/").where({"value": {"$exists": True}}).count() == 3
