"""Plugins: Python code that runs when rows of a table are inserted, updated or deleted.

A plugin is source text with functions named after events, ``on_before_insert(row)`` and so on, and a map of the tables
and events that trigger them. A :class:`PluginRegistry` compiles plugins when they are registered, so that every mistake
that can be found without a row is found there, and fires them.

The code of a plugin is trusted: it runs in this process with all its rights, as an imported module would. There is no
request of the wire protocol that carries it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import itertools
import re
import string
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import ModuleType
from typing import Any, Final, NoReturn, overload

from toondb_protocol.errors import PluginError, ToonDBError, TriggerAbort, ValidationError

__all__ = ["EVERY_TABLE", "PluginError", "PluginRegistry", "PythonPlugin", "TriggerAbort", "TriggerEvent"]

EVERY_TABLE: Final = "*"
"""The name in ``triggers`` that stands for all tables."""


class TriggerEvent(StrEnum):
    """What happens to a row; the value is its text form in ``triggers``."""

    BEFORE_INSERT = "BEFORE INSERT"
    AFTER_INSERT = "AFTER INSERT"
    BEFORE_UPDATE = "BEFORE UPDATE"
    AFTER_UPDATE = "AFTER UPDATE"
    BEFORE_DELETE = "BEFORE DELETE"
    AFTER_DELETE = "AFTER DELETE"
    ON_BATCH = "ON BATCH"

    @classmethod
    def parse(cls, event: TriggerEvent | str) -> TriggerEvent:
        """The event of a text such as ``"BEFORE INSERT"`` or ``"before_insert"``.

        Raises:
            ValidationError: There is no such event; the message lists those that there are.
        """
        if isinstance(event, cls):
            return event
        if isinstance(event, str):
            found = _EVENTS.get(" ".join(event.replace("_", " ").upper().split()))
            if found is not None:
                return found
        known = ", ".join(repr(str(item)) for item in cls)
        raise ValidationError(f"there is no trigger event {_shown(event)}.", remediation=f"Events: {known}.")

    @property
    def handler(self) -> str:
        """The name of the function that handles it, such as ``on_before_insert``."""
        return "on_batch" if self is TriggerEvent.ON_BATCH else f"on_{self.name.lower()}"


_EVENTS: Final = {event.value: event for event in TriggerEvent}
_AFTER: Final = frozenset(event for event in TriggerEvent if event.name.startswith("AFTER_"))


@dataclass(frozen=True, slots=True, init=False, eq=False)
class PythonPlugin:
    """A plugin as it was written; :meth:`PluginRegistry.register` runs its code.

    Args:
        name: Its name, unique in a registry.
        code: Python source with the handlers: ``on_before_insert(row)``, ``on_after_insert(row)``, the same for update
            and delete, and ``on_batch(rows)``. ``TriggerAbort`` and ``TriggerEvent`` are defined in it.
        version: For people; not interpreted.
        packages: Names of the distributions or modules that the code needs, without versions.
        triggers: For each table (ASCII letters of different case are the same, as in SQL), or ``"*"`` for every table,
            the events that call a handler: ``"BEFORE INSERT"``, also ``"before_insert"`` or
            ``TriggerEvent.BEFORE_INSERT``.

    Attributes:
        packages: The same, as a tuple.
        triggers: The same, with :class:`TriggerEvent` members in tuples. Changing it has no effect on a registry.

    Raises:
        ValidationError: An argument has the wrong type, or there is no such event.
    """

    name: str
    code: str = field(repr=False)
    version: str
    packages: tuple[str, ...]
    triggers: Mapping[str, tuple[TriggerEvent, ...]]

    def __init__(
        self,
        name: str,
        code: str,
        version: str = "1.0.0",
        packages: Iterable[str] | None = None,
        triggers: Mapping[str, Iterable[TriggerEvent | str]] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ValidationError(f"the name of a plugin is a str that is not empty, not {_shown(name)}.")
        who = f"plugin {_shown(name)}"
        for label, value in (("code", code), ("version", version)):
            if not isinstance(value, str):
                raise ValidationError(f"{who}: {label} is a str, not {_shown(value)}.")
        # A frozen dataclass is written to like this.
        write = object.__setattr__
        write(self, "name", name)
        write(self, "code", code)
        write(self, "version", version)
        write(self, "packages", _package_names(who, packages))
        write(self, "triggers", _parsed_triggers(who, triggers))


@dataclass(frozen=True, slots=True)
class _Handler:
    """A function of a registered plugin."""

    plugin: str
    file: str
    name: str
    call: Callable[[Any], Any]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class _Registered:
    """A plugin whose code was run. Its module stays in ``sys.modules`` as long as this object lives."""

    plugin: PythonPlugin
    triggers: Mapping[str, Iterable[TriggerEvent]]
    handlers: Mapping[TriggerEvent, _Handler]


class PluginRegistry:
    """The plugins that are in force, and the way to fire them.

    All methods may be called from any thread, also from the code of a plugin; no lock is held while such code runs. A
    change of the registry takes effect for events that fire after it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plugins: dict[str, _Registered] = {}
        # Replaced as a whole, never changed: firing reads it without the lock.
        self._fired: dict[str, dict[TriggerEvent, tuple[_Handler, ...]]] = {EVERY_TABLE: {}}
        self._version = 0

    @property
    def version(self) -> int:
        """Changes whenever a plugin is registered or unregistered."""
        return self._version

    @property
    def has_any_triggers(self) -> bool:
        """Whether there is any table and event for which :meth:`fire` would call a handler."""
        return any(self._fired.values())

    def register(self, plugin: PythonPlugin, *, replace: bool = False) -> None:
        """Run the code of a plugin and let its triggers fire from now on.

        Plugins on one event fire in the order in which they were registered.

        Args:
            plugin: The plugin.
            replace: Put it in the place of the plugin of the same name, if there is one.

        Raises:
            ValidationError: The name is taken, packages are missing, the code has a syntax error or fails when it is
                run, or the handler of a trigger is missing or unusable. Nothing is changed then.
        """
        if not isinstance(plugin, PythonPlugin):
            raise ValidationError(f"register() takes a PythonPlugin, not {_shown(plugin)}.")
        # Asked twice: here so that the code of a refused plugin does not run, below because others may have registered.
        self._check_name(plugin, replace)
        registered = _load(plugin)
        with self._lock:
            self._check_name(plugin, replace)
            self._plugins[plugin.name] = registered
            self._rebuild()

    def unregister(self, name: str) -> bool:
        """Take a plugin out; its triggers no longer fire.

        Returns:
            Whether there was a plugin of that name.
        """
        with self._lock:
            found = self._plugins.pop(name, None)
            if found is not None:
                self._rebuild()
        return found is not None

    def get(self, name: str) -> PythonPlugin | None:
        """The plugin of that name; None when there is none."""
        found = self._plugins.get(name)
        return None if found is None else found.plugin

    def list_plugins(self) -> list[str]:
        """The names of the plugins, in the order in which they were registered."""
        with self._lock:
            return list(self._plugins)

    def has_triggers(self, table: str, event: TriggerEvent | str) -> bool:
        """Whether :meth:`fire` would call a handler.

        Raises:
            ValidationError: There is no such event.
        """
        return bool(self._handlers(table, TriggerEvent.parse(event)))

    def triggered_by(self, table: str, event: TriggerEvent | str) -> list[str]:
        """The names of the plugins whose handlers :meth:`fire` would call, in their order.

        Raises:
            ValidationError: There is no such event.
        """
        return [handler.plugin for handler in self._handlers(table, TriggerEvent.parse(event))]

    @overload
    def fire(self, table: str, event: TriggerEvent | str, row: dict[str, Any]) -> dict[str, Any]: ...

    @overload
    def fire(self, table: str, event: TriggerEvent | str, row: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    def fire(self, table: str, event: TriggerEvent | str, row: Any) -> Any:
        """Call the handlers that a change of a table triggers, in the order in which plugins were registered.

        Each handler gets a copy of the row, so neither the caller's nor another handler's row changes under its hands.
        What a BEFORE handler returns is what the next one gets; None stands for the row as the handler got it. What an
        AFTER handler returns is ignored. For ``ON_BATCH`` the row is a list of rows, and so is the result.

        Args:
            table: The table; as in SQL, ASCII letters of different case are the same.
            event: The event, or its text.
            row: The row (a dict); for ``ON_BATCH`` a list of rows.

        Returns:
            The row as the last handler returned it; ``row`` itself for AFTER events and when no handler is called.

        Raises:
            TriggerAbort: A handler refused the change. ``details`` names plugin, handler, table and event.
            PluginError: A handler raised another exception, which is the cause, or returned something unusable.
            ValidationError: There is no such event, or ``row`` is neither a dict nor a list of dicts as asked for.
        """
        if type(event) is not TriggerEvent:
            event = TriggerEvent.parse(event)
        handlers = self._handlers(table, event)
        if not handlers:
            return row
        ignored = event in _AFTER
        batch = event is TriggerEvent.ON_BATCH
        wrong = _unlike_rows(row) if batch else _unlike_row(row)
        if wrong:
            raise ValidationError(f"fire() takes {'a list of rows' if batch else 'a row'} for {event}: {wrong}.")
        current = row
        for handler in handlers:
            result = _call(handler, _copied_row(current), table, event)
            if inspect.iscoroutine(result):
                result.close()
                _fail(handler, table, event, "returned a coroutine", "Handlers are plain functions, not async ones.")
            if ignored or result is None:
                continue
            wrong = _unlike_rows(result) if batch else _unlike_row(result)
            if wrong:
                wanted = "a list of rows" if batch else "the row"
                _fail(handler, table, event, f"must return {wanted}: {wrong}", f"Return {wanted}, or None to keep it.")
            current = result
        return current

    def __len__(self) -> int:
        """The number of plugins."""
        return len(self._plugins)

    def __contains__(self, name: object) -> bool:
        """Whether there is a plugin of that name."""
        return name in self._plugins

    def _handlers(self, table: str, event: TriggerEvent) -> tuple[_Handler, ...]:
        fired = self._fired
        return (fired.get(folded_name(table)) or fired[EVERY_TABLE]).get(event, ())

    def _check_name(self, plugin: PythonPlugin, replace: bool) -> None:
        if not replace and plugin.name in self._plugins:
            raise ValidationError(
                f"a plugin {_shown(plugin.name)} is registered already.",
                remediation="Unregister it first, or register with replace=True.",
            )

    def _rebuild(self) -> None:
        """Compute what fires, from all plugins; the lock is held."""
        triggers_of = {name: _by_folded_name(item.triggers) for name, item in self._plugins.items()}
        tables = {EVERY_TABLE, *(table for triggers in triggers_of.values() for table in triggers)}
        fired: dict[str, dict[TriggerEvent, tuple[_Handler, ...]]] = {}
        for table in tables:
            events: dict[TriggerEvent, tuple[_Handler, ...]] = {}
            for name, item in self._plugins.items():
                triggers = triggers_of[name]
                # Once for each event, also when a plugin names both this table and every table.
                for event in dict.fromkeys((*triggers.get(table, ()), *triggers.get(EVERY_TABLE, ()))):
                    events[event] = (*events.get(event, ()), item.handlers[event])
            fired[table] = events
        self._fired = fired
        # Last: whoever sees it sees what goes with it.
        self._version += 1


_ASCII_LOWER: Final = {ord(upper): upper.lower() for upper in string.ascii_uppercase}


def folded_name(name: str) -> str:
    """A name as SQL compares it."""
    return name.translate(_ASCII_LOWER)


def _by_folded_name(triggers: Mapping[str, Iterable[TriggerEvent]]) -> dict[str, tuple[TriggerEvent, ...]]:
    folded: dict[str, tuple[TriggerEvent, ...]] = {}
    for table, events in triggers.items():
        name = folded_name(table)
        folded[name] = (*folded.get(name, ()), *events)
    return folded


# Firing


def _call(handler: _Handler, row: Any, table: str, event: TriggerEvent) -> Any:
    try:
        return handler.call(row)
    except TriggerAbort as abort:
        for key, value in _place(handler, table, event).items():
            abort.details.setdefault(key, value)
        raise
    except (Exception, SystemExit) as error:
        # SystemExit too: a plugin that calls sys.exit() must not end the process that fires it.
        line = _line_in(handler.file, error)
        at = "" if line is None else f" at line {line} of the plugin"
        raise PluginError(
            f"plugin {_shown(handler.plugin)}: {handler.name}() failed{at}: {_described(error)}.",
            details={**_place(handler, table, event), "exception": type(error).__name__, "line": line},
        ) from error


def _fail(handler: _Handler, table: str, event: TriggerEvent, what: str, remediation: str) -> NoReturn:
    raise PluginError(
        f"plugin {_shown(handler.plugin)}: {handler.name}() {what}.",
        remediation=remediation,
        details=_place(handler, table, event),
    )


def _place(handler: _Handler, table: str, event: TriggerEvent) -> dict[str, Any]:
    return {"plugin": handler.plugin, "handler": handler.name, "table": table, "event": str(event)}


def _unlike_row(row: object) -> str:
    """What is wrong with a row; empty when it is one."""
    return "" if isinstance(row, dict) else f"a row is a dict, not {_shown(row)}"


def _unlike_rows(rows: object) -> str:
    if not isinstance(rows, list):
        return f"a batch is a list, not {_shown(rows)}"
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"item {at} of the batch is {_shown(row)}, not a dict"
    return ""


def _copied_row(row: Any) -> Any:
    try:
        return _copied(row)
    except RecursionError:
        raise ValidationError("the row is nested too deeply, or contains itself.") from None


def _copied(value: Any) -> Any:
    # Objects and lists only, which is what JSON can change in place: many times faster than copy.deepcopy().
    if isinstance(value, dict):
        return {key: _copied(item) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) if isinstance(item, (dict, list)) else item for item in value]
    return value


