"""Shared by all tests: one thread, one Ray for the session, one MLflow server for the session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes no test needs
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)

from orchestrator import ExperimentConfig, load_config

SMALL = (
    "data.fourier_features=128",
    "data.components=32",
    "hierarchy.levels=[1, 2, 4]",
    "student.epochs=4",
    "student.lr=0.01",
)
"""The embedded data set at a size where a round takes some hundredths of a second."""


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., ExperimentConfig]:
    """A small experiment stored in the test's own folder: ``make_config("student.lr=0.1", ...)``."""

    def make(*overrides: str, storage: Path | None = None) -> ExperimentConfig:
        own = (f"storage={storage or tmp_path / 'runs'}", "tracking.enabled=false", "compute.backend=inline")
        return load_config(None, [*SMALL, *own, *overrides])

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real local Ray with room for several workers, apart from any other Ray of this machine."""
    import ray

    with tempfile.TemporaryDirectory(prefix="csl-ray-", dir="/tmp") as folder:
        ray.init(
            address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _temp_dir=folder,
            logging_level="WARNING",
        )  # fmt: skip
        yield
        ray.shutdown()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class MlflowServer:
    """A real MLflow server that can be stopped and started again on the same port and store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--port", str(self.port)]
        arguments += [
            "--artifacts-destination",
            str(self.folder / "artifacts"),
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
        ]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server, running."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
