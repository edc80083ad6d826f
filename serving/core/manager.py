"""The model manager: keeps the models of a config loaded and finds the version that a request asks for.

Like TensorFlow Serving, it identifies a version by its number alone: a directory that replaces another one of the same
number is loaded only after a listing without that number. A base path that cannot be listed changes nothing; one
without versions unloads all of them.
"""

import gc
import logging
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from kseg.system.paths import path_fault
from serving.core.servable import Servable
from serving.core.versions import END, Loader, OnLoaded, OnUnloaded, Version, Versions, VersionSettings
from serving.errors import ServingError, invalid, not_found
from serving.telemetry import logs

PLATFORM = "tensorflow"
# The decimal notation of a 64-bit signed integer; leading zeros are allowed.
NUMBER = re.compile(r"[+-]?[0-9]+")


class Handle(NamedTuple):
    """A version that stays loaded while a request uses it."""

    name: str
    version: int
    model: Servable


class VersionStatus(NamedTuple):
    """The status of a version in GetModelStatus; `state` is a ModelVersionStatus.State."""

    version: int
    state: int
    code: grpc.StatusCode
    message: str


class Pin:
    """Context manager that keeps a version loaded and yields its Handle."""

    __slots__ = ("_models", "_spec", "_version")

    def __init__(self, models: "ModelManager", spec: model_pb2.ModelSpec):
        self._models, self._spec = models, spec

    def __enter__(self) -> Handle:
        self._version = version = self._models.acquire(self._spec)
        return Handle(version.name, version.number, version.model)

    def __exit__(self, *exception) -> None:
        self._models.release(self._version)


