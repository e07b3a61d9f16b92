"""Joining a Ray cluster, or starting a private one for the duration of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from orchestrator.config import ComputeConfig
from orchestrator.display import Display


@contextmanager
def ray_session(compute: ComputeConfig, display: Display) -> Iterator[bool]:
    """Ray for the body: the one this process is in, the configured cluster, or a private local one.

    Yields whether Ray is private, that is, started here and for this process alone.
    A private Ray never attaches to another that happens to run on the machine, and is gone afterwards.
    """
    if ray.is_initialized():
        yield False
        return
    # token authentication is on for a new local Ray, which is as it should be and needs no warning
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    address = compute.ray_address or os.environ.get("RAY_ADDRESS")
    display.note(f"joining Ray at {address}" if address else "starting a private Ray")
    if address:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        # a private Ray can always place what the run asks for: more workers than cores share them
        needed = compute.workers * compute.cpus_per_worker + compute.teacher_actors * compute.cpus_per_teacher_actor
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(needed + 0.999)),
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    try:
        _warn_if_short(compute, display)
        yield not address
    finally:
        ray.shutdown()


def _warn_if_short(compute: ComputeConfig, display: Display) -> None:
    """Say what a run is going to wait for."""
    have = ray.cluster_resources()
    wants = {
        "CPU": compute.workers * compute.cpus_per_worker + compute.teacher_actors * compute.cpus_per_teacher_actor,
        "GPU": compute.workers * compute.gpus_per_worker,
    }
    for name, count in wants.items():
        if count > have.get(name, 0):
            display.note(f"waiting for the cluster: {count:g} {name} asked for, {have.get(name, 0):g} there so far")
