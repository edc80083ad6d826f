"""Tracking: what reaches a tracker, what a resumed run continues, and that failures stop nothing but the start."""

import importlib.util
import json

import pytest

from kseg import config as configs
from kseg.config import checks
from kseg.errors import ConfigError, TrackingError
from kseg.tracking import trackers


class Notebook:
    """A tracker that writes down its calls, and fails while `away` is set."""

    def __init__(self, run, parameters):
        self.id, self.parameters, self.calls, self.away = run or "new", parameters, [], False

    def note(self, *call):
        if self.away:
            raise ConnectionError("no route\nto the server")
        self.calls.append(call)

    def log_scalars(self, step, values):
        self.note(step, values)

    def log_artifact(self, path, folder):
        self.note(path.name, folder)

    def end(self, finished):
        self.note("finished" if finished else "interrupted")


@pytest.fixture
def notebooks(monkeypatch):
    """The trackers that were started in place of MLflow's."""
    made = []

    def begin(uri, experiment, name, run, parameters):
        if uri == "http://away":
            raise ConnectionError("refused")
        made.append(Notebook(run, parameters))
        return made[-1]

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", begin)
    return made


def config(uri):
    return configs.load("encnet_shapes", [f"tracking.mlflow={uri}", "train.steps=7"])


def test_nothing_is_started_without_an_address(notebooks, tmp_path):
    with trackers.start(config(""), tmp_path) as tracked:
        tracked.log_scalars(1, {"train/loss": 1.0})
    trackers.log_results(config("http://one"), tmp_path, [tmp_path], "", {})
    assert not notebooks and not list(tmp_path.iterdir())


def test_a_resumed_run_continues_its_tracked_run_and_another_server_gets_a_new_one(notebooks, tmp_path):
    with trackers.start(config("http://one"), tmp_path):
        pass
    [first] = notebooks
    assert first.parameters["train.steps"] == "7" and not any(key.startswith("tracking") for key in first.parameters)
    path = tmp_path / trackers.FILE
    path.write_text(path.read_text().replace("new", "run-1"))
    for uri, expected in (("http://one", "run-1"), ("http://two", "new")):
        with pytest.raises(KeyboardInterrupt), trackers.start(config(uri), tmp_path):
            raise KeyboardInterrupt
        assert notebooks[-1].id == expected and notebooks[-1].calls == [("interrupted",)]
    trackers.log_results(config("http://two"), tmp_path, [path, tmp_path / "none"], "x", {"a": 1.0})
    assert notebooks[-1].calls == [(0, {"a": 1.0}), (trackers.FILE, "x"), ("finished",)]


def test_a_failure_is_reported_once_and_its_scalars_are_sent_later(notebooks, tmp_path, monkeypatch):
    lines, now = [], [0.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    with trackers.start(config("http://one"), tmp_path, lines.append) as tracked:
        [notebook] = notebooks
        notebook.away = True
        for step in (1, 2):
            tracked.log_scalars(step, {"a": step})
        tracked.log_artifacts([tmp_path])
        assert notebook.calls == [] and len(lines) == 1 and "http://one" in lines[0] and "\n" not in lines[0]
        notebook.away = False
        tracked.log_scalars(3, {"a": 3})
        assert notebook.calls == []
        now[0] += trackers.PAUSE
        tracked.log_scalars(4, {"a": 4})
    assert notebook.calls == [*((step, {"a": step}) for step in (1, 2, 3, 4)), ("finished",)] and len(lines) == 1


def test_a_server_that_is_away_at_the_start_is_an_error_with_address_and_extra(notebooks, tmp_path):
    with pytest.raises(TrackingError, match=r"tracking.mlflow=http://away .*refused.*\[tracking\]"):
        trackers.start(config("http://away"), tmp_path)
    (tmp_path / trackers.FILE).write_text(json.dumps({"mlflow": {"uri": "http://away", "run": "1"}}))
    lines = []
    trackers.log_results(config("http://away"), tmp_path, [], "", {}, lines.append)
    assert len(lines) == 1 and "http://away" in lines[0]


def test_a_password_in_the_address_is_refused():
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        config("https://me:secret@host/path")
    assert checks.check_config(config("http://host:5000/a@b"))


@pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None,
    reason="mlflow-skinny is not installed: its importlib-metadata is older than that of requirements.lock",
)
def test_mlflow_keeps_parameters_metrics_and_files_of_both_starts(tmp_path):
    from mlflow.tracking import MlflowClient

    store, workdir = f"file:{tmp_path / 'store'}", tmp_path / "work"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    for step in (1, 2):
        with trackers.start(config(store), workdir) as tracked:
            tracked.log_scalars(step, {"iou/straße, №1": 0.5 * step, "train/loss": float("nan")})
            tracked.log_artifacts([workdir / "config.json"])
    trackers.log_results(config(store), workdir, [workdir], "export/1", {"evaluation/val/mIoU": 0.25})
    client = MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("kseg").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["train.steps"] == "7"
    assert run.data.metrics == {"iou/straße_ _1": 1.0, "evaluation/val/mIoU": 0.25}
    assert [entry.step for entry in client.get_metric_history(run.info.run_id, "iou/straße_ _1")] == [1, 2]
    found = {file.path for folder in ("", "export/1") for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"config.json", "export/1/config.json"} <= found
