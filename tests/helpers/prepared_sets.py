"""Prepare datasets, and read their examples."""

from kseg.config.sections import Data
from kseg.datasets import diagnosis, prepare, registry


def run(name, source, out, splits=(), subset=True, fast=False):
    """Prepare a dataset, and return its config and the reported lines."""
    data, lines = Data(name=name, directory=str(out)), []
    prepare.prepare_dataset(data, source, splits, subset, fast, lines.append)
    return data, lines


def contents(data, split, every=1):
    """Return {file name of the image: (image, raw label)} of every n-th example of a split."""
    opened = registry.open_split(data, split)
    return {
        opened.names[index].rsplit("/", 1)[1]: diagnosis.decode_example(opened, index)
        for index in range(0, len(opened.names), every)
    }
