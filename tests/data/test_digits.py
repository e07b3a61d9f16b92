"""The embedded data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import digits
from orchestrator.data.dataset import Dataset
from orchestrator.data.digits import Digits, DigitsOptions
from orchestrator.data.store import Store

IMAGES = 1797
SMALL = DigitsOptions(fourier_features=64, components=16)
Load = Callable[..., Dataset]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    store = Store(tmp_path_factory.mktemp("digits"))
    return lambda seed=0, **changes: Digits.load(SMALL.model_copy(update=changes), seed, store)


def _parts(dataset: Dataset) -> dict[str, np.ndarray[Any, Any]]:
    return {name: getattr(dataset.splits, name) for name in ("teacher", "student", "validation", "test")}


@pytest.mark.parametrize("rotations", [1, 2, 4])
def test_shapes_agree_with_what_is_described(load: Load, rotations: int) -> None:
    dataset = load(rotations=rotations)
    info = Digits.describe(SMALL.model_copy(update={"rotations": rotations}), 0)
    assert info.problems == ()
    assert info.n_classes == dataset.n_classes == 10 * rotations == len(np.unique(dataset.labels))
    assert dataset.features.shape == (IMAGES * rotations, info.n_features)
    assert dataset.inputs.shape == (IMAGES * rotations, 64)
    assert dataset.splits.counts() == info.counts
    assert np.isfinite(dataset.features).all()
    assert 0 <= dataset.inputs.min() < dataset.inputs.max() <= 1


def test_class_is_rotation_and_digit(load: Load) -> None:
    dataset = load()
    for rotation in (1, 2, 3):
        at = slice(rotation * IMAGES, (rotation + 1) * IMAGES)
        assert np.array_equal(dataset.labels[at], dataset.labels[:IMAGES] + 10 * rotation)
        image = dataset.inputs[5].reshape(8, 8)
        assert np.array_equal(dataset.inputs[rotation * IMAGES + 5].reshape(8, 8), np.rot90(image, rotation))


def test_splits_are_disjoint_by_source_image(load: Load) -> None:
    dataset = load()
    parts = _parts(dataset)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(4 * IMAGES))
    images = [set((rows % IMAGES).tolist()) for rows in parts.values()]
    assert sum(len(i) for i in images) == len(set.union(*images)) == IMAGES
    assert all(len(rows) == 4 * len(i) for rows, i in zip(parts.values(), images, strict=True))


def test_deterministic_and_seeded(load: Load, tmp_path: Path) -> None:
    first, other = load(), load(seed=1)
    again = Digits.load(SMALL, 0, Store(tmp_path))
    assert first.digest == again.digest
    assert np.array_equal(first.features, again.features)
    assert np.array_equal(first.splits.student, again.splits.student)
    assert first.digest != other.digest
    assert not np.array_equal(first.splits.student, other.splits.student)
    assert np.array_equal(first.labels, other.labels)


def test_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = digits._make
    monkeypatch.setattr(digits, "_make", lambda options, seed: (made.append(seed), make(options, seed))[1])
    for seed in (0, 0, 1, 0):
        Digits.load(SMALL, seed, Store(tmp_path))
    assert made == [0, 1]


def test_features_are_fitted_on_the_students_images_alone(load: Load) -> None:
    dataset = load()
    seen = dataset.features[dataset.splits.student]
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=1e-2)
    covariance = np.cov(seen.T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-2)
    held_out = dataset.features[dataset.splits.test]
    assert np.abs(held_out.mean(axis=0)).max() > 5e-3, "the test images have means of their own"


def test_features_look_at_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    plain = Digits.load(SMALL, 0, Store(tmp_path / "plain"))
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    shuffled = np.random.default_rng(0).permutation(labels)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda return_X_y: (images, shuffled))
    other = Digits.load(SMALL, 0, Store(tmp_path / "other"))
    assert not np.array_equal(plain.labels, other.labels)
    assert np.array_equal(plain.features, other.features)
    assert plain.digest == other.digest


def test_features_are_worth_more_than_pixels(load: Load) -> None:
    """The strong view must be strong: least squares on it beats least squares on the pixels."""
    dataset = load(fourier_features=512, components=256)

    def accuracy(x: np.ndarray[Any, Any]) -> float:
        train, test = dataset.splits.student, dataset.splits.test
        x = np.c_[x, np.ones(len(x))]
        weights = np.linalg.lstsq(x[train], np.eye(40)[dataset.labels[train]], rcond=None)[0]
        return float(((x[test] @ weights).argmax(axis=1) == dataset.labels[test]).mean())

    assert accuracy(dataset.features) > accuracy(dataset.inputs) + 0.05
