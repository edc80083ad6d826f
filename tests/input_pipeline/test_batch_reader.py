"""Unreadable examples are skipped and replaced, in the same way after a restart."""

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg.errors import DataError, WorkdirError
from kseg.input_pipeline import batching
from kseg.input_pipeline.batch_reader import BatchReader
from kseg.system import retries
from kseg.training import checkpoints, trainer
from tests.helpers.exhaustive import all_of
from tests.helpers.running import TINY
from tests.helpers.small_sets import config, example, folder
from tests.helpers.small_training import SMALL, build_small_networks
from tests.helpers.splits import step_indices, train_batches, train_split

STEPS, BATCH, IMAGES = 12, 3, 20
SKIP = "skip"


@pytest.fixture
def settings(tmp_path):
    """Return a config whose run reads all examples; the pixels of an example are its index."""
    random = np.random.default_rng(3)
    labels = [random.integers(0, 3, (12, 12)) for _ in range(IMAGES)]
    return with_unreadable(
        config(folder(tmp_path / "data", {"train": labels, "val": labels[:1]}), (8, 8), BATCH, STEPS), SKIP
    )


def with_unreadable(settings, unreadable):
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, unreadable=unreadable))


def spoil(settings, *indices):
    """Truncate images, and return their paths."""
    paths = [Path(settings.data.directory, "train", "images", f"e{index:02d}.png") for index in indices]
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    return [str(path) for path in paths]


def new_reader(settings, workdir):
    """Return a reader and the list of its reported lines."""
    lines = []
    reader = BatchReader(settings, train_split(settings), workdir, tf.distribute.get_strategy(), lines.append)
    return reader, lines


def digest(batch):
    return hashlib.sha256(b"".join(batch[key].numpy().tobytes() for key in ("image", "label", "index"))).hexdigest()


def indices(batch):
    return batch["index"].numpy().tolist()


def late_example(settings):
    """Return (step, index) of an example that occurs in the batch of step 4 for the first time."""
    order = [step_indices(settings, step) for step in range(STEPS)]
    return 4, next(index for index in order[4] if not any(index in batch for batch in order[:4]))


def test_truncated_image_is_skipped_named_and_counted(settings, tmp_path):
    step, bad = late_example(settings)
    planned = [step_indices(settings, each) for each in range(STEPS)]
    [path] = spoil(settings, bad)
    reader, lines = new_reader(settings, tmp_path)
    batches = [indices(reader.read(each)) for each in range(STEPS)]
    # The next example replaces it in every batch.
    assert batches == [[(bad + 1) % IMAGES if index == bad else index for index in batch] for batch in planned]
    assert planned != batches and batches[:step] == planned[:step]
    [line] = lines
    assert f"from step {step + 1} on: {path}: not a readable" in line and "1 of 20 examples" in line
    assert reader.log_values() == {"left_out": 1}
    [entry] = json.loads((tmp_path / "unreadable.json").read_text())
    assert (entry["index"], entry["name"], entry["step"]) == (bad, path, step)
    assert reader.example_names(step) == [reader.names[each] for each in batches[step]]


def test_unreadable_file_stops_training_by_default(settings, tmp_path):
    settings = with_unreadable(settings, "stop")
    step, bad = late_example(settings)
    [path] = spoil(settings, bad)
    reader, lines = new_reader(settings, tmp_path)
    for each in range(step):
        reader.read(each)
    with pytest.raises(DataError, match=f"{path}: not a readable JPEG, PNG, BMP"):
        reader.read(step)
    assert lines == [] and reader.log_values() == {} and not (tmp_path / "unreadable.json").exists()


def test_neighboring_bad_examples_are_both_replaced(settings, tmp_path):
    # The second is the last example, so the first one of the split replaces both.
    spoil(settings, IMAGES - 2, IMAGES - 1)
    reader, lines = new_reader(settings, tmp_path)
    for step in range(STEPS):
        expected = [0 if index >= IMAGES - 2 else index for index in step_indices(settings, step)]
        assert indices(reader.read(step)) == expected
    assert len(lines) == 2 and "2 of 20 examples" in lines[1]


@pytest.mark.parametrize("bad", all_of([(2, 3, 4)], (tuple(range(IMAGES)),)))
def test_too_many_unreadable_examples_are_an_error(settings, tmp_path, bad):
    spoil(settings, *bad)
    reader, _ = new_reader(settings, tmp_path)
    with pytest.raises(DataError, match="3 of 20 examples of train .* 10%"):
        for step in range(STEPS):
            reader.read(step)
    assert reader.log_values() == {"left_out": 2}


def test_restart_reads_the_same_batches_if_most_crops_avoid_the_fault(tmp_path):
    """A label that fails in few crops occurs in batches before its fault is found."""
    random = np.random.default_rng(5)
    source = folder(tmp_path / "data", {"train": []})
    for index in range(IMAGES):
        label = random.integers(0, 3, (30, 30))
        if index in (7, 12):
            label[:10] = 99
        example(tmp_path / "data", "train", f"e{index:02d}", label, random.integers(0, 256, (30, 30, 3), np.uint8))
    settings = config(source, batch=BATCH, steps=60)
    settings = with_unreadable(settings, SKIP)
    reader, lines = new_reader(settings, tmp_path)
    whole = [reader.read(step) for step in range(60)]
    skipped = {example.index: example.step for example in reader.skipped}
    assert set(skipped) == {7, 12} and len(lines) == 2
    assert any(bad in indices(whole[step]) for bad, first in skipped.items() for step in range(first))
    assert not any(bad in indices(whole[step]) for bad, first in skipped.items() for step in range(first, 60))
    for start in (0, max(skipped.values()) - 1):
        resumed, lines = new_reader(settings, tmp_path)
        assert [digest(resumed.read(step)) for step in range(start, 60)] == [digest(batch) for batch in whole[start:]]
        assert len(lines) == 1 and "2 of 20 examples" in lines[0]


