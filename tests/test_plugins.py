"""Plugins: what is found when they are registered, what handlers see and return, and changes from many threads."""

from __future__ import annotations

import copy
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toondb
from toondb.plugins import PluginError, PluginRegistry, PythonPlugin, TriggerAbort, TriggerEvent
from toondb_protocol.errors import ErrorCode, ToonDBError, ValidationError, error_from_wire

EVENTS = list(TriggerEvent)
ROW_EVENTS = [event for event in EVENTS if event is not TriggerEvent.ON_BATCH]
SHARED: dict[str, Any] = {}
"""What a test and the code of its plugins have in common."""

BEFORE = [event for event in ROW_EVENTS if event.name.startswith("BEFORE")]
AFTER = [event for event in ROW_EVENTS if event.name.startswith("AFTER")]

MEMBER_RULES = '''
import time


def on_before_insert(row: dict) -> dict:
    """Bring a member into shape."""
    if row.get("age", 0) < 0:
        raise TriggerAbort("Age cannot be negative", code="INVALID_AGE")
    if "email" in row:
        row["email"] = row["email"].strip().lower()
    row["created_at"] = time.time()
    return row


def on_after_delete(row: dict) -> dict:
    print(f"gone: {row}")
    return row
'''


def member_rules() -> PythonPlugin:
    return PythonPlugin(
        name="user_validator",
        code=MEMBER_RULES,
        version="1.0.0",
        packages=["pytest", "hypothesis"],
        triggers={"users": ["BEFORE INSERT", "AFTER DELETE"]},
    )


def registry_of(*plugins: PythonPlugin) -> PluginRegistry:
    registry = PluginRegistry()
    for plugin in plugins:
        registry.register(plugin)
    return registry


def appending(
    name: str, *, tables: tuple[str, ...] = ("t",), event: TriggerEvent | str = "BEFORE INSERT"
) -> PythonPlugin:
    """A plugin that writes its name behind those that came before it."""
    handler = TriggerEvent.parse(event).handler
    code = f"def {handler}(row):\n    row['by'] = [*row.get('by', []), {name!r}]\n    return row\n"
    return PythonPlugin(name, code, triggers={table: [event] for table in tables})


def plugin_of(body: str, event: TriggerEvent = TriggerEvent.BEFORE_INSERT, name: str = "p") -> PythonPlugin:
    """A plugin whose handler of one event has this body."""
    argument = "rows" if event is TriggerEvent.ON_BATCH else "row"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return PythonPlugin(name, f"def {event.handler}({argument}):\n{lines}\n", triggers={"t": [event]})


# --- the example of the guides ---------------------------------------------------------------------------------


def test_a_validator_normalises_and_stamps_a_row() -> None:
    registry = registry_of(member_rules())
    before = time.time()
    row = {"name": "Alice", "email": "  ALICE@EXAMPLE.COM  ", "age": 30}
    result = registry.fire("users", TriggerEvent.BEFORE_INSERT, row)
    assert result["email"] == "alice@example.com"
    assert before <= result["created_at"] <= time.time()
    assert (result["name"], result["age"]) == ("Alice", 30)
    assert row == {"name": "Alice", "email": "  ALICE@EXAMPLE.COM  ", "age": 30}


def test_a_validator_refuses_a_row() -> None:
    registry = registry_of(member_rules())
    row = {"name": "Bob", "age": -1}
    with pytest.raises(TriggerAbort) as caught:
        registry.fire("users", TriggerEvent.BEFORE_INSERT, row)
    assert (caught.value.code, caught.value.message) == ("INVALID_AGE", "Age cannot be negative")
    assert isinstance(caught.value, ToonDBError)
    assert caught.value.details == {
        "code": "INVALID_AGE",
        "plugin": "user_validator",
        "handler": "on_before_insert",
        "table": "users",
        "event": "BEFORE INSERT",
    }
    twin = error_from_wire(caught.value.to_wire())
    assert type(twin) is TriggerAbort
    assert (twin.code, twin.details) == ("INVALID_AGE", caught.value.details)
    assert row == {"name": "Bob", "age": -1}


def test_an_audit_sees_deleted_rows(capsys: pytest.CaptureFixture[str]) -> None:
    registry = registry_of(member_rules())
    row = {"name": "Alice"}
    assert registry.fire("users", TriggerEvent.AFTER_DELETE, row) is row
    assert capsys.readouterr().out == "gone: {'name': 'Alice'}\n"
    assert registry.fire("orders", TriggerEvent.AFTER_DELETE, row) is row
    assert capsys.readouterr().out == ""


