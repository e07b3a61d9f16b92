"""Frees the CPUs and GPUs of worker groups whose trial was stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

_POLL_SECONDS = 0.5
_LONGEST_SECONDS = 5.0


@contextmanager
def abandoned_groups_freed() -> Iterator[None]:
    """While the body runs, remove placement groups of this job whose creator is dead.

    Ray keeps the group of a dead actor until the whole job ends. Ray Train's own cleaner asks the dashboard whether
    its controller lives, and without one (`ray_session` starts none) it waits for ever.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_POLL_SECONDS):
            _free()

    thread = threading.Thread(target=run, name="csl-groups", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        deadline = time.monotonic() + _LONGEST_SECONDS
        while _free() and time.monotonic() < deadline:  # a controller takes a moment to follow its trial
            time.sleep(_POLL_SECONDS / 5)


def _free() -> int:
    """Remove abandoned groups; returns how many groups of actors of this job there were."""
    groups = _groups()
    for group in groups:
        if group.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(groups)


def _groups() -> list[Any]:
    """Placement groups of actors of this job; those of trials themselves belong to Tune, that is, to this process."""
    job, driver = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    table = state._connect_and_get_accessor().get_placement_group_table()
    found = [PlacementGroupTableData.FromString(group) for group in table]
    return [
        group
        for group in found
        if group.creator_job_id.hex() == job
        and group.creator_actor_id not in (b"", driver)
        and group.state != PlacementGroupTableData.REMOVED
    ]
