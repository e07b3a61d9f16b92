"""What an experiment computes: chains of rounds, each round with the key of everything it depends on.

The main chain is the method; baselines are chains of their own. Chains that share a prefix share its keys, so the
store computes it once: every chain starts from the same round 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orchestrator.method
import trainers
from orchestrator.config import ExperimentConfig
from orchestrator.data.dataset import Dataset
from orchestrator.filters import FilterOptions
from orchestrator.identity import array_digest, digest, source_digest
from orchestrator.method.hierarchy import Level

MAIN = "main"
ORACLE_ASSIGNMENTS = ("oracle", "ceiling")
"""Assignments that read the ground truth of the student's samples."""

_METHOD, _TRAINERS = Path(orchestrator.method.__file__).parent, Path(trainers.__file__).parent
CODE_VERSION = source_digest(
    *(_METHOD / f"{name}.py" for name in ("assignment", "consistency", "hierarchy", "rounds")),
    *(_TRAINERS / f"{name}.py" for name in ("heads", "head_loop", "losses")),
)
"""Version of the code that decides what a round's result is; part of every key."""


@dataclass(frozen=True)
class PlannedRound:
    """One round of a chain."""

    key: str
    """Digest of everything the round's result depends on."""
    level: int
    """Number of the level from 0; -1: supervised by the ground truth."""
    assignment: str
    filters: tuple[FilterOptions, ...]
    sees_truth: bool
    """Whether this round, or one before it in the chain, reads the ground truth of the student's samples."""


@dataclass(frozen=True)
class Chain:
    """A sequence of rounds, each fed by the student of the one before."""

    name: str
    """``main``, or the name of the baseline."""
    rounds: tuple[PlannedRound, ...]

    @property
    def sees_truth(self) -> bool:
        """Whether any of its rounds reads the ground truth of the student's samples."""
        return self.rounds[-1].sees_truth


def teacher_key(config: ExperimentConfig, dataset: Dataset, levels: Sequence[Level], level: int, index: int) -> str:
    """Digest of everything one teacher's answers depend on."""
    given = dataset.given_teachers.get((level, index))
    if given is not None:
        return digest("given", given.digest)
    rows = dataset.splits.teacher
    return digest(
        "trained",
        source_digest(_TRAINERS / "weak.py"),
        config.teachers.model_dump(mode="json"),
        config.seed,
        [level, index, sorted(levels[level].blocks[index])],
        dataset.digest,
        array_digest(dataset.labels[rows]),
        dataset.n_classes,
    )


def plan_chains(config: ExperimentConfig, dataset: Dataset, levels: Sequence[Level]) -> tuple[Chain, ...]:
    """All chains of an experiment: the ceiling first (so that PGR is known live), then main, then the rest."""
    everything = range(len(levels))
    filters = config.rounds.filters
    planner = _Planner(config, dataset, levels)
    chains: dict[str, Callable[[], Chain]] = {
        "ceiling": lambda: planner.chain("ceiling", [-1], "ceiling", ()),
        MAIN: lambda: planner.chain(MAIN, everything, config.rounds.assignment, filters),
        "mean": lambda: planner.chain("mean", [len(levels) - 1], "mean", ()),
        "vote": lambda: planner.chain("vote", [len(levels) - 1], "vote", ()),
        "oracle": lambda: planner.chain("oracle", everything, "oracle", filters),
    }
    return tuple(make() for name, make in chains.items() if name == MAIN or name in config.baselines)


class _Planner:
    def __init__(self, config: ExperimentConfig, dataset: Dataset, levels: Sequence[Level]) -> None:
        self._config, self._levels = config, levels
        self._truth = array_digest(dataset.labels[dataset.splits.student])
        student = config.student.model_dump(mode="json")
        if config.student.loss == "cross_entropy":
            del student["auxiliary_confidence"]
        if config.student.head == "linear":
            del student["hidden"]
        self._base = digest("round", CODE_VERSION, dataset.digest, dataset.n_classes, config.seed, student)
        self._level_keys = [
            digest([teacher_key(config, dataset, levels, number, k) for k in range(level.n_teachers)])
            for number, level in enumerate(levels)
        ]

    def chain(
        self, name: str, level_numbers: Sequence[int], assignment: str, filters: tuple[FilterOptions, ...]
    ) -> Chain:
        rounds: list[PlannedRound] = []
        key, sees_truth = self._base, False
        for position, number in enumerate(level_numbers):
            used = filters if position else ()  # round 1 has no previous student to be consistent with
            key, sees_truth = self._round_key(key, sees_truth, number, assignment, used)
            rounds.append(PlannedRound(key, number, assignment, used, sees_truth))
        return Chain(name, tuple(rounds))

    def _round_key(
        self, previous: str, sees_truth: bool, number: int, assignment: str, filters: tuple[FilterOptions, ...]
    ) -> tuple[str, bool]:
        soft = self._config.rounds.supervision == "soft" and number >= 0
        parts: list[Any] = [previous, number, soft]
        if number >= 0:
            level = self._levels[number]
            parts.append(self._level_keys[number])
            if level.n_teachers == 1 and assignment not in ("mean", "vote"):
                parts.append("only teacher")  # every way to assign is the same
                assignment = "student"
            else:
                parts += [assignment, [list(block) for block in level.blocks]]
        if assignment in ORACLE_ASSIGNMENTS:
            parts.append(self._truth)
            sees_truth = True
        if filters:
            parts += [[f.model_dump(mode="json") for f in filters], self._config.rounds.on_empty]
        return digest(*parts), sees_truth
