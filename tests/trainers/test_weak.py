"""Weak teachers and encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.data import DATASETS
from orchestrator.data.arrays import ArraysOptions
from orchestrator.data.digits import DigitsOptions
from orchestrator.data.registry import DatasetOptions
from orchestrator.data.store import Store
from tests.helpers import small_arrays, write_folder
from trainers.backbones import encoder
from trainers.devices import resolve_device
from trainers.weak import WeakSettings, train_weak, weak_probabilities

SETTINGS = WeakSettings(kind="linear", steps=25, lr=0.01, batch_size=8)
X = torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


def test_equals_plain_pytorch() -> None:
    state = train_weak(SETTINGS, X, Y, 5, torch.Generator().manual_seed(3))
    from trainers.heads import initialise

    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(12, 5)
    initialise(model, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=SETTINGS.lr)
    for _ in range(SETTINGS.steps):
        rows = torch.randint(60, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X.flatten(1)[rows]), Y[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(state["weight"], model.weight.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(state["bias"], model.bias.detach(), atol=1e-5, rtol=0)


def test_same_generator_same_teacher() -> None:
    first = train_weak(SETTINGS, X, Y, 5, torch.Generator().manual_seed(3))
    again = train_weak(SETTINGS, X, Y, 5, torch.Generator().manual_seed(3))
    other = train_weak(SETTINGS, X, Y, 5, torch.Generator().manual_seed(4))
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], other["weight"])


def test_a_specialist_rarely_names_foreign_classes() -> None:
    state = train_weak(WeakSettings(kind="linear", steps=400, lr=0.02, batch_size=16), X, Y, 5, torch.Generator())
    probabilities = weak_probabilities(state, X)
    assert probabilities.dtype == torch.float16
    assert probabilities.shape == (60, 5)
    assert probabilities[:, 3:].sum() / probabilities.sum() < 0.05
    torch.testing.assert_close(probabilities.float().sum(dim=1), torch.ones(60), atol=2e-3, rtol=0)


def _options(name: str, folder: Path) -> DatasetOptions:
    if name == "digits":
        return DigitsOptions(rotations=2, fourier_features=64, components=16)
    return ArraysOptions(path=str(write_folder(folder / "arrays", small_arrays())), standardize=name == "standardised")


@pytest.mark.parametrize("name", ["digits", "standardised", "plain"])
def test_encoder_reproduces_the_features(name: str, tmp_path: Path) -> None:
    """The delivered student reads raw inputs: its encoder must give the features it was trained on."""
    options = _options(name, tmp_path)
    dataset = DATASETS.builder(options.name).load(options, 0, Store(tmp_path / "store"))  # type: ignore[attr-defined]
    module = encoder({key: torch.from_numpy(array) for key, array in dataset.encoder.items()})
    inputs = torch.from_numpy(np.array(dataset.inputs))
    torch.testing.assert_close(module(inputs), torch.from_numpy(np.array(dataset.features)), atol=1e-3, rtol=1e-3)
    assert torch.equal(torch.from_numpy(np.array(dataset.features)), inputs) == (name == "plain")


def test_unknown_encoder() -> None:
    with pytest.raises(ValueError, match=r"no encoder.*'alien'"):
        encoder({"alien": torch.zeros(1)})


def test_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(RuntimeError, match="no GPU"):
        resolve_device("cuda")
