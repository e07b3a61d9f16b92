"""The method written down plainly: nn.Linear, autograd, torch.optim.Adam, no part of the product.

A second opinion on the product's accuracies (method.md: student assignment, hard labels, top-k rate), and the time
the same thing takes when nobody has thought about time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def co_supervise(
    folder: Path, levels: Sequence[int], *, epochs: int, lr: float, batch_size: int, k: int, seed: int = 0
) -> tuple[list[float], float]:
    """Run all rounds on a folder of the `arrays` data set.

    Args:
        folder: holds features, labels, split and the teachers' probabilities.
        levels: teachers per level, each with its share of the classes in order.
        epochs, lr, batch_size: of each round's student.
        k: of the criterion: as many samples are kept as agree with the student's top k.
        seed: initial weights and batches.

    Returns:
        (test accuracy of each level's student, wall seconds).
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    features, labels = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("features", "labels"))
    split = torch.from_numpy(np.load(folder / "split.npy"))
    train, test = split == 0, split == 2
    features = (features - features[train].mean(0)) / features[train].std(0, correction=0)
    x, x_test, y_test = features[train], features[test], labels[test]
    accuracies: list[float] = []
    student: nn.Linear | None = None
    for level, teachers in enumerate(levels):
        answers = [
            torch.from_numpy(np.load(folder / f"teacher_{level}_{i}.npy"))[train].float() for i in range(teachers)
        ]
        n_classes = answers[0].shape[1]
        keep = torch.arange(len(x))
        if student is None:
            targets = answers[0].argmax(dim=1)
        else:
            with torch.no_grad():
                logits = student(x)
            owner = torch.empty(n_classes, dtype=torch.int64)
            for i, block in enumerate(np.array_split(np.arange(n_classes), teachers)):
                owner[torch.from_numpy(block)] = i
            assigned = owner[logits.argmax(dim=1)]
            targets = torch.stack([a.argmax(dim=1) for a in answers])[assigned, torch.arange(len(x))]
            agreeing = (logits.topk(k, dim=1).indices == targets[:, None]).any(dim=1).sum()
            losses = nn.functional.cross_entropy(logits, targets, reduction="none")
            keep = losses.argsort(stable=True)[:agreeing]
        student = _train(x[keep], targets[keep], n_classes, epochs * len(x) // len(keep), lr, batch_size)
        with torch.no_grad():
            accuracies.append(float((student(x_test).argmax(dim=1) == y_test).float().mean()))
    return accuracies, time.perf_counter() - started


def _train(x: Tensor, targets: Tensor, n_classes: int, epochs: int, lr: float, batch_size: int) -> nn.Linear:
    student = nn.Linear(x.shape[1], n_classes)
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // batch_size))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(student(x[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    return student
