"""Whole experiments in one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from orchestrator import backends, experiment
from orchestrator.config import Assignment, ExperimentConfig
from orchestrator.data import DATASETS
from orchestrator.data.store import Store
from orchestrator.errors import ConfigError, NothingKeptError, StorageError
from orchestrator.experiment import run_experiment
from orchestrator.filters import FILTERS
from orchestrator.journal import read_journal
from orchestrator.results import ExperimentResult
from orchestrator.round_cache import read_round
from tests.helpers import make_config, merged, small_arrays, small_tree, write_folder

DIGITS: dict[str, dict[str, Any]] = {
    "data": {"name": "digits", "rotations": 1, "fourier_features": 64, "components": 32},
    "teachers": {"steps": 10},
}


def _config(tmp_path: Path, dataset: str = "arrays", **changes: Any) -> ExperimentConfig:
    data = tmp_path / "data"
    if dataset == "arrays" and not data.exists():
        write_folder(data, small_arrays())
    tree = small_tree(tmp_path / "runs", data)
    if dataset == "digits":
        tree |= DIGITS
    return make_config(merged(tree, {name.replace("__", "."): value for name, value in changes.items()}))


def _bits(result: ExperimentResult) -> dict[str, list[dict[str, bytes]]]:
    return {
        name: [{n: a.tobytes() for n, a in read_round(r.path).arrays.items()} for r in rounds]
        for name, rounds in result.chains.items()
    }


def _assert_sound(result: ExperimentResult) -> None:
    """What must hold for every experiment."""
    for name, rounds in result.chains.items():
        for number, r in enumerate(rounds, start=1):
            m = r.metrics
            assert (m.chain, m.round) == (name, number)
            assert m.student_accuracy is not None
            assert 0 <= m.student_accuracy <= 1
            assert all(math.isfinite(loss) for loss in m.losses)
            assert len(m.losses) == m.epochs == result.config.student.epochs * len(r.keep) // int(r.keep.sum())
            assert m.keep_rate == r.keep.mean()
            assert np.sum(m.confidence_histogram) == len(r.keep)
            assert set(m.consensus_rate) == (set() if number == 1 else {1, 2, 3})
            if m.assignment_matrix is not None:
                assert np.sum(m.assignment_matrix) == len(r.keep)
                assert r.assignment.max() < m.teachers
    dataset = DATASETS.builder(result.config.data.name).load(  # type: ignore[attr-defined]
        result.config.data, result.config.seed, Store(Path(result.config.storage) / "data")
    )
    with torch.no_grad():
        logits = result.student()(torch.from_numpy(np.array(dataset.inputs[dataset.splits.test])))
    predicted = logits.argmax(dim=1).numpy()
    stored = read_round(result.rounds[-1].path).arrays["test_classes"]
    # encoder and head are folded differently: only ties within float noise may differ
    assert (predicted == stored).mean() > 0.99
    assert result.rounds[-1].metrics.student_accuracy == np.mean(stored == dataset.labels[dataset.splits.test])


PLUGINS: list[dict[str, Any]] = [
    *[{"rounds__assignment": a, "rounds__supervision": s} for a in get_args(Assignment) for s in ("hard", "soft")],
    *[{"rounds__filters": [{"kind": kind}], "rounds__on_empty": "keep_all"} for kind in FILTERS],
    {
        "rounds__filters": [{"kind": "threshold", "of": "teacher"}, {"kind": "keep_fraction", "fraction": 0.8}],
        "rounds__on_empty": "keep_all",
    },
    {"rounds__filters": [{"kind": "local_global", "k": 2, "confidence": True, "select": "lowest_loss"}]},
    {"student__head": "mlp", "student__hidden": 12},
    {"student__loss": "auxiliary_confidence", "rounds__supervision": "soft"},
    {"student__precision": "bf16"},
    {"student__head": "mlp", "student__hidden": 12, "student__precision": "bf16"},
    {"student__test_curve_every": 0},
    {"baselines": ["ceiling", "mean", "vote", "oracle"]},
]


@pytest.mark.parametrize("dataset", list(DATASETS))
@pytest.mark.parametrize("changes", PLUGINS, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()))
def test_every_plug_in(tmp_path: Path, dataset: str, changes: dict[str, Any]) -> None:
    result = run_experiment(_config(tmp_path, dataset, **changes))
    assert [len(rounds) for name, rounds in result.chains.items() if name == "main"] == [3]
    _assert_sound(result)


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_the_delivered_student_predicts_from_raw_inputs(tmp_path: Path, dataset: str) -> None:
    result = run_experiment(_config(tmp_path, dataset, student__epochs=10))
    inputs = np.load(result.path / "example_inputs.npy")
    with torch.no_grad():
        classes = result.student()(torch.from_numpy(inputs)).argmax(dim=1)
    stored = read_round(result.rounds[-1].path).arrays["test_classes"]
    assert classes.tolist() == stored[: len(inputs)].tolist()


def test_mixed_levels(tmp_path: Path) -> None:
    blocks = [[0, 9, 8], [1, 2, 3, 4, 5, 6], [7]]
    result = run_experiment(_config(tmp_path, "digits", hierarchy__levels=[1, 3, blocks, 10]))
    assert [r.metrics.teachers for r in result.rounds] == [1, 3, 3, 10]
    student = read_round(result.rounds[1].path).arrays["train_classes"]
    owner = {c: k for k, block in enumerate(blocks) for c in block}
    assert result.rounds[2].assignment.tolist() == [owner[c] for c in student.tolist()]
    _assert_sound(result)


def test_one_level(tmp_path: Path) -> None:
    result = run_experiment(_config(tmp_path, hierarchy__levels=[1]))
    assert result.naive_accuracy == result.rounds[-1].metrics.student_accuracy


class TestAgain:
    def test_a_second_run_computes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = _config(tmp_path, baselines=["ceiling", "oracle"])
        first = run_experiment(config)
        assert not any(r.metrics.cached for r in first.rounds)
        monkeypatch.setattr(experiment, "train", lambda *args: pytest.fail("trained again"))
        second = run_experiment(config)
        assert all(r.metrics.cached for rounds in second.chains.values() for r in rounds)
        assert second.path == first.path
        assert second.identity == first.identity
        assert second.rounds[-1].metrics.student_accuracy == first.rounds[-1].metrics.student_accuracy
        assert second.ceiling_accuracy == first.ceiling_accuracy

    def test_a_longer_run_computes_the_new_rounds_only(self, tmp_path: Path) -> None:
        run_experiment(_config(tmp_path, hierarchy__levels=[1, 2]))
        longer = run_experiment(_config(tmp_path, name="other"))
        assert [r.metrics.cached for r in longer.rounds] == [True, True, False]
        alone = run_experiment(_config(tmp_path, storage=str(tmp_path / "alone")))
        assert _bits(longer) == _bits(alone)

    def test_without_cache_bit_for_bit_the_same(self, tmp_path: Path) -> None:
        config = _config(tmp_path, baselines=["ceiling", "oracle", "mean", "vote"])
        first = run_experiment(config)
        again = run_experiment(config, use_cache=False)
        assert again.path != first.path
        assert not any(r.metrics.cached for r in again.rounds)
        assert {r.path for r in first.rounds}.isdisjoint({r.path for r in again.rounds})
        assert _bits(first) == _bits(again)
        third = run_experiment(config, use_cache=False)
        assert not any(r.metrics.cached for r in third.rounds), "asked for afresh each time"

    def test_seeds_differ(self, tmp_path: Path) -> None:
        assert _bits(run_experiment(_config(tmp_path))) != _bits(run_experiment(_config(tmp_path, seed=1)))

    def test_global_generators_do_not_matter(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        first = run_experiment(_config(tmp_path))
        torch.manual_seed(2)
        np.random.seed(2)  # noqa: NPY002
        second = run_experiment(_config(tmp_path, storage=str(tmp_path / "other")))
        assert _bits(first) == _bits(second)

    def test_a_stopped_run_goes_on_after_its_finished_rounds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trainers.head_loop import HeadTrainer

        whole = run_experiment(_config(tmp_path, storage=str(tmp_path / "whole")))
        real, fits = HeadTrainer.fit, 0

        def stop_in_the_third(*args: Any) -> Any:
            nonlocal fits
            fits += 1
            if fits == 3:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(HeadTrainer, "fit", stop_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(_config(tmp_path))
        result = run_experiment(_config(tmp_path))
        assert [r.metrics.cached for r in result.rounds] == [True, True, False]
        assert _bits(result) == _bits(whole)

    def test_threads_are_put_back(self, tmp_path: Path) -> None:
        before = torch.get_num_threads()
        run_experiment(_config(tmp_path, compute__cpus_per_worker=before + 1))
        assert torch.get_num_threads() == before


class TestResults:
    def test_load_round_trip(self, tmp_path: Path) -> None:
        result = run_experiment(
            _config(tmp_path, baselines=["ceiling", "mean"], rounds__filters=[{"kind": "topk_rate"}])
        )
        assert ExperimentResult.load(result.path) == result
        assert ExperimentResult.load(str(result.path)).config == result.config

    def test_numbers_fit_each_other(self, tmp_path: Path) -> None:
        result = run_experiment(_config(tmp_path, baselines=["ceiling", "mean", "vote", "oracle"], student__epochs=20))
        assert list(result.chains) == ["ceiling", "main", "mean", "vote", "oracle"]
        weak, ceiling = result.weak_accuracy, result.ceiling_accuracy
        assert weak is not None
        assert ceiling is not None
        assert ceiling == result.chains["ceiling"][0].metrics.student_accuracy
        generalist = small_arrays()["teacher_0_0"]
        test = np.flatnonzero(small_arrays()["split"] == 2)
        assert weak == np.mean(generalist[test].argmax(axis=1) == small_arrays()["labels"][test])
        for rounds in result.chains.values():
            for r in rounds:
                m = r.metrics
                assert m.student_accuracy is not None
                expected = (m.student_accuracy - weak) / (ceiling - weak) if ceiling > weak else None
                assert m.pgr == (None if expected is None else pytest.approx(expected))
                student_rows = small_arrays()["labels"][small_arrays()["split"] == 0]
                assert m.collective_accuracy == np.mean(r.labels == student_rows)
        assert result.naive_accuracy == result.rounds[0].metrics.student_accuracy
        assert [t.outside is None for t in result.teachers if t.level == 0] == [True]
        assert len(result.teachers) == 6

    def test_without_the_ceiling_there_is_no_pgr(self, tmp_path: Path) -> None:
        result = run_experiment(_config(tmp_path))
        assert result.ceiling_accuracy is None
        assert all(r.metrics.pgr is None for r in result.rounds)

    def test_the_journal_holds_every_round_once(self, tmp_path: Path) -> None:
        config = _config(tmp_path, baselines=["ceiling"])
        path = run_experiment(config).path / "journal.jsonl"
        records = [record for record, _ in read_journal(path)]
        run_experiment(config)
        assert [record for record, _ in read_journal(path)][: len(records)] == records
        ids = [r["id"] for r in records]
        assert len(set(ids)) == len(ids)
        for step in (1, 2, 3):
            assert f"metric/student_accuracy/{step}" in ids
        assert sum("ceiling" in i and i.endswith("student_accuracy/1") for i in ids) == 1

    @pytest.mark.parametrize("damage", ["missing", "cut"])
    def test_no_finished_run(self, tmp_path: Path, damage: str) -> None:
        path = run_experiment(_config(tmp_path)).path
        results = path / "results.json"
        if damage == "missing":
            results.unlink()
        else:
            results.write_text(results.read_text()[:50])
        with pytest.raises(StorageError, match="holds no finished run"):
            ExperimentResult.load(path)

    def test_a_config_that_is_no_longer_valid_is_not_replaced_by_defaults(self, tmp_path: Path) -> None:
        path = run_experiment(_config(tmp_path)).path
        text = (path / "config.yaml").read_text()
        assert "epochs: 3\n" in text
        (path / "config.yaml").write_text(text.replace("epochs: 3\n", "epochs: three\n"))
        with pytest.raises((StorageError, ConfigError), match="epochs"):
            ExperimentResult.load(path)

    def test_results_are_plain_json(self, tmp_path: Path) -> None:
        result = run_experiment(_config(tmp_path, baselines=["ceiling"]))
        content = json.loads((result.path / "results.json").read_text(), parse_constant=pytest.fail)
        assert content["identity"] == result.identity


class TestErrors:
    def test_nothing_kept(self, tmp_path: Path) -> None:
        strict = [{"kind": "threshold", "probability": 0.9999}]
        with pytest.raises(NothingKeptError, match="round 2"):
            run_experiment(_config(tmp_path, rounds__filters=strict))
        result = run_experiment(_config(tmp_path, rounds__filters=strict, rounds__on_empty="keep_all"))
        assert result.rounds[1].metrics.keep_rate == 1.0
        assert result.rounds[0].metrics.cached, "the first round was finished before the error"

    def test_a_failed_round_is_free_for_the_next_attempt(self, tmp_path: Path) -> None:
        """The claim on a round must not live as long as the exception: notebooks and reused workers keep those."""
        config = _config(tmp_path, rounds__filters=[{"kind": "threshold", "probability": 0.9999}])
        kept = []
        for _ in range(2):
            with pytest.raises(NothingKeptError) as caught:
                run_experiment(config)
            kept.append(caught)

    def test_a_wrong_config_writes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            run_experiment(_config(tmp_path, hierarchy__levels=[1, 3, 3]))
        assert not (tmp_path / "runs").exists()

    def test_a_damaged_round_is_named(self, tmp_path: Path) -> None:
        result = run_experiment(_config(tmp_path))
        (result.rounds[1].path / "round.safetensors").write_bytes(b"damaged")
        with pytest.raises(StorageError, match=result.rounds[1].path.name):
            run_experiment(_config(tmp_path))


def test_teachers_are_asked_once_per_sample_and_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_experiment(_config(tmp_path, "digits", hierarchy__levels=[1, 2, 5]))
    n = len(result.rounds[0].keep)
    assert [r.metrics.predictions_asked for r in result.rounds] == [n] * 3
    assert [r.metrics.forward_passes for r in result.rounds] == [n] * 3


def test_inline_starts_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_ray", lambda *args: pytest.fail("Ray was started"))
    run_experiment(_config(tmp_path))
