"""Counts a folder on virtual devices, or as one of several hosts, and writes the counts to a file.

Run in a process of its own, since devices have to be made before the first tensor:
python tests/replica_counts.py DIRECTORY REPLICAS SETTING OUT
"""

import sys

import counted_pictures
import numpy as np

from kseg import hosts
from kseg.counts import Counter


def main(directory, replicas, setting, out):
    strategy = hosts.claim(int(replicas))
    settings = counted_pictures.config(directory, counted_pictures.SETTINGS[setting])
    with strategy.scope():
        model = counted_pictures.model(settings)
    counter = Counter(model, settings, counted_pictures.CLASSES, strategy)
    # Twice: the second count begins at nothing.
    first, counts = counter.count("val"), counter.count("val")
    assert (first.bands == counts.bands).all()
    if hosts.is_chief(strategy):
        np.savez(out, replicas=strategy.num_replicas_in_sync, **counts._asdict())


if __name__ == "__main__":
    main(*sys.argv[1:])
