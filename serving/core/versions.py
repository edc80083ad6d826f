"""Versions of models, loaded and unloaded while requests run on them.

What is wanted comes from serving.core.manager. One thread decides what to load and to unload, and each load and unload has
a thread of its own; the lock that a request takes is held for none of that. A request pins its version, whose model is
closed only after the last of them ended.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from serving.errors import ServingError, from_exception, invalid
from serving.telemetry import logs

START, LOADING, AVAILABLE, UNLOADING, END = (
    getattr(get_model_status_pb2.ModelVersionStatus, state)
    for state in ("START", "LOADING", "AVAILABLE", "UNLOADING", "END"))
# What a load came to: (name, version, error or None, seconds), after each attempt.
OnLoaded = Callable[[str, int, ServingError | None, float], None]
OnUnloaded = Callable[[str, int], None]


class Settings(NamedTuple):
    """How versions are found and loaded.

    Base paths are listed every `poll_seconds`: 0 is once and at each reload, less than 0 never. A failing version is
    loaded 1 + load_retries times, `retry_seconds` apart. 0 threads are one.
    """

    poll_seconds: float = 1.0
    load_retries: int = 5
    retry_seconds: float = 60.0
    load_threads: int = 0
    unload_threads: int = 0
    allow_unavailable_labels: bool = False


class Version:
    """A version that was wanted once; `busy` while a thread loads or closes it, `users` are requests that run on it."""

    def __init__(self, name: str, number: int, directory: Path):
        self.name, self.number, self.directory = name, number, directory
        # START, then LOADING until it is AVAILABLE or has failed for the last time, UNLOADING until it is closed, END.
        self.state, self.code, self.message = START, grpc.StatusCode.OK, ""
        self.wanted, self.busy, self.users, self.attempts, self.retry_at = True, False, 0, 0, 0.0
        self.model = None
        # Another directory of its number.
        self.passed_over: Path | None = None

    def log(self, level: int, event: str, error: Exception | None = None, **fields: object) -> None:
        """Log what happens to it."""
        logs.log_event(level, event, {"model": self.name, "version": self.number, **fields}, error)


class Versions:
    """All versions of all models. Whoever reads or changes anything here holds `changed`, and may wait on it.

    `versions` holds those that were ever wanted, {name: {number: Version}}, and `serving` those of them that requests
    can use. The other arguments are those of serving.core.manager.ModelManager.
    """

    def __init__(self, settings: Settings, load: Callable[[str, int, Path], Any],
                 on_loaded: OnLoaded, on_unloaded: OnUnloaded):
        self._settings, self._load, self._on_loaded, self._on_unloaded = settings, load, on_loaded, on_unloaded
        self.changed = threading.Condition(threading.Lock())
        self.versions: dict[str, dict[int, Version]] = {}
        self.serving: dict[str, dict[int, Version]] = {}
        self.load_threads = settings.load_threads or 1
        self.stopping = False
        self._loading = self._unloading = 0
        self.thread = threading.Thread(target=self._manage, daemon=True, name="versions")

    def want(self, name: str, found: dict[int, Path]) -> None:
        """Let these be all wanted versions of a model."""
        versions = self.versions.setdefault(name, {})
        for number, directory in found.items():
            version = versions.get(number)
            # One that failed and is still wanted is not tried again.
            if version is None or (version.state == END and not version.wanted):
                versions[number] = Version(name, number, directory)
            elif version.wanted and directory not in (version.directory, version.passed_over):
                # Once, and not at each listing.
                version.passed_over = directory
                version.log(logging.WARNING, "another directory of a version is not looked at",
                            directory=directory, loaded=version.directory)
            versions[number].wanted = True
        for number in versions.keys() - found.keys():
            version = versions[number]
            version.wanted = False
            if version.state in (START, LOADING) and not version.busy:
                version.state = END
        self.changed.notify_all()

    def pinned(self, name: str, number: int | None) -> Version | None:
        """Return a version that stays until `released`, the highest if none is named, or None."""
        with self.changed:
            serving = self.serving.get(name)
            version = serving.get(max(serving) if number is None else number) if serving else None
            if version:
                version.users += 1
            return version

    def released(self, version: Version) -> None:
        with self.changed:
            version.users -= 1
            if not version.users and version.state == UNLOADING:
                self.changed.notify_all()

    def _manage(self) -> None:
        while True:
            with self.changed:
                jobs = self._due()
                while not jobs:
                    all_versions = [version for versions in self.versions.values() for version in versions.values()]
                    if self.stopping and all(version.state == END for version in all_versions):
                        return
                    retries = [version.retry_at for version in all_versions
                               if version.state == LOADING and not version.busy]
                    # Where there are too few threads, a retry is due already; the end of another load wakes this.
                    wait = max(min(retries) - time.monotonic(), 0.05) if retries else None
                    self.changed.wait(wait)
                    jobs = self._due()
            for work, version in jobs:
                try:
                    threading.Thread(target=work, args=(version,), daemon=True,
                                     name=f"{work.__name__} {version.name} {version.number}").start()
                except RuntimeError:
                    # No more threads to be had: then in this one.
                    work(version)

    def _due(self) -> list[tuple[Callable[[Version], None], Version]]:
        """Mark what is to be done now, and return it."""
        jobs, now = [], time.monotonic()
        for name, versions in self.versions.items():
            wanted = [version for version in versions.values() if version.wanted]
            # Somebody must answer before an old one goes.
            if not wanted or any(version.state == AVAILABLE for version in wanted):
                for version in versions.values():
                    if version.state == AVAILABLE and not version.wanted:
                        version.state = UNLOADING
                        del self.serving[name][version.number]
                        version.log(logging.INFO, "unloading")
            for number in sorted(versions):
                version = versions[number]
                if (version.state == UNLOADING and not version.busy and not version.users
                        and self._unloading < (self._settings.unload_threads or 1)):
                    version.busy = True
                    self._unloading += 1
                    jobs.append((self._unload_one, version))
            for version in sorted(wanted, key=lambda version: -version.number):
                if (version.state in (START, LOADING) and not version.busy and version.retry_at <= now
                        and self._loading < self.load_threads):
                    version.state, version.busy = LOADING, True
                    self._loading += 1
                    jobs.append((self._load_one, version))
        return jobs

    def _load_one(self, version: Version) -> None:
        version.log(logging.INFO, "loading", directory=version.directory)
        began, model, failure = time.monotonic(), None, None
        try:
            model = self._load(version.name, version.number, version.directory)
        except Exception as error:
            failure = from_exception(error)
            if failure.bug:
                version.log(logging.ERROR, "unexpected error in a load", failure.bug)
        self._tell(version, self._on_loaded, failure, time.monotonic() - began)
        with self.changed:
            self._loading -= 1
            version.busy = False
            if failure is None:
                version.model, version.state, version.code, version.message = model, AVAILABLE, grpc.StatusCode.OK, ""
                self.serving.setdefault(version.name, {})[version.number] = version
            else:
                version.attempts += 1
                version.code, version.message = failure.code, failure.message
                again = version.wanted and version.attempts <= self._settings.load_retries
                version.state = LOADING if again else END
                version.retry_at = time.monotonic() + self._settings.retry_seconds
                if again:
                    version.log(logging.INFO, "load is tried again", seconds=self._settings.retry_seconds)
            self.changed.notify_all()

    def _unload_one(self, version: Version) -> None:
        try:
            version.model.close()
        except Exception as error:
            version.log(logging.ERROR, "unexpected error in an unload", error)
        # What keeps the version in the list of states shall not keep its memory.
        version.model = None
        self._tell(version, self._on_unloaded)
        with self.changed:
            self._unloading -= 1
            version.busy, version.state = False, END
            if version.wanted:
                # Again, after it had been unwanted.
                self.versions[version.name][version.number] = Version(version.name, version.number, version.directory)
            self.changed.notify_all()

    def _tell(self, version: Version, hook: Callable[..., None], *arguments: object) -> None:
        """Call a hook, whose mistakes must not leave a version half loaded."""
        try:
            hook(version.name, version.number, *arguments)
        except Exception as error:
            version.log(logging.ERROR, "unexpected error in a hook", error)


PLATFORM = "tensorflow"
# As a 64-bit signed integer is written; zeros may lead.
NUMBER = re.compile(r"[+-]?[0-9]+")


def versions_in(base_path: Path) -> dict[int, Path]:
    """Return {version: directory} of a base path; directories whose name is no int64 are something else's.

    Raises OSError where the base path cannot be listed.
    """
    found = {}
    # Sorted, so that of 7 and 007 it is always the same one.
    for path in sorted(Path(base_path).iterdir()):
        if NUMBER.fullmatch(path.name) and -2**63 <= int(path.name) < 2**63 and path.is_dir():
            found[int(path.name)] = path
    return found


def versions_to_load(model: config_pb2.ModelConfig, found: dict[int, Path]) -> dict[int, Path]:
    """Return those versions that a model's policy takes: the latest, unless it says something else."""
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return dict(found)
    if kind == "specific":
        return {version: found[version] for version in policy.specific.versions if version in found}
    # 0 where it is not set.
    return {version: found[version] for version in sorted(found)[-max(policy.latest.num_versions, 1):]}


def check_model_configs(models: list[config_pb2.ModelConfig]) -> None:
    """Raise ServingError INVALID_ARGUMENT where a list of models cannot be served."""
    names = set()
    for model in models:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
        if "\0" in model.base_path:
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; got one with a null character")
        if "://" in model.base_path:
            raise invalid(f"Expected model {model.name} to have an absolute path, since this server reads no URIs; "
                          f"got base_path()={model.base_path}")
        if not Path(model.base_path).is_absolute():
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; "
                          f"got base_path()={model.base_path}")
        # 1: TENSORFLOW, in a field from before there were platforms.
        platform = model.model_platform or (PLATFORM if model.model_type == 1 else "")
        if not platform:
            raise invalid("Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                          f"ModelServerConfig::model_platform, model name is {model.name}")
        if platform != PLATFORM:
            raise invalid(f"Model {model.name} requests unsupported platform {platform}; there is {PLATFORM} alone")
