"""Manage the working directory of a run.

config.json dataset.json         the identity of the run
checkpoints/step-*               the whole state; a run resumes from the newest intact checkpoint
best.weights.h5 best.json        weights of the best validation mIoU
final.weights.h5                 weights after the last step
metrics.jsonl tensorboard/       the log
images/step-*.png                images, labels and predictions of the newest validations
unreadable.json                  examples that training skips (kseg.input_pipeline.batch_reader)
tracking.json                    runs on servers that track experiments (kseg.tracking)
data.json                        names and sizes of the data, compared at the next start
skipped.json                     steps whose batch is skipped because its loss was not finite
.lock                            locked while a process trains
.writing-*                       incomplete files; a resumed run removes those of a killed process
"""

import fcntl
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from kseg import config as configs
from kseg.config import Config
from kseg.config.sections import Train
from kseg.config.values import config_differences
from kseg.datasets.registry import Dataset
from kseg.errors import WorkdirError
from kseg.inference import trained_model
from kseg.system.atomic_files import WRITING, write_text
from kseg.system.paths import path_fault
from kseg.training import checkpoints, validation_images

# Values that may differ when a run is resumed: file locations, ways of reading, and intervals of writing.
CHANGEABLE = (
    "name",
    "data.directory",
    "data.unreadable",
    "data.memory",
    "data.service",
    "train.log_every",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.steps_per_call",
    "train.recompute",
    "train.nonfinite_batches",
    "train.patience",
    "tracking.mlflow",
    "tracking.experiment",
)


def open_workdir(workdir: Path, config: Config, dataset: Dataset) -> IO[str]:
    """Create or reopen the working directory of a run and lock it.

    Returns:
        The lock, which is held until it is closed.

    Raises:
        WorkdirError: TensorFlow cannot work with the path, the directory cannot be written, another process trains
            in it, or it belongs to a run whose config differs in more than CHANGEABLE and a permitted train.steps.
    """
    if fault := path_fault(workdir):
        raise WorkdirError(f"--workdir {workdir} {fault}")
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(f"another process is training in {workdir}") from None
        _remove_leftovers(workdir)
        if (workdir / "config.json").exists():
            old, trained = trained_model.read_workdir(workdir)
            longer = may_train_longer(old.train, config.train)
            changes = [
                change
                for change in config_differences(old, config)
                if not (_may_change(*change) or longer and change[0] == "train.steps")
            ]
            # Without a checkpoint nothing has been trained, and a corrected config may start over.
            if changes and checkpoints.checkpoint_steps(workdir):
                lines = [f"  {key}: {before} in the directory, {now} now" for key, before, now in changes]
                raise WorkdirError(
                    f"{workdir} belongs to another run:\n"
                    + "\n".join(lines)
                    + "\nChoose another --workdir, or set the same values."
                    + _way_to_train_longer(workdir, changes)
                )
            if checkpoints.checkpoint_steps(workdir):
                trained_model.require_same_classes(trained, dataset, str(workdir))
        record = {field: getattr(dataset, field) for field in ("name", "classes", "palette", "label_table")}
        write_text(workdir / "dataset.json", json.dumps(record) + "\n")
        # config.json is written last: its presence means that the directory is complete.
        write_text(workdir / "config.json", configs.to_json(config))
    except OSError as error:
        raise WorkdirError(f"cannot write to {workdir}: {error.strerror}") from None
    return lock


def _remove_leftovers(workdir: Path) -> None:
    """Remove the partial files of killed processes."""
    for directory in (workdir, workdir / validation_images.DIRECTORY):
        for path in directory.glob(f"{WRITING}*"):
            path.unlink(missing_ok=True)
    complete = checkpoints.checkpoint_steps(workdir)
    for name in os.listdir(workdir / "checkpoints"):
        match = re.match(rf"({re.escape(WRITING)})?step-(\d+)", name)
        if match and (match[1] or int(match[2]) not in complete):
            checkpoints.remove_checkpoint(workdir / "checkpoints" / match[0])


def _may_change(key: str, before: Any, now: Any) -> bool:
    """Return whether a value may differ when a run is resumed; initial weights may move, but not appear or vanish."""
    return key in CHANGEABLE or key in ("init.backbone", "init.weights") and bool(before) and bool(now)


def may_train_longer(before: Train, now: Train) -> bool:
    """Return whether more steps leave the learning rates of all earlier steps as they were, and the new ones above 0.

    That is so if the schedule is constant, or if train.end_step fixes its end.

    Args:
        before: the section `train` of the run.
        now: the section `train` to resume with.
    """
    constant = now.power == 0 or now.end_learning_rate == now.learning_rate
    fixed = now.end_step > 0 and (now.end_learning_rate > 0 or now.end_step >= now.steps)
    return now.steps > before.steps and (constant or fixed)


def _way_to_train_longer(workdir: Path, changes: list[tuple]) -> str:
    """Return a sentence with the command that trains more steps from a run's weights, if nothing else has changed."""
    if [key for key, *_ in changes] != ["train.steps"] or changes[0][2] <= changes[0][1]:
        return ""
    _, before, now = changes[0]
    weights = next((path for name in ("final", "best") if (path := workdir / f"{name}.weights.h5").exists()), None)
    if weights is None:
        return ""
    # A test or a program that calls `train` has another command line.
    command = shlex.join(sys.orig_argv) if "kseg.train" in sys.orig_argv else "python -m kseg.train --config NAME"
    added = [
        "--workdir",
        f"{workdir}-{now}",
        "--set",
        "init.backbone=",
        f"init.weights={weights}",
        f"train.steps={now - before}",
    ]
    return (
        f"\nWith train.steps={now} the learning rates of the first {before} steps would have differed, or those of "
        f"the added steps would be 0. To train {now - before} more steps from its weights with a new schedule:\n"
        f"  {command} {shlex.join(added)}"
    )


def trim_metrics(workdir: Path, step: int) -> None:
    """Remove from metrics.jsonl the lines of later steps and an incomplete line, so that steps occur once."""
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


def read_skipped_steps(workdir: Path) -> list[dict]:
    """Read the steps whose batch training skips.

    Returns:
        [{"step": index from 0, "losses": texts by name, "files": names of the batch's examples}, ...].

    Raises:
        WorkdirError: The list cannot be read or is damaged.
    """
    path = workdir / "skipped.json"
    if not path.exists():
        return []
    try:
        skipped = json.loads(path.read_text(encoding="utf-8"))
        for entry in skipped:
            types = {name: type(value) for name, value in entry.items()}
            if types != {"step": int, "losses": dict, "files": list}:
                raise ValueError(f"expected a step, its losses and its files, got {entry}")
    except OSError as error:
        raise WorkdirError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise WorkdirError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it to train on the skipped batches again"
        ) from None
    return skipped


def write_skipped_steps(workdir: Path, skipped: list[dict], report: Callable[[str], None] = print) -> None:
    """Write the list that `read_skipped_steps` returns; raises OSError if it cannot be written."""
    write_text(workdir / "skipped.json", json.dumps(skipped, indent=1) + "\n", report)
