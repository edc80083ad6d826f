"""Batches without the examples that cannot be read: which stand in for them, and the same ones after a restart."""

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
from kseg.config.sections import Augment
from kseg.errors import DataError, WorkdirError
from kseg.input_pipeline import batching
from kseg.input_pipeline.batch_reader import BatchReader
from kseg.system import retries
from kseg.training import checkpoints, trainer
from tests.helpers.running import TINY
from tests.helpers.small_sets import config, example, folder
from tests.helpers.splits import step_indices, train_batches, train_split

STEPS, BATCH, PICTURES = 12, 3, 20
SKIP = "skip"


@pytest.fixture
def settings(tmp_path):
    """A config that reads all of its examples, each of which tells its place in the split."""
    random = np.random.default_rng(3)
    labels = [random.integers(0, 3, (12, 12)) for _ in range(PICTURES)]
    return with_unreadable(config(folder(tmp_path / "data", {"train": labels, "val": labels[:1]}), (8, 8), BATCH,
                                  STEPS), SKIP)


def with_unreadable(settings, unreadable):
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, unreadable=unreadable))


def spoil(settings, *places):
    """Cut pictures off in their middle and return their paths."""
    paths = [Path(settings.data.directory, "train", "images", f"e{place:02d}.png") for place in places]
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    return [str(path) for path in paths]


def reader(settings, workdir):
    lines = []
    made = BatchReader(settings, train_split(settings), workdir, tf.distribute.get_strategy(), lines.append)
    return made, lines


def digest(batch):
    return hashlib.sha256(b"".join(batch[key].numpy().tobytes() for key in ("image", "label", "index"))).hexdigest()


def indices(batch):
    return batch["index"].numpy().tolist()


def late_example(settings):
    """Return (step, place) of an example whose first turn comes after a few steps."""
    order = [step_indices(settings, step) for step in range(STEPS)]
    return 4, next(place for place in order[4] if not any(place in batch for batch in order[:4]))


def test_a_cut_off_picture_is_left_out_named_and_counted(settings, tmp_path):
    step, place = late_example(settings)
    before = [step_indices(settings, each) for each in range(STEPS)]
    [path] = spoil(settings, place)
    made, lines = reader(settings, tmp_path)
    batches = [indices(made.read(each)) for each in range(STEPS)]
    # The next example stands in wherever it would have come.
    assert batches == [[(place + 1) % PICTURES if each == place else each for each in batch] for batch in before]
    assert before != batches and all(indices == before[at] for at, indices in enumerate(batches[:step]))
    [line] = lines
    assert line.startswith(f"left out from step {step + 1} on: {path}: not a readable JPEG, PNG or BMP")
    assert line.endswith("1 of 20 examples so far")
    assert made.counts() == {"left_out": 1}
    [noted] = json.loads((tmp_path / "unreadable.json").read_text())
    assert (noted["index"], noted["name"], noted["step"]) == (place, path, step)
    assert made.files(step) == [made.names[each] for each in batches[step]]


def test_by_default_it_stops_and_names_the_file(settings, tmp_path):
    settings = with_unreadable(settings, "stop")
    step, place = late_example(settings)
    [path] = spoil(settings, place)
    made, lines = reader(settings, tmp_path)
    for each in range(step):
        made.read(each)
    with pytest.raises(DataError, match=f"{path}: not a readable JPEG, PNG or BMP"):
        made.read(step)
    assert lines == [] and made.counts() == {} and not (tmp_path / "unreadable.json").exists()


def test_bad_neighbours_are_both_stood_in_for(settings, tmp_path):
    # The second is where the order ends, so that the first example of all stands in.
    spoil(settings, PICTURES - 2, PICTURES - 1)
    made, lines = reader(settings, tmp_path)
    for step in range(STEPS):
        expected = [0 if each >= PICTURES - 2 else each for each in step_indices(settings, step)]
        assert indices(made.read(step)) == expected
    assert len(lines) == 2 and lines[1].endswith("2 of 20 examples so far")


@pytest.mark.parametrize("places", [(2, 3, 4), tuple(range(PICTURES))])
def test_too_many_are_an_error(settings, tmp_path, places):
    spoil(settings, *places)
    made, _ = reader(settings, tmp_path)
    with pytest.raises(DataError, match="3 of 20 examples of train cannot be read, more than 10%; the last"):
        for step in range(STEPS):
            made.read(step)
    assert made.counts() == {"left_out": 2}


def test_a_restart_reads_the_same_batches_though_a_fault_lies_outside_of_most_crops(tmp_path):
    """Examples whose label fails in some crops only stand in the batches before they are found."""
    random = np.random.default_rng(5)
    source = folder(tmp_path / "data", {"train": []})
    for place in range(PICTURES):
        label = random.integers(0, 3, (30, 30))
        if place in (7, 12):
            label[:10] = 99
        example(tmp_path / "data", "train", f"e{place:02d}", label, random.integers(0, 256, (30, 30, 3), np.uint8))
    settings = dataclasses.replace(config(source, batch=BATCH, steps=60),
                                   augment=Augment(crop=(8, 8), scale_range=(1.0, 1.0)))
    settings = with_unreadable(settings, SKIP)
    made, lines = reader(settings, tmp_path)
    whole = [made.read(step) for step in range(60)]
    found = {each.index: each.step for each in made.left_out}
    assert set(found) == {7, 12} and len(lines) == 2
    assert any(place in indices(whole[step]) for place, first in found.items() for step in range(first))
    assert not any(place in indices(whole[step]) for place, first in found.items() for step in range(first, 60))
    for start in (0, max(found.values()) - 1):
        again, lines = reader(settings, tmp_path)
        assert [digest(again.read(step)) for step in range(start, 60)] == [digest(batch) for batch in whole[start:]]
        assert len(lines) == 1 and lines[0].startswith("left out as unreadable: 2 of 20 examples in")


