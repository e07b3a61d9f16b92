"""The two places an experiment can run: this process, or Ray (teachers in actors, student under Ray Train)."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.display import Display
from orchestrator.evaluation import TeacherClasses
from orchestrator.prepare import Prepared
from orchestrator.recorder import Follower, Recorder
from orchestrator.teacher_pool import ActorPool, LocalPool, RoutedTeachers

MakeRecorder = Callable[[Callable[[], TeacherClasses]], Recorder]
"""From a way to ask every teacher about the test split to a recorder."""


def train(prepared: Prepared, make_recorder: MakeRecorder, display: Display) -> Recorder:
    """Compute the missing rounds on the configured backend; returns the recorder that saw them all."""
    if prepared.config.compute.backend == "inline":
        return _inline(prepared, make_recorder)
    return _ray(prepared, make_recorder, display)


def _inline(prepared: Prepared, make_recorder: MakeRecorder) -> Recorder:
    import torch

    from orchestrator.worker import Alone, run_chains

    threads = torch.get_num_threads()
    torch.set_num_threads(prepared.config.compute.cpus_per_worker)
    try:
        pool = LocalPool(prepared.specs, prepared.task)
        recorder = make_recorder(lambda: pool.test_classes(prepared.dataset.splits.test))
        view = prepared.view()
        teachers = RoutedTeachers(pool.ask, view.rows, view.n_classes)
        run_chains(prepared.job, view, prepared.oracle_labels(), teachers, Alone(), recorder.handle)
    finally:
        torch.set_num_threads(threads)
    return recorder


def _ray(prepared: Prepared, make_recorder: MakeRecorder, display: Display) -> Recorder:
    from orchestrator.ray_session import ray_session
    from orchestrator.student_run import train_student

    compute = prepared.config.compute
    with ray_session(compute, display) as private:
        pool = ActorPool(prepared.specs, prepared.task, compute.teacher_actors, compute.cpus_per_teacher_actor)
        try:
            with Follower(
                prepared.run_dir / "events.jsonl",
                lambda: make_recorder(lambda: pool.test_classes(prepared.dataset.splits.test)),
            ) as follower:
                train_student(
                    prepared.job,
                    prepared.view(),
                    prepared.oracle_labels(),
                    pool,
                    run_dir=prepared.run_dir,
                    name=prepared.run_name,
                    private=private,
                )
            return follower.recorder
        finally:
            pool.close()
