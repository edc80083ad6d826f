"""A base path with changing versions, a loader that records its calls, and model managers that use them."""

import contextlib
import os
import shutil
import time

import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.core.manager import ModelManager
from serving.core.versions import VersionSettings
from serving.errors import ServingError, not_found

# Seconds, far longer than any step of a test takes.
PATIENCE = 30
QUICK = VersionSettings(poll_seconds=0.02, load_retries=0, retry_seconds=0)


class Model:
    def __init__(self, disk, name, version, directory):
        self.disk, self.name, self.version, self.directory = disk, name, version, directory
        self.content = (directory / "content").read_text()

    def close(self):
        self.disk.events.append(("closed", self.version))


class Disk:
    """A base path, and a loader that records its calls.

    Attributes:
        events: (event, version) for every load and close.
        hooks: The arguments of every hook call.
        blocked: Events that the loads of versions wait for, {version: event}.
        broken: The versions whose loads fail.
    """

    def __init__(self, base):
        self.base, self.events, self.hooks, self.blocked = base, [], [], {}
        self.broken = set()
        base.mkdir()

    def publish(self, name, content="good"):
        temporary = self.base / f".{name}.tmp"
        temporary.mkdir()
        (temporary / "content").write_text(content)
        os.replace(temporary, self.base / str(name))

    def remove(self, name):
        # A rename removes the directory in one step.
        os.replace(self.base / str(name), self.base / f".{name}.gone")
        shutil.rmtree(self.base / f".{name}.gone")

    def load(self, name, version, directory):
        if version in self.blocked:
            assert self.blocked[version].wait(PATIENCE)
        if not (directory / "content").exists() or version in self.broken:
            self.events.append(("failed", version))
            raise not_found(f"no model in {directory.name}")
        self.events.append(("loaded", version))
        return Model(self, name, version, directory)


@contextlib.contextmanager
def starting(disk):
    """Yield a function that starts a ModelManager; `text` is its config, by default one model m."""
    running = []

    def start(settings=QUICK, text=None, load=None):
        models = ModelManager(
            settings,
            load or disk.load,
            lambda *arguments: disk.hooks.append(arguments),
            lambda *arguments: disk.hooks.append(arguments),
        )
        running.append(models)
        models.start(config(text or entry(disk.base)))
        return models

    yield start
    for models in running:
        models.stop(PATIENCE)


def entry(base, name="m", more=""):
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} }}'


def config(text):
    return text_format.Parse(f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig())


def spec(name="m", version=None, label=None):
    made = model_pb2.ModelSpec(name=name)
    if version is not None:
        made.version.value = version
    if label is not None:
        made.version_label = label
    return made


def serving_version(models, wanted=None):
    """Return the version that answers, or None."""
    try:
        with models.use(wanted or spec()) as handle:
            return handle.version
    except ServingError:
        return None


def states(models, name="m"):
    return {status.version: status.state for status in models.statuses(spec(name))}


def eventually(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def assert_refused(models, wanted, code, message):
    with pytest.raises(ServingError) as caught, models.use(wanted):
        pass
    assert (caught.value.code, caught.value.message) == (code, message)
