"""The working directory: its owner, the values that may change, atomic writes and damaged files."""

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
from kseg.config import Config, values
from kseg.config.sections import Model, Train
from kseg.datasets import registry
from kseg.errors import WorkdirError
from kseg.inference import trained_model
from kseg.system import atomic_files, retries
from kseg.training import checkpoints, trainer, working_directory
from kseg.training.ema import ExponentialMovingAverage
from kseg.training.schedule import schedule
from kseg.weights import keras_files
from tests.helpers.running import ROOT

CAMVID = registry.DATASETS["camvid"]


@pytest.fixture
def workdir(tmp_path):
    """Return the working directory of a run that has written a checkpoint."""
    working_directory.open_workdir(tmp_path / "run", Config(), CAMVID).close()
    (tmp_path / "run" / "checkpoints" / "step-00000001.index").touch()
    return tmp_path / "run"


def test_only_one_process_may_train(workdir):
    with working_directory.open_workdir(workdir, Config(), CAMVID):
        with pytest.raises(WorkdirError, match="another process is training in"):
            working_directory.open_workdir(workdir, Config(), CAMVID)
    working_directory.open_workdir(workdir, Config(), CAMVID).close()


@pytest.mark.parametrize(
    "before, now, free",
    [
        ("train.log_every=50", "train.log_every=7", True),
        ("train.seed=0", "train.seed=1", False),
        ("init.backbone=a.npz", "init.backbone=elsewhere/a.npz", True),
        ("train.steps=10", "train.steps=20", False),
        ("train.steps=20", "train.steps=10", False),
        ("init.backbone=", "init.backbone=a.npz", False),
        ("init.backbone=a.npz", "init.backbone=", False),
        ("init.weights=a.pth", "init.weights=b.pth", True),
        ("init.skip=", "init.skip=decode_head.*", False),
    ],
)
def test_values_that_may_change_after_the_first_checkpoint(tmp_path, before, now, free):
    old, new = (values.set_value(Config(), value) for value in (before, now))
    working_directory.open_workdir(tmp_path, old, CAMVID).close()
    # Without a checkpoint the directory accepts a corrected config.
    working_directory.open_workdir(tmp_path, new, CAMVID).close()
    working_directory.open_workdir(tmp_path, old, CAMVID).close()
    (tmp_path / "checkpoints" / "step-00000001.index").touch()
    if free:
        working_directory.open_workdir(tmp_path, new, CAMVID).close()
        assert trained_model.read_workdir(tmp_path)[0] == new
    else:
        with pytest.raises(WorkdirError, match="belongs to another run"):
            working_directory.open_workdir(tmp_path, new, CAMVID)
        assert trained_model.read_workdir(tmp_path)[0] == old


@pytest.mark.parametrize(
    ("settings", "steps", "allowed"),
    [
        ({"end_step": 300}, 400, True),
        ({"end_step": 900, "end_learning_rate": 0.0}, 400, True),
        ({"end_step": 300, "end_learning_rate": 0.0}, 400, False),
        ({"end_step": 300}, 200, False),
        ({"power": 0.0}, 400, True),
        ({"learning_rate": 0.1, "end_learning_rate": 0.1}, 400, True),
        ({}, 400, False),
    ],
)
def test_steps_may_be_raised_where_the_schedule_permits_it(workdir, settings, steps, allowed):
    before, now = (replace(Config(), train=Train(steps=number, **settings)) for number in (300, steps))
    (workdir / "config.json").write_text(configs.to_json(before))
    (workdir / "final.weights.h5").touch()
    if allowed:
        rates = [schedule(config.train) for config in (before, now)]
        assert [float(rates[0](step)) for step in (0, 150, 299)] == [float(rates[1](step)) for step in (0, 150, 299)]
        working_directory.open_workdir(workdir, now, CAMVID).close()
        return
    with pytest.raises(WorkdirError, match="train.steps: 300 in the directory") as caught:
        working_directory.open_workdir(workdir, now, CAMVID)
    command = f"init.weights={workdir}/final.weights.h5 train.steps=100"
    assert (command in str(caught.value)) == (steps > 300)


