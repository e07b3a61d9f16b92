"""The Ray Train side: one worker group for all rounds of an experiment."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
from numpy.typing import NDArray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator.errors import CslError, RunFailedError
from orchestrator.job import StudentJob, StudentView
from orchestrator.teacher_host import TeacherSpec
from orchestrator.teacher_pool import ActorTeachers, RoutedTeachers

if TYPE_CHECKING:
    from torch import Tensor

_POLL_SECONDS = "0.1"
"""Ray Train's controller polls its workers this often; its default of 2 s delays every report and the exit."""


class _ProcessGroupBackend(Backend):  # type: ignore[misc]
    """Gives the workers a rendezvous address; they set torch's process group up themselves.

    Ray's own torch backend imports torch in driver and controller as well, some seconds of start-up for nothing.
    """

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        from ray.train._internal.utils import get_address_and_port

        address, port = worker_group.execute_single(0, get_address_and_port)

        def set_rendezvous(address: str, port: int) -> None:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)

        worker_group.execute(set_rendezvous, address=address, port=port)


@dataclass
class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]
    """Backend of the student's worker group."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See BackendConfig."""
        return _ProcessGroupBackend


class _LeanTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train without the helper processes this product has no use for; each costs 2 s of a core at every start.

    Ray Data shards are never used here. On a private Ray, which ends with this process, nothing can outlive the
    controller and no node is preempted; on a cluster both guards stay.
    """

    def __init__(self, *args: Any, private: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interrupted = False
        self._unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if private else set())

    def _register_sigint_handler(self, controller: Any) -> None:
        super()._register_sigint_handler(controller)
        abort = signal.getsignal(signal.SIGINT)

        def handler(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            assert callable(abort)
            abort(number, frame)

        signal.signal(signal.SIGINT, handler)

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self._unused]


def train_student(
    job: StudentJob,
    view: StudentView,
    oracle_labels: NDArray[np.int64] | None,
    teachers: ActorTeachers,
    specs: Sequence[TeacherSpec],
    run_dir: Path,
    name: str,
    private: bool,
) -> None:
    """Train all chains of an experiment under Ray Train; rounds go to the cache, progress to ``run_dir``.

    Args:
        job: what to train.
        view: the data without ground truth; put into the object store once.
        oracle_labels: ground truth for chains that are upper bounds; None if there are none.
        teachers, specs: the teachers' actors, and who is who in the hierarchy.
        run_dir: folder of the run, visible to all nodes.
        name: identity of the run: a run of the same name resumes, so it must change with the configuration.
        private: whether Ray belongs to this process alone.

    Raises:
        NothingKeptError: a round's filters rejected everything.
        RunFailedError: the worker group failed more often than ``compute.max_failures``.
    """
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = _POLL_SECONDS
    compute = job.config.compute
    resources: dict[str, float] = {"CPU": compute.cpus_per_worker}
    if compute.gpus_per_worker:
        resources["GPU"] = compute.gpus_per_worker
    held = {"view": ray.put(view), "oracle_labels": ray.put(oracle_labels)}  # alive until fit returns
    if private:
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    trainer = _LeanTrainer(
        _train_loop,
        private=private,
        train_loop_config={"job": job, "teachers": teachers, "specs": list(specs), "run_dir": str(run_dir), **held},
        backend_config=ProcessGroupConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(run_dir / "train"),
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        failure: CslError | None = trainer.fit().return_value
    except (Exception, SystemExit) as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        if not isinstance(error, ray.train.TrainingFailedError):
            raise
        text = str(next(iter(getattr(error, "worker_failures", {}).values()), error)).strip()
        raise RunFailedError(
            f"training stopped: {text.splitlines()[-1] if text else type(error).__name__}\n"
            f"Finished rounds are stored; the same command resumes after them. Logs: {run_dir / 'train'}"
        ) from error
    finally:
        if trainer.interrupted:  # Ray Train leaves its own handler behind
            signal.signal(signal.SIGINT, before)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if failure is not None:
        raise failure


def _train_loop(config: dict[str, Any]) -> CslError | None:
    """Runs in every worker: the whole experiment, resumed from whatever rounds are finished.

    A mistake of the user's is returned, not raised: starting the workers again would not mend it.
    """
    import torch

    from orchestrator.round_cache import RoundCache
    from orchestrator.worker import append_event, run_chains

    job: StudentJob = config["job"]
    torch.set_num_threads(job.config.compute.cpus_per_worker)
    group = _TorchGroup()
    if (checkpoint := ray.train.get_checkpoint()) is not None and group.rank == 0:
        with checkpoint.as_directory() as folder:  # where the cache did not survive, the last round does
            RoundCache(job.cache).install(Path(folder))
    view: StudentView = ray.get(config["view"])

    def announce(folder: Path | None) -> None:
        checkpoint = ray.train.Checkpoint.from_directory(str(folder)) if folder is not None else None
        ray.train.report({}, checkpoint=checkpoint)

    try:
        run_chains(
            job,
            view,
            ray.get(config["oracle_labels"]),
            RoutedTeachers(config["teachers"], config["specs"], view.rows, view.n_classes),
            group,
            append_event(Path(config["run_dir"]) / "events.jsonl"),
            announce,
        )
    except CslError as error:
        return getattr(error, "cause", error)
    return None


class _TorchGroup:
    """The workers of this group, over torch.distributed."""

    def __init__(self) -> None:
        import torch.distributed

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._cuda = torch.cuda.is_available()
        if self.world_size > 1 and not torch.distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if self._cuda else "gloo"
            torch.distributed.init_process_group(backend, rank=self.rank, world_size=self.world_size)

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over the workers, in place."""
        import torch.distributed

        torch.distributed.all_reduce(tensor)
