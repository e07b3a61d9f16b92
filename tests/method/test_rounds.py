"""The alternation over an in-memory seam: order of calls, what is asked, same result on any number of workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.chains import Chain, PlannedRound
from orchestrator.errors import NothingKeptError
from orchestrator.filters import LocalGlobal, TopKRate, bind
from orchestrator.method.hierarchy import Level, even_blocks
from orchestrator.method.records import RoundOutput, RoundSpec, StudentData
from orchestrator.method.rounds import run_rounds
from orchestrator.round_cache import RoundCache
from orchestrator.worker import CachedRounds
from tests.helpers import small_arrays
from trainers.head_loop import HeadSettings, HeadTrainer, Shard, TrainedHead

C, D, N = 6, 8, 121
TEACHERS = (1, 2, 3)
LEVELS = tuple(Level(even_blocks(C, k)) for k in TEACHERS)
ARRAYS = small_arrays(rows=N, n_classes=C, features=D, levels=TEACHERS)
FEATURES = torch.from_numpy(ARRAYS["features"])
LABELS = torch.from_numpy(ARRAYS["labels"])


def _specs(assignment: str = "student", soft: bool = False, **more: Any) -> list[RoundSpec]:
    filters = more.pop("filters", ())
    return [RoundSpec(level, i, assignment, soft, bind(filters) if i else (), **more) for i, level in enumerate(LEVELS)]


class _Io:
    """One worker, memory as storage, and a log of what happened."""

    rank, world_size = 0, 1

    def __init__(self, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log
        self.stored: dict[int, RoundOutput] = {}

    def merge(self, own: Tensor, values: Tensor, n_samples: int) -> Tensor:
        assert len(values) == n_samples
        return values

    def total(self, count: int) -> int:
        return count

    def load(self, number: int) -> RoundOutput | None:
        self.log.append(f"load {number}")
        return self.stored.get(number)

    def report(self, number: int, output: RoundOutput) -> None:
        self.log.append(f"report {number}")
        self.stored[number] = output

    def progress(self, number: int, epoch: int, epochs: int, loss: float) -> None:
        self.log.append(f"epoch {number} {epoch}/{epochs}")


class _Teachers:
    def __init__(self, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log
        self.asked: list[tuple[int, list[int], list[int]]] = []

    def predict(self, level: int, assigned: Tensor, samples: Tensor) -> tuple[Tensor, int]:
        self.log.append(f"ask level {level}")
        self.asked.append((level, assigned.tolist(), samples.tolist()))
        stacked = np.stack([ARRAYS[f"teacher_{level}_{k}"] for k in range(TEACHERS[level])])
        return torch.from_numpy(stacked[assigned.numpy(), samples.numpy()]), len(samples)


class _Trainer:
    """A student whose logits are written down: level ``l`` always predicts class ``favourite[l]``."""

    def __init__(self, favourite: Mapping[int, int], log: list[str] | None = None) -> None:
        self.favourite, self.log = favourite, [] if log is None else log
        self.fits: list[tuple[int, Tensor, Tensor]] = []

    def fit(
        self, level: int, targets: Tensor, keep: Tensor, on_epoch: Callable[[int, int, float], None]
    ) -> TrainedHead:
        self.log.append(f"fit {level}")
        self.fits.append((level, targets.clone(), keep.clone()))
        on_epoch(1, 1, 0.5)
        no_curve = torch.empty(0, 0, dtype=torch.int64)
        return TrainedHead({"level": torch.tensor(level)}, (0.5,), no_curve, (), len(targets))

    def logits(self, head: Mapping[str, Tensor], features: Tensor) -> Tensor:
        logits = torch.zeros(len(features), C)
        logits[:, self.favourite[int(head["level"])]] = 4.0
        return logits


def _data(own: Tensor | None = None, held_out: int = 20) -> StudentData:
    own = torch.arange(N) if own is None else own
    return StudentData(own, N, C, FEATURES[own], FEATURES[:held_out], FEATURES[:held_out])


def test_order_of_calls() -> None:
    log: list[str] = []
    outputs = run_rounds(_specs(), _data(), _Teachers(log), _Trainer({0: 0, 1: 3, 2: 5}, log), _Io(log))
    assert log == [
        event
        for i, number in enumerate((1, 2, 3))
        for event in (f"load {number}", f"ask level {i}", f"fit {i}", f"epoch {number} 1/1", f"report {number}")
    ]
    assert [o.assigned.unique().tolist() for o in outputs] == [[0], [0], [1]], "favourite class 0, then 3"
    assert [o.asked for o in outputs] == [N] * 3
    assert [o.forward_passes for o in outputs] == [N] * 3
    assert all(o.keep.all() for o in outputs)
    assert outputs[0].consensus == ()
    assert outputs[2].test_classes.tolist() == [5] * 20
    assert set(outputs[1].seconds) == {"teachers", "assignment", "training", "logits"}


def test_finished_rounds_are_not_run_again() -> None:
    io = _Io()
    first = run_rounds(_specs()[:2], _data(), _Teachers(), _Trainer({0: 0, 1: 3}), io)
    teachers, trainer = _Teachers(), _Trainer({0: 0, 1: 3, 2: 5})
    again = run_rounds(_specs(), _data(), teachers, trainer, io)
    assert [level for level, *_ in teachers.asked] == [2]
    assert [level for level, *_ in trainer.fits] == [2]
    assert again[:2] == first
    assert again[2].assigned.unique().tolist() == [1], "the third round starts from the stored second student"


def test_targets_are_what_the_assigned_teacher_said() -> None:
    for soft in (False, True):
        trainer = _Trainer({0: 0, 1: 3, 2: 5})
        outputs = run_rounds(_specs(soft=soft), _data(), _Teachers(), trainer, _Io())
        for level, targets, _ in trainer.fits:
            teacher = int(outputs[level].assigned[0])
            said = torch.from_numpy(ARRAYS[f"teacher_{level}_{teacher}"])
            assert torch.equal(targets, said if soft else said.argmax(dim=1))
            assert torch.equal(outputs[level].label_class, said.argmax(dim=1).int())
            assert torch.equal(outputs[level].teacher_confidence, said.max(dim=1).values.float())


@pytest.mark.parametrize(
    ("assignment", "calls"), [("soft", [1, 2, 3]), ("agreement", [1, 2, 3]), ("mean", [1, 2, 3]), ("vote", [1, 2, 3])]
)
def test_mixtures_ask_every_teacher_once(assignment: str, calls: list[int]) -> None:
    teachers = _Teachers()
    outputs = run_rounds(_specs(assignment), _data(), teachers, _Trainer({0: 0, 1: 3, 2: 5}), _Io())
    assert [sum(level == wanted for level, *_ in teachers.asked) for wanted in range(3)] == calls
    assert [o.asked for o in outputs] == [N, 2 * N, 3 * N]
    mixed = assignment in ("mean", "vote")
    assert ((outputs[1].assigned == -1).all() == mixed).item()


def test_nothing_kept() -> None:
    empty = [lambda signals: torch.zeros(N, dtype=torch.bool)]
    specs = _specs()
    specs[1] = RoundSpec(LEVELS[1], 1, "student", False, empty)
    io = _Io()
    with pytest.raises(NothingKeptError, match=r"round 2.*none of 121.*top-1.*rounds\.on_empty=keep_all"):
        run_rounds(specs, _data(), _Teachers(), _Trainer({0: 5, 1: 3, 2: 0}), io)
    assert list(io.stored) == [1], "what was finished before stays"

    specs[1] = RoundSpec(LEVELS[1], 1, "student", False, empty, keep_all_if_empty=True)
    outputs = run_rounds(specs, _data(), _Teachers(), _Trainer({0: 5, 1: 3, 2: 0}), _Io())
    assert outputs[1].keep.all()


def test_filters_intersect_and_reach_the_trainer() -> None:
    trainer = _Trainer({0: 1, 1: 4, 2: 0})
    outputs = run_rounds(_specs(filters=(TopKRate(k=3), LocalGlobal())), _data(), _Teachers(), trainer, _Io())
    both = _Trainer({0: 1, 1: 4, 2: 0})
    first = run_rounds(_specs(filters=(TopKRate(k=3),)), _data(), _Teachers(), both, _Io())
    second = run_rounds(_specs(filters=(LocalGlobal(),)), _data(), _Teachers(), both, _Io())
    assert torch.equal(outputs[1].keep, first[1].keep & second[1].keep)
    assert 0 < int(outputs[1].keep.sum()) < int(first[1].keep.sum())
    assert all(torch.equal(keep, outputs[level].keep) for level, _, keep in trainer.fits)
    assert outputs[0].keep.all(), "the first round has nothing to be consistent with"


class TestTruth:
    @pytest.mark.parametrize("assignment", ["student", "soft", "agreement", "mean", "vote"])
    def test_not_needed(self, assignment: str) -> None:
        run_rounds(_specs(assignment), _data(), _Teachers(), _Trainer({0: 0, 1: 3, 2: 5}), _Io(), None)

    @pytest.mark.parametrize("spec", [RoundSpec(LEVELS[1], 1, "oracle", False), RoundSpec(None, -1, "ceiling", False)])
    def test_missing(self, spec: RoundSpec) -> None:
        with pytest.raises(ValueError, match=f"{spec.assignment}.*ground truth"):
            run_rounds([spec], _data(), _Teachers(), _Trainer({}), _Io())

    def test_oracle_routes_by_it(self) -> None:
        outputs = run_rounds(
            _specs("oracle"), _data(), _Teachers(), _Trainer({0: 0, 1: 3, 2: 5}), _Io(), oracle_labels=LABELS
        )
        for level, output in zip(LEVELS, outputs, strict=True):
            assert np.array_equal(output.assigned.numpy(), level.teacher_of_class()[LABELS.numpy()])

    def test_ceiling_trains_on_it_and_asks_no_teacher(self) -> None:
        teachers, trainer = _Teachers(), _Trainer({-1: 2})
        (output,) = run_rounds([RoundSpec(None, -1, "ceiling", False)], _data(), teachers, trainer, _Io(), LABELS)
        assert teachers.asked == []
        assert torch.equal(trainer.fits[0][1], LABELS)
        assert torch.equal(output.label_class.long(), LABELS)
        assert (output.assigned == -1).all()

    def test_a_student_is_needed_to_route_over_several_teachers(self) -> None:
        with pytest.raises(ValueError, match="needs a previous student"):
            run_rounds([RoundSpec(LEVELS[1], 1, "student", False)], _data(), _Teachers(), _Trainer({}), _Io())


class _ThreadGroup:
    """Workers that are threads: sums through a barrier."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, slots: list[Tensor | None]) -> None:
        self.rank, self.world_size = rank, world_size
        self._barrier, self._slots = barrier, slots

    def all_reduce(self, tensor: Tensor) -> None:
        self._slots[self.rank] = tensor.clone()
        self._barrier.wait(30)
        total = torch.stack([s for s in self._slots if s is not None]).sum(dim=0)
        self._barrier.wait(30)
        tensor.copy_(total)


