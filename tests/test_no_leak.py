"""Shuffling the ground truth of the student's samples must not change one bit of the trained students."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.data import digits
from orchestrator.data.dataset import Dataset
from orchestrator.data.store import Store
from orchestrator.experiment import run_experiment
from orchestrator.results import ExperimentResult
from orchestrator.round_cache import read_round
from tests.helpers import Arrays, make_config, merged, small_arrays, small_tree, write_folder

FILTERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "topk_rate": [{"kind": "topk_rate", "k": 2}],
    "threshold": [{"kind": "threshold", "probability": 0.05}],
    "fraction": [{"kind": "keep_fraction", "fraction": 0.7}],
    "local_global": [{"kind": "local_global", "k": 3}, {"kind": "topk_rate"}],
}
HONEST = ("student", "soft", "agreement", "mean", "vote")


def _shuffled(labels: NDArray[np.int64], student: NDArray[Any]) -> NDArray[np.int64]:
    """The same labels, those of the student's samples in another order."""
    out = labels.copy()
    out[student] = np.random.default_rng(1).permutation(labels[student])
    assert (out != labels).sum() > len(student) // 2, "the shuffle must really change the truth"
    return out


def _bits(result: ExperimentResult, chain: str = "main") -> list[dict[str, tuple[str, bytes]]]:
    """Everything stored of every round of a chain: heads, assignments, kept samples, predictions."""
    rounds = [read_round(r.path).arrays for r in result.chains[chain]]
    return [{name: (str(a.dtype), a.tobytes()) for name, a in arrays.items()} for arrays in rounds]


def _keys(result: ExperimentResult, chain: str = "main") -> list[str]:
    return [r.path.name for r in result.chains[chain]]


def _without_teachers(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith("teacher_")}


def _pair(tmp_path: Path, arrays: Arrays, changes: dict[str, Any]) -> tuple[ExperimentResult, ExperimentResult]:
    """The experiment with true and with shuffled labels, in storages of their own."""
    student = np.flatnonzero(arrays["split"] == 0)
    versions = {"true": arrays, "shuffled": {**arrays, "labels": _shuffled(arrays["labels"], student)}}
    results = []
    for name, content in versions.items():
        data = write_folder(tmp_path / name, content)
        results.append(run_experiment(make_config(merged(small_tree(tmp_path / f"{name}-runs", data), changes))))
    return results[0], results[1]


@pytest.mark.parametrize("supervision", ["hard", "soft"])
@pytest.mark.parametrize("filters", list(FILTERS))
@pytest.mark.parametrize("assignment", HONEST)
def test_arrays(tmp_path: Path, assignment: str, filters: str, supervision: str) -> None:
    changes = {
        "rounds.assignment": assignment,
        "rounds.filters": FILTERS[filters],
        "rounds.supervision": supervision,
        "rounds.on_empty": "keep_all",
        "data.n_classes": 6,
    }
    true, shuffled = _pair(tmp_path, small_arrays(rows=120), changes)
    assert _bits(true) == _bits(shuffled)
    assert _keys(true) == _keys(shuffled)
    first, second = true.rounds[-1].metrics, shuffled.rounds[-1].metrics
    assert first.student_accuracy == second.student_accuracy
    assert first.collective_accuracy != second.collective_accuracy, "evaluation does see the truth"


@pytest.mark.parametrize(
    "changes", [{"student.loss": "auxiliary_confidence"}, {"student.head": "mlp", "student.hidden": 8}]
)
def test_arrays_with_trained_teachers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Teachers learn from the labels of their own split, which stay as they are."""
    arrays = _without_teachers(small_arrays(rows=300))
    true, shuffled = _pair(tmp_path, arrays, {"teachers.steps": 5, **changes})
    assert _bits(true) == _bits(shuffled)
    assert true.weak_accuracy == shuffled.weak_accuracy


@pytest.mark.parametrize("chain", ["oracle", "ceiling"])
def test_upper_bounds_do_change(tmp_path: Path, chain: str) -> None:
    true, shuffled = _pair(tmp_path, small_arrays(rows=120), {"baselines": ["oracle", "ceiling", "mean", "vote"]})
    assert _bits(true, chain)[-1]["head.weight"] != _bits(shuffled, chain)[-1]["head.weight"]
    assert _keys(true, chain)[-1] != _keys(shuffled, chain)[-1]
    for honest in ("main", "mean", "vote"):
        assert _bits(true, honest) == _bits(shuffled, honest)


def test_oracle_as_the_main_assignment_does_change(tmp_path: Path) -> None:
    true, shuffled = _pair(tmp_path, small_arrays(rows=120), {"rounds.assignment": "oracle"})
    assert _bits(true)[1]["head.weight"] != _bits(shuffled)[1]["head.weight"]


DIGITS = {
    "data": {"name": "digits", "rotations": 2, "fourier_features": 64, "components": 32},
    "hierarchy.levels": [1, 2, 4],
    "student.epochs": 2,
    "student.batch_size": 200,
    "teachers.steps": 10,
}


@pytest.mark.parametrize(
    ("assignment", "supervision", "filters"),
    [
        ("student", "hard", "topk_rate"),
        ("student", "soft", "local_global"),
        ("soft", "soft", "none"),
        ("agreement", "hard", "fraction"),
    ],
)
def test_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignment: str, supervision: str, filters: str
) -> None:
    changes = {
        **DIGITS,
        "rounds.assignment": assignment,
        "rounds.supervision": supervision,
        "rounds.filters": FILTERS[filters],
        "baselines": ["ceiling"],
    }

    def run(name: str) -> ExperimentResult:
        return run_experiment(make_config(merged(small_tree(tmp_path / name, tmp_path), changes)))

    true = run("true")
    load: Callable[[Any, int, Store], Dataset] = digits.Digits.load

    def load_shuffled(options: Any, seed: int, store: Store) -> Dataset:
        dataset = load(options, seed, store)
        return replace(dataset, labels=_shuffled(dataset.labels, dataset.splits.student))

    monkeypatch.setattr(digits.Digits, "load", staticmethod(load_shuffled))
    shuffled = run("shuffled")
    assert _bits(true) == _bits(shuffled)
    assert _keys(true) == _keys(shuffled)
    assert _bits(true, "ceiling") != _bits(shuffled, "ceiling")
    assert true.identity != shuffled.identity, "results are filed with the truth they were measured against"


def test_training_code_receives_no_truth() -> None:
    """The only arrays a worker gets besides features are row numbers."""
    from orchestrator.job import StudentView

    assert set(StudentView.__dataclass_fields__) == {"train", "validation", "test", "rows", "n_classes"}
