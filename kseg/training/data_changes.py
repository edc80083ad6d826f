"""Tell at a restart how the data have changed since the previous start of a run."""

import json
import posixpath
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from kseg.datasets.registry import Split
from kseg.system.atomic_files import write_text

# In the working directory: {split: {"form": how it is stored, "files": {name: bytes, or null}}}.
FILE = "data.json"
# Number of names that a line lists.
LISTED_NAMES = 3


def report_changes(
    workdir: Path, splits: Iterable[Split], best: dict, resuming: bool, report: Callable[[str], None]
) -> None:
    """Compare the names and sizes of the data with those of the previous start, and store the present ones.

    Args:
        workdir: the working directory of the run.
        splits: the training and the validation split; the last one is the validation split.
        best: {"step", "mIoU"} of the best validation so far.
        resuming: whether the run has taken steps; otherwise nothing was learned from the earlier data.
        report: receives one line for each split that has changed.
    """
    splits = tuple(splits)
    path = workdir / FILE
    now = {split.name: describe(split) for split in splits}
    before = {}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            lines = {name: difference(before[name], now[name]) for name in now if name in before}
        except (ValueError, LookupError, TypeError, AttributeError):
            before, lines = {}, {"": f"{path} is damaged, so changes of the data since the last start are unknown"}
        for name, line in lines.items():
            if not (line and resuming):
                continue
            stale = name == splits[-1].name and best["step"] > 0
            report(
                (f"the data of split {name!r} have changed since the last start: {line}" if name else line)
                + (
                    f". The best mIoU so far, {100 * best['mIoU']:.2f} at step {best['step']}, is of the earlier "
                    f"split; remove {workdir / 'best.json'}, and the next validation counts as the best one"
                    if stale
                    else ""
                )
            )
    if before != now:
        write_text(path, json.dumps(now) + "\n", report)


def describe(split: Split) -> dict:
    """Return {"form": "files", "records" or "pixels", "files": {name: bytes}} of a split.

    Names are relative to the directory of the data, which may move. Prepared examples have no size of their own (None);
    the sizes of their record files are listed as well.
    """
    names = [*split.names, *split.label_names]
    if split.records:
        form, measured, unmeasured = "records", list(split.records.files), names
    elif split.is_pixels or not Path(names[0]).is_file():
        form, measured, unmeasured = "pixels", [], names
    else:
        form, measured, unmeasured = "files", names, []
    # On a network file system each call has a latency, and there may be tens of thousands of files.
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(lambda name: tf.io.gfile.stat(name).length, measured))
    prefix = posixpath.join(split.location, "")
    return {
        "form": form,
        "files": {
            name.removeprefix(prefix): size
            for name, size in [*((name, None) for name in unmeasured), *zip(measured, sizes, strict=True)]
        },
    }


def difference(before: dict, now: dict) -> str:
    """Return how two results of `describe` differ, with numbers and some names; "" if they are equal."""
    if before["form"] != now["form"]:
        return (
            f"it was read from {before['form']} ({len(before['files'])} names) and is now read from {now['form']} "
            f"({len(now['files'])} names)"
        )
    old, new = before["files"], now["files"]
    kinds = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "of another size": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }
    parts = [
        f"{len(names)} file{'s' * (len(names) > 1)} {kind} ({', '.join(names[:LISTED_NAMES])}"
        f"{', ...' if len(names) > LISTED_NAMES else ''})"
        for kind, names in kinds.items()
        if names
    ]
    return ", ".join(parts)
