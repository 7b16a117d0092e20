"""The SQL that users of the product have learned to type, with the output that they expect: exactly that.

Where a guide does not agree with itself:

- "Table 'users' created" and "2 rows inserted" stand below statements that print nothing: here they are what the
  results say.
- The examples go on with the database after the ``with`` block that opened it has ended.
- One guide says that there is no JOIN yet, and prints the output of one further below. There is.
- The rows of ``users`` have four columns; the example of a transaction inserts two: it means another table.
- A parent row is deleted to which a FOREIGN KEY refers, so that example needs the default: declared, not enforced.
- ``CREATE TABLE users (...)`` stands for a table with columns; as it is written it is no SQL.
- The output of the tenants begins with an empty line that the guide leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Printed
from tests.support.daemon import Daemon
from tests.support.stores import KINDS, open_store
from toondb import Database, IpcClient
from toondb.errors import SqlConstraintError, SqlError


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Any]:
    """The guides show one store; the same lines work on both kinds."""
    with open_store(request.param, tmp_db) as store:
        yield store


def create_users(db: Any) -> list[Any]:
    return [
        db.execute_sql("""
        CREATE TABLE users (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL,
            email TEXT UNIQUE,
            age INTEGER
        )
    """),
        db.execute_sql("""
        INSERT INTO users (id, name, email, age)
        VALUES (1, 'Alice', 'alice@example.com', 30)
    """),
        db.execute_sql("""
        INSERT INTO users (id, name, email, age)
        VALUES (2, 'Bob', 'bob@example.com', 25)
    """),
    ]


def create_orders(db: Any) -> None:
    db.execute_sql("""
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY,
        user_id INTEGER,
        product TEXT,
        amount REAL,
        FOREIGN KEY (user_id) REFERENCES users(id)
    )
""")
    db.execute_sql("INSERT INTO orders VALUES (1, 1, 'Laptop', 999.99)")
    db.execute_sql("INSERT INTO orders VALUES (2, 1, 'Mouse', 25.00)")
    db.execute_sql("INSERT INTO orders VALUES (3, 2, 'Keyboard', 75.00)")


def test_create_and_insert(db: Any) -> None:
    created, *inserted = create_users(db)
    assert (created.rows, created.columns, created.rows_affected) == ([], [], 0)
    assert sum(result.rows_affected for result in inserted) == 2
    # The constraints that the table declares are there.
    for statement in (
        "INSERT INTO users (id, name) VALUES (2, 'again')",
        "INSERT INTO users (name) VALUES (NULL)",
        "INSERT INTO users (name, email) VALUES ('Eve', 'bob@example.com')",
    ):
        with pytest.raises(SqlConstraintError):
            db.execute_sql(statement)


def test_select(db: Any, printed: Printed) -> None:
    create_users(db)
    results = db.execute_sql("SELECT * FROM users")
    for row in results:
        print(row)
    assert printed() == (
        "{'id': 1, 'name': 'Alice', 'email': 'alice@example.com', 'age': 30}\n"
        "{'id': 2, 'name': 'Bob', 'email': 'bob@example.com', 'age': 25}\n"
    )
    results = db.execute_sql("SELECT name, age FROM users WHERE age > 26")
    for row in results:
        print(f"{row['name']}: {row['age']} years old")
    assert printed() == "Alice: 30 years old\n"


def test_the_result_of_a_query(db: Any, printed: Printed) -> None:
    create_users(db)
    result = db.execute_sql("SELECT * FROM users")
    print(f"Found {len(result.rows)} users (affected: {result.rows_affected})")
    for row in result.rows:
        print(row)
    result = db.execute_sql("SELECT name, age FROM users WHERE age > 26")
    for row in result.rows:
        print(f"{row['name']}: {row['age']} years old")
    assert printed() == (
        "Found 2 users (affected: 0)\n"
        "{'id': 1, 'name': 'Alice', 'email': 'alice@example.com', 'age': 30}\n"
        "{'id': 2, 'name': 'Bob', 'email': 'bob@example.com', 'age': 25}\n"
        "Alice: 30 years old\n"
    )
    assert result.columns == ["name", "age"]


def test_join(db: Any, printed: Printed) -> None:
    create_users(db)
    create_orders(db)
    results = db.execute_sql("""
    SELECT users.name, orders.product, orders.amount
    FROM users
    JOIN orders ON users.id = orders.user_id
    WHERE orders.amount > 50
    ORDER BY orders.amount DESC
