"""The run's side of tracking: journals what is known at the start, starts the process that delivers. No MLflow here."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from orchestrator.config import ExperimentConfig
from orchestrator.display import Display
from orchestrator.journal import Journal
from orchestrator.prepare import Prepared

_POLL_SECONDS = 0.1
_PACKAGES = ("co-supervised-learning", "ray", "torch", "mlflow", "numpy")


def default_uri(storage: str) -> str:
    """The embedded store: SQLite inside the storage folder."""
    return f"sqlite:///{Path(storage).expanduser().resolve() / 'mlflow.db'}"


def tracking_uri(config: ExperimentConfig) -> str:
    """Where a run is delivered to: the configuration, then MLFLOW_TRACKING_URI, then the embedded store."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(config.storage)


class Delivery:
    """Delivers a journal while the body runs, from a child process.

    The end waits ``tracking.wait_seconds`` for what is left; after that, and after any error of the server, the
    records stay in the journal for ``csl sync``.

    Args:
        run_dir: folder of the run.
        config: tracking settings and storage.
        journal: gets the run's status.
        display: told when something is left undelivered.
        parent: folder of the sweep this run is a trial of; the sweep delivers its trials itself.
    """

    def __init__(
        self, run_dir: Path, config: ExperimentConfig, journal: Journal, display: Display, parent: Path | None = None
    ) -> None:
        self._run_dir, self._config, self._journal, self._display = run_dir, config, journal, display
        self._parent = parent
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Delivery:
        identity = self._run_dir / "run.json"
        if not (self._run_dir / "delivered.json").exists():  # as long as no server knows the run, it may go to any
            known = json.loads(identity.read_text())["id"] if identity.exists() else uuid.uuid4().hex
            content = {"id": known, "uri": tracking_uri(self._config)}
            content |= {"name": self._config.name, "experiment": self._config.tracking.experiment}
            content |= {"parent": str(self._parent)} if self._parent else {}
            identity.write_text(json.dumps(content))
        self._status("RUNNING")
        if self._config.tracking.enabled and self._parent is None:
            with (self._run_dir / "delivery.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "orchestrator.tracking", str(self._run_dir)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the run; delivery ends by itself
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._status("FINISHED" if kind is None else "KILLED" if kind in (KeyboardInterrupt, SystemExit) else "FAILED")
        self._journal.close()
        if self._process is None:
            return
        # after a failure nobody should wait for bookkeeping
        wait = self._config.tracking.wait_seconds if kind is None else min(5.0, self._config.tracking.wait_seconds)
        delivered = self._wait(wait)
        if not delivered:
            self._display.note(
                f"not everything has reached MLflow yet; `csl sync {self._config.storage}` delivers the rest "
                f"(see {self._run_dir / 'delivery.log'})"
            )

    def _wait(self, seconds: float) -> bool:
        """Whether everything was delivered in time; a server that refuses is not waited for."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (self._run_dir / "delivery.failed").exists():
            try:
                return self._process.wait(_POLL_SECONDS) == 0
            except subprocess.TimeoutExpired:
                continue
        self._process.terminate()  # the cursor moves after each batch: stopping is always safe
        return self._process.wait() == 0

    def _status(self, status: str) -> None:
        # a run that is resumed changes its status several times: each change is a record of its own
        self._journal.write("status", status, step=int(time.time() * 1000))


def serve(arguments: list[str]) -> int:
    """Run ``mlflow`` with these arguments until it or this process is told to end; leaves no process behind."""
    # MLflow's job runners (seven more processes) serve its GenAI features, which nothing here uses
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    command = [sys.executable, "-m", "mlflow", *arguments]
    server = subprocess.Popen(command, env=environment, start_new_session=True)

    def end(number: int, frame: object) -> None:
        os.killpg(server.pid, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    return max(0, server.wait())


def journal_start(journal: Journal, prepared: Prepared) -> None:
    """Parameters, tags and the data set: all that is known before the first round."""
    config, dataset = prepared.config, prepared.dataset
    for name, value in _flatten(config.to_dict()).items():
        journal.write("param", name, value=value)
    for name, value in _environment().items():
        journal.write("tag", name, value=value)
    journal.write("tag", "csl.identity", value=prepared.identity)
    journal.write("tag", "csl.path", value=str(prepared.run_dir))
    if config.rounds.assignment == "oracle":
        journal.write("tag", "csl.oracle", value="assignment uses ground truth: an upper bound, not a result")
    counts = dataset.splits.counts()
    journal.write(
        "dataset",
        dataset.name,
        digest=dataset.digest,
        source=json.dumps(config.to_dict()["data"]),
        profile={"samples": len(dataset.labels), "classes": dataset.n_classes, "splits": counts},
        schema={"inputs": list(dataset.inputs.shape[1:]), "features": list(dataset.features.shape[1:])},
    )


def _environment() -> dict[str, str]:
    """Versions, commit and hardware of this process."""
    tags = {"csl.python": platform.python_version(), "csl.host": platform.node()}
    for package in _PACKAGES:
        try:
            tags[f"csl.version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=here)
    if git.returncode == 0:
        tags["mlflow.source.git.commit"] = git.stdout.strip()
    memory = psutil.virtual_memory().total / 2**30
    tags["csl.hardware"] = f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return tags


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> value; lists as JSON. The form of MLflow parameters."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else str(value)
    return flat
