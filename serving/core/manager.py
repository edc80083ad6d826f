"""The models of a server: what its config lists and what their base paths hold, polled; the version a request means.

As in TensorFlow Serving, a version is told by its number alone: a directory that takes the place of another of its
number is looked at only after the number was gone. A base path that cannot be listed changes nothing; one without
versions unloads all of them.
"""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from serving.core import versions
from serving.core.versions import END, OnLoaded, OnUnloaded, Settings, Version, Versions
from serving.errors import ServingError, invalid, not_found
from serving.telemetry import logs


class Handle(NamedTuple):
    """A version that stays loaded while it is used."""

    name: str
    version: int
    model: Any


class VersionStatus(NamedTuple):
    """What GetModelStatus tells of a version; `state` is a ModelVersionStatus.State."""

    version: int
    state: int
    code: grpc.StatusCode
    message: str


class Pin:
    """What `with` takes of ModelManager.use."""

    __slots__ = ("_models", "_spec", "_version")

    def __init__(self, models: "ModelManager", spec: model_pb2.ModelSpec):
        self._models, self._spec = models, spec

    def __enter__(self) -> Handle:
        self._version = version = self._models._pinned(self._spec)
        return Handle(version.name, version.number, version.model)

    def __exit__(self, *exception) -> None:
        self._models._versions.released(self._version)


