"""Print as JSON what a host learns about the others; then the second host stops responding.

python -m tests.helpers.host_checks CONFIG_JSON WORKDIR
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import tensorflow as tf

from kseg import config as configs
from kseg.config.sections import Train
from kseg.distributed import hosts
from kseg.errors import DataError, UserError
from kseg.training import trainer


def error_of(action):
    """Return the type and message of the UserError that an action raises, or ""."""
    try:
        action()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail():
    raise DataError("a file of the chief")


def main(config_path, workdir):
    # A host counts as lost after this many seconds without a heartbeat.
    hosts.HEARTBEAT = 3
    config = configs.from_json(Path(config_path).read_text())
    with hosts.exit_on_host_loss():
        strategy = trainer.prepare_strategy(config.train)
        index = hosts.host_index(strategy)
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=index))
        print(
            json.dumps(
                {
                    "index": index,
                    "count": hosts.num_hosts(strategy),
                    "chief": hosts.is_chief(strategy),
                    "equal facts": error_of(lambda: hosts.require_agreement(strategy, {"a": "1", "b": "2"})),
                    "different facts": error_of(lambda: hosts.require_agreement(strategy, {"a": "1", "b": str(index)})),
                    "done": hosts.on_chief(strategy, lambda: index),
                    "training": error_of(lambda: trainer.train(changed, Path(workdir), strategy)),
                    "failed": error_of(lambda: hosts.on_chief(strategy, fail)),
                    "indivisible": error_of(lambda: trainer.require_divisible_batch(Train(global_batch=3), strategy)),
                }
            ),
            flush=True,
        )
        if index == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        strategy.reduce("sum", strategy.run(lambda: tf.constant(1.0)), axis=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