def test_the_names_are_those_of_the_package() -> None:
    assert toondb.TriggerAbort is TriggerAbort
    assert toondb.errors.PluginError is PluginError


# --- events ----------------------------------------------------------------------------------------------------


def test_there_are_seven_events() -> None:
    assert {event.name: (event.value, event.handler) for event in EVENTS} == {
        "BEFORE_INSERT": ("BEFORE INSERT", "on_before_insert"),
        "AFTER_INSERT": ("AFTER INSERT", "on_after_insert"),
        "BEFORE_UPDATE": ("BEFORE UPDATE", "on_before_update"),
        "AFTER_UPDATE": ("AFTER UPDATE", "on_after_update"),
        "BEFORE_DELETE": ("BEFORE DELETE", "on_before_delete"),
        "AFTER_DELETE": ("AFTER DELETE", "on_after_delete"),
        "ON_BATCH": ("ON BATCH", "on_batch"),
    }


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_written_in_many_ways(event: TriggerEvent) -> None:
    texts = [event.value, event.name, event.value.lower(), event.name.lower(), f" {event.value.title()} "]
    for written in [event, *texts]:
        assert TriggerEvent.parse(written) is event
        registry = registry_of(appending("p", event=written) if event in ROW_EVENTS else plugin_of("pass", event))
        assert registry.has_triggers("t", event)
        assert registry.has_triggers("t", written)


@pytest.mark.parametrize("wrong", ["", "INSERT", "BEFORE  UPSERT", "BEFORE-INSERT", 5, None, ["BEFORE INSERT"]])
def test_there_are_no_other_events(wrong: Any) -> None:
    known = "Events: 'BEFORE INSERT', 'AFTER INSERT', 'BEFORE UPDATE', .*, 'ON BATCH'"
    registry = registry_of(appending("p"))
    for call in (
        lambda: TriggerEvent.parse(wrong),
        lambda: PythonPlugin("p", "", triggers={"t": [wrong]}),
        lambda: registry.fire("t", wrong, {}),
        lambda: registry.has_triggers("t", wrong),
    ):
        with pytest.raises(ValidationError, match=known):
            call()


# --- arguments -------------------------------------------------------------------------------------------------