def _settings(**changes: Any) -> HeadSettings:
    plain = HeadSettings(
        kind="linear", hidden=12, epochs=4, lr=0.02, batch_size=16, auxiliary_alpha=0.0, auxiliary_warmup=0.0,
        precision="fp32", test_curve_every=0,
    )  # fmt: skip
    return replace(plain, **changes)


def _worker(
    group: _ThreadGroup, specs: Sequence[RoundSpec], settings: HeadSettings, cache: RoundCache
) -> list[RoundOutput]:
    """What `orchestrator.worker` sets up in each worker of a group, with the real trainer and the real merge."""
    own = torch.arange(group.rank, N, group.world_size)
    data = _data(own, held_out=20 if group.rank == 0 else 0)
    trainer = HeadTrainer(
        settings,
        C,
        Shard(group.rank, group.world_size, N, data.train, data.test),
        seed_of=lambda stream, level, epoch: hash((len(stream), level, epoch)) % 2**31,
        all_reduce=group.all_reduce if group.world_size > 1 else None,
    )
    planned = tuple(PlannedRound(f"round{i}", i, "", (), False) for i in range(len(specs)))
    io = CachedRounds(Chain("main", planned), cache, group, lambda event: None, lambda folder: None)  # type: ignore[arg-type]
    return run_rounds(specs, data, _Teachers(), trainer, io, LABELS)