def test_two_workers_that_know_the_list_make_up_the_batches_of_one(settings):
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, global_batch=4))
    whole = list(train_batches(settings, 0, left_out={4, 5, 19}))
    shares = [list(train_batches(settings, 0, tf.distribute.InputContext(2, which, 2), {4, 5, 19}))
              for which in range(2)]
    assert len(whole) == STEPS and not {4, 5, 19} & {place for batch in whole for place in indices(batch)}
    for batch, *parts in zip(whole, *shares, strict=True):
        for key in batch:
            assert np.array_equal(batch[key], np.concatenate([part[key] for part in parts]))


def test_a_list_of_other_data_is_refused(settings, tmp_path):
    _, place = late_example(settings)
    spoil(settings, place)
    made, _ = reader(settings, tmp_path)
    for step in range(STEPS):
        made.read(step)
    (tmp_path / "data" / "train" / "images" / "e00.png").unlink()
    (tmp_path / "data" / "train" / "labels" / "e00.png").unlink()
    for content in (None, "[{]", "[{\"index\": 99}]"):
        if content:
            (tmp_path / "unreadable.json").write_text(content)
        with pytest.raises(WorkdirError, match="unreadable.json .*remove it to try all examples again"):
            reader(settings, tmp_path)
    # Nothing is left out then, and nothing read.
    assert reader(with_unreadable(settings, "stop"), tmp_path)[0].left_out == []


def test_a_file_that_is_whole_when_it_is_looked_at_again_stops_training(settings, tmp_path, monkeypatch):
    step, place = late_example(settings)
    spoil(settings, place)
    monkeypatch.setattr(batching, "decode_example", lambda *arguments: None)
    made, _ = reader(settings, tmp_path)
    with pytest.raises(DataError, match="reading train failed"):
        for each in range(step + 1):
            made.read(each)


class Killed(BaseException):
    """Ends a run as a kill does: nothing of it is caught."""


def test_a_run_that_is_killed_after_a_bad_file_ends_with_the_same_weights(settings, tmp_path):
    overrides = [*TINY, "augment.crop=16,16", "data.name=folder", f"data.directory={settings.data.directory}",
                 "data.unreadable=skip", "train.global_batch=3"]
    small = configs.load("encnet_shapes", overrides)
    _, place = late_example(small)
    [path] = spoil(small, place)
    weights = {}
    for name in ("whole", "killed"):
        lines = []

        def report(line):
            lines.append(line)
            # Step 5 met the bad file; the newest checkpoint is of step 3.
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
            assert any(line.startswith("continuing at step 3") for line in lines)
        path_of_list = tmp_path / name / "unreadable.json"
        assert lines[-1].endswith(f"left out 1 of 20 training examples as unreadable: {path_of_list}")
        assert path in path_of_list.read_text()
        counts = {line["step"]: line["left_out"] for line in
                  map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines()) if "loss" in line}
        assert counts[12] == 1 and (name == "killed" or counts[4] == 0)
        checkpoint = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "step-00000012"))
        weights[name] = {key: checkpoint.get_tensor(key) for key in checkpoint.get_variable_to_shape_map()
                         if key.startswith("model")}
    assert weights["whole"] and weights["whole"].keys() == weights["killed"].keys()
    for key, value in weights["whole"].items():
        np.testing.assert_array_equal(weights["killed"][key], value, err_msg=key)


@pytest.mark.parametrize("faults", [2, retries.ATTEMPTS])
def test_storage_that_fails_for_a_moment_is_asked_again(settings, tmp_path, monkeypatch, faults):
    expected = [step_indices(settings, step) for step in range(3)]
    plain, left = batching.train_batches, [errno.EIO] * faults

    def failing(*arguments, **options):
        def check(index):
            if index[0] == expected[1][0] and left:
                raise OSError(left[0], os.strerror(left.pop()))
            return index

        return plain(*arguments, **options).map(
            lambda batch: batch | {"index": tf.numpy_function(check, [batch["index"]], tf.int64)})

    monkeypatch.setattr(batching, "train_batches", failing)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0)
    made, lines = reader(settings, tmp_path)
    assert indices(made.read(0)) == expected[0]
    if faults == retries.ATTEMPTS:
        with pytest.raises(DataError, match="Input/output error"):
            made.read(1)
    else:
        assert [indices(made.read(step)) for step in (1, 2)] == expected[1:]
    assert [line.partition(" failed")[0] for line in lines] == ["reading the batch of step 2"] * min(
        faults, retries.ATTEMPTS - 1)
    assert made.left_out == []
