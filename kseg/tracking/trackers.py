"""Start the trackers of a run, and keep their failures away from it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kseg.config import Config
from kseg.config.values import leaves
from kseg.errors import TrackingError
from kseg.system.atomic_files import write_text
from kseg.tracking import mlflow_tracker

# In the working directory: {tracker: {"uri", "run"}}, from which a resumed run continues.
FILE = "tracking.json"
# Seconds from a failure to the next attempt, because a call to a server that is away takes seconds itself.
PAUSE = 60.0


class Tracker(Protocol):
    """A run on a server that tracks experiments. Every method may raise anything."""

    id: str

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values after a step."""

    def log_artifact(self, path: Path, folder: str) -> None:
        """Send a file or a directory into a folder of the run; "" is its top."""

    def end(self, finished: bool) -> None:
        """Mark the run as finished or interrupted."""


# By their keys in the section `tracking`: functions of (uri, experiment, name, run, parameters), where `run` is the id
# of a run to continue, or "".
TRACKERS: dict[str, Callable[[str, str, str, str, Mapping[str, str]], Tracker]] = {"mlflow": mlflow_tracker.start}


class Connection:
    """A tracker whose failures are reported once and raise nothing; scalars that failed are sent again later."""

    def __init__(self, name: str, tracker: Tracker, report: Callable[[str], None]):
        self.name, self.tracker, self.report = name, tracker, report
        self.waiting: list[tuple[int, Mapping[str, float]]] = []
        self.failed, self.next_attempt = False, 0.0

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values, and those that wait from before."""
        self.waiting.append((step, values))
        if time.monotonic() >= self.next_attempt:
            self._send_waiting()

    def log_artifact(self, path: Path, folder: str) -> None:
        """Send a file or a directory, at one attempt."""
        self._attempt(lambda: self.tracker.log_artifact(path, folder))

    def end(self, finished: bool) -> None:
        """Send what waits, and mark the run."""
        self._send_waiting()
        self._attempt(lambda: self.tracker.end(finished))

    def _send_waiting(self) -> None:
        while self.waiting and self._attempt(lambda: self.tracker.log_scalars(*self.waiting[0])):
            self.waiting.pop(0)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Return whether an action succeeded."""
        try:
            action()
        # A library and its server fail in more ways than can be listed, and none of them concerns the training.
        except Exception as error:
            self.next_attempt = time.monotonic() + PAUSE
            if not self.failed:
                self.failed = True
                self.report(f"warning: {self.name} failed ({_first_line(error)}); training goes on without it")
            return False
        return True


class Trackers:
    """The trackers of a run; none by default. As a context it marks their runs at its end."""

    def __init__(self, connections: Sequence[Connection] = ()):
        self.connections = connections

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        for connection in self.connections:
            connection.end(finished=kind is None)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values after a step to all trackers."""
        for connection in self.connections:
            connection.log_scalars(step, values)

    def log_artifacts(self, paths: Sequence[Path], folder: str = "") -> None:
        """Send those of the files and directories that exist to all trackers."""
        for connection in self.connections:
            for path in paths:
                if path.exists():
                    connection.log_artifact(path, folder)


def start(config: Config, workdir: Path, report: Callable[[str], None] = print) -> Trackers:
    """Start or continue the trackers that a config names, and store the ids of their runs.

    Args:
        config: The config of the run; its values are the parameters.
        workdir: The working directory, which exists.
        report: Receives later failures.

    Raises:
        TrackingError: A tracker is not installed, or cannot be reached.
    """
    path, known = workdir / FILE, read_runs(workdir)
    parameters = {key: str(value) for key, value in leaves(config) if not key.startswith("tracking.")}
    connections = []
    for name, begin in TRACKERS.items():
        if not (uri := getattr(config.tracking, name)):
            continue
        stored = known.get(name, {})
        run = stored.get("run", "") if stored.get("uri") == uri else ""
        try:
            tracker = begin(uri, config.tracking.experiment, workdir.resolve().name, run, parameters)
        except ModuleNotFoundError as error:
            raise TrackingError(
                f"tracking.{name}={uri} needs a library that is not installed ({error}): pip install 'kseg[tracking]', "
                f"or train without it, --set tracking.{name}="
            ) from None
        except Exception as error:
            raise TrackingError(
                f"tracking.{name}={uri} cannot be used: {_first_line(error)}. Check the address, the server and the "
                f"installed extra (pip install 'kseg[tracking]'), or train without it: --set tracking.{name}="
            ) from None
        connections.append(Connection(f"tracking.{name}={uri}", tracker, report))
        known[name] = {"uri": uri, "run": tracker.id}
    if connections:
        write_text(path, json.dumps(known) + "\n", report)
    return Trackers(connections)


def log_results(
    config: Config,
    workdir: Path,
    paths: Sequence[Path],
    folder: str,
    scalars: Mapping[str, float],
    report: Callable[[str], None] = print,
) -> None:
    """Add files and scores to the runs that the training of a working directory started; failures are reported.

    Args:
        config: The config of the run.
        workdir: Its working directory.
        paths: Files and directories.
        folder: Where in the run they are stored.
        scalars: Scores by name.
        report: Receives failures.
    """
    if not read_runs(workdir):
        return
    try:
        trackers = start(config, workdir, report)
    except TrackingError as error:
        # The results are already written, and only their copy is missing.
        report(f"warning: {error}")
        return
    with trackers:
        if scalars:
            trackers.log_scalars(0, scalars)
        trackers.log_artifacts(paths, folder)


def read_runs(workdir: Path) -> dict[str, dict[str, str]]:
    """Read {tracker: {"uri", "run"}}; raises TrackingError for a damaged file."""
    path = workdir / FILE
    if not path.exists():
        return {}
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"uri": str(stored["uri"]), "run": str(stored["run"])} for name, stored in runs.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise TrackingError(f"{path} is damaged; remove it, and the next start begins a new tracked run") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
