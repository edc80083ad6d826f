"""The training command: its files, resuming, stopping, and errors."""

import contextlib
import io
import json
import re
import resource
import shutil
import signal

import h5py
import keras
import numpy as np
import PIL.Image
import pytest

from kseg import config as configs
from kseg import train
from kseg.config import Config
from kseg.config.sections import Loss, Model, Train
from kseg.training import recorder, trainer
from tests.helpers.exhaustive import exhaustive
from tests.helpers.running import TINY, run, run_here, start, tiny
from tests.helpers.small_training import SMALL, build_small_networks
from tests.helpers.splits import step_indices


def weights_of(path):
    """Return all arrays of a .weights.h5 file by name."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    assert arrays
    return arrays


def assert_same_weights(workdir, expected):
    expected, actual = (weights_of(path / "final.weights.h5") for path in (expected, workdir))
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, actual[name], err_msg=name)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(process, step):
    """Wait until a running training reports this step or a later one."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step ") and "/" in line and int(line.split("/")[0].removeprefix("step ")) >= step:
            return
    pytest.fail("".join(lines))


def small(directory, *more):
    """Return the arguments of a run of the small network, for tests that do not depend on the model."""
    return tiny(directory, *SMALL, *more)


def train_here(arguments):
    """Run the command in this process and return its output."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert train.main([str(argument) for argument in arguments]) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def finished(shapes_directory, tmp_path_factory):
    """Return the working directory and the output of a tiny uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole run"
    return workdir, train_here([*tiny(shapes_directory), "--workdir", workdir])


@pytest.fixture
def small_networks(monkeypatch):
    """Make the command train the small network in this process."""
    build_small_networks(monkeypatch)


@pytest.fixture(scope="module")
def small_finished(shapes_directory, tmp_path_factory):
    """Return the working directory of an uninterrupted run of the small network."""
    workdir = tmp_path_factory.mktemp("runs") / "small run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        build_small_networks(monkeypatch)
        train_here([*small(shapes_directory), "--workdir", workdir])
    return workdir


@pytest.fixture
def copy_of_finished(small_networks, small_finished, tmp_path):
    return shutil.copytree(small_finished, tmp_path / "copy")


def test_files_of_a_run(finished):
    workdir, output = finished
    assert "1 replica x 2" in output
    lines = metrics_of(workdir)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert all(
        line["loss"] == pytest.approx(line["main"] + line["aux"] + line["se"], rel=1e-5)
        for line in lines
        if "loss" in line
    )
    validated = [line for line in lines if "val/mIoU" in line]
    assert [line["step"] for line in validated] == [12]
    assert json.loads((workdir / "best.json").read_text()) == {"step": 12, "mIoU": validated[0]["val/mIoU"]}
    # train.keep_checkpoints is 3.
    assert sorted(path.stem for path in (workdir / "checkpoints").glob("*.index")) == [
        "step-00000006",
        "step-00000009",
        "step-00000012",
    ]
    assert "eta" in output and "images/s" in output


def test_tensorboard_contains_scalars_and_fixed_images(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished[0] / "tensorboard"), size_guidance={"tensors": 0})
    board.Reload()
    tags = set(board.Tags()["tensors"])
    assert {"train/loss", "train/learning_rate", "validation/mIoU", "validation", "iou/star"} <= tags
    assert {tag.partition("/")[0] for tag in tags} == {"train", "validation", "iou", "system"}
    assert len(board.Tensors("train/loss")) == 12
    image = board.Tensors("validation")[0].tensor_proto.string_val
    # Width and height are followed by one PNG for each image: image, ground truth and prediction side by side.
    assert image[:2] == [b"768", b"128"] and len(image) == 2 + 4


def test_killed_run_ends_with_the_same_weights(small_networks, small_finished, shapes_directory, tmp_path, capsys):
    workdir = tmp_path / "killed run"
    command = [*small(shapes_directory), "--workdir", workdir]
    # The first kill precedes the first checkpoint, and the second one falls between two checkpoints.
    for step in (2, 7):
        process = start("tests.helpers.small_training", *command)
        wait_for_step(process, step)
        process.kill()
        process.communicate()
    output = run_here(train.main, command, capsys)
    assert "finished 12 steps" in output
    assert_same_weights(workdir, small_finished)
    logged = [line["step"] for line in metrics_of(workdir) if "loss" in line]
    assert logged == list(range(1, 13))


