"""A shop in SQL and keys: threads sell what is in stock, and each sale is one transaction of rows and a key.

It needs no server::

    python examples/sql.py                       # in a temporary folder
    python examples/sql.py ./data                # in a folder of yours
    python examples/sql.py ./data/toondb.sock    # the same program, on a running toondb-server

A sale takes one from the stock, writes an order and stores the invoice under a key: all of it or nothing. A CHECK keeps
the stock from falling below zero, however many sell at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from toondb import Database, IpcClient, Store, ToonDBError, connect
from toondb.errors import SqlConstraintError

_TABLES = """
    DROP TABLE IF EXISTS shop_orders;
    DROP TABLE IF EXISTS shop_products;
    DROP TABLE IF EXISTS shop_texts;
    CREATE TABLE shop_products (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, price REAL NOT NULL,
        stock INTEGER NOT NULL CHECK (stock >= 0)
    );
    CREATE TABLE shop_orders (
        id INTEGER PRIMARY KEY, product INTEGER NOT NULL REFERENCES shop_products (id), buyer TEXT NOT NULL
    );
    CREATE VIRTUAL TABLE shop_texts USING fts5(name, about);
"""
_PRODUCTS = [("Laptop", 999.0, 5), ("Mouse", 25.0, 30), ("Cable", 4.5, 20)]
_TEXTS = [("Laptop", "a light machine for long days"), ("Mouse", "light, with a long cable"), ("Cable", "two metres")]
_THREADS = 4
_CUSTOMERS = 60


def sell(txn: Store, name: str, buyer: str) -> int:
    """Sell one product, inside a transaction; returns the number of the order.

    Raises:
        SqlConstraintError: It is sold out.
    """
    sold = txn.execute("UPDATE shop_products SET stock = stock - 1 WHERE name = ? RETURNING id, price", [name])[0]
    order = txn.execute("INSERT INTO shop_orders (product, buyer) VALUES (?, ?)", [sold["id"], buyer]).last_row_id
    txn.put(f"shop/invoice/{order}", f"{buyer}: {name} for {sold['price']}".encode())
    return order


def buy(store: Database | IpcClient, number: int) -> bool:
    """One customer buys something; returns whether there was any left."""
    name = _PRODUCTS[number % len(_PRODUCTS)][0]
    try:
        # Two that write tables at the same time conflict; the loser runs again.
        store.run_transaction(lambda txn: sell(txn, name, f"customer {number}"), attempts=1000)
    except SqlConstraintError:
        return False
    return True


def run(store: Database | IpcClient) -> bool:
    """Show it; returns whether everything came out right."""
    store.execute_script(_TABLES)
    store.delete_path("shop", recursive=True)
    store.executemany("INSERT INTO shop_products (name, price, stock) VALUES (?, ?, ?)", _PRODUCTS)
    store.executemany("INSERT INTO shop_texts VALUES (?, ?)", _TEXTS)

    with ThreadPoolExecutor(_THREADS) as threads:
        sold = sum(threads.map(lambda number: buy(store, number), range(_CUSTOMERS)))
    print(f"{sold} of {_CUSTOMERS} customers got what they wanted")

    report = store.execute("""
        SELECT p.name, count(*) AS sold, p.stock AS left, sum(sum(p.price)) OVER (ORDER BY p.id) AS running_total
        FROM shop_products p JOIN shop_orders o ON o.product = p.id GROUP BY p.id ORDER BY p.id
    """)
    for row in report:
        print(f"{row['name']}: {row['sold']} sold, {row['left']} left, {row['running_total']:.2f} so far")
    found = store.execute("SELECT name FROM shop_texts WHERE shop_texts MATCH 'light' ORDER BY bm25(shop_texts)")
    print("light things:", ", ".join(sorted(row["name"] for row in found)))
    print("as TOON:", store.query("shop_products").select(["name", "stock"]))

    orders = sum(1 for _ in store.stream_sql("SELECT id FROM shop_orders"))
    invoices = sum(1 for _ in store.scan("shop/invoice/"))
    right = sold == orders == invoices == 45 and [row["left"] for row in report] == [0, 10, 0]
    print("every order has its invoice, and nothing was sold twice" if right else "WRONG")
    return right


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("target", nargs="?", help="a folder, or the socket of a running toondb-server")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="toondb-") as folder, connect(options.target or folder) as store:
            return 0 if run(store) else 1
    except ToonDBError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