""")
    for row in results:
        print(f"{row['name']} bought {row['product']} for ${row['amount']}")
    assert printed() == "Alice bought Laptop for $999.99\nBob bought Keyboard for $75.0\n"


def test_aggregates_of_groups(db: Any, printed: Printed) -> None:
    create_users(db)
    create_orders(db)
    results = db.execute_sql("""
    SELECT users.name, COUNT(*) as order_count, SUM(orders.amount) as total
    FROM users
    JOIN orders ON users.id = orders.user_id
    GROUP BY users.name
    ORDER BY total DESC
""")
    for row in results:
        print(f"{row['name']}: {row['order_count']} orders, ${row['total']} total")
    assert printed() == "Alice: 2 orders, $1024.99 total\nBob: 1 orders, $75.0 total\n"


@pytest.mark.parametrize("referred", [False, True], ids=["users alone", "users with orders"])
def test_update_and_delete(db: Any, printed: Printed, referred: bool) -> None:
    create_users(db)
    if referred:
        create_orders(db)
    update_result = db.execute_sql("UPDATE users SET age = 31 WHERE name = 'Alice'")
    print(f"Updated {update_result.rows_affected} rows")
    delete_result = db.execute_sql("DELETE FROM users WHERE age < 26")
    print(f"Deleted {delete_result.rows_affected} rows")
    result = db.execute_sql("SELECT name, age FROM users ORDER BY age")
    for row in result.rows:
        print(row)
    assert printed() == "Updated 1 rows\nDeleted 1 rows\n{'name': 'Alice', 'age': 31}\n"
    for row in db.execute_sql("SELECT name, age FROM users"):
        print(row)
    assert printed() == "{'name': 'Alice', 'age': 31}\n"
    assert len(db.execute_sql("PRAGMA foreign_key_check")) == referred


def test_a_parent_stays_where_foreign_keys_are_enforced(tmp_db: Path) -> None:
    with Database.open(tmp_db, {"foreign_keys": True}) as db:
        create_users(db)
        create_orders(db)
        with pytest.raises(SqlConstraintError, match="FOREIGN KEY"):
            db.execute_sql("DELETE FROM users WHERE age < 26")
    with Daemon(tmp_db, "--foreign-keys") as daemon, IpcClient.connect(daemon.socket) as client:
        with pytest.raises(SqlConstraintError, match="FOREIGN KEY"):
            client.execute_sql("DELETE FROM users WHERE age < 26")
        assert len(client.execute_sql("SELECT * FROM users")) == 2


def test_complex_queries(db: Any, printed: Printed) -> None:
    create_users(db)
    db.execute_sql("UPDATE users SET age = 31 WHERE name = 'Alice'")
    db.execute_sql("DELETE FROM users WHERE age < 26")
    result = db.execute_sql("SELECT COUNT(*) as total FROM users")
    print(f"Total users: {result.rows[0]['total']}")
    result = db.execute_sql("SELECT AVG(age) as avg_age FROM users")
    print(f"Average age: {result.rows[0]['avg_age']}")
    result = db.execute_sql("""
    SELECT name, age FROM users
    WHERE age > 25 AND (name = 'Alice' OR name = 'Bob')
    ORDER BY age DESC
