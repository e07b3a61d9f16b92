"""The summary and the figures of a sweep, from a small made-up table whose numbers are known."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from orchestrator.filters import FilterOptions, KeepFraction, LocalGlobal, ProbabilityThreshold, TopKRate
from orchestrator.sweep_report import (
    criterion_name,
    figures,
    heatmap_figure,
    last_rounds,
    parallel_figure,
    pgr_figure,
    summary,
    summary_table,
)

LEVELS = (1, 2, 4)
METRIC = "student_validation_truth_accuracy"


def score(supervision: str, criterion: str, round_: int, seed: int) -> float:
    return 0.4 + 0.1 * round_ + 0.05 * (supervision == "soft") + 0.02 * (criterion == "top3") + 0.01 * seed


def make_table(depths: tuple[int, ...] = (1, 2, 3), seeds: tuple[int, ...] = (0, 1, 2), **extra: Any) -> pd.DataFrame:
    """A full grid of supervision x criterion x depth x seeds with every round of every trial."""
    rows = []
    trial = 0
    for supervision in ("hard", "soft"):
        for criterion in ("all", "top3"):
            for depth in depths:
                for seed in seeds:
                    for number in range(1, depth + 1):
                        value = score(supervision, criterion, number, seed)
                        rows.append(
                            {
                                "trial": trial,
                                "seed": seed,
                                "supervision": supervision,
                                "criterion": criterion,
                                "assignment": "student",
                                "depth": depth,
                                "rounds.supervision": supervision,
                                "rounds.filters": criterion,
                                "hierarchy.levels": json.dumps(LEVELS[:depth]),
                                "round": number,
                                "teachers": LEVELS[number - 1],
                                "student_accuracy": value - 0.01,
                                "pgr": value if number > 1 else None,
                                METRIC: value,
                                "keep_rate": 1.0 if criterion == "all" else 0.8,
                                **extra,
                            }
                        )
                    trial += 1
    return pd.DataFrame(rows).astype({"pgr": object})


def text_of(table: Any) -> str:
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize(
    ("filters", "name"),
    [
        ((), "all"),
        ((TopKRate(k=3),), "top3"),
        ((ProbabilityThreshold(probability=0.25, of="teacher"),), "teacher p >= 0.25"),
        ((KeepFraction(fraction=0.5),), "keep 50 %"),
        ((LocalGlobal(),), "local_global k=1"),
        ((LocalGlobal(k=2, confidence=True, select="lowest_loss"),), "local_global k=2 confidence lowest_loss"),
        ((LocalGlobal(k=1), TopKRate(k=2)), "local_global k=1 + top2"),
    ],
)
def test_criterion_names(filters: tuple[FilterOptions, ...], name: str) -> None:
    assert criterion_name(filters) == name


def test_a_filter_of_a_plugin_is_named_with_its_settings() -> None:
    class Mine(FilterOptions):
        kind: str = "mine"
        strength: int = 3

    assert criterion_name((Mine(),)) == "mine strength=3"


def test_last_rounds_leave_out_what_stopped_early() -> None:
    table = make_table()
    assert len(last_rounds(table)) == 36
    cut = table[~((table["trial"] == 8) & (table["round"] == 3))]
    assert len(last_rounds(cut)) == 35
    assert len(last_rounds(cut, finished_only=False)) == 36
    flagged = table.assign(stopped=table["trial"] == 0)
    assert len(last_rounds(flagged)) == 35


def test_summary_numbers_and_order() -> None:
    result = summary(make_table())
    assert len(result) == 12
    assert list(result.columns[:4]) == ["supervision", "criterion", "assignment", "depth"]
    assert "hierarchy.levels" not in result  # the depth says it
    best = result.iloc[0]
    assert (best["supervision"], best["criterion"], best["depth"], best["n"]) == ("soft", "top3", 3, 3)
    values = [score("soft", "top3", 3, seed) for seed in range(3)]
    assert best[f"{METRIC}_mean"] == pytest.approx(np.mean(values))
    assert best[f"{METRIC}_sd"] == pytest.approx(np.std(values, ddof=1))
    assert best["keep_rate_mean"] == pytest.approx(0.8)
    assert result[f"{METRIC}_mean"].is_monotonic_decreasing
    assert result[result["depth"] == 1]["pgr_mean"].isna().all()
    assert summary(make_table(), mode="min").iloc[0]["depth"] == 1


def test_summary_of_one_seed_has_no_sd() -> None:
    result = summary(make_table(seeds=(4,)))
    assert (result["n"] == 1).all()
    assert result[f"{METRIC}_sd"].isna().all()


def test_settings_with_the_same_depth_but_other_levels_stay_apart() -> None:
    table = make_table(depths=(2,))
    other = make_table(depths=(2,)).assign(**{"hierarchy.levels": "[1, 3]"})
    other["trial"] += 1000
    assert len(summary(pd.concat([table, other], ignore_index=True))) == 8


def test_lists_and_mappings_may_be_settings() -> None:
    table = make_table(depths=(1,))
    table["student"] = pd.Series([{"lr": 0.1 * (i % 2)} for i in range(len(table))], dtype=object)
    table["student.lr"] = pd.Series([[i % 2] for i in range(len(table))], dtype=object)
    assert summary(table)["n"].sum() == len(table)
    assert all(isinstance(f, Figure) for f in figures(table).values())


def test_summary_table_marks_the_oracle_and_never_calls_it_best() -> None:
    table = make_table(depths=(2,), seeds=(0, 1))
    oracle = table.assign(assignment="oracle", trial=table["trial"] + 1000)
    oracle[METRIC] += 0.2
    rich_table = summary_table(pd.concat([table, oracle], ignore_index=True), limit=5)
    assert [row.style for row in rich_table.rows] == ["dim"] * 4 + ["bold green"]
    text = text_of(rich_table)
    assert "oracle (upper bound)" in text
    assert "the first 5 of 8 settings" in text
    assert "67.5 +- 0.7 %" in text  # soft, top3, depth 2


def test_summary_table_says_what_is_missing() -> None:
    table = make_table(depths=(2,), seeds=(0,))
    cut = table[~((table["trial"] == 0) & (table["round"] == 2))]
    assert "trials stopped early or failed, not listed: 1" in " ".join(text_of(summary_table(cut)).split())
    assert not summary_table(pd.DataFrame()).rows
    assert figures(pd.DataFrame()) == {}


def curves(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> (x, y) of the lines of a panel."""
    found = {}
    for container in figure.axes[panel].containers:
        line = container.lines[0]  # type: ignore[attr-defined]
        found[str(container.get_label())] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_pgr_figure_shows_means_per_number_of_teachers() -> None:
    figure = pgr_figure(make_table())
    assert [axes.get_title() for axes in figure.axes] == ["hard labels", "soft labels"]
    soft = curves(figure, 1)
    assert set(soft) == {"all", "top3"}
    x, y = soft["top3"]
    assert x == [2, 4]  # PGR of one teacher is None in this table
    assert y == pytest.approx([100 * score("soft", "top3", n, 1) for n in (2, 3)])
    bars = figure.axes[1].containers[1].lines[2][0].get_segments()  # type: ignore[attr-defined]
    assert bars[0][1][1] - bars[0][0][1] == pytest.approx(2.0)  # sd of 0, 1, 2 % is 1 %


