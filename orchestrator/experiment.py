"""One experiment, start to end: prepare, train, record, deliver."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from orchestrator.backends import train
from orchestrator.chains import MAIN
from orchestrator.config import ExperimentConfig
from orchestrator.data.store import Store, load_arrays, save_arrays
from orchestrator.display import Display, Silent
from orchestrator.evaluation import Evaluation, TeacherClasses
from orchestrator.identity import array_digest, digest
from orchestrator.journal import Journal
from orchestrator.prepare import Prepared, SweepShare, opened, prepare
from orchestrator.recorder import Recorder, journal_evaluation
from orchestrator.results import ExperimentResult, RoundResult, save_student
from orchestrator.round_cache import RoundCache
from orchestrator.teacher_pool import ActorTeachers
from orchestrator.tracking.start import Delivery, journal_start


def run_experiment(
    config: ExperimentConfig,
    *,
    use_cache: bool = True,
    display: Display | None = None,
    sweep: SweepShare | None = None,
) -> ExperimentResult:
    """Run an experiment, or what is left of it: finished rounds are found under their keys and not run again.

    Args:
        config: the configuration.
        use_cache: False: compute every round, even those another experiment has finished.
        display: shows progress; None: silent.
        sweep: set by `sweep`: data and teachers this run has in common with the other trials.

    Returns:
        The result, also stored in ``result.path``.

    Raises:
        ConfigError: settings or data are wrong; nothing was written.
        NothingKeptError: a round's filters rejected everything.
        RunFailedError: training failed for good; the same call resumes.
    """
    started = time.perf_counter()
    display = display or Silent()
    prepared = prepare(config, use_cache, sweep)
    parent = None if sweep is None else sweep.folder.parent
    with ExitStack() as stack:
        stack.enter_context(opened(prepared, use_cache, display))
        journal = Journal(prepared.run_dir / "journal.jsonl")
        stack.enter_context(Delivery(prepared.run_dir, config, journal, display, parent))
        journal_start(journal, prepared)
        recorder = _Session(prepared, journal, display).run(None if sweep is None else sweep.teachers)
        result = _finish(prepared, recorder, time.perf_counter() - started)
        journal_evaluation(journal, recorder.evaluation)  # last: people look at the rounds first
        if sweep is None:  # of a sweep, the best student alone becomes a model
            journal.write("model", "student")
        journal.write("artifact", "results.json")
        journal.write("artifact", "config.yaml")
    return result


class _Session:
    """What this process does of an experiment."""

    def __init__(self, prepared: Prepared, journal: Journal, display: Display) -> None:
        self._prepared, self._journal, self._display = prepared, journal, display
        test_rows = prepared.dataset.splits.test
        key = digest([spec.key for spec in prepared.specs], array_digest(test_rows), prepared.dataset.digest)
        self._answers = (Store(Path(prepared.config.storage).resolve() / "evaluations"), key)

    def run(self, teachers: ActorTeachers | None) -> Recorder:
        """Compute what is missing and evaluate every round."""
        prepared, cache = self._prepared, RoundCache(self._prepared.cache)
        found = self._stored_answers()
        if found is None or not all(cache.has(r.key) for chain in prepared.chains for r in chain.rounds):
            return train(prepared, self.recorder, self._display, teachers)
        self._display.note("every round of this experiment is finished already: nothing is computed")
        recorder = self.recorder(lambda: found)
        for chain in prepared.chains:
            for number in range(1, len(chain.rounds) + 1):
                recorder.handle({"event": "round", "chain": chain.name, "round": number, "cached": True})
        return recorder

    def recorder(self, ask_teachers: Callable[[], TeacherClasses]) -> Recorder:
        """A recorder that knows how good the teachers are on the test split; they are asked once, ever."""
        store, key = self._answers
        found = self._stored_answers()
        if found is None:
            found = ask_teachers()
            arrays = {f"{level}.{index}": classes for (level, index), classes in found.items()}
            store.put(key, lambda folder: save_arrays(folder / "classes.safetensors", arrays))
        evaluation = Evaluation(self._prepared.dataset, self._prepared.levels, found)
        self._journal.write("metric", "weak_accuracy", value=evaluation.weak, step=0)
        return Recorder(self._prepared, evaluation, self._journal, self._display)

    def _stored_answers(self) -> TeacherClasses | None:
        store, key = self._answers
        entry = store.get(key)
        if entry is None:
            return None
        names = load_arrays(entry / "classes.safetensors")
        return {(int(n.split(".")[0]), int(n.split(".")[1])): classes for n, classes in names.items()}


def _finish(prepared: Prepared, recorder: Recorder, seconds: float) -> ExperimentResult:
    """Write the run's folder: student, example inputs, results last."""
    cache = RoundCache(prepared.cache)
    chains = {
        chain.name: tuple(
            RoundResult(recorder.rounds[chain.name, number], cache.path(planned.key))
            for number, planned in enumerate(chain.rounds, start=1)
        )
        for chain in prepared.chains
    }
    dataset = prepared.dataset
    head = chains[MAIN][-1].head
    save_student(prepared.run_dir, prepared.config, dataset.n_classes, dataset.encoder, head)
    np.save(prepared.run_dir / "example_inputs.npy", dataset.inputs[dataset.splits.test[:4]])
    evaluation = recorder.evaluation
    result = ExperimentResult(
        config=prepared.config,
        identity=prepared.identity,
        path=prepared.run_dir,
        weak_accuracy=evaluation.weak,
        ceiling_accuracy=evaluation.ceiling,
        teachers=evaluation.teachers,
        chains=chains,
        seconds=seconds,
    )
    if (prepared.run_dir / "results.json").exists() and all(r.metrics.cached for c in chains.values() for r in c):
        return result  # looked up, not computed: what the run that computed it wrote stays
    result.save()
    return result
