"""The house: which package may import which, how light an import is, and the twins that must not drift apart."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import toondb
import toondb_client
import toondb_protocol
import toondb_server
from toondb import database, pipeline
from toondb_client.aio import AsyncIpcClient, AsyncTransaction
from toondb_client.aio_collections import AsyncCollection, AsyncHasCollections, AsyncNamespace
from toondb_client.ipc import IpcClient, Transaction
from toondb_client.pipeline import AsyncPipeline, Pipeline
from toondb_protocol.collections import Collection, HasCollections, Namespace
from toondb_protocol.query_builder import AsyncQueryBuilder, QueryBuilder
from toondb_protocol.store import Store

ROOT = Path(__file__).resolve().parent.parent
PACKAGES: dict[str, Path] = {
    "toondb_protocol": ROOT / "protocol" / "toondb_protocol",
    "toondb_client": ROOT / "toondb_client",
    "toondb": ROOT / "toondb",
    "toondb_server": ROOT / "toondb_server",
}
# What each package may import besides itself and the standard library (section 2 of the architecture).
ARROWS: dict[str, set[str]] = {
    "toondb_protocol": {"msgpack"},
    "toondb_client": {"toondb_protocol", "msgpack"},
    "toondb": {"toondb_protocol", "apsw", "faiss", "lmdb", "msgpack", "numpy"},
    "toondb_server": {"toondb", "toondb_protocol", "click", "lmdb", "msgpack", "structlog", "uvloop"},
}
# Files that may import something more, and only inside functions.
LAZY: dict[str, set[str]] = {
    "toondb_client/direct.py": {"lmdb"},
    "toondb/__init__.py": {"toondb_client"},
    "toondb/connecting.py": {"toondb_client"},
    "toondb/context/tokens.py": {"tiktoken"},
    "toondb/toon_spec.py": {"toon_format"},
}
# Files that are of use only to those who have something more, which they import when they are imported; and commands.
ADAPTERS: dict[str, set[str]] = {
    "toondb/sqlalchemy.py": {"sqlalchemy"},
    "toondb/bulk_cli.py": {"click"},
    "toondb/command.py": {"click"},
}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
SCRIPTS = sorted(path for name in ("examples", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py"))
MODULES = sorted(
    module.name
    for package in (toondb_protocol, toondb_client, toondb, toondb_server)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__")
)
HEAVY = ("lmdb", "numpy", "faiss", "apsw", "asyncio", "uvloop", "structlog", "click")
TWINS = [
    (IpcClient, AsyncIpcClient),
    (Transaction, AsyncTransaction),
    (Pipeline, AsyncPipeline),
    (QueryBuilder, AsyncQueryBuilder),
    (HasCollections, AsyncHasCollections),
    (Namespace, AsyncNamespace),
    (Collection, AsyncCollection),
]


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "protocol" if "protocol" in path.relative_to(ROOT).parts[:1] else ROOT).as_posix()


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Top-level names of absolute imports, and whether each happens when the module is imported.

    Also what ``import_module("name")`` names. Imports for type checkers alone do not count.
    """

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                for other in child.orelse:
                    yield from walk(other, at_import)
                continue
            if isinstance(child, ast.Import):
                yield from ((name.name.split(".")[0], at_import) for name in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                yield child.module.split(".")[0], at_import
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
                named = [str(item.value) for item in child.args[:1] if isinstance(item, ast.Constant)]
                yield from ((name.split(".")[0], at_import) for name in named if not name.startswith("."))
            yield from walk(child, inside)

    yield from walk(tree, True)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_arrows_point_one_way(path: Path) -> None:
    name = relative(path)
    package = name.split("/")[0]
    allowed, lazy = ARROWS[package] | {package} | ADAPTERS.get(name, set()), LAZY.get(name, set())
    for imported, at_import in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if imported in sys.stdlib_module_names or imported in allowed:
            continue
        assert imported in lazy, f"{name} imports {imported}, which {package} must not"
        assert not at_import, f"{name} must import {imported} only when it is used"


def test_relative_imports_stay_inside_their_package() -> None:
    for path in SOURCES:
        depth = len(relative(path).split("/")) - 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= depth, f"{relative(path)} leaves its package"


@pytest.mark.parametrize(
    "statement",
    [
        "import toondb",
        "import toondb_client",
        "from toondb import IpcClient, ToonDBError",
        "from toondb_client import IpcClient, Transaction, Row",
        "from toondb import Change, ChangeKind, Row, Store, connect, errors",
        "from toondb import PluginRegistry, PythonPlugin, TriggerEvent",
        "from toondb import AsyncContextQuery, ContextQuery, DeduplicationStrategy, TruncationStrategy",
        "import toondb; dir(toondb)",
        "import toondb; toondb.__all__",
        "import toondb\ntry: toondb.connect('/nowhere/toondb.sock')\nexcept toondb.ConnectionError: pass",
    ],
)
def test_an_import_stays_light(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "the module docstring is missing"


@pytest.mark.parametrize("name", ["toondb", "toondb_client", *MODULES])
def test_public_names_exist_and_are_documented(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    public = getattr(module, "__all__", ())
    assert len(set(public)) == len(public)
    for item in public:
        value = getattr(module, item)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{item} has no docstring"
            assert not (value.__doc__ or "").startswith(f"{item}("), f"{name}.{item} has only a generated docstring"


@pytest.mark.parametrize("package", [toondb, toondb_client])
def test_the_lazy_facades_answer_all_their_names(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


# Twins


def public(cls: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")}


def plain(annotation: object) -> str:
    """An annotation with what differs between the twins taken away."""
    text = str(annotation).replace("Async", "")
    return re.sub(r"Awaitable\[(\w+)\]", r"\1", text)


def parameters(function: Any) -> list[tuple[str, Any, Any, str]]:
    function = getattr(function, "__func__", function)
    found = list(inspect.signature(function).parameters.values())[1:]
    # The pool of a client is of its own kind by nature.
    return [(item.name, item.kind, item.default, plain(item.annotation)) for item in found]


@pytest.mark.parametrize(("sync", "aio"), TWINS, ids=lambda cls: cls.__name__)
def test_twins_have_the_same_methods_and_signatures(sync: type, aio: type) -> None:
    left, right = public(sync), public(aio)
    assert left.keys() == right.keys()
    for name, method in left.items():
        if isinstance(method, property):
            assert isinstance(right[name], property), name
            continue
        if not callable(method) and not isinstance(method, classmethod):
            continue
        assert type(method) is type(right[name]), name
        if name == "find":
            continue  # takes the pool, which is of each twin's own kind
        assert parameters(method) == parameters(right[name]), name


@pytest.mark.parametrize(("sync", "aio"), TWINS, ids=lambda cls: cls.__name__)
def test_twins_return_the_same_kinds(sync: type, aio: type) -> None:
    left, right = public(sync), public(aio)
    for name, method in left.items():
        function = getattr(method, "__func__", method)
        if not inspect.isfunction(function) or name == "transaction":
            continue  # the async transaction() is both awaitable and an async context manager
        here = plain(inspect.signature(function).return_annotation)
        there = plain(inspect.signature(getattr(right[name], "__func__", right[name])).return_annotation)
        assert here == there, name


@pytest.mark.parametrize(("sync", "aio"), TWINS, ids=lambda cls: cls.__name__)
def test_every_public_method_is_documented(sync: type, aio: type) -> None:
    for cls in (sync, aio):
        for name, method in public(cls).items():
            function = getattr(method, "__func__", getattr(method, "fget", method))
            if inspect.isfunction(function):
                # Those of a Store are documented there.
                assert inspect.getdoc(getattr(cls, name)), f"{cls.__name__}.{name} has no docstring"


# One contract, every mode

# What a database has that a client has not, and the other way round.
ONLY_EMBEDDED = {"open", "open_concurrent", "path", "is_concurrent", "read_only", "plugins", "to_toon", "from_toon"}
ONLY_CLIENT = {"connect"}
KINDS = [(database.Database, IpcClient), (database.Transaction, Transaction), (pipeline.Pipeline, Pipeline)]


@pytest.mark.parametrize(("embedded", "client"), KINDS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_store_has_the_same_methods_in_every_mode(embedded: type, client: type) -> None:
    here, there = public(embedded), public(client)
    whole = embedded is database.Database
    assert here.keys() - there.keys() == (ONLY_EMBEDDED if whole else set())
    assert there.keys() - here.keys() == (ONLY_CLIENT if whole else set())
    for name in here.keys() & there.keys():
        left, right = here[name], there[name]
        assert type(left) is type(right), name
        if isinstance(left, property):
            left, right = left.fget, right.fget
        assert parameters(left) == parameters(right), name
        if embedded is not pipeline.Pipeline:  # the methods of a client's pipelines answer Any, for both twins
            returned = [str(inspect.signature(function).return_annotation) for function in (left, right)]
            assert returned[0].replace("Database", "IpcClient") == returned[1], name


@pytest.mark.parametrize(("embedded", "client"), KINDS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_public_method_of_a_store_is_documented(embedded: type, client: type) -> None:
    for cls in (embedded, client):
        for name in public(cls):
            assert inspect.getdoc(getattr(cls, name)), f"{cls.__name__}.{name} has no docstring"


def test_all_stores_are_stores() -> None:
    for store in (database.Database, database.Transaction, IpcClient, Transaction):
        assert issubclass(store, Store)
        assert not inspect.isabstract(store)
    # An async client has every method of a store, too.
    assert public(Store).keys() <= public(AsyncIpcClient).keys() & public(AsyncTransaction).keys()
