"""Model versions that are loaded and unloaded while requests run on them.

serving.core.manager decides which versions are wanted. One thread decides what to load and to unload next; every load
and unload runs in its own thread, and none of them holds the lock that requests take. A request acquires its version,
and a version's model is closed only after its last request has released it.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from serving.core.servable import Servable
from serving.errors import ServingError, from_exception
from serving.telemetry import logs

START, LOADING, AVAILABLE, UNLOADING, END = (
    getattr(get_model_status_pb2.ModelVersionStatus, state)
    for state in ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")
)
# (name, version, directory) -> the loaded version.
Loader = Callable[[str, int, Path], Servable]
# (name, version, error or None, seconds), called after each attempt to load.
OnLoaded = Callable[[str, int, ServingError | None, float], None]
# (name, version)
OnUnloaded = Callable[[str, int], None]


class VersionSettings(NamedTuple):
    """Settings for finding and loading versions.

    Attributes:
        poll_seconds: The interval at which base paths are listed. 0: once and at each reload; negative: never.
        load_retries: The number of retries after a failed load.
        retry_seconds: The pause before a retry.
        load_threads: The number of simultaneous loads; 0 means one.
        unload_threads: The number of simultaneous unloads; 0 means one.
        allow_unavailable_labels: Whether a new label may name a version that is not loaded yet.
    """

    poll_seconds: float = 1.0
    load_retries: int = 5
    retry_seconds: float = 60.0
    load_threads: int = 0
    unload_threads: int = 0
    allow_unavailable_labels: bool = False


class Version:
    """A model version that is or was wanted.

    Attributes:
        state: START, then LOADING until it is AVAILABLE or its last retry failed, UNLOADING until it is closed, END.
        wanted: Whether the config and the disk still ask for it.
        busy: Whether a thread is loading or closing it.
        users: The number of requests that run on it.
        ignored_directory: The last other directory of the same number that was reported.
    """

    def __init__(self, name: str, number: int, directory: Path):
        self.name, self.number, self.directory = name, number, directory
        self.state, self.code, self.message = START, grpc.StatusCode.OK, ""
        self.wanted, self.busy, self.users, self.attempts, self.retry_at = True, False, 0, 0, 0.0
        self.model: Servable | None = None
        self.ignored_directory: Path | None = None

    def log(self, level: int, event: str, error: Exception | None = None, **fields: object) -> None:
        """Log an event of this version."""
        logs.log_event(level, event, {"model": self.name, "version": self.number, **fields}, error)


class Versions:
    """All versions of all models, and the threads that load and unload them.

    The lock of `changed` guards everything here, and the manager's state as well. `acquire` and `release` take it
    themselves; the caller of any other method holds it, and may wait on `changed` for the next change.

    Attributes:
        known: Every version that was ever wanted, {model: {number: Version}}.
        serving: The versions that requests can use, {model: {number: Version}}.
        load_threads: The number of simultaneous loads.
    """

    def __init__(
        self,
        changed: threading.Condition,
        settings: VersionSettings,
        load: Loader,
        on_loaded: OnLoaded,
        on_unloaded: OnUnloaded,
    ):
        self._changed, self._settings = changed, settings
        self._load, self._on_loaded, self._on_unloaded = load, on_loaded, on_unloaded
        self.known: dict[str, dict[int, Version]] = {}
        self.serving: dict[str, dict[int, Version]] = {}
        self.load_threads = settings.load_threads or 1
        self._stopping = False
        self._loading = self._unloading = 0
        # It begins to load when the manager starts it, and ends after `unload_all`.
        self.thread = threading.Thread(target=self._run_jobs, daemon=True, name="versions")

    def set_wanted(self, name: str, directories: dict[int, Path]) -> None:
        """Replace the wanted versions of a model, {number: directory}."""
        versions = self.known.setdefault(name, {})
        for number, directory in directories.items():
            version = versions.get(number)
            # A version that failed and is still wanted is not loaded again.
            if version is None or (version.state == END and not version.wanted):
                versions[number] = Version(name, number, directory)
            elif version.wanted and directory not in (version.directory, version.ignored_directory):
                # Report the directory once, not at each listing.
                version.ignored_directory = directory
                version.log(
                    logging.WARNING,
                    "ignoring a second directory of a version",
                    directory=directory,
                    loaded=version.directory,
                )
            versions[number].wanted = True
        for number in versions.keys() - directories.keys():
            version = versions[number]
            version.wanted = False
            if version.state in (START, LOADING) and not version.busy:
                version.state = END
        self._changed.notify_all()

    def unload_all(self) -> None:
        """Unload every version, after which `thread` ends."""
        self._stopping = True
        for name in self.known:
            self.set_wanted(name, {})
        self._changed.notify_all()

    def acquire(self, name: str, number: int | None) -> Version | None:
        """Return a serving version and keep it loaded until `release`.

        Returns the highest version if `number` is None, and None if no such version is serving.
        """
        with self._changed:
            serving = self.serving.get(name)
            version = serving.get(max(serving) if number is None else number) if serving else None
            if version:
                version.users += 1
            return version

    def release(self, version: Version) -> None:
        """End a use that `acquire` began."""
        with self._changed:
            version.users -= 1
            if not version.users and version.state == UNLOADING:
                self._changed.notify_all()

    def _run_jobs(self) -> None:
        while True:
            with self._changed:
                jobs = self._take_jobs()
                while not jobs:
                    all_versions = [version for versions in self.known.values() for version in versions.values()]
                    if self._stopping and all(version.state == END for version in all_versions):
                        return
                    retries = [
                        version.retry_at for version in all_versions if version.state == LOADING and not version.busy
                    ]
                    # A retry that lacks a thread is overdue; the end of another load notifies this thread.
                    wait = max(min(retries) - time.monotonic(), 0.05) if retries else None
                    self._changed.wait(wait)
                    jobs = self._take_jobs()
            for work, version in jobs:
                try:
                    threading.Thread(
                        target=work,
                        args=(version,),
                        daemon=True,
                        name=f"{work.__name__} {version.name} {version.number}",
                    ).start()
                except RuntimeError:
                    # The system has no more threads, so this one does the work.
                    work(version)

    def _take_jobs(self) -> list[tuple[Callable[[Version], None], Version]]:
        """Mark the versions to load and unload now and return them with their work."""
        jobs, now = [], time.monotonic()
        for name, versions in self.known.items():
            wanted = [version for version in versions.values() if version.wanted]
            # The old version answers until a wanted one does.
            if not wanted or any(version.state == AVAILABLE for version in wanted):
                for version in versions.values():
                    if version.state == AVAILABLE and not version.wanted:
                        version.state = UNLOADING
                        del self.serving[name][version.number]
                        version.log(logging.INFO, "unloading")
            for number in sorted(versions):
                version = versions[number]
                if (
                    version.state == UNLOADING
                    and not version.busy
                    and not version.users
                    and self._unloading < (self._settings.unload_threads or 1)
                ):
                    version.busy = True
                    self._unloading += 1
                    jobs.append((self._unload_one, version))
            for version in sorted(wanted, key=lambda version: -version.number):
                if (
                    version.state in (START, LOADING)
                    and not version.busy
                    and version.retry_at <= now
                    and self._loading < self.load_threads
                ):
                    version.state, version.busy = LOADING, True
                    self._loading += 1
                    jobs.append((self._load_one, version))
        return jobs

    def _load_one(self, version: Version) -> None:
        version.log(logging.INFO, "loading", directory=version.directory)
        started, model, failure = time.monotonic(), None, None
        try:
            model = self._load(version.name, version.number, version.directory)
        except Exception as error:
            failure = from_exception(error)
            if failure.bug:
                version.log(logging.ERROR, "unexpected error in a load", failure.bug)
        self._call_hook(version, self._on_loaded, failure, time.monotonic() - started)
        with self._changed:
            self._loading -= 1
            version.busy = False
            if failure is None:
                version.model, version.state, version.code, version.message = model, AVAILABLE, grpc.StatusCode.OK, ""
                self.serving.setdefault(version.name, {})[version.number] = version
            else:
                version.attempts += 1
                version.code, version.message = failure.code, failure.message
                retry = version.wanted and version.attempts <= self._settings.load_retries
                version.state = LOADING if retry else END
                version.retry_at = time.monotonic() + self._settings.retry_seconds
                if retry:
                    version.log(logging.INFO, "load will be retried", seconds=self._settings.retry_seconds)
            self._changed.notify_all()

    def _unload_one(self, version: Version) -> None:
        try:
            version.model.close()
        except Exception as error:
            version.log(logging.ERROR, "unexpected error in an unload", error)
        # The version stays in `known` for its status; its memory must not.
        version.model = None
        self._call_hook(version, self._on_unloaded)
        with self._changed:
            self._unloading -= 1
            version.busy, version.state = False, END
            if version.wanted:
                # It became wanted again during the unload.
                self.known[version.name][version.number] = Version(version.name, version.number, version.directory)
            self._changed.notify_all()

    def _call_hook(self, version: Version, hook: Callable[..., None], *arguments: object) -> None:
        """Call a hook; its exceptions must not leave a version half loaded."""
        try:
            hook(version.name, version.number, *arguments)
        except Exception as error:
            version.log(logging.ERROR, "unexpected error in a hook", error)
