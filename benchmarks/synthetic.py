"""Synthetic data of realistic difficulty: a task, frozen features of it, and a hierarchy of weak teachers.

Classes form families of neighbours that are easily confused. Every sample has a difficulty that blurs it for
everybody. The strong features and the teachers' own view are two noisy pictures of the class. A teacher compares its
view with its own, faulty idea of each class; the fewer classes a teacher is responsible for, the smaller the faults
inside its block, while it neglects all classes outside. The result is a folder of ``.npy`` for the `arrays` data set.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import SPLIT_CODES
from orchestrator.identity import digest, numpy_generator

Floats = NDArray[np.float32]
VERSION = 1
"""Counted up whenever the same settings give other data."""
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Sizes and difficulty. The defaults are the paper's scale: weak accuracy near 0.38, ceiling near 0.74."""

    train: int = 40_000
    """Samples of split `student`."""
    test: int = 10_000
    features: int = 384
    """Width of the strong features."""
    classes: int = 1_000
    levels: tuple[int, ...] = (1, 2, 4, 8)
    """Teachers per level; each level cuts the classes into contiguous, nearly equal blocks."""
    seed: int = 0
    view: int = 48
    """Width of the teachers' view."""
    family: int = 10
    """Neighbouring classes that share half of what they look like."""
    blur: float = 0.95
    """Standard deviation of the logarithm of a sample's difficulty."""
    strong_noise: float = 2.2
    """Noise of the strong features, relative to the distance that 384 features resolve."""
    view_noise: float = 2.15
    """Noise of the teachers' view, relative to the length of a class's picture in it."""
    fault: float = 0.65
    """Error of the generalist's idea of a class, relative to the class itself; shrinks with the block."""
    neglect: float = 6.0
    """How much lower a specialist scores the classes outside its block."""
    sharpness: float = 11.0
    """Teachers' scores are cosine-like; this scales them to logits."""


SMALL = Synthetic(train=4_000, test=1_000, features=128, classes=100, strong_noise=1.5, view_noise=3.2)
"""A tenth of everything, for a quick look."""


def ensure(settings: Synthetic, root: Path) -> Path:
    """Folder with the data of these settings under ``root``; generated if it is not there yet."""
    folder = root / f"synthetic-{digest(VERSION, *astuple(settings))[:12]}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
        try:
            for name, array in generate(settings):
                np.save(unfinished / f"{name}.npy", array)
            os.rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def generate(settings: Synthetic) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The arrays of the data set, one after the other.

    Yields:
        ``labels`` int64 [N], ``split`` int8 [N], ``features`` float32 [N, D], and every ``teacher_{level}_{i}``
        float16 [N, C], rows summing to 1.
    """
    s, n = settings, settings.train + settings.test
    rng = numpy_generator(s.seed, "samples")
    labels = np.concatenate([rng.permutation(np.arange(part) % s.classes) for part in (s.train, s.test)])
    yield "labels", labels.astype(np.int64)
    yield "split", np.repeat([SPLIT_CODES["student"], SPLIT_CODES["test"]], [s.train, s.test]).astype(np.int8)
    difficulty = np.exp(s.blur * rng.standard_normal((n, 1), dtype=np.float32))
    looks = _looks(s, s.features, "strong")
    noise = rng.standard_normal((n, s.features), dtype=np.float32)
    yield "features", looks[labels] + s.strong_noise / math.sqrt(s.features) * difficulty * noise
    ideas = _looks(s, s.view, "view")
    noise = rng.standard_normal((n, s.view), dtype=np.float32)
    view = ideas[labels] + s.view_noise / math.sqrt(s.view) * difficulty * noise
    for level, teachers in enumerate(s.levels):
        for index, block in enumerate(np.array_split(np.arange(s.classes), teachers)):
            yield f"teacher_{level}_{index}", _teacher(s, view, ideas, block, (level, index))


def _looks(s: Synthetic, width: int, name: str) -> Floats:
    """What each class looks like, float32 [C, width] of length near 1; families share half of it."""
    rng = numpy_generator(s.seed, "looks", name)
    own = rng.standard_normal((s.classes, width), dtype=np.float32)
    shared = rng.standard_normal((-(-s.classes // s.family), width), dtype=np.float32)
    return (own + shared[np.arange(s.classes) // s.family]) / math.sqrt(2 * width)


def _teacher(
    s: Synthetic, view: Floats, ideas: Floats, block: NDArray[np.int64], name: tuple[int, int]
) -> NDArray[np.float16]:
    """Probabilities of one teacher, float16 [N, C]."""
    rng = numpy_generator(s.seed, "teacher", *name)
    scarcity = np.full((s.classes, 1), 1.0, dtype=np.float32)
    scarcity[block] = (len(block) / s.classes) ** 0.15
    faulty = ideas + s.fault / math.sqrt(s.view) * scarcity * rng.standard_normal(ideas.shape, dtype=np.float32)
    offset = np.full(s.classes, -s.neglect, dtype=np.float32)
    offset[block] = 0
    offset -= s.sharpness / 2 * np.square(faulty).sum(axis=1)  # nearest idea, not longest
    out = np.empty((len(view), s.classes), dtype=np.float16)
    for start in range(0, len(view), _ROWS):
        logits = s.sharpness * (view[start : start + _ROWS] @ faulty.T) + offset
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[start : start + _ROWS] = odds / odds.sum(axis=1, keepdims=True)
    return out
