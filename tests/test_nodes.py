"""Several nodes: real raylets on one machine, each with room for one student worker only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator import ExperimentConfig, ExperimentResult, run_experiment

MakeConfig = Callable[..., ExperimentConfig]

PROGRAM = """
import json, sys, ray
from ray.cluster_utils import Cluster
from orchestrator import load_config, run_experiment

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for _ in range(2):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
nodes = set()

class Watch:
    def epoch(self, *args):
        from ray.util.state import list_actors
        if not nodes:
            nodes.update(a.node_id for a in list_actors() if a.class_name == "RayTrainWorker" and a.state == "ALIVE")
    def round(self, *args): pass
    def note(self, text): pass

result = run_experiment(load_config(None, json.loads(sys.argv[1])), display=Watch())
print(json.dumps({"nodes": len(nodes), "path": str(result.path)}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_the_student_trains_on_two_nodes(make_config: MakeConfig, tmp_path: Path) -> None:
    alone = run_experiment(make_config())
    from tests.conftest import SMALL

    own = [f"storage={tmp_path / 'two'}", "tracking.enabled=false", "compute.workers=2", "compute.teacher_actors=2"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([*SMALL, *own])], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    result = ExperimentResult.load(answer["path"])
    for mine, other in zip(result.rounds, alone.rounds, strict=True):
        np.testing.assert_array_equal(mine.keep, other.keep)
        for name, weight in mine.head.items():
            np.testing.assert_allclose(weight, other.head[name], atol=1e-4)
    assert answer["nodes"] == 2
