"""The command line as a user meets it: output, exit codes, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SMALL

INLINE = [f"--set={s}" for s in (*SMALL, "compute.backend=inline")]


def csl(*arguments: str, cwd: Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done


def test_run_prints_progress_tables_and_where_to_look(tmp_path: Path) -> None:
    out = csl("run", *INLINE, "--seed", "3", "--teachers", cwd=tmp_path).stdout
    for text in (
        "epoch",
        "main round 3/3",
        "collective",
        "PGR",
        "naive weak-to-strong",
        "strong ceiling",
        "csl ui runs",
    ):
        assert text in out
    results = next(tmp_path.glob("runs/experiments/*/results.json"))
    assert json.loads(results.read_text())["chains"]["main"][2]["metrics"]["teachers"] == 4
    again = csl("run", *INLINE, "--seed", "3", cwd=tmp_path).stdout
    assert "finished already" in again
    assert "(stored)" in again


def test_validate_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    out = csl("validate", *INLINE, cwd=tmp_path).stdout
    for text in ("teachers", "samples", "memory", "compute", "valid"):
        assert text in out
    assert list(tmp_path.iterdir()) == []


def test_validate_says_what_ray_will_be_asked_for(tmp_path: Path) -> None:
    wanted = [
        "--set=compute.workers=4",
        "--set=compute.cpus_per_worker=3",
        "--set=compute.gpus_per_worker=0.5",
        "--set=device=cuda",
    ]
    assert "12 CPUs, 2 GPUs" in csl("validate", *wanted, cwd=tmp_path).stdout


def test_all_mistakes_in_one_message_exit_2_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "seed: -1\nstudent: {lrr: 1, epochs: 0}\nrounds: {assignment: studnt}\ndevice: gpu\n"
    )
    done = csl("run", "bad.yaml", "--set", "data.rotations=9", cwd=tmp_path, check=2)
    assert done.stderr.startswith("error: 6 mistakes in bad.yaml:")
    for field in ("seed:", "student.lrr:", "student.epochs:", "rounds.assignment:", "device:", "data.rotations:"):
        assert f"- {field}" in done.stderr
    assert "did you mean 'student'" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.yaml"], "config file: must be readable"),
        (["validate", "--set", "nonsense"], "--set: must look like"),
        (["ui", "nowhere"], "holds no MLflow database"),
    ],
)
def test_one_clear_error(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = csl(*arguments, cwd=tmp_path, check=None)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_kept_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    # labels no feature predicts and teachers sure of one class: the student never finds the label probable enough
    rng = np.random.default_rng(0)
    n, c = 200, 4
    teachers = {
        f"teacher_{level}_{k}": rng.dirichlet(np.ones(c), n).astype(np.float32)
        for level, count in ((0, 1), (1, 2))
        for k in range(count)
    }
    np.savez(tmp_path / "a.npz", features=rng.normal(size=(n, 3)), labels=rng.integers(0, c, n), **teachers)
    settings = {
        "data": {"name": "arrays", "path": "a.npz"},
        "hierarchy": {"levels": [1, 2]},
        "rounds": {"filters": [{"kind": "threshold", "probability": 0.999}]},
        "compute": {"backend": "inline"},
        "tracking": {"enabled": False},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    done = csl("run", "c.yaml", cwd=tmp_path, check=1)
    assert "round 2: the filters kept none of 90 samples" in done.stderr
    assert "rounds.on_empty=keep_all" in done.stderr
    assert "Traceback" not in done.stderr
    csl("run", "c.yaml", "--set", "rounds.on_empty=keep_all", cwd=tmp_path)
