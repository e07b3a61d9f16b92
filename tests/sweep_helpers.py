"""What the tests of sweeps have in common: spaces, configuration trees, comparisons of students."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import ExperimentConfig, ExperimentResult, run_experiment
from orchestrator.identity import digest
from orchestrator.loading import apply_overrides
from orchestrator.round_cache import StoredRound, read_round
from orchestrator.sweep import SweepResult
from orchestrator.sweep_plan import trial_config
from search_spaces import SearchSpace
from tests.conftest import SMALL

METRIC = "student_validation_truth_accuracy"
TOP3: list[dict[str, Any]] = [{"kind": "topk_rate", "k": 3}]
KEEPS_NOTHING: list[dict[str, Any]] = [{"kind": "threshold", "probability": 0.9999999}]


def make_space(**fields: Any) -> SearchSpace:
    """A search space by its fields."""
    defaults = {"name": "mine", "description": "a test", "metric": METRIC, "mode": "max"}
    return SearchSpace.model_validate({**defaults, **fields}, strict=False)


def make_base(storage: Path, *overrides: str) -> dict[str, Any]:
    """The raw tree of a small experiment with the ceiling as its only baseline."""
    tree: dict[str, Any] = {}
    settings = (f"storage={storage}", "tracking.enabled=false", "baselines=[ceiling]", *overrides)
    assert not apply_overrides(tree, [*SMALL, *settings])
    return tree


def inline(base: dict[str, Any], storage: Path) -> dict[str, Any]:
    """The same experiments in this process, elsewhere and untracked."""
    return {**base, "storage": str(storage), "tracking": {"enabled": False}, "compute": {"backend": "inline"}}


def identity(config: ExperimentConfig) -> str:
    """What a trial computes, wherever it runs."""
    elsewhere = ("name", "storage", "compute", "tracking")
    return digest({name: value for name, value in config.to_dict().items() if name not in elsewhere})


def finished(folder: Path) -> dict[str, ExperimentResult]:
    """Results of all finished trials of a sweep's folder, by what they compute."""
    found = [ExperimentResult.load(path.parent) for path in folder.glob("trials/*/results.json")]
    by_identity = {identity(result.config): result for result in found}
    assert len(by_identity) == len(found)
    return by_identity


def each_alone(
    space: SearchSpace, base: dict[str, Any], trials: Iterator[dict[str, Any]] | list[dict[str, Any]], storage: Path
) -> dict[str, ExperimentResult]:
    """Every trial run by itself without Ray and without any round of another, by what it computes."""
    configs = [trial_config(space, inline(base, storage), overrides) for overrides in trials]
    return {identity(config): run_experiment(config, use_cache=False) for config in configs}


def largest_difference(one: ExperimentResult, two: ExperimentResult) -> float:
    """Over all weights of all students of all chains; the rounds' supervision must be the same."""
    assert one.chains.keys() == two.chains.keys()
    largest = 0.0
    for name, rounds in one.chains.items():
        for mine, other in zip(rounds, two.chains[name], strict=True):
            np.testing.assert_array_equal(mine.keep, other.keep)
            np.testing.assert_array_equal(mine.labels, other.labels)
            assert mine.head.keys() == other.head.keys()
            largest = max(largest, *(float(np.abs(w - other.head[n]).max()) for n, w in mine.head.items()))
    return largest


def assert_same_students(
    one: dict[str, ExperimentResult], two: dict[str, ExperimentResult], tolerance: float = 0.0
) -> None:
    """The same trials, and the same student in every round of each."""
    assert one.keys() == two.keys()
    assert len(one) > 0
    assert max(largest_difference(result, two[key]) for key, result in one.items()) <= tolerance


def stored_rounds(*folders: Path) -> list[StoredRound]:
    """Every round in these round caches."""
    return [read_round(path.parent) for folder in folders for path in folder.glob("*/round.json")]


def table_rows(result: SweepResult) -> list[dict[str, Any]]:
    """The table without what may differ between two runs of the same sweep: order, places, times, who computed."""
    differs = ["trial", "path", "cached", "samples_per_second", "forward_passes"]
    rows = result.table.drop(columns=differs).to_dict("records")
    return sorted(rows, key=str)


def wait_until(true: Callable[[], object], seconds: float, what: str = "nothing happened") -> None:
    """Poll until something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.1)