@pytest.mark.parametrize("name", ["run[1]", "run\\1", "a[b/run"])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(WorkdirError, match="pattern"):
        working_directory.open_workdir(tmp_path / name, Config(), CAMVID)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run 1]", "run*", "run?1", "{run}", "läuft"])
def test_checkpoints_in_other_paths_are_read_back(tmp_path, name):
    workdir = tmp_path / name
    working_directory.open_workdir(workdir, Config(), CAMVID).close()
    checkpoints.save_checkpoint(workdir, state(-3), 3, keep=1)
    assert_restored(workdir, 3)


def test_changed_label_table_is_an_error(workdir):
    swapped = replace(CAMVID, label_table=(1, 0, *CAMVID.label_table[2:]))
    with pytest.raises(WorkdirError, match="label value 0 as 0, .* 1$"):
        working_directory.open_workdir(workdir, Config(), swapped)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", ""),
        ("config.json", "[]"),
        ("dataset.json", ""),
        ("dataset.json", "{}"),
        ("dataset.json", "[]"),
        ("dataset.json", '{"name": "none"}'),
    ],
)
def test_damaged_files_are_named(workdir, name, content):
    (workdir / name).write_text(content)
    with pytest.raises(WorkdirError, match=name):
        trained_model.read_workdir(workdir)


def test_metrics_are_trimmed_to_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    working_directory.trim_metrics(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines) + "\n"
    working_directory.trim_metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:3]) + "\n"


def test_second_model_of_a_process_has_the_same_variable_names():
    """Keras numbers unnamed layers over the whole process; names in checkpoints must not depend on that."""
    config = replace(Config(), model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4))
    names = []
    for _ in range(2):
        checkpoint = checkpoints.tracked_checkpoint(*trainer.build_training(config, 3, print))
        names.append({name for name, _ in checkpoint._trackable_children().items() if "/" in name})
    assert names[0] == names[1] and len(names[0]) > 100


@pytest.mark.parametrize(
    "name, directory",
    [
        ("encnet_shapes", "runs/encnet_shapes"),
        ("encnet_cityscapes:r101-d8-769x769-80k", "runs/encnet_cityscapes-r101-d8-769x769-80k"),
    ],
)
def test_default_workdir_has_no_colon(name, directory):
    assert configs.default_workdir(configs.load(name)) == Path(directory)


def state(value):
    """Return a checkpoint object whose only variable has this value everywhere."""
    return tf.train.Checkpoint(step=checkpoints.SavedStep(), **{"model/a": tf.Variable(tf.fill((50,), float(value)))})


def value_of(checkpoint):
    values = set(getattr(checkpoint, "model/a").numpy().tolist())
    assert len(values) == 1
    return values.pop()


@pytest.fixture
def saved(tmp_path):
    """Return a directory with checkpoints of steps 3 and 6, whose values are -3 and -6."""
    (tmp_path / "checkpoints").mkdir()
    for step in (3, 6):
        checkpoints.save_checkpoint(tmp_path, state(-step), step, keep=2)
    return tmp_path


def file(workdir, step, kind):
    """Return the path of the "data" or "index" file of a checkpoint."""
    return next((workdir / "checkpoints").glob(f"step-{step:08d}.{kind}*"))


def assert_restored(workdir, step, *reports):
    """Restore the newest checkpoint and compare its step, its value and the reported lines."""
    lines, checkpoint = [], state(1)
    assert checkpoints.restore_newest(workdir, checkpoint, lines.append) == step
    assert value_of(checkpoint) == -step
    assert len(lines) == len(reports), lines
    for line, expected in zip(lines, reports, strict=True):
        assert re.search(expected, line), line


def test_newest_checkpoint_is_restored(saved):
    assert_restored(saved, 6)


