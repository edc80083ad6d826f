"""The working directory of a run: its config, its data set record, its checkpoints, its logs.

    config.json dataset.json         what the run is
    checkpoints/step-*               the whole state; the newest good one is continued
    best.weights.h5 best.json        weights of the best validation mIoU
    final.weights.h5                 weights after the last step
    metrics.jsonl tensorboard/       what was measured
    unreadable.json                  examples that training leaves out (kseg.readers)
"""

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import keras
import tensorflow as tf

from kseg import config as configs
from kseg import datasets
from kseg.config import Config
from kseg.config_values import difference
from kseg.datasets import Dataset
from kseg.errors import ConfigError, WorkdirError

# Values that may differ when a run is continued: where things lie, how they are read, how often something is written.
FREE = ("name", "data.directory", "data.unreadable", "data.memory", "data.service", "train.log_every",
        "train.validate_every", "train.checkpoint_every", "train.keep_checkpoints", "train.steps_per_call",
        "train.recompute", "train.nonfinite_batches", "train.patience")


def default(config: Config) -> Path:
    """Return runs/NAME, or runs/NAME-VARIANT: a colon would part the directories of a search path."""
    return Path("runs") / config.name.replace(":", "-")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def open_run(workdir: Path, config: Config, dataset: Dataset) -> IO[str]:
    """Make the directory this run's, or check that it already is; return the lock, which holds until it is closed.

    Raises WorkdirError where it cannot be written, where another process is training in it, or where it was made by a
    config that differs in more than FREE.
    """
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(f"another process is training in {workdir}") from None
        if (workdir / "config.json").exists():
            old, trained = read(workdir)
            changes = [change for change in difference(old, config) if not _is_free(*change)]
            # Without a checkpoint nothing has been trained here, and a mended config may start over.
            if changes and checkpoint_steps(workdir):
                lines = [f"  {key}: {before} there, {now} now" for key, before, now in changes]
                raise WorkdirError(f"{workdir} belongs to another run:\n" + "\n".join(lines)
                                   + "\nTake another --workdir, or the same values.")
            if checkpoint_steps(workdir):
                require_same_classes(trained, dataset, str(workdir))
        record = {field: getattr(dataset, field) for field in ("name", "classes", "palette", "label_table")}
        write_text(workdir / "dataset.json", json.dumps(record) + "\n")
        # Last: where it stands, the directory is complete.
        write_text(workdir / "config.json", configs.to_json(config))
    except OSError as error:
        raise WorkdirError(f"cannot write to {workdir}: {error.strerror}") from None
    return lock


def _is_free(key: str, before: Any, now: Any) -> bool:
    """Return whether a value may differ when a run is continued; of initial weights only where they lie."""
    return key in FREE or key in ("init.backbone", "init.weights") and bool(before) and bool(now)


