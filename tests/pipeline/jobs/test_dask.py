"""Beam steps on a cluster: two worker processes of Dask, of which one is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import apache_beam
import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg import models
from kseg.config.sections import Data
from kseg.datasets import registry
from kseg.errors import ConfigError
from kseg.evaluation.counter import Counter
from kseg.inference.prediction import protocol_of
from kseg.training import working_directory
from kseg.weights import keras_files
from pipeline import artifacts, options
from pipeline.jobs import counting
from tests.helpers.running import ROOT
from tests.helpers.stored_artifacts import ingested
from tests.helpers.splits import val_split

IMAGES = 16


def test_flags():
    assert options.beam_flags([]) == ("--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",)
    assert options.beam_flags(["runner=dataflow", "project=a", "region=b=c"]) == (
        "--runner=DataflowRunner", "--project=a", "--region=b=c")
    assert options.beam_flags(["runner=dask", "dask_npartitions=3"])[1:] == ("--dask_npartitions=3",)
    for wrong, message in (("runner=dusk", "Did you mean dask?"), ("project", "KEY=VALUE is needed")):
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            options.beam_flags([wrong])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers with one thread each, all of them processes: (address, the workers)."""
    pytest.importorskip("distributed", reason="needs dask[distributed]")
    from dask.distributed import Client, default_client

    place = tmp_path_factory.mktemp("cluster")
    told = ["--scheduler-file", str(place / "scheduler.json"), "--no-dashboard"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}

    def start(kind, *arguments):
        return subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{kind}", *told, *arguments], cwd=place,
                                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    processes = [start("scheduler", "--port", "0", "--host", "127.0.0.1")]
    try:
        until = time.monotonic() + 60
        while not (place / "scheduler.json").exists():
            assert time.monotonic() < until and processes[0].poll() is None
            time.sleep(0.1)
        workers = [start("worker", "--nworkers", "1", "--nthreads", "1", "--no-nanny") for _ in range(2)]
        processes += workers
        address = json.loads((place / "scheduler.json").read_text())["address"]
        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, workers
    finally:
        # Beam's runner leaves its clients open, which would look for their scheduler.
        with contextlib.suppress(ValueError):
            while True:
                default_client().close()
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory, shapes_directory):
    """A model artifact of random weights, and ingested examples: (model, examples, expected counts)."""
    place = tmp_path_factory.mktemp("stored")
    config = configs.load("encnet_shapes", ["model.width=4", "model.channels=8", "model.auxiliary_channels=4",
                                            f"data.directory={shapes_directory}"])
    sys.argv[1:], kept = [], sys.argv[1:]
    ingested(Data(name="shapes", directory=str(shapes_directory)), place / "examples", splits=("val",), per_shard=100)
    sys.argv[1:] = kept
    trained = place / "model" / "Format-TFMA"
    stored = artifacts.artifact_config(config, place / "examples")
    working_directory.open_workdir(trained, stored, registry.find_dataset(stored.data)).close()
    network = models.build(config.model, 7)
    keras_files.save_weights(network, trained / "best.weights.h5")
    source = replace(config, data=replace(config.data, directory=str(shapes_directory)))
    counter = Counter(network, protocol_of(source), 7, tf.distribute.get_strategy())
    return place / "model", place / "examples", counter.count(val_split(source))


def flags_of(address):
    return list(options.beam_flags(["runner=dask", f"dask_client_address={address}"]))


def counted(address, model, out):
    with apache_beam.Pipeline(argv=flags_of(address)) as job:
        counting.add_counting(job, str(model[0]), str(model[1]), "val", IMAGES, 2, str(out))
    return np.load(out)


def test_two_workers_count_what_one_process_counts(cluster, model, tmp_path):
    found = counted(cluster[0], model, tmp_path / "counts.npz")
    np.testing.assert_array_equal(found["bands"], model[2].bands)
    for name in ("hits", "truth", "predicted"):
        np.testing.assert_array_equal(found[name], getattr(model[2], name))


def test_two_workers_ingest_what_one_process_ingests(cluster, model, shapes_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])
    ingested(Data(name="shapes", directory=str(shapes_directory)), tmp_path, ("val",), 0.0, 5, flags_of(cluster[0]))

    def stored(place):
        paths = sorted(map(str, place.glob("Split-val/*")))
        return len(paths), [record.numpy() for record in tf.data.TFRecordDataset(paths)]

    assert stored(tmp_path) == (4, stored(model[1])[1])
    assert (tmp_path / "scalars" / "val.jsonl").read_text() == (model[1] / "scalars" / "val.jsonl").read_text()


def test_a_killed_worker_changes_nothing(cluster, model, tmp_path):
    from dask.distributed import Client

    address, workers = cluster
    killer = subprocess.Popen([sys.executable, "-c", KILLER, address, str(workers[0].pid)],
                              env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    found = counted(address, model, tmp_path / "counts.npz")
    assert killer.wait(60) == 0 and workers[0].wait(60) == -signal.SIGKILL
    np.testing.assert_array_equal(found["bands"], model[2].bands)
    with Client(address) as client:
        assert len(client.scheduler_info()["workers"]) == 1


# Kills a process as soon as its cluster has work in hand.
KILLER = """
import os, signal, sys, time
from dask.distributed import Client
with Client(sys.argv[1]) as client:
    until = time.monotonic() + 50
    while not any(client.processing().values()):
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(int(sys.argv[2]), signal.SIGKILL)
"""
