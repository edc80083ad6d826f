"""What one of several hosts finds out about the others, printed as JSON; then one of them falls silent."""

import json
import os
import signal

import tensorflow as tf

from kseg import hosts, runtime
from kseg.config import Train
from kseg.errors import DataError, UserError


def said(action):
    """Return what a UserError says that all hosts have to raise."""
    try:
        action()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail():
    raise DataError("a file of the chief")


def main(arguments):
    # Seconds without a sign of life.
    hosts.HEARTBEAT = 3
    with hosts.ending():
        strategy = runtime.prepare(Train(global_batch=6))
        own = hosts.place(strategy)
        print(json.dumps({
            "place": own, "count": hosts.count(strategy), "chief": hosts.is_chief(strategy),
            "alike": said(lambda: hosts.agree(strategy, {"a": "1", "b": "2"})),
            "unlike": said(lambda: hosts.agree(strategy, {"a": "1", "b": str(own)})),
            "told": hosts.from_chief(strategy, lambda: {"by": own}),
            "done": hosts.on_chief(strategy, lambda: own),
            "failed": said(lambda: hosts.on_chief(strategy, fail)),
            "uneven": said(lambda: runtime.require_even_shares(Train(global_batch=3), strategy))}), flush=True)
        if own == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        strategy.reduce("sum", strategy.run(lambda: tf.constant(1.0)), axis=None)
    return 0
