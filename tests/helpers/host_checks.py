"""What one of several hosts finds out about the others, printed as JSON; then one of them falls silent.

python -m host_checks CONFIG_JSON WORKDIR
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import tensorflow as tf

from kseg import config as configs
from kseg.config import Train
from kseg.distributed import hosts
from kseg.errors import DataError, UserError
from kseg.training import trainer


def said(action):
    """Return what a UserError says that all hosts have to raise."""
    try:
        action()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail():
    raise DataError("a file of the chief")


def main(config_path, workdir):
    # Seconds without a sign of life.
    hosts.HEARTBEAT = 3
    config = configs.from_json(Path(config_path).read_text())
    with hosts.ending():
        strategy = trainer.prepare(config.train)
        own = hosts.place(strategy)
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=own))
        print(json.dumps({
            "place": own, "count": hosts.count(strategy), "chief": hosts.is_chief(strategy),
            "alike": said(lambda: hosts.agree(strategy, {"a": "1", "b": "2"})),
            "unlike": said(lambda: hosts.agree(strategy, {"a": "1", "b": str(own)})),
            "done": hosts.on_chief(strategy, lambda: own),
            "training": said(lambda: trainer.train(changed, Path(workdir), strategy)),
            "failed": said(lambda: hosts.on_chief(strategy, fail)),
            "uneven": said(lambda: trainer.require_even_shares(Train(global_batch=3), strategy))}), flush=True)
        if own == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        strategy.reduce("sum", strategy.run(lambda: tf.constant(1.0)), axis=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
