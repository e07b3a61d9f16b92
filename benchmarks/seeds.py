"""What co-supervision gains over the naive student, over seeds: mean, spread, worst seed.

``python -m benchmarks.seeds [--seeds 10] [--first 1000] [CONFIG.yaml] [--set a.b=c ...]``. Every seed draws its own
split, teachers, features and students. Runs inline; rounds are cached, so asking again costs nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator import ExperimentResult, load_config, run_experiment
from orchestrator.display import percent


def run_seeds(config: Path | None, overrides: list[str], seeds: range, storage: str) -> list[ExperimentResult]:
    """One experiment per seed."""
    inline = ["compute.backend=inline", "tracking.enabled=false", "student.test_curve_every=0", f"storage={storage}"]
    return [run_experiment(load_config(config, [*overrides, *inline], seed)) for seed in seeds]


def spread(values: list[float]) -> str:
    """Mean +- standard deviation (worst) of shares, in points."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * deviation:.1f} (worst {100 * min(values):.1f})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1000, help="first seed")
    parser.add_argument("--storage", default=str(Path(tempfile.gettempdir()) / "csl-benchmarks"))
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    results = run_seeds(options.config, options.overrides, seeds, options.storage)
    table = Table(
        title=f"{options.seeds} seeds ({seeds[0]}..{seeds[-1]}), mean +- sd (worst seed)", title_justify="left"
    )
    for name in ("what", "test accuracy %", "PGR %"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)

    def row(label: str, accuracies: list[float | None], gaps: list[float | None]) -> None:
        known = [g for g in gaps if g is not None]
        table.add_row(label, spread([a for a in accuracies if a is not None]), spread(known) if known else "-")

    row("weak", [r.weak_accuracy for r in results], [])
    for number in range(len(results[0].rounds)):
        rounds = [r.rounds[number].metrics for r in results]
        label = f"{'naive: ' if number == 0 else ''}round {number + 1}, {rounds[0].teachers} teachers"
        row(label, [m.student_accuracy for m in rounds], [m.pgr for m in rounds])
    for name in results[0].chains:
        if name not in ("main", "ceiling"):
            last = [r.chains[name][-1].metrics for r in results]
            row(name, [m.student_accuracy for m in last], [m.pgr for m in last])
    row("ceiling", [r.ceiling_accuracy for r in results], [])
    console = Console(width=120)
    console.print(table)
    gains = [(r.rounds[-1].metrics.pgr or 0) - (r.rounds[0].metrics.pgr or 0) for r in results]
    console.print(f"gain of the last round over the naive student, paired by seed, in PGR points: {spread(gains)}")
    lift = [(r.rounds[-1].metrics.student_accuracy or 0) - (r.naive_accuracy or 0) for r in results]
    console.print(
        f"... in accuracy points: {spread(lift)}; seeds with a gain: {sum(g > 0 for g in gains)}/{len(gains)}"
    )
    kept = [r.rounds[-1].metrics.keep_rate for r in results]
    console.print(f"keep rate of the last round: {percent(statistics.mean(kept))}")


if __name__ == "__main__":
    main()
