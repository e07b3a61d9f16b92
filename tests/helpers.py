"""What several tests need: the reference fixtures, small data sets, configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.config import ExperimentConfig
from orchestrator.loading import parse

torch.set_num_threads(1)

FIXTURES = Path(__file__).parent / "fixtures"
Arrays = dict[str, NDArray[Any]]


def fixture_arrays(name: str) -> Arrays:
    """All arrays of a fixture ``.npz``."""
    with np.load(FIXTURES / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def fixture_json(name: str) -> dict[str, Any]:
    """A fixture ``.json``."""
    content: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return content


def make_config(tree: Mapping[str, Any]) -> ExperimentConfig:
    """The configuration of a tree of settings, which must be free of mistakes."""
    config, problems, _ = parse(dict(tree))
    assert not problems, problems
    return config


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with dotted settings replaced: ``{"rounds.filters": [...]}``."""
    tree: dict[str, Any] = json.loads(json.dumps(base))
    for dotted, value in changes.items():
        *sections, field = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[field] = value
    return tree


def write_folder(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Arrays as a folder of ``.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def reference_folder(folder: Path, name: str) -> Path:
    """A reference data set in the layout of the `arrays` data set."""
    arrays = fixture_arrays(name)
    rows = len(arrays["y"])
    split = np.where(np.arange(rows) < int(arrays["n_train"]), 0, 2)
    teachers = {key: array for key, array in arrays.items() if key.startswith("teacher_")}
    return write_folder(folder, {"features": arrays["emb"], "labels": arrays["y"], "split": split, **teachers})


def small_arrays(
    rows: int = 200, n_classes: int = 6, features: int = 8, levels: tuple[int, ...] = (1, 2, 3), seed: int = 0
) -> Arrays:
    """A data set of noisy clusters with teachers that know their block well and the rest badly.

    Splits: 60 % student, 10 % validation, 20 % test, 10 % teacher.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=rows)
    centres = rng.normal(size=(n_classes, features)) * 1.5
    arrays: Arrays = {
        "features": (centres[labels] + rng.normal(size=(rows, features))).astype(np.float32),
        "labels": labels,
        "split": rng.permuted(np.repeat([0, 1, 2, 3], [rows - 4 * rows // 10, rows // 10, 2 * rows // 10, rows // 10])),
    }
    for level, n_teachers in enumerate(levels):
        for k, block in enumerate(np.array_split(np.arange(n_classes), n_teachers)):
            right = np.isin(labels, block) if n_teachers > 1 else np.full(rows, True)
            strength = np.where(right, 2.0, 0.3)[:, None]
            scores = strength * np.eye(n_classes)[labels] + rng.normal(size=(rows, n_classes))
            exp = np.exp(scores)
            arrays[f"teacher_{level}_{k}"] = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float16)
    return arrays


def small_tree(storage: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """Settings of an inline experiment of a second on `small_arrays`; ``changes`` are dotted with ``__``."""
    tree = {
        "name": "small",
        "device": "cpu",
        "storage": str(storage),
        "data": {"name": "arrays", "path": str(data)},
        "hierarchy": {"levels": [1, 2, 3]},
        "student": {"epochs": 3, "lr": 0.02, "batch_size": 32},
        "rounds": {"supervision": "hard"},
        "baselines": [],
        "compute": {"backend": "inline"},
        "tracking": {"enabled": False},
    }
    return merged(tree, {name.replace("__", "."): value for name, value in changes.items()})
