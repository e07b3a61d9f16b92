"""Delivery to a real MLflow server: everything, once, and never at the cost of the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from orchestrator import ExperimentConfig, ExperimentResult, run_experiment
from orchestrator.tracking.deliver import sync
from orchestrator.tracking.start import _flatten
from tests.conftest import MlflowServer, free_port

MakeConfig = Callable[..., ExperimentConfig]


def tracked(server_uri: str, experiment: str) -> tuple[str, ...]:
    return (
        "tracking.enabled=true",
        f"tracking.uri={server_uri}",
        f"tracking.experiment={experiment}",
        "tracking.wait_seconds=60",
    )


def only_run(uri: str, experiment: str) -> tuple[mlflow.MlflowClient, Run]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len(runs) == 1
    return client, runs[0]


@pytest.fixture(scope="module")
def delivered(
    mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExperimentResult, mlflow.MlflowClient, Run]:
    from orchestrator import load_config
    from tests.conftest import SMALL

    own = (f"storage={tmp_path_factory.mktemp('runs')}", "compute.backend=inline", *tracked(mlflow_server.uri, "whole"))
    result = run_experiment(load_config(None, [*SMALL, *own]))
    return result, *only_run(mlflow_server.uri, "whole")


def test_parameters_are_the_whole_resolved_config(delivered: tuple[ExperimentResult, mlflow.MlflowClient, Run]) -> None:
    result, _, run = delivered
    assert run.data.params == _flatten(result.config.to_dict())
    assert run.info.status == "FINISHED"


def test_every_number_of_every_round_is_a_metric(delivered: tuple[ExperimentResult, mlflow.MlflowClient, Run]) -> None:
    result, client, run = delivered
    for name in (
        "student_accuracy",
        "pgr",
        "keep_rate",
        "collective_accuracy",
        "assignment_accuracy",
        "forward_passes",
    ):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [
            (r.metrics.round, pytest.approx(getattr(r.metrics, name))) for r in result.rounds
        ]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "consensus_rate/top3")] == [2, 3]
    names = set(run.data.metrics)
    assert {"filter_precision", "filter_recall", "seconds/teachers", "seconds/assignment", "seconds/training"} <= names
    assert {"samples_per_second", "weak_accuracy", "baseline/ceiling/student_accuracy"} <= names
    assert {f"baseline/{b}/student_accuracy" for b in ("mean", "vote", "oracle")} <= names
    assert {"teacher/level3/3/accuracy_inside", "teacher/level3/3/accuracy_outside"} <= names
    for number, r in enumerate(result.rounds, start=1):
        curve = client.get_metric_history(run.info.run_id, f"epoch/round{number}/train_loss")
        assert [m.value for m in curve] == pytest.approx(list(r.metrics.losses))


def test_figures_data_set_and_tags(delivered: tuple[ExperimentResult, mlflow.MlflowClient, Run]) -> None:
    _, client, run = delivered
    figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    wanted = {f"figures/round_{r}_{kind}.png" for r in (1, 2, 3) for kind in ("assignment", "confidence")}
    assert figures == wanted
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "digits"
    assert len(dataset.digest) == 32
    tags = run.data.tags
    assert {"csl.version.ray", "csl.version.torch", "csl.hardware", "mlflow.source.git.commit"} <= set(tags)


def test_model_predicts_from_raw_inputs(
    delivered: tuple[ExperimentResult, mlflow.MlflowClient, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    result, client, run = delivered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    (model,) = run.outputs.model_outputs
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert loaded.metadata.signature is not None
    assert loaded.input_example is not None
    raw = np.load(result.path / "example_inputs.npy")
    with torch.inference_mode():
        expected = result.student()(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(loaded.predict(raw), expected, rtol=1e-4, atol=1e-4)
    more = np.concatenate([raw] * 5)  # any number of rows, not only that of the example
    assert loaded.predict(more).shape == (20, 40)


def test_delivering_again_after_a_lost_cursor_changes_nothing(
    make_config: MakeConfig, mlflow_server: MlflowServer
) -> None:
    result = run_experiment(make_config(*tracked(mlflow_server.uri, "once")))
    client, run = only_run(mlflow_server.uri, "once")
    before = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
    (result.path / "delivered.json").unlink()  # as if killed between delivering and writing the cursor
    assert sync([result.path])[result.path] > len(before)
    client, run = only_run(mlflow_server.uri, "once")
    assert {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics} == before
    assert len(run.outputs.model_outputs) == 1
    assert sync([result.path]) == {result.path: 0}


def test_a_server_that_is_down_costs_nothing_and_sync_delivers_later(
    make_config: MakeConfig, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    offline = run_experiment(make_config("seed=5"))
    server = MlflowServer(tmp_path_factory.mktemp("late"))
    overrides = (*tracked(server.uri, "late"), "tracking.wait_seconds=0", "seed=5")
    start = time.perf_counter()
    result = run_experiment(make_config(*overrides, storage=tmp_path / "other"))
    assert result.seconds < offline.seconds + 2
    assert time.perf_counter() - start < offline.seconds + 4
    assert isinstance(sync([result.path])[result.path], Exception)
    server.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "sync", str(tmp_path / "other")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        client, run = only_run(server.uri, "late")
        assert run.info.status == "FINISHED"
        assert [m.step for m in client.get_metric_history(run.info.run_id, "pgr")] == [1, 2, 3]
    finally:
        server.stop()


def test_a_server_that_never_answers_does_not_stop_the_run(make_config: MakeConfig) -> None:
    import socket

    with socket.socket() as silent:  # accepts connections and says nothing
        silent.bind(("127.0.0.1", free_port()))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.perf_counter()
        result = run_experiment(make_config(*tracked(uri, "silent"), "tracking.wait_seconds=1"))
        assert time.perf_counter() - start < result.seconds + 4
    journal = [json.loads(line) for line in (result.path / "journal.jsonl").read_text().splitlines()]
    assert journal[-1]["name"] == "FINISHED"


def test_embedded_store_by_default_and_environment_variable(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.tracking.start import tracking_uri

    config = make_config()
    assert tracking_uri(config) == f"sqlite:///{Path(config.storage).resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:1")
    assert tracking_uri(config) == "http://somewhere:1"
    assert tracking_uri(make_config("tracking.uri=http://config:2")) == "http://config:2"
