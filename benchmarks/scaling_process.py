"""One of several processes that train together, for scaling.py: steps and all-reduces, timed.

    python -m kseg.launch --local N -- scaling_process.py OUT HEADS CROP SHARES ROUNDS BYTES

Figures are written to OUT.PLACE as JSON. SHARES are numbers of images of each process, HEADS names, both with commas.
The batch lies in memory. BYTES is the largest message.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from benchmarks.kseg_training import CLASSES, example
from kseg.config import Config, Model, Train
from kseg.distributed import hosts
from kseg.models import layers
from kseg.training import trainer
from kseg.training.step import Steps

# All shares of one process to three divide it.
BATCH = 6
# All-reduces that follow one another in one call are as many as are worth measuring, but of little in all.
CHAIN, CHAINED_BYTES = 20, 10**7


def main(out: str, heads: str, crop: str, shares: str, rounds: str, largest: str) -> None:
    with hosts.ending():
        strategy = trainer.prepare(Train(global_batch=BATCH))
        place = hosts.place(strategy)
        figures = {"place": place, "load": os.getloadavg()[0], "messages": [], "steps": []}
        if hosts.count(strategy) > 1:
            figures["messages"] = list(messages(strategy, int(rounds), int(largest)))
        for head in heads.split(","):
            figures["steps"] += steps(head, strategy, int(crop), list(map(int, shares.split(","))), int(rounds))
        Path(f"{out}.{place}").write_text(json.dumps(figures))


def timed(action: Callable[[], object], rounds: int) -> dict[str, list[float]]:
    """Return the wall and CPU seconds of each call, after one that is not counted."""
    action()
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall": walls, "cpu": cpus}


def messages(strategy: tf.distribute.Strategy, rounds: int, largest: int) -> Iterator[dict]:
    """Give the seconds of one all-reduce of float32 vectors of 1 KB to `largest` bytes."""
    size = 1000
    while size <= largest:
        count = max(1, min(CHAIN, CHAINED_BYTES // size))

        @tf.function
        def reduce(values: tf.Tensor, count: int = count) -> tf.Tensor:
            def chain() -> tf.Tensor:
                # Put on the replica's device, from which it is sent.
                found = tf.identity(values)
                for _ in range(count):
                    # Each needs the one before it.
                    found = tf.distribute.get_replica_context().all_reduce("mean", found)
                return found[0]

            return strategy.run(chain)

        values = tf.ones(size // 4)
        found = timed(lambda: reduce(values).numpy(), rounds)
        yield {"bytes": size, **{kind: [each / count for each in found[kind]] for kind in found}}
        size *= 10


def steps(head: str, strategy: tf.distribute.Strategy, crop: int, shares: list[int], rounds: int) -> Iterator[dict]:
    """Give the seconds of a step for each share; of one process also with the norm that several have."""
    config = Config(model=Model(head=head), train=Train(global_batch=BATCH))
    with strategy.scope():
        model, optimizer, _ = trainer.build(config, CLASSES, lambda line: None)
    own = layers.replica_context
    for several in (False, True) if hosts.count(strategy) == 1 else (True,):
        # What adds up over replicas takes more passes, also over one; chosen when a step is traced.
        layers.replica_context = tf.distribute.get_replica_context if several else own
        taken = Steps(model, optimizer, config, strategy)
        for share in shares:
            images, labels = example(crop, crop, share)
            batch = {"image": tf.constant(images), "label": tf.constant(labels)}
            found = timed(lambda: float(taken.one(batch)["loss"]), rounds)
            yield {"head": head, "share": share, "several": several, **found,
                   "messages": collectives(taken.step.get_concrete_function(batch).graph)}
    layers.replica_context = own


def collectives(graph: tf.Graph) -> list[int]:
    """Return the bytes of each all-reduce in the graph of a step."""
    return [operation.inputs[0].shape.num_elements() * operation.inputs[0].dtype.size
            for operation in graph.get_operations() if operation.type.startswith("CollectiveReduce")]


if __name__ == "__main__":
    main(*sys.argv[1:])