class ModelManager:
    """All models of a server, after `start`.

    `load(name, version, directory)` returns a model with a method close(), or raises ServingError. Hooks are called in
    the threads that load and unload: `on_loaded(name, version, error or None, seconds)` after each attempt to load, and
    `on_unloaded(name, version)`.
    """

    def __init__(self, settings: Settings, load: Callable[[str, int, Path], Any],
                 on_loaded: OnLoaded = lambda name, version, error, seconds: None,
                 on_unloaded: OnUnloaded = lambda name, version: None):
        self._settings = settings
        self._versions = Versions(settings, load, on_loaded, on_unloaded)
        # The versions' lock guards these, too.
        self._changed = self._versions.changed
        self._configured: dict[str, config_pb2.ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        # What was said last of a base path, to be said once.
        self._said: dict[str, str] = {}
        # Listing takes as long as the file system likes, so requests do not take this lock.
        self._listing = threading.Lock()
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True, name="poll base paths")

    def start(self, config: config_pb2.ModelServerConfig) -> None:
        """Load the first versions and wait for one of each model, however long there is none on disk.

        Raises ServingError where the config is wrong, or all wanted versions of a model failed to load.
        """
        names = self._configure(config)
        # TensorFlow's modules are half a million objects: a full collection of garbage would look through all of them
        # and hold up every request for as long, 0.3 s. It shall look at what comes from now on.
        gc.freeze()
        # Nobody is being served yet.
        self._versions.load_threads = 4 * (os.cpu_count() or 1)
        self._versions.thread.start()
        try:
            self._list()
            self._poller.start()
            self._wait_for(names, None)
        except ServingError:
            self.stop()
            raise
        with self._changed:
            self._versions.load_threads = self._settings.load_threads or 1

    def reload(self, config: config_pb2.ModelServerConfig, deadline: float | None = None) -> None:
        """Replace the list of models, and wait for a version of each name that is new.

        `deadline` is a value of time.monotonic(). Raises ServingError: for a wrong config or label, and then nothing
        has changed; for new models whose versions failed to load, or DEADLINE_EXCEEDED, and then it is in force.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid("ServerModelConfig type not supported by HandleReloadConfigRequest. "
                          "Only ModelConfigList is currently supported")
        names = self._configure(config)
        self._list()
        self._wait_for(names, deadline)

    def use(self, spec: model_pb2.ModelSpec) -> Pin:
        """Return what pins a version in a `with` statement and gives its Handle, in microseconds.

        The statement raises ServingError where the ModelSpec chooses none.
        """
        return Pin(self, spec)

    def statuses(self, spec: model_pb2.ModelSpec) -> list[VersionStatus]:
        """Return what is known of the version of a ModelSpec, or of all, highest first; a label chooses nothing here.

        Versions that were unloaded stay listed. Raises ServingError NOT_FOUND where there is none.
        """
        with self._changed:
            versions = self._versions.versions.get(spec.name, {})
            if spec.HasField("version"):
                number = spec.version.value
                if number not in versions:
                    raise not_found(f"Could not find version {number} of model {spec.name}")
                versions = {number: versions[number]}
            if not versions:
                raise not_found(f"Could not find any versions of model {spec.name}")
            return [VersionStatus(number, versions[number].state, versions[number].code, versions[number].message)
                    for number in sorted(versions, reverse=True)]

    def names(self) -> list[str]:
        """Return the names of the configured models, sorted."""
        with self._changed:
            return sorted(self._configured)

    def labels(self, name: str) -> dict[str, int]:
        """Return the version that each label of a model stands for now; none of a model that is not configured."""
        return dict(self._labels.get(name, {}))

    def stop(self, seconds: float = 10.0) -> None:
        """Unload everything and wait, at most so long, for requests, loads and unloads that are under way.

        What takes longer goes on and is closed afterwards.
        """
        until = time.monotonic() + seconds
        self._stopped.set()
        with self._changed:
            self._versions.stopping = True
            self._configured = {}
            for name in self._versions.versions:
                self._versions.want(name, {})
            self._changed.notify_all()
        for thread in (self._poller, self._versions.thread):
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        gc.unfreeze()

    def _pinned(self, spec: model_pb2.ModelSpec) -> Version:
        name, choice, number = spec.name, spec.WhichOneof("version_choice"), None
        if not name:
            raise invalid("ModelSpec has no name specified.")
        if choice == "version":
            # 0 is a version like others.
            number = spec.version.value
        elif choice == "version_label":
            # Replaced as a whole, never changed.
            number = self._labels.get(name, {}).get(spec.version_label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        version = self._versions.pinned(name, number)
        if version is None:
            wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise not_found(f"Servable not found for request: {wanted}")
        return version

    def _configure(self, config: config_pb2.ModelServerConfig) -> list[str]:
        """Put a checked list of models in force, whole or not at all, and return the names that are new."""
        models = config.model_config_list.config
        versions.check_model_configs(models)
        with self._changed:
            labels = {model.name: self._checked_labels(model) for model in models}
            new = [model.name for model in models if model.name not in self._configured]
            for name in self._configured.keys() - labels.keys():
                self._versions.want(name, {})
                self._said.pop(name, None)
            # A copy, since the message is the caller's.
            self._configured = {model.name: config_pb2.ModelConfig.FromString(model.SerializeToString())
                                for model in models}
            self._labels = labels
            self._changed.notify_all()
        return new

    def _checked_labels(self, model: config_pb2.ModelConfig) -> dict[str, int]:
        """Return a model's labels; raise FAILED_PRECONDITION where a version of them does not answer.

        With allow_unavailable_labels a new label may wait for its version, but one in use may not be moved to there.
        """
        before = self._labels.get(model.name, {})
        for label, version in model.version_labels.items():
            allowed = self._settings.allow_unavailable_labels and before.get(label, version) == version
            if not allowed and version not in self._versions.serving.get(model.name, {}):
                raise ServingError(grpc.StatusCode.FAILED_PRECONDITION,
                                   f"Request to assign label to version {version} of model {model.name}, which is not "
                                   "currently available for inference")
        return dict(model.version_labels)

    def _poll(self) -> None:
        if self._settings.poll_seconds > 0:
            while not self._stopped.wait(self._settings.poll_seconds):
                self._list()

    def _list(self) -> None:
        """Look at all base paths and tell the versions' thread what is wanted now."""
        if self._settings.poll_seconds < 0:
            return
        # One at a time, so that an older look at a directory is not taken for the newer one.
        with self._listing:
            with self._changed:
                models = list(self._configured.values())
            for model in models:
                try:
                    found = versions.versions_to_load(model, versions.versions_in(Path(model.base_path)))
                except OSError as error:
                    self._say(model, f"base path cannot be listed, nothing changes: {error.strerror or error}")
                    continue
                missing = sorted(set(model.model_version_policy.specific.versions) - set(found))
                if missing:
                    self._say(model, f"versions that the policy names are missing: {missing}")
                else:
                    self._say(model, "" if found else "no versions: they are directories whose name is a number")
                with self._changed:
                    # It may be another one's turn by now.
                    if self._configured.get(model.name) is model:
                        self._versions.want(model.name, found)

    def _say(self, model: config_pb2.ModelConfig, problem: str) -> None:
        """Log what is wrong with a model's base path, once."""
        if problem and self._said.get(model.name) != problem:
            logs.log_event(logging.WARNING, problem, {"model": model.name, "base_path": model.base_path})
        self._said[model.name] = problem

    def _wait_for(self, names: list[str], deadline: float | None) -> None:
        """Wait until each model, while it is configured, has a version that requests can use; see `reload`."""
        with self._changed:
            while True:
                if self._stopped.is_set():
                    raise ServingError(grpc.StatusCode.CANCELLED, "the server is stopping")
                waiting = [name for name in names if name in self._configured and not self._versions.serving.get(name)]
                for name in waiting:
                    wanted = [version for version in self._versions.versions.get(name, {}).values() if version.wanted]
                    if wanted and all(version.state == END for version in wanted):
                        reasons = "".join(f"{{{{name: {name} version: {version.number}}} due to error: "
                                          f"{version.code.name}: {version.message}}}, " for version in wanted)
                        raise ServingError(grpc.StatusCode.UNKNOWN,
                                           f"{len(wanted)} servable(s) did not become available: {{{reasons}}}")
                if not waiting:
                    return
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED,
                                       f"still waiting for a version of {', '.join(waiting)}")
                self._changed.wait(left)
