"""Kill, signal or deprive of storage runs of the training command at chosen moments.

    python -m tests.helpers.faulty_runs DATA DIRECTORY

An undisturbed run is written to DIRECTORY/whole. A second run meets the faults of FAULTS one after the other, is
restarted after each, and is written to DIRECTORY/faulty. Each start is a process forked from this one, which has
imported TensorFlow. A network of three layers on random images replaces the real model, whose compilation would take
most of the time. The output is [[name of the fault, status, output of the process], ...] as JSON.
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

import tensorflow as tf

from kseg import cli, models, train
from kseg.input_pipeline import batching
from kseg.system import retries
from kseg.training import checkpoints, losses
from tests.helpers.small_training import small_network

ARGUMENTS = [
    "--config",
    "encnet_shapes",
    "--set",
    "augment.crop=32,32",
    "loss.se=0",
    "train.global_batch=2",
    "train.steps=8",
    "train.warmup_steps=0",
    "train.log_every=1",
    "train.validate_every=8",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=1",
    "train.deterministic=true",
]


def random_batches(split, config, start=0, *more, **others):
    def batch(step):
        seed = tf.stack([tf.constant(config.train.seed, tf.int64), step])
        labels = tf.random.stateless_uniform((2, 32, 32), seed, 0, 3, tf.int32)
        return {
            "image": tf.random.stateless_normal((2, 32, 32, 3), seed),
            "label": tf.cast(labels, tf.uint8),
            "index": tf.stack([step, step]),
        }

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
    """Call `act` once, before the first call of a function whose arguments satisfy `chosen`."""
    function, pending = getattr(module, name), [act]

    def call(*arguments, **keywords):
        if pending and chosen(*arguments):
            pending.pop()()
        return function(*arguments, **keywords)

    setattr(module, name, call)


def before_line(prefix, act):
    """Call `act` once, before the first line with a prefix is printed."""
    before(sys.stdout, "write", act, lambda line: line.startswith(prefix))


def named(ending):
    """Return a condition for the call of os.replace that gives a file a name with this ending."""
    return lambda old, new: str(new).endswith(ending)


def fail_storage(times):
    """Make the first `times` syncs of files of checkpoints fail, without waits between attempts."""
    remaining = list(range(times))

    def fail(path):
        if remaining:
            remaining.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    checkpoints.sync_file, retries.time.sleep = fail, lambda seconds: None


def write_half_a_line(directory):
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    kill()


# The order is that in which the run meets the faults. It saves steps 2, 4, 6 and 8, and validates the last one.
FAULTS = {
    "SIGTERM during compilation": lambda directory: before(losses, "loss_terms", terminate),
    "killed while writing the first checkpoint": lambda directory: before(checkpoints, "sync_file", kill),
    "SIGTERM while writing a checkpoint": lambda directory: before(checkpoints, "sync_file", terminate),
    "killed after renaming half of a checkpoint": lambda directory: before(
        os, "replace", kill, named("step-00000004.index")
    ),
    "permanent storage failure": lambda directory: fail_storage(99),
    "killed before removing the old checkpoint": lambda directory: before(
        checkpoints, "remove_checkpoint", kill, lambda prefix: prefix.name == "step-00000002"
    ),
    # The wait before step 6 is reported keeps a fast machine from saving it before the kill.
    "killed at a random time": lambda directory: (
        before_line("step 6/", lambda: threading.Event().wait(60)),
        before_line("step 5/", threading.Timer(random.uniform(0, 0.1), kill).start),
    ),
    "two storage failures, and killed in a line of the log": lambda directory: (
        fail_storage(2),
        before_line("step 8/", lambda: write_half_a_line(directory)),
    ),
    "killed between best.weights.h5 and best.json": lambda directory: before(os, "replace", kill, named("best.json")),
    "no fault": lambda directory: None,
}


def run_with_fault(directory, fault):
    """Run the command in a forked process with a fault; return its exit status and its output."""
    log = directory.with_suffix(".log")
    if not (process := os.fork()):
        # Line buffering preserves the output of a killed process.
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
    models.build, batching.train_batches, batching.eval_examples = small_network, random_batches, random_examples
    outcomes = [("undisturbed", *run_with_fault(Path(directory) / "whole", lambda directory: None))]
    for name, fault in FAULTS.items():
        outcomes.append((name, *run_with_fault(Path(directory) / "faulty", fault)))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
