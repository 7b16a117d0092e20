"""Random operations against a dict, in both clients, inside and outside transactions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.daemon import Daemon

from .conftest import Connect

KEYS = st.binary(min_size=1, max_size=3) | st.sampled_from([b"a", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"])
VALUES = st.binary(max_size=20)
BOUNDS = st.none() | st.binary(max_size=3)
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), KEYS, VALUES),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("put_many"), st.dictionaries(KEYS, VALUES, max_size=5)),
    st.tuples(st.just("delete_many"), st.lists(KEYS, max_size=5)),
    st.tuples(st.just("get_many"), st.lists(KEYS, max_size=5)),
    st.tuples(st.just("scan"), BOUNDS, BOUNDS, st.none() | st.integers(0, 4), st.booleans()),
    st.tuples(st.just("begin")),
    st.tuples(st.just("commit")),
    st.tuples(st.just("abort")),
)


def expected_scan(model: dict[bytes, bytes], start: Any, end: Any, limit: Any, reverse: bool) -> list[Any]:
    if end is None:
        rows = [(key, value) for key, value in sorted(model.items()) if key.startswith(start or b"")]
    else:
        rows = [(key, value) for key, value in sorted(model.items()) if (start or b"") <= key < end]
    return (rows[::-1] if reverse else rows)[:limit]


@pytest.mark.parametrize("connect", ["sync", "uvloop"], indirect=True)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPERATIONS, max_size=25))
def test_operations_agree_with_a_dict(connect: Connect, shared_daemon: Daemon, operations: list[Any]) -> None:
    client = connect(shared_daemon.socket)
    client.delete_many([key for key, _ in client.scan()])
    committed: dict[bytes, bytes] = {}
    model, store, transaction = committed, client, None
    for name, *arguments in operations:
        match name:
            case "put":
                store.put(*arguments)
                model[arguments[0]] = arguments[1]
            case "delete":
                store.delete(arguments[0])
                model.pop(arguments[0], None)
            case "get":
                assert store.get(arguments[0]) == model.get(arguments[0])
                assert store.exists(arguments[0]) == (arguments[0] in model)
            case "put_many":
                store.put_many(arguments[0])
                model.update(arguments[0])
            case "delete_many":
                store.delete_many(arguments[0])
                for key in arguments[0]:
                    model.pop(key, None)
            case "get_many":
                assert store.get_many(arguments[0]) == {key: model[key] for key in arguments[0] if key in model}
            case "scan":
                start, end, limit, reverse = arguments
                rows = []
                for row in store.scan(start, end, limit=limit, reverse=reverse):
                    rows.append(row)
                    store.put(b"while", b"scanning")  # not seen by a scan that has begun
                assert rows == expected_scan(model, start, end, limit, reverse)
                if rows:
                    model[b"while"] = b"scanning"
            case "begin" if transaction is None:
                transaction = store = client.begin_transaction()
                model = dict(committed)
            case "commit" if transaction is not None:
                transaction.commit()
                committed, store, transaction = model, client, None
            case "abort" if transaction is not None:
                transaction.abort()
                model, store, transaction = committed, client, None
    if transaction is not None:
        transaction.abort()
    assert dict(client.scan()) == committed
    client.close()
