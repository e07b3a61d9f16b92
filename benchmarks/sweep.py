"""The paper's sweep (criterion x depth x seed, hard and soft) three ways: alone, without cache, as shipped.

``python -m benchmarks.sweep [--full] [--alone N]`` - synthetic inputs with 15 given teachers; ``--full`` is the paper's
size, 50,000 x 384 and 1,000 classes. *Alone* runs N trials drawn evenly from the grid, one after the other, each as
``csl run`` does it (own Ray, own worker group), and scales the time to all of them; ``--alone 0`` runs every trial.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.synthetic import SMALL, Synthetic, ensure
from orchestrator import ExperimentResult, run_experiment
from orchestrator.sweep import SweepResult, run_sweep
from orchestrator.sweep_plan import trial_config
from search_spaces import SearchSpace, load_space, trials

CORES = os.cpu_count() or 1


def base_config(data: Path, storage: Path, full: bool) -> dict[str, Any]:
    """What the space varies."""
    student = {"epochs": 5, "lr": 1e-3, "batch_size": 100} if full else {"epochs": 20, "lr": 1e-3, "batch_size": 100}
    return {
        "name": "bench",
        "storage": str(storage),
        "data": {"name": "arrays", "path": str(data)},
        "student": {**student, "test_curve_every": 0},
        "tracking": {"enabled": False},
    }


def compute_seconds(folder: Path) -> float:
    """Seconds of the phases of all rounds that trials below a folder computed themselves."""
    total = 0.0
    for path in folder.glob("*/results.json"):
        for rounds in json.loads(path.read_text())["chains"].values():
            metrics = [r["metrics"] for r in rounds]
            total += sum(sum(m["seconds"].values()) for m in metrics if not m["cached"])
    return total


def computed_rounds(folder: Path) -> int:
    """Rounds (of all chains) that trials below a folder computed themselves."""
    chains = [json.loads(path.read_text())["chains"] for path in folder.glob("*/results.json")]
    return sum(not r["metrics"]["cached"] for c in chains for rounds in c.values() for r in rounds)


def timed_sweep(space: SearchSpace, base: dict[str, Any], use_cache: bool) -> tuple[float, SweepResult]:
    """Wall seconds of a sweep from its call to its return, and its result."""
    start = time.perf_counter()
    result = run_sweep(space, base, use_cache=use_cache)
    return time.perf_counter() - start, result


def timed_alone(space: SearchSpace, base: dict[str, Any], count: int) -> tuple[float, int, list[ExperimentResult]]:
    """Mean wall seconds of a trial run alone under Ray Train, the number of trials run, and their results."""
    every = trials(space)
    chosen = every if count == 0 else every[:: max(1, len(every) // count)][:count]
    results, start = [], time.perf_counter()
    for overrides in chosen:
        config = trial_config(space, {**base, "compute": {"backend": "train"}}, overrides)
        results.append(run_experiment(config, use_cache=False))
    return (time.perf_counter() - start) / len(chosen), len(chosen), results


def main() -> None:
    """Run the three ways and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="50,000 x 384, 1,000 classes")
    parser.add_argument("--alone", type=int, default=6, help="trials to run alone (0: all)")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "csl-synthetic")
    options = parser.parse_args()
    data = ensure(Synthetic() if options.full else SMALL, options.data)
    # the synthetic data has no validation split; what wins is of no interest here
    space = load_space("threshold_depth").model_copy(update={"metric": "student_supervision_agreement"})
    total = len(trials(space))
    table = Table(title=f"{space.name}: {total} trials on {CORES} cores, {data.name}", title_justify="left")
    for name in ("way", "wall s", "against alone", "rounds computed", "rounds shared", "core time in compute"):
        table.add_column(name, justify="left" if name == "way" else "right")
    with tempfile.TemporaryDirectory() as folder:
        base = base_config(data, Path(folder), options.full)
        seconds, count, _ = timed_alone(space, base, options.alone)
        alone = seconds * total
        shipped, with_cache = timed_sweep(space, base, use_cache=True)
        asked = with_cache.plan.rounds_asked
        label = "each alone" if count == total else f"each alone (from {count} trials, {seconds:.1f} s each)"
        table.add_row(label, f"{alone:.0f}", "1.0 x", str(asked), "0", "-")
        uncached, without = timed_sweep(space, base, use_cache=False)
        for label, wall, result in (("sweep --no-cache", uncached, without), ("sweep as shipped", shipped, with_cache)):
            computed = computed_rounds(result.path / "trials")
            share = compute_seconds(result.path / "trials") / (wall * CORES)
            cells = (f"{wall:.0f}", f"{alone / wall:.1f} x", str(computed), str(asked - computed), f"{share:.0%}")
            table.add_row(label, *cells)
    console = Console(width=130)
    console.print(table)
    console.print(
        "reach: >= 3 x fewer rounds computed than asked for, >= 3 x less wall time than alone, > 80 % in compute"
    )


if __name__ == "__main__":
    main()
