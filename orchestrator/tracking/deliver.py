"""Delivers journals to MLflow, each record exactly once.

A cursor file says how far a journal has been delivered. A crash between delivering and moving the cursor repeats at
most one batch, and MLflow keeps one copy: metrics repeat with the same step and time stamp, everything else has a
name that is overwritten with the same content.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# before MLflow is imported: a server that is down is reported at once and tried again by us, not for minutes by it
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.errors import TrackingError
from orchestrator.journal import Record, read_journal
from orchestrator.tracking.figures import draw
from orchestrator.tracking.model import log_student, tracking_to

_log = logging.getLogger("csl.delivery")
_BATCH = 500
_PARAM_LIMIT = 6000
_POLL_SECONDS = 0.25
_LONGEST_PAUSE = 10.0


class JournalDelivery:
    """Delivery of one run's journal.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
        self._run = json.loads((run_dir / "run.json").read_text())
        self._cursor_file = run_dir / "delivered.json"
        self._client = mlflow.MlflowClient(tracking_uri=self._run["uri"])
        self._run_id: str | None = None
        self.finished = False
        """Whether the last record delivered ends the run."""

    def deliver(self) -> int:
        """Deliver what is new; returns the number of records.

        Raises:
            TrackingError: the server did not take them; call again later.
        """
        total = 0
        try:
            while batch := self._next_batch():
                self._send([record for record, _ in batch])
                self._move_cursor(batch[-1][1])
                total += len(batch)
        except (MlflowException, OSError) as error:
            raise TrackingError(f"{self._run['uri']}: {error}") from error
        return total

    def _next_batch(self) -> list[tuple[Record, int]]:
        batch = []
        for item in read_journal(self._dir / "journal.jsonl", self._cursor()):
            batch.append(item)
            if len(batch) == _BATCH:
                break
        return batch

    def _send(self, records: list[Record]) -> None:
        run_id = self._run_id or self._find_or_create_run(records[0]["time"])
        self._run_id = run_id
        by_kind: dict[str, list[Record]] = {}
        for record in records:
            by_kind.setdefault(record["kind"], []).append(record)
        self._client.log_batch(
            run_id,
            metrics=[Metric(r["name"], r["value"], r["time"], r["step"]) for r in by_kind.get("metric", [])],
            params=[Param(r["name"], r["value"][:_PARAM_LIMIT]) for r in by_kind.get("param", [])],
            tags=[RunTag(r["name"], r["value"]) for r in by_kind.get("tag", [])],
        )
        for r in by_kind.get("dataset", []):
            fields = {k: json.dumps(r[k]) for k in ("schema", "profile")}
            dataset = Dataset(name=r["name"], digest=r["digest"], source_type="csl", source=r["source"], **fields)
            self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        for r in by_kind.get("figure", []):
            self._client.log_figure(run_id, draw(r), f"figures/round_{r['step']}_{r['name']}.png")
        for r in by_kind.get("artifact", []):
            folder = Path(r["name"]).parent
            self._client.log_artifact(run_id, str(self._dir / r["name"]), None if folder == Path() else str(folder))
        if by_kind.get("model") and not self._client.get_run(run_id).outputs.model_outputs:
            log_student(self._dir, run_id, self._run["uri"])
        for r in by_kind.get("register", []):
            self._register(r)
        for r in by_kind.get("status", [])[-1:]:
            self._set_status(run_id, r)

    def _set_status(self, run_id: str, record: Record) -> None:
        self.finished = record["name"] != "RUNNING"
        if self.finished:
            self._client.set_terminated(run_id, record["name"], record["time"])
        elif self._client.get_run(run_id).info.status != RunStatus.to_string(RunStatus.RUNNING):
            self._client.update_run(run_id, status=record["name"])

    def _register(self, record: Record) -> None:
        """Make the student of a trial a version of a registered model, with an alias."""
        trial = JournalDelivery(Path(record["trial"]))
        trial_run = trial._find_or_create_run(record["time"])
        if not self._client.get_run(trial_run).outputs.model_outputs:
            log_student(Path(record["trial"]), trial_run, self._run["uri"])
        model_id = self._client.get_run(trial_run).outputs.model_outputs[0].model_id
        name = record["name"]
        known = self._client.search_model_versions(f"name = '{name}'")
        version = next((v.version for v in known if v.run_id == trial_run), None)  # a server does not tell model ids
        if version is None:
            if not known:
                with suppress(MlflowException):  # it may exist without versions
                    self._client.create_registered_model(name)
            source = f"models:/{model_id}"
            with tracking_to(self._run["uri"]):  # the source is looked up on the default server
                version = self._client.create_model_version(name, source, trial_run, model_id=model_id).version
        self._client.set_registered_model_alias(name, record["alias"], version)

    def _find_or_create_run(self, start_time: int) -> str:
        """The MLflow run of this journal: made once, found by its tag ever after."""
        name = self._run["experiment"]
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                experiment_id = self._client.create_experiment(name, artifact_location=self._artifacts())
            except MlflowException:  # another run was faster
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment is not None:
            experiment_id = experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"tags.`csl.run` = '{self._run['id']}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {"csl.run": self._run["id"]}
        if "parent" in self._run:
            sweep = JournalDelivery(Path(self._run["parent"]))
            tags["mlflow.parentRunId"] = sweep._find_or_create_run(start_time)
        run = self._client.create_run(experiment_id, start_time=start_time, tags=tags, run_name=self._run["name"])
        return str(run.info.run_id)

    def _artifacts(self) -> str | None:
        """Artifacts of the embedded store lie beside its database; a server has its own place."""
        uri = self._run["uri"]
        if not uri.startswith("sqlite:///"):
            return None
        return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()

    def _cursor(self) -> int:
        if not self._cursor_file.exists():
            return 0
        return int(json.loads(self._cursor_file.read_text())["offset"])

    def _move_cursor(self, offset: int) -> None:
        temporary = self._cursor_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"offset": offset, "run_id": self._run_id}))
        temporary.replace(self._cursor_file)


