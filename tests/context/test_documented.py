"""``docs/context.md`` lists what there is."""

from __future__ import annotations

from tests.test_docs import code, public, section, table, text_of
from toondb.context import AsyncContextQuery, ContextChunk, ContextQuery, ContextResult
from toondb.context.fit import LEAST_WORDS, TruncationStrategy
from toondb.context.fusion import DeduplicationStrategy
from toondb.context.render import FORMATS
from toondb.context.tokens import TokenCounter

PAGE = "docs/context.md"


def first_column(heading: str) -> set[str]:
    rows = table(section(text_of(PAGE), heading))
    assert all(row[1] for row in rows)
    return {code(row[0])[0] for row in rows}


def test_methods_of_the_query() -> None:
    assert public(ContextQuery) == public(AsyncContextQuery)
    assert first_column("## The query") == public(ContextQuery)


def test_formats_and_attributes_of_the_result() -> None:
    formats, attributes = first_column("### Formats"), first_column("## The result")
    assert formats == public(ContextResult)
    assert {name.removeprefix("as_").partition("(")[0] for name in formats} == {*FORMATS, "rendering"}
    result = ContextResult([], 10, TruncationStrategy.DROP, TokenCounter("len", len))
    assert attributes == {name for name in vars(result) if not name.startswith("_")}


def test_strategies() -> None:
    assert first_column("## Duplicates") == {f"DeduplicationStrategy.{one.name}" for one in DeduplicationStrategy}
    assert first_column("### What gives way") == {f"TruncationStrategy.{one.name}" for one in TruncationStrategy}
    assert f"not below {LEAST_WORDS} words" in text_of(PAGE)


def test_attributes_of_a_chunk() -> None:
    (text,) = [part for part in text_of(PAGE).split("\n\n") if part.startswith("A chunk has ")]
    assert set(code(text)) == {*ContextChunk.__dataclass_fields__, "score"}
