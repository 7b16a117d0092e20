"""The curve of recall against rate as a picture."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.report import RowResult
from benchmarks.vectors import CURVE

__all__ = ["MissingPlotLibraryError", "plot_curve"]


class MissingPlotLibraryError(Exception):
    """matplotlib is not installed."""


def plot_curve(results: Iterable[RowResult], path: Path) -> bool:
    """Draw the curve into a PNG file; whether there was one to draw.

    Args:
        results: Those of a run.
        path: The file; its folder is made when it is missing.

    Raises:
        MissingPlotLibraryError: matplotlib is not installed.
    """
    found = next((result for result in results if result.row.name == CURVE), None)
    if found is None:
        return False
    lines: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for cell in found.cells:
        if cell.samples is not None and cell.recall is not None:
            who, _, ef = cell.label.rpartition(", ")
            lines[who].append((cell.recall, cell.samples.median, ef))
    if not lines:
        return False
    try:
        importlib.import_module("matplotlib").use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise MissingPlotLibraryError("matplotlib is not installed: pip install matplotlib") from None
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for who, points in lines.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], marker="o", label=who)
        for recall, rate, ef in points:
            axes.annotate(ef, (recall, rate), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="recall@10", ylabel="queries a second, one thread", yscale="log", title=found.row.title)
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
