"""Counts a folder on N virtual devices, or as one of several hosts, and writes the counts to files.

Run in a process of its own, since devices have to be made before the first tensor:
python tests/replica_counts.py DIRECTORY REPLICAS OUT
"""

import sys

import counted_pictures
import numpy as np

from kseg import runtime
from kseg.counts import Counter


def main(directory, replicas, out):
    strategy = runtime.claim_hosts(int(replicas))
    for name, evaluate in counted_pictures.SETTINGS.items():
        settings = counted_pictures.config(directory, evaluate)
        with strategy.scope():
            model = counted_pictures.model(settings)
        counter = Counter(model, settings, counted_pictures.CLASSES, strategy)
        # Twice: the second count begins at nothing.
        first, counts = counter.count("val"), counter.count("val")
        assert (first.bands == counts.bands).all()
        if runtime.is_chief(strategy):
            np.savez(f"{out}-{name}.npz", **counts._asdict())


if __name__ == "__main__":
    main(*sys.argv[1:])
