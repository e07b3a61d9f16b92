"""The alternation itself: assign, supervise, filter, train, repeat (Liu & Alahi 2024, algorithm 1).

Samples are dealt out over the workers by number (worker ``r`` of ``W`` owns samples ``r, r + W, ...``). Everything
that decides - consensus, ranks of losses, the kept set - is computed on global vectors, so the result does not
depend on ``W``. This module knows neither Ray nor files: it talks to a `RoundIO`, to `Teachers` and to a
`HeadTrainer`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from orchestrator.errors import NothingKeptError
from orchestrator.method import TOP_STORED, consistency
from orchestrator.method import assignment as assign
from orchestrator.method.consistency import Signals
from orchestrator.method.records import HeadTrainer, RoundIO, RoundOutput, RoundSpec, StudentData, Teachers

CONSENSUS_K = (1, 2, 3)
"""The ``k`` for which consensus rates are logged."""


def run_rounds(
    specs: Sequence[RoundSpec],
    data: StudentData,
    teachers: Teachers,
    trainer: HeadTrainer,
    io: RoundIO,
    oracle_labels: Tensor | None = None,
) -> list[RoundOutput]:
    """Run the rounds in order, skipping those that are finished.

    Args:
        specs: the rounds; the first needs no previous student.
        data: the student's view of the data.
        teachers: answers of the weak teachers.
        trainer: trains the heads.
        io: storage and collectives.
        oracle_labels: ground truth int64 [N] of the student's samples. Only rounds whose assignment is ``oracle`` or
            ``ceiling`` read it; a run without such rounds gets None.

    Returns:
        One output per round.

    Raises:
        NothingKeptError: a round's filters rejected everything and the round is not told to keep all then.
    """
    outputs: list[RoundOutput] = []
    newest = _Newest(trainer, data.train)
    for number, spec in enumerate(specs, start=1):
        output = io.load(number)
        if output is None:
            previous = outputs[-1] if outputs else None
            output = _run_round(number, spec, previous, newest, data, teachers, trainer, io, oracle_labels)
            io.report(number, output)
        else:
            newest.drop()
        outputs.append(output)
    return outputs


def _run_round(
    number: int,
    spec: RoundSpec,
    previous: RoundOutput | None,
    newest: _Newest,
    data: StudentData,
    teachers: Teachers,
    trainer: HeadTrainer,
    io: RoundIO,
    oracle_labels: Tensor | None,
) -> RoundOutput:
    clock = _Clock()
    ask = _Counter(teachers, spec.level_index, data.own, clock)
    with clock("logits"):
        logits = None if previous is None else newest.logits(previous.head)
    with clock("assignment"):
        assigned, probabilities = _supervise(spec, logits, data, ask, oracle_labels)
        probabilities = probabilities.to(data.train.device)
        top = consistency.top_classes(probabilities, TOP_STORED)
        confidence = probabilities.gather(1, top[:, :1]).squeeze(1).float()
        keep, consensus = torch.ones(data.n_samples, dtype=torch.bool), tuple[float, ...]()
        if logits is not None and previous is not None:
            signals = _signals(logits, top[:, 0], confidence, previous, data, io)
            consensus = tuple(consistency.consensus_rate(signals.student_rank, k) for k in CONSENSUS_K)
            keep = _keep(number, spec, signals)
        logits = None  # N x C floats that training does not need
        newest.drop()
    with clock("training"):
        fitted = trainer.fit(
            spec.level_index,
            probabilities if spec.soft else top[:, 0],
            keep,
            lambda epoch, epochs, loss: io.progress(number, epoch, epochs, loss),
        )
    with clock("logits"):
        train_classes = newest.logits(fitted.head).max(dim=1).indices
        validation_classes = trainer.logits(fitted.head, data.validation).max(dim=1).indices
        test_classes = trainer.logits(fitted.head, data.test).max(dim=1).indices

    def everywhere(values: Tensor) -> Tensor:
        return io.merge(data.own, values, data.n_samples)

    return RoundOutput(
        head=fitted.head,
        assigned=everywhere(assigned.to(torch.int32)),
        top_classes=everywhere(top.to(torch.int32)),
        teacher_confidence=everywhere(confidence),
        keep=keep,
        train_classes=everywhere(train_classes.to(torch.int32)),
        validation_classes=validation_classes.to(torch.int32).cpu(),
        test_classes=test_classes.to(torch.int32).cpu(),
        test_curve=fitted.test_curve.to(torch.int32).cpu(),
        curve_epochs=fitted.curve_epochs,
        losses=fitted.losses,
        consensus=consensus,
        asked=io.total(ask.asked),
        forward_passes=io.total(ask.forward_passes),
        seconds=clock.seconds,
        trained_samples=fitted.trained_samples,
    )


def _supervise(
    spec: RoundSpec, logits: Tensor | None, data: StudentData, ask: _Counter, oracle_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(teacher per owned sample [n], supervision [n, C]) of a round."""
    mixture = torch.full((len(data.own),), -1)
    teacher_of_class = None if spec.level is None else torch.from_numpy(spec.level.teacher_of_class())
    if spec.level is None or spec.assignment == "oracle":
        if oracle_labels is None:
            raise ValueError(f"assignment {spec.assignment!r} needs the ground truth, which this run was not given")
        truth = oracle_labels[data.own]
        if spec.level is None or teacher_of_class is None:
            return mixture, torch.nn.functional.one_hot(truth, data.n_classes).to(torch.float16)
        return ask.routed(assign.assign_by_truth(truth, teacher_of_class))
    n_teachers = spec.level.n_teachers
    if spec.assignment == "mean":
        return mixture, assign.mix(torch.full((len(data.own), n_teachers), 1 / n_teachers), ask.one)
    if spec.assignment == "vote":
        return mixture, assign.majority_vote(ask.one, n_teachers)
    if n_teachers == 1:
        return ask.routed(torch.zeros(len(data.own), dtype=torch.int64))
    if logits is None:
        raise ValueError(f"assignment {spec.assignment!r} over {n_teachers} teachers needs a previous student")
    if spec.assignment == "agreement":
        return assign.assign_by_agreement(logits.cpu(), ask.one, n_teachers)
    assert teacher_of_class is not None
    if spec.assignment == "soft":
        weights = assign.responsibilities(logits.cpu(), teacher_of_class, n_teachers)
        return weights.argmax(dim=1), assign.mix(weights, ask.one)
    return ask.routed(assign.assign_by_student(logits.cpu(), teacher_of_class))


