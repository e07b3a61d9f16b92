"""The tidy table of a sweep: one row per trial and round, and who is best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from ray.tune import ResultGrid

from orchestrator.config import ExperimentConfig
from orchestrator.errors import StorageError
from orchestrator.results import ExperimentResult
from orchestrator.sweep_plan import trial_config
from orchestrator.sweep_report import criterion_name
from orchestrator.sweep_trial import SCALARS
from search_spaces import SearchSpace


def tidy(space: SearchSpace, base: dict[str, Any], folder: Path, grid: ResultGrid) -> pd.DataFrame:
    """All rounds of all trials; a trial that was stopped early has the rounds it got to.

    Columns: trial, seed, supervision, criterion, assignment, depth, stopped, every scalar of a round, and each varied
    setting under its dotted name (JSON where it is a list).
    """
    rows = []
    for number, result in enumerate(grid):
        if not result.config:
            continue
        overrides = result.config["overrides"]
        config = trial_config(space, base, overrides)
        head = {
            "trial": number,
            "seed": config.seed,
            "supervision": config.rounds.supervision,
            "criterion": criterion_name(config.rounds.filters),
            "assignment": config.rounds.assignment,
            "depth": len(config.hierarchy.levels),
            **{k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in overrides.items() if k != "seed"},
        }
        finished = _finished(result.metrics, folder)
        if finished is not None:
            rows += [
                {**head, "path": str(finished.path), "stopped": False, **{n: getattr(r.metrics, n) for n in SCALARS}}
                for r in finished.rounds
            ]
        elif result.metrics_dataframe is not None:
            frame = result.metrics_dataframe.drop_duplicates("round", keep="last")
            known = [n for n in SCALARS if n in frame]
            rows += [{**head, "path": "", "stopped": True, **row} for row in frame[known].to_dict("records")]
    return pd.DataFrame(rows)


def best_trial(table: pd.DataFrame, metric: str, mode: str) -> Path | None:
    """Folder of the best trial: the setting with the best mean over seeds, and of its trials the best one.

    Only trials that ran to their end count; the metric is one that never looks at test.
    """
    if not len(table):
        return None
    last = table[~table["stopped"]].sort_values("round").groupby("trial").tail(1)
    last = last[(last["assignment"] != "oracle") & last[metric].notna()]
    if not len(last):
        return None
    setting = [c for c in ("supervision", "criterion", "assignment", "depth") if c in last]
    setting += [
        c for c in last.columns if c.split(".")[0] in ExperimentConfig.model_fields and c not in (*setting, "seed")
    ]
    sign = 1 if mode == "max" else -1
    score = (last[metric] * sign).groupby([last[c] for c in setting], dropna=False).transform("mean")
    top = last[score == score.max()]
    return Path(str(top.loc[(top[metric] * sign).idxmax(), "path"]))


def _finished(metrics: dict[str, Any] | None, folder: Path) -> ExperimentResult | None:
    """The stored result of a trial, when it ran to its end."""
    name = (metrics or {}).get("folder")
    if not name:
        return None
    try:
        return ExperimentResult.load(folder / str(name))
    except StorageError:
        return None