def test_pgr_figure_of_one_depth_takes_the_rounds() -> None:
    deep = curves(pgr_figure(make_table(depths=(3,))), 0)
    every = curves(pgr_figure(make_table()), 0)
    assert deep["all"][0] == every["all"][0]
    assert deep["all"][1] == pytest.approx(every["all"][1])


def test_pgr_figure_keeps_other_settings_apart_and_shows_the_best_of_many() -> None:
    tables = [make_table(seeds=(0,)).assign(assignment=f"a{i:02d}") for i in range(8)]
    for number, table in enumerate(tables):
        table["trial"] += 1000 * number
        table[METRIC] += number / 100
    figure = pgr_figure(pd.concat(tables, ignore_index=True))
    names = set(curves(figure, 0))
    assert len(names) == 12
    assert "top3, a07" in names
    assert "all, a00" not in names
    assert figure._suptitle.get_text() == "the 12 best of 16 settings by validation"  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_figures_without_any_pgr(missing: float | None) -> None:
    table = make_table()
    table["pgr"] = pd.Series([missing] * len(table), dtype=object)
    figure = pgr_figure(table)
    assert "no PGR" in figure.axes[0].texts[0].get_text()
    for made in figures(table, "pgr").values():
        made.canvas.draw()


def test_heatmap_values() -> None:
    figure = heatmap_figure(make_table(), METRIC)
    image = figure.axes[1].images[0].get_array()
    assert image is not None
    expected = [[score("soft", c, d, 1) for c in ("all", "top3")] for d in (1, 2, 3)]
    np.testing.assert_allclose(image, expected)
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["all", "top3"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["1", "2", "3"]


def test_heatmap_with_holes() -> None:
    table = make_table()
    figure = heatmap_figure(table[~((table["criterion"] == "top3") & (table["depth"] == 3))], METRIC)
    assert "-" in [t.get_text() for t in figure.axes[0].texts]


def test_parallel_figure_of_categories_and_numbers() -> None:
    table = make_table(depths=(2,))
    rates = np.geomspace(1e-4, 1e-1, table["trial"].nunique())
    table["student.lr"] = table["trial"].map(dict(enumerate(rates)))
    table.loc[table["trial"] == 0, METRIC] = np.nan
    figure = parallel_figure(table, METRIC)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["supervision", "criterion", "student.lr", "metric"]
    drawn = [(line.get_color(), np.asarray(line.get_ydata(), dtype=float)) for line in axes.lines]
    drawn = [(color, heights) for color, heights in drawn if len(heights) == 4]
    assert len(drawn) == 12
    assert drawn[0][0] == "0.8"  # no metric
    np.testing.assert_array_equal(drawn[0][1], [0.0, 0.0, 0.0, np.nan])
    np.testing.assert_allclose(drawn[-1][1], [1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose([heights[2] for _, heights in drawn], np.linspace(0, 1, 12))  # logarithmic


def test_parallel_figure_when_nothing_varies() -> None:
    table = make_table(depths=(1,), seeds=(0,))
    figure = parallel_figure(table[table["trial"] == 0], METRIC)
    assert figure.axes[0].texts[0].get_text() == "no setting varies"


def test_figures_can_be_drawn() -> None:
    made = figures(make_table(), METRIC)
    assert set(made) == {"pgr_by_teachers", "depth_by_criterion", "parallel_coordinates"}
    for figure in made.values():
        figure.canvas.draw()


def test_everything_stopped_early() -> None:
    table = make_table(depths=(3,))
    table = table[table["round"] < 3]
    assert summary(table).empty
    for figure in figures(table).values():
        figure.canvas.draw()
    summary_table(table)
