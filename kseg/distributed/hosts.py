"""Several hosts that work as one: their strategy, what they have to agree on, and the loss of one of them.

TF_CONFIG names them (kseg.distributed.tf_config); each runs the same command. The first one is the chief: it reports and writes.
With one host everything here is a function call and no more.
"""

import contextlib
import faulthandler
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import tensorflow as tf
# There is no public way to the times after which a silent host counts as lost, nor to the store that hosts share.
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context

from kseg.distributed import devices, tf_config
from kseg.distributed.tf_config import HostLost
from kseg.errors import ConfigError, UserError

__all__ = ["HostLost", "HostsDisagree", "agree", "claim", "count", "ending", "is_chief", "lost",
           "names", "on_chief", "place", "require_all"]

Result = TypeVar("Result")

# sysexits.h, EX_TEMPFAIL: nothing is wrong with the command, and cluster managers shall start it again.
LOST_STATUS = 75
# Seconds without a sign of life until a host counts as lost. One that is killed is mostly noticed at once, by what is
# on its way from it; this is for one that hangs, loses its power or its network, and for calls that begin later.
HEARTBEAT = 20
# Seconds for TensorFlow's own start, when all hosts have met; it takes one.
START = 30
# Seconds in which the store answers whether a key is there; in between Python handles signals.
POLL = 1.0
# Named in full where hosts disagree.
NAMED = 3

# How errors of TensorFlow speak of another host: by its task, or not at all.
_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")
_SIGNS = ("Collective ops is aborted", "stopped sending heartbeats", "CoordinationService", "coordination service",
          "remote target /job:")

# Every host makes the same calls in the same order, so their numbers are the same.
_turns = itertools.count()


class HostsDisagree(UserError):
    """Hosts of one run were started with different configs, code or data."""


