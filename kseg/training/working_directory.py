"""The working directory of a run: its config, its data set record, its checkpoints, its logs.

    config.json dataset.json         what the run is
    checkpoints/step-*               the whole state; the newest good one is continued
    best.weights.h5 best.json        weights of the best validation mIoU
    final.weights.h5                 weights after the last step
    metrics.jsonl tensorboard/       what was measured
    unreadable.json                  examples that training leaves out (kseg.input_pipeline.batch_reader)
    skipped.json                     steps whose batch it leaves out, since the loss was not finite
    .lock .writing-*                 held while a process trains; what a killed one was writing, removed by the next
"""

import dataclasses
import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import keras
import tensorflow as tf

from kseg import config as configs
from kseg.config import Config
from kseg.config.values import difference
from kseg.datasets import registry
from kseg.datasets.registry import Dataset
from kseg.errors import ConfigError, WorkdirError
from kseg.system.atomic_files import WRITING, sync, write_bytes, write_text
from kseg.system.retries import first_line, retried
from kseg.training import checkpoints
from kseg.training.ema import Average

# Values that may differ when a run is continued: where things lie, how they are read, how often something is written.
FREE = ("name", "data.directory", "data.unreadable", "data.memory", "data.service", "train.log_every",
        "train.validate_every", "train.checkpoint_every", "train.keep_checkpoints", "train.steps_per_call",
        "train.recompute", "train.nonfinite_batches", "train.patience")


def default(config: Config) -> Path:
    """Return runs/NAME, or runs/NAME-VARIANT: a colon would part the directories of a search path."""
    return Path("runs") / config.name.replace(":", "-")


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
        _remove_leftovers(workdir)
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


def _remove_leftovers(workdir: Path) -> None:
    """Remove what processes that were killed have begun to write, or to remove."""
    for path in workdir.glob(f"{WRITING}*"):
        path.unlink(missing_ok=True)
    finished = checkpoint_steps(workdir)
    for name in os.listdir(workdir / "checkpoints"):
        found = re.match(rf"({re.escape(WRITING)})?step-(\d+)", name)
        if found and (found[1] or int(found[2]) not in finished):
            checkpoints.remove(workdir / "checkpoints" / found[0])


def _is_free(key: str, before: Any, now: Any) -> bool:
    """Return whether a value may differ when a run is continued; of initial weights only where they lie."""
    return key in FREE or key in ("init.backbone", "init.weights") and bool(before) and bool(now)


def read(workdir: Path) -> tuple[Config, Dataset]:
    """Return the config and the data set record of a run, which need none of its data."""
    try:
        config = configs.from_json((workdir / "config.json").read_text(encoding="utf-8"))
        record = json.loads((workdir / "dataset.json").read_text(encoding="utf-8"))
        return config, dataclasses.replace(
            registry.DATASETS[record["name"]], classes=tuple(record["classes"]),
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


class WeightsInMemory(io.BytesIO):
    """A .weights.h5 file that HDF5 writes to memory: where it cannot write, a later file of it crashes the process."""

    def __str__(self) -> str:
        # Keras asks for a name with this ending.
        return "memory.weights.h5"


def save_weights(model: keras.Model, path: Path, report: Callable[[str], None] = print) -> None:
    """Write a .weights.h5 file atomically; raises WorkdirError where the disk is full or cannot be written."""
    content = WeightsInMemory()
    model.save_weights(content)
    try:
        write_bytes(path, content.getbuffer(), report)
    except OSError as error:
        raise WorkdirError(f"cannot write {path}: {error.strerror}") from None


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
    values: dict[str, Any] = {"step": checkpoints.Step()}
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
        checkpoints.write(checkpoint, prefix)

    try:
        retried(write, f"writing the checkpoint of step {step}", report)
    except (tf.errors.OpError, OSError) as error:
        left = [each for each in checkpoint_steps(workdir) if each != step]
        kept = f"the checkpoint of step {left[-1]} is whole" if left else "there is no checkpoint before it"
        raise WorkdirError(f"cannot write the checkpoint of step {step} to {prefix.parent}: {first_line(error)}; "
                           f"{kept}") from None
    for old in checkpoint_steps(workdir)[:-keep]:
        try:
            checkpoints.remove(_prefix(workdir, old))
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
            retried(lambda: checkpoints.read(checkpoint, _prefix(workdir, step)), f"reading the checkpoint of step {step}",
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
            checkpoints.remove(_prefix(workdir, damaged))
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


def read_skipped(workdir: Path) -> list[dict]:
    """Return the steps whose batch training leaves out: [{"step", from 0; "losses", texts by name; "files"}, ...].

    Raises WorkdirError where the list cannot be read.
    """
    path = workdir / "skipped.json"
    if not path.exists():
        return []
    try:
        skipped = json.loads(path.read_text(encoding="utf-8"))
        for each in skipped:
            found = {name: type(value) for name, value in each.items()}
            if found != {"step": int, "losses": dict, "files": list}:
                raise ValueError(f"not a step, its losses and its files: {each}")
    except OSError as error:
        raise WorkdirError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged ({type(error).__name__}: {error}); remove it to take the batches that "
                           "it left out again") from None
    return skipped


def write_skipped(workdir: Path, skipped: list[dict], report: Callable[[str], None] = print) -> None:
    """Write the list that `read_skipped` returns; raises OSError where it cannot be written."""
    write_text(workdir / "skipped.json", json.dumps(skipped, indent=1) + "\n", report)
