"""Ray Tune over a search space: one teacher pool, one copy of the data, no round computed twice."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from rich.console import Console

from orchestrator.config import ExperimentConfig
from orchestrator.display import Lines, Silent
from orchestrator.errors import ConfigError
from orchestrator.identity import digest
from orchestrator.journal import Journal, read_journal
from orchestrator.loading import dump_yaml
from orchestrator.prepare import student_view
from orchestrator.ray_session import ray_session
from orchestrator.sweep_groups import abandoned_groups_freed
from orchestrator.sweep_interrupt import interruptible
from orchestrator.sweep_plan import SweepPlan, plan_sweep, trial_config
from orchestrator.sweep_table import best_trial, tidy
from orchestrator.sweep_trial import Progress, TrialSetup
from orchestrator.sweep_tuner import make_tuner
from orchestrator.teacher_pool import ActorPool
from orchestrator.tracking.start import Delivery
from search_spaces import SearchSpace, check_space, trial_count

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepResult:
    """What `run_sweep` returns."""

    grid: tune.ResultGrid
    """Ray Tune's results."""
    table: pd.DataFrame
    """One row per trial and round."""
    path: Path
    """The sweep's folder: table, figures, trials."""
    plan: SweepPlan
    best: Path | None
    """Folder of the best trial by the space's (validation) metric, averaged over seeds."""
    failures: dict[str, str]
    """Trial -> its error."""
    rounds_computed: int
    """Rounds of the method that were computed rather than found or shared."""


def run_sweep(
    space: SearchSpace,
    base: dict[str, Any] | None = None,
    *,
    concurrency: int | None = None,
    resume: bool = False,
    use_cache: bool = True,
    console: Console | None = None,
) -> SweepResult:
    """Run a sweep.

    Args:
        space: the search space.
        base: configuration tree that the space varies; trials run inline unless it sets ``compute.backend``.
        concurrency: trials at a time; None: as many as the cluster has room for.
        resume: go on with an interrupted sweep of the same space and base.
        use_cache: False: every trial computes all its rounds.
        console: shows progress; None: silent.

    Raises:
        ConfigError: space or configuration are wrong; nothing was written.
    """
    space, base = _absolute(space), _absolute_paths(_inline_by_default(base or {}))
    problems = check_space(space, base)
    if problems:
        raise ConfigError(problems, f"space {space.name}")
    plan = plan_sweep(space, base, use_cache)
    overrides = plan.trials[0] if plan.trials else {"seed": space.seeds[0]}
    config = trial_config(space, base, overrides)
    _announce(space, plan, console)
    path = _folder(space, base, config, resume, use_cache)
    journal = Journal(path / "journal.jsonl")
    display = Silent() if console is None else Lines(console)
    with ExitStack() as stack:
        stack.enter_context(Delivery(path, config.model_copy(update={"name": space.name}), journal, display))
        _journal_space(journal, space, plan)
        stack.callback(_close_trials, path / "trials")
        stack.enter_context(ray_session(config.compute, display))
        compute = config.compute
        pool = ActorPool(plan.groups, compute.teacher_actors, compute.cpus_per_teacher_actor)
        stack.callback(pool.close)
        shares = {key: (ray.put(d), ray.put(student_view(d))) for key, d in plan.datasets.items()}
        setup = TrialSetup(space, base, path / "trials", shares, pool.teachers, use_cache)
        Progress.console = console
        progress = Progress(len(plan.trials) or trial_count(space), space.metric, space.mode)
        if compute.backend == "train":
            stack.enter_context(abandoned_groups_freed())
        with interruptible() as interrupted:
            grid = make_tuner(space, plan, config, setup, path, concurrency, resume, progress).fit()
            if interrupted.is_set():  # Tune ends in order, as if the sweep were complete
                display.note("interrupted: finished rounds are stored; the same command with --resume goes on")
                raise KeyboardInterrupt
        table = tidy(space, base, path / "trials", grid)
        best = best_trial(table, space.metric, space.mode)
        failures = {r.path: str(r.error).strip().splitlines()[-1] for r in grid if r.error is not None}
        _conclude(journal, space, path, table, best)
    computed = int((~table["cached"].astype(bool)).sum()) if len(table) else 0
    return SweepResult(grid, table, path, plan, best, failures, computed)


