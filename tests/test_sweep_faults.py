"""Sweeps broken for real: killed, interrupted, robbed of processes. No finished round is lost, no number changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray

from orchestrator.sweep import run_sweep
from search_spaces import trials
from tests.conftest import SMALL
from tests.sweep_helpers import (
    METRIC,
    TOP3,
    assert_same_students,
    each_alone,
    finished,
    make_base,
    make_space,
    wait_until,
)
from tests.test_reliability import kill_tree, processes

pytestmark = pytest.mark.slow

SLOW = ("student.epochs=60", "student.batch_size=20", "student.test_curve_every=0")
"""Rounds of about a second: long enough to be hit in the middle."""
SPACE = make_space(
    name="faults",
    seeds=[0, 1],
    space={"hierarchy": {"levels": {"grid": [[1, 2], [1, 2, 4]]}}, "rounds": {"filters": {"grid": [[], TOP3]}}},
)
DISTINCT = 2 * (1 + 1 + 2 + 2)
"""Rounds of `SPACE`: by seed the ceiling, round 1, and rounds 2 and 3 of both criteria."""
SAME = ["round", "seed", "criterion", "depth", METRIC, "student_accuracy", "keep_rate", "pgr", "losses"]


class Program:
    """``csl sweep`` on `SPACE` as a program of its own, with a Ray of its own."""

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "runs"
        self._space, self._log = folder / "faults.yaml", folder / "output.txt"
        folder.mkdir(exist_ok=True)
        self._space.write_text(json.dumps(SPACE.model_dump(mode="json", exclude_defaults=True)))  # JSON is YAML
        self._started: list[subprocess.Popen[bytes]] = []
        self._seen: dict[int, psutil.Process] = {}

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        small = (setting for setting in SMALL if not setting.startswith("hierarchy"))  # the space sets it
        settings = [*small, *SLOW, f"storage={self.storage}", "tracking.enabled=false", "baselines=[ceiling]"]
        command = [sys.executable, "-m", "orchestrator.cli", "sweep", str(self._space), "--concurrency", "2"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*command, *(f"--set={s}" for s in settings), *options], stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process

    def run(self, *options: str) -> None:
        assert self.start(*options).wait(150) == 0, self.output

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def rounds(self) -> dict[Path, int]:
        """Every finished round and when it was written."""
        return {path: path.stat().st_mtime_ns for path in self.storage.glob("rounds/*/round.json")}

    @property
    def folder(self) -> Path:
        (found,) = self.storage.glob("sweeps/*")
        return found

    def table(self) -> pd.DataFrame:
        table = pd.read_parquet(self.folder / "table.parquet")
        return table[[c for c in SAME if c in table]].sort_values(["seed", "criterion", "depth", "round"])

    def wait_for_rounds(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until so many rounds are finished; remembers every process of the program on the way."""

        def there() -> bool:
            assert process.poll() is None, self.output
            for child in psutil.Process(process.pid).children(recursive=True):
                self._seen[child.pid] = child
            return len(self.rounds) >= count

        wait_until(there, 90, "the sweep made no progress")

    def left(self) -> list[str]:
        """Processes of the program that are still there."""
        alive = [p for p in self._seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return [f"{p.pid} {' '.join(p.cmdline())[:80]}" for p in alive]

    def end(self) -> None:
        for process in self._started:
            kill_tree(process.pid)
        for child in self._seen.values():
            if child.is_running():
                child.kill()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path / "program")
    yield program
    program.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(tmp_path_factory.mktemp("undisturbed"))
    program.run()
    assert len(program.rounds) == DISTINCT
    yield program
    program.end()


def assert_as_undisturbed(program: Program, undisturbed: Program, before: dict[Path, int]) -> None:
    """A sweep that went on: no finished round computed again, and the same table and students."""
    after = program.rounds
    assert len(after) == DISTINCT
    assert {path: after[path] for path in before} == before
    pd.testing.assert_frame_equal(
        program.table().reset_index(drop=True), undisturbed.table().reset_index(drop=True), check_exact=True
    )
    assert_same_students(finished(program.folder), finished(undisturbed.folder))


