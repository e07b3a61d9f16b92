"""The student loop on cached features: whole-tensor indexing on the device, one fused optimizer step a batch.

The global batch is fixed. Each worker takes, of every global batch, the samples it owns (sample ``i`` belongs to
worker ``i mod W``); gradients are summed over the workers. So the sequence of updates is that of one worker,
to float summation order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.heads import FlatHead, build_head, initialise, load_head
from trainers.losses import auxiliary_confidence, confidence_weight, cross_entropy

OnEpoch = Callable[[int, int, float], None]
_LOGIT_ROWS = 16384


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How a head is trained; see `StudentConfig` for what each means."""

    kind: str
    hidden: int
    epochs: int
    lr: float
    batch_size: int
    auxiliary_alpha: float
    """0 for plain cross-entropy."""
    auxiliary_warmup: float
    precision: str
    test_curve_every: int


@dataclass(frozen=True)
class TrainedHead:
    """Result of one round's training."""

    head: Mapping[str, Tensor]
    losses: tuple[float, ...]
    """Mean loss per epoch."""
    test_curve: Tensor
    """Classes of the test samples, int64 [P, Nt]."""
    curve_epochs: tuple[int, ...]
    trained_samples: int


@dataclass(frozen=True)
class Shard:
    """The part of the data a worker trains on."""

    rank: int
    world_size: int
    n_samples: int
    """N over all workers."""
    features: Tensor
    """Features of the owned samples float32 [n, D], on the training device."""
    test: Tensor
    """Features of the test samples; empty on all workers but rank 0."""


class HeadTrainer:
    """Trains a fresh head per round.

    Args:
        settings: the hyper-parameters.
        n_classes: C.
        shard: the data.
        seed_of: (stream name, level, epoch) -> seed; the only source of randomness.
        all_reduce: in-place sum over the workers; None for one worker.
    """

    def __init__(
        self,
        settings: HeadSettings,
        n_classes: int,
        shard: Shard,
        seed_of: Callable[[str, int, int], int],
        all_reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._settings, self._n_classes, self._shard = settings, n_classes, shard
        self._seed_of, self._all_reduce = seed_of, all_reduce

    def fit(self, level: int, targets: Tensor, keep: Tensor, on_epoch: OnEpoch) -> TrainedHead:
        """Train on the kept samples with ``int(epochs / keep rate)`` epochs.

        Args:
            level: number of the level (-1: ceiling); names the random streams.
            targets: classes int64 [n], or distributions [n, C], of the owned samples.
            keep: bool [N], global.
            on_epoch: called with (epoch from 1, epochs, mean loss).
        """
        s, shard, device = self._settings, self._shard, self._shard.features.device
        head = build_head(s.kind, shard.features.shape[1], self._n_classes, s.hidden)
        initialise(head, _generator(self._seed_of("head", level, 0)))
        flat = FlatHead(head.to(device), s.precision)
        kept = keep.nonzero().squeeze(1)
        epochs = s.epochs * shard.n_samples // len(kept)
        total = epochs * math.ceil(len(kept) / s.batch_size)
        step = _adam(flat, s.lr, total)
        features, targets = shard.features.to(flat.input_dtype), targets.to(device)
        losses: list[float] = []
        curve: list[Tensor] = []
        curve_epochs: list[int] = []
        rows_most = min(s.batch_size, len(kept))
        x_memory = torch.empty(rows_most, features.shape[1], dtype=features.dtype, device=device)
        gradient_memory = torch.empty(rows_most, self._n_classes, device=device)
        update = 0
        for epoch in range(1, epochs + 1):
            order = kept[torch.randperm(len(kept), generator=_generator(self._seed_of("order", level, epoch)))]
            loss_sum = torch.zeros((), device=device)
            for rows, batch in self._batches(order.to(device)):
                weight = confidence_weight(update, total, s.auxiliary_alpha, s.auxiliary_warmup)
                x = torch.index_select(features, 0, rows, out=x_memory[: len(rows)])
                logits = flat.forward(x)
                wanted, out = targets[rows], gradient_memory[: len(rows)]
                if weight:
                    gradient, loss = auxiliary_confidence(logits, wanted, weight, out)
                else:
                    gradient, loss = cross_entropy(logits, wanted, out)
                flat.backward(gradient, 1 / batch)
                if self._all_reduce is not None:
                    self._all_reduce(flat.gradients)
                step(update)
                loss_sum += loss
                update += 1
            if self._all_reduce is not None:
                self._all_reduce(loss_sum)
            losses.append(float(loss_sum) / len(kept))
            if s.test_curve_every and epoch % s.test_curve_every == 0:
                curve.append(self.logits(flat.state(), shard.test).argmax(dim=1))
                curve_epochs.append(epoch)
            on_epoch(epoch, epochs, losses[-1])
        points = torch.stack(curve) if curve else torch.empty(0, len(shard.test), dtype=torch.int64)
        return TrainedHead(flat.state(), tuple(losses), points, tuple(curve_epochs), epochs * len(kept))

    def logits(self, head: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Logits float32 [n, C] of a trained head, computed in fp32 whatever the training precision."""
        model = load_head(self._settings.kind, self._n_classes, self._settings.hidden, head).to(features.device)
        with torch.inference_mode():
            out = torch.empty(len(features), self._n_classes, device=features.device)
            for start in range(0, len(features), _LOGIT_ROWS):
                out[start : start + _LOGIT_ROWS] = model(features[start : start + _LOGIT_ROWS])
        return out

    def _batches(self, order: Tensor) -> Iterator[tuple[Tensor, int]]:
        """(positions of the owned samples of a global batch, size of the global batch)."""
        size, shard = self._settings.batch_size, self._shard
        for batch in torch.split(order, size):
            if shard.world_size == 1:
                yield batch, len(batch)
            else:
                yield batch[batch % shard.world_size == shard.rank] // shard.world_size, len(batch)


def _adam(flat: FlatHead, lr: float, total: int) -> Callable[[int], None]:
    """One fused Adam update per call, learning rate ``lr (1 + cos(pi t / T)) / 2`` at update ``t`` of ``T``.

    The fused ATen operator behind ``torch.optim.Adam(fused=True)`` (Kingma & Ba 2015), called directly: building
    the optimizer object imports torch's compiler, 2 s per process. A test holds it equal to the optimizer.
    """
    mean, square = torch.zeros_like(flat.weights), torch.zeros_like(flat.weights)
    count = torch.zeros((), device=flat.weights.device)

    def step(update: int) -> None:
        count.add_(1)
        torch._fused_adam_(
            [flat.weights],
            [flat.gradients],
            [mean],
            [square],
            [],
            [count],
            lr=lr * (1 + math.cos(math.pi * update / total)) / 2,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    return step


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