def _on_workers(
    world_size: int, folder: Any, specs: Sequence[RoundSpec], settings: HeadSettings
) -> list[list[RoundOutput]]:
    barrier, slots = threading.Barrier(world_size), [None] * world_size
    results: list[Any] = [None] * world_size

    def work(rank: int) -> None:
        try:
            group = _ThreadGroup(rank, world_size, barrier, slots)  # type: ignore[arg-type]
            results[rank] = _worker(group, specs, settings, RoundCache(folder))
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize(
    ("assignment", "soft", "filters", "settings"),
    [
        ("student", False, (TopKRate(k=2),), {}),
        ("student", True, (TopKRate(k=2), LocalGlobal(k=3)), {}),
        ("soft", True, (), {}),
        ("agreement", False, (), {}),
        ("vote", True, (), {}),
        ("oracle", False, (), {}),
        ("student", False, (), {"kind": "mlp"}),
        ("student", True, (), {"auxiliary_alpha": 0.5, "auxiliary_warmup": 0.3}),
    ],
)
@pytest.mark.parametrize("world_size", [2, 4])
def test_same_result_on_any_number_of_workers(
    tmp_path: Any, world_size: int, assignment: str, soft: bool, filters: tuple[Any, ...], settings: dict[str, Any]
) -> None:
    specs = _specs(assignment, soft, filters=filters)
    (alone,) = _on_workers(1, tmp_path / "1", specs, _settings(**settings))
    workers = _on_workers(world_size, tmp_path / "n", specs, _settings(**settings))
    for outputs in workers:
        for one, other in zip(alone, outputs, strict=True):
            for name, weight in one.head.items():
                torch.testing.assert_close(other.head[name], weight, atol=1e-5, rtol=0)
            for name in ("keep", "assigned", "top_classes", "train_classes"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            torch.testing.assert_close(other.teacher_confidence, one.teacher_confidence, atol=1e-6, rtol=0)
            assert other.consensus == one.consensus
            assert other.asked == one.asked
            assert other.losses == pytest.approx(one.losses, abs=1e-5)
    for one, other in zip(alone, workers[0], strict=True):
        assert torch.equal(one.test_classes, other.test_classes)
    if filters:
        assert not alone[1].keep.all(), "the filter must have something to do"


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_resume_together(tmp_path: Any, world_size: int) -> None:
    """A group that finds the first rounds stored by another goes on after them, all ranks alike."""
    (alone,) = _on_workers(1, tmp_path, _specs()[:2], _settings())
    workers = _on_workers(world_size, tmp_path, _specs(), _settings())
    (whole,) = _on_workers(1, tmp_path / "whole", _specs(), _settings())
    for outputs in workers:
        assert torch.equal(outputs[1].head["weight"], alone[1].head["weight"])
        torch.testing.assert_close(outputs[2].head["weight"], whole[2].head["weight"], atol=1e-5, rtol=0)


def test_more_workers_than_a_short_last_batch(tmp_path: Any) -> None:
    """121 = 2 x 60 + 1: the last global batch holds one sample, which one of the workers owns."""
    specs = _specs()[:1]
    (alone,) = _on_workers(1, tmp_path / "1", specs, _settings(batch_size=60))
    workers = _on_workers(4, tmp_path / "4", specs, _settings(batch_size=60))
    torch.testing.assert_close(workers[3][0].head["weight"], alone[0].head["weight"], atol=1e-5, rtol=0)