def test_finished_run_takes_no_more_steps(copy_of_finished, shapes_directory, capsys):
    before = (copy_of_finished / "metrics.jsonl").read_text()
    output = run_here(train.main, [*small(shapes_directory), "--workdir", copy_of_finished], capsys)
    assert "step 12 of 12" in output and "finished 12 steps" in output
    assert (copy_of_finished / "metrics.jsonl").read_text() == before


def assert_saved_once(workdir, output):
    saved = [int(path.stem.split("-")[1]) for path in (workdir / "checkpoints").glob("*.index")]
    assert len(saved) == 1 and f"saved step {saved[0]} of 500" in output


def test_sigterm_saves_a_checkpoint(shapes_directory, tmp_path):
    command = [*small(shapes_directory, "train.steps=500", "train.checkpoint_every=500"), "--workdir", tmp_path]
    process = start("tests.helpers.small_training", *command)
    wait_for_step(process, 1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert_saved_once(tmp_path, output)


def signal_before(monkeypatch, name, number):
    """Make a method of Recorder send a signal to this process before it does its work."""
    method = getattr(recorder.Recorder, name)

    def signal_and_call(*arguments):
        signal.raise_signal(number)
        return method(*arguments)

    monkeypatch.setattr(recorder.Recorder, name, signal_and_call)


def test_ctrl_c_saves_a_checkpoint(small_networks, shapes_directory, tmp_path, capsys, monkeypatch):
    signal_before(monkeypatch, "log", signal.SIGINT)
    command = [*small(shapes_directory, "train.steps=500", "train.checkpoint_every=500"), "--workdir", tmp_path]
    assert_saved_once(tmp_path, run_here(train.main, command, capsys, status=130))


def test_only_damaged_checkpoints_are_an_error(copy_of_finished, shapes_directory, capsys):
    for path in (copy_of_finished / "checkpoints").glob("step-*.data*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    output = run_here(train.main, [*small(shapes_directory), "--workdir", copy_of_finished], capsys, status=2)
    assert str(copy_of_finished / "checkpoints") in output and "steps 6, 9, 12" in output


def test_workdir_of_another_config_is_an_error(copy_of_finished, shapes_directory, capsys):
    output = run_here(
        train.main,
        [*small(shapes_directory, "train.learning_rate=0.5"), "--workdir", copy_of_finished],
        capsys,
        status=2,
    )
    assert "belongs to another run" in output and "train.learning_rate: 0.05 " in output


def test_nonfinite_loss_names_step_learning_rate_and_files(small_networks, shapes_directory, tmp_path, capsys):
    output = run_here(
        train.main, [*small(shapes_directory, "train.learning_rate=1e30"), "--workdir", tmp_path], capsys, status=2
    )
    # The update of the first step makes the loss of the second one nan.
    assert "not finite at step 2 (loss nan" in output
    assert "learning rate 9.17797e+29" in output
    assert output.count("shapes/train/") == 2


def test_unwritable_workdir_is_an_error(shapes_directory, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    output = run_here(train.main, [*tiny(shapes_directory), "--workdir", tmp_path / "file"], capsys, status=2)
    assert f"cannot write to {tmp_path / 'file'}" in output


def test_damage_a_full_disk_and_an_interrupted_validation_lose_nothing(
    copy_of_finished, small_finished, shapes_directory, capsys, monkeypatch
):
    """A run meets three faults one after the other and ends with the weights of the undisturbed run.

    Its newest checkpoint is damaged, as a limit on the size of files, which imitates a full disk, makes the next one
    fail in the middle; then a signal arrives before the validation.
    """
    workdir, command = copy_of_finished, [*small(shapes_directory), "--workdir", copy_of_finished]
    path = next((workdir / "checkpoints").glob("step-00000012.data*"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    for pattern in ("best.*", "final.*"):
        for written in workdir.glob(pattern):
            written.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so the write fails with an error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        output = run_here(train.main, command, capsys, status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "checkpoint of step 12 cannot be read" in output and "resuming after step 9 of 12" in output
    assert "cannot write the checkpoint of step 12" in output and "the checkpoint of step 9 is intact" in output
    with monkeypatch.context() as patch:
        signal_before(patch, "validate", signal.SIGTERM)
        output = run_here(train.main, command, capsys, status=143)
    assert "resuming after step 9 of 12" in output and "saved step 12 of 12" in output
    assert not any("val/mIoU" in line for line in metrics_of(workdir))
    assert not list(workdir.glob("best.*"))
    output = run_here(train.main, command, capsys)
    assert "resuming after step 12 of 12" in output and "finished 12 steps" in output
    assert (workdir / "best.json").read_text() == (small_finished / "best.json").read_text()
    assert_same_weights(workdir, small_finished)


def test_unreadable_file_loses_no_steps(small_networks, tmp_path, capsys):
    """Training saves its state, names the file and stops, and it resumes after the file is repaired."""
    directory = tmp_path / "my data"
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for part in ("images", "labels"):
            (directory / split / part).mkdir(parents=True)
        for index in range(count):
            label = generator.integers(0, 2, (80, 70)).astype(np.uint8)
            PIL.Image.fromarray(label).save(directory / split / "labels" / f"{index}.png")
            image = np.repeat(label[..., None] * 200, 3, 2)
            PIL.Image.fromarray(image).save(directory / split / "images" / f"{index}.png")
    (directory / "classes.txt").write_text("dark\nlight\n")
    config = configs.load("encnet_shapes", [*TINY, "data.name=folder", f"data.directory={directory}"])
    first = set(step_indices(config, 0)) | set(step_indices(config, 1))
    late = next(index for index in step_indices(config, 3) if index not in first)
    names = sorted(path.name for path in (directory / "train" / "images").iterdir())
    bad = directory / "train" / "images" / names[late]
    content = bad.read_bytes()
    bad.write_bytes(content[:50])
    command = [*small(directory, "data.name=folder", "train.checkpoint_every=12"), "--workdir", tmp_path / "run"]
    output = run_here(train.main, command, capsys, status=2)
    assert str(bad) in output
    saved = [int(path.stem.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").glob("*.index")]
    assert len(saved) == 1 and saved[0] >= 2
    bad.write_bytes(content)
    output = run_here(train.main, command, capsys)
    assert f"step {saved[0]} of 12" in output and "finished 12 steps" in output


@exhaustive
def test_xla_computes_the_same_losses():
    import tensorflow as tf

    from kseg.training.step import Steps

    losses = {}
    for jit_compile in (False, True):
        config = Config(
            model=Model(head="fcn", backbone="resnet18", width=4, channels=8, auxiliary_channels=0, dropout=0.0),
            loss=Loss(se=0.0),
            train=Train(global_batch=2, steps=3, jit_compile=jit_compile),
        )
        keras.utils.set_random_seed(2)
        model, optimizer, _ = trainer.build_training(config, 3, print)
        step = Steps(model, optimizer, config, tf.distribute.get_strategy()).one
        generator = np.random.default_rng(1)
        losses[jit_compile] = [
            float(
                step(
                    {
                        "image": tf.constant(generator.normal(size=(2, 64, 64, 3)), tf.float32),
                        "label": tf.constant(generator.integers(0, 3, (2, 64, 64)), tf.uint8),
                    }
                )["loss"]
            )
            for _ in range(3)
        ]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)


def test_batch_of_one_image_trains(shapes_directory, tmp_path):
    """TensorFlow's gradient of a strided 1x1 convolution corrupts memory at batch 1; kseg must avoid it."""
    output = run(
        "kseg.train",
        *tiny(
            shapes_directory,
            "train.global_batch=1",
            "train.steps=4",
            "model.head=fcn",
            "model.auxiliary_channels=0",
            "augment.photometric=false",
            "train.deterministic=false",
        ),
        "--workdir",
        tmp_path,
    )
    assert "finished 4 steps" in output
    # Deterministic runs do not measure how long they wait for batches.
    assert re.search(r"^step 4/4 .* images/s  input \d+%", output, re.MULTILINE)
