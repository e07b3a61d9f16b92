"""What runs where the student trains: all chains of an experiment, over a `RoundIO` made of files and collectives.

The same code runs inline in one process and in each worker of a Ray Train group; it knows neither.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.chains import Chain
from orchestrator.config import ExperimentConfig
from orchestrator.errors import DeviceError
from orchestrator.filters import bind
from orchestrator.identity import derive_seed
from orchestrator.job import Emit, StudentJob, StudentView
from orchestrator.method.records import RoundOutput, RoundSpec, StudentData, Teachers
from orchestrator.method.rounds import run_rounds
from orchestrator.round_cache import RoundCache, to_output
from trainers.devices import resolve_device
from trainers.head_loop import HeadSettings, HeadTrainer, Shard


class Group(Protocol):
    """This worker's place among the workers (in one process; under Ray Train)."""

    rank: int
    world_size: int

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over the workers, in place."""
        ...


class Alone:
    """The only worker."""

    rank = 0
    world_size = 1

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over the workers, in place."""


class CachedRounds:
    """`RoundIO` of one chain: rounds live in the cache, collectives come from the group.

    Args:
        chain: the chain and its keys.
        cache: the round cache.
        group: place among the workers.
        emit: receives progress events (rank 0 only).
        announce: called on every rank once a round is stored, with its folder on rank 0.
    """

    def __init__(
        self, chain: Chain, cache: RoundCache, group: Group, emit: Emit, announce: Callable[[Path | None], None]
    ) -> None:
        self.rank, self.world_size = group.rank, group.world_size
        self._chain, self._cache, self._group, self._emit, self._announce = chain, cache, group, emit, announce

    def merge(self, own: Tensor, values: Tensor, n_samples: int) -> Tensor:
        """See `RoundIO.merge`; exact, because only one worker adds to each entry."""
        if self.world_size == 1:
            return values.cpu()
        wide = torch.float64 if values.is_floating_point() else torch.int64
        total = torch.zeros(n_samples, *values.shape[1:], dtype=wide)
        total[own] = values.cpu().to(wide)
        self._sum(total)
        return total.to(values.dtype)

    def total(self, count: int) -> int:
        """See `RoundIO.total`."""
        tensor = torch.tensor([count])
        self._sum(tensor)
        return int(tensor)

    def load(self, number: int) -> RoundOutput | None:
        """See `RoundIO.load`; rank 0 decides, so that all agree even while another run stores the same round."""
        key = self._chain.rounds[number - 1].key
        stored = self._cache.claim(key) if self.rank == 0 else None
        if not self.total(int(stored is not None)):
            return None
        stored = stored or self._cache.claim(key)
        assert stored is not None, f"round {key} is visible to rank 0 only: `storage` must be shared by all nodes"
        self._event(number, event="round", key=key, cached=True)
        return to_output(stored)

    def report(self, number: int, output: RoundOutput) -> None:
        """See `RoundIO.report`."""
        key = self._chain.rounds[number - 1].key
        self._announce(self._cache.put(key, output) if self.rank == 0 else None)
        self._event(number, event="round", key=key, cached=False)

    def progress(self, number: int, epoch: int, epochs: int, loss: float) -> None:
        """See `RoundIO.progress`."""
        self._event(number, event="epoch", epoch=epoch, epochs=epochs, loss=loss)

    def _event(self, number: int, **content: Any) -> None:
        if self.rank == 0:
            self._emit({"chain": self._chain.name, "round": number, **content})

    def _sum(self, tensor: Tensor) -> None:
        if self.world_size > 1:
            self._group.all_reduce(tensor)


def run_chains(
    job: StudentJob,
    view: StudentView,
    oracle_labels: NDArray[np.int64] | None,
    teachers: Teachers,
    group: Group,
    emit: Emit,
    announce: Callable[[Path | None], None] = lambda folder: None,
) -> None:
    """Run every chain of an experiment; results go to the round cache.

    Args:
        job: what to train.
        view: the data, without ground truth.
        oracle_labels: ground truth of the student's samples, handed on to chains that are upper bounds
            (``sees_truth``) and to no other; None when there is no such chain.
        teachers: answers of the teachers.
        group: place among the workers.
        emit: receives progress events.
        announce: called on every rank after each round that was computed.
    """
    data, trainer = _student(job.config, view, group)
    for chain in job.chains:
        specs = [
            RoundSpec(
                level=None if planned.level < 0 else job.levels[planned.level],
                level_index=planned.level,
                assignment=planned.assignment,
                soft=job.config.rounds.supervision == "soft" and planned.level >= 0,
                filters=bind(planned.filters),
                keep_all_if_empty=job.config.rounds.on_empty == "keep_all",
            )
            for planned in chain.rounds
        ]
        truth = torch.from_numpy(oracle_labels.copy()) if chain.sees_truth and oracle_labels is not None else None
        cache = RoundCache(job.cache)
        io = CachedRounds(chain, cache, group, emit, announce)
        try:
            run_rounds(specs, data, teachers, trainer, io, truth)
        finally:
            cache.release_all()


def _student(config: ExperimentConfig, view: StudentView, group: Group) -> tuple[StudentData, HeadTrainer]:
    """This worker's share of the data on its device, and its trainer."""
    try:
        device = resolve_device(config.device)
    except RuntimeError as error:
        raise DeviceError(str(error)) from None
    rank, world_size = group.rank, group.world_size

    def to_device(array: NDArray[np.float32]) -> Tensor:
        with warnings.catch_warnings():  # features in shared memory are read-only, and nobody writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array).to(device)

    own = torch.arange(rank, len(view.train), world_size)
    rank_0 = slice(None) if rank == 0 else slice(0, 0)
    data = StudentData(
        own=own,
        n_samples=len(view.train),
        n_classes=view.n_classes,
        train=to_device(view.train[rank::world_size]),
        validation=to_device(view.validation[rank_0]),
        test=to_device(view.test[rank_0]),
    )
    s = config.student
    settings = HeadSettings(
        kind=s.head,
        hidden=s.hidden,
        epochs=s.epochs,
        lr=s.lr,
        batch_size=s.batch_size,
        auxiliary_alpha=s.auxiliary_confidence.alpha if s.loss == "auxiliary_confidence" else 0.0,
        auxiliary_warmup=s.auxiliary_confidence.warmup,
        precision=s.precision,
        test_curve_every=s.test_curve_every if rank == 0 else 0,
    )
    shard = Shard(rank, world_size, data.n_samples, data.train, data.test)
    trainer = HeadTrainer(
        settings,
        view.n_classes,
        shard,
        seed_of=lambda stream, level, epoch: derive_seed(config.seed, stream, level, epoch),
        all_reduce=group.all_reduce if world_size > 1 else None,
    )
    return data, trainer


def append_event(path: Path) -> Emit:
    """An `Emit` that appends JSON lines to a file the driver follows."""
    handle = path.open("a", buffering=1, encoding="utf-8")
    return lambda event: print(json.dumps({**event, "at": time.time()}), file=handle)
