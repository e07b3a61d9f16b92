"""Features and labels that exist already: one ``.npz`` or a folder of (memory-mapped) ``.npy`` files.

``features [N, D]`` float, ``labels [N]`` integer; optional ``split [N]`` (0 student, 1 validation, 2 test,
3 teacher), ``ids [N]`` (unique), and ``teacher_{level}_{i} [N, C]`` probabilities, both numbers from 0.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.data.dataset import (
    SPLIT_CODES,
    DataInfo,
    Dataset,
    GivenTeacher,
    Splits,
    seeded_splits,
)
from orchestrator.data.registry import DATASETS, DatasetOptions
from orchestrator.data.splits import SplitShares
from orchestrator.data.store import Store
from orchestrator.errors import ConfigError
from orchestrator.identity import array_digest, digest, numpy_generator

_TEACHER = re.compile(r"teacher_(\d+)_(\d+)")
_CHUNK_ROWS = 256
"""Rows checked at a time: few enough for the temporaries to stay in the processor's cache."""


class ArraysOptions(DatasetOptions):
    """Arrays on disk."""

    name: Literal["arrays"] = "arrays"

    path: str
    """A ``.npz`` file or a folder of ``.npy`` files, absolute or relative to the working directory."""

    n_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes; None: width of the teachers' probabilities, else the largest label + 1."""

    standardize: bool = True
    """Give every feature mean 0 and standard deviation 1 over the student's samples."""

    splits: SplitShares = SplitShares()
    """Shares of a seeded split, used when there is no ``split`` array."""


@DATASETS.register(ArraysOptions)
class ArraysData:
    """Builder of the `arrays` data set."""

    @staticmethod
    def describe(options: ArraysOptions, seed: int) -> DataInfo:
        arrays, problems = _open(options)
        if problems:
            return DataInfo(0, 0, dict.fromkeys(SPLIT_CODES, 0), problems=tuple(problems))
        teachers = _teachers(arrays)
        problems = _shape_problems(arrays) or _content_problems(arrays, options)
        given = {level: len(indices) for level, indices in teachers.items()}
        if problems:
            return DataInfo(0, 0, dict.fromkeys(SPLIT_CODES, 0), given, tuple(problems))
        if "split" not in arrays:
            problems += options.splits.problems("data.splits", needed=("student", "test"))
        codes = _codes(arrays, options, seed)
        counts = Splits.from_codes(codes).counts()
        problems += [f"data.split: needs at least one {s} sample (got 0)" for s in ("student", "test") if not counts[s]]
        return DataInfo(_n_classes(arrays, options), arrays["features"].shape[1], counts, given, tuple(problems))

    @staticmethod
    def load(options: ArraysOptions, seed: int, store: Store) -> Dataset:
        arrays, problems = _open(options)
        if problems:
            raise ConfigError(problems)
        splits = Splits.from_codes(_codes(arrays, options, seed))
        inputs = np.asarray(arrays["features"], dtype=np.float32)
        encoder = {}
        features = inputs
        if options.standardize:
            seen = inputs[splits.student]
            scale = seen.std(axis=0, dtype=np.float64)
            scale[scale == 0] = 1.0  # a constant feature stays at 0
            shift = seen.mean(axis=0, dtype=np.float64)
            encoder = {"shift": shift.astype(np.float32), "scale": scale.astype(np.float32)}
            features = (inputs - encoder["shift"]) / encoder["scale"]
        names = sorted(n for n in arrays if _TEACHER.fullmatch(n))
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            teacher_digests = list(pool.map(lambda n: array_digest(arrays[n]), names))
        given = {}
        for name, teacher_digest in zip(names, teacher_digests, strict=True):
            array = arrays[name]
            source = Path(str(array.filename)) if isinstance(array, np.memmap) else array
            given[_numbers(name)] = GivenTeacher(source, teacher_digest)
        return Dataset(
            name="arrays",
            n_classes=_n_classes(arrays, options),
            inputs=inputs,
            features=features,
            labels=np.asarray(arrays["labels"], dtype=np.int64),
            splits=splits,
            digest=digest(array_digest(inputs), options.standardize, array_digest(_codes(arrays, options, seed))),
            encoder=encoder,
            given_teachers=given,
        )


def _open(options: ArraysOptions) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """All arrays by name, and what is wrong with the files themselves."""
    path = Path(options.path).expanduser()
    found: dict[str, NDArray[Any]] = {}
    problems: list[str] = []
    if not path.exists():
        return {}, [f"data.path: no such file or folder (got {options.path!r})"]
    if path.is_dir():
        for file in sorted(path.glob("*.npy")):
            try:
                found[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                problems.append(f"data.path: {file.name} must be a readable .npy array ({error})")
    else:
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on a damaged file
            problems.append(f"data.path: must be a readable .npz or a folder of .npy ({path.name}: {error})")
    if not problems:
        problems = [f"data.{n}: array is missing in {options.path!r}" for n in ("features", "labels") if n not in found]
    return found, problems


def _numbers(name: str) -> tuple[int, int]:
    match = _TEACHER.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2])


def _teachers(arrays: dict[str, NDArray[Any]]) -> dict[int, list[int]]:
    """Level -> sorted teacher numbers that are given."""
    levels: dict[int, list[int]] = {}
    for level, index in sorted(_numbers(n) for n in arrays if _TEACHER.fullmatch(n)):
        levels.setdefault(level, []).append(index)
    return levels


