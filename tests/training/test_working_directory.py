"""The working directory: whose it is, what may change in it, and files that were damaged."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg.config import Config, Model, values
from kseg.datasets import registry
from kseg.errors import WorkdirError
from kseg.inference import trained_model
from kseg.system import atomic_files, retries
from kseg.training import checkpoints, trainer, working_directory
from kseg.training.ema import Average
from kseg.weights import keras_files
from tests.helpers.running import ROOT

CAMVID = registry.DATASETS["camvid"]


@pytest.fixture
def workdir(tmp_path):
    """A directory in which a run has written a checkpoint."""
    working_directory.open_run(tmp_path / "run", Config(), CAMVID).close()
    (tmp_path / "run" / "checkpoints" / "step-00000001.index").touch()
    return tmp_path / "run"


def test_one_process_at_a_time(workdir):
    with working_directory.open_run(workdir, Config(), CAMVID):
        with pytest.raises(WorkdirError, match="another process is training in"):
            working_directory.open_run(workdir, Config(), CAMVID)
    working_directory.open_run(workdir, Config(), CAMVID).close()


@pytest.mark.parametrize("before, now, free", [
    ("train.log_every=50", "train.log_every=7", True), ("train.seed=0", "train.seed=1", False),
    ("init.backbone=a.npz", "init.backbone=elsewhere/a.npz", True),
    ("init.backbone=", "init.backbone=a.npz", False), ("init.backbone=a.npz", "init.backbone=", False),
    ("init.weights=a.pth", "init.weights=b.pth", True), ("init.skip=", "init.skip=decode_head.*", False)])
def test_what_may_change_once_something_is_trained(tmp_path, before, now, free):
    old, new = (values.set_value(Config(), value) for value in (before, now))
    working_directory.open_run(tmp_path, old, CAMVID).close()
    # Nothing is trained yet: a config that was mended may take the directory.
    working_directory.open_run(tmp_path, new, CAMVID).close()
    working_directory.open_run(tmp_path, old, CAMVID).close()
    (tmp_path / "checkpoints" / "step-00000001.index").touch()
    if free:
        working_directory.open_run(tmp_path, new, CAMVID).close()
        assert trained_model.read(tmp_path)[0] == new
    else:
        with pytest.raises(WorkdirError, match="belongs to another run"):
            working_directory.open_run(tmp_path, new, CAMVID)
        assert trained_model.read(tmp_path)[0] == old


def test_another_label_table_is_refused(workdir):
    swapped = replace(CAMVID, label_table=(1, 0, *CAMVID.label_table[2:]))
    with pytest.raises(WorkdirError, match="label value 0 as 0, the data now reads it as 1"):
        working_directory.open_run(workdir, Config(), swapped)


@pytest.mark.parametrize("name, content", [
    ("config.json", ""), ("config.json", "[]"), ("dataset.json", ""), ("dataset.json", "{}"), ("dataset.json", "[]"),
    ("dataset.json", '{"name": "none"}')])
def test_damaged_files_are_named(workdir, name, content):
    (workdir / name).write_text(content)
    with pytest.raises(WorkdirError, match=name):
        trained_model.read(workdir)


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    working_directory.trim_metrics(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines) + "\n"
    working_directory.trim_metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:3]) + "\n"


def test_a_checkpoint_knows_its_values_in_the_same_process_too():
    """A second model of one process has the same names, though Keras numbers what it is not told to name."""
    config = replace(Config(), model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4))
    names = []
    for _ in range(2):
        checkpoint = checkpoints.tracked(*trainer.build(config, 3, print))
        names.append({name for name, _ in checkpoint._trackable_children().items() if "/" in name})
    assert names[0] == names[1] and len(names[0]) > 100


@pytest.mark.parametrize("name, directory", [
    ("encnet_shapes", "runs/encnet_shapes"),
    ("encnet_cityscapes:r101-d8-769x769-80k", "runs/encnet_cityscapes-r101-d8-769x769-80k")])
def test_the_default_directory_of_a_run_has_no_colon(name, directory):
    assert working_directory.default(configs.load(name)) == Path(directory)


def state(value):
    """Something to be stored that consists of a number."""
    return tf.train.Checkpoint(step=checkpoints.Step(), **{"model/a": tf.Variable(tf.fill((50,), float(value)))})


def value_of(checkpoint):
    values = set(getattr(checkpoint, "model/a").numpy().tolist())
    assert len(values) == 1
    return values.pop()


@pytest.fixture
def two(tmp_path):
    """A directory with the checkpoints of the steps 3 and 6, whose states are -3 and -6."""
    (tmp_path / "checkpoints").mkdir()
    for step in (3, 6):
        checkpoints.save_checkpoint(tmp_path, state(-step), step, keep=2)
    return tmp_path


def file(workdir, step, kind):
    """Return the "data" or the "index" of a checkpoint."""
    return next((workdir / "checkpoints").glob(f"step-{step:08d}.{kind}*"))


def assert_taken(workdir, step, *reports):
    """Restore, and require that this step's state was read and what was reported."""
    lines, checkpoint = [], state(1)
    assert checkpoints.restore_newest(workdir, checkpoint, lines.append) == step
    assert value_of(checkpoint) == -step
    assert len(lines) == len(reports), lines
    for line, expected in zip(lines, reports, strict=True):
        assert re.search(expected, line), line


