"""What the key of a round depends on: a table over every field of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import chains
from orchestrator.chains import Chain, plan_chains
from orchestrator.checks import build_levels
from orchestrator.config import ExperimentConfig
from orchestrator.data import DATASETS
from orchestrator.data.dataset import Dataset
from orchestrator.data.store import Store
from orchestrator.prepare import experiment_identity
from tests.helpers import make_config, merged, small_arrays, write_folder

BASE: dict[str, Any] = {
    "data": {"name": "digits", "rotations": 2, "fourier_features": 64, "components": 32},
    "hierarchy": {"levels": [1, 2, 4]},
    "rounds": {"supervision": "hard", "filters": [{"kind": "topk_rate", "k": 3}]},
}
NOTHING: frozenset[int] = frozenset()
ALL = frozenset({1, 2, 3})
LATER = frozenset({2, 3})
LAST = frozenset({3})


@dataclass(frozen=True)
class Change:
    """A field's other value, the rounds of the main chain whose keys it changes, and whether the identity changes."""

    value: Any
    rounds: frozenset[int]
    identity: bool = True
    given: dict[str, Any] = field(default_factory=dict)
    """What must be set on both sides for the field to matter, or to be valid."""
    also: dict[str, Any] = field(default_factory=dict)
    """What changes with it."""


AUXILIARY = {"student.loss": "auxiliary_confidence"}
TABLE: dict[str, list[Change]] = {
    "name": [Change("other", NOTHING, identity=False)],
    "seed": [Change(1, ALL)],
    "device": [Change("cpu", NOTHING, identity=False)],
    "storage": [Change("elsewhere", NOTHING, identity=False)],
    "data.name": [Change("arrays", ALL)],
    "data.rotations": [Change(3, ALL)],
    "data.fourier_features": [Change(128, ALL)],
    "data.fourier_scale": [Change(0.5, ALL)],
    "data.components": [Change(16, ALL)],
    "data.splits.teacher": [Change(0.2, ALL, also={"data.splits.test": 0.25})],
    "data.splits.student": [Change(0.4, ALL, also={"data.splits.test": 0.25})],
    "data.splits.validation": [Change(0.15, ALL, also={"data.splits.test": 0.15})],
    "data.splits.test": [Change(0.15, ALL, also={"data.splits.validation": 0.15})],
    "hierarchy.levels": [
        Change([1, 2, 3], LAST),
        Change([1, 3, 4], LATER),
        Change([1, [list(range(10)), list(range(10, 20))], 4], NOTHING),  # the same blocks, written out
        Change([1, [list(range(9)), list(range(9, 20))], 4], LATER),
    ],
    "hierarchy.class_order": [Change(list(range(20)), NOTHING), Change([*range(1, 20), 0], LATER)],
    "teachers.kind": [],  # one kind so far
    "teachers.steps": [Change(41, ALL)],
    "teachers.lr": [Change(0.02, ALL)],
    "teachers.batch_size": [Change(33, ALL)],
    "student.head": [Change("mlp", ALL)],
    "student.hidden": [Change(64, NOTHING), Change(64, ALL, given={"student.head": "mlp"})],
    "student.epochs": [Change(21, ALL)],
    "student.lr": [Change(2e-3, ALL)],
    "student.batch_size": [Change(101, ALL)],
    "student.loss": [Change("auxiliary_confidence", ALL)],
    "student.auxiliary_confidence.alpha": [Change(0.4, NOTHING), Change(0.4, ALL, given=AUXILIARY)],
    "student.auxiliary_confidence.warmup": [Change(0.1, NOTHING), Change(0.1, ALL, given=AUXILIARY)],
    "student.precision": [Change("bf16", ALL)],
    "student.test_curve_every": [Change(2, ALL)],
    "rounds.supervision": [Change("soft", ALL)],
    "rounds.assignment": [Change(a, LATER) for a in ("soft", "agreement", "oracle")]
    + [Change(a, ALL) for a in ("mean", "vote")],
    "rounds.filters": [
        Change([], LATER),
        Change([{"kind": "topk_rate", "k": 2}], LATER),
        Change([{"kind": "topk_rate", "k": 3}, {"kind": "threshold"}], LATER),
        Change(
            [{"kind": "local_global", "confidence": True}], LATER, given={"rounds.filters": [{"kind": "local_global"}]}
        ),
    ],
    "rounds.on_empty": [Change("keep_all", LATER), Change("keep_all", NOTHING, given={"rounds.filters": []})],
    "baselines": [Change(["ceiling"], NOTHING)],
    "compute.backend": [Change("inline", NOTHING, identity=False)],
    "compute.workers": [Change(2, NOTHING, identity=False)],
    "compute.cpus_per_worker": [Change(2, NOTHING, identity=False)],
    "compute.gpus_per_worker": [Change(1.0, NOTHING, identity=False)],
    "compute.teacher_actors": [Change(2, NOTHING, identity=False)],
    "compute.cpus_per_teacher_actor": [Change(1.0, NOTHING, identity=False)],
    "compute.max_failures": [Change(0, NOTHING, identity=False)],
    "compute.ray_address": [Change("auto", NOTHING, identity=False)],
    "tracking.enabled": [Change(False, NOTHING, identity=False)],
    "tracking.uri": [Change("http://127.0.0.1:5000", NOTHING, identity=False)],
    "tracking.experiment": [Change("other", NOTHING, identity=False)],
    "tracking.wait_seconds": [Change(1.0, NOTHING, identity=False)],
}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


