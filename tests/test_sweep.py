"""Sweeps on a real Ray Tune: every trial as if it ran alone, every round and every prediction computed once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import ray
from mlflow.entities import Run

from orchestrator import ExperimentResult
from orchestrator.errors import ConfigError
from orchestrator.sweep import SweepResult, run_sweep
from orchestrator.tracking.deliver import members, sync
from search_spaces import SearchSpace, trials
from tests.conftest import MlflowServer
from tests.sweep_helpers import (
    KEEPS_NOTHING,
    METRIC,
    TOP3,
    assert_same_students,
    each_alone,
    finished,
    make_base,
    make_space,
    stored_rounds,
    table_rows,
    wait_until,
)

FIGURES = ("pgr_by_teachers", "depth_by_criterion", "parallel_coordinates")
DEPTHS = [[1], [1, 2], [1, 2, 4]]
GRID = make_space(
    name="grid",
    seeds=[0, 1],
    space={"hierarchy": {"levels": {"grid": DEPTHS}}, "rounds": {"filters": {"grid": [[], TOP3]}}},
)
ROUNDS = (1 + 2 + 3) * 2 * 2
"""Rounds of the method in all trials of `GRID`."""


@dataclass(frozen=True)
class Swept:
    """A sweep that was run."""

    space: SearchSpace
    base: dict[str, Any]
    result: SweepResult

    @property
    def storage(self) -> Path:
        return Path(self.base["storage"])


def sweep(space: SearchSpace, base: dict[str, Any], **options: Any) -> Swept:
    """Two trials at a time: this is a test of what they share, not of how many fit."""
    return Swept(space, base, run_sweep(space, base, **{"concurrency": 2, **options}))


@pytest.fixture(scope="module")
def shared(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """`GRID` as shipped."""
    return sweep(GRID, make_base(tmp_path_factory.mktemp("shared")))


@pytest.fixture(scope="module")
def unshared(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """`GRID`, every trial computing all its rounds."""
    return sweep(GRID, make_base(tmp_path_factory.mktemp("unshared")), use_cache=False)


def all_rounds(folder: Path) -> list[Any]:
    """Metrics of every round of every chain of every trial."""
    return [r.metrics for result in finished(folder).values() for chain in result.chains.values() for r in chain]


def test_table_has_every_round_of_every_trial(shared: Swept) -> None:
    table = shared.result.table
    assert not shared.result.failures
    assert len(shared.result.plan.trials) == table["trial"].nunique() == len(shared.result.grid) == 12
    assert len(table) == ROUNDS
    assert not table["stopped"].any()
    for _, rows in table.groupby("trial"):
        assert sorted(rows["round"]) == list(range(1, rows["depth"].iloc[0] + 1))
    settings = {(row.criterion, row.depth, row.seed) for row in table.itertuples()}
    assert settings == {(c, d, s) for c in ("all", "top3") for d in (1, 2, 3) for s in (0, 1)}
    assert table[METRIC].between(0, 1).all()
    assert table["pgr"].notna().all()


def test_every_distinct_round_is_computed_once(shared: Swept) -> None:
    plan = shared.result.plan
    assert plan.rounds_asked == ROUNDS + 12  # and the ceiling of every trial
    # by seed: the ceiling, round 1, round 2 and 3 of either criterion
    assert plan.rounds_distinct == 2 * (1 + 1 + 2 + 2)
    assert plan.rounds_stored == 0
    computed = [m for m in all_rounds(shared.result.path) if not m.cached]
    assert len(computed) == plan.rounds_distinct
    assert len(stored_rounds(shared.storage / "rounds")) == plan.rounds_distinct
    assert shared.result.rounds_computed == sum(m.chain == "main" for m in computed) == 10


def test_students_are_bit_for_bit_those_of_each_trial_alone(shared: Swept, tmp_path: Path) -> None:
    alone = each_alone(GRID, shared.base, trials(GRID), tmp_path)
    assert len(alone) == 12
    assert_same_students(finished(shared.result.path), alone)


def test_students_are_bit_for_bit_those_of_a_sweep_without_cache(shared: Swept, unshared: Swept) -> None:
    assert not (unshared.storage / "rounds").exists()
    assert not any(m.cached for m in all_rounds(unshared.result.path) if m.chain == "main")
    assert unshared.result.rounds_computed == ROUNDS
    assert_same_students(finished(shared.result.path), finished(unshared.result.path))
    assert table_rows(shared.result) == table_rows(unshared.result)


@pytest.mark.parametrize("name", ["shared", "unshared"])
def test_a_sample_passes_through_a_teacher_once_in_the_whole_sweep(name: str, request: pytest.FixtureRequest) -> None:
    swept: Swept = request.getfixturevalue(name)
    passes = asked = 0
    pairs: set[tuple[int, int, int, int]] = set()
    for result in finished(swept.result.path).values():
        for r in result.rounds:
            if r.metrics.cached:
                continue
            passes += r.metrics.forward_passes
            asked += r.metrics.predictions_asked
            pairs |= {(result.config.seed, r.metrics.level, int(k), i) for i, k in enumerate(r.assignment)}
    assert passes == len(pairs)  # all trials share one pool of teachers
    assert asked > 1.1 * passes  # and they did ask for the same again


def test_the_same_sweep_again_computes_nothing(shared: Swept) -> None:
    base = {**shared.base, "name": "again"}  # another base, hence another folder; the same rounds
    again = sweep(GRID, base).result
    assert again.path != shared.result.path
    assert again.plan.rounds_stored == again.plan.rounds_distinct
    assert again.rounds_computed == 0
    assert table_rows(again) == table_rows(shared.result)


def test_a_trial_that_fails_is_retried_and_reported_and_harms_no_other(ray_session: None, tmp_path: Path) -> None:
    space = make_space(
        name="trouble",
        base={"hierarchy": {"levels": [1, 2]}},
        space={"rounds": {"filters": {"grid": [[], KEEPS_NOTHING, TOP3]}}},
    )
    result = sweep(space, make_base(tmp_path)).result
    (error,) = result.failures.values()
    assert "round 2: the filters kept none of 3236 samples" in error
    (trial,) = result.failures
    assert (Path(trial) / "error.txt").read_text().count("Failure # ") == 2  # the trial and its retry
    table = result.table
    stopped = table["stopped"].astype(bool)
    assert (table["trial"].nunique(), table[~stopped]["trial"].nunique()) == (3, 2)
    assert sorted(table[~stopped]["criterion"]) == ["all", "all", "top3", "top3"]
    assert list(table[stopped]["round"]) == [1]  # as far as it got
    assert len(finished(result.path)) == 2
    for name in ("table.csv", "table.parquet", *(f"figures/{n}.png" for n in FIGURES)):
        assert (result.path / name).stat().st_size > 0


@pytest.fixture(scope="module")
def drawn(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Random learning rates, for the method and for the upper bound that cheats."""
    space = make_space(
        name="random",
        searcher="random",
        samples=3,
        seeds=[0, 1],
        base={"hierarchy": {"levels": [1, 4]}},
        space={
            "student": {"lr": {"loguniform": [1e-3, 1e-1]}},
            "rounds": {"filters": [], "assignment": {"grid": ["student", "oracle"]}},
        },
    )
    return sweep(space, make_base(tmp_path_factory.mktemp("drawn")))