def test_the_newest_is_taken(two):
    assert_taken(two, 6)


@pytest.mark.parametrize("kind", ["data", "index"])
def test_each_flipped_byte_is_noticed_or_does_not_matter(two, kind):
    path = file(two, 6, kind)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1:])
        checkpoint = state(1)
        try:
            checkpoints.read_checkpoint(checkpoint, path.with_name("step-00000006"))
        except Exception:
            noticed += 1
        else:
            assert value_of(checkpoint) == -6 and checkpoint.step.value == 6
    # The rest pads the index.
    assert noticed == len(whole) if kind == "data" else noticed > 0.7 * len(whole)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def other_steps(path):
    shutil.copyfile(path.with_name(path.name.replace("06.", "03.")), path)


@pytest.mark.parametrize("damage", [cut, empty, other_steps, Path.unlink])
@pytest.mark.parametrize("kinds", [["data"], ["index"], ["data", "index"]], ids=" ".join)
def test_the_one_before_a_damaged_one_is_taken(two, damage, kinds):
    for kind in kinds:
        damage(file(two, 6, kind))
    gone = damage is Path.unlink and "index" in kinds
    reason = r"it is that of step 3" if damage is other_steps and len(kinds) == 2 else ""
    assert_taken(two, 3, *([] if gone else [rf"checkpoint of step 6 cannot be read \(.*{reason}"]))
    # Else it would count as the newest, and the good one be dropped for it.
    assert checkpoints.checkpoint_steps(two) == [3]


