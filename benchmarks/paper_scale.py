"""A whole experiment at the paper's scale: 40,000 + 10,000 samples, 1,000 classes, 15 teachers, four rounds.

``python -m benchmarks.paper_scale [--precision fp32|bf16|both] [--size small|full] [--plain]`` - each experiment runs
inline into fresh storage; the clock runs from the call of `run_experiment` to its return. Making the data is not part
of it (kept under ``--data``), nor is the import of torch; the ceiling, which the method itself does not need, is
trained by a second call that finds the four rounds finished.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plain_reference import co_supervise
from benchmarks.synthetic import SMALL, Synthetic, ensure
from orchestrator import ExperimentConfig, run_experiment
from orchestrator.experiment import prepare
from orchestrator.results import ExperimentResult
from orchestrator.teacher_pool import LocalPool

PHASES = ("teachers", "assignment", "training", "logits")
SETTINGS: dict[str, Any] = {"epochs": 5, "lr": 1e-3, "batch_size": 100}
SMALL_EPOCHS = 50
"""A tenth of the samples makes a tenth of the updates an epoch."""
TOP_K = 3
ANCHOR = "101 s: the paper's released code on 2 such cores"
REACH = "12 s"


@dataclass(frozen=True)
class Timed:
    """One experiment and where its time went."""

    result: ExperimentResult
    """With the ceiling."""
    seconds: float
    """Wall time of the call without the ceiling."""
    outside: dict[str, float]
    """Seconds outside the rounds by what they were spent on."""


def experiment(data: Path, student: dict[str, Any], precision: str, threads: int) -> Timed:
    """Run the four rounds on the clock, then the ceiling."""
    with tempfile.TemporaryDirectory(prefix="csl-paper-scale-") as storage:
        settings: dict[str, Any] = {
            "name": "paper-scale",
            "storage": storage,
            "device": "cpu",
            "data": {"name": "arrays", "path": str(data), "standardize": True},
            "hierarchy": {"levels": [1, 2, 4, 8]},
            "student": {**student, "precision": precision, "test_curve_every": 0},
            "rounds": {"supervision": "hard", "filters": [{"kind": "topk_rate", "k": TOP_K}]},
            "compute": {"backend": "inline", "cpus_per_worker": threads},
            "tracking": {"enabled": False},
        }
        with _stopwatch() as outside:
            start = time.perf_counter()
            alone = run_experiment(ExperimentConfig.model_validate({**settings, "baselines": []}))
            seconds = time.perf_counter() - start
        result = run_experiment(ExperimentConfig.model_validate({**settings, "baselines": ["ceiling"]}))
        inside = sum(sum(r.metrics.seconds.values()) for r in alone.rounds)
        outside["storing and measuring rounds"] = seconds - inside - sum(outside.values())
        return Timed(result, seconds, outside)


@contextmanager
def _stopwatch() -> Iterator[dict[str, float]]:
    """Seconds spent outside the rounds, filled in while the block runs."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

        return call

    loading = timed("checking, hashing and loading the data", prepare)
    asking = timed("asking all teachers about the test split", LocalPool.classes)
    with (
        mock.patch("orchestrator.experiment.prepare", loading),
        mock.patch.object(LocalPool, "classes", asking),
    ):
        yield seconds


def report(timed: Timed, precision: str, threads: int, title: str) -> Table:
    """Seconds by round and phase, accuracies and PGR."""
    table = Table(title=f"{title}, {precision}, {threads} threads")
    for column in ("", *PHASES, "seconds", "kept", "student", "PGR"):
        table.add_column(column, justify="right" if column else "left")
    result = timed.result
    assert result.weak_accuracy is not None
    assert result.ceiling_accuracy is not None

    def row(name: str, metrics: Any) -> list[str]:
        phases = [f"{metrics.seconds.get(phase, 0.0):.2f}" for phase in PHASES]
        return [name, *phases, f"{sum(metrics.seconds.values()):.2f}"]

    for r in result.rounds:
        m = r.metrics
        pgr = "-" if m.pgr is None else f"{m.pgr:.1%}"
        numbers = f"{m.keep_rate:.1%}", f"{m.student_accuracy:.4f}", pgr
        table.add_row(*row(f"round {m.round}, teachers: {m.teachers}", m), *numbers)
    for name, seconds in timed.outside.items():
        table.add_row(name, "", "", "", "", f"{seconds:.2f}", "", "", "")
    table.add_section()
    table.add_row("[bold]whole experiment", "", "", "", "", f"[bold]{timed.seconds:.2f}", "", "", "")
    table.add_row("weak teacher", "", "", "", "", "", "", f"{result.weak_accuracy:.4f}", "0.0%")
    ceiling = result.chains["ceiling"][0].metrics
    table.add_row(*row("ceiling (not in the sum)", ceiling), "", f"{result.ceiling_accuracy:.4f}", "100.0%")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "csl-synthetic")
    parser.add_argument("--plain", action="store_true", help="also run benchmarks.plain_reference on the inputs")
    options = parser.parse_args()
    console = Console(width=120)
    sizes, student = Synthetic(), SETTINGS
    if options.size == "small":
        sizes, student = SMALL, {**SETTINGS, "epochs": SMALL_EPOCHS}
    data = ensure(sizes, options.data)
    title = f"paper scale: {sizes.train} + {sizes.test} x {sizes.features}, {sizes.classes} classes, 1/2/4/8 teachers"
    lines: dict[str, tuple[list[float], float]] = {}
    for precision in ("fp32", "bf16") if options.precision == "both" else (options.precision,):
        timed = experiment(data, student, precision, options.threads)
        console.print(report(timed, precision, options.threads, title))
        accuracies = [r.metrics.student_accuracy or 0.0 for r in timed.result.rounds]
        lines[f"this product, {precision}"] = accuracies, timed.seconds
    if options.plain:
        torch.set_num_threads(options.threads)
        lines["plain PyTorch, the same method"] = co_supervise(data, sizes.levels, k=TOP_K, **student)
    table = Table(title="student accuracy per level, and seconds")
    for column in ("", *(f"level {number}" for number in range(1, len(sizes.levels) + 1)), "seconds"):
        table.add_column(column, justify="right" if column else "left")
    for name, (accuracies, seconds) in lines.items():
        table.add_row(name, *(f"{a:.4f}" for a in accuracies), f"{seconds:.1f}")
    console.print(table)
    if options.size == "full":
        console.print(f"anchor - {ANCHOR}\nreach - {REACH}")


if __name__ == "__main__":
    main()
