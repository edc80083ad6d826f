"""Report a run to MLflow."""

import contextlib
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# MLflow refuses more in one call.
BATCH = 100
LONGEST_VALUE = 6000
# Characters that MLflow refuses in names; it takes the letters of all languages.
REFUSED = re.compile(r"[^\w./\- ]")


class MlflowTracker:
    """A run of MLflow; `id` continues it."""

    def __init__(self, client: Any, run: str):
        self.client, self.id = client, run

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values, without those that are not finite."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(REFUSED.sub("_", name), float(value), now, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.id, metrics=metrics[start : start + BATCH])

    def log_artifact(self, path: Path, folder: str) -> None:
        """Send a file, or all files of a directory."""
        if path.is_dir():
            self.client.log_artifacts(self.id, str(path), folder or None)
        else:
            self.client.log_artifact(self.id, str(path), folder or None)

    def end(self, finished: bool) -> None:
        """Mark the run as finished, or as interrupted."""
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


def start(uri: str, experiment: str, name: str, run: str, parameters: Mapping[str, str]) -> MlflowTracker:
    """Continue the run with the id `run`, or start one if that is empty or unknown to the server.

    Args:
        uri: Address of a server, or a directory.
        experiment: Name of the experiment, which is created if it does not exist.
        name: Name of a new run.
        run: Id of a run, or "".
        parameters: Parameters of a new run.

    Raises:
        Exception: Whatever MLflow raises, or ModuleNotFoundError if it is not installed.
    """
    # MLflow waits for minutes by default; training must not.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    if "://" not in uri or uri.startswith("file:"):
        # MLflow wants to be asked for this kind of store, and whoever names a directory has done so.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(experiment)
    if run:
        with contextlib.suppress(MlflowException):
            if client.get_run(run).info.lifecycle_stage == "active":
                client.update_run(run, status="RUNNING")
                return MlflowTracker(client, run)
    made = client.create_run(known.experiment_id if known else client.create_experiment(experiment), run_name=name)
    items = [Param(key, value[:LONGEST_VALUE]) for key, value in parameters.items()]
    for first in range(0, len(items), BATCH):
        client.log_batch(made.info.run_id, params=items[first : first + BATCH])
    return MlflowTracker(client, made.info.run_id)