def test_random_search_runs_every_setting_with_every_seed(drawn: Swept) -> None:
    table = drawn.result.table
    assert table["trial"].nunique() == 3 * 2 * 2
    assert not table["stopped"].any()
    rates = table["student.lr"].unique()
    assert len(rates) == 3
    assert ((rates >= 1e-3) & (rates <= 1e-1)).all()
    for _, rows in table.groupby("student.lr"):  # else there would be no mean over seeds
        both = {(s, a) for s in (0, 1) for a in ("student", "oracle")}
        assert set(zip(rows["seed"], rows["assignment"], strict=True)) == both
    assert drawn.result.rounds_computed == 3 * 2 * (1 + 2)  # round 1 is shared by both assignments


def test_the_oracle_never_wins(drawn: Swept) -> None:
    table = drawn.result.table
    last = table[table["round"] == 2]
    best = {name: rows.groupby("student.lr")[METRIC].mean().max() for name, rows in last.groupby("assignment")}
    assert best["oracle"] > best["student"], "the oracle is no better here: this test tests nothing"
    assert drawn.result.best is not None
    config = ExperimentResult.load(drawn.result.best).config
    assert config.rounds.assignment == "student"
    mean = last[(last["assignment"] == "student") & (last["student.lr"] == config.student.lr)][METRIC].mean()
    assert mean == best["student"]  # the best setting over both seeds, not the luckiest trial