def read(workdir: Path) -> tuple[Config, Dataset]:
    """Return the config and the data set record of a run, which need none of its data."""
    try:
        config = configs.from_json((workdir / "config.json").read_text(encoding="utf-8"))
        record = json.loads((workdir / "dataset.json").read_text(encoding="utf-8"))
        return config, dataclasses.replace(
            datasets.DATASETS[record["name"]], classes=tuple(record["classes"]),
            palette=tuple(map(tuple, record["palette"])), label_table=tuple(record["label_table"]))
    except OSError as error:
        raise WorkdirError(f"{workdir} is no working directory of kseg.train: {error.strerror}: "
                           f"{error.filename}") from None
    except ConfigError as error:
        raise WorkdirError(f"{workdir / 'config.json'}: {error}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise WorkdirError(f"{workdir / 'dataset.json'} is damaged: {type(error).__name__}: {error}") from None


def require_same_classes(trained: Dataset, found: Dataset, where: str) -> None:
    """Raise WorkdirError where a data set's classes are not those that a model was trained on."""
    if trained.classes == found.classes and trained.label_table != found.label_table:
        value = next(value for value in range(256) if trained.label_table[value] != found.label_table[value])
        raise WorkdirError(f"{where} was trained with label value {value} as {trained.label_table[value]}, "
                           f"the data now reads it as {found.label_table[value]}")
    if trained.classes != found.classes:
        pairs = zip(trained.classes, found.classes)
        different = next((index for index, (before, now) in enumerate(pairs) if before != now),
                         min(len(trained.classes), len(found.classes)))
        raise WorkdirError(f"{where} was trained on {len(trained.classes)} classes of {trained.name}, the data now has "
                           f"{len(found.classes)}; the first difference is class {different}: "
                           f"{', '.join(trained.classes[different:different + 1]) or 'none'} there, "
                           f"{', '.join(found.classes[different:different + 1]) or 'none'} now")


def best_weights(workdir: Path) -> Path:
    """Return the file of the best validated weights; raises WorkdirError where no validation has been made yet."""
    path = workdir / "best.weights.h5"
    if not path.is_file():
        raise WorkdirError(f"{workdir} has no best.weights.h5 yet: training has not reached its first validation")
    return path


def save_weights(model: keras.Model, path: Path) -> None:
    """Write a .weights.h5 file atomically; raises WorkdirError where the disk is full or cannot be written."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        model.save_weights(temporary)
        os.replace(temporary, path)
    # h5py raises either.
    except (OSError, RuntimeError) as error:
        raise WorkdirError(f"cannot write {path}: {str(error).splitlines()[0]}") from None
    finally:
        temporary.unlink(missing_ok=True)


def tracked(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> tf.train.Checkpoint:
    """Return a checkpoint of all state under readable names: weights, statistics, velocities, seeds, step."""
    values = {}
    for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables)):
        for variable in variables:
            name = f"{owner}/{variable.path}"
            if name in values:
                raise ValueError(f"two variables are called {name}")
            values[name] = variable.value
    return tf.train.Checkpoint(**values)


def save_checkpoint(workdir: Path, checkpoint: tf.train.Checkpoint, step: int, keep: int) -> Path:
    """Write the state after `step` steps and drop all but the newest `keep` checkpoints.

    The index file is written last, so what is cut off is not seen. Raises WorkdirError naming the newest checkpoint
    that stays where the disk is full or cannot be written.
    """
    prefix = workdir / "checkpoints" / f"step-{step:08d}"
    try:
        checkpoint.write(str(prefix))
    except (tf.errors.OpError, OSError) as error:
        _remove(workdir, step)
        left = checkpoint_steps(workdir)
        kept = f"the checkpoint of step {left[-1]} is whole" if left else "there is no checkpoint before it"
        raise WorkdirError(f"cannot write the checkpoint of step {step} to {prefix.parent}: "
                           f"{str(getattr(error, 'message', error)).splitlines()[0]}; {kept}") from None
    for old in checkpoint_steps(workdir)[:-keep]:
        _remove(workdir, old)
    return prefix


def _remove(workdir: Path, step: int) -> None:
    for path in (workdir / "checkpoints").glob(f"step-{step:08d}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the finished checkpoints, oldest first."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (workdir / "checkpoints").glob("step-[0-9]*.index"))


def restore_newest(workdir: Path, checkpoint: tf.train.Checkpoint, report: Callable[[str], None]) -> int:
    """Read the newest good checkpoint into the tracked state and return its step; 0 where there is none.

    Checksums are verified as tensors are read; a damaged checkpoint is reported and the one before it taken. Raises
    WorkdirError where checkpoints exist and none is good.
    """
    steps = checkpoint_steps(workdir)
    for step in reversed(steps):
        prefix = workdir / "checkpoints" / f"step-{step:08d}"
        try:
            checkpoint.read(str(prefix)).assert_consumed()
        # A file that is cut off makes TensorFlow raise whatever it stumbles over: DataLoss, NotFound, IndexError ...
        except Exception as error:
            report(f"checkpoint of step {step} cannot be read ({str(error).splitlines()[0][:120]}); "
                   "trying the one before it")
            continue
        for damaged in steps[steps.index(step) + 1:]:
            # Else they would pass for the newest ones, and good ones be dropped for them.
            _remove(workdir, damaged)
        return step
    if steps:
        raise WorkdirError(f"none of the checkpoints in {workdir / 'checkpoints'} can be read "
                           f"(steps {', '.join(map(str, steps))}); remove them to start over")
    return 0


def trim_metrics(workdir: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after a step, and a line that was cut off, so that each step stands once."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, LookupError, TypeError):
            break
    write_text(path, "".join(kept))