class Planner:
    """Plans without training; data sets are made once."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder / "store")
        self._arrays = write_folder(folder / "arrays", small_arrays())
        self._loaded: dict[str, Dataset] = {}

    def config(self, changes: dict[str, Any]) -> ExperimentConfig:
        if changes.get("data.name") == "arrays":
            changes = {"data": {"name": "arrays", "path": str(self._arrays)}, "hierarchy.levels": [1, 2, 3]}
        return make_config(merged(BASE, changes))

    def dataset(self, config: ExperimentConfig) -> Dataset:
        key = f"{config.data.model_dump_json()} {config.seed}"
        if key not in self._loaded:
            builder = DATASETS.builder(config.data.name)  # type: ignore[attr-defined]
            self._loaded[key] = builder.load(config.data, config.seed, self._store)
        return self._loaded[key]

    def chains(self, config: ExperimentConfig, dataset: Dataset | None = None) -> dict[str, Chain]:
        dataset = dataset or self.dataset(config)
        return {c.name: c for c in plan_chains(config, dataset, build_levels(config, dataset.n_classes))}

    def keys(self, changes: dict[str, Any], chain: str = "main") -> list[str]:
        return _keys(self.chains(self.config(changes)), chain)

    def identity(self, changes: dict[str, Any]) -> str:
        config = self.config(changes)
        return experiment_identity(config, self.dataset(config))


def _keys(planned: dict[str, Chain], chain: str = "main") -> list[str]:
    return [r.key for r in planned[chain].rounds]


def _changed(before: list[str], after: list[str]) -> set[int]:
    return {i for i, (a, b) in enumerate(zip(before, after, strict=True), start=1) if a != b}


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return Planner(tmp_path_factory.mktemp("keys"))


def test_the_table_is_complete() -> None:
    """A new field of the configuration must be entered here, with what it changes."""
    assert set(TABLE) == set(_leaves(make_config(BASE).to_dict()))


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, changes in TABLE.items() for c in changes])
def test_keys_of_the_main_chain(planner: Planner, name: str, change: Change) -> None:
    before, after = change.given, {**change.given, name: change.value, **change.also}
    assert planner.config(before) != planner.config(after)
    assert _changed(planner.keys(before), planner.keys(after)) == change.rounds
    assert (planner.identity(before) != planner.identity(after)) == change.identity


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"rounds.supervision": "soft"}, True),
        ({"rounds.assignment": "vote"}, True),
        ({"teachers.steps": 7}, True),
        ({"hierarchy.levels": [1, 5]}, True),
        ({"rounds.filters": [], "rounds.on_empty": "keep_all"}, True),
        ({"student.lr": 0.1}, False),
        ({"seed": 3}, False),
        ({"data.components": 8}, False),
    ],
)
def test_the_ceiling_depends_on_student_and_data_only(planner: Planner, changes: dict[str, Any], same: bool) -> None:
    assert (planner.keys({}, "ceiling") == planner.keys(changes, "ceiling")) == same


def test_depths_share_their_prefix(planner: Planner) -> None:
    deep = planner.keys({"hierarchy.levels": [1, 2, 4, 8]})
    assert planner.keys({})[:3] == deep[:3]
    assert planner.keys({"hierarchy.levels": [1]}) == deep[:1]
    assert len(set(deep)) == 4


def test_every_chain_but_mean_vote_and_ceiling_starts_from_the_same_round(planner: Planner) -> None:
    planned = planner.chains(planner.config({}))
    assert _keys(planned, "oracle")[0] == _keys(planned)[0]
    assert _keys(planned, "oracle")[1] != _keys(planned)[1]
    singles = [_keys(planned, name)[0] for name in ("mean", "vote", "ceiling", "main")]
    assert len(set(singles)) == 4


def test_truth_is_marked_and_in_the_keys_of_upper_bounds_only(planner: Planner) -> None:
    config = planner.config({})
    dataset = planner.dataset(config)
    labels = dataset.labels.copy()
    student = dataset.splits.student
    labels[student] = np.random.default_rng(0).permutation(labels[student])
    before, after = planner.chains(config), planner.chains(config, replace(dataset, labels=labels))
    changed = {name: _changed(_keys(before, name), _keys(after, name)) for name in before}
    assert changed == {"ceiling": {1}, "main": set(), "mean": set(), "vote": set(), "oracle": {2, 3}}
    assert {n: c.sees_truth for n, c in before.items()} == {
        "ceiling": True, "main": False, "mean": False, "vote": False, "oracle": True,
    }  # fmt: skip
    assert [r.sees_truth for r in before["oracle"].rounds] == [False, True, True]


def test_labels_of_validation_and_test_are_in_no_key(planner: Planner) -> None:
    config = planner.config({})
    dataset = planner.dataset(config)
    labels = dataset.labels.copy()
    held_out = np.concatenate([dataset.splits.validation, dataset.splits.test])
    labels[held_out] = (labels[held_out] + 1) % dataset.n_classes
    before, after = planner.chains(config), planner.chains(config, replace(dataset, labels=labels))
    assert {n: _keys(before, n) for n in before} == {n: _keys(after, n) for n in after}


def test_labels_of_the_teachers_are_in_every_key_but_the_ceilings(planner: Planner) -> None:
    config = planner.config({})
    dataset = planner.dataset(config)
    labels = dataset.labels.copy()
    labels[dataset.splits.teacher[0]] = (labels[dataset.splits.teacher[0]] + 1) % dataset.n_classes
    before, after = planner.chains(config), planner.chains(config, replace(dataset, labels=labels))
    assert _changed(_keys(before), _keys(after)) == {1, 2, 3}
    assert _keys(before, "ceiling") == _keys(after, "ceiling")


def test_given_teachers(planner: Planner, tmp_path: Path) -> None:
    """Their content is in the keys from their level on; how teachers are trained, and where files lie, is not."""
    arrays = small_arrays()
    other = {**arrays, "teacher_1_0": np.roll(arrays["teacher_1_0"], 1, axis=0)}
    folders = [write_folder(tmp_path / name, a) for name, a in (("a", arrays), ("b", arrays), ("c", other))]

    def keys(folder: Path, **changes: Any) -> list[str]:
        tree = {"data": {"name": "arrays", "path": str(folder)}, "hierarchy": {"levels": [1, 2, 3]}}
        return _keys(planner.chains(make_config(merged(tree, changes))))

    assert keys(folders[0]) == keys(folders[1])
    assert keys(folders[0]) == keys(folders[0], **{"teachers.steps": 1})
    assert _changed(keys(folders[0]), keys(folders[2])) == {2, 3}
    assert _changed(keys(folders[0]), keys(folders[0], **{"data.standardize": False})) == {1, 2, 3}


def test_code_version_is_in_every_key(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planner.chains(planner.config({}))
    monkeypatch.setattr(chains, "CODE_VERSION", "another")
    after = planner.chains(planner.config({}))
    assert not {k for n in before for k in _keys(before, n)} & {k for n in after for k in _keys(after, n)}