@pytest.fixture(scope="module")
def optuna(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Optuna proposes learning rates, ASHA stops the worse ones; one at a time, so that it is the same each time."""
    space = make_space(
        name="asha",
        searcher="optuna",
        scheduler="asha",
        samples=8,
        space={"student": {"lr": {"loguniform": [1e-5, 1e-1]}}},
    )
    return sweep(space, make_base(tmp_path_factory.mktemp("optuna")), concurrency=1)


def test_asha_stops_trials_early(optuna: Swept) -> None:
    table = optuna.result.table
    assert not optuna.result.failures
    assert table["trial"].nunique() == table["student.lr"].nunique() == 8
    stopped = table[table["stopped"].astype(bool)]
    assert 1 <= stopped["trial"].nunique() < 8
    assert stopped.groupby("trial")["round"].max().max() < 3
    done = table[~table["stopped"].astype(bool)]
    assert (done.groupby("trial")["round"].max() == 3).all()
    # a stopped trial was the worse half at the round where it was stopped
    first = table[table["round"] == 1].set_index("trial")[METRIC]
    assert first[stopped["trial"].unique()].max() <= first.max()
    assert first[stopped["trial"].unique()].mean() < first[done["trial"].unique()].mean()


def test_the_best_is_the_best_of_the_finished_by_validation(optuna: Swept) -> None:
    table = optuna.result.table
    last = table[~table["stopped"].astype(bool) & (table["round"] == 3)]
    assert str(optuna.result.best) == last.loc[last[METRIC].idxmax(), "path"]


def test_stopped_trials_are_over_and_not_failed(optuna: Swept) -> None:
    ends = {True: set(), False: set()}
    for path in optuna.result.path.glob("trials/*/journal.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        status = [record["name"] for record in records if record["kind"] == "status"][-1]
        ends[(path.parent / "results.json").exists()].add(status)
    assert ends == {True: {"FINISHED"}, False: {"KILLED"}}


def test_a_bad_space_names_all_mistakes_and_writes_nothing(tmp_path: Path) -> None:
    space = make_space(
        metric="student_accuracy",
        space={"student": {"lr": {"grid": []}, "epoch": {"grid": [1, 2]}}, "rounds": {"supervision": {"grid": ["x"]}}},
    )
    with pytest.raises(ConfigError) as caught:
        run_sweep(space, make_base(tmp_path / "runs"))
    text = str(caught.value)
    for mistake in ("metric: ", "space.student.lr: ", "space.student.epoch: ", "space.rounds.supervision: "):
        assert mistake in text
    assert not (tmp_path / "runs").exists()


def test_nothing_stays_behind_on_the_cluster(shared: Swept, drawn: Swept, optuna: Swept) -> None:
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 15)


@pytest.fixture(scope="module")
def delivered(ray_session: None, mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep delivered to an MLflow server."""
    tracking = ("tracking.enabled=true", f"tracking.uri={mlflow_server.uri}", "tracking.wait_seconds=90")
    base = make_base(tmp_path_factory.mktemp("delivered"), *tracking, "tracking.experiment=sweeps")
    space = {"hierarchy": {"levels": {"grid": DEPTHS[:2]}}, "rounds": {"filters": {"grid": [[], TOP3]}}}
    return sweep(make_space(name="tracked", space=space), base)


@pytest.fixture(scope="module")
def server(delivered: Swept, mlflow_server: MlflowServer) -> Iterator[mlflow.MlflowClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        yield mlflow.MlflowClient(tracking_uri=mlflow_server.uri)


def runs(client: mlflow.MlflowClient) -> tuple[Run, list[Run]]:
    """The sweep's run and those of its trials."""
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parent, [run for run in found if run is not parent]


def test_a_sweep_is_a_parent_run_with_nested_trials(delivered: Swept, server: mlflow.MlflowClient) -> None:
    parent, children = runs(server)
    assert parent.info.run_name == "tracked"
    assert parent.data.params["metric"] == METRIC
    assert parent.data.metrics["rounds_distinct"] == 4
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}


def test_trials_have_every_round_as_a_step_and_shared_ones_marked(
    delivered: Swept, server: mlflow.MlflowClient
) -> None:
    _, children = runs(server)
    results = {str(r.path): r for r in finished(delivered.result.path).values()}
    marks = []
    for run in children:
        result = results[run.data.tags["csl.path"]]
        for name in ("student_accuracy", METRIC, "keep_rate", "round_cached"):
            history = server.get_metric_history(run.info.run_id, name)
            wanted = [float(getattr(r.metrics, name.replace("round_", ""))) for r in result.rounds]
            assert [m.step for m in history] == list(range(1, len(result.rounds) + 1))
            assert [m.value for m in history] == pytest.approx(wanted)
        marks += [m.value for m in server.get_metric_history(run.info.run_id, "round_cached")]
    assert (len(marks), sum(marks)) == (6, 3)


def test_the_parent_carries_space_table_and_figures(
    delivered: Swept, server: mlflow.MlflowClient, tmp_path: Path
) -> None:
    parent, _ = runs(server)
    listed = {f.path for folder in ("", "figures") for f in server.list_artifacts(parent.info.run_id, folder)}
    assert {"space.yaml", "table.csv", "table.parquet", *(f"figures/{n}.png" for n in FIGURES)} <= listed
    folder = Path(server.download_artifacts(parent.info.run_id, "", str(tmp_path)))
    assert all((folder / f"figures/{n}.png").read_bytes().startswith(b"\x89PNG") for n in FIGURES)
    for table in (pd.read_csv(folder / "table.csv"), pd.read_parquet(folder / "table.parquet")):
        assert len(table) == 6
        assert table[METRIC].tolist() == pytest.approx(delivered.result.table[METRIC].tolist())


def test_the_best_trial_is_tagged_and_its_student_registered(delivered: Swept, server: mlflow.MlflowClient) -> None:
    import torch

    parent, children = runs(server)
    (best,) = [run for run in children if "csl.best" in run.data.tags]
    assert best.data.tags["csl.path"] == str(delivered.result.best)
    assert parent.data.tags["csl.best_trial"] == delivered.result.best.name  # type: ignore[union-attr]
    version = server.get_model_version_by_alias("csl-tracked", "best")
    assert version.run_id == best.info.run_id
    result = ExperimentResult.load(str(delivered.result.best))
    raw = np.load(result.path / "example_inputs.npy")
    with torch.inference_mode():
        expected = result.student()(torch.from_numpy(raw)).numpy()
    loaded = mlflow.pyfunc.load_model("models:/csl-tracked@best")
    np.testing.assert_allclose(loaded.predict(raw), expected, rtol=1e-4, atol=1e-4)


def test_delivering_twice_changes_nothing(delivered: Swept, server: mlflow.MlflowClient) -> None:
    def state() -> list[Any]:
        parent, children = runs(server)
        return [
            sorted(
                (run.info.run_id, run.info.status, name, len(server.get_metric_history(run.info.run_id, name)))
                for run in (parent, *children)
                for name in ("round_cached", "student_accuracy", "rounds_asked")
            ),
            sorted((run.info.run_id, sorted(run.data.tags.items())) for run in (parent, *children)),
            [len(run.outputs.model_outputs) for run in children if run.outputs is not None],
            [(v.version, v.model_id, v.aliases) for v in server.search_model_versions("name = 'csl-tracked'")],
        ]

    before = state()
    folder = delivered.result.path
    assert sync([folder]) == {folder: 0}
    assert state() == before
    for member in members(folder):  # as if killed between delivering and writing the cursors
        (member / "delivered.json").unlink()
    assert sync([folder])[folder] > 4  # type: ignore[operator]
    assert state() == before
