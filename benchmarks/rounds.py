"""What a round costs beyond compute, and what starting costs.

``python -m benchmarks.rounds`` - the embedded experiment as ``csl run`` runs it, under Ray Train and inline, each
several times with no round cached. The start of the private Ray (``ray.init``) is told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ray
from rich.console import Console
from rich.table import Table

from orchestrator import ExperimentConfig, load_config, run_experiment
from orchestrator.evaluation import RoundMetrics


class Stopwatch:
    """A display that notes when each round arrived."""

    def __init__(self) -> None:
        self.rounds: list[tuple[float, RoundMetrics]] = []

    def epoch(self, chain: str, number: int, rounds: int, epoch: int, epochs: int, loss: float) -> None:
        """Nothing."""

    def round(self, metrics: RoundMetrics, rounds: int) -> None:
        """Note the time."""
        self.rounds.append((time.time(), metrics))

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Overhead:
    """Seconds of one experiment that are not compute."""

    ray: float
    """Starting Ray."""
    start: float
    """From the call to the first round, Ray's own start excluded."""
    rounds: list[float]
    """Each later round."""
    end: float
    """After the last round, until the call returns (Ray's shutdown included)."""


def measure(config: ExperimentConfig) -> Overhead:
    """Run one experiment on the clock."""
    watch, ray_seconds, ray_init = Stopwatch(), [0.0], ray.init

    def timed_init(*args: Any, **kwargs: Any) -> Any:
        begin = time.time()
        context = ray_init(*args, **kwargs)
        ray_seconds.append(time.time() - begin)
        return context

    start = time.time()
    with mock.patch.object(ray, "init", timed_init):
        result = run_experiment(config, use_cache=False, display=watch)
    end = time.time()
    events = result.path / "events.jsonl"
    if events.exists():  # where the student trained; the driver hears of it a little later
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        arrivals = [line["at"] for line in lines if line["event"] == "round"]
    else:
        arrivals = [at for at, _ in watch.rounds]
    compute = [sum(m.seconds.values()) if not m.cached else 0.0 for _, m in watch.rounds]
    beyond = [b - a - c for a, b, c in zip(arrivals, arrivals[1:], compute[1:], strict=False)]
    ray_start = sum(ray_seconds)
    return Overhead(ray_start, arrivals[0] - compute[0] - start - ray_start, beyond, end - arrivals[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    table = Table(title=f"embedded experiment, 11 rounds, median of {options.repeats}; seconds", title_justify="left")
    for name in (
        "backend",
        "Ray itself",
        "start-up",
        "reach",
        "a round beyond compute",
        "worst",
        "reach",
        "after the last round",
    ):
        table.add_column(name, justify="left" if name == "backend" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for backend, reach in (("train", "8"), ("inline", "0.1")):
            found: list[Overhead] = []
            for repeat in range(options.repeats + 1):  # the first makes the data and warms this process up
                overrides = [f"compute.backend={backend}", f"storage={folder}", f"name={backend}{repeat}"]
                found.append(measure(load_config(None, [*overrides, "tracking.enabled=false"])))
            found = found[1:]
            beyond = [seconds for one in found for seconds in one.rounds]
            table.add_row(
                {"train": "Ray Train, 1 worker", "inline": "inline"}[backend],
                f"{statistics.median(f.ray for f in found):.2f}",
                f"{statistics.median(f.start for f in found):.2f}",
                reach,
                f"{statistics.median(beyond):.3f}",
                f"{max(beyond):.3f}",
                "0.1",
                f"{statistics.median(f.end for f in found):.2f}",
            )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
