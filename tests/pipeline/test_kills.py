"""Kill the pipeline's process in each component in turn, and resume it with the same command.

All runs share one directory: a run completes the component in which the previous run was killed, and is killed in the
next one. test_end_to_end.py covers a kill during training; nothing is trained here.
"""

import re
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pipeline import history
from pipeline.components import pusher
from pipeline.metadata import code_digest, metadata_store, summary
from tests.helpers import local_server, pipeline_processes, small_sets, untrained
from tests.helpers.running import run_here

# The order in which TFX runs the components.
NODES = ("Ingest", "Requests", "Examiner", "Trainer", "InfraValidator", "Evaluator", "Validator", "Pusher")
TINY = ["model.width=4", "model.channels=8", "model.auxiliary_channels=0", "model.head=fcn", "export.warmup_batches=1"]
# For each component a function that runs when a part of the result has been written, and whether the process is killed
# after it instead of before it.
KILLS = [
    ("Ingest", ("pipeline.jobs.shards", "finish_ingest"), False),
    ("Examiner", ("pipeline.components.data_validator", "anomaly_lines"), False),
    ("Evaluator", ("pipeline.components.evaluator", "write_blessing"), False),
    ("Validator", ("pipeline.components.serving_validator", "wait_until_available"), False),
    ("Pusher", ("tfx.utils.io_utils", "copy_dir"), True),
    ("Pusher", ("pipeline.components.pusher", "publish"), True),
]


class Aftermath(NamedTuple):
    """State after a kill: exit status, component states, pushed versions, and running servers."""

    status: int
    states: dict
    pushed: list
    servers: list


def arguments(root):
    return [
        "--config",
        "encnet_shapes",
        "--root",
        root / "run",
        "--infra-validator",
        "tensorflow/serving:2.19.1",
        "--set",
        *TINY,
        "data.name=folder",
        f"data.directory={root / 'data'}",
    ]


def run_pipeline(root, log, kill_at=None, after=False, replacements=None):
    """Run the pipeline with a private temporary directory, without Docker and without training."""
    (root / "t").mkdir(exist_ok=True)
    return pipeline_processes.run(
        arguments(root),
        root / log,
        {
            ("tempfile", "tempdir"): str(root / "t"),
            ("pipeline.run_local", "require_docker"): print,
            ("kseg.training.trainer", "train"): untrained.train,
            local_server.SEAM: local_server.LocalServer,
            **(replacements or {}),
        },
        kill_at,
        after,
    )


def draw(root, classes):
    generator = np.random.default_rng(0)
    labels = [generator.choice(classes, (8, 8)).repeat(8, 0).repeat(8, 1) for _ in range(10)]
    small_sets.folder(root / "data", {"train": labels[:6], "val": labels[6:]})


def last_run(root):
    return list(metadata_store.read_runs(metadata_store.open_store(root / "run")))[-1]


def states_of(run):
    return {step.node: step.state for step in run.steps if not step.kind.endswith(summary.RESOLVER)}


def versions(root):
    """Return the names in the directory of pushed versions."""
    directory = root / "run" / "serving"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def servers(root):
    """Return the command lines of servers of models below a directory."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        # The process exited in the meantime.
        except OSError:
            continue
        if "serving.server" in command and str(root) in command:
            commands.append(command)
    return commands


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("k")
    draw(root, (0, 1, 2))
    return root


@pytest.fixture(scope="module")
def killed(root):
    """Return the aftermath of each kill."""
    results = []
    for number, (_, kill_at, after) in enumerate(KILLS):
        status = run_pipeline(root, f"log{number}", kill_at, after)
        results.append(Aftermath(status, states_of(last_run(root)), versions(root), servers(root)))
    return results


@pytest.fixture(scope="module")
def finished(killed, root):
    """Return the output of a run after all kills."""
    assert run_pipeline(root, "log") == 0, (root / "log").read_text()
    return (root / "log").read_text()


@pytest.mark.parametrize("number", range(len(KILLS)), ids=[f"{number}-{kill[0]}" for number, kill in enumerate(KILLS)])
def test_completed_components_are_cached(killed, root, number):
    aftermath, component = killed[number], KILLS[number][0]
    assert aftermath.status == -signal.SIGKILL, (root / f"log{number}").read_text()
    known = NODES[: NODES.index(KILLS[number - 1][0])] if number else ()
    assert aftermath.states == {
        node: "cached" if node in known else "complete" for node in NODES[: NODES.index(component)]
    } | {component: "running"}
    # The server that the Validator started exits with it.
    assert aftermath.servers == []


def test_incomplete_versions_are_never_pushed(killed, finished, root):
    assert [aftermath.pushed for aftermath in killed[:-1]] == [[]] * 4 + [[pusher.STAGING]]
    # The last kill happened after the version was complete.
    (version,) = (name for name in killed[-1].pushed if name != pusher.STAGING)
    (model,) = (root / "run").glob("artifacts/Trainer/model/*/Format-Serving")
    assert pusher.same_files(model, root / "run" / "serving" / version)


def test_the_last_run_keeps_the_pushed_version(killed, finished, root):
    (version,) = (name for name in killed[-1].pushed if name != pusher.STAGING)
    assert states_of(last_run(root)) == dict.fromkeys(NODES, "cached") | {"Pusher": "complete"}
    assert versions(root) == [version]
    assert f"pushed: {root / 'run' / 'serving' / version}" in finished
    assert re.search(rf"Pusher .*\(version {version}, already present\) +interrupted in the previous run", finished)
    card = (root / "run" / "serving" / version / "model_card.md").read_text(encoding="utf-8")
    assert card.startswith(f"# encnet_shapes, version {version}\n") and "container_blessing" in card


def other_program(*names):
    """Replace pipeline.metadata.code_digest.code_digest, as if the Pusher had changed."""
    return "changed" if names == ("pipeline.components.pusher",) else code_digest.unchanged(*names)


def test_a_changed_program_runs_again(finished, root):
    status = run_pipeline(
        root,
        "changed",
        replacements={
            ("pipeline.metadata.code_digest", "unchanged"): code_digest.code_digest,
            ("pipeline.metadata.code_digest", "code_digest"): other_program,
        },
    )
    output = (root / "changed").read_text()
    assert status == 0, output
    assert states_of(last_run(root)) == dict.fromkeys(NODES, "cached") | {"Pusher": "complete"}
    assert re.search(r"Pusher .* changed: program$", output, re.MULTILINE)


def test_the_message_of_a_failure_is_recorded(finished, root, capsys):
    draw(root, (0,))
    assert run_pipeline(root, "failed") == 2
    output = (root / "failed").read_text()
    assert re.search(r"^Examiner +failed .* \d anomalies", output, re.MULTILINE)
    assert re.search(r"^Ingest .*changed: fingerprint$", output, re.MULTILINE)
    output = run_here(history.main, ["--root", root / "run"], capsys)
    last = output[output.rindex("\n20") :]
    assert re.search(r"^    Examiner failed: .*anomalies", last, re.MULTILINE) and "    pushed: nothing" in last
    assert "class 'sky' has 100.00%" in last
