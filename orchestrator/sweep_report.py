"""A sweep as a summary and as figures, from its tidy table: one row per trial x round.

Columns of the table: ``trial, seed, supervision, criterion, assignment, depth, round, teachers``, the scalars of
`orchestrator.evaluation.RoundMetrics`, and one column per setting the sweep varies (``student.lr``). Figures are plain
`matplotlib.figure.Figure` objects: nothing global is touched, so they can be made in any thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from rich.table import Table

from orchestrator.config import ExperimentConfig
from orchestrator.display import percent
from orchestrator.evaluation import RoundMetrics
from orchestrator.filters import FilterOptions, KeepFraction, LocalGlobal, ProbabilityThreshold, TopKRate

SELECTION = "student_validation_truth_accuracy"
SETTINGS = ("supervision", "criterion", "assignment", "depth")
"""Columns every table has that say what a trial did."""
SHOWN = (SELECTION, "student_accuracy", "pgr", "keep_rate")
"""Numbers of the summary."""

_SAID_BY_SETTINGS = ("rounds.supervision", "rounds.filters", "rounds.assignment")
_NOT_VARIED = {"trial", "seed", *SETTINGS, *(f.name for f in fields(RoundMetrics))}
"""Columns that are no setting of the configuration tree, whatever they are called."""
_MOST_LINES = 12
_LOG_FROM = 50.0
"""A parallel axis is logarithmic when its largest value is so many times its smallest."""


def criterion_name(filters: Sequence[FilterOptions]) -> str:
    """The filters in a few words, e.g. ``all``, ``top3`` or ``local_global k=1 confidence + top3``."""
    return " + ".join(_filter_name(options) for options in filters) or "all"


def _filter_name(options: FilterOptions) -> str:
    if isinstance(options, TopKRate):
        return f"top{options.k}"
    if isinstance(options, ProbabilityThreshold):
        return f"{options.of} p >= {options.probability:g}"
    if isinstance(options, KeepFraction):
        return f"keep {100 * options.fraction:g} %"
    if isinstance(options, LocalGlobal):
        extra = " confidence" * options.confidence + f" {options.select}" * (options.select != "agreeing")
        return f"local_global k={options.k}{extra}"
    settings = options.model_dump(mode="json")
    kind = str(settings.pop("kind", type(options).__name__))
    return " ".join([kind, *(f"{name}={value}" for name, value in settings.items())])


def figures(table: pd.DataFrame, metric: str = SELECTION) -> dict[str, Figure]:
    """File name without ending -> figure; none for a sweep without a single round."""
    if table.empty:
        return {}
    return {
        "pgr_by_teachers": pgr_figure(table),
        "depth_by_criterion": heatmap_figure(table, metric),
        "parallel_coordinates": parallel_figure(table, metric),
    }


def last_rounds(table: pd.DataFrame, finished_only: bool = True) -> pd.DataFrame:
    """The row of each trial's last round; without the trials that were stopped early or failed, unless asked for."""
    last = table.sort_values("round", kind="stable").drop_duplicates("trial", keep="last").sort_index()
    if not finished_only:
        return last
    stopped = last["stopped"].astype(bool) if "stopped" in last else False
    return last[(last["round"] == last["depth"]) & ~np.asarray(stopped)]


def summary(table: pd.DataFrame, metric: str = SELECTION, mode: str = "max") -> pd.DataFrame:
    """Mean and standard deviation over seeds of each setting's last round, the best by the validation metric first.

    Returns:
        The columns of the setting, ``n`` (seeds), and ``NAME_mean`` and ``NAME_sd`` (NaN for one seed) of the metric
        and `SHOWN`. Trials that did not reach their last round are left out.
    """
    rows, keys = _with_settings(last_rounds(table))
    names = list(dict.fromkeys((metric, *SHOWN)))
    grouped = rows.assign(**{name: _numbers(rows, name) for name in names}).groupby(keys, sort=False, dropna=False)
    parts: list[pd.Series[Any]] = [grouped["seed"].nunique().rename("n")]
    for name in names:
        parts += [grouped[name].mean().rename(f"{name}_mean"), grouped[name].std().rename(f"{name}_sd")]
    result = pd.concat(parts, axis=1).reset_index()
    return result.sort_values(f"{metric}_mean", ascending=mode == "min", kind="stable", ignore_index=True)


