"""Real texts that are on the machine already: what Python and Debian say about their own parts."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Text", "available_packages", "docstrings", "installed_packages", "library_files", "packages_in"]

_DPKG_STATUS = Path("/var/lib/dpkg/status")
# Tests and programs of its own, and what has gone from later versions or is for other systems.
_LEFT_OUT = {
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "pydoc_data", "turtledemo"),
    *("distutils", "ensurepip", "lib2to3", "macholib"),
}
_FEWEST_CHARACTERS = 20
_BLANK_LINE = "\n\n"


@dataclass(frozen=True, slots=True)
class Text:
    """A description and what it describes.

    Attributes:
        name: What it describes: ``json.dumps``, or the name of a Debian package.
        text: The description, without the name.
        source: ``python`` or ``debian``.
        kind: ``module``, ``class`` or ``function``; of a package its section (``net``).
        part: The module, or of a package its section.
    """

    name: str
    text: str
    source: str
    kind: str
    part: str

    @property
    def whole(self) -> str:
        """The name and the description."""
        return f"{self.name}: {self.text}"

    @property
    def summary(self) -> str:
        """The name and the first paragraph of the description, in one line."""
        return f"{self.name}: {' '.join(self.text.partition(_BLANK_LINE)[0].split())}"


def library_files(folder: Path | None = None) -> list[Path]:
    """The files of Python's standard library, in order, without its tests and its editor.

    Args:
        folder: Those of this folder instead.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(found) if not _LEFT_OUT.intersection(path.parts)]


def docstrings(files: Iterable[Path], folder: Path | None = None, *, private: bool = False) -> Iterator[Text]:
    """The documentation strings in Python files: of modules, classes and functions.

    The files are read, never imported; one that is no Python is left out.

    Args:
        files: Some of :func:`library_files`.
        folder: Where they lie, when it is not the standard library.
        private: Also what has a name with an underscore in front.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    for path in files:
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        seen: set[str] = set()
        for name, kind, node in _documented(tree, module):
            text = ast.get_docstring(node, clean=False)
            hidden = not private and any(part.startswith("_") for part in name.split("."))
            if text is None or hidden or name in seen:
                continue
            seen.add(name)
            text = inspect.cleandoc(text)
            if len(text) >= _FEWEST_CHARACTERS:
                yield Text(name, text, "python", kind, module)


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str, _Documented]]:
    if isinstance(node, ast.Module):
        yield name, "module", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            inner = f"{name}.{child.name}"
            yield inner, "class", child
            yield from _documented(child, inner)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{name}.{child.name}", "function", child
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _documented(child, name)


def installed_packages() -> list[Text]:
    """The Debian packages that are installed, with their descriptions, by name; none on another system."""
    try:
        return packages_in(_DPKG_STATUS.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


def available_packages() -> list[Text]:
    """All Debian packages that ``apt`` knows, by name: tens of thousands, most in one line; none on another system."""
    if shutil.which("apt-cache") is None:
        return []
    done = subprocess.run(["apt-cache", "dumpavail"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return packages_in(done.stdout.decode(errors="replace"))


def packages_in(control: str) -> list[Text]:
    """The packages in a file of Debian's control format (deb-control(5)), by name."""
    found: dict[str, Text] = {}
    for paragraph in control.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): ?(.*(?:\n[ \t].*)*)", paragraph, re.MULTILINE))
        name, section = fields.get("Package", ""), fields.get("Section", "unknown").split("/")[-1]
        lines = (fields.get("Description-en") or fields.get("Description") or "").splitlines()
        # A line with a dot alone is an empty one.
        text = "\n".join("" if line.strip() == "." else line.strip() for line in lines).strip()
        if name and len(text) >= _FEWEST_CHARACTERS:
            found[name] = Text(name, text, "debian", section, section)
    return [found[name] for name in sorted(found)]
