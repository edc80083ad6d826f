"""A process that writes checkpoints and is killed before one of its calls to the operating system.

    python -m tests.helpers.killed_writes DIRECTORY STEPS

For n = 1, 2, ... a process of its own writes the checkpoints 1 to STEPS into DIRECTORY/n, keeping one, and is killed
before the n-th of its calls that change files, until one is not killed any more. Printed is for each n [the step that
a process afterwards continues at, its values, the files it then finds, what it reports], as JSON.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import tensorflow as tf

from kseg.config import Config
from kseg.datasets import registry
from kseg.training import checkpoints, working_directory


def state(value):
    return tf.train.Checkpoint(step=checkpoints.Step(), **{"model/a": tf.Variable(tf.fill((50,), float(value)))})


def die_before(number):
    """Replace what the writing calls of the operating system; the number-th one kills the process."""
    left = number

    def counting(function):
        def count(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)
        return count

    for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (shutil, "rmtree"),
                         (tf.train.Checkpoint, "write")):
        setattr(module, name, counting(getattr(module, name)))


def in_a_process(action):
    """Run in a fork, since TensorFlow's import is the larger part; return its exit status."""
    if not (process := os.fork()):
        action()
        os._exit(0)
    return os.waitpid(process, 0)[1]


def write(directory, steps, number):
    die_before(number)
    for step in range(1, steps + 1):
        checkpoints.save_checkpoint(directory, state(step), step, keep=1)


def look(directory):
    lines, checkpoint = [], state(-1)
    with working_directory.open_run(directory, Config(), registry.DATASETS["camvid"]):
        step = checkpoints.restore_newest(directory, checkpoint, lines.append)
        values = set(getattr(checkpoint, "model/a").numpy().tolist())
        return [step, sorted(values), sorted(os.listdir(directory / "checkpoints")), lines]


def main(directory, steps):
    places, status = [], -1
    while status:
        places.append(Path(directory) / str(len(places) + 1))
        (places[-1] / "checkpoints").mkdir(parents=True)
        status = in_a_process(lambda: write(places[-1], int(steps), len(places)))
        assert status in (0, signal.SIGKILL), status
    # Now, since a process that TensorFlow has started its threads in cannot be forked.
    print(json.dumps([look(place) for place in places]))


if __name__ == "__main__":
    main(*sys.argv[1:])
