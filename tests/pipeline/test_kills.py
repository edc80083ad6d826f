"""A process of the pipeline is killed in each component in turn; the same command again takes it from there.

All are runs of one directory: each does what the one before it was killed in, and is killed in the next component. Of a
kill in the training tells test_pipeline_end_to_end.py; here nothing is trained.
"""

import re
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kseg import models
from kseg.datasets import registry
from kseg.training import working_directory
from kseg.weights import keras_files
from pipeline import history
from pipeline.components import pusher
from pipeline.metadata import code_digest, metadata_store, summary
from tests.helpers import local_server, pipeline_processes, small_sets
from tests.helpers.running import run_here

# In the order that TFX runs them in.
NODES = ("Ingest", "Requests", "Examiner", "Trainer", "InfraValidator", "Evaluator", "Validator", "Pusher")
TINY = ["model.width=4", "model.channels=8", "model.auxiliary_channels=0", "model.head=fcn", "export.warmup_batches=1"]
# Of each component a function that is called when a part of its result is written, and whether the process is killed
# before or after it.
PLACES = [
    ("Ingest", ("pipeline.jobs.shards", "finish"), False),
    ("Examiner", ("pipeline.components.data_validator", "told"), False),
    ("Evaluator", ("pipeline.components.evaluator", "decide"), False),
    ("Validator", ("pipeline.components.serving_validator", "wait"), False),
    ("Pusher", ("tfx.utils.io_utils", "copy_dir"), True),
    ("Pusher", ("pipeline.components.pusher", "publish"), True),
]


class Killed(NamedTuple):
    status: int
    states: dict
    pushed: list
    servers: list


def arguments(root):
    return ["--config", "encnet_shapes", "--root", root / "run", "--infra-validator", "tensorflow/serving:2.19.1",
            "--set", *TINY, "data.name=folder", f"data.directory={root / 'data'}"]


def untrained(config, workdir, strategy):
    """In place of a training: weights as they start."""
    dataset = registry.find(config.data)
    working_directory.open_run(workdir, config, dataset).close()
    keras_files.save_weights(models.build(config.model, len(dataset.classes)), workdir / "best.weights.h5")
    (workdir / "best.json").write_text("{}")


def started(root, log, place=None, after=False, replacements=None):
    """Run the pipeline, its directory for temporary files being the test's, Docker and the training replaced."""
    (root / "t").mkdir(exist_ok=True)
    return pipeline_processes.run(arguments(root), root / log, {
        ("tempfile", "tempdir"): str(root / "t"), ("pipeline.run_local", "require"): print,
        ("kseg.train", "train"): untrained, local_server.SEAM: local_server.LocalServer} | (replacements or {}),
        place, after)


def draw(root, classes):
    generator = np.random.default_rng(0)
    labels = [generator.choice(classes, (8, 8)).repeat(8, 0).repeat(8, 1) for _ in range(10)]
    small_sets.folder(root / "data", {"train": labels[:6], "val": labels[6:]})


def last_run(root):
    return list(metadata_store.runs(metadata_store.open_store(root / "run")))[-1]


def states_of(run):
    return {step.node: step.state for step in run.steps if not step.kind.endswith(summary.RESOLVER)}


def versions(root):
    """Return what lies where a server looks for versions."""
    place = root / "run" / "serving"
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def servers(root):
    """Return the processes that serve what lies below a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        # It has ended since.
        except OSError:
            continue
        if "serving.server" in command and str(root) in command:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("k")
    draw(root, (0, 1, 2))
    return root


@pytest.fixture(scope="module")
def killed(root):
    """What each kill left behind."""
    found = []
    for number, (_, place, after) in enumerate(PLACES):
        status = started(root, f"log{number}", place, after)
        found.append(Killed(status, states_of(last_run(root)), versions(root), servers(root)))
    return found


@pytest.fixture(scope="module")
def finished(killed, root):
    """The run after all of them: what it printed."""
    assert started(root, "log") == 0, (root / "log").read_text()
    return (root / "log").read_text()


@pytest.mark.parametrize("number", range(len(PLACES)), ids=[f"{number}-{place[0]}" for number, place in
                                                            enumerate(PLACES)])
def test_what_was_finished_is_cached(killed, root, number):
    found, component = killed[number], PLACES[number][0]
    assert found.status == -signal.SIGKILL, (root / f"log{number}").read_text()
    known = NODES[:NODES.index(PLACES[number - 1][0])] if number else ()
    assert found.states == {node: "cached" if node in known else "complete"
                            for node in NODES[:NODES.index(component)]} | {component: "running"}
    # The server that the Validator has started ends with it.
    assert found.servers == []


def test_nothing_half_written_is_pushed(killed, finished, root):
    assert [found.pushed for found in killed[:-1]] == [[]] * 4 + [[pusher.STAGING]]
    # After its last kill the version lay there whole.
    version, = (name for name in killed[-1].pushed if name != pusher.STAGING)
    (model,) = (root / "run").glob("artifacts/Trainer/model/*/Format-Serving")
    assert pusher.same(model, root / "run" / "serving" / version)


def test_the_last_run_pushes_no_second_version(killed, finished, root):
    version, = (name for name in killed[-1].pushed if name != pusher.STAGING)
    assert states_of(last_run(root)) == dict.fromkeys(NODES, "cached") | {"Pusher": "complete"}
    assert versions(root) == [version]
    assert f"pushed: {root / 'run' / 'serving' / version}" in finished
    assert re.search(rf"Pusher .*\(version {version}, there already\) +cut off the time before", finished)
    card = (root / "run" / "serving" / version / "model_card.md").read_text(encoding="utf-8")
    assert card.startswith(f"# encnet_shapes, version {version}\n") and "container_blessing" in card


def other_program(*names):
    """In place of pipeline.metadata.code_digest.digest: as though the Pusher had been changed."""
    return "changed" if names == ("pipeline.components.pusher",) else code_digest.unchanged(*names)


def test_a_changed_program_runs_again(finished, root):
    status = started(root, "changed", replacements={("pipeline.metadata.code_digest", "unchanged"): code_digest.digest,
                                                    ("pipeline.metadata.code_digest", "digest"): other_program})
    output = (root / "changed").read_text()
    assert status == 0, output
    assert states_of(last_run(root)) == dict.fromkeys(NODES, "cached") | {"Pusher": "complete"}
    assert re.search(r"Pusher .* changed: program$", output, re.MULTILINE)


def test_why_a_component_failed_is_kept(finished, root, capsys):
    draw(root, (0,))
    assert started(root, "failed") == 2
    output = (root / "failed").read_text()
    assert re.search(r"^Examiner +failed .* the data does not fit; \d anomalies:  ", output, re.MULTILINE)
    assert re.search(r"^Ingest .*changed: fingerprint$", output, re.MULTILINE)
    told = run_here(history.main, ["--root", root / "run"], capsys)
    last = told[told.rindex("\n20"):]
    assert "    Examiner failed: the data does not fit" in last and "    pushed: nothing" in last
    assert "class 'sky' has 100.00% of the labelled pixels" in last
