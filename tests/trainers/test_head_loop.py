"""The student loop against plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.head_loop import HeadSettings, HeadTrainer, Shard, TrainedHead
from trainers.heads import FlatHead, build_head, initialise, load_head
from trainers.losses import confidence_weight

N, D, C = 150, 10, 5
PLAIN = HeadSettings(
    kind="linear", hidden=16, epochs=6, lr=0.01, batch_size=32, auxiliary_alpha=0.0, auxiliary_warmup=0.0,
    precision="fp32", test_curve_every=0,
)  # fmt: skip


def _seed_of(stream: str, level: int, epoch: int) -> int:
    return {"head": 1, "order": 1000}[stream] + 100 * (level + 1) + epoch


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Features, hard targets, soft targets."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, D, generator=generator)
    scores = x @ torch.randn(D, C, generator=generator) + torch.randn(N, C, generator=generator)
    return x, scores.argmax(dim=1), torch.softmax(scores, dim=1).half()


def _trainer(settings: HeadSettings) -> HeadTrainer:
    x, _, _ = _inputs()
    return HeadTrainer(settings, C, Shard(0, 1, N, x, x[:40]), _seed_of)


def _fit(settings: HeadSettings, soft: bool = False, keep: Tensor | None = None, level: int = 0) -> TrainedHead:
    _, hard, probabilities = _inputs()
    keep = torch.ones(N, dtype=torch.bool) if keep is None else keep
    return _trainer(settings).fit(level, probabilities if soft else hard, keep, lambda *epoch: None)


def _plain(settings: HeadSettings, soft: bool, keep: Tensor) -> tuple[dict[str, Tensor], list[float]]:
    """The same training as one would write it: autograd, torch.optim.Adam, CosineAnnealingLR."""
    x, hard, probabilities = _inputs()
    targets = probabilities.float() if soft else hard
    head = build_head(settings.kind, D, C, settings.hidden)
    initialise(head, torch.Generator().manual_seed(_seed_of("head", 0, 0)))
    kept = keep.nonzero().squeeze(1)
    epochs = settings.epochs * N // len(kept)
    total = epochs * math.ceil(len(kept) / settings.batch_size)
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    losses, update = [], 0
    for epoch in range(1, epochs + 1):
        generator = torch.Generator().manual_seed(_seed_of("order", 0, epoch))
        order = kept[torch.randperm(len(kept), generator=generator)]
        seen = 0.0
        for rows in order.split(settings.batch_size):
            logits = head(x[rows])
            loss = nn.functional.cross_entropy(logits, targets[rows])
            a = confidence_weight(update, total, settings.auxiliary_alpha, settings.auxiliary_warmup)
            if a:
                own = nn.functional.cross_entropy(logits, logits.detach().argmax(dim=1))
                loss = (1 - a) * loss + a * own
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            seen += float(loss.detach()) * len(rows)
            update += 1
        losses.append(seen / len(kept))
    return {name: p.detach() for name, p in head.named_parameters()}, losses


@pytest.mark.parametrize("kept", [N, 97, 1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"kind": "mlp"}, {"auxiliary_alpha": 0.6, "auxiliary_warmup": 0.3}, {"batch_size": 1000}]
)
def test_equals_plain_pytorch(changes: dict[str, Any], soft: bool, kept: int) -> None:
    settings = replace(PLAIN, **changes)
    keep = torch.zeros(N, dtype=torch.bool)
    keep[torch.randperm(N, generator=torch.Generator().manual_seed(9))[:kept]] = True
    fitted = _fit(settings, soft, keep)
    expected, losses = _plain(settings, soft, keep)
    assert set(fitted.head) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(fitted.head[name], weight, atol=2e-4, rtol=0)
    assert fitted.losses == pytest.approx(losses, abs=1e-3)
    assert fitted.trained_samples == len(losses) * kept


@pytest.mark.parametrize(("kept", "epochs"), [(150, 6), (149, 6), (129, 6), (128, 7), (75, 12), (1, 900)])
def test_epochs_keep_the_number_of_updates(kept: int, epochs: int) -> None:
    keep = torch.arange(N) < kept
    seen: list[tuple[int, int, float]] = []
    _, hard, _ = _inputs()
    _trainer(PLAIN).fit(0, hard, keep, lambda *epoch: seen.append(epoch))
    assert [(e, of) for e, of, _ in seen] == [(e, epochs) for e in range(1, epochs + 1)]


def test_only_kept_samples_matter() -> None:
    _, hard, _ = _inputs()
    keep = torch.arange(N) % 3 > 0
    first = _trainer(PLAIN).fit(0, hard, keep, lambda *epoch: None)
    other = torch.where(keep, hard, (hard + 1) % C)
    second = _trainer(PLAIN).fit(0, other, keep, lambda *epoch: None)
    assert torch.equal(first.head["weight"], second.head["weight"])


def test_streams_of_levels_differ_and_repeat() -> None:
    assert torch.equal(_fit(PLAIN).head["weight"], _fit(PLAIN).head["weight"])
    assert not torch.equal(_fit(PLAIN).head["weight"], _fit(PLAIN, level=1).head["weight"])


def test_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _fit(PLAIN)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(_fit(PLAIN).head["weight"], first.head["weight"])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_bf16_is_close_to_fp32(kind: str) -> None:
    settings = replace(PLAIN, kind=kind, epochs=20)
    x, _, _ = _inputs()
    trainer = _trainer(settings)
    full, half = _fit(settings), _fit(replace(settings, precision="bf16"))
    assert all(w.dtype == torch.float32 for w in half.head.values())
    assert any(not torch.equal(full.head[name], half.head[name]) for name in full.head), "bf16 must be in use"
    a, b = trainer.logits(full.head, x), trainer.logits(half.head, x)
    assert (a - b).abs().max() < 0.05 * a.abs().max()
    assert (a.argmax(1) == b.argmax(1)).float().mean() > 0.97
    assert half.losses == pytest.approx(full.losses, rel=0.02)


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (4, [4]), (7, [])])
def test_test_curve(every: int, epochs: list[int]) -> None:
    fitted = _fit(replace(PLAIN, test_curve_every=every))
    assert list(fitted.curve_epochs) == epochs
    assert fitted.test_curve.shape == (len(epochs), 40)
    if epochs and epochs[-1] == 6:
        last = _trainer(PLAIN).logits(fitted.head, _inputs()[0][:40]).argmax(dim=1)
        assert torch.equal(fitted.test_curve[-1], last)
    assert torch.equal(fitted.head["weight"], _fit(PLAIN).head["weight"]), "looking must not change the student"


def test_logits_in_pieces_equal_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers import head_loop

    x, _, _ = _inputs()
    fitted = _fit(PLAIN)
    whole = _trainer(PLAIN).logits(fitted.head, x)
    monkeypatch.setattr(head_loop, "_LOGIT_ROWS", 7)
    torch.testing.assert_close(_trainer(PLAIN).logits(fitted.head, x), whole)
    assert _trainer(PLAIN).logits(fitted.head, x[:0]).shape == (0, C)
    torch.testing.assert_close(whole, x @ fitted.head["weight"].t() + fitted.head["bias"])


class TestHeads:
    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_initialisation_is_that_of_pytorch(self, kind: str) -> None:
        head = build_head(kind, 400, 300, 200)
        initialise(head, torch.Generator().manual_seed(0))
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for values in (layer.weight.detach(), layer.bias.detach()):
                    assert values.abs().max() <= bound
                    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)

    def test_unknown_kind(self) -> None:
        with pytest.raises(ValueError, match=r"'tree'.*linear, mlp"):
            build_head("tree", 2, 2, 2)

    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_state_round_trip_and_misfit(self, kind: str) -> None:
        head = build_head(kind, D, C, 16)
        initialise(head, torch.Generator().manual_seed(0))
        state = FlatHead(head, "fp32").state()
        x = torch.randn(3, D)
        again = load_head(kind, C, 16, state)
        torch.testing.assert_close(again(x), head(x))
        with pytest.raises(RuntimeError):
            load_head(kind, C + 1, 16, state)

    def test_flat_gradient_is_scaled_and_overwritten(self) -> None:
        for kind in ("linear", "mlp"):
            head = build_head(kind, D, C, 16)
            initialise(head, torch.Generator().manual_seed(0))
            flat = FlatHead(head, "fp32")
            x, upstream = torch.randn(4, D), torch.randn(4, C)
            reference = load_head(kind, C, 16, flat.state())
            (reference(x) * upstream).sum().mul(0.25).backward()
            wanted = torch.cat([p.grad.reshape(-1) for p in reference.parameters() if p.grad is not None])
            for _ in range(2):  # a second pass must not add up
                flat.forward(x)
                flat.backward(upstream.clone(), 0.25)
                torch.testing.assert_close(flat.gradients, wanted)

    def test_smaller_last_batch(self) -> None:
        head = build_head("linear", D, C, 1)
        initialise(head, torch.Generator().manual_seed(0))
        flat = FlatHead(head, "fp32")
        for rows in (8, 3):
            x = torch.randn(rows, D)
            torch.testing.assert_close(flat.forward(x), nn.functional.linear(x, *flat.state().values()))