def _absolute(space: SearchSpace) -> SearchSpace:
    return space.model_copy(update={"base": _absolute_paths(space.base, only_given=True)})


def _absolute_paths(tree: dict[str, Any], only_given: bool = False) -> dict[str, Any]:
    """The tree with paths made absolute: trials run in a working directory of Ray's own."""
    found = dict(tree)
    if not only_given or "storage" in tree:
        found["storage"] = str(Path(tree.get("storage", "runs")).expanduser().resolve())
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        found["data"] = {**data, "path": str(Path(data["path"]).expanduser().resolve())}
    return found


def _inline_by_default(base: dict[str, Any]) -> dict[str, Any]:
    """Trials of heads run inside their Tune actor; a worker group each would cost more than the trial."""
    compute = base.get("compute", {})
    if isinstance(compute, dict) and "backend" not in compute and compute.get("workers", 1) == 1:
        return {**base, "compute": {**compute, "backend": "inline"}}
    return base


def _announce(space: SearchSpace, plan: SweepPlan, console: Console | None) -> None:
    if console is None:
        return
    console.print(f"[bold]{space.name}[/bold]: {space.description.strip()}", soft_wrap=True)
    if plan.trials:
        console.print(
            f"{len(plan.trials)} trials, {plan.rounds_asked} rounds asked for, {plan.rounds_distinct} distinct, "
            f"{plan.rounds_stored} of them finished already",
            highlight=False,
        )
    else:
        console.print(f"{trial_count(space)} trials, drawn by {space.searcher}; rounds that coincide are shared")


def _folder(space: SearchSpace, base: dict[str, Any], config: ExperimentConfig, resume: bool, use_cache: bool) -> Path:
    """The sweep's folder; without ``resume`` an earlier sweep of the same space starts anew (rounds stay cached)."""
    identity = digest(space.model_dump(mode="json"), base)[:8]
    name = f"{space.name}-{identity}" + ("" if use_cache else "-nocache")
    path = Path(config.storage).expanduser().resolve() / "sweeps" / name
    if path.exists() and not resume:
        shutil.rmtree(path)
    (path / "trials").mkdir(parents=True, exist_ok=True)
    (path / "space.yaml").write_text(dump_yaml(space))
    return path


def _journal_space(journal: Journal, space: SearchSpace, plan: SweepPlan) -> None:
    for name, value in space.model_dump(mode="json").items():
        journal.write("param", name, value=value if isinstance(value, str) else json.dumps(value))
    journal.write("tag", "csl.sweep", value=space.name)
    journal.write("artifact", "space.yaml")
    if plan.trials:
        for name in ("rounds_asked", "rounds_distinct", "rounds_stored"):
            journal.write("metric", name, value=float(getattr(plan, name)), step=0)


def _conclude(journal: Journal, space: SearchSpace, path: Path, table: pd.DataFrame, best: Path | None) -> None:
    """Table, figures and best trial: into the sweep's folder and its journal."""
    from orchestrator import sweep_report

    table.to_csv(path / "table.csv", index=False)
    table.astype({c: str for c in table.columns if table[c].dtype == object}).to_parquet(path / "table.parquet")
    for name in ("table.csv", "table.parquet"):
        journal.write("artifact", name)
    (path / "figures").mkdir(exist_ok=True)
    for name, figure in sweep_report.figures(table, space.metric).items():
        figure.savefig(path / "figures" / f"{name}.png", dpi=120)
        journal.write("artifact", f"figures/{name}.png")
    if best is not None:
        own = Journal(best / "journal.jsonl")
        own.write("tag", "csl.best", value=f"best of sweep {space.name} by {space.metric}")
        own.close()
        journal.write("tag", "csl.best_trial", value=best.name)
        journal.write("register", f"csl-{space.name}", trial=str(best), alias="best")


def _close_trials(folder: Path) -> None:
    """End the journals of trials that were stopped with their process and could not do it themselves."""
    for path in folder.glob("*/journal.jsonl"):
        status = [record["name"] for record, _ in read_journal(path) if record["kind"] == "status"]
        if status and status[-1] == "RUNNING":
            journal = Journal(path)
            journal.write("status", "KILLED", step=int(time.time() * 1000))
            journal.close()