# Loading


def _load(plugin: PythonPlugin) -> _Registered:
    """Run the code of a plugin and find its handlers."""
    who = f"plugin {_shown(plugin.name)}"
    _check_packages(who, plugin.packages)
    module = _new_module(plugin.name)
    try:
        # In ASCII: compile() takes no NUL and no lone surrogate in the name of a file.
        file = f"<plugin {plugin.name!a}>"
        _run(plugin, who, file, module)
        triggers = dict(plugin.triggers)
        wanted = {event for events in triggers.values() for event in events}
        handlers = _handlers_of(plugin.name, who, file, module.__dict__, wanted)
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    registered = _Registered(plugin, triggers, handlers)
    weakref.finalize(registered, sys.modules.pop, module.__name__, None).atexit = False
    return registered


def _new_module(plugin: str) -> ModuleType:
    """An empty module in ``sys.modules``, where dataclasses and the like look for the module of a class."""
    base = f"toondb_plugin.{plugin}"
    module = ModuleType(base)
    # Several registries may have a plugin of this name, and so may one while it is replaced.
    for number in itertools.count(2):
        if sys.modules.setdefault(module.__name__, module) is module:
            break
        module.__name__ = f"{base}#{number}"
    module.__dict__.update(TriggerAbort=TriggerAbort, TriggerEvent=TriggerEvent)
    return module