def test_where_none_is_good_all_stay(two):
    for step in (3, 6):
        cut(file(two, step, "data"))
    before = sorted(path.name for path in (two / "checkpoints").iterdir())
    with pytest.raises(WorkdirError, match=r"none of the checkpoints in .* can be read \(steps 3, 6\)"):
        checkpoints.restore_newest(two, state(1), lambda line: None)
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("shapes", [{"model/a": 50, "model/b": 3}, {"model/a": 3}, {}], ids=["more", "size", "less"])
def test_a_whole_checkpoint_of_another_model_is_an_error_and_stays(two, shapes):
    values = {name: tf.Variable(tf.zeros(size)) for name, size in shapes.items()}
    checkpoint = tf.train.Checkpoint(step=checkpoints.Step(), **values)
    with pytest.raises(WorkdirError, match="step-00000006 is whole, but of another model or written by another"):
        checkpoints.restore_newest(two, checkpoint, print)
    assert checkpoints.checkpoint_steps(two) == [3, 6]


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(two, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(WorkdirError, match="cannot list .*checkpoints: Permission denied"):
        checkpoints.restore_newest(two, state(1), print)


def test_all_state_is_stored(tmp_path):
    """Weights, velocities, averages and what the steps keep, each under its name."""
    def built():
        # Names are numbered anew.
        keras.backend.clear_session()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
        parts = model, optimizer, Average(model, 0.9), {"scale": tf.Variable(5.0), "count": tf.Variable(2)}
        values = [*(variable.value for variable in (*model.variables, *optimizer.variables)),
                  *parts[2].variables.values(), *parts[3].values()]
        return checkpoints.tracked(*parts), values

    (checkpoint, values), (other, restored) = built(), built()
    for number, value in enumerate(values):
        value.assign(tf.cast(tf.fill(value.shape, 7 + number), value.dtype))
    (tmp_path / "checkpoints").mkdir()
    checkpoints.save_checkpoint(tmp_path, checkpoint, 4, keep=1)
    assert checkpoints.restore_newest(tmp_path, other, print) == 4
    # Kernel and bias thrice, the optimizer's steps and rate, the state of the dropout, and two more.
    assert len(values) >= 11
    for before, after in zip(values, restored, strict=True):
        np.testing.assert_array_equal(before, after)


def failing_syncs(monkeypatch, number, count, name=""):
    """Make the first `count` waits for the storage fail, of files whose names hold `name`, and no wait take time."""
    sync, failed = atomic_files.sync, []

    def fail(path):
        if name in path.name and len(failed) < count:
            failed.append(path)
            raise OSError(number, os.strerror(number))
        sync(path)

    for module in (atomic_files, checkpoints, working_directory):
        monkeypatch.setattr(module, "sync", fail)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    return failed


@pytest.mark.parametrize("name", [".data", ".index", "checkpoints"])
def test_a_checkpoint_is_written_again_after_storage_failed_twice(two, monkeypatch, name):
    failed, lines = failing_syncs(monkeypatch, errno.EIO, 2, name), []
    checkpoints.save_checkpoint(two, state(-9), 9, keep=1, report=lines.append)
    assert len(failed) == 2
    assert [line.partition(";")[0] for line in lines] == [
        "writing the checkpoint of step 9 failed ([Errno 5] Input/output error)"] * 2
    assert checkpoints.checkpoint_steps(two) == [9]
    assert_taken(two, 9)


@pytest.mark.parametrize("number, attempts", [(errno.EIO, retries.ATTEMPTS), (errno.ENOSPC, 1), (errno.EROFS, 1)])
def test_storage_that_goes_on_failing_leaves_the_checkpoints_before(two, monkeypatch, number, attempts):
    failed = failing_syncs(monkeypatch, number, 99)
    message = f"cannot write the checkpoint of step 9 to .*: .*{os.strerror(number)}; the checkpoint of step 6 is whole"
    with pytest.raises(WorkdirError, match=message):
        checkpoints.save_checkpoint(two, state(-9), 9, keep=1, report=lambda line: None)
    assert len(failed) == attempts
    monkeypatch.undo()
    assert {path.name.partition(".")[0] for path in (two / "checkpoints").iterdir()} == {"step-00000003",
                                                                                         "step-00000006"}
    assert_taken(two, 6)


def test_a_checkpoint_that_does_not_read_back_replaces_none(two, monkeypatch):
    write, written = tf.train.Checkpoint.write, []

    def write_badly(checkpoint, prefix):
        write(checkpoint, prefix)
        written.append(prefix)
        cut(next(Path(prefix).parent.glob(f"{Path(prefix).name}.data*")))

    monkeypatch.setattr(tf.train.Checkpoint, "write", write_badly)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    with pytest.raises(WorkdirError, match="it does not read back as written: .*; the checkpoint of step 6 is whole"):
        checkpoints.save_checkpoint(two, state(-9), 9, keep=1, report=lambda line: None)
    assert len(written) == retries.ATTEMPTS and checkpoints.checkpoint_steps(two) == [3, 6]


def test_a_checkpoint_that_storage_does_not_give_is_asked_for_again(two, monkeypatch):
    load, failed, lines = tf.train.load_checkpoint, [], []

    def fail_twice(prefix):
        if len(failed) < 2:
            failed.append(prefix)
            raise tf.errors.OpError(None, None, f"{prefix}.index; Stale file handle", tf.errors.UNKNOWN)
        return load(prefix)

    monkeypatch.setattr(tf.train, "load_checkpoint", fail_twice)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    assert checkpoints.restore_newest(two, state(1), lines.append) == 6
    assert len(lines) == 2 and all("reading the checkpoint of step 6 failed" in line for line in lines)


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(two, monkeypatch):
    def refuse(prefix):
        raise OSError(errno.EBUSY, "Device or resource busy")

    lines = []
    with monkeypatch.context() as patch:
        remove = checkpoints.remove_checkpoint
        patch.setattr(checkpoints, "remove_checkpoint", lambda prefix: refuse(prefix) if prefix.name == "step-00000003"
                      else remove(prefix))
        checkpoints.save_checkpoint(two, state(-9), 9, keep=1, report=lines.append)
    assert lines == ["the checkpoint of step 3 cannot be removed: Device or resource busy"]
    assert checkpoints.checkpoint_steps(two) == [3, 9]


def test_a_directory_that_vanished_is_named(two):
    shutil.rmtree(two)
    with pytest.raises(WorkdirError, match=f"cannot write the checkpoint of step 9 to {two}.*: .*No such file"):
        checkpoints.save_checkpoint(two, state(-9), 9, keep=1)
    assert not two.exists()


def test_killed_before_each_call_a_writing_process_leaves_the_state_before_or_after_it(tmp_path):
    output = subprocess.run([sys.executable, "-m", "tests.helpers.killed_writes", tmp_path, "2"], check=True, cwd=ROOT,
                            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}).stdout
    found = json.loads(output)
    for step, values, files, lines in found:
        assert values == [float(step or -1)] and lines == []
        # Nothing lies about that is no checkpoint's.
        assert all(name.startswith("step-") for name in files) and len(files) == 2 * len(set(map(str_step, files)))
    steps = [step for step, *_ in found]
    assert steps == sorted(steps) and set(steps) == {0, 1, 2} and len(steps) > 10


