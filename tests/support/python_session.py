"""Executes Python blocks of a document in one namespace: one JSON request on a line, its output, then a mark.

Run by ``documents.py`` as a program of its own. An expression statement with ``# -> value`` at its end must have that
``repr``; ``...`` in it stands for anything.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import traceback
import warnings
from typing import Any

_ARROW = re.compile(r"#\s*->\s*(.*)$")


class _Checks(ast.NodeTransformer):
    """Turns ``expression  # -> value`` into a checked one."""

    def __init__(self, lines: list[str]) -> None:
        self.arrows = {at: found[1] for at, line in enumerate(lines, start=1) if (found := _ARROW.search(line))}

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        expected = self.arrows.pop(node.end_lineno or 0, None)
        if expected is not None:
            place = ast.copy_location
            name = place(ast.Name("__check__", ast.Load()), node.value)
            values = [place(ast.Constant(item), node.value) for item in (expected, ast.unparse(node.value))]
            node.value = place(ast.Call(name, [node.value, *values], []), node.value)
        return node


def _check(value: Any, expected: str, source: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    if not re.fullmatch(pattern, repr(value), re.DOTALL):
        raise AssertionError(f"{source} is {value!r}, the document says {expected}")


def _run(request: dict[str, Any], namespace: dict[str, Any]) -> None:
    tree = ast.parse(request["code"], request["name"])
    checks = _Checks(request["code"].splitlines())
    tree = ast.fix_missing_locations(checks.visit(tree))
    if checks.arrows:
        raise AssertionError(f"'# -> ' belongs behind an expression: {checks.arrows}")
    ast.increment_lineno(tree, request["line"] - 1)
    exec(compile(tree, request["name"], "exec", dont_inherit=True), namespace)


def main() -> int:
    """Serve requests until standard input ends."""
    warnings.simplefilter("error")
    namespace: dict[str, Any] = {"__name__": "__main__", "__check__": _check}
    for line in sys.stdin:
        try:
            _run(json.loads(line), namespace)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            return 1
        print("=== done ===", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