def summary_table(table: pd.DataFrame, metric: str = SELECTION, mode: str = "max", limit: int = 20) -> Table:
    """`summary` for people: what varies, the metric that chooses, then what is only reported.

    Oracle assignment is marked as the upper bound it is, and never as the best.
    """
    if table.empty:
        return Table(title="no trial finished a round")
    best = summary(table, metric, mode)
    keys = [c for c in best.columns[: best.columns.get_loc("n")] if c in SETTINGS or best[c].nunique(dropna=False) > 1]
    left_out = table["trial"].nunique() - len(last_rounds(table))
    result = Table(title=f"best settings by {metric}, mean +- sd over seeds", title_justify="left")
    for key in keys:
        result.add_column(key.replace(".", ".\n"))
    names = list(dict.fromkeys((metric, *SHOWN)))
    for name in ("n", *names):
        result.add_column({"pgr": "PGR"}.get(name, name.replace("_", "\n")), justify="right")
    chosen = False
    for _, row in best.head(limit).iterrows():
        oracle = row["assignment"] == "oracle"
        style = "dim" if oracle else None if chosen else "bold green"
        chosen |= not oracle
        cells = [f"{row[k]} (upper bound)" if oracle and k == "assignment" else str(row[k]) for k in keys]
        numbers = [_mean_sd(row[f"{name}_mean"], row[f"{name}_sd"]) for name in names]
        result.add_row(*cells, str(row["n"]), *numbers, style=style)
    notes = [f"the first {limit} of {len(best)} settings"] if len(best) > limit else []
    notes += [f"trials stopped early or failed, not listed: {left_out}"] if left_out else []
    result.caption = "; ".join(notes) or None
    return result


def pgr_figure(table: pd.DataFrame) -> Figure:
    """PGR against the number of teachers of the last round: mean +- sd over seeds, a line per criterion, a panel each
    for hard and soft labels (the paper's figure).

    Where every trial has the same depth, the rounds of a trial stand for the trials of less depth, which they equal.
    Other settings that vary get lines of their own; of more than 12 lines the best are drawn.
    """
    rows = table if table["depth"].nunique() == 1 else last_rounds(table)
    rows, keys = _with_settings(rows)
    rows = rows.assign(pgr=_numbers(rows, "pgr"))
    varied = [k for k in keys if k not in ("supervision", "criterion", "depth", "hierarchy.levels")]
    lines = ["criterion", *(k for k in varied if rows[k].nunique(dropna=False) > 1)]
    rows["line"] = rows[lines].astype(str).agg(", ".join, axis=1)
    rank = rows.assign(metric=_numbers(rows, SELECTION)).groupby("line", sort=False)["metric"].max()
    kept = set(rank.sort_values(ascending=False, kind="stable").index[:_MOST_LINES])
    names = [name for name in rank.index if name in kept]
    kinds = sorted(rows["supervision"].unique())
    figure = Figure(figsize=(1.5 + 4.2 * max(1, len(kinds)), 4.0), layout="constrained")
    panels = figure.subplots(1, max(1, len(kinds)), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=False):
        for number, name in enumerate(names):
            points = rows[(rows["supervision"] == kind) & (rows["line"] == name)]
            # shared rounds: one point per seed and number of teachers, not one per trial that used it
            points = points.drop_duplicates(["seed", "teachers", "pgr"])
            by = points.groupby("teachers")["pgr"].agg(["mean", "std"]).dropna(subset=["mean"])
            if len(by):
                axes.errorbar(
                    by.index, 100 * by["mean"], yerr=100 * by["std"].fillna(0.0), label=name,
                    marker="o", capsize=3, color=f"C{number % 10}", linestyle="-" if number < 10 else "--",
                )  # fmt: skip
        counts = sorted(rows["teachers"].unique())
        if counts and min(counts) > 0:
            axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(c) for c in counts])
        axes.minorticks_off()
        axes.set(xlabel="teachers in the last round", title=f"{kind} labels")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        else:
            _say(axes, "no PGR: it needs the ceiling above the weak teacher")
    panels[0].set_ylabel("performance gap recovered, %")
    if len(rank) > len(names):
        figure.suptitle(f"the {len(names)} best of {len(rank)} settings by validation", fontsize=9)
    return figure


def heatmap_figure(table: pd.DataFrame, metric: str = SELECTION) -> Figure:
    """Depth (rows) x criterion (columns) in the colours of a metric, mean over all else; a panel per supervision."""
    rows, keys = _with_settings(last_rounds(table))
    rows = rows.assign(metric=_numbers(rows, metric))
    others = [k for k in keys if k not in SETTINGS[:2] and k != "depth" and rows[k].nunique(dropna=False) > 1]
    kinds = sorted(rows["supervision"].unique())
    depths, criteria = sorted(rows["depth"].unique()), list(rows["criterion"].unique())
    size = (1.5 + max(1, len(kinds)) * max(2.6, 0.9 * len(criteria)), 1.8 + 0.6 * max(2, len(depths)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(1, len(kinds)), sharey=True, squeeze=False)[0]
    norm = _norm(rows["metric"])
    for axes, kind in zip(panels, kinds, strict=False):
        cells = rows[rows["supervision"] == kind].pivot_table(
            index="depth", columns="criterion", values="metric", aggfunc="mean"
        )
        values = cells.reindex(index=depths, columns=criteria).to_numpy(dtype=float)
        axes.imshow(values, norm=norm, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "-" if np.isnan(value) else f"{value:.3f}"
            color = "k" if np.isnan(value) or norm(value) > 0.6 else "w"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(criteria)), criteria, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(depths)), [str(d) for d in depths])
        axes.set(title=f"{kind} labels", xlabel="criterion")
    panels[0].set_ylabel("depth of the hierarchy")
    if kinds:
        figure.colorbar(ScalarMappable(norm, "viridis"), ax=list(panels), label=metric.replace("_", " "))
    figure.suptitle("mean over " + ", ".join(["seeds", *others]), fontsize=9)
    return figure


