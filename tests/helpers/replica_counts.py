"""Count a folder dataset on virtual devices, or as one of several hosts, and write the counts to a file.

It runs as a process, because virtual devices must be created before the first tensor:
python -m tests.helpers.replica_counts DIRECTORY REPLICAS SETTING OUT
"""

import sys

import numpy as np

from kseg.distributed import hosts
from kseg.evaluation.counter import Counter
from kseg.inference.prediction import protocol_of
from tests.helpers import counted_images
from tests.helpers.splits import val_split


def main(directory, replicas, setting, out):
    strategy = hosts.claim_hosts(int(replicas))
    settings = counted_images.config(directory, counted_images.SETTINGS[setting])
    with strategy.scope():
        model = counted_images.model(settings)
    counter = Counter(model, protocol_of(settings), counted_images.CLASSES, strategy)
    # The second count starts from zero again.
    first, counts = (counter.count(val_split(settings)) for _ in range(2))
    assert (first.bands == counts.bands).all()
    if hosts.is_chief(strategy):
        np.savez(out, replicas=strategy.num_replicas_in_sync, **counts._asdict())


if __name__ == "__main__":
    main(*sys.argv[1:])
