"""Filters: what a round keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.filters import FILTERS, KeepFraction, LocalGlobal, ProbabilityThreshold, TopKRate, bind
from orchestrator.method import consistency
from orchestrator.method.consistency import Signals

N = 6
SIGNALS = Signals(
    student_loss=torch.tensor([0.5, 0.1, 2.0, 0.1, 3.0, 0.2]),
    student_rank=torch.tensor([0, 0, 4, 1, 9, 2]),
    student_confidence=torch.tensor([0.6, 0.9, 0.1, 0.9, 0.05, 0.8]),
    teacher_confidence=torch.tensor([0.5, 0.4, 0.9, 0.7, 0.5, 0.3]),
    previous_rank=torch.tensor([0, 1, 0, 2, 0, 10]),
    previous_confidence=torch.tensor([0.5, 0.5, 0.8, 0.7, 0.6, 0.2]),
)


def _keep(*filters: Any, signals: Signals = SIGNALS) -> list[int]:
    keep = torch.ones(N, dtype=torch.bool)
    for function in bind(filters):
        keep &= function(signals)
    return keep.nonzero().squeeze(1).tolist()


class TestRanks:
    def test_count_of_likelier_classes(self) -> None:
        scores = torch.tensor([[3.0, 1, 2], [3, 1, 2], [3, 1, 2]])
        assert consistency.class_ranks(scores, torch.tensor([0, 1, 2])).tolist() == [0, 2, 1]

    def test_among_equal_scores_lower_classes_come_first(self) -> None:
        scores = torch.tensor([[1.0, 2, 2, 2]]).expand(4, 4)
        assert consistency.class_ranks(scores, torch.arange(4)).tolist() == [3, 0, 1, 2]

    def test_rank_below_k_is_membership_of_the_top_k(self) -> None:
        scores = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
        classes = torch.arange(200) % 7
        for k in (1, 3, 7):
            expected = (scores.topk(k, dim=1).indices == classes[:, None]).any(dim=1)
            assert torch.equal(consistency.class_ranks(scores, classes) < k, expected)

    def test_rank_in_top(self) -> None:
        top = torch.tensor([[4, 1, 0], [4, 1, 0], [4, 1, 0]])
        assert consistency.rank_in_top(top, torch.tensor([4, 0, 2])).tolist() == [0, 2, 3]

    @pytest.mark.parametrize("count", [1, 2, 4, 10])
    def test_top_classes_leads_with_the_argmax(self, count: int) -> None:
        levels = torch.randint(3, (300, 4), generator=torch.Generator().manual_seed(1)).half()
        top = consistency.top_classes(levels, count)
        assert top.shape == (300, min(count, 4))
        assert torch.equal(top[:, 0], levels.argmax(dim=1))
        assert all(len(set(row)) == len(row) for row in top.tolist()), "a class is listed twice"
        values = levels.gather(1, top)
        assert torch.equal(values, levels.topk(min(count, 4), dim=1).values)


class TestTopK:
    @pytest.mark.parametrize(("k", "kept"), [(1, [1, 3]), (2, [1, 3, 5]), (3, [0, 1, 3, 5])])
    def test_rate_says_how_many_and_loss_says_which(self, k: int, kept: list[int]) -> None:
        assert _keep(TopKRate(k=k)) == kept

    def test_ties_of_loss_go_to_the_lower_sample(self) -> None:
        losses = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
        assert consistency.keep_lowest_loss(losses, 3).tolist() == [True, True, False, False, True]

    def test_many_ties(self) -> None:
        keep = consistency.keep_lowest_loss(torch.zeros(10_000), 777)
        assert keep[:777].all()
        assert not keep[777:].any()

    def test_k_beyond_all_ranks_keeps_everything(self) -> None:
        assert _keep(TopKRate(k=100)) == list(range(N))

    def test_nothing_in_consensus_keeps_nothing(self) -> None:
        worst = replace(SIGNALS, student_rank=torch.full((N,), 9))
        assert _keep(TopKRate(k=3), signals=worst) == []
        assert consistency.consensus_rate(worst.student_rank, 3) == 0.0

    def test_rate_of_no_samples(self) -> None:
        assert consistency.consensus_rate(torch.empty(0, dtype=torch.int64), 1) == 0.0


class TestOthers:
    @pytest.mark.parametrize(("of", "kept"), [("student", [0, 1, 3, 5]), ("teacher", [0, 2, 3, 4])])
    def test_threshold_includes_its_value(self, of: Any, kept: list[int]) -> None:
        assert _keep(ProbabilityThreshold(probability=0.5, of=of)) == kept

    @pytest.mark.parametrize(("fraction", "kept"), [(0.5, [1, 3, 5]), (1.0, [0, 1, 2, 3, 4, 5]), (0.01, [1])])
    def test_fraction(self, fraction: float, kept: list[int]) -> None:
        assert _keep(KeepFraction(fraction=fraction)) == kept

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            (LocalGlobal(), [0, 2, 4]),
            (LocalGlobal(k=2), [0, 1, 2, 4]),
            (LocalGlobal(k=10), [0, 1, 2, 3, 4]),
            (LocalGlobal(confidence=True), [0, 2]),
            (LocalGlobal(k=3, confidence=True), [0, 2, 3]),
            (LocalGlobal(select="lowest_loss"), [1, 3, 5]),
            (LocalGlobal(confidence=True, select="lowest_loss"), [1, 3]),
        ],
    )
    def test_local_global(self, options: LocalGlobal, kept: list[int]) -> None:
        assert _keep(options) == kept

    def test_filters_intersect(self) -> None:
        assert _keep(TopKRate(k=3), LocalGlobal()) == [0]
        assert _keep(LocalGlobal(), TopKRate(k=3)) == [0]
        assert _keep(TopKRate(k=1), LocalGlobal()) == []
        assert _keep() == list(range(N))

    @pytest.mark.parametrize("kind", list(FILTERS))
    def test_every_registered_filter_gives_a_mask_and_changes_no_signal(self, kind: str) -> None:
        before = SIGNALS.map(Tensor.clone)
        (function,) = bind((FILTERS.options(kind)(),))  # type: ignore[arg-type]
        keep = function(SIGNALS)
        assert keep.dtype == torch.bool
        assert keep.shape == (N,)
        assert all(torch.equal(a, b) for a, b in zip(vars(before).values(), vars(SIGNALS).values(), strict=True))
