"""Summarize what all hosts of a run must have in common: config, code, data and devices."""

import functools
import hashlib
import posixpath
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import tensorflow as tf

import kseg
from kseg import __version__
from kseg.config import Config
from kseg.config.values import leaves
from kseg.datasets.registry import Split

# Values that may differ between hosts: the location of the data, the size of the read-ahead, and the chief's trackers.
HOST_SPECIFIC = ("data.directory", "data.memory", "tracking.mlflow", "tracking.experiment")
# This many hexadecimal digits of a SHA-256 make collisions unlikely and stay readable.
DIGITS = 16


def run_facts(config: Config, splits: Iterable[Split]) -> dict[str, str]:
    """Return the facts that must be the same on all hosts of a run, by name.

    Reads the names and sizes of the files of the training and validation `splits`.
    """
    gpus = tf.config.list_logical_devices("GPU")
    facts = {key: repr(value) for key, value in leaves(config) if key not in HOST_SPECIFIC}
    facts |= {
        f"data of split {name!r}": data_digest(split) for name, split in {split.name: split for split in splits}.items()
    }
    # An all-reduce expects the same number and kind of devices on each host.
    return facts | {
        "kseg": f"{__version__} of sources {code_digest()}",
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "devices": f"{len(gpus)} x GPU" if gpus else "1 x CPU",
    }


@functools.cache
def code_digest() -> str:
    """Return a digest of the names and contents of kseg's source files."""
    root = Path(kseg.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\t".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:DIGITS]


def data_digest(split: Split) -> str:
    """Return the number of examples of a split and a digest of its classes and files.

    Names are relative to the directory of the data, so that copies in different directories have equal digests. The
    digest includes the sizes of image and label files, or those of record files together with the offset of each
    example. Of prepared pixels and of the synthetic set it includes the names only.
    """
    dataset, names = split.dataset, [*split.names, *split.label_names]
    described = [(dataset.name, dataset.classes, dataset.label_table)]
    if dataset.label_colors:
        described.append((dataset.label_colors, dataset.other_colors))
    if split.records:
        files = split.records.files
        described += zip(split.records.shards, split.records.offsets)
    else:
        files = names if not split.is_pixels and Path(names[0]).is_file() else []
    # On a network file system each call has a latency, and there may be tens of thousands of files.
    with ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda path: tf.io.gfile.stat(path).length, files)
        described += zip((_relative_name(split.location, path) for path in files), sizes)
    described += [_relative_name(split.location, name) for name in names]
    digest = hashlib.sha256("\n".join(map(repr, described)).encode())
    return f"{len(split.names)} examples {digest.hexdigest()[:DIGITS]}"


def _relative_name(location: str, name: str) -> str:
    return name.replace(posixpath.join(location, ""), "")
