"""The Ray Tune Tuner of a sweep: parameters, searcher, scheduler, resources, restore."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.config import ExperimentConfig
from orchestrator.sweep_plan import SweepPlan
from orchestrator.sweep_trial import Progress, TrialSetup, run_trial
from search_spaces import SearchSpace, tune_domains

_TUNE = "tune"


def make_tuner(
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
            search_alg=_searcher(space, concurrency),
            scheduler=_scheduler(space),
            max_concurrent_trials=concurrency if space.searcher == "optuna" else None,
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


def _searcher(space: SearchSpace, concurrency: int | None) -> Any:
    seed = space.seeds[0] % 2**32  # numpy takes no more
    if space.searcher != "optuna":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        # what is drawn stays the same over seeds and grids, so that they are compared by nothing else
        return BasicVariantGenerator(constant_grid_search=True, random_state=seed, max_concurrent=concurrency or 0)
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(metric=space.metric, mode=space.mode, seed=seed)


def _scheduler(space: SearchSpace) -> Any:
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    if space.scheduler == "none":
        return None
    if space.scheduler == "median":
        return MedianStoppingRule(time_attr="round", grace_period=1, min_samples_required=3)
    return ASHAScheduler(time_attr="round", grace_period=1, max_t=100, reduction_factor=2)
