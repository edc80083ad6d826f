"""Preparing data sets in tests, and reading them back."""

from kseg.config.sections import Data
from kseg.datasets import diagnosis, prepare, registry


def run(name, source, out, splits=(), subset=True, fast=False):
    """Prepare a data set and return its config and the lines that were reported."""
    data, lines = Data(name=name, directory=str(out)), []
    prepare.prepare_dataset(data, source, splits, subset, fast, lines.append)
    return data, lines


def contents(data, split):
    """Return {picture's file name: (image, raw label)} of a prepared split."""
    found = registry.open_split(data, split)
    return {name.rsplit("/", 1)[1]: diagnosis.decode_example(found, index) for index, name in enumerate(found.names)}
