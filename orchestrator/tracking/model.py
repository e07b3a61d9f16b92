"""The student as an MLflow model: raw inputs in, logits out, with signature and input example."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np


def log_student(run_dir: Path, run_id: str, uri: str) -> None:
    """Log a run's final student. Saved as an exported program, not as a pickle."""
    import torch
    from mlflow.models import infer_signature

    from orchestrator.results import load_student

    student = load_student(run_dir)
    example = np.load(run_dir / "example_inputs.npy", allow_pickle=False)
    with torch.inference_mode():
        logits = student(torch.from_numpy(example)).numpy()
    version = torch.__version__.split("+")[0]
    with tracking_to(uri), mlflow.start_run(run_id=run_id):
        mlflow.pytorch.log_model(
            student,
            name="student",
            signature=infer_signature(example, logits),
            input_example=example,
            serialization_format="pt2",
            # given, not inferred: inferring loads the model in another process for some seconds
            pip_requirements=[f"torch=={version}", f"numpy=={np.__version__}"],
        )


@contextmanager
def tracking_to(uri: str) -> Iterator[None]:
    """MLflow's fluent interface on a server; it keeps the address in the environment, which is put back."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