def parallel_figure(table: pd.DataFrame, metric: str = SELECTION) -> Figure:
    """A line per trial (its last round, stopped trials too) through every setting that varies and on to the metric,
    which also colours it."""
    rows, keys = _with_settings(last_rounds(table, finished_only=False))
    varied = [k for k in keys if rows[k].nunique(dropna=False) > 1]
    figure = Figure(figsize=(2.5 + 1.9 * max(1, len(varied)), 4.2), layout="constrained")
    axes = figure.subplots()
    if not varied:
        _say(axes, "no setting varies")
        return figure
    values = _numbers(rows, metric)
    norm = _norm(values)
    colors = ScalarMappable(norm, "viridis")
    shades = colors.to_rgba(values.to_numpy())
    heights = [_axis(axes, number, rows[name]) for number, name in enumerate(varied)]
    heights.append([float(h) for h in norm(values.to_numpy())])
    axes.axvline(len(varied), color="0.6", linewidth=0.8, zorder=0)
    for trial, value in enumerate(values):
        known = not np.isnan(value)
        axes.plot(
            range(len(heights)),
            [column[trial] for column in heights],
            color=shades[trial] if known else "0.8",  # a trial without the metric is grey
            zorder=2 + float(norm(value)) if known else 1,  # the brightest on top
            alpha=0.8,
            linewidth=1.2,
        )
    axes.set_xticks(range(len(heights)), [*varied, "metric"])
    axes.set(ylim=(-0.06, 1.06), xlim=(-0.35, len(varied) + 0.05), yticks=[])
    axes.spines[:].set_visible(False)
    figure.colorbar(colors, ax=axes, label=metric.replace("_", " "))
    return figure


def _axis(axes: Axes, number: int, column: pd.Series[Any]) -> list[float]:
    """Draw one axis of a parallel plot; returns the height in 0..1 of each row."""
    axes.axvline(number, color="0.6", linewidth=0.8, zorder=0)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) and column.notna().all():
        values = column.to_numpy(dtype=float)
        low, high = float(values.min()), float(values.max())
        log = low > 0 and high / low >= _LOG_FROM
        scaled = np.log(values) if log else values
        heights = (scaled - scaled.min()) / (scaled.max() - scaled.min())
        labels = {0.0: f"{low:g}", 1.0: f"{high:g}" + (" (log)" if log else "")}
    else:
        texts = column.map(_text)
        names = list(dict.fromkeys(texts))
        position = {name: place / max(1, len(names) - 1) for place, name in enumerate(names)}
        heights = texts.map(position).to_numpy(dtype=float)
        labels = {place: name for name, place in position.items()}
    for height, label in labels.items():
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        axes.text(number - 0.03, height, label, ha="right", va="center", fontsize=7, bbox=box, zorder=5)
    return [float(h) for h in heights]


def _with_settings(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A copy with lists and mappings as text, and the columns that tell settings apart."""
    known = ExperimentConfig.model_fields
    overrides = [
        c for c in rows.columns if c.split(".")[0] in known and c not in _NOT_VARIED and c not in _SAID_BY_SETTINGS
    ]
    rows = rows.copy()
    for name in overrides:
        rows[name] = rows[name].map(lambda value: _text(value) if isinstance(value, list | tuple | dict) else value)
    levels = "hierarchy.levels"
    if levels in overrides and rows[[levels, "depth"]].drop_duplicates().shape[0] == rows["depth"].nunique():
        overrides.remove(levels)  # the depth says it all
    return rows, [*SETTINGS, *overrides]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _numbers(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    """A column as floats, NaN for None."""
    return pd.to_numeric(rows[name], errors="coerce").astype(float)


def _norm(values: pd.Series[float]) -> Normalize:
    known = values.dropna()
    return Normalize(float(known.min()), float(known.max())) if len(known) else Normalize(0.0, 1.0)


def _mean_sd(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return "-"
    return percent(mean) if np.isnan(sd) else f"{percent(mean).removesuffix(' %')} +- {percent(sd)}"


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=9, wrap=True)
