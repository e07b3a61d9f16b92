"""Samples per second of the student loop, beside a per-sample DataLoader and this machine's matmul rate.

``python -m benchmarks.student_loop`` - one thread, everything interleaved in one run, median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainers.head_loop import HeadSettings, HeadTrainer, Shard

N, D, C, BATCH = 40_000, 384, 1_000, 100


def make_data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of train and test; classes are noisy directions, so that accuracy means something."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(C, D, generator=g)
    labels = torch.randint(C, (N + 10_000,), generator=g)
    features = 0.25 * centers[labels] + torch.randn(len(labels), D, generator=g)
    return features[:N], labels[:N], features[N:], labels[N:]


def product_loop(precision: str, x: Tensor, y: Tensor, epochs: int) -> tuple[float, HeadTrainer, dict[str, Tensor]]:
    """Samples/s of the product's loop, and what it trained."""
    settings = HeadSettings(
        kind="linear", hidden=1, epochs=epochs, lr=1e-3, batch_size=BATCH, auxiliary_alpha=0.0, auxiliary_warmup=0.2,
        precision=precision, test_curve_every=0,
    )  # fmt: skip
    trainer = HeadTrainer(settings, C, Shard(0, 1, len(x), x, x[:0]), lambda *stream: hash(stream) % 2**31)
    start = time.perf_counter()
    fitted = trainer.fit(0, y, torch.ones(len(x), dtype=torch.bool), lambda *_: None)
    return epochs * len(x) / (time.perf_counter() - start), trainer, dict(fitted.head)


def dataloader_loop(x: Tensor, y: Tensor, samples: int) -> float:
    """Samples/s of the usual loop: DataLoader over a TensorDataset, autograd, torch.optim.Adam."""
    model = nn.Linear(D, C)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x[:samples], y[:samples]), batch_size=BATCH, shuffle=True)
    start = time.perf_counter()
    for features, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    return samples / (time.perf_counter() - start)


def matmul_rate(seconds: float = 1.0) -> float:
    """Samples/s if only the two fp32 matrix products of a linear layer were to be done, at the same shapes."""
    x, w, g = torch.randn(BATCH, D), torch.randn(C, D), torch.randn(BATCH, C)
    out, gradient = torch.empty(BATCH, C), torch.empty(C, D)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(20):
            torch.mm(x, w.t(), out=out)
            torch.mm(g.t(), x, out=gradient)
        steps += 20
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="epochs per timed fit of the product's loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y, x_test, y_test = make_data()
    rates: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}

    def measure(name: str, function: Callable[[], float]) -> None:
        rates.setdefault(name, []).append(function())

    for _ in range(options.repeats):
        measure("limit", matmul_rate)
        measure("loader", lambda: dataloader_loop(x, y, 10_000))
        for precision in ("fp32", "bf16"):
            rate, trainer, head = product_loop(precision, x, y, options.epochs)
            rates.setdefault(precision, []).append(rate)
            hits = trainer.logits(head, x_test).argmax(dim=1) == y_test
            accuracy.setdefault(precision, []).append(float(hits.float().mean()))
    limit = statistics.median(rates["limit"])
    table = Table(title=f"student loop, {N} x {D} -> {C}, batch {BATCH}, Adam, 1 thread, median of {options.repeats}")
    for column in ("loop", "samples/s", "of the fp32 matmul rate", "reach", "test accuracy"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    rows = [
        ("(b) the two fp32 matmuls alone", "limit", ""),
        ("(a) DataLoader(TensorDataset)", "loader", ""),
        ("this product, fp32", "fp32", "60 %"),
        ("this product, bf16", "bf16", "80 %"),
    ]
    for label, key, reach in rows:
        rate = statistics.median(rates[key])
        correct = f"{statistics.mean(accuracy[key]):.4f}" if key in accuracy else ""
        table.add_row(label, f"{rate:,.0f}", f"{rate / limit:.0%}", reach, correct)
    Console().print(table)


if __name__ == "__main__":
    main()