def members(folder: Path) -> list[Path]:
    """Folders with journals of a run or sweep: a sweep's trials first, for it refers to what they delivered."""
    return [*sorted(path.parent for path in folder.glob("trials/*/run.json")), folder]


def sync(folders: Iterable[Path]) -> dict[Path, int | TrackingError]:
    """Deliver what is missing of each run or sweep; one that another process is delivering is left to it."""
    outcome: dict[Path, int | TrackingError] = {}
    for folder in folders:
        try:
            with FileLock(folder / ".delivery.lock", timeout=0):
                outcome[folder] = sum(JournalDelivery(member).deliver() for member in members(folder))
        except Timeout:
            outcome[folder] = 0
        except TrackingError as error:
            outcome[folder] = error
    return outcome


def follow(folder: Path, parent: int) -> int:
    """Deliver a run or sweep as it goes on, until its end is delivered; give up once its process is gone.

    Returns:
        Exit code: 0 when everything is delivered.
    """
    pause = _POLL_SECONDS
    failed = folder / "delivery.failed"  # there while the last attempt failed: the run looks at it at its end
    deliveries: dict[Path, JournalDelivery] = {}
    with FileLock(folder / ".delivery.lock"):
        while True:
            alone = os.getppid() != parent
            try:
                sent = 0
                for member in members(folder):
                    if member not in deliveries:
                        deliveries[member] = JournalDelivery(member)
                    sent += deliveries[member].deliver()
                failed.unlink(missing_ok=True)
                # the end came after whatever is not sent yet, so it takes a look at everything after it
                if not sent and (deliveries[folder].finished or alone):
                    return 0
                pause = _POLL_SECONDS
                time.sleep(pause)
            except (TrackingError, MlflowException, OSError) as error:
                _log.warning("not delivered yet: %s", error)
                failed.write_text(str(error))
                if alone:
                    return 1
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