def _signals(
    logits: Tensor, classes: Tensor, confidence: Tensor, previous: RoundOutput, data: StudentData, io: RoundIO
) -> Signals:
    """The filters' inputs, merged over the workers."""
    losses = consistency.class_losses(logits, classes)
    before = previous.top_classes[data.own].to(classes.device)
    local = Signals(
        student_loss=losses,
        student_rank=consistency.class_ranks(logits, classes),
        student_confidence=torch.exp(-losses),
        teacher_confidence=confidence,
        previous_rank=consistency.rank_in_top(before, classes),
        previous_confidence=previous.teacher_confidence[data.own],
    )
    return local.map(lambda values: io.merge(data.own, values, data.n_samples))


def _keep(number: int, spec: RoundSpec, signals: Signals) -> Tensor:
    """Intersection of the filters' masks."""
    keep = torch.ones(len(signals.student_loss), dtype=torch.bool)
    for keeps in spec.filters:
        keep &= keeps(signals)
    if keep.any():
        return keep
    if spec.keep_all_if_empty:
        return torch.ones_like(keep)
    rates = ", ".join(f"top-{k} {consistency.consensus_rate(signals.student_rank, k):.3f}" for k in CONSENSUS_K)
    raise NothingKeptError(
        f"round {number}: the filters kept none of {len(keep)} samples (consensus rates: {rates}). Loosen "
        f"rounds.filters, or set rounds.on_empty=keep_all to train such a round on all samples."
    )


class _Newest:
    """Logits float32 [n, C] of the newest student on the owned training samples: they close its own round and open
    the next one, so they are computed once, and dropped while the next student trains."""

    def __init__(self, trainer: HeadTrainer, features: Tensor) -> None:
        self._trainer, self._features = trainer, features
        self._logits: Tensor | None = None

    def logits(self, head: Mapping[str, Tensor]) -> Tensor:
        """Of the newest student, whose weights these are."""
        if self._logits is None:
            self._logits = self._trainer.logits(head, self._features)
        return self._logits

    def drop(self) -> None:
        """There is, or will be, a newer student."""
        self._logits = None


class _Clock:
    """Wall seconds per phase; phases may be entered several times, and nested time counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer, self._inner = self._inner, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed - self._inner
            self._inner = outer + elapsed


class _Counter:
    """Asks the teachers of one level about the owned samples, and counts."""

    def __init__(self, teachers: Teachers, level: int, own: Tensor, clock: _Clock) -> None:
        self._teachers, self._level, self._own, self._clock = teachers, level, own, clock
        self.asked = 0
        self.forward_passes = 0

    def routed(self, assigned: Tensor) -> tuple[Tensor, Tensor]:
        """(assigned, probabilities of the assigned teacher per sample fp16 [n, C])."""
        with self._clock("teachers"):
            probabilities, passes = self._teachers.predict(self._level, assigned, self._own)
        self.asked += len(assigned)
        self.forward_passes += passes
        return assigned, probabilities

    def one(self, teacher: int) -> Tensor:
        """Probabilities of one teacher on every owned sample."""
        return self.routed(torch.full((len(self._own),), teacher))[1]