def _run(plugin: PythonPlugin, who: str, file: str, module: ModuleType) -> None:
    try:
        # dont_inherit: the code gets the Python it was written for, not the __future__ imports of this file.
        compiled = compile(plugin.code, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f" at line {error.lineno}" if error.lineno else ""
        text = f": {error.text.strip()[:80]}" if error.text and error.text.strip() else ""
        raise ValidationError(
            f"{who}: syntax error{line}: {error.msg}{text}", details={"plugin": plugin.name, "line": error.lineno}
        ) from error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise ValidationError(
            f"{who}: the code cannot be compiled: {_described(error)}.", details={"plugin": plugin.name}
        ) from error
    try:
        exec(compiled, module.__dict__)
    except (Exception, SystemExit) as error:
        line_number = _line_in(file, error)
        raise ValidationError(
            f"{who}: its code failed at line {line_number} when it was run: {_described(error)}.",
            remediation="Correct the code outside of the handlers.",
            details={"plugin": plugin.name, "line": line_number},
        ) from error


def _handlers_of(
    plugin: str, who: str, file: str, namespace: Mapping[str, Any], wanted: set[TriggerEvent]
) -> Mapping[TriggerEvent, _Handler]:
    handlers: dict[TriggerEvent, _Handler] = {}
    for event in TriggerEvent:
        name = event.handler
        call = namespace.get(name)
        if event in wanted:
            if call is None:
                raise ValidationError(
                    f"{who}: its triggers name {event.value!r}, but its code has no function {name}().",
                    remediation=f"Define {name}({_argument(event)}), or take the event out of triggers.",
                )
            if not callable(call):
                raise ValidationError(f"{who}: {name} is not a function but {_shown(call)}.")
            _check_callable(who, event, call)
            handlers[event] = _Handler(plugin, file, name, call)
        elif callable(call):
            _check_kind(who, name, call)
    return handlers


def _check_callable(who: str, event: TriggerEvent, call: Callable[..., Any]) -> None:
    _check_kind(who, event.handler, call)
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return  # not every callable of C tells its signature
    try:
        signature.bind(None)
    except TypeError:
        raise ValidationError(
            f"{who}: {event.handler}{signature} must take one argument, the {_argument(event)}.",
            remediation=f"Write def {event.handler}({_argument(event)}).",
        ) from None


def _check_kind(who: str, name: str, call: Callable[..., Any]) -> None:
    for function in (call, getattr(call, "__call__", None)):  # noqa: B004 - the method itself, which may be async
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ValidationError(
                f"{who}: {name}() is async; handlers are plain functions.", remediation=f"Write def {name}(...)."
            )
        if inspect.isgeneratorfunction(function):
            raise ValidationError(
                f"{who}: {name}() is a generator; handlers are plain functions.",
                remediation="Use return instead of yield.",
            )


def _argument(event: TriggerEvent) -> str:
    return "rows" if event is TriggerEvent.ON_BATCH else "row"


def _check_packages(who: str, packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        raise ValidationError(
            f"{who} needs packages that are not installed: {', '.join(missing)}.",
            remediation=f"Run: pip install {' '.join(missing)}",
            details={"missing": missing},
        )


def _is_installed(name: str) -> bool:
    """Whether a distribution, or else a module, has that name."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        # The parent of a dotted name is missing, or a module has no spec.
        return False


# Arguments


def _package_names(who: str, packages: Iterable[str] | None) -> tuple[str, ...]:
    if packages is None:
        return ()
    if isinstance(packages, (str, Mapping)) or not isinstance(packages, Iterable):
        raise ValidationError(f"{who}: packages is a list of names, not {_shown(packages)}.")
    names = tuple(packages)
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", name):
            raise ValidationError(
                f"{who}: {_shown(name)} is not the name of a package.",
                remediation="Give the name alone; versions are not checked.",
            )
    return names


def _parsed_triggers(
    who: str, triggers: Mapping[str, Iterable[TriggerEvent | str]] | None
) -> Mapping[str, tuple[TriggerEvent, ...]]:
    if triggers is None:
        triggers = {}
    if not isinstance(triggers, Mapping):
        raise ValidationError(
            f"{who}: triggers is a dict of tables and events, not {_shown(triggers)}.",
            remediation='Write it like {"users": ["BEFORE INSERT"]}.',
        )
    parsed: dict[str, tuple[TriggerEvent, ...]] = {}
    for table, events in triggers.items():
        if not isinstance(table, str) or not table:
            raise ValidationError(f'{who}: a table is a str, or "*" for every table, not {_shown(table)}.')
        if isinstance(events, (str, Mapping)) or not isinstance(events, Iterable):
            raise ValidationError(
                f"{who}: the events of table {_shown(table)} are a list, not {_shown(events)}.",
                remediation='Write it like {"users": ["BEFORE INSERT"]}.',
            )
        try:
            parsed[table] = tuple(dict.fromkeys(TriggerEvent.parse(event) for event in events))
        except ValidationError as error:
            raise ValidationError(
                f"{who}, table {_shown(table)}: {error.message}", remediation=error.remediation
            ) from None
    return parsed


# Messages


def _line_in(file: str, error: BaseException) -> int | None:
    """The last line of the plugin that an exception passed through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None


def _described(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, ToonDBError) else str(error)
    except Exception:  # __str__ of a plugin's own exception may do anything
        text = ""
    text = text if len(text) <= 300 else text[:300] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(value: object) -> str:
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return f"a {type(value).__name__}"
    try:
        text = repr(value)
    except Exception:  # repr() of an object that is not ours may do anything
        text = "?"
    text = text if len(text) <= 60 else text[:60] + "..."
    return text if value is None or isinstance(value, (str, bool)) else f"{text} ({type(value).__name__})"
