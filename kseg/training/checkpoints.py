"""Write checkpoints atomically and verify them when they are read.

A TensorFlow checkpoint is an index, PREFIX.index, and its data, PREFIX.data-*. The index holds checksums of the tensors
and of its own blocks.
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
from kseg.system.atomic_files import WRITING, sync_file
from kseg.system.retries import first_line, with_retries
from kseg.training.ema import ExponentialMovingAverage


class SavedStep(tf.train.experimental.PythonState):
    """Store in a checkpoint the number of steps it was written after.

    It reveals files that were renamed to those of another step.
    """

    value = 0

    def serialize(self) -> str:
        return str(self.value)

    def deserialize(self, text: bytes) -> None:
        self.value = int(text)


def write_checkpoint(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Write a checkpoint atomically: after a crash it is complete or does not exist.

    The checkpoint is verified under a temporary name before it gets its final one.

    Raises:
        tf.errors.OpError, OSError: The checkpoint could not be written. Partial files are removed if the storage allows
            it, and the call can be repeated.
    """
    temporary = prefix.with_name(WRITING + prefix.name)
    try:
        # TensorFlow would create a directory that has vanished, such as the mount point of a lost file system.
        os.stat(prefix.parent)
        remove_checkpoint(temporary)
        checkpoint.write(str(temporary))
        # The index sorts last, and a checkpoint without an index does not count.
        files = sorted(prefix.parent.glob(f"{temporary.name}.*"))
        for path in files:
            sync_file(path)
        try:
            verify_checkpoint(temporary)
        except Exception as error:
            if retries.error_number(error) is not None:
                raise
            raise OSError(errno.EIO, f"it differs when read back: {first_line(error)}") from None
        for path in files:
            os.replace(path, prefix.with_name(path.name.removeprefix(WRITING)))
        sync_file(prefix.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_checkpoint(temporary)
        raise


def read_checkpoint(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Verify a checkpoint and read it into the tracked state.

    Raises:
        WorkdirError: The checkpoint is intact but has other variables.
        Exception: The checkpoint is damaged; see `verify_checkpoint`.
    """
    verify_checkpoint(prefix)
    try:
        checkpoint.read(str(prefix)).assert_consumed()
    except (AssertionError, ValueError) as error:
        raise WorkdirError(
            f"{prefix} is intact, but belongs to another model or was written by another version of "
            f"kseg: {first_line(error)}"
        ) from None


def verify_checkpoint(prefix: Path) -> None:
    """Read all tensors of a checkpoint and thereby verify their checksums.

    Damaged files raise exceptions of various types, since TensorFlow parses them before it compares checksums.
    """
    reader = tf.train.load_checkpoint(str(prefix))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def remove_checkpoint(prefix: Path) -> None:
    """Remove the files of a complete or partial checkpoint, the index first; raises OSError."""
    for path in sorted(prefix.parent.glob(f"{prefix.name}[._]*"), key=lambda path: path.suffix != ".index"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def tracked_checkpoint(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    ema: ExponentialMovingAverage | None = None,
    more: Mapping[str, tf.Variable] = MappingProxyType({}),
) -> tf.train.Checkpoint:
    """Return a checkpoint object that tracks the whole state of a run.

    The names in the file are model/PATH and optimizer/PATH for the variables of the model and the optimizer,
    average/PATH for the averages of `ema`, more/NAME for `more`, and "step".
    """
    named = [
        (f"{owner}/{variable.path}", variable.value)
        for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables))
        for variable in variables
    ]
    named += [(f"average/{path}", variable) for path, variable in (ema.variables if ema else {}).items()]
    named += [(f"more/{name}", variable) for name, variable in more.items()]
    values: dict[str, Any] = {"step": SavedStep()}
    for name, variable in named:
        if name in values:
            raise ValueError(f"two variables are called {name}")
        values[name] = variable
    return tf.train.Checkpoint(**values)


def save_checkpoint(
    workdir: Path, checkpoint: tf.train.Checkpoint, step: int, keep: int, report: Callable[[str], None] = print
) -> Path:
    """Save the state after `step` steps and remove all but the newest `keep` checkpoints.

    Returns:
        The prefix of the checkpoint's files.

    Raises:
        WorkdirError: The checkpoint cannot be written; names the newest checkpoint that remains.
    """
    prefix = _prefix(workdir, step)
    checkpoint.step.value = step

    def write() -> None:
        # A run that resumes from this checkpoint must find the metrics of all steps before it.
        if (workdir / "metrics.jsonl").exists():
            sync_file(workdir / "metrics.jsonl")
        write_checkpoint(checkpoint, prefix)

    try:
        with_retries(write, f"writing the checkpoint of step {step}", report)
    except (tf.errors.OpError, OSError) as error:
        remaining = [other for other in checkpoint_steps(workdir) if other != step]
        state = f"the checkpoint of step {remaining[-1]} is intact" if remaining else "there is no previous checkpoint"
        raise WorkdirError(
            f"cannot write the checkpoint of step {step} to {prefix.parent}: {first_line(error)}; {state}"
        ) from None
    for old in checkpoint_steps(workdir)[:-keep]:
        try:
            remove_checkpoint(_prefix(workdir, old))
        except OSError as error:
            # The removal is retried after the next checkpoint is written.
            report(f"the checkpoint of step {old} cannot be removed: {error.strerror}")
    return prefix


def _prefix(workdir: Path, step: int) -> Path:
    return workdir / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints, oldest first; raises WorkdirError if they cannot be listed."""
    try:
        names = os.listdir(workdir / "checkpoints")
    except FileNotFoundError:
        return []
    except OSError as error:
        # An empty list would restart training at its first step.
        raise WorkdirError(f"cannot list {workdir / 'checkpoints'}: {error.strerror}") from None
    return sorted(int(name[1]) for name in (re.fullmatch(r"step-(\d+)\.index", name) for name in names) if name)


def restore_newest(workdir: Path, checkpoint: tf.train.Checkpoint, report: Callable[[str], None]) -> int:
    """Restore the newest intact checkpoint into the tracked state and return its step.

    All checksums are verified first. A damaged checkpoint is reported and, if an older one is intact, removed.

    Returns:
        The number of steps that the restored state has taken; 0 if there is no checkpoint.

    Raises:
        WorkdirError: All checkpoints are damaged, or the newest intact one belongs to another model.
    """
    steps = checkpoint_steps(workdir)
    for step in reversed(steps):
        try:
            with_retries(
                lambda: read_checkpoint(checkpoint, _prefix(workdir, step)),
                f"reading the checkpoint of step {step}",
                report,
            )
            if checkpoint.step.value != step:
                raise ValueError(f"it is that of step {checkpoint.step.value}")
        except WorkdirError:
            raise
        # TensorFlow reports damage by many exception types: DataLossError, NotFoundError, IndexError, ...
        except Exception as error:
            report(f"checkpoint of step {step} cannot be read ({first_line(error)}); trying the previous one")
            continue
        for damaged in steps[steps.index(step) + 1 :]:
            # Otherwise damaged checkpoints count as the newest, and retention deletes good ones.
            remove_checkpoint(_prefix(workdir, damaged))
        return step
    if steps:
        raise WorkdirError(
            f"none of the checkpoints in {workdir / 'checkpoints'} can be read "
            f"(steps {', '.join(map(str, steps))}); remove them to start over"
        )
    return 0
