"""The reader of scripts, the judge of results and the runner: what they count must be true."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.sql_corpus import corpus
from tests.sql_corpus.__main__ import main
from tests.sql_corpus.judge import judge, result_lines
from tests.sql_corpus.runner import run_corpus, run_records
from tests.sql_corpus.script import Condition, Halt, Query, ScriptError, Statement, parse
from tests.sql_corpus.targets import PlainSqlite

SCRIPT = """# a comment
hash-threshold 8 # another

statement ok
CREATE TABLE t (a INTEGER,
  b TEXT)

onlyif mysql # not here
skipif Oracle
statement error
CREATE nothing

query IT rowsort label-1
SELECT a, b
  FROM t
----
1
x

query R nosort
SELECT 1.5
----
3 values hashing to 0123456789abcdef0123456789abcdef

onlyif mssql
halt
""".replace("\n", "\r\n")


def test_a_script_is_read() -> None:
    mysql, oracle = Condition("onlyif", "mysql"), Condition("skipif", "oracle")
    assert list(parse(SCRIPT)) == [
        Statement(4, (), "CREATE TABLE t (a INTEGER,\n  b TEXT)", True),
        Statement(10, (mysql, oracle), "CREATE nothing", False),
        Query(13, (), "SELECT a, b\n  FROM t", "IT", "rowsort", "label-1", ("1", "x")),
        Query(20, (), "SELECT 1.5", "R", "nosort", "", ("3 values hashing to 0123456789abcdef0123456789abcdef",)),
        Halt(26, (Condition("onlyif", "mssql"),)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "statement maybe\nSELECT 1",
        "query X nosort\nSELECT 1",
        "query I anyhow\nSELECT 1",
        "query I",
        "onlyif",
    ],
)
def test_what_is_not_a_script_is_refused(text: str) -> None:
    with pytest.raises(ScriptError, match="line 2"):
        list(parse(f"\n{text}\n"))


def query(types: str, expected: tuple[str, ...], sort: str = "nosort", label: str = "") -> Query:
    return Query(1, (), "SELECT", types, sort, label, expected)


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        ("I", 7, "7"),
        ("I", 7.9, "7"),
        ("I", "12x", "12"),
        ("I", "x", "0"),
        ("I", None, "NULL"),
        ("R", 1, "1.000"),
        ("R", 2 / 3, "0.667"),
        ("R", "1.5x", "1.500"),
        ("R", "x", "0.000"),
        ("T", "", "(empty)"),
        ("T", "a\tbé", "a@b@"),
        ("T", 5, "5"),
        ("T", 5.0, "5.0"),
        ("T", 0.1, "0.1"),
        ("T", b"ab\xff", "ab@"),
        ("T", None, "NULL"),
    ],
)
def test_values_as_text(type_: str, value: Any, text: str) -> None:
    assert result_lines(query(type_, ()), [(value,)]) == [text]


def test_results_are_sorted_as_the_script_says() -> None:
    rows = [(10, "b"), (9, "a")]
    assert result_lines(query("IT", (), "nosort"), rows) == ["10", "b", "9", "a"]
    assert result_lines(query("IT", (), "rowsort"), rows) == ["10", "b", "9", "a"]
    assert result_lines(query("IT", (), "valuesort"), rows) == ["10", "9", "a", "b"]
    assert result_lines(query("TI", (), "rowsort"), [("b", 1), ("a", 2)]) == ["a", "2", "b", "1"]


def test_the_judge_finds_what_is_wrong() -> None:
    assert judge(query("II", ("1", "2")), [(1, 2)]) == ""
    assert judge(query("I", ()), []) == ""
    assert "instead of" in judge(query("I", ("1",)), [(2,)])
    assert "instead of" in judge(query("I", ("1",)), [])
    assert "instead of" in judge(query("I", ("2", "1")), [(1,), (2,)])
    assert judge(query("II", ("1", "2")), [(1,), (2,)]) == "1 columns instead of 2"
    digest = hashlib.md5(b"1\n2\n", usedforsecurity=False).hexdigest()
    assert judge(query("I", (f"2 values hashing to {digest}",)), [(1,), (2,)]) == ""
    assert judge(query("I", (f"2 values hashing to {digest}",)), [(1,)]) == "1 values instead of 2"
    assert "hashing to" in judge(query("I", (f"2 values hashing to {digest}",)), [(1,), (3,)])


def test_the_runner_counts() -> None:
    script = """
statement ok
CREATE TABLE t (a)

statement ok
CREATE TABLE t (a)

statement error
CREATE TABLE u (a)

statement error
INSERT INTO nowhere VALUES (1)

onlyif mysql
statement ok
CREATE nothing

query I nosort same
SELECT 1
----
1

query I nosort same
SELECT 2
----
2

query I nosort
SELECT 3
----
4