class ModelManager:
    """All models of a server, from `start` to `stop`."""

    def __init__(
        self,
        settings: VersionSettings,
        load: Loader,
        on_loaded: OnLoaded = lambda name, version, error, seconds: None,
        on_unloaded: OnUnloaded = lambda name, version: None,
    ):
        """Create a manager without models.

        Args:
            settings: How versions are found and loaded.
            load: Returns the Servable of (name, version, directory). An exception becomes the version's status.
            on_loaded: Called with (name, version, error or None, seconds) after each attempt to load, in the thread
                that loads.
            on_unloaded: Called with (name, version) after an unload, in the thread that unloads.
        """
        self._settings = settings
        # It guards this object's state and that of the versions, which change together.
        self._changed = threading.Condition(threading.Lock())
        self._versions = Versions(self._changed, settings, load, on_loaded, on_unloaded)
        self._configured: dict[str, config_pb2.ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        # The last problem logged for each model's base path, so that it is logged once.
        self._problems: dict[str, str] = {}
        # A file system may take long to list a directory, so requests do not take this lock.
        self._listing = threading.Lock()
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True, name="poll base paths")

    def start(self, config: config_pb2.ModelServerConfig) -> None:
        """Load the first versions and wait for one version of each model.

        It waits for as long as a base path has no version. Raises ServingError if the config is wrong or all wanted
        versions of a model failed to load.
        """
        names = self._configure(config)
        # TensorFlow's modules are half a million objects, and a full garbage collection that scans them delays every
        # request by 0.3 s. After this call the collector skips them.
        gc.freeze()
        # No request runs yet that parallel loads would slow down.
        self._versions.load_threads = 4 * (os.cpu_count() or 1)
        self._versions.thread.start()
        try:
            self._list_base_paths()
            self._poller.start()
            self._wait_for(names, None)
        except ServingError:
            self.stop()
            raise
        with self._changed:
            self._versions.load_threads = self._settings.load_threads or 1

    def reload(self, config: config_pb2.ModelServerConfig, deadline: float | None = None) -> None:
        """Replace the list of models and wait for a version of each new name.

        Args:
            config: The new list of models.
            deadline: A value of time.monotonic(), or None.

        Raises:
            ServingError: for a wrong config or label, in which case nothing has changed; or if all wanted versions of
                a new model failed to load or the deadline passed, in which case the new list is in force.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        names = self._configure(config)
        self._list_base_paths()
        self._wait_for(names, deadline)

    def use(self, spec: model_pb2.ModelSpec) -> Pin:
        """Return a context manager that acquires the version a ModelSpec chooses.

        Entering it takes microseconds and raises ServingError if the ModelSpec chooses no version.
        """
        return Pin(self, spec)

    def acquire(self, spec: model_pb2.ModelSpec) -> Version:
        """Return the version that a ModelSpec chooses and keep it loaded until `release`.

        Raises ServingError if the ModelSpec chooses no version.
        """
        name, choice, number = spec.name, spec.WhichOneof("version_choice"), None
        if not name:
            raise invalid("ModelSpec has no name specified.")
        if choice == "version":
            # 0 is a valid version.
            number = spec.version.value
        elif choice == "version_label":
            # Reading needs no lock: `_configure` replaces the dictionary and never changes it.
            number = self._labels.get(name, {}).get(spec.version_label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        version = self._versions.acquire(name, number)
        if version is None:
            wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise not_found(f"Servable not found for request: {wanted}")
        return version

    def release(self, version: Version) -> None:
        """End a use that `acquire` began."""
        self._versions.release(version)

    def statuses(self, spec: model_pb2.ModelSpec) -> list[VersionStatus]:
        """Return the status of a ModelSpec's version, or of all versions of its model, highest first.

        A version label in the ModelSpec is ignored. Unloaded versions stay listed. Raises ServingError NOT_FOUND if
        there is no such version.
        """
        with self._changed:
            versions = self._versions.known.get(spec.name, {})
            if spec.HasField("version"):
                number = spec.version.value
                if number not in versions:
                    raise not_found(f"Could not find version {number} of model {spec.name}")
                versions = {number: versions[number]}
            if not versions:
                raise not_found(f"Could not find any versions of model {spec.name}")
            return [
                VersionStatus(number, versions[number].state, versions[number].code, versions[number].message)
                for number in sorted(versions, reverse=True)
            ]

    def names(self) -> list[str]:
        """Return the names of the configured models, sorted."""
        with self._changed:
            return sorted(self._configured)

    def labels(self, name: str) -> dict[str, int]:
        """Return the version of each label of a model, {} for a model that is not configured."""
        return dict(self._labels.get(name, {}))

    def stop(self, seconds: float = 10.0) -> None:
        """Unload all versions and wait at most `seconds` for requests, loads and unloads in progress.

        Those that take longer continue, and their models are closed afterwards.
        """
        until = time.monotonic() + seconds
        self._stopped.set()
        with self._changed:
            self._configured = {}
            self._versions.unload_all()
        for thread in (self._poller, self._versions.thread):
            # Joining a thread that was never started is an error.
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        gc.unfreeze()

    def _configure(self, config: config_pb2.ModelServerConfig) -> list[str]:
        """Put a checked list of models in force, as a whole or not at all, and return the new names."""
        models = config.model_config_list.config
        check_model_configs(models)
        with self._changed:
            labels = {model.name: self._checked_labels(model) for model in models}
            new = [model.name for model in models if model.name not in self._configured]
            for name in self._configured.keys() - labels.keys():
                self._versions.set_wanted(name, {})
                self._problems.pop(name, None)
            # The caller may change its message later, so this keeps a copy.
            self._configured = {
                model.name: config_pb2.ModelConfig.FromString(model.SerializeToString()) for model in models
            }
            self._labels = labels
            self._changed.notify_all()
        return new

    def _checked_labels(self, model: config_pb2.ModelConfig) -> dict[str, int]:
        """Return a model's labels; raise FAILED_PRECONDITION if one of their versions is not serving.

        With allow_unavailable_labels a new label may wait for its version, but an existing label may not move to a
        version that is not serving.
        """
        old = self._labels.get(model.name, {})
        for label, version in model.version_labels.items():
            allowed = self._settings.allow_unavailable_labels and old.get(label, version) == version
            if not allowed and version not in self._versions.serving.get(model.name, {}):
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {model.name}, which is not "
                    "currently available for inference",
                )
        return dict(model.version_labels)

    def _poll(self) -> None:
        if self._settings.poll_seconds > 0:
            while not self._stopped.wait(self._settings.poll_seconds):
                self._list_base_paths()

    def _list_base_paths(self) -> None:
        """List all base paths and set the wanted versions."""
        if self._settings.poll_seconds < 0:
            return
        # Only one listing runs at a time, so that an older listing never overwrites a newer one.
        with self._listing:
            with self._changed:
                models = list(self._configured.values())
            for model in models:
                try:
                    directories = select_versions(model, list_versions(Path(model.base_path)))
                except OSError as error:
                    self._log_problem(
                        model, f"cannot list the base path, keeping the loaded versions: {error.strerror or error}"
                    )
                    continue
                missing = sorted(set(model.model_version_policy.specific.versions) - set(directories))
                if missing:
                    self._log_problem(model, f"missing versions that the policy names: {missing}")
                else:
                    self._log_problem(
                        model, "" if directories else "no versions: a version is a directory whose name is a number"
                    )
                with self._changed:
                    # A reload may have replaced the model's config in the meantime.
                    if self._configured.get(model.name) is model:
                        self._versions.set_wanted(model.name, directories)

    def _log_problem(self, model: config_pb2.ModelConfig, problem: str) -> None:
        """Log a problem with a model's base path, unless it is empty or already logged."""
        if problem and self._problems.get(model.name) != problem:
            logs.log_event(logging.WARNING, problem, {"model": model.name, "base_path": model.base_path})
        self._problems[model.name] = problem

    def _wait_for(self, names: Iterable[str], deadline: float | None) -> None:
        """Wait until each model that is still configured has a serving version; see `reload` for errors."""
        with self._changed:
            while True:
                if self._stopped.is_set():
                    raise ServingError(grpc.StatusCode.CANCELLED, "the server is stopping")
                waiting = [name for name in names if name in self._configured and not self._versions.serving.get(name)]
                for name in waiting:
                    wanted = [version for version in self._versions.known.get(name, {}).values() if version.wanted]
                    if wanted and all(version.state == END for version in wanted):
                        reasons = "".join(
                            f"{{{{name: {name} version: {version.number}}} due to error: "
                            f"{version.code.name}: {version.message}}}, "
                            for version in wanted
                        )
                        raise ServingError(
                            grpc.StatusCode.UNKNOWN,
                            f"{len(wanted)} servable(s) did not become available: {{{reasons}}}",
                        )
                if not waiting:
                    return
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise ServingError(
                        grpc.StatusCode.DEADLINE_EXCEEDED, f"still waiting for a version of {', '.join(waiting)}"
                    )
                self._changed.wait(remaining)


