"""Batch i depends only on the seed and on i, not on restarts, threads or the number of workers."""

import dataclasses
import hashlib

import numpy as np
import pytest
import tensorflow as tf

from kseg import errors
from kseg.config.sections import Augment
from kseg.datasets import layouts
from tests.helpers.small_sets import config, example, folder
from tests.helpers.splits import step_indices, train_batches

STEPS, BATCH, IMAGES = 8, 4, 7


@pytest.fixture
def settings(tmp_path):
    random = np.random.default_rng(8)
    source = folder(tmp_path, {"train": []})
    for index in range(IMAGES):
        label = random.integers(0, 3, (20 + index, 31)).astype(np.uint8)
        example(tmp_path, "train", f"e{index:02d}", label, random.integers(0, 256, (*label.shape, 3)).astype(np.uint8))
    return dataclasses.replace(config(source, steps=STEPS, batch=BATCH), augment=Augment(crop=(16, 24)))


@pytest.fixture
def cropped(settings):
    """Return a config whose only augmentation is a random crop, for tests that trace it many times."""
    augment = Augment(crop=(16, 24), scale_range=(1.0, 1.0), cat_max_ratio=1.0, flip=0.0, photometric=False)
    return dataclasses.replace(settings, augment=augment)


def digests(batches):
    """Return the digest of each example of each batch."""
    return [
        [
            hashlib.sha256(
                b"".join(batch[key][row].numpy().tobytes() for key in ("image", "label", "index"))
            ).hexdigest()
            for row in range(len(batch["index"]))
        ]
        for batch in batches
    ]


def with_options(batches, threads, autotune, budget=0):
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = threads
    options.autotune.enabled = autotune
    if budget:
        options.autotune.ram_budget = budget
    return batches.with_options(options)


def test_batches_do_not_depend_on_restarts_threads_and_tuning(settings):
    whole = digests(with_options(train_batches(settings), 1, False))
    assert len(whole) == STEPS and len({digest for batch in whole for digest in batch}) == STEPS * BATCH
    for start, threads, autotune, budget in ((0, 4, True, 1 << 20), (5, 8, False, 0)):
        batches = with_options(train_batches(settings, start), threads, autotune, budget)
        assert digests(batches) == whole[start:]


def test_another_seed_gives_other_batches(cropped):
    other = dataclasses.replace(cropped, train=dataclasses.replace(cropped.train, seed=1))
    first, second = (digests(train_batches(case).take(2)) for case in (cropped, other))
    assert not {digest for batch in first for digest in batch} & {digest for batch in second for digest in batch}


def test_two_replicas_receive_the_parts_of_each_batch(cropped):
    whole = digests(train_batches(cropped, 2))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    parts = []
    for batch in strategy.experimental_distribute_dataset(train_batches(cropped, 2)):
        local = {key: strategy.experimental_local_results(value) for key, value in batch.items()}
        replicas = [{key: values[replica] for key, values in local.items()} for replica in range(2)]
        parts.append([digest for replica in digests(replicas) for digest in replica])
    assert parts == whole


def record_reads(monkeypatch):
    """Return a list that receives the index of every example that is read."""
    indices = []
    original = layouts.file_examples

    def recording(pairs, notes=()):
        examples = original(pairs, notes)

        def read(index):
            tf.numpy_function(lambda value: indices.append(int(value)), [index], [], stateful=True)
            return examples.read(index)

        return dataclasses.replace(examples, read=read)

    monkeypatch.setattr(layouts, "file_examples", recording)
    return indices


def worker(workers, which):
    return tf.distribute.InputContext(workers, which, workers)


def test_each_worker_reads_only_its_part_of_each_batch(monkeypatch, cropped):
    whole = digests(train_batches(cropped))
    read = record_reads(monkeypatch)
    for start, workers in ((0, 1), (3, 2)):
        parts = []
        for which in range(workers):
            read.clear()
            parts.append(digests(train_batches(cropped, start, worker(workers, which))))
            size = BATCH // workers
            expected = [
                index
                for step in range(start, STEPS)
                for index in step_indices(cropped, step)[which * size : (which + 1) * size]
            ]
            assert sorted(read) == sorted(expected)
        assert [sum(batch, []) for batch in zip(*parts, strict=True)] == whole[start:]


def test_batch_not_divisible_by_the_workers_is_refused(settings):
    with pytest.raises(errors.ConfigError, match="train.global_batch=4 .* 3 workers"):
        train_batches(settings, 0, worker(3, 0))
