"""The six ways to assign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orchestrator.method import assignment
from orchestrator.method.hierarchy import Level, even_blocks

OWNER = torch.tensor([0, 0, 1, 1, 2])
"""Five classes, blocks of two, two and one."""


def _teachers(*answers: list[list[float]]) -> tuple[assignment.TeacherProbabilities, list[int]]:
    asked: list[int] = []
    tensors = [torch.tensor(a) for a in answers]

    def teacher(k: int) -> Tensor:
        asked.append(k)
        return tensors[k]

    return teacher, asked


def test_student_routes_by_the_block_of_its_class() -> None:
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0, 9, 0, 0, 0], [0, 0, 0, 9, 0], [0, 0, 0, 0, 9]])
    assert assignment.assign_by_student(logits, OWNER).tolist() == [0, 0, 1, 2]


def test_student_tie_goes_to_the_lowest_class() -> None:
    logits = torch.tensor([[0.0, 3, 3, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 2, 2]])
    assert assignment.assign_by_student(logits, OWNER).tolist() == [0, 0, 1]


def test_one_class_blocks_and_permuted_classes() -> None:
    level = Level(even_blocks(4, 4, order=[2, 0, 3, 1]))
    owner = torch.from_numpy(level.teacher_of_class())
    assert assignment.assign_by_student(torch.eye(4), owner).tolist() == [1, 3, 0, 2]


def test_oracle_ignores_the_student() -> None:
    assert assignment.assign_by_truth(torch.tensor([4, 1, 2, 3, 0]), OWNER).tolist() == [2, 0, 1, 1, 0]


def test_responsibilities_are_block_sums_of_the_softmax() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25], [0.0, 0.0, 1.0, 0.0, 0.0]]))
    found = assignment.responsibilities(logits, OWNER, 3)
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.45, 0.25], [0.0, 1.0, 0.0]]))


def test_responsibilities_of_large_and_half_logits() -> None:
    logits = torch.tensor([[6e4, 6e4, -6e4, 0.0, 0.0]], dtype=torch.float16)
    found = assignment.responsibilities(logits, OWNER, 3)
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0, 0.0, 0.0]]


def test_mix() -> None:
    teacher, asked = _teachers([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5]])
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(assignment.mix(weights, teacher), torch.tensor([[0.25, 0.75], [0.75, 0.25]]))
    assert asked == [0, 1]


def test_mix_leaves_the_answers_alone() -> None:
    answers = torch.tensor([[0.5, 0.5]])
    assignment.mix(torch.tensor([[0.5, 0.5]]), lambda k: answers)
    assert answers.tolist() == [[0.5, 0.5]]


def test_agreement_against_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 5, generator=generator)
    answers = torch.softmax(torch.randn(4, 50, 5, generator=generator), dim=2)
    chosen, probabilities = assignment.assign_by_agreement(logits, lambda k: answers[k], 4)
    costs = torch.stack([-(torch.softmax(logits, 1) * a.log()).sum(1) for a in answers])
    assert chosen.tolist() == costs.argmin(dim=0).tolist()
    torch.testing.assert_close(probabilities, answers[chosen, torch.arange(50)])
    assert len(chosen.unique()) == 4


def test_agreement_tie_goes_to_the_lowest_teacher_and_some_are_never_assigned() -> None:
    same = [[0.5, 0.5], [0.5, 0.5]]
    teacher, _ = _teachers([[0.9, 0.1], [0.1, 0.9]], same, same)
    chosen, probabilities = assignment.assign_by_agreement(torch.tensor([[-5.0, 5.0], [-5.0, 5.0]]), teacher, 3)
    assert chosen.tolist() == [1, 0]
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5], [0.1, 0.9]]))


def test_agreement_survives_zero_probabilities_of_half_floats() -> None:
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float16)
    wrong = torch.tensor([[0.0, 1.0]], dtype=torch.float16)
    chosen, probabilities = assignment.assign_by_agreement(torch.tensor([[4.0, -4.0]]), lambda k: (wrong, sure)[k], 2)
    assert chosen.tolist() == [1]
    assert probabilities.tolist() == [[1.0, 0.0]]


def test_agreement_does_not_overwrite_a_teachers_answers() -> None:
    answers = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]])]
    _, probabilities = assignment.assign_by_agreement(torch.tensor([[5.0, -5.0]]), lambda k: answers[k], 2)
    probabilities.zero_()
    torch.testing.assert_close(answers[0], torch.tensor([[0.9, 0.1]]))


def test_majority_counts_votes_not_confidence() -> None:
    teacher, _ = _teachers([[0.51, 0.49, 0.0]], [[0.51, 0.49, 0.0]], [[0.0, 1.0, 0.0]])
    found = assignment.majority_vote(teacher, 3)
    assert found.argmax(dim=1).tolist() == [0]
    assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("n_teachers", [2, 8, 64])
def test_majority_tie_goes_to_the_larger_mean_probability(n_teachers: int) -> None:
    half = n_teachers // 2
    answers = [[[0.6, 0.4]]] * half + [[[0.3, 0.7]]] * half
    teacher, _ = _teachers(*answers)
    assert assignment.majority_vote(teacher, n_teachers).argmax(dim=1).tolist() == [1]


@pytest.mark.parametrize("n_teachers", [3, 9, 101])
def test_confidence_never_outweighs_a_vote(n_teachers: int) -> None:
    more = n_teachers // 2 + 1
    answers = [[[0.501, 0.499]]] * more + [[[0.0, 1.0]]] * (n_teachers - more)
    teacher, _ = _teachers(*answers)
    assert assignment.majority_vote(teacher, n_teachers).argmax(dim=1).tolist() == [0]


def test_vote_of_one_teacher_is_its_class() -> None:
    teacher, _ = _teachers([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    found = assignment.majority_vote(teacher, 1)
    assert found.argmax(dim=1).tolist() == [1, 0]
    assert not math.isnan(float(found.sum()))