def test_everything_killed_in_the_middle_and_resumed(program: Program, undisturbed: Program) -> None:
    first = program.start()
    program.wait_for_rounds(5, first)
    kill_tree(first.pid)  # driver, Ray, trials, teachers: everything at once
    before = program.rounds
    assert 5 <= len(before) < DISTINCT
    program.run("--resume")
    assert_as_undisturbed(program, undisturbed, before)


def test_interrupts_leave_a_sweep_that_can_be_resumed(program: Program, undisturbed: Program) -> None:
    before: dict[Path, int] = {}
    options: tuple[str, ...] = ()
    for number, rounds, send in (
        (signal.SIGINT, 3, lambda p: os.killpg(p.pid, signal.SIGINT)),  # a terminal sends it to all of them
        (signal.SIGTERM, 6, lambda p: p.terminate()),
    ):
        process = program.start(*options)
        program.wait_for_rounds(rounds, process)
        started = time.monotonic()
        send(process)
        assert process.wait(30) != 0, f"{number.name}: an unfinished sweep looks like a finished one"
        print(f"{number.name}: over after {time.monotonic() - started:.1f} s, exit code {process.returncode}")
        wait_until(lambda: not program.left(), 10, f"{number.name}: still there: {program.left()}: gone")
        assert before.items() <= program.rounds.items()
        before = program.rounds
        assert len(before) < DISTINCT, "the interrupt came too late: this test tested nothing"
        assert not (program.folder / "table.csv").exists()
        journal = (program.folder / "journal.jsonl").read_text().splitlines()
        assert json.loads(journal[-1])["name"] == "KILLED"
        options = ("--resume",)
    assert "--resume goes on" in program.output
    program.run(*options)
    assert_as_undisturbed(program, undisturbed, before)


class Strike(threading.Thread):
    """Kills the processes of a title once so many rounds are finished and a moment has passed."""

    def __init__(self, title: str, rounds: Path, count: int) -> None:
        super().__init__(daemon=True)
        self.title, self.rounds, self.count = title, rounds, count
        self.struck: list[int] = []

    def run(self) -> None:
        wait_until(lambda: len(list(self.rounds.glob("*/round.json"))) >= self.count, 90)
        time.sleep(0.3)  # into the next round
        for process in processes(self.title, os.getpid())[:1]:
            process.kill()
            self.struck.append(process.pid)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("title", ["ImplicitFunc.train", "_HostActor"])
def test_a_killed_actor_costs_nothing_but_time(title: str, tmp_path: Path, undisturbed: Program) -> None:
    base = make_base(tmp_path, *SLOW)
    strike = Strike(title, tmp_path / "rounds", 3)
    strike.start()
    result = run_sweep(SPACE, base, concurrency=2)
    strike.join(5)
    assert strike.struck, "nothing was killed: this test tested nothing"
    assert not result.failures
    assert_same_students(finished(result.path), finished(undisturbed.folder))


@pytest.mark.usefixtures("ray_session")
def test_trials_with_a_worker_group_each(tmp_path: Path) -> None:
    space = make_space(name="groups", space={"rounds": {"filters": {"grid": [[], TOP3]}}})
    base = make_base(tmp_path / "runs", "compute.backend=train", "compute.workers=2")
    result = run_sweep(space, base)
    assert not result.failures
    assert len(result.table) == 6
    assert_same_students(finished(result.path), each_alone(space, base, trials(space), tmp_path / "alone"), 1e-4)
    wait_until(all_free, 20, f"CPUs are not free: {ray.available_resources()}: free")


@pytest.mark.usefixtures("ray_session")
def test_a_stopped_trial_frees_its_workers(tmp_path: Path) -> None:
    space = make_space(
        name="stopped",
        scheduler="asha",
        space={"student": {"lr": {"grid": [1e-2, 1e-6]}}},
    )
    base = make_base(tmp_path / "runs", "compute.backend=train", "compute.workers=2", "student.epochs=20")
    result = run_sweep(space, base, concurrency=1)
    assert not result.failures
    stopped = result.table[result.table["stopped"].astype(bool)]
    assert list(stopped["student.lr"]) == [1e-6]
    assert list(stopped["round"]) == [1]
    wait_until(all_free, 20, f"CPUs are not free: {ray.available_resources()}: free")
    assert len(list((tmp_path / "runs" / "rounds").glob("*/round.json"))) <= 4 + 3  # it did not go on in secret


def all_free() -> bool:
    return bool(ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
