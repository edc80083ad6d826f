"""TensorFlow's checkpoints: written whole or not at all, and verified when they are read.

A checkpoint is an index, PREFIX.index, and its data, PREFIX.data-*. The index holds a checksum of each tensor and of
its own blocks.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import tensorflow as tf

from kseg.errors import WorkdirError
from kseg.system import retries
from kseg.system.atomic_files import WRITING, sync


class Step(tf.train.experimental.PythonState):
    """The step after which a checkpoint was written, kept in it: its files could be given another's name."""

    value = 0

    def serialize(self) -> str:
        return str(self.value)

    def deserialize(self, text: bytes) -> None:
        self.value = int(text)


def write(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Write a checkpoint so that it is there whole or not at all, whatever ends the process or the machine.

    It is read back before it gets its name. Raises tf.errors.OpError or OSError; then nothing of it is left, if the
    storage allows, and it can be tried again.
    """
    temporary = prefix.with_name(WRITING + prefix.name)
    try:
        # TensorFlow would make a directory that has vanished, such as one that is no longer mounted.
        os.stat(prefix.parent)
        remove(temporary)
        checkpoint.write(str(temporary))
        # The index is the last: what has none is not seen.
        files = sorted(prefix.parent.glob(f"{temporary.name}.*"))
        for path in files:
            sync(path)
        try:
            verify(temporary)
        except Exception as error:
            if retries.number(error) is not None:
                raise
            raise OSError(errno.EIO, f"it does not read back as written: {retries.first_line(error)}") from None
        for path in files:
            os.replace(path, prefix.with_name(path.name.removeprefix(WRITING)))
        sync(prefix.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise


def read(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Read a checkpoint into the state it tracks, once all of it has been verified; raises as `verify` does.

    Raises WorkdirError where it is whole, but its variables are others.
    """
    verify(prefix)
    try:
        checkpoint.read(str(prefix)).assert_consumed()
    except (AssertionError, ValueError) as error:
        raise WorkdirError(f"{prefix} is whole, but of another model or written by another version of kseg: "
                           f"{retries.first_line(error)}") from None


def verify(prefix: Path) -> None:
    """Read all tensors of a checkpoint; raises what TensorFlow stumbles over where a byte is not as it was written."""
    reader = tf.train.load_checkpoint(str(prefix))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def remove(prefix: Path) -> None:
    """Remove a checkpoint, its index first, or what there is of one; raises OSError where that cannot be."""
    for path in sorted(prefix.parent.glob(f"{prefix.name}[._]*"), key=lambda path: path.suffix != ".index"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
