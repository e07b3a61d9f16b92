"""Teachers in one process: trained on their block, asked once, remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator import teacher_host
from orchestrator.data.dataset import GivenTeacher
from orchestrator.errors import TeacherError
from orchestrator.teacher_host import TeacherHost, TeacherSpec, TeacherTask
from orchestrator.teacher_pool import LocalPool, RoutedTeachers
from tests.helpers import small_arrays
from trainers import weak

ARRAYS = small_arrays(rows=240)
ROWS = np.flatnonzero(ARRAYS["split"] == 3)
STUDENT = np.flatnonzero(ARRAYS["split"] == 0)
SPECS = [
    TeacherSpec(0, 0, (0, 1, 2, 3, 4, 5), "generalist", None),
    TeacherSpec(1, 0, (0, 1, 2), "low", None),
    TeacherSpec(1, 1, (3, 4, 5), "high", None),
]


def key(level: int, index: int) -> str:
    return next(spec.key for spec in SPECS if (spec.level, spec.index) == (level, index))


@pytest.fixture
def task(tmp_path: Path) -> TeacherTask:
    return TeacherTask(
        inputs=ARRAYS["features"],
        rows=ROWS,
        labels=ARRAYS["labels"][ROWS],
        n_classes=6,
        settings={"kind": "linear", "steps": 60, "lr": 0.05, "batch_size": 8},
        seed=0,
        device="cpu",
        store=tmp_path / "teachers",
    )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the forward passes that are really made."""
    sizes: list[int] = []
    real = weak.weak_probabilities

    def counted(state: Any, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        return real(state, inputs)

    monkeypatch.setattr(weak, "weak_probabilities", counted)
    return sizes


def test_answers_are_remembered(task: TeacherTask, passes: list[int]) -> None:
    host = TeacherHost(SPECS, task)
    rows = np.array([5, 9, 2, 9])
    first, made = host.predict(key(1, 0), rows)
    assert made == 3, "the same row twice is one pass"
    again, more = host.predict(key(1, 0), rows[::-1].copy())
    assert more == 0
    assert np.array_equal(again, first[::-1])
    mixed, new = host.predict(key(1, 0), np.array([9, 7]))
    assert new == 1
    assert np.array_equal(mixed[0], first[1])
    assert passes == [3, 1]
    assert first.dtype == np.float16
    assert np.array_equal(first[1], first[3])


def test_memory_grows_right(task: TeacherTask, passes: list[int]) -> None:
    whole, _ = TeacherHost(SPECS, task).predict(key(0, 0), np.arange(240))
    passes.clear()
    host, rng, asked = TeacherHost(SPECS, task), np.random.default_rng(0), set()
    for _ in range(20):
        rows = rng.integers(240, size=rng.integers(1, 40))
        asked |= set(rows.tolist())
        np.testing.assert_allclose(host.predict(key(0, 0), rows)[0].astype(float), whole[rows].astype(float), atol=1e-3)
        assert sum(passes) == len(asked)


def test_beyond_its_memory_answers_are_made_again(
    task: TeacherTask, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_host, "CACHE_BYTES", -1)
    host = TeacherHost(SPECS, task)
    first, _ = host.predict(key(0, 0), np.array([1, 2, 3]))
    second, made = host.predict(key(0, 0), np.array([1, 2, 3]))
    assert made == 3
    assert passes == [3, 3]
    assert np.array_equal(first, second)


def test_no_rows(task: TeacherTask) -> None:
    answers, made = TeacherHost(SPECS, task).predict(key(1, 1), np.empty(0, np.int64))
    assert answers.shape == (0, 6)
    assert made == 0


def test_one_forward_pass_per_sample_and_level(task: TeacherTask, passes: list[int]) -> None:
    """Routing over two teachers costs one pass a sample; asking all of a level afterwards costs the rest only."""
    pool = LocalPool(SPECS, task)
    teachers = RoutedTeachers(pool, SPECS, STUDENT, 6)
    n = len(STUDENT)
    assigned = torch.arange(n) % 2
    answers, made = teachers.predict(1, assigned, torch.arange(n))
    assert made == sum(passes) == n
    own = [TeacherHost(SPECS, task).predict(key(1, k), STUDENT)[0] for k in (0, 1)]
    for k in (0, 1):
        expected = own[k][assigned.numpy() == k]
        np.testing.assert_allclose(answers.numpy()[assigned.numpy() == k], expected, atol=1e-3)
    _, rest = teachers.predict(1, torch.zeros(n, dtype=torch.int64), torch.arange(n))
    assert rest == n - int((assigned == 0).sum())
    _, nothing = teachers.predict(1, assigned, torch.arange(n))
    assert nothing == 0


def test_routing_by_a_workers_own_samples(task: TeacherTask) -> None:
    teachers = RoutedTeachers(LocalPool(SPECS, task), SPECS, STUDENT, 6)
    own = torch.arange(1, len(STUDENT), 3)
    assigned = (own % 2 == 0).long()
    whole, _ = teachers.predict(1, (torch.arange(len(STUDENT)) % 2 == 0).long(), torch.arange(len(STUDENT)))
    part, _ = teachers.predict(1, assigned, own)
    assert torch.equal(part, whole[own])


def test_a_specialist_is_trained_on_its_block_only(task: TeacherTask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    real = weak.train_weak

    def watched(settings: Any, inputs: torch.Tensor, labels: torch.Tensor, *rest: Any) -> Any:
        seen[len(seen)] = (inputs.numpy(), labels.numpy())
        return real(settings, inputs, labels, *rest)

    monkeypatch.setattr(weak, "train_weak", watched)
    assert TeacherHost(SPECS, task).ready() == 3
    for k, spec in enumerate(SPECS):
        mine = ROWS[np.isin(ARRAYS["labels"][ROWS], spec.block)]
        inputs, labels = seen[k]
        assert np.array_equal(inputs, ARRAYS["features"][mine])
        assert np.array_equal(labels, ARRAYS["labels"][mine])


def test_trained_once_ever(task: TeacherTask, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = TeacherHost(SPECS, task).predict(key(1, 1), STUDENT)
    monkeypatch.setattr(weak, "train_weak", lambda *args: pytest.fail("trained again"))
    again, _ = TeacherHost(SPECS, task).predict(key(1, 1), STUDENT)
    assert np.array_equal(first, again)


def test_read_only_shared_inputs(task: TeacherTask) -> None:
    frozen = ARRAYS["features"].copy()
    frozen.setflags(write=False)
    answers, _ = TeacherHost(SPECS, replace(task, inputs=frozen)).predict(key(0, 0), STUDENT)
    assert answers.shape == (len(STUDENT), 6)


def test_a_block_without_samples_is_an_error(task: TeacherTask) -> None:
    spec = TeacherSpec(2, 1, (4, 5), "empty", None)
    few = replace(task, rows=ROWS[task.labels < 4], labels=task.labels[task.labels < 4])
    with pytest.raises(TeacherError, match=r"teacher 1 of level 2: none of the \d+ samples.*\[4, 5\]"):
        TeacherHost([spec], few).ready()
    none = replace(task, rows=ROWS[:0], labels=task.labels[:0])
    with pytest.raises(TeacherError, match="teacher 1 of level 2: no samples to train on"):
        TeacherHost([spec], none).ready()


@pytest.mark.parametrize("where", ["memory", "file"])
def test_given_teachers_are_looked_up(task: TeacherTask, tmp_path: Path, where: str) -> None:
    probabilities = ARRAYS["teacher_1_0"]
    np.save(tmp_path / "p.npy", probabilities)
    given = GivenTeacher(probabilities if where == "memory" else tmp_path / "p.npy", "digest")
    host = TeacherHost([TeacherSpec(1, 0, (0, 1, 2), "given", given)], replace(task, inputs=None))
    rows = np.array([7, 3, 7])
    answers, made = host.predict("given", rows)
    assert made == 0
    assert np.array_equal(answers, probabilities[rows])
    assert np.array_equal(host.classes("given", rows), probabilities[rows].argmax(axis=1))


def test_classes_are_the_argmax_of_the_answers(task: TeacherTask, monkeypatch: pytest.MonkeyPatch) -> None:
    host = TeacherHost(SPECS, task)
    monkeypatch.setattr(teacher_host, "_BATCH", 17)
    classes = host.classes(key(1, 0), STUDENT)
    assert classes.dtype == np.int32
    assert np.array_equal(classes, host.predict(key(1, 0), STUDENT)[0].argmax(axis=1))
