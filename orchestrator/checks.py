"""Do settings and data fit together? Every rule that needs more than one field, all answered at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import ExperimentConfig
from orchestrator.data import DATASETS
from orchestrator.data.dataset import DataInfo
from orchestrator.filters import LocalGlobal, TopKRate
from orchestrator.method.hierarchy import Blocks, Level, block_problems, even_blocks

NEEDS_STUDENT = ("student", "soft", "agreement")
"""Assignments that ask the previous student, which the first round does not have."""


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    info: DataInfo
    levels: tuple[Level, ...]
    problems: tuple[str, ...]


def check(config: ExperimentConfig) -> Checked:
    """Check a parsed configuration against its data; starts nothing and writes nothing."""
    info = DATASETS.builder(config.data.name).describe(config.data, config.seed)  # type: ignore[attr-defined]
    problems = [*info.problems, *_setting_problems(config), *_storage_problems(config)]
    levels: tuple[Level, ...] = ()
    if info.n_classes:  # 0: the data could not be read, and said so
        problems += _hierarchy_problems(config, info)
        problems += _filter_problems(config, info.n_classes)
        if not problems:
            levels = build_levels(config, info.n_classes)
    return Checked(info, levels, tuple(problems))


def build_levels(config: ExperimentConfig, n_classes: int) -> tuple[Level, ...]:
    """The levels of a checked configuration."""
    return tuple(Level(_blocks(config, n_classes, spec)) for spec in config.hierarchy.levels)


def _blocks(config: ExperimentConfig, n_classes: int, spec: int | tuple[tuple[int, ...], ...]) -> Blocks:
    return even_blocks(n_classes, spec, config.hierarchy.class_order) if isinstance(spec, int) else spec


def _hierarchy_problems(config: ExperimentConfig, info: DataInfo) -> list[str]:
    found = []
    order = config.hierarchy.class_order
    if order is not None and sorted(order) != list(range(info.n_classes)):
        found.append(
            f"hierarchy.class_order: must list each class 0..{info.n_classes - 1} once (got {len(order)} entries, "
            f"{len(set(order))} different)"
        )
    for number, spec in enumerate(config.hierarchy.levels):
        field = f"hierarchy.levels[{number}]"
        teachers = spec if isinstance(spec, int) else len(spec)
        if isinstance(spec, int):
            if spec > info.n_classes:
                found.append(f"{field}: cannot be more than the {info.n_classes} classes of the data (got {spec})")
        else:
            found += [f"{field}: {problem}" for problem in block_problems(spec, info.n_classes)]
        if number == 0 and teachers > 1 and config.rounds.assignment in NEEDS_STUDENT:
            found.append(
                f"{field}: the first level must have 1 teacher, because rounds.assignment = "
                f"{config.rounds.assignment} asks a student that does not exist yet (got {teachers})"
            )
        given = info.given_teachers.get(number)
        if given is not None and given != teachers:
            found.append(f"{field}: the data holds {given} teachers for this level (got {teachers})")
        if given is None and not info.counts["teacher"]:
            found.append(
                f"{field}: no array teacher_{number}_* in the data and no samples of split `teacher` to train "
                f"{teachers} teachers (got 0 samples)"
            )
    return found


def _filter_problems(config: ExperimentConfig, n_classes: int) -> list[str]:
    found = []
    for number, options in enumerate(config.rounds.filters):
        if isinstance(options, TopKRate | LocalGlobal) and options.k > n_classes:
            found.append(f"rounds.filters[{number}].k: cannot be more than the {n_classes} classes (got {options.k})")
    return found


def _storage_problems(config: ExperimentConfig) -> list[str]:
    """Whether the storage folder can be made or written to."""
    path = Path(config.storage).expanduser().absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir():
        return [f"storage: must be a folder, and {there} is a file (got {config.storage!r})"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"storage: must be writable, and {there} is not (got {config.storage!r})"]
    return []


def _setting_problems(config: ExperimentConfig) -> list[str]:
    """Settings that contradict each other."""
    found = []
    compute, student = config.compute, config.student
    if compute.backend == "inline" and compute.workers > 1:
        found.append(f"compute.workers: must be 1 when compute.backend = inline (got {compute.workers})")
    if compute.workers > student.batch_size:
        found.append(
            f"compute.workers: cannot be more than student.batch_size = {student.batch_size} (got {compute.workers})"
        )
    if config.device == "cpu" and compute.gpus_per_worker:
        found.append(f"compute.gpus_per_worker: must be 0 when device = cpu (got {compute.gpus_per_worker})")
    if config.device == "cuda" and compute.backend == "train" and not compute.gpus_per_worker:
        found.append("compute.gpus_per_worker: must be above 0 when device = cuda (workers see no GPU; got 0)")
    default = type(student.auxiliary_confidence)()
    if student.loss == "cross_entropy" and student.auxiliary_confidence != default:
        found.append("student.auxiliary_confidence: has no effect unless student.loss = auxiliary_confidence")
    if len(set(config.baselines)) != len(config.baselines):
        found.append(f"baselines: each at most once (got {list(config.baselines)})")
    return found
