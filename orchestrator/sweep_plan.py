"""What a sweep is going to compute, before anything starts: trials, their data and teachers, distinct rounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.chains import plan_chains
from orchestrator.checks import build_levels
from orchestrator.config import ExperimentConfig
from orchestrator.data.dataset import Dataset
from orchestrator.errors import ConfigError
from orchestrator.identity import digest
from orchestrator.loading import parse
from orchestrator.prepare import load_dataset
from orchestrator.round_cache import RoundCache
from orchestrator.teacher_host import TeacherSpec, TeacherTask
from orchestrator.teacher_pool import make_specs, make_task
from search_spaces import SearchSpace, apply, axes, is_grid, trials

_NEEDED_AT_START = ("data", "teachers", "hierarchy", "seed")
"""Sections that decide which data and which teachers there are: known for all trials before the first one runs."""

Overrides = dict[str, Any]
"""Dotted setting -> value: one trial."""


@dataclass(frozen=True)
class SweepPlan:
    """A planned sweep."""

    trials: tuple[Overrides, ...]
    """Every trial, in the order in which they should run; empty when a searcher draws them."""
    datasets: dict[str, Dataset]
    """`data_key` of a trial's configuration -> its data."""
    groups: tuple[tuple[Sequence[TeacherSpec], TeacherTask], ...]
    """Teachers of all trials, for one `ActorPool`."""
    rounds_asked: int
    """Rounds of all chains of all trials."""
    rounds_distinct: int
    """Different ones among them."""
    rounds_stored: int
    """Those of the distinct ones that are finished already."""


def trial_config(space: SearchSpace, base: dict[str, Any], overrides: Overrides) -> ExperimentConfig:
    """The configuration of one trial: base file, constants of the space, values of the trial; one thread, in process.

    Raises:
        ConfigError: the trial is not valid.
    """
    config, problems, _ = parse(apply(space, base, overrides))
    if problems:
        raise ConfigError(problems, f"trial {overrides}")
    return config


def data_key(config: ExperimentConfig) -> str:
    """Identity of a trial's data: trials that share it share one copy."""
    return digest(config.to_dict()["data"], config.seed)


def plan_sweep(space: SearchSpace, base: dict[str, Any], use_cache: bool) -> SweepPlan:
    """Load the data of all trials and count their rounds."""
    found = [(overrides, trial_config(space, base, overrides)) for overrides in _all_environments(space)]
    datasets: dict[str, Dataset] = {}
    groups: dict[str, tuple[dict[str, TeacherSpec], TeacherTask]] = {}
    for _, config in found:
        key = data_key(config)
        if key not in datasets:
            datasets[key] = load_dataset(config)
        _collect_teachers(config, datasets[key], groups)
    ordered, keys = _order_and_count(space, base, datasets)
    stored = 0
    if use_cache:
        storage = Path(trial_config(space, base, found[0][0]).storage).expanduser().resolve()
        cache = RoundCache(storage / "rounds")
        stored = sum(cache.has(key) for key in set(keys))
    return SweepPlan(
        trials=ordered,
        datasets=datasets,
        groups=tuple((tuple(specs.values()), task) for specs, task in groups.values()),
        rounds_asked=len(keys),
        rounds_distinct=len(set(keys)),
        rounds_stored=stored,
    )


def _all_environments(space: SearchSpace) -> list[Overrides]:
    """Every combination of the settings that decide about data and teachers (first values of all others)."""
    if is_grid(space):
        return trials(space)
    values: dict[str, list[Any]] = {}
    for path, domain in axes(space).items():
        if path.split(".")[0] in _NEEDED_AT_START:
            if domain.kind not in ("grid", "choice"):
                raise ConfigError([f"space.{path}: must be a grid or choice here (got {domain.kind})"])
            values[path] = list(domain.arguments)
    combinations = itertools.product(*values.values(), space.seeds)
    return [dict(zip([*values, "seed"], point, strict=True)) for point in combinations]


def _collect_teachers(
    config: ExperimentConfig, dataset: Dataset, groups: dict[str, tuple[dict[str, TeacherSpec], TeacherTask]]
) -> None:
    """Add a trial's teachers to those that train on the same data in the same way."""
    specs = make_specs(config, dataset, build_levels(config, dataset.n_classes))
    key = digest(data_key(config), config.teachers.model_dump(mode="json"))
    store = Path(config.storage).expanduser().resolve() / "teachers"
    known, _ = groups.setdefault(key, ({}, make_task(config, dataset, specs, store)))
    known.update({spec.key: spec for spec in specs})


def _order_and_count(
    space: SearchSpace, base: dict[str, Any], datasets: dict[str, Dataset]
) -> tuple[tuple[Overrides, ...], list[str]]:
    """Trials in the order that lets them share best, and the keys of all their rounds.

    The deepest trials come first: what they compute is all that shallower ones need. Among them, trials that begin with
    different rounds come before those that begin with the same one and would wait for each other.
    """
    if not is_grid(space):
        return (), []
    planned: list[tuple[int, int, int, Overrides]] = []
    keys: list[str] = []
    starts: dict[str, int] = {}
    for overrides in trials(space):
        config = trial_config(space, base, overrides)
        dataset = datasets[data_key(config)]
        chains = plan_chains(config, dataset, build_levels(config, dataset.n_classes))
        rounds = [planned_round.key for chain in chains for planned_round in chain.rounds]
        keys += rounds
        first, depth = rounds[0], len(rounds)
        rank = starts[f"{first}/{depth}"] = starts.get(f"{first}/{depth}", 0) + 1
        planned.append((-depth, rank, len(planned), overrides))
    return tuple(overrides for *_, overrides in sorted(planned, key=lambda p: p[:3])), keys
