"""The documents: what they show is executed, what exists is documented, and links lead somewhere."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

import toondb
from tests.support.daemon import Daemon
from tests.support.documents import ROOT, Block, DocumentRunner, code_blocks, make_targets, matches
from toondb import Database
from toondb.config import CONFIG_KEYS
from toondb.database import Transaction as EmbeddedTransaction
from toondb.engine.options import EngineOptions, SyncMode
from toondb.pipeline import Pipeline as EmbeddedPipeline
from toondb.sql.options import SqlOptions
from toondb.sql.policy import READ_PRAGMAS, SET_PRAGMAS, VIRTUAL_TABLES
from toondb_client import IpcClient, Row, Transaction
from toondb_client.aio import AsyncIpcClient, AsyncTransaction
from toondb_client.aio_collections import AsyncCollection, AsyncNamespace
from toondb_client.pipeline import AsyncPipeline, Pipeline
from toondb_protocol import errors
from toondb_protocol.collections import Collection, Namespace
from toondb_protocol.query_builder import AsyncQueryBuilder, QueryBuilder
from toondb_protocol.search import CollectionConfig, SearchRequest
from toondb_protocol.sql_result import SQLQueryResult
from toondb_server import cli_admin
from toondb_server.cli import cli

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_MARKDOWN = [
    *DOCUMENTS,
    *(ROOT / name for name in ("systemd/README.md", "benchmarks/README.md", "protocol/vectors/README.md")),
]
TARGETS = {
    *(
        "help",
        "install",
        "demo",
        "demo-search",
        "test",
        "lint",
        "types",
        "check",
        "fuzz",
        "corpus",
        "bench",
        "docs",
        "format",
        "clean",
    ),
}


def is_doctest(block: Block) -> bool:
    return block.code.startswith(">>> ")


def runs(document: Path) -> bool:
    return any(block.language in ("bash", "python") and not is_doctest(block) for block in code_blocks(document))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The text below a heading line, up to the next heading."""
    assert f"\n{heading}\n" in text, f"there is no heading {heading!r}"
    return re.split(r"\n#+ ", text.split(f"\n{heading}\n", 1)[1])[0]


