"""The two places an experiment can run: this process, or Ray (teachers in actors, student under Ray Train)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.display import Display
from orchestrator.evaluation import TeacherClasses
from orchestrator.prepare import Prepared
from orchestrator.recorder import Follower, Recorder
from orchestrator.teacher_pool import ActorPool, ActorTeachers, LocalPool, RoutedTeachers, TeacherPool

MakeRecorder = Callable[[Callable[[], TeacherClasses]], Recorder]
"""From a way to ask every teacher about the test split to a recorder."""


def train(
    prepared: Prepared, make_recorder: MakeRecorder, display: Display, teachers: ActorTeachers | None = None
) -> Recorder:
    """Compute the missing rounds on the configured backend; returns the recorder that saw them all.

    Args:
        prepared: the experiment.
        make_recorder: called once the teachers can be asked.
        display: told what a run waits for.
        teachers: those of the sweep this run belongs to; None: the run starts its own.
    """
    if prepared.config.compute.backend == "inline":
        return _inline(prepared, make_recorder, teachers or LocalPool(prepared.specs, prepared.task))
    return _ray(prepared, make_recorder, display, teachers)


def _inline(prepared: Prepared, make_recorder: MakeRecorder, pool: TeacherPool) -> Recorder:
    import torch

    from orchestrator.worker import Alone, run_chains

    threads = torch.get_num_threads()
    torch.set_num_threads(prepared.config.compute.cpus_per_worker)
    try:
        recorder = make_recorder(lambda: _test_classes(prepared, pool))
        view = prepared.view()
        routed = RoutedTeachers(pool, prepared.specs, view.rows, view.n_classes)
        run_chains(prepared.job, view, prepared.oracle_labels(), routed, Alone(), recorder.handle)
    finally:
        torch.set_num_threads(threads)
    return recorder


def _ray(prepared: Prepared, make_recorder: MakeRecorder, display: Display, teachers: ActorTeachers | None) -> Recorder:
    from orchestrator.ray_session import ray_session
    from orchestrator.student_run import train_student

    with ray_session(prepared.config.compute, display) as private, _pool(prepared, teachers) as pool:
        events = prepared.run_dir / "events.jsonl"
        trained = sum(spec.given is None for spec in prepared.specs)
        display.note(f"weak teachers: {trained} to train, {len(prepared.specs) - trained} given; starting the student")
        with Follower(events, lambda: make_recorder(lambda: _test_classes(prepared, pool))) as follower:
            train_student(
                prepared.job,
                prepared.view(),
                prepared.oracle_labels(),
                pool,
                prepared.specs,
                run_dir=prepared.run_dir,
                name=prepared.run_name,
                private=private,
            )
        return follower.recorder


@contextmanager
def _pool(prepared: Prepared, teachers: ActorTeachers | None) -> Iterator[ActorTeachers]:
    """The sweep's teachers, or actors of this run's own."""
    if teachers is not None:
        yield teachers
        return
    compute = prepared.config.compute
    groups = [(prepared.specs, prepared.task)]
    pool = ActorPool(groups, compute.teacher_actors, compute.cpus_per_teacher_actor)
    try:
        yield pool.teachers
    finally:
        pool.close()


def _test_classes(prepared: Prepared, pool: TeacherPool) -> TeacherClasses:
    """What every teacher says of the test split."""
    answers = pool.classes([spec.key for spec in prepared.specs], prepared.dataset.splits.test)
    return {(spec.level, spec.index): classes for spec, classes in zip(prepared.specs, answers, strict=True)}
