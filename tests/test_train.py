"""The training command: resuming, stopping, refusing, and the same numbers on one device and on two."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from running import ROOT, run, start, tiny

from kseg import commands, train


def weights_of(path):
    """Return every array of a .weights.h5 file by its name."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    assert arrays
    return arrays


def steps_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(process, workdir, step):
    """Wait until a running training has logged a step."""
    while process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_text().count('"loss"') >= step:
            return
        time.sleep(0.01)
    pytest.fail(process.communicate()[0])


@pytest.fixture(scope="module")
def finished(shapes_directory, tmp_path_factory):
    """A tiny run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole run"
    output = run("kseg.train", *tiny(shapes_directory), "--workdir", workdir)
    return workdir, output


@pytest.fixture
def copy_of_finished(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_writes_what_it_says(finished):
    workdir, output = finished
    assert "global batch 2 = 1 replica x 2" in output
    lines = steps_of(workdir)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert all(line["loss"] == pytest.approx(line["main"] + line["aux"] + line["se"], rel=1e-5)
               for line in lines if "loss" in line)
    validated = [line for line in lines if "val/mIoU" in line]
    assert [line["step"] for line in validated] == [12]
    assert json.loads((workdir / "best.json").read_text()) == {"step": 12, "mIoU": validated[0]["val/mIoU"]}
    # keep_checkpoints is 3.
    assert sorted(path.stem for path in (workdir / "checkpoints").glob("*.index")) == [
        "step-00000006", "step-00000009", "step-00000012"]
    assert "eta" in output and "images/s" in output and "input" in output


def test_tensorboard_holds_scalars_and_fixed_images(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished[0] / "tensorboard"), size_guidance={"tensors": 0})
    board.Reload()
    assert {"loss", "learning_rate", "val/mIoU", "validation"} <= set(board.Tags()["tensors"])
    assert len(board.Tensors("loss")) == 12
    image = board.Tensors("validation")[0].tensor_proto.string_val
    # Width and height come first, then one PNG for each picture: image, truth and prediction side by side.
    assert image[:2] == [b"768", b"128"] and len(image) == 2 + 4


def test_killed_at_random_steps_it_ends_with_the_same_weights(finished, shapes_directory, tmp_path):
    workdir = tmp_path / "killed run"
    command = [*tiny(shapes_directory), "--workdir", workdir]
    for step in sorted(random.sample(range(1, 11), 2)):
        process = start("kseg.train", *command)
        wait_for_step(process, workdir, step)
        process.kill()
        process.communicate()
    output = run("kseg.train", *command)
    assert "finished 12 steps" in output
    expected, actual = weights_of(finished[0] / "final.weights.h5"), weights_of(workdir / "final.weights.h5")
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, actual[name], err_msg=name)
    logged = [line["step"] for line in steps_of(workdir) if "loss" in line]
    assert logged == list(range(1, 13))


def test_a_finished_run_is_not_run_again(copy_of_finished, shapes_directory):
    before = (copy_of_finished / "metrics.jsonl").read_text()
    output = run("kseg.train", *tiny(shapes_directory), "--workdir", copy_of_finished)
    assert "continuing at step 12 of 12" in output and "finished 12 steps" in output
    assert (copy_of_finished / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(number, status, shapes_directory, tmp_path):
    command = [*tiny(shapes_directory, "train.steps=500", "train.checkpoint_every=500"), "--workdir", tmp_path]
    process = start("kseg.train", *command)
    wait_for_step(process, tmp_path, 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert "the same command continues there" in output
    saved = [int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("*.index")]
    assert len(saved) == 1 and f"saved step {saved[0]} of 500" in output


def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy_of_finished, shapes_directory, finished):
    data = next((copy_of_finished / "checkpoints").glob("step-00000012.data*"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    (copy_of_finished / "final.weights.h5").unlink()
    output = run("kseg.train", *tiny(shapes_directory), "--workdir", copy_of_finished)
    assert "checkpoint of step 12 cannot be read" in output and "continuing at step 9 of 12" in output
    expected, actual = (weights_of(path / "final.weights.h5") for path in (finished[0], copy_of_finished))
    for name, value in expected.items():
        np.testing.assert_array_equal(value, actual[name], err_msg=name)


def test_flipped_bits_are_noticed_and_no_good_checkpoint_is_an_error(copy_of_finished, shapes_directory):
    for data in (copy_of_finished / "checkpoints").glob("step-*.data*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 0xFF
        data.write_bytes(content)
    output = run("kseg.train", *tiny(shapes_directory), "--workdir", copy_of_finished, status=2)
    assert "none of the checkpoints" in output and "steps 6, 9, 12" in output


def test_another_config_in_the_workdir_is_refused(copy_of_finished, shapes_directory):
    output = run("kseg.train", *tiny(shapes_directory, "train.learning_rate=0.5"), "--workdir", copy_of_finished,
                 status=2)
    assert "belongs to another run" in output and "train.learning_rate: 0.05 there, 0.5 now" in output


def test_a_non_finite_loss_names_step_rate_and_files(shapes_directory, tmp_path):
    output = run("kseg.train", *tiny(shapes_directory, "train.learning_rate=1e30"), "--workdir", tmp_path, status=2)
    assert "the loss or its update is not finite at step" in output and "learning rate 1e+30" in output
    assert output.count("shapes/train/") == 2


def test_an_unwritable_workdir_is_refused(shapes_directory, tmp_path):
    (tmp_path / "file").write_text("in the way")
    output = run("kseg.train", *tiny(shapes_directory), "--workdir", tmp_path / "file", status=2)
    assert f"cannot write to {tmp_path / 'file'}" in output


def test_a_full_disk_keeps_the_last_checkpoint(shapes_directory, tmp_path):
    """A limit on the size of files fails as a full disk does: in the middle of writing a checkpoint."""
    command = [*tiny(shapes_directory), "--workdir", str(tmp_path)]
    process = start("kseg.train", *command)
    wait_for_step(process, tmp_path, 4)
    process.kill()
    process.communicate()
    size = next((tmp_path / "checkpoints").glob("step-00000003.data*")).stat().st_size
    limited = ("import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
               f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2})); "
               "sys.argv[0] = 'kseg.train'; runpy.run_module('kseg.train', run_name='__main__')")
    result = subprocess.run([sys.executable, "-c", limited, *map(str, command)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 2, result.stdout
    assert "cannot write the checkpoint of step 6" in result.stdout
    assert "the checkpoint of step 3 is whole" in result.stdout
    assert "finished 12 steps" in run("kseg.train", *command)


def test_two_replicas_give_the_losses_of_one_device():
    result = subprocess.run([sys.executable, "tests/replica_losses.py"], cwd=ROOT, text=True, capture_output=True,
                            check=True)
    for average, series in json.loads(result.stdout.splitlines()[-1]).items():
        assert len(series["one"]) == 20
        np.testing.assert_allclose(series["two"], series["one"], rtol=1e-5, err_msg=average)
        assert series["one"][-1] < series["one"][0]


def test_replicas_share_the_batch_on_the_command_line(shapes_directory, tmp_path):
    output = run("kseg.train", *tiny(shapes_directory, "train.steps=2"), "--workdir", tmp_path, "--cpu-replicas", 2)
    assert "global batch 2 = 2 replicas x 1" in output and "finished 2 steps" in output
    output = run("kseg.train", *tiny(shapes_directory), "--workdir", tmp_path, "--cpu-replicas", 3, status=2)
    assert "train.global_batch=2 cannot be shared evenly by 3 replicas" in output


def here(arguments, capsys):
    """Run the command in this process, which saves the start-up; return its exit status and what it printed."""
    with pytest.raises(SystemExit) as stopped:
        commands.run(lambda: train.main([str(argument) for argument in arguments]))
    printed = capsys.readouterr()
    return stopped.value.code, printed.out + printed.err


def test_dry_run(shapes_directory, capsys):
    status, output = here([*tiny(shapes_directory), "--dry-run"], capsys)
    assert status == 0
    assert '"crop": [\n      64,\n      64\n    ]' in output
    assert "first batch: image (2, 64, 64, 3) float32, label (2, 64, 64) uint8" in output
    assert "parameters: " in output and "no GPU" in output


def test_cityscapes_without_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--config", "encnet_cityscapes"]
    status, output = here([*command, "--workdir", "run"], capsys)
    assert status == 2
    assert "leftImg8bit_trainvaltest.zip" in output and "data/cityscapes" in output
    assert not list(tmp_path.iterdir())
    status, output = here([*command, "--dry-run"], capsys)
    assert status == 0
    assert "parameters: 35,891,961" in output and "(8, 512, 1024, 3) float32" in output


@pytest.mark.parametrize("arguments, words", [
    (["--config", "encnet_camvd", "--dry-run"], "Did you mean encnet_camvid"),
    (["--config", "encnet_shapes", "--set", "train.step=3", "--dry-run"], "Did you mean train.steps"),
    (["--config", "encnet_shapes", "--set", "data.name=shape", "--dry-run"], "Did you mean shapes"),
    (["--config", "encnet_shapes", "--set", "model.head=encnt", "--dry-run"], "Did you mean encnet"),
    (["--config", "encnet_shapes", "--set", "train.steps=many", "--dry-run"], "train.steps takes int, got 'many'"),
    (["--config", "encnet_shapes"], "--workdir DIR is needed"),
])
def test_wrong_arguments(arguments, words, shapes_directory, capsys):
    if "data.name=shape" not in arguments:
        arguments = [*arguments, "--set", f"data.directory={shapes_directory}"]
    status, output = here(arguments, capsys)
    assert status == 2
    assert words in output
