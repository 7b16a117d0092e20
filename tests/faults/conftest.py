"""Fixtures that make the device fail on demand."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


class Faults:
    """Faults of the writes to ``data.mdb`` in processes started with ``env``; see ``shim.c``.

    Attributes:
        env: Environment variables for the process.
    """

    def __init__(self, library: Path, control: Path) -> None:
        self._control = control
        self.env: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "TOONDB_FAULT_FILE": "/data.mdb",
            "TOONDB_FAULT_CONTROL": str(control),
        }

    def begin(self, calls: str, errno: int, *, skip: int = 0, at_least: int = 0) -> None:
        """From now on these calls fail with this errno."""
        # Replaced as a whole: the process reads it at every call.
        fresh = self._control.with_suffix(".new")
        fresh.write_text(f"{calls} {errno} {skip} {at_least}\n")
        fresh.rename(self._control)

    def end(self) -> None:
        """The device works again."""
        self._control.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def fault_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the fault injection library")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def faults(fault_library: Path, tmp_path: Path) -> Iterator[Faults]:
    faults = Faults(fault_library, tmp_path / "fault")
    yield faults
    faults.end()
