"""On a real Ray: the student under Ray Train, teachers in actors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator import ExperimentConfig, ExperimentResult, run_experiment
from orchestrator.errors import NothingKeptError

MakeConfig = Callable[..., ExperimentConfig]
TRAIN = "compute.backend=train"


def heads(result: ExperimentResult) -> list[dict[str, np.ndarray]]:
    return [r.head for rounds in result.chains.values() for r in rounds]


def largest_difference(a: ExperimentResult, b: ExperimentResult) -> float:
    pairs = zip(heads(a), heads(b), strict=True)
    return max(float(np.abs(one[name] - two[name]).max()) for one, two in pairs for name in one)


@pytest.fixture
def alone(make_config: MakeConfig, tmp_path: Path) -> ExperimentResult:
    """The same experiment in one process without Ray."""
    return run_experiment(make_config(storage=tmp_path / "alone"))


@pytest.mark.usefixtures("ray_session")
def test_one_worker_equals_no_ray_bit_for_bit(make_config: MakeConfig, alone: ExperimentResult) -> None:
    result = run_experiment(make_config(TRAIN, "compute.teacher_actors=2"))
    assert largest_difference(result, alone) == 0
    for mine, other in zip(result.rounds, alone.rounds, strict=True):
        np.testing.assert_array_equal(mine.keep, other.keep)
        np.testing.assert_array_equal(mine.assignment, other.assignment)
        assert mine.metrics.forward_passes == mine.metrics.predictions_asked == len(mine.keep)  # one a sample and level


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_student(
    workers: int, make_config: MakeConfig, alone: ExperimentResult
) -> None:
    result = run_experiment(make_config(TRAIN, f"compute.workers={workers}"))
    assert 0 < largest_difference(result, alone) < 1e-4  # float summation order differs, and nothing else
    for mine, other in zip(result.rounds, alone.rounds, strict=True):
        np.testing.assert_array_equal(mine.keep, other.keep)
        np.testing.assert_array_equal(mine.labels, other.labels)
        assert mine.metrics.student_accuracy == pytest.approx(other.metrics.student_accuracy, abs=0.002)


@pytest.mark.usefixtures("ray_session")
def test_every_round_is_reported_with_a_checkpoint(make_config: MakeConfig) -> None:
    result = run_experiment(make_config(TRAIN, "baselines=[]", "seed=11"))
    (manager,) = result.path.glob("train/*/checkpoint_manager_snapshot.json")
    assert "checkpoint_" in manager.read_text()
    kept = sorted(result.path.glob("train/*/checkpoint_*/round.json"))
    keys = {json.loads(path.read_text())["key"] for path in kept}
    assert keys == {r.path.name for r in result.rounds[-2:]}  # the last two are kept


@pytest.mark.usefixtures("ray_session")
def test_a_mistake_found_in_a_worker_is_the_users_error_at_once(make_config: MakeConfig) -> None:
    config = make_config(TRAIN, "rounds.filters=[{kind: threshold, probability: 0.9999999}]", "baselines=[]")
    with pytest.raises(NothingKeptError, match=r"round 2: the filters kept none of \d+ samples"):
        run_experiment(config)