def list_versions(base_path: Path) -> dict[int, Path]:
    """Return the version directories of a base path, {version: directory}.

    Directories whose name is not an int64 are ignored. Raises OSError if the base path cannot be listed.
    """
    directories = {}
    # Sorting makes the choice between directories such as 7 and 007 repeatable.
    for path in sorted(Path(base_path).iterdir()):
        if NUMBER.fullmatch(path.name) and -(2**63) <= int(path.name) < 2**63 and path.is_dir():
            directories[int(path.name)] = path
    return directories


def select_versions(model: config_pb2.ModelConfig, directories: dict[int, Path]) -> dict[int, Path]:
    """Return the versions that a model's policy selects, by default the latest one."""
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return dict(directories)
    if kind == "specific":
        return {version: directories[version] for version in policy.specific.versions if version in directories}
    # num_versions is 0 where it is not set.
    return {version: directories[version] for version in sorted(directories)[-max(policy.latest.num_versions, 1) :]}


def check_model_configs(models: Iterable[config_pb2.ModelConfig]) -> None:
    """Raise ServingError INVALID_ARGUMENT if a list of models cannot be served."""
    names = set()
    for model in models:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
        if "\0" in model.base_path:
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; got one with a null character")
        if "://" in model.base_path:
            raise invalid(
                f"Expected model {model.name} to have an absolute path, because this server does not read "
                f"URIs; got base_path()={model.base_path}"
            )
        if fault := path_fault(model.base_path):
            raise invalid(f"base_path of model {model.name}, {model.base_path}, {fault}")
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
        # model_type is older than model_platform; its value 1 is TENSORFLOW.
        platform = model.model_platform or (PLATFORM if model.model_type == 1 else "")
        if not platform:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        if platform != PLATFORM:
            raise invalid(
                f"Model {model.name} requests unsupported platform {platform}; the only platform is {PLATFORM}"
            )
