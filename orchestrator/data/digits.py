"""The embedded data set: UCI digits, each in several rotations, as shipped inside scikit-learn.

``class = rotation * 10 + digit``. Strong view: random Fourier features (Rahimi & Recht 2007), standardised, PCA,
standardised; everything that is fitted is fitted on the student's images only. Weak view: the pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.data.dataset import DataInfo, Dataset, Splits, seeded_splits
from orchestrator.data.registry import DATASETS, DatasetOptions
from orchestrator.data.splits import SplitShares
from orchestrator.data.store import Arrays, Store, load_arrays, save_arrays
from orchestrator.identity import array_digest, digest, numpy_generator, source_digest

_IMAGES, _DIGITS, _PIXELS = 1797, 10, 64


class DigitsOptions(DatasetOptions):
    """UCI digits x rotations by 90 degrees; no download."""

    name: Literal["digits"] = "digits"

    rotations: Annotated[int, Field(ge=1, le=4)] = 4
    """How many of the four rotations; there are 10 classes per rotation."""

    fourier_features: Annotated[int, Field(ge=1)] = 2048
    """Random Fourier features of the pixels."""

    fourier_scale: Annotated[float, Field(gt=0)] = 0.8
    """Standard deviation of the random frequencies, for pixels in [0, 1]."""

    components: Annotated[int, Field(ge=1)] = 256
    """Principal components kept: the width of the strong features."""

    splits: SplitShares = SplitShares()
    """Shares by *source image*: rotations of one image never cross parts."""


@DATASETS.register(DigitsOptions)
class Digits:
    """Builder of the embedded data set."""

    @staticmethod
    def describe(options: DigitsOptions, seed: int) -> DataInfo:
        problems = options.splits.problems("data.splits", needed=("teacher", "student", "test"))
        if options.components > options.fourier_features:
            problems.append(
                f"data.components: must not exceed data.fourier_features = {options.fourier_features} "
                f"(got {options.components})"
            )
        codes = seeded_splits(_IMAGES, options.splits.model_dump(), numpy_generator(seed, "split"))
        counts = {k: v * options.rotations for k, v in Splits.from_codes(codes).counts().items()}
        if options.components > counts["student"] and not problems:
            problems.append(
                f"data.components: must not exceed the {counts['student']} student samples (got {options.components})"
            )
        return DataInfo(_DIGITS * options.rotations, options.components, counts, problems=tuple(problems))

    @staticmethod
    def load(options: DigitsOptions, seed: int, store: Store) -> Dataset:
        key = "digits-" + digest(options.model_dump(mode="json"), seed, source_digest(Path(__file__)))
        entry = store.get_or_put(key, lambda folder: save_arrays(folder / "data.safetensors", _make(options, seed)))
        arrays = load_arrays(entry / "data.safetensors")
        names = ("inputs", "features", "labels", "codes")
        inputs, features, labels, codes = (arrays.pop(name) for name in names)
        return Dataset(
            name="digits",
            n_classes=_DIGITS * options.rotations,
            inputs=inputs,
            features=features,
            labels=labels,
            splits=Splits.from_codes(codes),
            digest=digest(array_digest(inputs), array_digest(features), array_digest(codes)),
            encoder=arrays,
        )


def _make(options: DigitsOptions, seed: int) -> Arrays:
    from sklearn.datasets import load_digits  # 1.5 s to import: only when there is something to make

    images, digits = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8)
    turned = [np.rot90(images, k=r, axes=(1, 2)).reshape(-1, _PIXELS) for r in range(options.rotations)]
    inputs = np.concatenate(turned).astype(np.float32)
    labels = np.concatenate([digits + _DIGITS * r for r in range(options.rotations)]).astype(np.int64)
    image_codes = seeded_splits(len(images), options.splits.model_dump(), numpy_generator(seed, "split"))
    codes = np.tile(image_codes, options.rotations)
    encoder = _fit_encoder(inputs[Splits.from_codes(codes).student], options, numpy_generator(seed, "fourier"))
    hidden = np.cos(inputs @ encoder["frequencies"] + encoder["phases"])
    features = hidden @ encoder["projection"] + encoder["offset"]
    return {"inputs": inputs, "features": features.astype(np.float32), "labels": labels, "codes": codes, **encoder}


def _fit_encoder(images: NDArray[np.float32], options: DigitsOptions, rng: np.random.Generator) -> Arrays:
    """Fit standardise -> PCA -> standardise on cos(xW + b); the three affine maps are folded into one."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    frequencies = rng.normal(0.0, options.fourier_scale, (_PIXELS, options.fourier_features)).astype(np.float32)
    phases = rng.uniform(0.0, 2 * np.pi, options.fourier_features).astype(np.float32)
    hidden = np.cos(images @ frequencies + phases)
    first = StandardScaler().fit(hidden)
    pca = PCA(options.components, svd_solver="covariance_eigh").fit(first.transform(hidden))
    second = np.sqrt(pca.explained_variance_)  # PCA output has mean 0 already
    projection = (pca.components_ / first.scale_ / second[:, None]).T
    offset = -(first.mean_ @ projection) - (pca.mean_ @ pca.components_.T) / second
    return {
        "frequencies": frequencies,
        "phases": phases,
        "projection": projection.astype(np.float32),
        "offset": offset.astype(np.float32),
    }