def claim(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return a strategy over the hosts that the environment's TF_CONFIG names, or over this one's devices without it.

    Before anything else of TensorFlow has run. Of several hosts, each waits for all others, as long as KSEG_HOSTS_WAIT
    says (seconds; 600 by default). Raises ConfigError where TF_CONFIG cannot be read, and HostLost naming hosts that
    have not come.
    """
    devices.require_tensorflow()
    cluster = tf_config.read()
    if cluster is None or len(cluster.tasks) < 2:
        return devices.claim_devices(cpu_replicas)
    if cpu_replicas != 1:
        raise ConfigError("--cpu-replicas is for one host; TF_CONFIG names several")
    devices.grow_memory()
    leader = cluster.tasks[0][0]
    jobs = [CoordinatedJob(name=name, num_tasks=sum(job == name for job, _, _ in cluster.tasks))
            for name in tf_config.JOBS if any(job == name for job, _, _ in cluster.tasks)]
    tf_config.meet(cluster, tf_config.waiting_time(), lambda line: print(line, file=sys.stderr))
    context.context().configure_coordination_service(
        "standalone", service_leader=f"/job:{leader}/replica:0/task:0", coordinated_jobs=jobs,
        cluster_register_timeout_in_ms=1000 * START, heartbeat_timeout_in_ms=1000 * HEARTBEAT)
    # The leader waits without end for a host that was lost since they met, and holds Python's lock while it does.
    faulthandler.dump_traceback_later(2 * START, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError) as error:
        raise HostLost(f"a host was lost at the start: {_first_line(error)}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()


def names(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
    """Return what messages call the hosts of a strategy, in their order; one empty name for a single host."""
    cluster = tf_config.read() if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else None
    return cluster.names if cluster else ("",)


def count(strategy: tf.distribute.Strategy) -> int:
    """Return the number of hosts of a strategy."""
    return len(names(strategy))


def place(strategy: tf.distribute.Strategy) -> int:
    """Return which of the hosts of a strategy this one is, from 0."""
    return tf_config.read().place if count(strategy) > 1 else 0


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the one of all hosts that reports and writes."""
    return place(strategy) == 0


def agree(strategy: tf.distribute.Strategy, known: dict[str, str]) -> None:
    """Raise HostsDisagree on every host, with the same text, where one host knows other facts than the others.

    `known` are short texts by what they tell, as `facts` gives. Each host calls it at the same point.
    """
    everyone, own = names(strategy), place(strategy)
    if len(everyone) == 1:
        return
    turn = f"kseg/facts/{next(_turns)}"
    _put(f"{turn}/{own}", json.dumps(known))

    def compare() -> None:
        found = [known, *(json.loads(_get(f"{turn}/{other}")) for other in range(1, len(everyone)))]
        lines = differences(everyone, found)
        if lines:
            raise HostsDisagree("\n".join(["the hosts were not started alike, and nothing was done:", *lines]))

    on_chief(strategy, compare)


def differences(everyone: tuple[str, ...], found: list[dict[str, str]]) -> list[str]:
    """Return a line for each fact that is not the same for all, with the hosts of each of its values."""
    lines = []
    for key in sorted(set().union(*found)):
        holders: dict[str, list[str]] = {}
        for name, known in zip(everyone, found, strict=True):
            holders.setdefault(known.get(key, "not known"), []).append(name)
        if len(holders) > 1:
            lines.append(f"  {key}: " + "; ".join(
                f"{value} on {', '.join(hosts[:NAMED])}"
                + (f" and {len(hosts) - NAMED} more" if len(hosts) > NAMED else "")
                for value, hosts in holders.items()))
    return lines


def on_chief(strategy: tf.distribute.Strategy, action: Callable[[], Result]) -> Result | None:
    """Run an action on the chief, while the other hosts wait for it; return its result there, and None elsewhere.

    A UserError that it raises is raised on all hosts. Each host calls it at the same point; with one host it is a call
    of `action`.
    """
    hosts, own = count(strategy), place(strategy)
    if hosts == 1:
        return action()
    turn = f"kseg/chief/{next(_turns)}"
    if own:
        outcome = json.loads(_get(turn))
        if outcome:
            _put(f"{turn}/{own}", "read")
            raise _error_of(*outcome)
        return None
    try:
        result = action()
    except UserError as error:
        _put(turn, json.dumps([type(error).__name__, str(error)]))
        # The store ends with this process: everybody has to have read it before.
        for other in range(1, hosts):
            _get(f"{turn}/{other}")
        raise
    _put(turn, "[]")
    return result


def _error_of(name: str, text: str) -> UserError:
    """Return the error that another host told of; of a kind that is not loaded here, a plain UserError."""
    return {kind.__name__: kind for kind in _kinds(UserError)}.get(name, UserError)(text)


def _kinds(kind: type[UserError]) -> Iterator[type[UserError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _put(key: str, text: str) -> None:
    try:
        context.context().set_config_key_value(key, text)
    except tf.errors.OpError as error:
        raise _loss(error) from None


def _get(key: str) -> str:
    """Return what a host has put under a key, waiting for it."""
    while True:
        try:
            return context.context().get_config_key_value(key, int(1000 * POLL))
        except tf.errors.DeadlineExceededError:
            pass
        except tf.errors.OpError as error:
            raise _loss(error) from None


def lost(error: BaseException) -> HostLost | None:
    """Return the loss of a host that an error of a step, a variable or an input pipeline tells of; None: another error.
    """
    if isinstance(error, HostLost):
        return error
    several = context.context().coordination_service is not None
    if several and isinstance(error, tf.errors.OpError) and any(sign in error.message for sign in _SIGNS):
        return _loss(error)
    return None


def require_all(strategy: tf.distribute.Strategy, error: BaseException) -> None:
    """Raise HostLost where an error of a step tells of the loss of one of several hosts."""
    found = lost(error) if count(strategy) > 1 else None
    if found:
        raise found from None


def _loss(error: tf.errors.OpError) -> HostLost:
    cluster = tf_config.read()
    by_task = {(job, str(index)): name for (job, index, _), name in zip(cluster.tasks, cluster.names)}
    found = dict.fromkeys(by_task[task] for task in _TASK.findall(error.message)
                          if by_task.get(task, cluster.names[cluster.place]) != cluster.names[cluster.place])
    silent = "stopped sending heartbeats" in error.message
    what = (f"no sign of life from {', '.join(found)} for {HEARTBEAT} s" if silent and found else
            f"the connection to {next(iter(found))} broke" if found else "the connection to another host broke")
    return HostLost(f"{what}: {_first_line(error)}. If that host ended by itself, its own output says why. What was "
                    "saved is whole; the same command, on as many hosts or on another number, continues there")


def _first_line(error: tf.errors.OpError) -> str:
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    telling = [line for line in lines if any(sign in line for sign in _SIGNS)]
    # Each host that an error passes adds the same beginning.
    return (telling or lines or [type(error).__name__])[0].rpartition("aborted by: ")[2].rstrip(".:")


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process where an error leaves the block and it is one of several hosts, the loss of another among them.

    At once, as its threads may wait for hosts that are gone and an orderly end would wait for them. The exit status is
    75 for a lost host, 2 for another UserError or an OSError, 130 for Ctrl-C, and 1 for anything else. With one host
    errors pass.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        loss = lost(error)
        if loss is None and context.context().coordination_service is None:
            raise
        _end(loss or error)


def _end(error: BaseException) -> NoReturn:
    # As kseg.cli.run ends a command.
    kinds = {HostLost: LOST_STATUS, UserError: 2, OSError: 2, KeyboardInterrupt: 130, BaseException: 1}
    if isinstance(error, UserError | OSError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(next(status for kind, status in kinds.items() if isinstance(error, kind)))
