"""The weak teachers of an experiment (or of a whole sweep), in this process or in Ray actors.

A teacher is asked only about the samples routed to it. Only indices travel to it and fp16 probabilities back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.chains import teacher_key
from orchestrator.config import ExperimentConfig
from orchestrator.data.dataset import Dataset
from orchestrator.method.hierarchy import Level
from orchestrator.teacher_host import TeacherHost, TeacherSpec, TeacherTask

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Answer = tuple[NDArray[np.float16], int]
Ask = Callable[[list[tuple[int, int, NDArray[np.int64]]]], list[Answer]]
"""[(level, teacher, rows)] -> their answers, asked all at once."""


def make_specs(config: ExperimentConfig, dataset: Dataset, levels: Sequence[Level]) -> list[TeacherSpec]:
    """Every teacher of the hierarchy."""
    return [
        TeacherSpec(
            level=number,
            index=k,
            block=level.blocks[k],
            key=teacher_key(config, dataset, levels, number, k),
            given=dataset.given_teachers.get((number, k)),
        )
        for number, level in enumerate(levels)
        for k in range(level.n_teachers)
    ]


def make_task(config: ExperimentConfig, dataset: Dataset, specs: Sequence[TeacherSpec], store: Path) -> TeacherTask:
    """What the hosts need of the data: the labels of the teachers' split, and no others."""
    rows = dataset.splits.teacher
    trained = any(spec.given is None for spec in specs)
    return TeacherTask(
        inputs=dataset.inputs if trained else None,
        rows=rows,
        labels=dataset.labels[rows],
        n_classes=dataset.n_classes,
        settings=config.teachers.model_dump(),
        seed=config.seed,
        device=config.device,
        store=store,
    )


class RoutedTeachers:
    """`method.records.Teachers` over any way to ask.

    Args:
        ask: answers a list of requests.
        student_rows: row in the data set of each of the student's training samples, int64 [N].
        n_classes: C.
    """

    def __init__(self, ask: Ask, student_rows: NDArray[np.int64], n_classes: int) -> None:
        self._ask, self._student_rows, self._n_classes = ask, student_rows, n_classes

    def predict(self, level: int, assigned: Tensor, samples: Tensor) -> tuple[Tensor, int]:
        """See `method.records.Teachers.predict`."""
        import torch

        teacher_of_sample = assigned.numpy()
        rows = self._student_rows[samples.numpy()]
        routed = [(k, np.flatnonzero(teacher_of_sample == k)) for k in np.unique(teacher_of_sample)]
        answers = self._ask([(level, int(k), rows[at]) for k, at in routed])
        if len(routed) == 1:
            return torch.from_numpy(np.array(answers[0][0])), answers[0][1]
        out = np.empty((len(rows), self._n_classes), dtype=np.float16)
        for (_, at), (probabilities, _) in zip(routed, answers, strict=True):
            out[at] = probabilities
        return torch.from_numpy(out), sum(passes for _, passes in answers)


class LocalPool:
    """Teachers in this process."""

    def __init__(self, specs: Sequence[TeacherSpec], task: TeacherTask) -> None:
        self._host = TeacherHost(specs, task)
        self._specs = specs

    def ask(self, requests: list[tuple[int, int, NDArray[np.int64]]]) -> list[Answer]:
        """Answer requests one after the other."""
        return [self._host.predict(*request) for request in requests]

    def test_classes(self, rows: NDArray[np.int64]) -> dict[tuple[int, int], NDArray[np.int32]]:
        """Class predicted by every teacher on the given rows: evaluation only."""
        return {(s.level, s.index): self._host.classes(s.level, s.index, rows) for s in self._specs}

    def close(self) -> None:
        """Nothing to free."""


class ActorPool:
    """Teachers spread over Ray actors.

    A killed actor is restarted by Ray and its calls are retried: it reloads its teachers from the store and fills
    its memory again as it is asked. Constructor arguments are serialised references to objects that this pool holds:
    passed plainly they would be freed and the restart would fail (ray-project/ray#53727).

    Args:
        specs: the teachers, dealt out over the actors in turn.
        task: shared data; put into the object store once.
        n_actors: number of actors.
        cpus: CPUs reserved per actor.
    """

    def __init__(self, specs: Sequence[TeacherSpec], task: TeacherTask, n_actors: int, cpus: float) -> None:
        import ray

        n_actors = min(n_actors, len(specs))
        self._specs = specs
        actor = ray.remote(_HostActor)
        shares = [list(specs[i::n_actors]) for i in range(n_actors)]
        self._refs = [ray.put(task), *(ray.put(share) for share in shares)]
        lasting = actor.options(num_cpus=cpus, max_restarts=-1, max_task_retries=-1)
        self.actors = [lasting.remote(ray.cloudpickle.dumps([ref, self._refs[0]])) for ref in self._refs[1:]]
        self.actor_of = {(s.level, s.index): self.actors[i % n_actors] for i, s in enumerate(specs)}
        self._ready_refs = [a.ready.remote() for a in self.actors]

    def test_classes(self, rows: NDArray[np.int64]) -> dict[tuple[int, int], NDArray[np.int32]]:
        """Class predicted by every teacher on the given rows: evaluation only."""
        import ray

        rows_ref = ray.put(rows)
        refs = [self.actor_of[s.level, s.index].classes.remote(s.level, s.index, rows_ref) for s in self._specs]
        return {(s.level, s.index): classes for s, classes in zip(self._specs, ray.get(refs), strict=True)}

    def close(self) -> None:
        """Stop the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)


class _HostActor(TeacherHost):
    """A host whose arguments are fetched from the object store, also when Ray starts it again."""

    def __init__(self, references: bytes) -> None:
        import ray

        super().__init__(*ray.get(ray.cloudpickle.loads(references)))


def ask_actors(actor_of: dict[tuple[int, int], Any]) -> Ask:
    """An `Ask` over actor handles, for use inside a training worker."""
    import ray

    def ask(requests: list[tuple[int, int, NDArray[np.int64]]]) -> list[Answer]:
        refs = [actor_of[level, index].predict.remote(level, index, rows) for level, index, rows in requests]
        answers: list[Answer] = ray.get(refs)
        return answers

    return ask
