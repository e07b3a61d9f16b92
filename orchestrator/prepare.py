"""From a configuration to everything a run needs, before anything is started."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from orchestrator.chains import Chain, plan_chains
from orchestrator.checks import build_levels, check
from orchestrator.config import ExperimentConfig
from orchestrator.data import DATASETS
from orchestrator.data.dataset import Dataset
from orchestrator.data.store import Store
from orchestrator.display import Display
from orchestrator.errors import ConfigError
from orchestrator.identity import array_digest, digest
from orchestrator.job import StudentJob, StudentView
from orchestrator.loading import dump_yaml
from orchestrator.method.hierarchy import Level
from orchestrator.teacher_host import TeacherSpec, TeacherTask
from orchestrator.teacher_pool import ActorTeachers, make_specs, make_task

NOT_IDENTITY = ("name", "storage", "device", "compute", "tracking")
"""Settings that say where and under which name an experiment runs, not what it computes."""


@dataclass(frozen=True)
class SweepShare:
    """What all trials of a sweep on the same data and seed have in common."""

    dataset: Dataset
    view: StudentView
    teachers: ActorTeachers
    folder: Path
    """Where the trials' folders go."""


@dataclass(frozen=True)
class Prepared:
    """An experiment, checked and planned."""

    config: ExperimentConfig
    dataset: Dataset
    levels: tuple[Level, ...]
    chains: tuple[Chain, ...]
    specs: Sequence[TeacherSpec]
    task: TeacherTask
    identity: str
    """Digest of what the experiment computes, data included."""
    run_dir: Path
    cache: Path
    """Folder of the round cache: shared in ``storage``, or the run's own."""
    shared_view: StudentView | None = None

    @property
    def job(self) -> StudentJob:
        """What to train."""
        return StudentJob(self.config, self.levels, self.chains, self.cache)

    @property
    def run_name(self) -> str:
        """Name for Ray Train, which resumes by name alone: so it carries everything that could differ."""
        return f"student-{digest(self.identity, [r.key for c in self.chains for r in c.rounds])[:12]}"

    def view(self) -> StudentView:
        """The data as the student's training sees it; one copy for all trials of a sweep."""
        return self.shared_view or student_view(self.dataset)

    def oracle_labels(self) -> NDArray[np.int64] | None:
        """Ground truth of the student's samples, only if a chain is an upper bound that needs it."""
        if not any(chain.sees_truth for chain in self.chains):
            return None
        return self.dataset.labels[self.dataset.splits.student]


def prepare(config: ExperimentConfig, use_cache: bool = True, sweep: SweepShare | None = None) -> Prepared:
    """Check, load the data and plan the chains.

    Args:
        config: the configuration.
        use_cache: False: rounds of other experiments are not looked up; the run computes all its own.
        sweep: what a sweep has checked and loaded already for all its trials.

    Raises:
        ConfigError: with all mistakes; nothing is written then.
    """
    storage = Path(config.storage).expanduser().resolve()
    if sweep is None:
        checked = check(config)
        if checked.problems:
            raise ConfigError(checked.problems)
        dataset, folder = load_dataset(config), storage / "experiments"
    else:
        dataset, folder = sweep.dataset, sweep.folder
    levels = build_levels(config, dataset.n_classes)
    specs = make_specs(config, dataset, levels)
    identity = experiment_identity(config, dataset)
    run_dir = folder / folder_name(config, identity, use_cache)
    return Prepared(
        config=config,
        dataset=dataset,
        levels=levels,
        chains=plan_chains(config, dataset, levels),
        specs=specs,
        task=make_task(config, dataset, specs, storage / "teachers"),
        identity=identity,
        run_dir=run_dir,
        cache=storage / "rounds" if use_cache else run_dir / "rounds",
        shared_view=None if sweep is None else sweep.view,
    )


@contextmanager
def opened(prepared: Prepared, use_cache: bool, display: Display) -> Iterator[None]:
    """The run's folder, for this process alone: a second run of the same experiment waits and finds it finished."""
    run_dir = prepared.run_dir
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir.parent / f".{run_dir.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        display.note("another process is running this experiment: waiting for it")
        lock.acquire()
    try:
        if not use_cache and (run_dir / "results.json").exists():
            shutil.rmtree(run_dir)  # asked for afresh; an unfinished one is resumed instead
        run_dir.mkdir(exist_ok=True)
        (run_dir / "config.yaml").write_text(dump_yaml(prepared.config))
        yield
    finally:
        lock.release()


def folder_name(config: ExperimentConfig, identity: str, use_cache: bool) -> str:
    """Name of a run's folder: the same for the same experiment."""
    return f"{config.name}-{identity[:8]}" + ("" if use_cache else "-nocache")


def load_dataset(config: ExperimentConfig) -> Dataset:
    """The data of a checked configuration; what is expensive is kept in the storage folder."""
    store = Store(Path(config.storage).expanduser().resolve() / "data")
    builder = DATASETS.builder(config.data.name)  # type: ignore[attr-defined]
    return builder.load(config.data, config.seed, store)


def student_view(dataset: Dataset) -> StudentView:
    """The data as the student's training sees it: features, no labels."""
    return StudentView(
        train=dataset.features[dataset.splits.student],
        validation=dataset.features[dataset.splits.validation],
        test=dataset.features[dataset.splits.test],
        rows=dataset.splits.student,
        n_classes=dataset.n_classes,
    )


def experiment_identity(config: ExperimentConfig, dataset: Dataset) -> str:
    """Digest of all settings that matter to the result, and of the data with its ground truth."""
    settings: dict[str, Any] = {k: v for k, v in config.to_dict().items() if k not in NOT_IDENTITY}
    if hasattr(config.data, "path"):
        del settings["data"]["path"]  # the content counts, not where it lies
    teachers = sorted([*name, given.digest] for name, given in dataset.given_teachers.items())
    return digest(settings, dataset.digest, array_digest(dataset.labels), teachers)
