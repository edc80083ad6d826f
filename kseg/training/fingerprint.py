"""What processes that train together must have in common, as short texts: config, code, data and devices."""

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

# Values that hosts may have each for itself: where its copy of the data lies, and how much is read ahead.
OWN = ("data.directory", "data.memory")
# So many digits of a SHA-256 are enough to tell two apart, and to be read.
DIGITS = 16


def run_facts(config: Config, splits: Iterable[Split]) -> dict[str, str]:
    """Return what has to be the same on all hosts of a run, by what it tells.

    Reads the names and sizes of the files of the training and validation `splits`.
    """
    gpus = tf.config.list_logical_devices("GPU")
    found = {key: repr(value) for key, value in leaves(config) if key not in OWN}
    found |= {f"data of split {name!r}": data_digest(split)
              for name, split in {split.name: split for split in splits}.items()}
    # An all-reduce waits for as many devices of one kind from everybody.
    return found | {"kseg": f"{__version__} of sources {code_digest()}", "keras": keras.__version__,
                    "tensorflow": tf.__version__, "devices": f"{len(gpus)} x GPU" if gpus else "1 x CPU"}


@functools.cache
def code_digest() -> str:
    """Return a digest of kseg's own sources, by their names and contents."""
    root = Path(kseg.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\t".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:DIGITS]


def data_digest(split: Split) -> str:
    """Return how many examples a split has, and a digest of its classes and its files' names and sizes.

    Names are taken below the data's directory, so that copies in different places are alike. Of records the files that
    hold them count, and where each example begins in them; of prepared pixels and of the synthetic set the names alone.
    """
    dataset, names = split.dataset, [*split.names, *split.label_names]
    described = [(dataset.name, dataset.classes, dataset.label_table)]
    if split.records:
        files = split.records.files
        described += zip(split.records.shards, split.records.offsets)
    else:
        files = names if not split.is_pixels and Path(names[0]).is_file() else []
    # Over a network each answer takes its time, and there may be tens of thousands.
    with ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda path: tf.io.gfile.stat(path).length, files)
        described += zip((_below(split.location, path) for path in files), sizes)
    described += [_below(split.location, name) for name in names]
    digest = hashlib.sha256("\n".join(map(repr, described)).encode())
    return f"{len(split.names)} examples {digest.hexdigest()[:DIGITS]}"


def _below(location: str, name: str) -> str:
    """Return a name without the directory of its data set."""
    return name.replace(posixpath.join(location, ""), "")