def table(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, without their head lines."""
    rows: list[list[str]] = []
    lines = [*text.splitlines(), ""]
    for at, line in enumerate(lines):
        if line.startswith("| ") and not line.startswith("| --- ") and not lines[at + 1].startswith("| --- "):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# What documents show


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if runs(path)], ids=lambda path: path.name)
def test_the_code_of_a_document_runs_as_shown(document: Path) -> None:
    with DocumentRunner(document) as runner:
        for block in code_blocks(document):
            if block.language in ("bash", "python"):
                runner.run(block)


def test_only_one_document_is_a_doctest() -> None:
    # tests/test_toon.py runs it.
    found = [path.name for path in DOCUMENTS if any(is_doctest(block) for block in code_blocks(path))]
    assert found == ["toon.md"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\n1 + 1    # -> 3\n```\n", "is 2, the document says 3"),
        ("```python\nx = 1    # -> 1\n```\n", "belongs behind an expression"),
        ("```python\nprint('a')\n```\n\n```text\nb\n```\n", "but the output is"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```bash\nfalse\necho not reached\n```\n", "failed"),
        ("```bash\nmake no-such-target\n```\n", "no target 'no-such-target'"),
        ("```bash\ntoondb-server --db /no/such/folder/db\n```\n", "did not start a server"),
    ],
)
def test_a_wrong_document_is_found(tmp_path: Path, text: str, complaint: str) -> None:
    document = tmp_path / "wrong.md"
    document.write_text(text, encoding="utf-8")
    with DocumentRunner(document) as runner, pytest.raises(AssertionError, match=re.escape(complaint)):
        for block in code_blocks(document):
            if block.language != "text":
                runner.run(block)


def test_matching() -> None:
    assert matches("a...c\n", "abbbc")
    assert matches("...", "")
    assert not matches("a", "ab")
    assert not matches("a.c", "abc")


def test_the_makefile_has_the_targets_that_people_expect() -> None:
    assert make_targets() == TARGETS


# Links


@cache
def anchors(document: Path) -> set[str]:
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", ""))
        found.add(words.replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", ALL_MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{target} does not exist"
        assert linked.is_relative_to(ROOT), f"{target} is outside of the project"
        assert not anchor or anchor in anchors(linked), f"{target}: there is no such heading"


def test_every_page_is_linked_from_the_readme() -> None:
    readme = text_of("README.md")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, f"README.md does not link docs/{page.name}"


# The command line


@pytest.fixture(scope="module")
def commands() -> dict[str, click.Command]:
    cli_admin.register(cli)
    return dict(cli.commands)


def options_of(command: click.Command) -> list[click.Option]:
    return [item for item in command.params if isinstance(item, click.Option) and not item.hidden]


def long_name(option: click.Option) -> str:
    return max(option.opts, key=len)


def shown_default(option: click.Option) -> str:
    """The default as ``--help`` shows it; empty for none."""
    in_text = re.search(r"\[default: (.*?)\]", option.help or "")
    if in_text:
        return in_text[1]
    if isinstance(option.show_default, str):
        return option.show_default
    return str(option.default) if option.show_default else ""


def test_every_option_of_serve_is_documented(commands: dict[str, click.Command]) -> None:
    rows = table(section(text_of("docs/operations.md"), "## Options of `toondb-server serve`"))
    documented = {code(row[0])[0]: (code(row[1]), row[2].replace("`", "")) for row in rows}
    options = options_of(commands["serve"])
    expected = {long_name(option): ([option.envvar], shown_default(option)) for option in options}
    assert documented == expected
    assert all(row[3] for row in rows)


def test_every_command_and_its_options_are_documented(commands: dict[str, click.Command]) -> None:
    rows = table(section(text_of("docs/operations.md"), "## Commands"))
    documented = {code(row[0])[0]: set(code(row[2])) for row in rows}
    expected = {
        name: {long_name(option) for option in options_of(command)} if name != "serve" else set()
        for name, command in commands.items()
        if not command.hidden
    }
    assert documented == expected


def test_every_counter_is_documented(daemon: Daemon) -> None:
    rows = table(section(text_of("docs/operations.md"), "## Monitoring"))
    documented = [name for row in rows for name in code(row[0])]
    with IpcClient.connect(daemon.socket) as client:
        assert sorted(documented) == sorted(client.stats())


# The clients


def signature(name: str, method: Any) -> str:
    """``name(argument, *, other=1)``, as the documents write it; the bare name of a property."""
    if isinstance(method, property):
        return name
    shown: list[str] = []
    parameters = list(inspect.signature(getattr(method, "__func__", method)).parameters.values())
    items = parameters[0 if isinstance(method, staticmethod) else 1 :]
    for at, item in enumerate(items):
        if item.kind is item.KEYWORD_ONLY and not any(one.startswith("*") for one in shown):
            shown.append("*")
        stars = "**" if item.kind is item.VAR_KEYWORD else "*" if item.kind is item.VAR_POSITIONAL else ""
        default = str(item.default) if isinstance(item.default, Enum) else item.default
        shown.append(stars + item.name if item.default is item.empty else f"{item.name}={default!r}")
        last = at + 1 == len(items) or items[at + 1].kind is not item.POSITIONAL_ONLY
        if item.kind is item.POSITIONAL_ONLY and last:
            shown.append("/")
    return f"{name}({', '.join(shown)})"


def public(*classes: type) -> set[str]:
    return {
        signature(name, inspect.getattr_static(cls, name))
        for cls in classes
        for name in dir(cls)
        if not name.startswith("_") and not (issubclass(cls, tuple) and hasattr(tuple, name))
    }


def documented(heading: str) -> set[str]:
    rows = table(section(text_of("docs/clients.md"), heading))
    assert all(row[1] for row in rows)
    return {code(row[0])[0] for row in rows}


STORE = "## Reads and writes"


@pytest.mark.parametrize(
    ("headings", "classes"),
    [
        ((STORE, "### IpcClient"), (IpcClient, AsyncIpcClient)),
        ((STORE, "### Transaction"), (Transaction, AsyncTransaction)),
        (("### Pipeline",), (Pipeline, AsyncPipeline)),
        (("### QueryBuilder",), (QueryBuilder, AsyncQueryBuilder)),
        (("### Row",), (Row,)),
    ],
    ids=lambda item: item[-1] if isinstance(item[-1], str) else item[0].__name__,
)
def test_every_public_method_is_documented(headings: tuple[str, ...], classes: tuple[type, ...]) -> None:
    found = {name for heading in headings for name in documented(heading)}
    # Transaction.find() is for the clients' commit() and abort(): it takes their pool.
    assert found == {name for name in public(*classes) if not name.startswith("find(")}


def test_every_method_of_an_embedded_database_is_documented() -> None:
    own = {code(row[0])[0] for row in table(section(text_of("docs/embedded.md"), "## Database"))}
    shared = {name for heading in (STORE, "### IpcClient") for name in documented(heading)}
    assert own | {name for name in shared if not name.startswith("connect(")} == public(Database)
    assert public(EmbeddedTransaction) == public(Transaction)
    assert public(EmbeddedPipeline) == public(Pipeline)


def test_every_key_of_a_config_is_documented() -> None:
    rows = table(section(text_of("docs/embedded.md"), "## Config"))
    assert tuple(code(row[0])[0] for row in rows) == CONFIG_KEYS
    options, sql = EngineOptions(), SqlOptions()
    assert [row[1].strip('`"') for row in rows] == [
        str(options.create_if_missing),
        str(options.sync_mode),
        str(options.sync_mode is not SyncMode.OFF),
        *(
            f"{size >> 20} MiB" if size < 1 << 40 else f"{size >> 40} TiB"
            for size in (options.max_transaction_bytes, options.map_size, options.change_history_bytes)
        ),
        str(sql.foreign_keys),
        str(sql.statement_seconds or 0),
    ]


def test_every_counter_of_an_embedded_database_is_documented(tmp_path: Path) -> None:
    rows = table(section(text_of("docs/embedded.md"), "## Counters"))
    with Database.open(tmp_path / "db") as db:
        assert sorted(name for row in rows for name in code(row[0])) == sorted(db.stats())


def test_every_argument_of_watch_is_documented() -> None:
    rows = table(section(text_of("docs/expiry-and-changes.md"), "## Watch"))
    parameters = list(inspect.signature(Database.watch).parameters.values())[1:]
    assert [(code(row[0])[0], code(row[1])[0]) for row in rows] == [(one.name, repr(one.default)) for one in parameters]


def test_every_option_of_connect_is_documented() -> None:
    rows = table(section(text_of("docs/clients.md"), "## Connecting"))
    expected = [name for name in inspect.signature(IpcClient.connect).parameters if name != "target"]
    assert [code(row[0])[0] for row in rows] == expected


def test_every_error_is_documented() -> None:
    rows = table(section(text_of("docs/clients.md"), "## Errors"))
    expected: dict[str, tuple[str, str]] = {}
    for name in errors.__all__:
        value = getattr(errors, name)
        if inspect.isclass(value) and issubclass(value, errors.ToonDBError):
            expected[name] = (value.code, (inspect.getdoc(value) or "").split("\n")[0].replace("``", "`"))
    assert {code(row[0])[0]: (code(row[1])[0], row[2]) for row in rows} == expected


# SQL


def test_every_attribute_of_a_sql_result_is_documented() -> None:
    rows = table(section(text_of("docs/sql.md"), "## Results"))
    own = {name for name in dir(SQLQueryResult) if not name.startswith("_") and not hasattr(Sequence, name)}
    assert {code(row[0])[0] for row in rows} == own


def test_every_pragma_is_documented() -> None:
    (text,) = [part for part in text_of("docs/sql.md").split("\n\n") if part.startswith("PRAGMAs that may be asked")]
    asked, _, to_set = text.partition("To be set:")
    assert code(asked) == sorted(READ_PRAGMAS)
    assert set(code(to_set)) == SET_PRAGMAS


def test_every_kind_of_virtual_table_is_documented() -> None:
    (row,) = [row for row in table(text_of("docs/sql.md")) if row[0].startswith("virtual tables")]
    assert set(code(row[0])) == VIRTUAL_TABLES


# Collections


@pytest.mark.parametrize("classes", [(Namespace, AsyncNamespace), (Collection, AsyncCollection)])
def test_every_method_of_a_namespace_and_a_collection_is_documented(classes: tuple[type, ...]) -> None:
    rows = table(section(text_of("docs/collections.md"), f"### {classes[0].__name__}"))
    assert all(row[1] for row in rows)
    assert {code(row[0])[0] for row in rows} == public(*classes)


def test_every_field_of_a_search_is_documented() -> None:
    rows = [row for row in table(section(text_of("docs/collections.md"), "## Searches")) if row[0].startswith("`")]
    known = {field.name: repr(field.default) for field in fields(SearchRequest)}
    assert {code(row[0])[0]: code(row[1])[0] for row in rows if "(" not in row[0]} == known


def test_every_option_of_a_collection_is_documented() -> None:
    rows = table(section(text_of("docs/collections.md"), "## Names"))
    known = {field.name: field.default for field in fields(CollectionConfig) if field.default is not MISSING}
    shown = {code(row[0])[0]: row[1].strip("`").strip('"') for row in rows}
    assert shown == {name: str(default) for name, default in known.items()}


# Dependencies and versions


def test_every_dependency_is_documented() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))
    wanted = [
        *project["project"]["dependencies"],
        *(item for extra in project["project"]["optional-dependencies"].values() for item in extra),
        *project["build-system"]["requires"],
    ]
    names = {re.split(r"[^\w-]", item)[0] for item in wanted}
    assert {code(row[0])[0] for row in table(text_of("docs/dependencies.md"))} == names


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {toondb.__version__}\n" in text_of("CHANGELOG.md")
    assert tomllib.loads(text_of("pyproject.toml"))["project"]["version"] == toondb.__version__