def test_a_plugin_keeps_what_it_was_given() -> None:
    plugin = PythonPlugin("p", "x = 1", triggers={"t": ["before insert", "BEFORE_INSERT", "on_batch"]})
    assert (plugin.name, plugin.code, plugin.version, plugin.packages) == ("p", "x = 1", "1.0.0", ())
    assert plugin.triggers == {"t": (TriggerEvent.BEFORE_INSERT, TriggerEvent.ON_BATCH)}
    assert PythonPlugin("p", "x = 1").triggers == {}
    assert PythonPlugin("p", "", "2", ("a", "b-c")).packages == ("a", "b-c")
    assert "x = 1" not in repr(plugin)
    assert copy.deepcopy(plugin).triggers == plugin.triggers


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"name": ""}, "the name of a plugin is a str that is not empty, not ''"),
        ({"name": " "}, "the name of a plugin"),
        ({"name": None}, "not None"),
        ({"name": 5}, "not 5 (int)"),
        ({"code": b"x"}, "plugin 'p': code is a str, not b'x' (bytes)"),
        ({"code": None}, "code is a str"),
        ({"version": 1.0}, "version is a str, not 1.0 (float)"),
        ({"packages": "numpy"}, "packages is a list of names, not 'numpy'"),
        ({"packages": {"numpy": 1}}, "packages is a list of names, not a dict"),
        ({"packages": 5}, "packages is a list of names"),
        ({"packages": ["numpy>=2"]}, "'numpy>=2' is not the name of a package. Give the name alone"),
        ({"packages": ["a b"]}, "'a b' is not the name of a package"),
        ({"packages": [""]}, "'' is not the name of a package"),
        ({"packages": [".a"]}, "'.a' is not the name of a package"),
        ({"packages": [5]}, "5 (int) is not the name of a package"),
        ({"triggers": ["users"]}, 'triggers is a dict of tables and events, not a list. Write it like {"users"'),
        ({"triggers": "users"}, "triggers is a dict"),
        ({"triggers": {"users": "BEFORE INSERT"}}, "the events of table 'users' are a list, not 'BEFORE INSERT'"),
        ({"triggers": {"users": {"BEFORE INSERT": 1}}}, "the events of table 'users' are a list, not a dict"),
        ({"triggers": {"users": None}}, "the events of table 'users' are a list, not None"),
        ({"triggers": {"users": ["BEFORE UPSERT"]}}, "table 'users': there is no trigger event 'BEFORE UPSERT'"),
        ({"triggers": {"": ["BEFORE INSERT"]}}, "a table is a str, or \"*\" for every table, not ''"),
        ({"triggers": {5: ["BEFORE INSERT"]}}, "a table is a str"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PythonPlugin(**{"name": "p", "code": "", **arguments})
    assert what in str(caught.value)


# --- registration ----------------------------------------------------------------------------------------------


def test_a_registry_is_a_collection_of_plugins() -> None:
    registry = PluginRegistry()
    assert (len(registry), registry.list_plugins(), registry.get("a"), "a" in registry) == (0, [], None, False)
    b, a = appending("b"), appending("a")
    registry.register(b)
    registry.register(a)
    assert (len(registry), registry.list_plugins()) == (2, ["b", "a"])
    assert registry.get("a") is a
    assert "b" in registry
    assert registry.unregister("b") is True
    assert registry.unregister("b") is False
    assert (len(registry), registry.list_plugins(), "b" in registry) == (1, ["a"], False)
    assert registry.fire("t", "BEFORE INSERT", {}) == {"by": ["a"]}
    registry.unregister("a")
    assert not registry.has_triggers("t", "BEFORE INSERT")


def test_a_name_is_registered_once() -> None:
    registry = registry_of(appending("a"), appending("b"))
    ran = PythonPlugin("a", "raise RuntimeError('this must not run')")
    with pytest.raises(ValidationError, match=r"'a' is registered already\. .* replace=True"):
        registry.register(ran)
    other = PythonPlugin(
        "a", "def on_before_insert(row):\n    return {'by': ['new']}", triggers={"t": ["BEFORE INSERT"]}
    )
    registry.register(other, replace=True)
    assert registry.list_plugins() == ["a", "b"]
    assert registry.get("a") is other
    assert registry.fire("t", "BEFORE INSERT", {}) == {"by": ["new", "b"]}
    registry.register(appending("c"), replace=True)
    assert registry.list_plugins() == ["a", "b", "c"]


def test_a_name_that_is_taken_while_the_code_runs_is_refused() -> None:
    registry = PluginRegistry()
    other = PythonPlugin("p", "", version="first")
    # The code of a plugin may register others: no lock is held while it runs.
    SHARED["register"] = lambda: registry.register(other)
    with pytest.raises(ValidationError, match="registered already"):
        registry.register(PythonPlugin("p", "from tests.test_plugins import SHARED\nSHARED['register']()"))
    assert registry.get("p") is other


REGISTER_ERRORS: list[tuple[str, str]] = [
    ("def on_before_insert(row)\n    return row", "plugin 'p': syntax error at line 1: "),
    ("x = 1\n\ny = = 2", "syntax error at line 3: invalid syntax: y = = 2"),
    ("  x = 1", "syntax error at line 1: unexpected indent"),
    ("def on_before_insert(row):\n    yield = 1", "syntax error at line 2"),
    ("await x", "syntax error at line 1"),
    ("x = '\0'", "null bytes"),
    ("x = '\ud800'", "the code cannot be compiled: UnicodeEncodeError"),
    ("x = 1\nundefined_name", "its code failed at line 2 when it was run: NameError: name 'undefined_name'"),
    ("import no_such_module_here", "failed at line 1 when it was run: ModuleNotFoundError: No module named"),
    ("def f():\n    return 1 / 0\n\nf()", "failed at line 2 when it was run: ZeroDivisionError"),
    ("raise SystemExit(3)", "failed at line 1 when it was run: SystemExit: 3"),
    ("raise TriggerAbort('no', code='X')", "failed at line 1 when it was run: TriggerAbort: no"),
    (
        "class E(Exception):\n    def __str__(self):\n        return 1 / 0\n\nraise E",
        "failed at line 5 when it was run: E.",
    ),
    ("", "its triggers name 'BEFORE INSERT', but its code has no function on_before_insert()"),
    ("def on_before_update(row):\n    return row", "Define on_before_insert(row), or take the event out of triggers"),
    ("on_before_insert = 5", "on_before_insert is not a function but 5 (int)"),
    ("async def on_before_insert(row):\n    return row", "on_before_insert() is async; handlers are plain functions"),
    ("async def on_before_insert(row):\n    yield row", "on_before_insert() is async"),
    ("def on_before_insert(row):\n    yield row", "is a generator; handlers are plain functions. Use return instead"),
    ("class A:\n    async def __call__(self, row):\n        return row\n\non_before_insert = A()", "is async"),
    (
        "from functools import partial\nasync def f(a, row):\n    return row\non_before_insert = partial(f, 1)",
        "is async",
    ),
    ("def on_before_insert():\n    return None", "on_before_insert() must take one argument, the row."),
    ("def on_before_insert(row, table):\n    return row", "on_before_insert(row, table) must take one argument"),
    ("def on_before_insert(*, row):\n    return row", "Write def on_before_insert(row)."),
    # Also where no trigger names it: nobody means to write a handler that can never work.
    ("def on_before_insert(row):\n    pass\nasync def on_batch(rows):\n    pass", "on_batch() is async"),
]


@pytest.mark.parametrize(("code", "what"), REGISTER_ERRORS)
def test_mistakes_are_found_when_a_plugin_is_registered(code: str, what: str) -> None:
    registry = registry_of(appending("other"))
    plugin = PythonPlugin("p", code, triggers={"t": ["BEFORE INSERT"]})
    with pytest.raises(ValidationError) as caught:
        registry.register(plugin)
    assert what in str(caught.value)
    assert str(caught.value).startswith("plugin 'p'")
    # Nothing has changed.
    assert registry.list_plugins() == ["other"]
    assert registry.fire("t", "BEFORE INSERT", {}) == {"by": ["other"]}


def test_the_line_of_a_mistake_is_in_the_details() -> None:
    for code in ("x = 1\ny = = 2", "x = 1\n1 / 0"):
        with pytest.raises(ValidationError) as caught:
            PluginRegistry().register(PythonPlugin("p", code))
        assert caught.value.details == {"plugin": "p", "line": 2}
        assert isinstance(caught.value.__cause__, SyntaxError | ZeroDivisionError)


@pytest.mark.parametrize(
    "code", ["on_before_insert = dict", "def on_before_insert(row, table=None, *more, **rest):\n  ..."]
)
def test_handlers_may_be_any_callable_of_one_argument(code: str) -> None:
    registry = registry_of(PythonPlugin("p", code, triggers={"t": ["BEFORE INSERT"]}))
    assert registry.fire("t", "BEFORE INSERT", {"a": 1}) == {"a": 1}


def test_a_handler_that_no_trigger_names_is_not_called() -> None:
    code = "def on_before_insert(row):\n    return {}\n\ndef on_after_insert():\n    raise RuntimeError\n"
    registry = registry_of(PythonPlugin("p", code, triggers={"t": ["BEFORE INSERT"]}), PythonPlugin("q", code))
    row = {"a": 1}
    assert registry.fire("t", "AFTER INSERT", row) is row
    assert registry.fire("u", "BEFORE INSERT", row) is row
    assert registry.fire("t", "BEFORE INSERT", row) == {}


def test_missing_packages_are_named() -> None:
    packages = ["pytest", "no-such-dist-a", "json", "no_such_module_b", "importlib.metadata", "no_such_c.d"]
    plugin = PythonPlugin("p", "import no_such_module_b", packages=packages)
    with pytest.raises(ValidationError) as caught:
        PluginRegistry().register(plugin)
    missing = ["no-such-dist-a", "no_such_module_b", "no_such_c.d"]
    assert caught.value.message == f"plugin 'p' needs packages that are not installed: {', '.join(missing)}."
    assert caught.value.remediation == f"Run: pip install {' '.join(missing)}"
    assert caught.value.details == {"missing": missing}


def test_distributions_and_modules_count_as_packages() -> None:
    # A distribution whose module has another name, and modules without a distribution.
    registry_of(PythonPlugin("p", "", packages=["pytest-asyncio", "PyTest_AsyncIO", "json", "json.decoder"]))


def test_only_plugins_are_registered() -> None:
    wrong: Any
    for wrong in ("p", None, {"name": "p"}):
        with pytest.raises(ValidationError, match=r"register\(\) takes a PythonPlugin, not"):
            PluginRegistry().register(wrong)


def test_changing_a_plugin_has_no_effect_on_a_registry() -> None:
    plugin = appending("p")
    registry = registry_of(plugin)
    triggers: Any = plugin.triggers
    triggers["t"] = (TriggerEvent.ON_BATCH,)
    triggers["u"] = (TriggerEvent.BEFORE_INSERT,)
    registry.register(appending("q"))
    assert registry.fire("t", "BEFORE INSERT", {}) == {"by": ["p", "q"]}
    assert not registry.has_triggers("u", "BEFORE INSERT")


@pytest.mark.parametrize("name", ["a b", "<x>", "naïve", "nul\0", "\ud800", "new\nline"])
def test_names_may_be_any_text(name: str) -> None:
    registry = registry_of(plugin_of("return row['missing']", name=name))
    assert name in registry
    with pytest.raises(PluginError, match="at line 2 of the plugin") as caught:
        registry.fire("t", "BEFORE INSERT", {})
    assert caught.value.details["plugin"] == name


# --- the namespace of the code -----------------------------------------------------------------------------------


def test_code_has_the_builtins_and_names_of_its_own() -> None:
    code = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Limits:
    top: int = 3

limits = Limits()
calls = []

def check(row):
    if len(row) > limits.top:
        raise TriggerAbort(f"{len(row)} fields")

def on_before_insert(row: NotDefined) -> dict:
    calls.append(sorted(row))
    check(row)
    return {**row, "n": len(calls), "event": TriggerEvent.BEFORE_INSERT.value, "name": __name__}
"""
    registry = registry_of(PythonPlugin("counter", code, triggers={"t": ["BEFORE INSERT"]}))
    assert registry.fire("t", "BEFORE INSERT", {"a": 1})["n"] == 1
    # State stays between calls.
    assert registry.fire("t", "BEFORE INSERT", {"a": 1}) == {
        "a": 1,
        "n": 2,
        "event": "BEFORE INSERT",
        "name": "toondb_plugin.counter",
    }
    with pytest.raises(TriggerAbort, match="4 fields") as caught:
        registry.fire("t", "BEFORE INSERT", dict.fromkeys("abcd"))
    assert caught.value.code is ErrorCode.TRIGGER_ABORT


def test_the_module_of_a_plugin_lasts_as_long_as_its_registration() -> None:
    def modules() -> list[str]:
        return sorted(name for name in sys.modules if name.startswith("toondb_plugin.of_mine"))

    plugin = plugin_of("return {'name': __name__}", name="of_mine")
    one, two = registry_of(plugin), registry_of(plugin)
    assert modules() == ["toondb_plugin.of_mine", "toondb_plugin.of_mine#2"]
    assert two.fire("t", "BEFORE INSERT", {}) == {"name": "toondb_plugin.of_mine#2"}
    two.register(plugin, replace=True)
    assert modules() == ["toondb_plugin.of_mine", "toondb_plugin.of_mine#3"]
    one.unregister("of_mine")
    for code in ("x = = 1", "1 / 0", "async def on_batch(rows): ..."):
        with pytest.raises(ValidationError):
            one.register(PythonPlugin("of_mine", code))
        assert modules() == ["toondb_plugin.of_mine#3"]
    del two
    assert modules() == []


def test_code_does_not_inherit_the_future_of_this_package() -> None:
    code = "def on_before_insert(row: int):\n    return {'plain': on_before_insert.__annotations__['row'] is int}"
    registry = registry_of(PythonPlugin("p", code, triggers={"t": ["BEFORE INSERT"]}))
    assert registry.fire("t", "BEFORE INSERT", {}) == {"plain": True}


def test_plugins_do_not_share_their_names() -> None:
    code = "count = 0\ndef on_before_insert(row):\n    global count\n    count += 1\n    return {**row, NAME: count}\n"
    registry = registry_of(
        *(PythonPlugin(name, f"NAME = {name!r}\n{code}", triggers={"t": ["BEFORE INSERT"]}) for name in "ab")
    )
    assert registry.fire("t", "BEFORE INSERT", {}) == {"a": 1, "b": 1}
    assert registry.fire("t", "BEFORE INSERT", {}) == {"a": 2, "b": 2}


# --- firing ------------------------------------------------------------------------------------------------------


def test_without_a_trigger_the_row_is_given_back_untouched() -> None:
    row = {"a": 1}
    for registry in (PluginRegistry(), registry_of(appending("p"))):
        assert registry.fire("other", TriggerEvent.BEFORE_INSERT, row) is row
        assert registry.fire("t", TriggerEvent.BEFORE_UPDATE, row) is row
        assert not registry.has_triggers("other", TriggerEvent.BEFORE_INSERT)


@pytest.mark.parametrize("event", BEFORE)
def test_plugins_fire_in_the_order_of_registration(event: TriggerEvent) -> None:
    registry = registry_of(
        appending("c", event=event),
        appending("every", tables=("*",), event=event),
        appending("a", tables=("t", "u"), event=event),
        appending("both", tables=("*", "t"), event=event),
        appending("other", tables=("u",), event=event),
    )
    assert registry.fire("t", event, {"x": 1}) == {"x": 1, "by": ["c", "every", "a", "both"]}
    assert registry.fire("u", event, {}) == {"by": ["every", "a", "both", "other"]}
    assert registry.fire("anything", event, {}) == {"by": ["every", "both"]}
    registry.unregister("every")
    assert registry.fire("anything", event, {}) == {"by": ["both"]}
    registry.register(appending("every", tables=("*",), event=event))
    assert registry.fire("t", event, {}) == {"by": ["c", "a", "both", "every"]}


def test_names_of_tables_are_those_of_sql() -> None:
    registry = registry_of(appending("a", tables=("Users", "USERS")), appending("b", tables=("users", "É")))
    assert registry.fire("uSERS", "BEFORE INSERT", {}) == {"by": ["a", "b"]}
    assert registry.has_triggers("É", "BEFORE INSERT")
    assert not registry.has_triggers("é", "BEFORE INSERT")


def test_what_a_registry_would_call() -> None:
    registry = PluginRegistry()
    seen = [(registry.version, registry.has_any_triggers)]

    def look() -> None:
        seen.append((registry.version, registry.has_any_triggers))

    registry.register(PythonPlugin("silent", ""))
    look()
    registry.register(appending("a", tables=("t",)))
    look()
    registry.register(appending("b", tables=("*",)))
    look()
    assert registry.triggered_by("T", "before insert") == ["a", "b"]
    assert registry.triggered_by("u", TriggerEvent.BEFORE_INSERT) == ["b"]
    assert registry.triggered_by("u", "AFTER INSERT") == []
    for name in ("a", "b"):
        registry.unregister(name)
        look()
    assert [fires for _, fires in seen] == [False, False, True, True, True, False]
    assert len({version for version, _ in seen}) == len(seen)


def test_none_means_unchanged() -> None:
    registry = registry_of(
        appending("a"),
        plugin_of("row['lost'] = True", name="forgot_to_return"),
        appending("b"),
    )
    row: dict[str, Any] = {"by": []}
    assert registry.fire("t", "BEFORE INSERT", row) == {"by": ["a", "b"]}
    assert row == {"by": []}


def test_the_row_of_the_caller_does_not_change_when_a_later_handler_aborts() -> None:
    registry = registry_of(
        plugin_of("row['tags'].append('x')\nrow['deep'][0]['a'] = 2\nrow.clear()\nreturn row", name="first"),
        plugin_of("raise TriggerAbort('no')", name="second"),
    )
    row = {"tags": ["a"], "deep": [{"a": 1}]}
    with pytest.raises(TriggerAbort, match="no") as caught:
        registry.fire("t", "BEFORE INSERT", row)
    assert caught.value.details["plugin"] == "second"
    assert row == {"tags": ["a"], "deep": [{"a": 1}]}


@pytest.mark.parametrize("event", AFTER)
def test_what_an_after_handler_returns_is_ignored(event: TriggerEvent) -> None:
    registry = registry_of(
        plugin_of("row['a'] = 2\nrow['list'].append(1)\nreturn row", event, "changes"),
        plugin_of("return 'anything'", event, "returns_text"),
        plugin_of("assert row == {'a': 1, 'list': []}, row", event, "checks"),
    )
    row = {"a": 1, "list": []}
    assert registry.fire("t", event, row) is row
    assert row == {"a": 1, "list": []}


@pytest.mark.parametrize("event", AFTER)
def test_an_after_handler_may_abort(event: TriggerEvent) -> None:
    with pytest.raises(TriggerAbort, match="too late"):
        registry_of(plugin_of("raise TriggerAbort('too late')", event)).fire("t", event, {})


@pytest.mark.parametrize("event", BEFORE)
@pytest.mark.parametrize(
    ("returned", "shown"),
    [("5", "5 (int)"), ("'text'", "'text'"), ("[row]", "a list"), ("True", "True"), ("row.items()", "dict_items")],
)
def test_a_before_handler_returns_a_dict(event: TriggerEvent, returned: str, shown: str) -> None:
    registry = registry_of(plugin_of(f"return {returned}", event))
    with pytest.raises(PluginError) as caught:
        registry.fire("t", event, {"a": 1})
    assert f"plugin 'p': {event.handler}() must return the row: a row is a dict, not " in caught.value.message
    assert shown in caught.value.message
    assert caught.value.remediation == "Return the row, or None to keep it."
    place = {"plugin": "p", "handler": event.handler, "table": "t", "event": event.value}
    assert caught.value.details == place


def test_a_batch_is_a_list_of_rows() -> None:
    batch = TriggerEvent.ON_BATCH
    registry = registry_of(
        plugin_of("rows[0]['a'] = 9", batch, "returns_nothing"),
        plugin_of("return [row for row in rows if row['a'] > 1]", batch, "filters"),
        plugin_of("for row in rows:\n    row['b'] = row['a'] * 2\nreturn rows", batch, "doubles"),
    )
    rows = [{"a": 1}, {"a": 2}, {"a": 3}]
    assert registry.fire("t", batch, rows) == [{"a": 2, "b": 4}, {"a": 3, "b": 6}]
    assert rows == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert registry.fire("u", batch, rows) is rows


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ("{'a': 1}", "must return a list of rows: a batch is a list, not a dict"),
        ("(row for row in rows)", "a batch is a list, not <generator"),
        ("[*rows, 5]", "item 1 of the batch is 5 (int), not a dict"),
        ("[None]", "item 0 of the batch is None, not a dict"),
    ],
)
def test_a_batch_handler_returns_a_list_of_rows(returned: str, what: str) -> None:
    registry = registry_of(plugin_of(f"return {returned}", TriggerEvent.ON_BATCH))
    with pytest.raises(PluginError) as caught:
        registry.fire("t", "ON BATCH", [{"a": 1}])
    assert what in caught.value.message
    assert caught.value.remediation == "Return a list of rows, or None to keep it."


@pytest.mark.parametrize("event", EVENTS)
def test_the_row_to_fire_has_the_right_type(event: TriggerEvent) -> None:
    registry = registry_of(plugin_of("return None", event))
    wrong: list[Any] = [None, 5, "text", [1]]
    wrong.append({"a": 1} if event is TriggerEvent.ON_BATCH else [{"a": 1}])
    for row in wrong:
        with pytest.raises(ValidationError, match=rf"^fire\(\) takes a .* for {event}: "):
            registry.fire("t", event, row)


def test_a_row_that_cannot_be_copied_is_refused() -> None:
    registry = registry_of(plugin_of("return None"))
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    with pytest.raises(ValidationError, match="nested too deeply, or contains itself"):
        registry.fire("t", "BEFORE INSERT", endless)


@pytest.mark.parametrize("event", EVENTS)
def test_an_exception_in_a_handler_names_its_place(event: TriggerEvent) -> None:
    registry = registry_of(plugin_of("helper = {}\nreturn helper['missing']", event))
    row: Any = [] if event is TriggerEvent.ON_BATCH else {}
    with pytest.raises(PluginError) as caught:
        registry.fire("t", event, row)
    error = caught.value
    assert error.message == f"plugin 'p': {event.handler}() failed at line 3 of the plugin: KeyError: 'missing'."
    assert isinstance(error, ToonDBError)
    assert (error.code, type(error.__cause__)) == (ErrorCode.PLUGIN, KeyError)
    assert error.details == {
        "plugin": "p",
        "handler": event.handler,
        "table": "t",
        "event": event.value,
        "exception": "KeyError",
        "line": 3,
    }
    assert type(error_from_wire(error.to_wire())) is PluginError


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("import sys\nsys.exit(4)", "SystemExit: 4."),
        ("raise ValueError", "failed at line 2 of the plugin: ValueError."),
        ("raise ValueError('x' * 10000)", "x" * 300 + "..."),
        ("def f():\n    return f()\nreturn f()", "RecursionError"),
        ("import json\nreturn json.loads('{')", "failed at line 3 of the plugin: JSONDecodeError"),
        ("raise TriggerAbort()", None),
        ("raise TriggerAbort(1, 2, 3)", "TypeError"),
        ("from toondb import StorageFullError\nraise StorageFullError('full')", "StorageFullError: full."),
    ],
)
def test_exceptions_of_all_kinds(body: str, what: str | None) -> None:
    registry = registry_of(plugin_of(body))
    with pytest.raises(TriggerAbort if what is None else PluginError) as caught:
        registry.fire("t", "BEFORE INSERT", {})
    assert (what or "TriggerAbort") in caught.value.message


def test_what_ends_the_process_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        registry_of(plugin_of("raise KeyboardInterrupt")).fire("t", "BEFORE INSERT", {})


@pytest.mark.parametrize("event", [TriggerEvent.BEFORE_INSERT, TriggerEvent.AFTER_INSERT])
def test_a_handler_that_returns_a_coroutine_is_an_error(event: TriggerEvent) -> None:
    # It is closed: a coroutine that is never awaited would warn, and warnings are errors here.
    registry = registry_of(plugin_of("async def work():\n    pass\nreturn work()", event))
    with pytest.raises(PluginError, match="returned a coroutine") as caught:
        registry.fire("t", event, {})
    assert "not async" in caught.value.remediation


def test_codes_of_aborts_are_text() -> None:
    for code, expected in [("'A'", "A"), ("422", "422"), ("TriggerEvent.ON_BATCH", "ON BATCH")]:
        with pytest.raises(TriggerAbort) as caught:
            registry_of(plugin_of(f"raise TriggerAbort('no', {code})")).fire("t", "BEFORE INSERT", {})
        assert type(caught.value.code) is str
        assert caught.value.code == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_a_handler_gets_an_equal_row_that_shares_nothing(row: dict[str, Any]) -> None:
    ruin = """
def ruin(value):
    if isinstance(value, dict):
        for item in value.values():
            ruin(item)
        value.clear()
        value["ruined"] = True
    elif isinstance(value, list):
        for item in value:
            ruin(item)
        value.clear()
        value.append("ruined")


def on_before_insert(row):
    before = repr(row)
    ruin(row)
    return {"before": before}
"""
    registry = registry_of(PythonPlugin("p", ruin, triggers={"*": ["BEFORE INSERT"]}))
    before = repr(row)
    assert registry.fire("t", "BEFORE INSERT", row) == {"before": before}
    assert repr(row) == before


# --- threads -----------------------------------------------------------------------------------------------------


def test_a_handler_may_change_the_registry() -> None:
    registry = SHARED["registry"] = PluginRegistry()
    body = "from tests.test_plugins import SHARED\nSHARED['registry'].unregister('once')\nreturn {'once': True}"
    registry.register(plugin_of(body, name="once"))
    registry.register(appending("p"))
    assert registry.fire("t", "BEFORE INSERT", {}) == {"once": True, "by": ["p"]}
    assert registry.fire("t", "BEFORE INSERT", {}) == {"by": ["p"]}


def test_others_go_on_while_a_handler_runs() -> None:
    entered, leave = SHARED["entered"], SHARED["leave"] = threading.Event(), threading.Event()
    body = "from tests.test_plugins import SHARED\nSHARED['entered'].set()\nassert SHARED['leave'].wait(60)"
    registry = registry_of(plugin_of(body, name="waits"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(registry.fire, "t", "BEFORE INSERT", {"a": 1})
        try:
            assert entered.wait(60)
            registry.register(appending("p", tables=("u",)))
            assert registry.fire("u", "BEFORE INSERT", {}) == {"by": ["p"]}
            assert registry.unregister("waits")
            assert registry.list_plugins() == ["p"]
        finally:
            leave.set()
        assert running.result(60) == {"a": 1}


def test_registering_and_firing_from_many_threads() -> None:
    registry = registry_of(appending("first", tables=("*",)), appending("last"))
    done = threading.Event()

    def fire() -> int:
        count = 0
        while not done.is_set() or count < 200:
            fired = registry.fire("t", TriggerEvent.BEFORE_INSERT, {})["by"]
            # The plugins that stay, and of each that comes and goes the whole or nothing.
            assert fired[:2] == ["first", "last"]
            assert len(set(fired)) == len(fired)
            count += 1
        return count

    def change(number: int) -> None:
        for _ in range(60):
            registry.register(appending(f"p{number}", tables=("t", f"u{number}")))
            assert registry.fire(f"u{number}", "BEFORE INSERT", {}) == {"by": ["first", f"p{number}"]}
            registry.register(appending(f"p{number}"), replace=True)
            assert not registry.fire(f"u{number}", "BEFORE INSERT", {})["by"][1:]
            assert registry.unregister(f"p{number}")

    with ThreadPoolExecutor(5) as pool:
        firing = [pool.submit(fire) for _ in range(2)]
        changing = [pool.submit(change, number) for number in range(3)]
        try:
            for item in changing:
                item.result(120)
        finally:
            done.set()
        assert all(item.result(120) >= 200 for item in firing)
    assert registry.list_plugins() == ["first", "last"]
    assert registry.fire("t", "BEFORE INSERT", {}) == {"by": ["first", "last"]}


def test_one_of_many_registers_a_name() -> None:
    registry = PluginRegistry()
    start = threading.Barrier(4)

    def register(number: int) -> bool:
        start.wait(60)
        try:
            registry.register(PythonPlugin("same", "", version=str(number)))
        except ValidationError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(register, range(4))) == 1
    assert registry.list_plugins() == ["same"]