""")
    for row in result.rows:
        print(f"{row['name']}: {row['age']} years old")
    assert printed() == "Total users: 1\nAverage age: 31.0\nAlice: 31 years old\n"


# Together with the rest


def test_rows_as_toon_for_a_model(db: Any, printed: Printed) -> None:
    db.execute_sql("CREATE TABLE documents (title TEXT, content TEXT, category TEXT)")
    db.executemany(
        "INSERT INTO documents VALUES (?, ?, ?)",
        [("Snapshots", "They never change.", "technical"), ("Lunch", "At noon.", "other")],
    )
    results = db.execute_sql("""
        SELECT title, content
        FROM documents
        WHERE category = 'technical'
        LIMIT 10
    """)
    records = [dict(row) for row in results]
    print(Database.to_toon("documents", records, ["title", "content"]))
    assert printed() == "documents[1]{title,content}:Snapshots,They never change.\n"

    create_users(db)
    results = db.execute_sql("SELECT * FROM users LIMIT 100")
    records = [dict(row) for row in results]
    print(Database.to_toon("users", records, ["name", "email"]))
    assert printed() == "users[2]{name,email}:Alice,alice@example.com;Bob,bob@example.com\n"


def test_a_transaction_of_sql_and_keys(db: Any) -> None:
    db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    txn2 = db.transaction()
    txn2.execute("INSERT INTO users VALUES (1, 'Alice')")
    txn2.put(b"user:1:metadata", b'{"verified": true}')
    txn2.commit()
    assert db.execute("SELECT * FROM users").rows == [{"id": 1, "name": "Alice"}]
    assert db.get(b"user:1:metadata") == b'{"verified": true}'

    txn3 = db.transaction()
    txn3.execute("INSERT INTO users VALUES (2, 'Bob')")
    txn3.put(b"user:2:metadata", b"{}")
    txn3.abort()
    assert len(db.execute("SELECT * FROM users")) == 1
    assert db.get(b"user:2:metadata") is None


def test_a_row_of_another_table_is_refused_in_a_transaction(db: Any) -> None:
    create_users(db)
    txn = db.transaction()
    with pytest.raises(SqlError, match="table users has 4 columns but 2 values were supplied"):
        txn.execute("INSERT INTO users VALUES (3, 'Carol')")
    txn.abort()


def test_what_stands_for_columns_is_no_sql(db: Any) -> None:
    with pytest.raises(SqlError, match="syntax error"):
        db.execute_sql("CREATE TABLE users (...)")
    db.execute_sql("CREATE TABLE users (name TEXT, age INTEGER)")
    db.execute_sql("INSERT INTO users VALUES ('Alice', 30)")
    results = db.execute_sql("SELECT * FROM users WHERE age > 25")
    assert results.rows == [{"name": "Alice", "age": 30}]


def test_tenants_in_sql_and_their_users_in_keys(db: Any, printed: Printed) -> None:
    for _ in range(2):
        db.execute_sql("""
            CREATE TABLE IF NOT EXISTS tenants (
                id INTEGER PRIMARY KEY,
                name TEXT,
                created_at TEXT
            )
        """)
    db.execute_sql("INSERT INTO tenants VALUES (1, 'ACME Corp', '2026-01-01')")
    db.execute_sql("INSERT INTO tenants VALUES (2, 'Globex Inc', '2026-01-01')")
    db.put(b"tenants/1/users/alice", b'{"role":"admin","email":"alice@acme.com"}')
    db.put(b"tenants/1/users/bob", b'{"role":"user","email":"bob@acme.com"}')
    db.put(b"tenants/2/users/charlie", b'{"role":"admin","email":"charlie@globex.com"}')
    tenants = db.execute_sql("SELECT * FROM tenants ORDER BY name")
    for tenant in tenants:
        tenant_id = tenant["id"]
        tenant_name = tenant["name"]
        prefix = f"tenants/{tenant_id}/".encode()
        end = f"tenants/{tenant_id};".encode()
        users = list(db.scan(prefix, end))
        print(f"\n{tenant_name} ({len(users)} users):")
        for key, value in users:
            user_data = json.loads(value.decode())
            print(f"  {key.decode()}: {user_data['email']} ({user_data['role']})")
    assert printed() == (
        "\nACME Corp (2 users):\n"
        "  tenants/1/users/alice: alice@acme.com (admin)\n"
        "  tenants/1/users/bob: bob@acme.com (user)\n"
        "\nGlobex Inc (1 users):\n"
        "  tenants/2/users/charlie: charlie@globex.com (admin)\n"
    )


def test_a_shop(db: Any, printed: Printed) -> None:
    db.execute_sql("""
        CREATE TABLE products (
            id INTEGER PRIMARY KEY,
            name TEXT,
            price REAL,
            category TEXT
        )
    """)
    db.execute_sql("""
        CREATE TABLE orders (
            id INTEGER PRIMARY KEY,
            product_id INTEGER,
            quantity INTEGER,
            total REAL
        )
    """)
    db.execute_sql("INSERT INTO products VALUES (1, 'Laptop', 999.99, 'Electronics')")
    db.execute_sql("INSERT INTO products VALUES (2, 'Mouse', 25.00, 'Electronics')")
    db.execute_sql("INSERT INTO products VALUES (3, 'Desk', 299.99, 'Furniture')")
    db.execute_sql("INSERT INTO orders VALUES (1, 1, 2, 1999.98)")
    db.execute_sql("INSERT INTO orders VALUES (2, 2, 5, 125.00)")
    results = db.execute_sql("""
        SELECT
            products.category,
            COUNT(orders.id) as order_count,
            SUM(orders.total) as revenue
        FROM products
        JOIN orders ON products.id = orders.product_id
        GROUP BY products.category
        ORDER BY revenue DESC
    """)
    print("Category Performance:")
    for row in results:
        print(f"{row['category']}: {row['order_count']} orders, ${row['revenue']:.2f}")
    assert printed() == "Category Performance:\nElectronics: 2 orders, $2124.98\n"
