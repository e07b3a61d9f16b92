"""Hosts weak teachers in one process: trains or opens them, predicts, remembers. No Ray in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import GivenTeacher
from orchestrator.data.store import Arrays, Store, load_arrays, save_arrays
from orchestrator.errors import TeacherError
from orchestrator.identity import derive_seed

CACHE_BYTES = 1 << 30
"""Memory for remembered predictions per host; beyond it predictions are made again."""

_FILE = "teacher.safetensors"
_BATCH = 16384


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher: where it stands in the hierarchy, and its identity."""

    level: int
    index: int
    block: tuple[int, ...]
    """Its classes."""
    key: str
    """Digest of everything its answers depend on."""
    given: GivenTeacher | None
    """Its probabilities, when they come with the data."""


@dataclass(frozen=True)
class TeacherTask:
    """What teachers need of the data, and how they are trained."""

    inputs: NDArray[Any] | None
    """Raw inputs [N, ...] of the whole data set; None when no teacher is trained."""
    rows: NDArray[np.int64]
    """Rows of the teachers' split."""
    labels: NDArray[np.int64]
    """Their true classes: the only ground truth that comes here."""
    n_classes: int
    settings: dict[str, Any]
    """Fields of `trainers.weak.WeakSettings`."""
    seed: int
    device: str
    store: Path
    """Where trained teachers are kept."""


class TeacherHost:
    """Teachers of any levels in one process.

    Args:
        specs: the teachers this host serves.
        task: data and settings; arrays may be read-only views of shared memory.
    """

    def __init__(self, specs: Sequence[TeacherSpec], task: TeacherTask) -> None:
        self._specs = {s.key: s for s in specs}
        self._task = task
        self._store = Store(task.store)
        self._models: dict[str, Any] = {}
        self._caches: dict[str, _Remembered] = {}
        self._cached_bytes = 0

    def ready(self) -> int:
        """Train or load every teacher; returns how many there are."""
        for spec in self._specs.values():
            self._model(spec)
        return len(self._specs)

    def predict(self, key: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.float16], int]:
        """Probabilities of one teacher.

        Args:
            key: the teacher's `TeacherSpec.key`.
            rows: rows of the data set, int64 [n].

        Returns:
            (float16 [n, C], forward passes made: 0 where the answer was remembered or given).
        """
        spec = self._specs[key]
        model = self._model(spec)
        if spec.given is not None:
            return np.asarray(model[rows], dtype=np.float16), 0
        cache = self._caches.setdefault(key, _Remembered(len(self._inputs()), self._task.n_classes))
        new = cache.missing(rows)
        if len(new) and self._cached_bytes > CACHE_BYTES:
            return self._forward(model, rows), len(rows)
        if len(new):
            answers = self._forward(model, new)
            self._cached_bytes += answers.nbytes
            cache.add(new, answers)
        return cache.get(rows), len(new)

    def classes(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Predicted class of one teacher, int32 [n]; not remembered (evaluation asks once)."""
        spec = self._specs[key]
        model = self._model(spec)
        found = np.empty(len(rows), dtype=np.int32)
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            answers = model[part] if spec.given is not None else self._forward(model, part)
            found[start : start + _BATCH] = _likeliest(answers)
        return found

    def _model(self, spec: TeacherSpec) -> Any:
        """The opened array of a given teacher, or the weights of a trained one (trained here if nowhere else)."""
        if spec.key not in self._models:
            if spec.given is not None:
                self._models[spec.key] = spec.given.open()
            else:
                from trainers.weak import WeakSettings

                if not self._task.rows.size:
                    raise TeacherError(f"teacher {spec.index} of level {spec.level}: no samples to train on")
                entry = self._store.get_or_put(
                    spec.key,
                    lambda folder: save_arrays(folder / _FILE, self._train(spec, WeakSettings(**self._task.settings))),
                )
                self._models[spec.key] = self._to_device(load_arrays(entry / _FILE))
        return self._models[spec.key]

    def _train(self, spec: TeacherSpec, settings: Any) -> Arrays:
        import torch

        from trainers.weak import train_weak

        task = self._task
        mine = np.isin(task.labels, spec.block)
        if not mine.any():
            raise TeacherError(
                f"teacher {spec.index} of level {spec.level}: none of the {len(task.labels)} samples of split "
                f"`teacher` has a class of its block {list(spec.block)[:10]}; give it other classes or more samples"
            )
        inputs = torch.from_numpy(np.array(self._inputs()[task.rows[mine]]))
        generator = torch.Generator().manual_seed(derive_seed(task.seed, "teacher", spec.level, spec.index))
        state = train_weak(settings, inputs, torch.from_numpy(task.labels[mine]), task.n_classes, generator)
        return {name: tensor.numpy() for name, tensor in state.items()}

    def _forward(self, state: Any, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        import torch

        from trainers.weak import weak_probabilities

        parts = [
            weak_probabilities(state, torch.from_numpy(self._inputs()[rows[i : i + _BATCH]]).to(state["weight"].device))
            for i in range(0, len(rows), _BATCH)
        ]
        return torch.cat(parts).cpu().numpy() if parts else np.empty((0, self._task.n_classes), np.float16)

    def _to_device(self, state: Arrays) -> Any:
        import torch

        from trainers.devices import resolve_device

        device = resolve_device(self._task.device)
        return {name: torch.from_numpy(array).to(device) for name, array in state.items()}

    def _inputs(self) -> NDArray[Any]:
        assert self._task.inputs is not None, "a trained teacher needs raw inputs"
        return self._task.inputs


def _likeliest(probabilities: NDArray[Any]) -> NDArray[np.int64]:
    """Most likely class per row of [n, C], the lowest of equals, int64 [n].

    Positive half floats are ordered as the integers of the same bits are (IEEE 754), and numpy finds the largest of
    integers 25 x faster; a negative zero becomes the lowest integer, below the positive value every row has.
    """
    if probabilities.dtype == np.float16:
        probabilities = np.ascontiguousarray(probabilities).view(np.int16)
    classes: NDArray[np.int64] = probabilities.argmax(axis=1)
    return classes


class _Remembered:
    """Predictions of one teacher for the rows it was asked about: memory grows with what was asked."""

    def __init__(self, n_rows: int, n_classes: int) -> None:
        self._slot = np.full(n_rows, -1, dtype=np.int64)
        self._answers = np.empty((0, n_classes), dtype=np.float16)
        self._used = 0

    def missing(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.unique(rows[self._slot[rows] < 0])

    def add(self, rows: NDArray[np.int64], answers: NDArray[np.float16]) -> None:
        if self._used + len(rows) > len(self._answers):
            grown = np.empty((max(self._used + len(rows), 2 * self._used), answers.shape[1]), np.float16)
            grown[: self._used] = self._answers[: self._used]
            self._answers = grown
        self._answers[self._used : self._used + len(rows)] = answers
        self._slot[rows] = np.arange(self._used, self._used + len(rows))
        self._used += len(rows)

    def get(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        return self._answers[self._slot[rows]]
