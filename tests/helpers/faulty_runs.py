"""Runs of the training command that are killed, signalled or left without storage at chosen moments.

    python -m tests.helpers.faulty_runs DATA DIRECTORY

A run that nothing disturbs is written to DIRECTORY/whole, and one that meets each of FAULTS in turn, started again
after it, to DIRECTORY/faulty. Each start is a process of its own, forked where TensorFlow is imported. A network of
three layers on random pictures stands in for the real ones, whose compilation would take most of the time. Printed is
[[name of the fault, status, output], ...] as JSON.
"""

import contextlib
import errno
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import keras
import tensorflow as tf

from kseg import cli, models, train
from kseg.input_pipeline import batching
from kseg.system import retries
from kseg.training import checkpoints, losses, recorder

ARGUMENTS = ["--config", "encnet_shapes", "--set", "augment.crop=32,32", "loss.se=0", "train.global_batch=2",
             "train.steps=8", "train.warmup_steps=0", "train.log_every=1", "train.validate_every=8",
             "train.checkpoint_every=2", "train.keep_checkpoints=1", "train.deterministic=true"]


def network(config, classes, **settings):
    images = keras.Input((32, 32, 3))
    outputs = keras.layers.Conv2D(8, 3, strides=4, padding="same", name="first")(images)
    outputs = keras.layers.BatchNormalization(name="norm")(outputs)
    outputs = keras.layers.Dropout(0.2, seed=1, name="dropout")(outputs)
    return keras.Model(images, {"main": keras.layers.Conv2D(classes, 1, name="last")(outputs)})


def random_batches(split, config, start=0, *more, **others):
    def batch(step):
        seed = tf.stack([tf.constant(config.train.seed, tf.int64), step])
        labels = tf.random.stateless_uniform((2, 32, 32), seed, 0, 3, tf.int32)
        return {"image": tf.random.stateless_normal((2, 32, 32, 3), seed), "label": tf.cast(labels, tf.uint8),
                "index": tf.stack([step, step])}

    return tf.data.Dataset.range(start, config.train.steps).map(batch)


def random_examples(split, indices=None):
    def example(index):
        seed = tf.stack([tf.constant(9, tf.int64), index])
        image = tf.random.stateless_uniform((32, 32, 3), seed, 0, 256, tf.int32)
        return {"image": tf.cast(image, tf.uint8), "label": tf.cast(image[..., 0] % 3, tf.uint8), "index": index}

    return tf.data.Dataset.from_tensor_slices(indices).map(example)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def before(module, name, act, chosen=lambda *arguments: True):
    """Act once before the first chosen call of a function."""
    function, left = getattr(module, name), [act]

    def call(*arguments, **keywords):
        if left and chosen(*arguments):
            left.pop()()
        return function(*arguments, **keywords)

    setattr(module, name, call)


def when_said(text, act):
    """Act before a line that begins with that text is printed."""
    before(sys.stdout, "write", act, lambda said: said.startswith(text))


def named(ending):
    """Choose the call of os.replace that gives a file this name."""
    return lambda old, new: str(new).endswith(ending)


def failing_storage(times):
    """Let the storage fail so often when a checkpoint is to be kept, without waits."""
    left = list(range(times))

    def fail(path):
        if left:
            left.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    checkpoints.sync_file, retries.time.sleep = fail, lambda seconds: None


def half_a_line(directory):
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    kill()


# In the order in which one run meets them. It stores the steps 2, 4, 6 and 8, and validates the last one.
FAULTS = {
    "told to stop while compiling": lambda directory: before(losses, "loss_terms", terminate),
    "killed while the first checkpoint is written": lambda directory: before(checkpoints, "sync_file", kill),
    "told to stop while a checkpoint is written": lambda directory: before(checkpoints, "sync_file", terminate),
    "killed when half of a checkpoint has its name": lambda directory: before(
        os, "replace", kill, named("step-00000004.index")),
    "left without storage": lambda directory: failing_storage(99),
    "killed before the old checkpoint is removed": lambda directory: before(
        checkpoints, "remove_checkpoint", kill, lambda prefix: prefix.name == "step-00000002"),
    # Before it has stored step 6, however fast the machine is.
    "killed at any time": lambda directory: (
        when_said("step 6/", lambda: threading.Event().wait(60)),
        when_said("step 5/", threading.Timer(random.uniform(0, 0.1), kill).start)),
    "left without storage twice, and killed in a line of its log": lambda directory: (
        failing_storage(2), when_said("step 8/", lambda: half_a_line(directory))),
    "killed between the best weights and their record": lambda directory: before(
        os, "replace", kill, named("best.json")),
    "no fault": lambda directory: None}


def started(directory, fault):
    """Run the command in a process of its own, with that fault; return its status and what it said."""
    log = directory.with_suffix(".log")
    if not (process := os.fork()):
        # What a signal ends at once must have been written.
        with log.open("w", buffering=1) as sys.stdout:
            os.dup2(sys.stdout.fileno(), 2)
            fault(directory)
            with contextlib.suppress(SystemExit):
                cli.run(lambda: os._exit(finish(directory)))
        os._exit(2)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


def finish(directory):
    status = train.main([*ARGUMENTS, "--workdir", str(directory)])
    sys.stdout.flush()
    return status


def main(data_directory, directory):
    ARGUMENTS.append(f"data.directory={data_directory}")
    models.build, batching.train_batches, batching.eval_examples = network, random_batches, random_examples
    recorder.Recorder.fixed_images = lambda run: tf.zeros((1, 8, 8, 3), tf.uint8)
    found = [("undisturbed", *started(Path(directory) / "whole", lambda directory: None))]
    for name, fault in FAULTS.items():
        found.append((name, *started(Path(directory) / "faulty", fault)))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