def test_two_workers_with_the_list_read_the_batches_of_one(settings):
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, global_batch=4))
    whole = list(train_batches(settings, 0, skipped={4, 5, 19}))
    shares = [
        list(train_batches(settings, 0, tf.distribute.InputContext(2, which, 2), {4, 5, 19})) for which in range(2)
    ]
    assert len(whole) == STEPS and not {4, 5, 19} & {index for batch in whole for index in indices(batch)}
    for batch, *parts in zip(whole, *shares, strict=True):
        for key in batch:
            assert np.array_equal(batch[key], np.concatenate([part[key] for part in parts]))


def test_list_of_other_data_is_refused(settings, tmp_path):
    _, bad = late_example(settings)
    spoil(settings, bad)
    reader, _ = new_reader(settings, tmp_path)
    for step in range(STEPS):
        reader.read(step)
    (tmp_path / "data" / "train" / "images" / "e00.png").unlink()
    (tmp_path / "data" / "train" / "labels" / "e00.png").unlink()
    for content in (None, "[{]", '[{"index": 99}]'):
        if content:
            (tmp_path / "unreadable.json").write_text(content)
        with pytest.raises(WorkdirError, match="unreadable.json .*delete the file"):
            new_reader(settings, tmp_path)
    # With "stop" the list is not read.
    assert new_reader(with_unreadable(settings, "stop"), tmp_path)[0].skipped == []


def test_failure_without_a_faulty_file_stops_training(settings, tmp_path, monkeypatch):
    step, bad = late_example(settings)
    spoil(settings, bad)
    monkeypatch.setattr(batching, "decode_example", lambda *arguments: None)
    reader, _ = new_reader(settings, tmp_path)
    with pytest.raises(DataError, match="reading train failed"):
        for each in range(step + 1):
            reader.read(each)


class Killed(BaseException):
    """Ends a run like a kill, because no handler catches it."""


def test_run_killed_after_a_bad_file_ends_with_the_same_weights(settings, tmp_path, monkeypatch):
    build_small_networks(monkeypatch)
    overrides = [
        *TINY,
        *SMALL,
        "augment.crop=16,16",
        "data.name=folder",
        f"data.directory={settings.data.directory}",
        "data.unreadable=skip",
        "train.global_batch=3",
    ]
    small = configs.load("encnet_shapes", overrides)
    _, bad = late_example(small)
    [path] = spoil(small, bad)
    weights = {}
    for name in ("whole", "killed"):
        lines = []

        def report(line):
            lines.append(line)
            # The bad file is in step 5; the newest checkpoint is of step 3.
            if name == "killed" and line.startswith("step 5/") and len(lines) < 12:
                raise Killed

        strategy = trainer.prepare_strategy(small.train)
        try:
            trainer.train(small, tmp_path / name, strategy, report)
        except Killed:
            assert checkpoints.checkpoint_steps(tmp_path / name) == [3]
            lines.clear()
            lines.extend([""] * 12)
            trainer.train(small, tmp_path / name, strategy, report)
            assert any("step 3 of 12" in line for line in lines)
        path_of_list = tmp_path / name / "unreadable.json"
        assert "1 of 20 training examples" in lines[-1] and str(path_of_list) in lines[-1]
        assert path in path_of_list.read_text()
        counts = {
            line["step"]: line["left_out"]
            for line in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if "loss" in line
        }
        assert counts[12] == 1 and (name == "killed" or counts[4] == 0)
        checkpoint = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "step-00000012"))
        weights[name] = {
            key: checkpoint.get_tensor(key) for key in checkpoint.get_variable_to_shape_map() if key.startswith("model")
        }
    assert weights["whole"] and weights["whole"].keys() == weights["killed"].keys()
    for key, value in weights["whole"].items():
        np.testing.assert_array_equal(weights["killed"][key], value, err_msg=key)


@pytest.mark.parametrize("faults", [2, retries.ATTEMPTS])
def test_transient_storage_failures_are_retried(settings, tmp_path, monkeypatch, faults):
    expected = [step_indices(settings, step) for step in range(3)]
    plain, left = batching.train_batches, [errno.EIO] * faults

    def failing(*arguments, **options):
        def check(index):
            if index[0] == expected[1][0] and left:
                raise OSError(left[0], os.strerror(left.pop()))
            return index

        return plain(*arguments, **options).map(
            lambda batch: batch | {"index": tf.numpy_function(check, [batch["index"]], tf.int64)}
        )

    monkeypatch.setattr(batching, "train_batches", failing)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0)
    reader, lines = new_reader(settings, tmp_path)
    assert indices(reader.read(0)) == expected[0]
    if faults == retries.ATTEMPTS:
        with pytest.raises(DataError, match="Input/output error"):
            reader.read(1)
    else:
        assert [indices(reader.read(step)) for step in (1, 2)] == expected[1:]
    assert [line.partition(" failed")[0] for line in lines] == ["reading the batch of step 2"] * min(
        faults, retries.ATTEMPTS - 1
    )
    assert reader.skipped == []