onlyif sqlite
halt

statement ok
never reached
"""
    with PlainSqlite() as target, target.empty() as execute:
        tally = run_records("made.test", parse(script), execute, target)
    assert (tally.executed, tally.passed, dict(tally.skipped)) == (7, 3, {"onlyif mysql: only for MySQL": 1})
    assert [(failure.line, failure.what.partition(":")[0]) for failure in tally.failures] == [
        (5, "SQLError"),
        (8, "succeeds, and must fail"),
        (23, "another result than the query of the same label in line 18"),
        (28, "['3'] instead of ['4']"),
    ]


def test_an_explained_difference_that_is_none_is_a_failure() -> None:
    with PlainSqlite() as target, target.empty() as execute:
        record = Statement(478, (), "SELECT 1", True)
        tally = run_records("evidence/slt_lang_aggfunc.test", [record], execute, target)
    assert [failure.what for failure in tally.failures] == [
        "passes, though: the script records no result; plain SQLite of the same version does the same as ToonDB"
    ]


def test_an_error_that_no_statement_may_raise_is_a_failure() -> None:
    def broken(sql: str) -> list[tuple[Any, ...]]:
        raise KeyError(sql)

    with PlainSqlite() as target:
        tally = run_records("made.test", [Statement(1, (), "SELECT", False)], broken, target)
    assert len(tally.failures) == 1
    assert "KeyError, which no statement may raise" in str(tally.failures[0])


def test_a_quick_run_leaves_queries_out(tmp_path: Path) -> None:
    records = "statement ok\nSELECT 1\n\n" * 100 + "query I nosort\nSELECT 1\n----\n1\n\n" * 300
    path = tmp_path / "long.test"
    path.write_text(records)
    with PlainSqlite() as target:
        total = run_corpus(target, [("long.test", path)], every=10).total
    assert (total.passed, dict(total.skipped)) == (130, {"left out of a quick run": 270})


def corpus_of(folder: Path, scripts: dict[str, str]) -> None:
    for number in range(corpus.FILES - len(scripts)):
        scripts[f"filler/{number}.test"] = "statement ok\nSELECT 1\n"
    for name, text in scripts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TOONDB_SQL_CORPUS", str(tmp_path))
    assert main(["--mode", "sqlite"]) == 2
    assert "python -m tests.sql_corpus --fetch" in capsys.readouterr().err
    corpus_of(
        tmp_path, {"good.test": "onlyif mysql\nstatement ok\nSELECT 1\n", "bad.test": "statement error\nSELECT 1\n"}
    )
    assert main(["--fetch"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert main(["--mode", "sqlite", "--only", "filler", "--json", str(tmp_path / "out.json")]) == 0
    assert "pass rate 100.0000%" in capsys.readouterr().out
    assert main(["--mode", "sqlite", "--json", str(tmp_path / "out.json")]) == 1
    assert "FAILED bad.test:1: succeeds, and must fail" in capsys.readouterr().out
    (numbers,) = json.loads((tmp_path / "out.json").read_text())
    assert numbers["total"]["executed"] == corpus.FILES - 1
    assert numbers["files"]["good.test"]["skipped"] == {"onlyif mysql: only for MySQL": 1}
    assert main(["--only", "no such script"]) == 2
    (tmp_path / "bad.test").write_text("nonsense\n")
    assert main(["--mode", "sqlite"]) == 2
    assert "line 1 is not known: 'nonsense'" in capsys.readouterr().err


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called npm, and nothing else, on the path."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("TOONDB_SQL_CORPUS", str(folder / "corpus"))


def test_fetching_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(tmp_path / "bin", monkeypatch, "echo 'no network' >&2; exit 3")
    with pytest.raises(corpus.CorpusError, match="status 3: no network"):
        corpus.fetch()
    (tmp_path / "bin" / "npm").unlink()
    with pytest.raises(corpus.CorpusError, match="apt-get install npm"):
        corpus.fetch()


def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is served under the name: only the known one is unpacked, and of that only the scripts."""
    made = tmp_path / "made.tgz"
    with tarfile.open(made, "w:gz") as archive:
        for name in ("package/test-sql/sqllogic/test/select1.test", "package/code.js"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    npm(tmp_path / "bin", monkeypatch, f"exec /bin/cp {made} package.tgz")
    with pytest.raises(corpus.CorpusError, match="SHA-512"):
        corpus.fetch()
    assert not corpus.corpus_folder().exists()
    monkeypatch.setattr(corpus, "_SHA512", corpus.digest_of(made))
    with pytest.raises(corpus.CorpusError, match=f"1 of the {corpus.FILES} scripts"):
        corpus.fetch()
    assert [path.name for path in corpus.corpus_folder().rglob("*") if path.is_file()] == ["select1.test"]
