"""Ray Tune over a search space: one teacher pool, one copy of the data, no round computed twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from orchestrator.journal import Journal
from orchestrator.loading import dump_yaml
from orchestrator.prepare import student_view
from orchestrator.ray_session import ray_session
from orchestrator.sweep_plan import SweepPlan, plan_sweep, trial_config
from orchestrator.sweep_table import best_trial, tidy
from orchestrator.sweep_trial import Progress, TrialSetup, run_trial
from orchestrator.teacher_pool import ActorPool
from orchestrator.tracking.start import Delivery
from search_spaces import SearchSpace, check_space, trial_count, tune_domains

if TYPE_CHECKING:
    import pandas as pd

_TUNE = "tune"


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
    base = _inline_by_default(base or {})
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
        stack.enter_context(ray_session(config.compute, display))
        compute = config.compute
        pool = ActorPool(plan.groups, compute.teacher_actors, compute.cpus_per_teacher_actor)
        stack.callback(pool.close)
        shares = {key: (ray.put(d), ray.put(student_view(d))) for key, d in plan.datasets.items()}
        setup = TrialSetup(space, base, path / "trials", shares, pool.teachers, use_cache)
        Progress.console = console
        progress = Progress(len(plan.trials) or trial_count(space), space.metric, space.mode)
        with _sigterm_is_ctrl_c():
            grid = _tuner(space, plan, config, setup, path, concurrency, resume, progress).fit()
        table = tidy(space, base, path / "trials", grid)
        best = best_trial(table, space.metric, space.mode)
        failures = {r.path: str(r.error).strip().splitlines()[-1] for r in grid if r.error is not None}
        _conclude(journal, space, path, table, best)
    computed = int((~table["cached"].astype(bool)).sum()) if len(table) else 0
    return SweepResult(grid, table, path, plan, best, failures, computed)


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


def _tuner(
    space: SearchSpace,
    plan: SweepPlan,
    config: ExperimentConfig,
    setup: TrialSetup,
    path: Path,
    concurrency: int | None,
    resume: bool,
    progress: Progress,
) -> tune.Tuner:
    """A Tuner over the planned trials, or the restored one of an interrupted sweep."""
    from ray.tune.logger import JsonLoggerCallback

    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # one format of results is enough
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    compute = config.compute
    if compute.backend == "inline":
        resources = {"cpu": compute.cpus_per_worker, "gpu": compute.gpus_per_worker}
    else:  # the trial only drives a worker group, which asks for its own; a whole CPU each could starve all groups
        resources = {"cpu": 0.01}
    trainable = tune.with_resources(tune.with_parameters(run_trial, setup=setup), resources)
    domains: Any = tune_domains(space)
    if plan.trials:
        domains = tune.grid_search([dict(t) for t in plan.trials])
    elif space.searcher == "optuna":
        domains = {**domains, "seed": space.seeds[0]}
    else:
        domains = {**domains, "seed": tune.grid_search(list(space.seeds))}
    parameters = {"overrides": domains}
    folder = path / _TUNE / "trials"
    if resume and tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(
            str(folder), trainable, param_space=parameters, resume_unfinished=True, resume_errored=True
        )
    return tune.Tuner(
        trainable,
        param_space=parameters,
        tune_config=tune.TuneConfig(
            metric=space.metric,
            mode=space.mode,
            num_samples=1 if plan.trials else space.samples,
            search_alg=_searcher(space),
            scheduler=_scheduler(space),
            max_concurrent_trials=concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(path / _TUNE),
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[progress, JsonLoggerCallback()],
            verbose=0,
        ),
    )


def _searcher(space: SearchSpace) -> Any:
    if space.searcher != "optuna":
        return None
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(metric=space.metric, mode=space.mode, seed=space.seeds[0])


def _scheduler(space: SearchSpace) -> Any:
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    if space.scheduler == "none":
        return None
    if space.scheduler == "median":
        return MedianStoppingRule(time_attr="round", grace_period=1, min_samples_required=3)
    return ASHAScheduler(time_attr="round", grace_period=1, max_t=100, reduction_factor=2)


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


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """Tune saves its state and ends in order on Ctrl-C; a job manager's SIGTERM should do the same."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
