"""Co-supervised learning on Ray: run experiments from Python. Names load on first use, so importing costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.config import ExperimentConfig
    from orchestrator.experiment import run_experiment
    from orchestrator.loading import load_config
    from orchestrator.results import ExperimentResult
    from orchestrator.sweep import SweepResult, run_sweep

__all__ = ["ExperimentConfig", "ExperimentResult", "SweepResult", "load_config", "run_experiment", "run_sweep"]

_HOMES = {
    "ExperimentConfig": "orchestrator.config",
    "ExperimentResult": "orchestrator.results",
    "load_config": "orchestrator.loading",
    "run_experiment": "orchestrator.experiment",
    "SweepResult": "orchestrator.sweep",
    "run_sweep": "orchestrator.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
