"""A base path whose versions come and go, a loader that remembers what it did, and Models that look at it."""

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

# Far longer than anything here takes.
PATIENCE = 30
QUICK = VersionSettings(poll_seconds=0.02, load_retries=0, retry_seconds=0)


class Model:
    def __init__(self, disk, name, version, directory):
        self.disk, self.name, self.version, self.directory = disk, name, version, directory
        self.content = (directory / "content").read_text()

    def close(self):
        self.disk.events.append(("closed", self.version))


class Disk:
    """A base path, and a loader that remembers what it did and can be held up."""

    def __init__(self, base):
        self.base, self.events, self.hooks, self.held = base, [], [], {}
        self.broken = set()
        base.mkdir()

    def publish(self, name, content="good"):
        temporary = self.base / f".{name}.tmp"
        temporary.mkdir()
        (temporary / "content").write_text(content)
        os.replace(temporary, self.base / str(name))

    def remove(self, name):
        # Away at once, as by a rename.
        os.replace(self.base / str(name), self.base / f".{name}.gone")
        shutil.rmtree(self.base / f".{name}.gone")

    def load(self, name, version, directory):
        if version in self.held:
            assert self.held[version].wait(PATIENCE)
        if not (directory / "content").exists() or version in self.broken:
            self.events.append(("failed", version))
            raise not_found(f"no model in {directory.name}")
        self.events.append(("loaded", version))
        return Model(self, name, version, directory)


@contextlib.contextmanager
def starting(disk):
    """Give a function that starts Models of a config in protocol buffer text, by default of one model m."""
    running = []

    def start(settings=QUICK, text=None, load=None):
        models = ModelManager(settings, load or disk.load, lambda *arguments: disk.hooks.append(arguments),
                        lambda *arguments: disk.hooks.append(arguments))
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
    found = model_pb2.ModelSpec(name=name)
    if version is not None:
        found.version.value = version
    if label is not None:
        found.version_label = label
    return found


def answers(models, wanted=None):
    """The version that answers, or None."""
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


def refused(models, wanted, code, message):
    with pytest.raises(ServingError) as caught, models.use(wanted):
        pass
    assert (caught.value.code, caught.value.message) == (code, message)
