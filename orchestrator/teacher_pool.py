"""The weak teachers of an experiment (or of a whole sweep), in this process or in Ray actors.

A teacher is asked only about the samples routed to it. Only indices travel to it and fp16 probabilities back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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

Rows = NDArray[np.int64]
Answer = tuple[NDArray[np.float16], int]
"""Probabilities fp16 [n, C], and the forward passes made for them."""


class TeacherPool(Protocol):
    """Teachers by key, wherever they live."""

    def ask(self, requests: list[tuple[str, Rows]]) -> list[Answer]:
        """Probabilities for [(teacher key, rows of the data set)], asked all at once."""
        ...

    def classes(self, keys: Sequence[str], rows: Rows) -> list[NDArray[np.int32]]:
        """Class predicted by each teacher on the given rows: evaluation only."""
        ...


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
    """`method.records.Teachers` over a pool.

    Args:
        pool: answers.
        specs: the hierarchy's teachers.
        student_rows: row in the data set of each of the student's training samples, int64 [N].
        n_classes: C.
    """

    def __init__(self, pool: TeacherPool, specs: Sequence[TeacherSpec], student_rows: Rows, n_classes: int) -> None:
        self._pool, self._student_rows, self._n_classes = pool, student_rows, n_classes
        self._key_of = {(s.level, s.index): s.key for s in specs}

    def predict(self, level: int, assigned: Tensor, samples: Tensor) -> tuple[Tensor, int]:
        """See `method.records.Teachers.predict`."""
        import torch

        teacher_of_sample = assigned.numpy()
        rows = self._student_rows[samples.numpy()]
        routed = [(int(k), np.flatnonzero(teacher_of_sample == k)) for k in np.unique(teacher_of_sample)]
        answers = self._pool.ask([(self._key_of[level, k], rows[at]) for k, at in routed])
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

    def ask(self, requests: list[tuple[str, Rows]]) -> list[Answer]:
        """See `TeacherPool.ask`."""
        return [self._host.predict(*request) for request in requests]

    def classes(self, keys: Sequence[str], rows: Rows) -> list[NDArray[np.int32]]:
        """See `TeacherPool.classes`."""
        return [self._host.classes(key, rows) for key in keys]


@dataclass(frozen=True)
class ActorTeachers:
    """Teachers in Ray actors. Can be sent to any process of the cluster."""

    actor_of: Mapping[str, Any]
    """Teacher key -> actor handle."""

    def ask(self, requests: list[tuple[str, Rows]]) -> list[Answer]:
        """See `TeacherPool.ask`."""
        import ray

        answers: list[Answer] = ray.get([self.actor_of[key].predict.remote(key, rows) for key, rows in requests])
        return answers

    def classes(self, keys: Sequence[str], rows: Rows) -> list[NDArray[np.int32]]:
        """See `TeacherPool.classes`."""
        import ray

        rows_ref = ray.put(rows)
        found: list[NDArray[np.int32]] = ray.get([self.actor_of[key].classes.remote(key, rows_ref) for key in keys])
        return found


class ActorPool:
    """Owns the Ray actors that host teachers, of one experiment or of a whole sweep.

    A killed actor is restarted by Ray and its calls are retried: it reloads its teachers from the store and fills
    its memory again as it is asked. Constructor arguments are serialised references to objects that this pool holds:
    passed plainly they would be freed and the restart would fail (ray-project/ray#53727).

    Args:
        groups: teachers and what they need; teachers of the same key are hosted once. Shared data is put into the
            object store once per group, teachers are dealt out over the actors in turn.
        n_actors: number of actors.
        cpus: CPUs reserved per actor.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[TeacherSpec], TeacherTask]], n_actors: int, cpus: float) -> None:
        import ray

        shares: list[list[tuple[TeacherSpec, Any]]] = [[] for _ in range(n_actors)]
        placed: dict[str, int] = {}
        self._refs = []
        for specs, task in groups:
            task_ref = ray.put(task)
            self._refs.append(task_ref)
            for spec in specs:
                if spec.key not in placed:
                    placed[spec.key] = len(placed) % n_actors
                    shares[placed[spec.key]].append((spec, task_ref))
        used = [share for share in shares if share]
        share_refs = [ray.put(share) for share in used]
        self._refs += share_refs
        lasting = ray.remote(_HostActor).options(num_cpus=cpus, max_restarts=-1, max_task_retries=-1)
        self._actors = [lasting.remote(ray.cloudpickle.dumps(ref)) for ref in share_refs]
        self.teachers = ActorTeachers({key: self._actors[actor] for key, actor in placed.items()})
        self._ready_refs = [actor.ready.remote() for actor in self._actors]

    def close(self) -> None:
        """Stop the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


class _HostActor:
    """Hosts in a Ray actor; arguments are fetched from the object store, also when Ray starts it again."""

    def __init__(self, reference: bytes) -> None:
        import ray

        share: list[tuple[TeacherSpec, Any]] = ray.get(ray.cloudpickle.loads(reference))
        by_task: dict[Any, list[TeacherSpec]] = {}
        for spec, task_ref in share:
            by_task.setdefault(task_ref, []).append(spec)
        self._hosts = [TeacherHost(specs, ray.get(task_ref)) for task_ref, specs in by_task.items()]
        self._host_of = {
            spec.key: host for host, specs in zip(self._hosts, by_task.values(), strict=True) for spec in specs
        }

    def ready(self) -> int:
        """Train or load every teacher; returns how many there are."""
        return sum(host.ready() for host in self._hosts)

    def predict(self, key: str, rows: Rows) -> Answer:
        """See `TeacherHost.predict`."""
        return self._host_of[key].predict(key, rows)

    def classes(self, key: str, rows: Rows) -> NDArray[np.int32]:
        """See `TeacherHost.classes`."""
        return self._host_of[key].classes(key, rows)
