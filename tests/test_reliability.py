"""Things that break, broken for real: no finished round is lost, and the student is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator import ExperimentConfig, ExperimentResult, run_experiment
from orchestrator.evaluation import RoundMetrics
from tests.conftest import SMALL

MakeConfig = Callable[..., ExperimentConfig]
SLOW_ROUNDS = ("student.epochs=150", "student.batch_size=20", "student.test_curve_every=0", "baselines=[oracle]")
"""Rounds of a second or more: long enough to be hit in the middle."""


def processes(title: str, under: int) -> list[psutil.Process]:
    """Ray workers of this title among the descendants of a process."""
    found = []
    for process in psutil.Process(under).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class StrikeAt:
    """A display that kills the processes of a title once an epoch of a given main round is done."""

    def __init__(self, title: str, number: int) -> None:
        self.title, self.number, self.struck = title, number, 0
        self.cached: list[bool] = []

    def epoch(self, chain: str, number: int, rounds: int, epoch: int, epochs: int, loss: float) -> None:
        if chain == "main" and number == self.number and not self.struck:
            for process in processes(self.title, os.getpid()):
                process.send_signal(signal.SIGKILL)
                self.struck += 1

    def round(self, metrics: RoundMetrics, rounds: int) -> None:
        self.cached.append(metrics.cached)

    def note(self, text: str) -> None:
        pass


def assert_same_students(one: ExperimentResult, two: ExperimentResult) -> None:
    for name, rounds in one.chains.items():
        for mine, other in zip(rounds, two.chains[name], strict=True):
            for weight, value in mine.head.items():
                np.testing.assert_array_equal(value, other.head[weight])


@pytest.fixture
def undisturbed(make_config: MakeConfig, tmp_path: Path) -> ExperimentResult:
    return run_experiment(make_config(*SLOW_ROUNDS, storage=tmp_path / "undisturbed"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("title", ["RayTrainWorker", "_HostActor"])
def test_a_killed_process_costs_nothing_but_time(
    title: str, make_config: MakeConfig, undisturbed: ExperimentResult
) -> None:
    strike = StrikeAt(title, number=2)
    result = run_experiment(make_config(*SLOW_ROUNDS, "compute.backend=train"), display=strike)
    assert strike.struck >= 1, "nothing was killed: this test tested nothing"
    assert_same_students(result, undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_worker_group_that_keeps_failing_stops_with_what_is_safe(make_config: MakeConfig) -> None:
    from orchestrator.errors import RunFailedError

    strike = StrikeAt("RayTrainWorker", number=2)
    config = make_config(*SLOW_ROUNDS, "compute.backend=train", "compute.max_failures=0", "seed=2")
    with pytest.raises(RunFailedError, match="same command resumes"):
        run_experiment(config, display=strike)
    resumed = StrikeAt("nothing", number=0)
    run_experiment(config, display=resumed)
    assert resumed.cached[0]  # round 1 was not computed again


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """``csl run`` as a program of its own, with a Ray of its own; whatever is left of it is killed at the end."""
    storage = tmp_path / "runs"
    settings = [*SMALL, *SLOW_ROUNDS, f"storage={storage}", "tracking.enabled=false"]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator.cli", "run", *(f"--set={s}" for s in settings)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def wait_for_round(storage: Path, chain: str, number: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for path in storage.glob("experiments/*/events.jsonl"):
            for line in path.read_text().splitlines():
                event = json.loads(line) if line.endswith("}") else {}
                if event.get("event") == "round" and (event["chain"], event["round"]) == (chain, number):
                    return
        time.sleep(0.1)
    raise AssertionError("the program made no progress")


@pytest.mark.slow
def test_the_whole_program_killed_and_started_again(
    program: Callable[[], subprocess.Popen[bytes]], tmp_path: Path, undisturbed: ExperimentResult
) -> None:
    first = program()
    wait_for_round(tmp_path / "runs", "main", 2)
    kill_tree(first.pid)  # driver, Ray, workers, teachers: everything at once
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "rounds").glob("*/round.json")}
    assert len(stored) >= 2
    assert program().wait(120) == 0
    result = ExperimentResult.load(next((tmp_path / "runs" / "experiments").iterdir()))
    assert_same_students(result, undisturbed)
    assert all(path.stat().st_mtime_ns == at for path, at in stored.items())  # no finished round was computed again


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_run(program: Callable[[], subprocess.Popen[bytes]], tmp_path: Path) -> None:
    first = program()
    wait_for_round(tmp_path / "runs", "main", 1)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) != 0
    assert program().wait(120) == 0
    ExperimentResult.load(next((tmp_path / "runs" / "experiments").iterdir()))


def test_two_runs_at_once_compute_each_round_once(make_config: MakeConfig) -> None:
    config = make_config(*SLOW_ROUNDS, "baselines=[]", "student.epochs=40")
    displays = [StrikeAt("nothing", 0), StrikeAt("nothing", 0)]
    threads = [threading.Thread(target=run_experiment, args=(config,), kwargs={"display": d}) for d in displays]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    cached = [c for d in displays for c in d.cached]
    assert (cached.count(False), cached.count(True)) == (3, 3)
