"""Run the pipeline end to end on the synthetic set: killed, resumed, cached, refused, and served."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from kseg import cli
from kseg.datasets import registry
from kseg.evaluation.counter import Counter
from kseg.inference import trained_model
from kseg.inference.prediction import predictor, protocol_of
from kseg.training import trainer
from pipeline import history, run_local
from serving import model_server
from tests.helpers import untrained
from tests.helpers.running import run_here, start
from tests.helpers.running_servers import QUICK
from tests.helpers.splits import val_split

NODES = ("Ingest", "Examiner", "Trainer", "Evaluator", "Validator", "Pusher")
SMALL = [
    "model.head=fcn",
    "model.width=4",
    "model.channels=8",
    "model.auxiliary_channels=0",
    "augment.crop=48,64",
    "augment.photometric=false",
    "train.global_batch=2",
    "train.steps=8",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "train.validate_every=8",
    "export.warmup_batches=1",
]


def states(output):
    """Return {component: state} from the table that a run prints."""
    return {words[0]: words[1] for words in map(str.split, output.splitlines()) if len(words) > 1 and words[0] in NODES}


def arguments(root, shapes_directory, *more):
    return [
        "--config",
        "encnet_shapes",
        "--root",
        root,
        "--images-per-bundle",
        "5",
        "--images-per-shard",
        "20",
        "--set",
        *SMALL,
        f"data.directory={shapes_directory}",
        *more,
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def killed(root, shapes_directory):
    """Return the directory of a run that was killed during training, after a checkpoint."""
    process = start("pipeline.run_local", *arguments(root, shapes_directory))
    deadline = time.monotonic() + 500
    while not list(root.glob("training/*/checkpoints/step-*.index")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return root


@pytest.fixture(scope="module")
def server(root):
    """Return a gRPC channel to a server that watches the still empty directory of pushed versions."""
    (root / "serving").mkdir()
    address = root / "socket"
    started = model_server.Server(
        dataclasses.replace(
            QUICK, model_name="shapes", model_base_path=str(root / "serving"), port=0, grpc_socket_path=str(address)
        )
    )
    # The start ends when there is a version.
    starting = threading.Thread(target=started.start, daemon=True)
    starting.start()
    with grpc.insecure_channel(f"unix:{address}") as channel:
        yield channel
    started.stop()
    starting.join(60)


def run_local_here(arguments, status):
    """Run the pipeline in this process, which saves the start of TFX, and return what it prints."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "utf-8", write_through=True)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        # TFX parses the arguments of the process.
        patch.setattr(sys, "argv", ["run_local"])
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: run_local.main([str(argument) for argument in arguments]))
    output = written.getvalue().decode()
    assert stopped.value.code == status, output
    return output


@pytest.fixture(scope="module")
def finished(killed, server, shapes_directory):
    """Run the same command again; return (directory, output)."""
    return killed, run_local_here(arguments(killed, shapes_directory), status=0)


def versions(root):
    return sorted(int(path.name) for path in (root / "serving").iterdir() if path.name.isdigit())


def wait_for_response(channel, request):
    """Return a server's response, as soon as it has a version."""
    stub, deadline = prediction_service_pb2_grpc.PredictionServiceStub(channel), time.monotonic() + 200
    while True:
        try:
            return stub.Predict(request, timeout=60)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def trained(root):
    (directory,) = sorted(root.glob("artifacts/Trainer/model/*/Format-TFMA"))[:1]
    return trained_model.load_trained(directory)


def test_a_killed_run_is_resumed(finished):
    root, output = finished
    assert states(output) == dict.fromkeys(NODES, "done") | {"Ingest": "cached", "Examiner": "cached"}
    assert re.search(r"resuming after step [2468] of 8", output)
    assert re.search(r"Trainer .* interrupted in the previous run", output)
    (version,) = versions(root)
    assert f"pushed: {root / 'serving' / str(version)}" in output
    assert [path.name for path in (root / "serving").iterdir()] == [str(version)]
    card = (root / "serving" / str(version) / "model_card.md").read_text(encoding="utf-8")
    assert "80 examples, 0 skipped" in card and "mIoU" in card and '"steps": 8' in card
    assert not list((root / "training").iterdir())
    assert list(root.glob("artifacts/Trainer/model_run/*/tensorboard/*"))


def test_counts_equal_an_evaluation_of_the_source(finished, shapes_directory):
    root, _ = finished
    model, config, _ = trained(root)
    source = dataclasses.replace(config.data, name="shapes", directory=str(shapes_directory))
    config = dataclasses.replace(config, data=source)
    counts = Counter(model, protocol_of(config), 7, tf.distribute.get_strategy()).count(val_split(config))
    (evaluation,) = root.glob("artifacts/Evaluator/evaluation/*")
    bands, matrix = np.load(evaluation / "bands.npy"), np.load(evaluation / "confusion.npy")
    assert bands.dtype == matrix.dtype == np.int64
    np.testing.assert_array_equal(bands, counts.bands)
    np.testing.assert_array_equal(matrix, counts.matrix)
    images = np.load(evaluation / "per_image.npz")
    for name in ("hits", "truth", "predicted"):
        np.testing.assert_array_equal(images[name], getattr(counts, name))
    assert (evaluation / "report.html").stat().st_size > 10_000


def test_a_server_loads_the_pushed_version(finished, server, shapes_directory):
    root, _ = finished
    model, config, _ = trained(root)
    split = registry.open_split(dataclasses.replace(config.data, name="shapes", directory=str(shapes_directory)), "val")
    encoded = split.read(tf.constant(3, tf.int64))[0].numpy()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "shapes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([encoded]))
    response = wait_for_response(server, request)
    assert response.model_spec.version.value == versions(root)[-1]
    ids = tf.io.decode_png(tf.make_ndarray(response.outputs["png_bytes"])[0]).numpy()[..., 0]
    assert np.mean(ids != predictor(model, protocol_of(config))(tf.io.decode_png(encoded).numpy())) < 0.001


def test_a_second_run_is_cached(finished, shapes_directory):
    root, _ = finished
    before = versions(root)
    output = run_local_here(arguments(root, shapes_directory), status=0)
    assert states(output) == dict.fromkeys(NODES, "cached")
    assert versions(root) == before


def test_a_worse_model_is_refused(finished, shapes_directory, capsys, monkeypatch):
    root, _ = finished
    before = versions(root)
    monkeypatch.setattr(trainer, "train", untrained.train)
    worse = arguments(root, shapes_directory, "train.steps=1")
    output = run_local_here([*worse, "--epsilon", "0.001"], status=1)
    assert states(output) == {"Ingest": "cached", "Examiner": "cached"} | dict.fromkeys(NODES[2:], "done")
    assert re.search(r"mIoU \d+\.\d\d is more than 0.10 below the blessed model's \d+\.\d\d", output)
    assert re.search(r"^  background +\d+\.\d\d +\d+\.\d\d +-\d+\.\d\d$", output, re.MULTILINE)
    assert versions(root) == before
    output = run_here(history.main, ["--root", root], capsys)
    assert output.count("pushed: nothing") == 2 and output.count(f"pushed: {root}") == 2
    assert "not blessed:" in output and "Trainer running" in output
    lineage = run_here(history.main, ["--root", root, "--version", before[-1]], capsys)
    assert re.search(r"80 images of .*shapes.*fingerprint [0-9a-f]{32}", lineage)
    assert '"steps": 8' in lineage
