"""A part of the corpus through ToonDB in its modes; ``python -m tests.sql_corpus`` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sql_corpus.corpus import corpus_files, corpus_folder
from tests.sql_corpus.explained import DIFFERENCES
from tests.sql_corpus.runner import run_corpus
from tests.sql_corpus.script import Halt, read_script
from tests.sql_corpus.targets import TARGETS

# Not part of a plain run of the tests: the corpus has to be fetched with npm. "make corpus" and CI run it.
pytestmark = pytest.mark.corpus

# All statements are run, and each n-th query of the long scripts.
EVERY = {"embedded": 8, "transaction": 24, "ipc": 24, "sqlite": 24}
AT_LEAST = {"embedded": 27_000, "transaction": 17_500, "ipc": 17_500, "sqlite": 17_500}


@pytest.fixture(scope="module")
def scripts() -> list[tuple[str, Path]]:
    """The corpus; without it the tests fail, and say how to get it."""
    folder = corpus_folder()
    return [(path.relative_to(folder).as_posix(), path) for path in corpus_files()]


@pytest.mark.parametrize("mode", TARGETS)
def test_the_corpus(mode: str, scripts: list[tuple[str, Path]]) -> None:
    with TARGETS[mode]() as target:
        report = run_corpus(target, scripts, every=EVERY[mode])
    total = report.total
    assert not total.failures, "\n".join(map(str, total.failures[:20]))
    assert total.executed >= AT_LEAST[mode]
    for difference in DIFFERENCES:
        if difference.everywhere or not target.plain_sqlite:
            assert total.differences[difference.reason] == len(difference.lines)


def test_the_whole_corpus_has_no_record_that_is_left_out_without_a_reason(scripts: list[tuple[str, Path]]) -> None:
    """Every record is either run or for another engine, and the explained differences are records that exist."""
    engines = set()
    runnable = 0
    for name, path in scripts:
        records = read_script(path)
        conditions = {record: {condition.engine for condition in record.conditions} for record in records}
        engines |= set().union(*conditions.values())
        runnable += sum(
            not any(condition.skips("sqlite") for condition in record.conditions)
            for record in records
            if not isinstance(record, Halt)
        )
        lines = {record.line for record in records}
        for difference in DIFFERENCES:
            if difference.file == name:
                assert difference.lines <= lines
    assert engines == {"mysql", "mssql", "oracle", "postgresql", "sqlite"}
    assert runnable == 129_514
