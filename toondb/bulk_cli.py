"""The ``toondb-bulk`` command: index files of vectors, built, asked, described and converted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from . import __version__
from .command import run_command

# The work itself is imported by the commands: --help must not wait for NumPy and faiss.

__all__ = ["cli", "main"]

Command = TypeVar("Command", bound=Callable[..., None])

FORMATS = ("npy", "fvecs", "raw_f32")
FORMAT_HELP = "By default the suffix tells: .npy, .fvecs, or .raw, .f32, .bin for raw_f32."
_path = click.Path(path_type=Path)
_quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_threads = click.option(
    "--threads", type=click.IntRange(0), default=0, show_default="one for each processor", help="Threads to use."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="toondb-bulk")
def cli() -> None:
    """Index files of vectors: build, query, describe, convert."""


@cli.command("build-index")
@click.option("--input", "-i", "source", type=_path, required=True, help="File of vectors.")
@click.option("--output", "-o", type=_path, required=True, help="Index file to write; an existing one is replaced.")
@click.option("--dimension", "-d", type=int, help="Numbers in each vector; a raw file needs it.")
@click.option("--input-format", "--format", "format", type=click.Choice(FORMATS), help=FORMAT_HELP)
@click.option(
    "--ids", type=_path, help="File of an integer for each vector: .npy, .txt (one on a line) or .u64 (raw uint64)."
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean", "dot_product"]),
    default="cosine",
    show_default=True,
    help="How distances are measured.",
)
@click.option(
    "--max-connections", "--m", "-m", "m", type=int, default=16, show_default=True, help="Neighbours of a vector (M)."
)
@click.option(
    "--ef-construction",
    type=int,
    default=100,
    show_default=True,
    help="Candidates that an insertion looks at: more is slower and finds better neighbours.",
)
@_threads
@_quiet
@_json
def build_index(source: Path, output: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Build an index from a file of vectors.

    On a terminal a bar shows the progress.
    """
    from .bulk import bulk_build_index

    with _bar("Building", quiet or as_json) as progress:
        stats = bulk_build_index(source, output, progress=progress, **options)
    if as_json:
        _print_json(
            output=str(stats.output),
            vectors=stats.vectors,
            dimension=stats.dimension,
            seconds=stats.seconds,
            build_seconds=stats.build_seconds,
            rate=stats.rate,
            size_bytes=stats.size_bytes,
        )
    elif not quiet:
        click.echo(f"Built {stats.vectors} vectors at {stats.rate:.0f} vec/s")
        click.echo(f"Index size: {_megabytes(stats.size_bytes)}")


