"""Run Beam steps on two worker processes of Dask, one of which is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import apache_beam
import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg import models
from kseg.config.sections import Data
from kseg.datasets import registry
from kseg.errors import ConfigError
from kseg.evaluation.counter import Counter, Counts
from kseg.inference.prediction import protocol_of
from kseg.training import working_directory
from kseg.weights import keras_files
from pipeline import artifacts, options
from pipeline.jobs import counting
from tests.helpers import forks
from tests.helpers.exhaustive import exhaustive
from tests.helpers.running import ROOT
from tests.helpers.splits import val_split
from tests.helpers.stored_artifacts import ingested

IMAGES = 16
# Each process of the cluster would import these.
PRELOADED = (
    "distributed.client",
    "distributed.scheduler",
    "distributed.worker",
    "kseg.inference.trained_model",
    "pipeline.jobs.counting",
)


def test_beam_flags():
    assert options.beam_flags([]) == ("--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",)
    assert options.beam_flags(["runner=dataflow", "project=a", "region=b=c"]) == (
        "--runner=DataflowRunner",
        "--project=a",
        "--region=b=c",
    )
    assert options.beam_flags(["runner=dask", "dask_npartitions=3"])[1:] == ("--dask_npartitions=3",)
    for wrong, message in (("runner=dusk", "Did you mean dask?"), ("project", "KEY=VALUE, got project")):
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            options.beam_flags([wrong])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start a scheduler and two workers with one thread each; yield (address, worker processes)."""
    pytest.importorskip("distributed", reason="needs dask[distributed]")
    from dask.distributed import Client, default_client

    directory = tmp_path_factory.mktemp("cluster")
    common = ["--scheduler-file", str(directory / "scheduler.json"), "--no-dashboard"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    forks.preload(PRELOADED)

    def start(kind, *arguments):
        return forks.Forked(f"distributed.cli.dask_{kind}", [*common, *arguments], directory, environment, os.devnull)

    processes = [start("scheduler", "--port", "0", "--host", "127.0.0.1")]
    try:
        deadline = time.monotonic() + 60
        while not (directory / "scheduler.json").exists():
            assert time.monotonic() < deadline and processes[0].poll() is None
            time.sleep(0.1)
        workers = [start("worker", "--nworkers", "1", "--nthreads", "1", "--no-nanny") for _ in range(2)]
        processes += workers
        address = json.loads((directory / "scheduler.json").read_text())["address"]
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, workers
    finally:
        # Beam's runner leaves clients open, which would try to reconnect to the scheduler.
        with contextlib.suppress(ValueError):
            while True:
                default_client().close()
        for process in processes:
            process.kill()
            process.wait()


class Stored(NamedTuple):
    """A Model artifact, an Examples artifact, and the expected counts of the model."""

    model: Path
    examples: Path
    counts: Counts


@pytest.fixture(scope="module")
def stored(tmp_path_factory, shapes_directory):
    """Return a model with random weights, and ingested examples."""
    directory = tmp_path_factory.mktemp("stored")
    config = configs.load(
        "encnet_shapes",
        [
            "model.head=fcn",
            "model.width=4",
            "model.channels=8",
            "model.auxiliary_channels=0",
            f"data.directory={shapes_directory}",
        ],
    )
    sys.argv[1:], process_arguments = [], sys.argv[1:]
    ingested(
        Data(name="shapes", directory=str(shapes_directory)), directory / "examples", splits=("val",), per_shard=100
    )
    sys.argv[1:] = process_arguments
    trained = directory / "model" / "Format-TFMA"
    stored_config = artifacts.artifact_config(config, directory / "examples")
    working_directory.open_workdir(trained, stored_config, registry.find_dataset(stored_config.data)).close()
    network = models.build(config.model, 7)
    keras_files.save_weights(network, trained / "best.weights.h5")
    source = replace(config, data=replace(config.data, directory=str(shapes_directory)))
    counter = Counter(network, protocol_of(source), 7, tf.distribute.get_strategy())
    return Stored(directory / "model", directory / "examples", counter.count(val_split(source)))


def flags_of(address):
    return list(options.beam_flags(["runner=dask", f"dask_client_address={address}"]))


def count_on_cluster(address, stored, out):
    with apache_beam.Pipeline(argv=flags_of(address)) as job:
        counting.add_counting(job, str(stored.model), str(stored.examples), "val", IMAGES, 2, str(out))
    return np.load(out)


def test_two_workers_count_the_same_as_one_process(cluster, stored, tmp_path):
    counts = count_on_cluster(cluster[0], stored, tmp_path / "counts.npz")
    np.testing.assert_array_equal(counts["bands"], stored.counts.bands)
    for name in ("hits", "truth", "predicted"):
        np.testing.assert_array_equal(counts[name], getattr(stored.counts, name))


def test_two_workers_ingest_the_same_as_one_process(cluster, stored, shapes_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    ingested(Data(name="shapes", directory=str(shapes_directory)), tmp_path, ("val",), 0.0, 5, flags_of(cluster[0]))

    def read_records(directory):
        paths = sorted(map(str, directory.glob("Split-val/*")))
        return len(paths), [record.numpy() for record in tf.data.TFRecordDataset(paths)]

    assert read_records(tmp_path) == (4, read_records(stored.examples)[1])
    scalars = stored.examples / "scalars" / "val.jsonl"
    assert (tmp_path / "scalars" / "val.jsonl").read_text() == scalars.read_text()


@exhaustive
def test_a_killed_worker_does_not_change_the_counts(cluster, stored, tmp_path):
    from dask.distributed import Client

    address, workers = cluster
    killer = subprocess.Popen(
        [sys.executable, "-c", KILLER, address, str(workers[0].pid)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    counts = count_on_cluster(address, stored, tmp_path / "counts.npz")
    assert killer.wait(60) == 0 and workers[0].wait(60) == -signal.SIGKILL
    np.testing.assert_array_equal(counts["bands"], stored.counts.bands)
    with Client(address) as client:
        assert len(client.scheduler_info()["workers"]) == 1


# A script that kills a process as soon as its cluster is processing tasks.
KILLER = """
import os, signal, sys, time
from dask.distributed import Client
with Client(sys.argv[1]) as client:
    deadline = time.monotonic() + 50
    while not any(client.processing().values()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(int(sys.argv[2]), signal.SIGKILL)
"""