def str_step(name):
    return name.partition(".")[0]


def test_what_is_seen_has_reached_the_storage(two, monkeypatch):
    """A power cut leaves what was waited for: each file before it gets its name, names before others are removed."""
    events = []
    sync, rename, remove = atomic_files.sync, os.replace, checkpoints.remove_checkpoint
    monkeypatch.setattr(checkpoints, "sync", lambda path: (events.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(("name", new.name)), rename(old, new)))
    monkeypatch.setattr(checkpoints, "remove_checkpoint", lambda prefix: (events.append(("remove", prefix.name)), remove(prefix)))
    checkpoints.save_checkpoint(two, state(-9), 9, keep=1)
    data, index = "step-00000009.data-00000-of-00001", "step-00000009.index"
    begin = events.index(("sync", f".writing-{data}"))
    assert events[begin:] == [
        ("sync", f".writing-{data}"), ("sync", f".writing-{index}"), ("name", data), ("name", index),
        ("sync", "checkpoints"), ("remove", "step-00000003"), ("remove", "step-00000006")]


@pytest.fixture
def small_files():
    """Return a function that limits the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, small_files):
    path = tmp_path / "metrics.jsonl"
    atomic_files.append_text(path, "one\n")
    small_files(6)
    with pytest.raises(OSError, match=re.escape(str(path))):
        atomic_files.append_text(path, "second\n")
    small_files(100)
    assert path.read_text() == "one\n"
    atomic_files.append_text(path, "\u4e8c\n")
    assert path.read_text(encoding="utf-8") == "one\n\u4e8c\n"


@pytest.mark.parametrize("write", [
    lambda path: atomic_files.write_text(path, "x" * 9000),
    lambda path: keras_files.save_weights(keras.Sequential([keras.Input((9,)), keras.layers.Dense(999)]), path)],
    ids=["text", "weights"])
def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path, small_files, write):
    path = tmp_path / "best.weights.h5"
    path.write_text("before")
    small_files(5000)
    with pytest.raises((OSError, WorkdirError), match=re.escape(str(path))):
        write(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_weights_are_written_again_after_storage_failed(tmp_path, monkeypatch, capsys):
    failed = failing_syncs(monkeypatch, errno.EIO, 1, "best")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    keras_files.save_weights(model, tmp_path / "best.weights.h5")
    assert len(failed) == 1 and "best.weights.h5 failed ([Errno 5] Input/output error" in capsys.readouterr().out
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    other.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_array_equal(other.weights[0], model.weights[0])
    assert [path.name for path in tmp_path.iterdir()] == ["best.weights.h5"]


def test_a_run_removes_what_a_killed_one_was_writing(workdir):
    (workdir / ".writing-7-best.weights.h5").touch()
    (workdir / "checkpoints" / ".writing-step-00000002_temp").mkdir()
    (workdir / "checkpoints" / "step-00000002.data-00000-of-00001").touch()
    (workdir / "checkpoints" / "notes.txt").touch()
    working_directory.open_run(workdir, Config(), CAMVID).close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["notes.txt", "step-00000001.index"]
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", "checkpoints", "config.json", "dataset.json"]


SKIPPED = [{"step": 3, "losses": {"loss": "nan", "main": "1.5"}, "files": ["a", "b"]}]


def test_the_list_of_left_out_batches_is_kept(tmp_path):
    assert working_directory.read_skipped(tmp_path) == []
    working_directory.write_skipped(tmp_path, SKIPPED)
    assert working_directory.read_skipped(tmp_path) == SKIPPED


@pytest.mark.parametrize("content", [
    "", "{", "{}x", "3", '["a"]', '[{"step": 3}]', '[{"step": "3", "losses": {}, "files": []}]', '{"step": 3}'])
def test_a_damaged_list_of_left_out_batches_is_named(tmp_path, content):
    (tmp_path / "skipped.json").write_text(content)
    with pytest.raises(WorkdirError, match="skipped.json is damaged"):
        working_directory.read_skipped(tmp_path)
