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

import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


from kseg import config as configs
from kseg.config import Config
from kseg.config.values import difference
from kseg.datasets.registry import Dataset
from kseg.errors import WorkdirError
from kseg.inference import trained_model
from kseg.system.atomic_files import WRITING, write_text
from kseg.training import checkpoints

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
            old, trained = trained_model.read(workdir)
            changes = [change for change in difference(old, config) if not _is_free(*change)]
            # Without a checkpoint nothing has been trained here, and a mended config may start over.
            if changes and checkpoints.checkpoint_steps(workdir):
                lines = [f"  {key}: {before} there, {now} now" for key, before, now in changes]
                raise WorkdirError(f"{workdir} belongs to another run:\n" + "\n".join(lines)
                                   + "\nTake another --workdir, or the same values.")
            if checkpoints.checkpoint_steps(workdir):
                trained_model.require_same_classes(trained, dataset, str(workdir))
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
    finished = checkpoints.checkpoint_steps(workdir)
    for name in os.listdir(workdir / "checkpoints"):
        found = re.match(rf"({re.escape(WRITING)})?step-(\d+)", name)
        if found and (found[1] or int(found[2]) not in finished):
            checkpoints.remove_checkpoint(workdir / "checkpoints" / found[0])


def _is_free(key: str, before: Any, now: Any) -> bool:
    """Return whether a value may differ when a run is continued; of initial weights only where they lie."""
    return key in FREE or key in ("init.backbone", "init.weights") and bool(before) and bool(now)


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
