"""What a SQL text is: its verb, how it ends a transaction, where its statements end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb.dbapi.statements import Control, control_of, statements_of, verb_of


@pytest.mark.parametrize(
    ("sql", "verb"),
    [
        ("select 1", "SELECT"),
        (" \n\t-- a comment; insert\n /* and\n another */ ; Insert into t values (1)", "INSERT"),
        ("-- no more than a comment", ""),
        ("/* one without an end", ""),
        ("(select 1)", ""),
        ("", ""),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "SELECT"),
        ("with recursive a(b) as (values (1) union select ')' from a) /* select */ update t set b = 1", "UPDATE"),
        ("WITH \"select\" AS (SELECT 1), [delete] AS (SELECT '''(') INSERT INTO t SELECT 1", "INSERT"),
        ("WITH a AS (SELECT 1) REPLACE INTO t SELECT 1", "REPLACE"),
        ("WITH nothing", "WITH"),
        ("PRAGMA table_info(t)", "PRAGMA"),
        ("selection", "SELECTION"),
    ],
)
def test_verbs(sql: str, verb: str) -> None:
    assert verb_of(sql) == verb


@pytest.mark.parametrize(
    ("sql", "control"),
    [
        ("BEGIN", Control.BEGIN),
        ("begin;", Control.BEGIN),
        ("BEGIN/**/IMMEDIATE\n-- x\nTRANSACTION name ;", Control.BEGIN),
        ("BEGIN CONCURRENT", None),
        ("BEGIN; SELECT 1", None),
        ("COMMIT", Control.COMMIT),
        ("END TRANSACTION", Control.COMMIT),
        ("COMMIT AND CHAIN", None),
        ("ROLLBACK", Control.ROLLBACK),
        ("ROLLBACK TRANSACTION", Control.ROLLBACK),
        ("ROLLBACK TO a", None),
        ("ROLLBACK TRANSACTION TO SAVEPOINT a", None),
        ("SAVEPOINT begin", None),
        ("'BEGIN'", None),
        ("SELECT 1", None),
    ],
)
def test_controls(sql: str, control: Control | None) -> None:
    assert control_of(sql) is control


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("", []),
        (" ;; -- only a comment;\n", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT ';'; SELECT \";\" ;", ["SELECT ';';", ' SELECT ";" ;']),
        ("SELECT 1 -- ;\n; /* ; */ SELECT 2", ["SELECT 1 -- ;\n;", " /* ; */ SELECT 2"]),
        ("SELECT [;], `;`;SELECT 'it''s;'", ["SELECT [;], `;`;", "SELECT 'it''s;'"]),
        (
            "CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT CASE WHEN 1 THEN 2 END; SELECT 1; END; SELECT 2",
            ["CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT CASE WHEN 1 THEN 2 END; SELECT 1; END;", " SELECT 2"],
        ),
        (
            "create temp trigger a delete on t begin delete from u; end -- here\n;SELECT 2",
            ["create temp trigger a delete on t begin delete from u; end -- here\n;", "SELECT 2"],
        ),
        ("CREATE TABLE trigger_x (a); SELECT 1", ["CREATE TABLE trigger_x (a);", " SELECT 1"]),
        ("SELECT 'no end; SELECT 2", ["SELECT 'no end; SELECT 2"]),
    ],
)
def test_statements_of_a_script(script: str, statements: list[str]) -> None:
    assert list(statements_of(script)) == statements


@given(st.text(alphabet="abW;'\"`[]()-/* \n", max_size=60) | st.text())
def test_any_text_has_statements(text: str) -> None:
    parts = list(statements_of(text))
    assert text.startswith("".join(parts))
    # What is left out has no words.
    assert not any(character.isalnum() for character in uncommented(text[len("".join(parts)) :]))
    verb_of(text)
    control_of(text)


def uncommented(text: str) -> str:
    kept = ""
    while text:
        if text.startswith("--"):
            text = text.partition("\n")[2]
        elif text.startswith("/*"):
            text = text[2:].partition("*/")[2]
        else:
            kept, text = kept + text[0], text[1:]
    return kept