@cli.command()
@click.option("--index", "-i", type=_path, required=True, help="Index file.")
@click.option("--query", "--queries", "-q", "source", type=_path, required=True, help="File of one vector, or of many.")
@click.option("--query-format", "--format", "format", type=click.Choice(FORMATS), help=FORMAT_HELP)
@click.option("--k", "-k", type=int, default=10, show_default=True, help="Neighbours of each query.")
@click.option(
    "--ef",
    "--ef-search",
    "ef",
    type=int,
    default=64,
    show_default=True,
    help="Candidates that a search keeps: more is slower and finds more of the true nearest.",
)
@click.option("--exact", is_flag=True, help="Compare with every vector instead: the true nearest, slowly.")
@click.option(
    "--truth", type=_path, help="File of the ids of the true nearest, .npy or .ivecs: print the recall, no neighbours."
)
@click.option("--output", "-o", type=_path, help="Write the ids to this .npy file, print no neighbours.")
@_threads
@click.option("--quiet", is_flag=True, help="Print the neighbours only: query, id and distance, tabs between them.")
@_json
def query(
    index: Path,
    source: Path,
    format: str | None,
    k: int,
    ef: int,
    exact: bool,
    truth: Path | None,
    output: Path | None,
    threads: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """The nearest vectors of one query or of many.

    With --truth it measures: the recall, and the queries in a second.
    """
    from .bulk import bulk_info, bulk_query_batch, recall
    from .vector.atomic_file import target

    measured: dict[str, Any] = {}
    bulk_info(index, verify=False)
    if output is not None:
        target(output)  # a long search must not be for nothing
    started = time.perf_counter()
    ids, distances = bulk_query_batch(index, source, k, ef, format=format, exact=exact, threads=threads)
    measured["queries"] = len(ids)
    measured["seconds"] = time.perf_counter() - started
    if truth is not None:
        measured["recall"] = recall(ids, truth, k)
        # Again, now that the file is mapped and its checksums are compared.
        started = time.perf_counter()
        bulk_query_batch(index, source, k, ef, format=format, exact=exact, threads=threads)
        measured["seconds"] = time.perf_counter() - started
        measured["rate"] = len(ids) / measured["seconds"]
    if output is not None:
        _write_ids(output, ids)
    listed = None
    if truth is None and output is None:
        listed = [list(zip(*row, strict=True)) for row in zip(ids.tolist(), distances.tolist(), strict=True)]
    if as_json:
        results = [[{"id": id, "distance": far} for id, far in row] for row in listed or ()]
        _print_json(**measured, **({} if listed is None else {"results": results}))
    elif listed is not None:
        _print_neighbours(listed, quiet)
    elif not quiet:
        click.echo(f"Queries: {measured['queries']}")
    if truth is not None and not as_json:
        click.echo(f"recall@{k}: {measured['recall']:.4f}")
        if not quiet:
            click.echo(f"Rate: {measured['rate']:.0f} queries/s")


@cli.command()
@click.option("--index", "-i", type=_path, required=True, help="Index file.")
@click.option("--verify", is_flag=True, help="Read the whole file and compare its checksums.")
@_json
def info(index: Path, verify: bool, as_json: bool) -> None:
    """What an index file says about itself."""
    from .bulk import bulk_info

    found = bulk_info(index, verify=verify)
    if as_json:
        _print_json(**{name: getattr(found, name) for name in found.__slots__})
        return
    click.echo(f"Dimension: {found.dimension}")
    click.echo(f"Vectors: {found.vectors}")
    click.echo(f"Max connections: {found.max_connections}")
    click.echo(f"Ef construction: {found.ef_construction}")
    click.echo(f"Metric: {found.metric}")
    click.echo(f"Deleted: {found.tombstones}")
    click.echo(f"Size: {_megabytes(found.size_bytes)}")
    click.echo(f"Format version: {found.version}")


@cli.command()
@click.option("--input", "-i", "source", type=_path, required=True, help="File of vectors.")
@click.option("--output", "-o", type=_path, required=True, help="File to write; an existing one is replaced.")
@click.option(
    "--to-format", type=click.Choice(FORMATS), help="Format of the output. By default its suffix tells.", required=False
)
@click.option("--from-format", "--input-format", "format", type=click.Choice(FORMATS), help=FORMAT_HELP)
@click.option("--dimension", "-d", type=int, help="Numbers in each vector; a raw input needs it.")
@_quiet
@_json
def convert(source: Path, output: Path, to_format: str | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write vectors in another format, float32 in all of them."""
    from .bulk import bulk_convert
    from .vector.vector_files import format_of_name

    with _bar("Converting", quiet or as_json) as progress:
        stats = bulk_convert(source, output, to_format or format_of_name(output), progress=progress, **options)
    if as_json:
        _print_json(
            output=str(stats.output), vectors=stats.vectors, dimension=stats.dimension, size_bytes=stats.size_bytes
        )
    elif not quiet:
        click.echo(f"Converted {stats.vectors} vectors of {stats.dimension} dimensions")
        click.echo(f"File size: {_megabytes(stats.size_bytes)}")


def main() -> None:
    """Entry point; see :func:`run_command` for the exit status."""
    run_command(cli, "toondb-bulk", less="Build from fewer vectors")


def _print_json(**fields: Any) -> None:
    click.echo(json.dumps(fields))


def _print_neighbours(listed: list[list[tuple[Any, float]]], quiet: bool) -> None:
    lines: list[str] = []
    for number, row in enumerate(listed):
        if quiet:
            lines += [f"{number}\t{id}\t{distance:.6g}" for id, distance in row]
            continue
        if len(listed) > 1:
            lines.append(f"Query {number}:")
        lines += [f"{at}. ID: {id}, Distance: {distance:.4f}" for at, (id, distance) in enumerate(row, start=1)]
    if lines:
        click.echo("\n".join(lines))


def _write_ids(output: Path, ids: Any) -> None:
    import numpy as np

    from toondb_protocol.errors import ValidationError

    from .vector.atomic_file import replacing

    if ids.dtype == object:
        raise ValidationError("the ids of this index are not all numbers.", remediation="Print them as --json instead.")
    with replacing(output) as file:
        np.save(file, ids)


@contextmanager
def _bar(label: str, hidden: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, when that is a terminal."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:
        done_before = 0

        def progress(done: int, of: int) -> None:
            nonlocal done_before
            bar.length = of
            bar.update(done - done_before)
            done_before = done

        yield progress


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
