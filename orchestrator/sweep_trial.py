"""One trial of a sweep, as it runs inside a Ray Tune actor, and the progress of all of them in the driver."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.chains import MAIN
from orchestrator.display import Silent
from orchestrator.evaluation import RoundMetrics
from orchestrator.experiment import run_experiment
from orchestrator.prepare import SweepShare, experiment_identity, folder_name
from orchestrator.sweep_plan import data_key, trial_config
from orchestrator.teacher_pool import ActorTeachers
from search_spaces import SearchSpace

SCALARS = tuple(f.name for f in fields(RoundMetrics) if f.type in ("float", "int", "float | None", "bool"))
"""Numbers of a round that Tune gets to see."""


@dataclass(frozen=True)
class TrialSetup:
    """What every trial of a sweep is given; in Ray's object store once."""

    space: SearchSpace
    base: dict[str, Any]
    folder: Path
    """Where the trials' folders go."""
    shares: dict[str, tuple[Any, Any]]
    """`data_key` -> references to the data set and to the student's view of it."""
    teachers: ActorTeachers
    use_cache: bool


class _Report(Silent):
    """Reports each round of the method to Tune, which may stop the trial there."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def round(self, metrics: RoundMetrics, rounds: int) -> None:
        """One result per round."""
        if metrics.chain == MAIN:
            tune.report({name: getattr(metrics, name) for name in SCALARS} | {"folder": self._folder})


def run_trial(params: dict[str, Any], setup: TrialSetup) -> None:
    """The trainable: one experiment; its folder lies beside those of the other trials."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    config = trial_config(setup.space, setup.base, params["overrides"])
    dataset_ref, view_ref = setup.shares[data_key(config)]
    share = SweepShare(ray.get(dataset_ref), ray.get(view_ref), setup.teachers, setup.folder)
    folder = folder_name(config, experiment_identity(config, share.dataset), setup.use_cache)
    run_experiment(config, use_cache=setup.use_cache, display=_Report(folder), sweep=share)


class Progress(tune.Callback):  # type: ignore[misc]
    """One table, refreshed in place; where there is no terminal, a line now and then.

    Tune stores its callbacks for a later restore, and a console cannot be stored: it belongs to the class.
    """

    console: Console | None = None

    def __init__(self, total: int, metric: str, mode: str) -> None:
        self._total, self._metric = total, metric
        self._better = max if mode == "max" else min
        self._started, self._printed = time.monotonic(), 0.0
        self._live: Live | None = None
        self.counts = {"running": 0, "done": 0, "failed": 0, "rounds computed": 0, "rounds shared": 0}
        self.best: float | None = None

    def setup(self, **info: Any) -> None:
        """See tune.Callback."""
        if self.console is not None and self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See tune.Callback."""
        self.counts["running"] = sum(t.status == "RUNNING" for t in trials)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See tune.Callback."""
        self.counts["rounds shared" if result["cached"] else "rounds computed"] += 1
        value = result.get(self._metric)
        if value is not None:
            self.best = value if self.best is None else self._better(self.best, value)
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See tune.Callback."""
        self.counts["done"] += 1
        self._show(always=self.counts["done"] == self._total)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See tune.Callback."""
        self.counts["failed"] += 1
        self._show(always=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """See tune.Callback."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_live": None}

    def _show(self, always: bool = False) -> None:
        elapsed = time.monotonic() - self._started
        finished = self.counts["done"] + self.counts["failed"]
        left = f"{elapsed / finished * (self._total - finished):.0f} s left" if finished else "..."
        values = {**self.counts, f"best {self._metric}": "-" if self.best is None else f"{self.best:.4f}"}
        if self._live is not None:
            table = Table(title=f"{finished}/{self._total} trials, {elapsed:.0f} s, {left}", title_justify="left")
            for name in values:
                table.add_column(name, justify="right")
            table.add_row(*(str(v) for v in values.values()))
            self._live.update(table)
        elif self.console is not None and (always or time.monotonic() - self._printed > 5):
            self._printed = time.monotonic()
            text = ", ".join(f"{name} {value}" for name, value in values.items())
            self.console.print(
                f"{elapsed:6.1f} s  {finished}/{self._total} trials: {text}", highlight=False, soft_wrap=True
            )
