"""Turns progress events into evaluated rounds, journal records and what is shown: the driver's side of a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.chains import MAIN, Chain
from orchestrator.display import Display
from orchestrator.evaluation import Evaluation, RoundMetrics
from orchestrator.job import Event
from orchestrator.journal import Journal
from orchestrator.prepare import Prepared
from orchestrator.round_cache import RoundCache

_POLL_SECONDS = 0.05


class Recorder:
    """Evaluates and journals each finished round once.

    Args:
        prepared: the experiment.
        evaluation: measures rounds.
        journal: receives the records.
        display: shows progress.
    """

    def __init__(self, prepared: Prepared, evaluation: Evaluation, journal: Journal, display: Display) -> None:
        self._chains: dict[str, Chain] = {chain.name: chain for chain in prepared.chains}
        self._cache = RoundCache(prepared.cache)
        self.evaluation, self._journal, self._display = evaluation, journal, display
        self.rounds: dict[tuple[str, int], RoundMetrics] = {}

    def handle(self, event: Event) -> None:
        """Take one event."""
        chain = self._chains[event["chain"]]
        number = event["round"]
        if event["event"] == "epoch":
            self._display.epoch(chain.name, number, len(chain.rounds), event["epoch"], event["epochs"], event["loss"])
        elif (chain.name, number) not in self.rounds:
            planned = chain.rounds[number - 1]
            stored = self._cache.get(planned.key)
            assert stored is not None, f"round {planned.key} was announced but is not stored"
            measured = self.evaluation.measure(chain.name, number, planned, stored, event["cached"])
            self.rounds[chain.name, number] = measured
            journal_round(self._journal, measured)
            self._display.round(measured, len(chain.rounds))


class Follower:
    """Feeds a recorder from the event file that rank 0 appends to, in a thread of its own.

    Args:
        path: the event file.
        make_recorder: called in the thread first: it may wait for teachers while the student's workers start.
    """

    def __init__(self, path: Path, make_recorder: Callable[[], Recorder]) -> None:
        self._path, self._make_recorder = path, make_recorder
        self._offset = path.stat().st_size if path.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="csl-events", daemon=True)
        self._error: BaseException | None = None
        self.recorder: Recorder

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            self.recorder = self._make_recorder()
            while not self._stop.wait(_POLL_SECONDS):
                self._read()
            self._read()
        except BaseException as error:  # handed to the main thread on exit
            self._error = error

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self.recorder.handle(json.loads(line))


def journal_round(journal: Journal, m: RoundMetrics) -> None:
    """Write every number of a round; metrics of baselines carry the chain's name in front."""
    prefix = "" if m.chain == MAIN else f"baseline/{m.chain}/"

    def metric(name: str, value: float | None, step: int = m.round) -> None:
        journal.write("metric", prefix + name, value=value, step=step)

    plain = (
        "teachers", "collective_accuracy", "assignment_accuracy", "keep_rate", "filter_precision", "filter_recall",
        "student_accuracy", "student_validation_truth_accuracy", "student_supervision_agreement", "pgr", "epochs",
        "samples_per_second", "predictions_asked", "forward_passes",
    )  # fmt: skip
    for name in plain:
        metric(name, getattr(m, name))
    metric("round_cached", float(m.cached))
    for k, rate in m.consensus_rate.items():
        metric(f"consensus_rate/top{k}", rate)
    for phase, seconds in m.seconds.items():
        metric(f"seconds/{phase}", seconds)
    if m.chain == MAIN:
        for epoch, loss in enumerate(m.losses, start=1):
            metric(f"epoch/round{m.round}/train_loss", loss, step=epoch)
        for epoch, accuracy in m.test_curve.items():
            metric(f"epoch/round{m.round}/test_accuracy", accuracy, step=epoch)
        if m.assignment_matrix is not None:
            journal.write("figure", "assignment", step=m.round, matrix=m.assignment_matrix)
        journal.write("figure", "confidence", step=m.round, histogram=m.confidence_histogram)


def journal_evaluation(journal: Journal, evaluation: Evaluation) -> None:
    """Write the accuracies of the teachers themselves (step = their round)."""
    for t in evaluation.teachers:
        name = f"teacher/level{t.level + 1}/{t.index}"
        for part in ("overall", "inside", "outside"):
            journal.write("metric", f"{name}/accuracy_{part}", value=getattr(t, part), step=t.level + 1)