@pytest.mark.parametrize("kind", ["data", "index"])
def test_every_flipped_byte_is_detected_or_harmless(saved, kind):
    path = file(saved, 6, kind)
    content = path.read_bytes()
    detected = 0
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 0x10]) + content[index + 1 :])
        checkpoint = state(1)
        try:
            checkpoints.read_checkpoint(checkpoint, path.with_name("step-00000006"))
        except Exception:
            detected += 1
        else:
            assert value_of(checkpoint) == -6 and checkpoint.step.value == 6
    # The harmless bytes are padding of the index.
    assert detected == len(content) if kind == "data" else detected > 0.7 * len(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def copy_of_other_step(path):
    shutil.copyfile(path.with_name(path.name.replace("06.", "03.")), path)


@pytest.mark.parametrize("damage", [truncate, empty, copy_of_other_step, Path.unlink])
@pytest.mark.parametrize("kinds", [["data"], ["index"], ["data", "index"]], ids=" ".join)
def test_previous_checkpoint_replaces_a_damaged_one(saved, damage, kinds):
    for kind in kinds:
        damage(file(saved, 6, kind))
    removed = damage is Path.unlink and "index" in kinds
    reason = "step 3" if damage is copy_of_other_step and len(kinds) == 2 else ""
    assert_restored(saved, 3, *([] if removed else [f"checkpoint of step 6 cannot be read .*{reason}"]))
    # Otherwise the damaged checkpoint counts as the newest, and retention deletes the good one.
    assert checkpoints.checkpoint_steps(saved) == [3]


def test_no_checkpoint_is_removed_if_all_are_damaged(saved):
    for step in (3, 6):
        truncate(file(saved, step, "data"))
    before = sorted(path.name for path in (saved / "checkpoints").iterdir())
    with pytest.raises(WorkdirError, match=r"checkpoints.* can be read \(steps 3, 6\)"):
        checkpoints.restore_newest(saved, state(1), lambda line: None)
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("shapes", [{"model/a": 50, "model/b": 3}, {"model/a": 3}, {}], ids=["more", "size", "fewer"])
def test_intact_checkpoint_of_another_model_is_an_error_and_stays(saved, shapes):
    values = {name: tf.Variable(tf.zeros(size)) for name, size in shapes.items()}
    checkpoint = tf.train.Checkpoint(step=checkpoints.SavedStep(), **values)
    with pytest.raises(WorkdirError, match="step-00000006 is intact, but belongs to another model"):
        checkpoints.restore_newest(saved, checkpoint, print)
    assert checkpoints.checkpoint_steps(saved) == [3, 6]


def test_checkpoints_that_cannot_be_listed_are_an_error(saved, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(WorkdirError, match="checkpoints: Permission denied"):
        checkpoints.restore_newest(saved, state(1), print)


def test_all_state_is_stored(tmp_path):
    """Weights, velocities, averages and the variables of the step are restored under their names."""

    def build():
        # Keras restarts the numbers in names.
        keras.backend.clear_session()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
        ema = ExponentialMovingAverage(model, 0.9)
        parts = model, optimizer, ema, {"scale": tf.Variable(5.0), "count": tf.Variable(2)}
        values = [
            *(variable.value for variable in (*model.variables, *optimizer.variables)),
            *parts[2].variables.values(),
            *parts[3].values(),
        ]
        return checkpoints.tracked_checkpoint(*parts), values

    (checkpoint, values), (other, restored) = build(), build()
    for index, value in enumerate(values):
        value.assign(tf.cast(tf.fill(value.shape, 7 + index), value.dtype))
    (tmp_path / "checkpoints").mkdir()
    checkpoints.save_checkpoint(tmp_path, checkpoint, 4, keep=1)
    assert checkpoints.restore_newest(tmp_path, other, print) == 4
    # Kernel, bias, their velocities and averages; the optimizer's iterations and learning rate; the seed of dropout;
    # and the two variables of the step.
    assert len(values) >= 11
    for before, after in zip(values, restored, strict=True):
        np.testing.assert_array_equal(before, after)


def fail_syncs(monkeypatch, number, count, name=""):
    """Make the first `count` syncs of files whose names contain `name` fail, without waits; return the failed paths."""
    sync, failed = atomic_files.sync_file, []

    def fail(path):
        if name in path.name and len(failed) < count:
            failed.append(path)
            raise OSError(number, os.strerror(number))
        sync(path)

    for module in (atomic_files, checkpoints):
        monkeypatch.setattr(module, "sync_file", fail)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    return failed


@pytest.mark.parametrize("name", [".data", ".index", "checkpoints"])
def test_writing_a_checkpoint_is_retried(saved, monkeypatch, name):
    failed, lines = fail_syncs(monkeypatch, errno.EIO, 2, name), []
    checkpoints.save_checkpoint(saved, state(-9), 9, keep=1, report=lines.append)
    assert len(failed) == 2
    assert len(lines) == 2 and all("step 9" in line and "Input/output error" in line for line in lines)
    assert checkpoints.checkpoint_steps(saved) == [9]
    assert_restored(saved, 9)


@pytest.mark.parametrize("number, attempts", [(errno.EIO, retries.ATTEMPTS), (errno.ENOSPC, 1), (errno.EROFS, 1)])
def test_previous_checkpoints_survive_permanent_storage_errors(saved, monkeypatch, number, attempts):
    failed = fail_syncs(monkeypatch, number, 99)
    message = f"cannot write the checkpoint of step 9 .*{os.strerror(number)}; .*step 6 is intact"
    with pytest.raises(WorkdirError, match=message):
        checkpoints.save_checkpoint(saved, state(-9), 9, keep=1, report=lambda line: None)
    assert len(failed) == attempts
    monkeypatch.undo()
    assert {path.name.partition(".")[0] for path in (saved / "checkpoints").iterdir()} == {
        "step-00000003",
        "step-00000006",
    }
    assert_restored(saved, 6)


def test_checkpoint_that_differs_when_read_back_replaces_none(saved, monkeypatch):
    write, written = tf.train.Checkpoint.write, []

    def write_badly(checkpoint, prefix):
        write(checkpoint, prefix)
        written.append(prefix)
        truncate(next(Path(prefix).parent.glob(f"{Path(prefix).name}.data*")))

    monkeypatch.setattr(tf.train.Checkpoint, "write", write_badly)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    with pytest.raises(WorkdirError, match="cannot write the checkpoint of step 9 .*read back.*step 6 is intact"):
        checkpoints.save_checkpoint(saved, state(-9), 9, keep=1, report=lambda line: None)
    assert len(written) == retries.ATTEMPTS and checkpoints.checkpoint_steps(saved) == [3, 6]


def test_reading_a_checkpoint_is_retried(saved, monkeypatch):
    load, failed, lines = tf.train.load_checkpoint, [], []

    def fail_twice(prefix):
        if len(failed) < 2:
            failed.append(prefix)
            raise tf.errors.OpError(None, None, f"{prefix}.index; Stale file handle", tf.errors.UNKNOWN)
        return load(prefix)

    monkeypatch.setattr(tf.train, "load_checkpoint", fail_twice)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    assert checkpoints.restore_newest(saved, state(1), lines.append) == 6
    assert len(lines) == 2 and all("checkpoint of step 6" in line and "Stale" in line for line in lines)


def test_old_checkpoint_that_cannot_be_removed_is_reported(saved, monkeypatch):
    def refuse(prefix):
        raise OSError(errno.EBUSY, "Device or resource busy")

    lines = []
    with monkeypatch.context() as patch:
        remove = checkpoints.remove_checkpoint
        patch.setattr(
            checkpoints,
            "remove_checkpoint",
            lambda prefix: refuse(prefix) if prefix.name == "step-00000003" else remove(prefix),
        )
        checkpoints.save_checkpoint(saved, state(-9), 9, keep=1, report=lines.append)
    assert len(lines) == 1 and "step 3" in lines[0] and "Device or resource busy" in lines[0]
    assert checkpoints.checkpoint_steps(saved) == [3, 9]


def test_vanished_directory_is_an_error_and_not_created(saved):
    shutil.rmtree(saved)
    with pytest.raises(WorkdirError, match=f"cannot write the checkpoint of step 9 to {saved}.*: .*No such file"):
        checkpoints.save_checkpoint(saved, state(-9), 9, keep=1)
    assert not saved.exists()


def test_killed_writer_leaves_the_old_or_the_new_checkpoint(tmp_path):
    output = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_writes", tmp_path, "2"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    outcomes = json.loads(output)
    for step, contents, files, lines in outcomes:
        assert contents == [float(step or -1)] and lines == []
        # Only the files of complete checkpoints remain.
        assert all(name.startswith("step-") for name in files)
        assert len(files) == 2 * len({name.partition(".")[0] for name in files})
    steps = [step for step, *_ in outcomes]
    assert steps == sorted(steps) and set(steps) == {0, 1, 2} and len(steps) > 10


def test_files_are_synced_before_they_are_renamed_and_others_removed(saved, monkeypatch):
    """After a power cut only synced files exist: contents must be synced first, then names, before removals."""
    events = []
    sync, rename, remove = atomic_files.sync_file, os.replace, checkpoints.remove_checkpoint
    monkeypatch.setattr(checkpoints, "sync_file", lambda path: (events.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(("rename", new.name)), rename(old, new)))
    monkeypatch.setattr(
        checkpoints, "remove_checkpoint", lambda prefix: (events.append(("remove", prefix.name)), remove(prefix))
    )
    checkpoints.save_checkpoint(saved, state(-9), 9, keep=1)
    data, index = "step-00000009.data-00000-of-00001", "step-00000009.index"
    begin = events.index(("sync", f".writing-{data}"))
    assert events[begin:] == [
        ("sync", f".writing-{data}"),
        ("sync", f".writing-{index}"),
        ("rename", data),
        ("rename", index),
        ("sync", "checkpoints"),
        ("remove", "step-00000003"),
        ("remove", "step-00000006"),
    ]


@pytest.fixture
def small_files():
    """Return a function that limits the size of files, which imitates a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_line_is_appended_completely_or_not_at_all(tmp_path, small_files):
    path = tmp_path / "metrics.jsonl"
    atomic_files.append_text(path, "one\n")
    small_files(6)
    with pytest.raises(OSError, match=re.escape(str(path))):
        atomic_files.append_text(path, "second\n")
    small_files(100)
    assert path.read_text() == "one\n"
    atomic_files.append_text(path, "\u4e8c\n")
    assert path.read_text(encoding="utf-8") == "one\n\u4e8c\n"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic_files.write_text(path, "x" * 9000),
        lambda path: keras_files.save_weights(keras.Sequential([keras.Input((9,)), keras.layers.Dense(999)]), path),
    ],
    ids=["text", "weights"],
)
def test_file_that_does_not_fit_leaves_the_old_one(tmp_path, small_files, write):
    path = tmp_path / "best.weights.h5"
    path.write_text("before")
    small_files(5000)
    with pytest.raises((OSError, WorkdirError), match=re.escape(str(path))):
        write(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == "before"


def test_writing_weights_is_retried(tmp_path, monkeypatch, capsys):
    failed = fail_syncs(monkeypatch, errno.EIO, 1, "best")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    keras_files.save_weights(model, tmp_path / "best.weights.h5")
    assert len(failed) == 1 and "best.weights.h5" in capsys.readouterr().out
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    other.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_array_equal(other.weights[0], model.weights[0])
    assert [path.name for path in tmp_path.iterdir()] == ["best.weights.h5"]


def test_leftovers_of_a_killed_run_are_removed(workdir):
    (workdir / ".writing-7-best.weights.h5").touch()
    (workdir / "checkpoints" / ".writing-step-00000002_temp").mkdir()
    (workdir / "checkpoints" / "step-00000002.data-00000-of-00001").touch()
    (workdir / "checkpoints" / "notes.txt").touch()
    working_directory.open_workdir(workdir, Config(), CAMVID).close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["notes.txt", "step-00000001.index"]
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", "checkpoints", "config.json", "dataset.json"]


SKIPPED = [{"step": 3, "losses": {"loss": "nan", "main": "1.5"}, "files": ["a", "b"]}]


def test_list_of_skipped_batches_is_stored(tmp_path):
    assert working_directory.read_skipped_steps(tmp_path) == []
    working_directory.write_skipped_steps(tmp_path, SKIPPED)
    assert working_directory.read_skipped_steps(tmp_path) == SKIPPED


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}x", "3", '["a"]', '[{"step": 3}]', '[{"step": "3", "losses": {}, "files": []}]', '{"step": 3}'],
)
def test_damaged_list_of_skipped_batches_is_an_error(tmp_path, content):
    (tmp_path / "skipped.json").write_text(content)
    with pytest.raises(WorkdirError, match="skipped.json"):
        working_directory.read_skipped_steps(tmp_path)
