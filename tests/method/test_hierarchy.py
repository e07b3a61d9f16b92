"""Blocks of classes."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.method.hierarchy import Level, block_problems, even_blocks


@pytest.mark.parametrize(
    ("n_classes", "n_teachers"), [(c, k) for c in (1, 2, 7, 21, 40, 1000) for k in (1, 2, 3, 4, 8) if k <= c]
)
def test_even_blocks_lose_no_class(n_classes: int, n_teachers: int) -> None:
    blocks = even_blocks(n_classes, n_teachers)
    assert [c for block in blocks for c in block] == list(range(n_classes))
    sizes = [len(block) for block in blocks]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert block_problems(blocks, n_classes) == []


def test_the_uneven_example() -> None:
    assert [len(b) for b in even_blocks(21, 8)] == [3, 3, 3, 3, 3, 2, 2, 2]


def test_order() -> None:
    assert even_blocks(5, 2, order=[4, 2, 0, 1, 3]) == ((4, 2, 0), (1, 3))


def test_teacher_of_class_inverts_blocks() -> None:
    level = Level(((3, 0), (1,), (4, 2)))
    assert level.n_teachers == 3
    assert level.teacher_of_class().tolist() == [0, 1, 2, 0, 2]
    assert level.teacher_of_class().dtype == np.int64


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (((0, 1), ()), ["teacher 1 has an empty block", "no teacher covers classes 2"]),
        (((0, 1),), ["no teacher covers classes 2"]),
        (((0, 1), (1, 2)), ["classes 1 are in more than one block"]),
        (((0, 1), (2, 3)), ["classes 3 do not exist, there are 3 (0..2)"]),
        (((0, -1), (1, 2)), ["classes -1 do not exist, there are 3 (0..2)"]),
        (((0, 0), (1, 5)), ["no teacher covers classes 2", "classes 5 do not exist", "classes 0 are in more than one"]),
    ],
)
def test_every_problem_of_blocks_is_named(blocks: tuple[tuple[int, ...], ...], words: list[str]) -> None:
    problems = block_problems(blocks, 3)
    assert len(problems) == len(words)
    for word, problem in zip(words, problems, strict=True):
        assert word in problem


def test_long_lists_are_shortened() -> None:
    (problem,) = block_problems(((0,),), 1000)
    assert "1, 2, 3, 4, 5, 6, ... (999 in all)" in problem