def _shape_problems(arrays: dict[str, NDArray[Any]]) -> list[str]:
    """Wrong dtypes, ranks, lengths and teacher numbers."""
    features, labels = arrays["features"], arrays["labels"]
    found = []
    if features.ndim != 2 or features.dtype.kind != "f":
        found.append(f"data.features: must be float [N, D] (got {features.dtype} {list(features.shape)})")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        found.append(f"data.labels: must be integer [N] (got {labels.dtype} {list(labels.shape)})")
    for name in ("split", "ids"):
        if name in arrays and arrays[name].ndim != 1:
            found.append(f"data.{name}: must be one value per sample, [N] (got {list(arrays[name].shape)})")
    if "split" in arrays and arrays["split"].dtype.kind not in "iu":
        found.append(f"data.split: must be integer (got {arrays['split'].dtype})")
    if features.ndim == 2 and 0 in features.shape:
        found.append(f"data.features: must have samples and features (got {list(features.shape)})")
    rows = features.shape[0] if features.ndim else 0
    widths = set()
    for name, array in arrays.items():
        if array.ndim and array.shape[0] != rows:
            found.append(f"data.{name}: must have as many rows as features, {rows} (got {array.shape[0]})")
        if _TEACHER.fullmatch(name):
            if array.ndim != 2 or array.dtype.kind != "f":
                found.append(f"data.{name}: must be float [N, C] (got {array.dtype} {list(array.shape)})")
            else:
                widths.add(array.shape[1])
    if len(widths) > 1:
        found.append(f"data.teacher_*: must all have the same number of classes (got {sorted(widths)})")
    for level, indices in _teachers(arrays).items():
        if indices != list(range(len(indices))):
            found.append(f"data.teacher_{level}_*: must be numbered from 0 without gaps (got {indices})")
    return found


def _content_problems(arrays: dict[str, NDArray[Any]], options: ArraysOptions) -> list[str]:
    """NaN, labels out of range, unknown split codes, repeated ids, rows that are no distribution."""
    found = []
    if bad := _bad_rows(arrays["features"]):
        found.append(f"data.features: must be finite (got NaN or infinity in {bad} rows)")
    n_classes = _n_classes(arrays, options)
    low, high = int(arrays["labels"].min(initial=0)), int(arrays["labels"].max(initial=0))
    if n_classes > max(2, len(arrays["labels"])) and options.n_classes is None:
        found.append(
            f"data.labels: the largest label means {n_classes} classes, more than the {len(arrays['labels'])} samples "
            f"(got {high}); number classes from 0, or set data.n_classes"
        )
    if low < 0 or high >= n_classes:
        found.append(f"data.labels: must lie in 0..{n_classes - 1} (got {low}..{high})")
    if "split" in arrays and (unknown := set(np.unique(arrays["split"]).tolist()) - set(SPLIT_CODES.values())):
        found.append(f"data.split: codes are {SPLIT_CODES} (got {sorted(unknown)})")
    if "ids" in arrays and (repeated := len(arrays["ids"]) - len(np.unique(arrays["ids"]))):
        found.append(f"data.ids: must be unique (got {repeated} repeated)")
    for name in sorted(n for n in arrays if _TEACHER.fullmatch(n)):
        array = arrays[name]
        if options.n_classes is not None and array.shape[1] != options.n_classes:
            found.append(f"data.{name}: must have data.n_classes = {options.n_classes} columns (got {array.shape[1]})")
        if bad := _bad_rows(array, signed=False):
            found.append(f"data.{name}: must be finite and not negative (got NaN, infinity or below 0 in {bad} rows)")
        else:
            sample = np.asarray(array[:: max(1, len(array) // 256)], dtype=np.float32)
            sums = sample.sum(axis=1)
            if not np.allclose(sums, 1.0, atol=0.02):
                got = f"sums {sums.min():.3g}..{sums.max():.3g}"
                found.append(f"data.{name}: rows must be probabilities that sum to 1 (got {got})")
    return found


def _bad_rows(array: NDArray[Any], signed: bool = True) -> int:
    """Number of rows with NaN or infinity (as float32), or below 0 unless ``signed``.

    Half floats are tested by their bits (20 x faster).
    """
    bad = 0
    for start in range(0, len(array), _CHUNK_ROWS):
        chunk = array[start : start + _CHUNK_ROWS]
        if chunk.dtype == np.float16:
            # ascontiguousarray: a view of the bits needs plain memory
            bits = np.ascontiguousarray(chunk).view(np.uint16)
            wrong = (bits & 0x7C00) == 0x7C00
            if not signed:
                wrong |= bits > 0x8000  # the sign bit, but for -0
        else:
            with np.errstate(over="ignore"):
                wrong = ~np.isfinite(chunk.astype(np.float32))
            if not signed:
                wrong |= chunk < 0
        if wrong.any():
            bad += int(wrong.any(axis=1).sum())
    return bad


def _n_classes(arrays: dict[str, NDArray[Any]], options: ArraysOptions) -> int:
    if options.n_classes is not None:
        return options.n_classes
    widths = [a.shape[1] for name, a in arrays.items() if _TEACHER.fullmatch(name)]
    return widths[0] if widths else int(arrays["labels"].max(initial=0)) + 1


def _codes(arrays: dict[str, NDArray[Any]], options: ArraysOptions, seed: int) -> NDArray[np.int8]:
    """One split code per row. A seeded split looks at nothing but the number of rows."""
    if "split" in arrays:
        return np.asarray(arrays["split"], dtype=np.int8)
    shares = options.splits.model_dump()
    return seeded_splits(arrays["features"].shape[0], shares, numpy_generator(seed, "split"))
