"""Another process that has a folder open: ``python -m tests.contract.neighbour FOLDER open_concurrent``.

It does what it is told, one JSON list of a method and its arguments on a line, and answers each by a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.daemon import SECONDS, child_environ

__all__ = ["Neighbour"]


class Neighbour:
    """The other process, driven from here. Its methods may be called from any thread.

    Args:
        folder: The database folder.
        opened: The method that opens it: ``open_concurrent`` or ``open``.
    """

    def __init__(self, folder: Path, opened: str = "open_concurrent") -> None:
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.contract.neighbour", str(folder), opened],
            env=child_environ(),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "open"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def call(self, method: str, *args: str | int | list[Any] | None) -> Any:
        """Call a method of its store; a value is given and answered as text."""
        with self._lock:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([method, *args]) + "\n")
            self.process.stdin.flush()
            return json.loads(self._line())

    def put(self, key: str, value: bytes) -> None:
        """Store a value there."""
        self.call("put", key, value.decode())

    def execute_sql(self, sql: str, params: list[str | int | None] | None = None) -> list[dict[str, Any]]:
        """Run a statement there; answers its rows."""
        rows: list[dict[str, Any]] = self.call("execute_sql", sql, params)
        return rows

    def insert(self, where: tuple[str, str], id: str, vector: list[float], content: str) -> None:
        """Store a document there, in the collection of that namespace and name."""
        self.call("insert", *where, id, vector, content)

    def search(self, where: tuple[str, str], vector: list[float], words: str) -> list[str]:
        """A hybrid search there; answers the ids."""
        found: list[str] = self.call("search", *where, vector, words)
        return found

    def close(self) -> None:
        """Let it close its store and end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(SECONDS) == 0
        finally:
            self.process.kill()
            self.process.wait(SECONDS)
            self.process.stdout.close()


def main() -> None:
    """Open the folder and serve lines until there are no more."""
    from toondb import Database
    from toondb_protocol.sql_result import SQLQueryResult

    with getattr(Database, sys.argv[2])(sys.argv[1]) as db:
        print("open", flush=True)
        for line in sys.stdin:
            method, *args = json.loads(line)
            if method in ("put", "compare_and_set"):
                args[1:] = [item if item is None else item.encode() for item in args[1:]]
            if method in ("insert", "search"):
                docs = db.collection(*args[:2])
                if method == "insert":
                    answer = docs.insert(args[2], args[3], content=args[4])
                else:
                    answer = [each.id for each in docs.hybrid_search(args[2], args[3])]
            else:
                answer = getattr(db, method)(*args)
            if isinstance(answer, SQLQueryResult):
                answer = answer.rows
            print(json.dumps(answer.decode() if isinstance(answer, bytes) else answer), flush=True)


if __name__ == "__main__":
    main()
