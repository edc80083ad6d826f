"""Kill a process that writes checkpoints before each of its calls to the operating system.

    python -m tests.helpers.killed_writes DIRECTORY STEPS

For n = 1, 2, ... a process writes the checkpoints of steps 1 to STEPS into DIRECTORY/n, keeps one, and is killed before
its n-th call that changes files. The last n is the first one whose process finishes. The output is JSON: for each n
[the step that is restored afterwards, the values, the names of the files, the reported lines].
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
    return tf.train.Checkpoint(step=checkpoints.SavedStep(), **{"model/a": tf.Variable(tf.fill((50,), float(value)))})


def die_before(number):
    """Patch the calls that change files so that call `number` kills the process."""
    remaining = number

    def counting(function):
        def count(*arguments, **keywords):
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return count

    for module, name in (
        (os, "fsync"),
        (os, "replace"),
        (os, "unlink"),
        (shutil, "rmtree"),
        (tf.train.Checkpoint, "write"),
    ):
        setattr(module, name, counting(getattr(module, name)))


def run_forked(action):
    """Run an action in a fork, which saves the import of TensorFlow, and return its exit status."""
    if not (process := os.fork()):
        action()
        os._exit(0)
    return os.waitpid(process, 0)[1]


def write(directory, steps, number):
    die_before(number)
    for step in range(1, steps + 1):
        checkpoints.save_checkpoint(directory, state(step), step, keep=1)


def restored_state(directory):
    lines, checkpoint = [], state(-1)
    with working_directory.open_workdir(directory, Config(), registry.DATASETS["camvid"]):
        step = checkpoints.restore_newest(directory, checkpoint, lines.append)
        values = set(getattr(checkpoint, "model/a").numpy().tolist())
        return [step, sorted(values), sorted(os.listdir(directory / "checkpoints")), lines]


def main(directory, steps):
    workdirs, status = [], -1
    while status:
        workdirs.append(Path(directory) / str(len(workdirs) + 1))
        (workdirs[-1] / "checkpoints").mkdir(parents=True)
        status = run_forked(lambda: write(workdirs[-1], int(steps), len(workdirs)))
        assert status in (0, signal.SIGKILL), status
    # Restoring starts threads of TensorFlow, after which this process could not be forked.
    print(json.dumps([restored_state(workdir) for workdir in workdirs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
