"""The figures of a round, from the counts in the journal."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def assignment_figure(matrix: list[list[int]], step: int) -> Figure:
    """Heat map of true block (rows) x assigned teacher (columns), in shares of each row."""
    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    if len(counts) <= 16:
        for (row, column), share in np.ndenumerate(shares):
            color = "w" if share < 0.6 else "k"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="assigned teacher", ylabel="teacher of the true class")
    axes.set_title(f"round {step}: assignment, {np.trace(counts) / max(1, counts.sum()):.1%} right")
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    figure.colorbar(image, label="share of the row")
    return figure


def confidence_figure(histogram: list[list[int]], step: int) -> Figure:
    """Stacked histogram of the supervision's confidence, wrong and right labels apart."""
    wrong, right = np.asarray(histogram)
    edges = np.linspace(0, 1, len(wrong) + 1)
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    width = edges[1] - edges[0]
    axes.bar(edges[:-1], right, width, align="edge", label="label right", color="tab:green")
    axes.bar(edges[:-1], wrong, width, align="edge", bottom=right, label="label wrong", color="tab:red")
    axes.set(xlabel="confidence of the supervision", ylabel="training samples", xlim=(0, 1))
    axes.set_title(f"round {step}: confidence of the labels")
    axes.legend()
    return figure


def draw(record: dict[str, Any]) -> Figure:
    """The figure of a journal record of kind ``figure``."""
    if record["name"] == "assignment":
        return assignment_figure(record["matrix"], record["step"])
    return confidence_figure(record["histogram"], record["step"])
