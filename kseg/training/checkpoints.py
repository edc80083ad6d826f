"""TensorFlow's checkpoints: written whole or not at all, and verified when they are read.

A checkpoint is an index, PREFIX.index, and its data, PREFIX.data-*. The index holds a checksum of each tensor and of
its own blocks.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from kseg.errors import WorkdirError
from kseg.system import retries
from kseg.system.atomic_files import WRITING, sync
from kseg.system.retries import first_line, retried
from kseg.training.ema import Average


class Step(tf.train.experimental.PythonState):
    """The step after which a checkpoint was written, kept in it: its files could be given another's name."""

    value = 0

    def serialize(self) -> str:
        return str(self.value)

    def deserialize(self, text: bytes) -> None:
        self.value = int(text)


def write_checkpoint(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Write a checkpoint so that it is there whole or not at all, whatever ends the process or the machine.

    It is read back before it gets its name. Raises tf.errors.OpError or OSError; then nothing of it is left, if the
    storage allows, and it can be tried again.
    """
    temporary = prefix.with_name(WRITING + prefix.name)
    try:
        # TensorFlow would make a directory that has vanished, such as one that is no longer mounted.
        os.stat(prefix.parent)
        remove_checkpoint(temporary)
        checkpoint.write(str(temporary))
        # The index is the last: what has none is not seen.
        files = sorted(prefix.parent.glob(f"{temporary.name}.*"))
        for path in files:
            sync(path)
        try:
            verify_checkpoint(temporary)
        except Exception as error:
            if retries.number(error) is not None:
                raise
            raise OSError(errno.EIO, f"it does not read back as written: {retries.first_line(error)}") from None
        for path in files:
            os.replace(path, prefix.with_name(path.name.removeprefix(WRITING)))
        sync(prefix.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_checkpoint(temporary)
        raise


def read_checkpoint(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Read a checkpoint into the state it tracks, once all of it has been verified; raises as `verify` does.

    Raises WorkdirError where it is whole, but its variables are others.
    """
    verify_checkpoint(prefix)
    try:
        checkpoint.read(str(prefix)).assert_consumed()
    except (AssertionError, ValueError) as error:
        raise WorkdirError(f"{prefix} is whole, but of another model or written by another version of kseg: "
                           f"{retries.first_line(error)}") from None


def verify_checkpoint(prefix: Path) -> None:
    """Read all tensors of a checkpoint; raises what TensorFlow stumbles over where a byte is not as it was written."""
    reader = tf.train.load_checkpoint(str(prefix))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def remove_checkpoint(prefix: Path) -> None:
    """Remove a checkpoint, its index first, or what there is of one; raises OSError where that cannot be."""
    for path in sorted(prefix.parent.glob(f"{prefix.name}[._]*"), key=lambda path: path.suffix != ".index"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def tracked(model: keras.Model, optimizer: keras.optimizers.Optimizer, average: Average | None = None,
            more: Mapping[str, tf.Variable] = MappingProxyType({})) -> tf.train.Checkpoint:
    """Return a checkpoint of all state under readable names: weights, statistics, velocities, seeds, step.

    Also an average of the weights, and `more` variables by name.
    """
    named = [(f"{owner}/{variable.path}", variable.value)
             for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables))
             for variable in variables]
    named += [(f"average/{name}", variable) for name, variable in (average.variables if average else {}).items()]
    named += [(f"more/{name}", variable) for name, variable in more.items()]
    values: dict[str, Any] = {"step": Step()}
    for name, variable in named:
        if name in values:
            raise ValueError(f"two variables are called {name}")
        values[name] = variable
    return tf.train.Checkpoint(**values)


def save_checkpoint(workdir: Path, checkpoint: tf.train.Checkpoint, step: int, keep: int,
                    report: Callable[[str], None] = print) -> Path:
    """Write the state after `step` steps, read it back, and drop all but the newest `keep` checkpoints.

    Raises WorkdirError naming the newest checkpoint that stays where the disk is full or cannot be written.
    """
    prefix = _prefix(workdir, step)
    checkpoint.step.value = step

    def write() -> None:
        # What is continued here shall not lack the lines before it.
        if (workdir / "metrics.jsonl").exists():
            sync(workdir / "metrics.jsonl")
        write_checkpoint(checkpoint, prefix)

    try:
        retried(write, f"writing the checkpoint of step {step}", report)
    except (tf.errors.OpError, OSError) as error:
        left = [each for each in checkpoint_steps(workdir) if each != step]
        kept = f"the checkpoint of step {left[-1]} is whole" if left else "there is no checkpoint before it"
        raise WorkdirError(f"cannot write the checkpoint of step {step} to {prefix.parent}: {first_line(error)}; "
                           f"{kept}") from None
    for old in checkpoint_steps(workdir)[:-keep]:
        try:
            remove_checkpoint(_prefix(workdir, old))
        except OSError as error:
            # Tried again after the next one is written.
            report(f"the checkpoint of step {old} cannot be removed: {error.strerror}")
    return prefix


def _prefix(workdir: Path, step: int) -> Path:
    return workdir / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the finished checkpoints, oldest first; raises WorkdirError where they cannot be listed."""
    try:
        names = os.listdir(workdir / "checkpoints")
    except FileNotFoundError:
        return []
    except OSError as error:
        # Taken for none, training would begin at its first step.
        raise WorkdirError(f"cannot list {workdir / 'checkpoints'}: {error.strerror}") from None
    return sorted(int(name[1]) for name in (re.fullmatch(r"step-(\d+)\.index", name) for name in names) if name)


def restore_newest(workdir: Path, checkpoint: tf.train.Checkpoint, report: Callable[[str], None]) -> int:
    """Read the newest good checkpoint into the tracked state and return its step; 0 where there is none.

    All checksums are verified before; a damaged checkpoint is reported and the one before it taken. Raises
    WorkdirError where checkpoints exist and none is good, or where a good one is of another model.
    """
    steps = checkpoint_steps(workdir)
    for step in reversed(steps):
        try:
            retried(lambda: read_checkpoint(checkpoint, _prefix(workdir, step)), f"reading the checkpoint of step {step}",
                    report)
            if checkpoint.step.value != step:
                raise ValueError(f"it is that of step {checkpoint.step.value}")
        except WorkdirError:
            raise
        # A file that is cut off makes TensorFlow raise whatever it stumbles over: DataLoss, NotFound, IndexError ...
        except Exception as error:
            report(f"checkpoint of step {step} cannot be read ({first_line(error)}); trying the one before it")
            continue
        for damaged in steps[steps.index(step) + 1:]:
            # Else they would pass for the newest ones, and good ones be dropped for them.
            remove_checkpoint(_prefix(workdir, damaged))
        return step
    if steps:
        raise WorkdirError(f"none of the checkpoints in {workdir / 'checkpoints'} can be read "
                           f"(steps {', '.join(map(str, steps))}); remove them to start over")
    return 0
