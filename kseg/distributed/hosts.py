"""Let several hosts work as one: their strategy, the facts they must agree on, and the loss of a host.

TF_CONFIG lists the hosts (kseg.distributed.tf_config), and each host runs the same command. The first host is the
chief, which reports and writes. With one host, every function here is a plain call without communication.
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

# TensorFlow has no public interface to the heartbeat timeout, nor to the key-value store that the hosts share.
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context

from kseg.distributed import devices, tf_config
from kseg.distributed.tf_config import HostLost
from kseg.errors import ConfigError, UserError

__all__ = [
    "HostLost",
    "HostsDisagree",
    "claim_hosts",
    "exit_on_host_loss",
    "host_index",
    "host_loss",
    "host_names",
    "is_chief",
    "num_hosts",
    "on_chief",
    "raise_host_loss",
    "require_agreement",
]

Result = TypeVar("Result")

# EX_TEMPFAIL of sysexits.h: the command is correct, and a cluster manager should restart it.
LOST_STATUS = 75
# Seconds without a heartbeat until a host counts as lost. A killed host is usually noticed at once, through its broken
# connections; the heartbeat finds hosts that hang or lose power or network.
HEARTBEAT = 20
# Seconds for TensorFlow's own start after all hosts have met; it takes one second.
START = 30
# Seconds of one request for a key of the store; between requests Python handles signals.
POLL = 1.0
# Maximum number of hosts that a message names for one value.
MAX_NAMED = 3

# TensorFlow's errors identify another host by its task, or only by one of these phrases.
_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")
_HOST_LOSS_PHRASES = (
    "Collective ops is aborted",
    "stopped sending heartbeats",
    "CoordinationService",
    "coordination service",
    "remote target /job:",
)

# Numbers the exchanges between hosts. All hosts make the same exchanges in the same order, so their numbers agree.
_turns = itertools.count()


class HostsDisagree(UserError):
    """Hosts of one run were started with different configs, code or data."""


def claim_hosts(cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Return a strategy over the hosts in TF_CONFIG, or over this host's devices without it.

    It has to be called before any other use of TensorFlow. Each of several hosts waits for the others, at most for
    KSEG_HOSTS_WAIT seconds (600 by default).

    Args:
        cpu_replicas: number of virtual devices on the CPU of a single host without a GPU.

    Raises:
        ConfigError: TF_CONFIG is malformed.
        HostLost: hosts did not start in time; the message names them.
    """
    devices.require_tensorflow()
    cluster = tf_config.read_cluster()
    if cluster is None or len(cluster.tasks) < 2:
        return devices.claim_devices(cpu_replicas)
    if cpu_replicas != 1:
        raise ConfigError("--cpu-replicas is for one host, but TF_CONFIG lists several")
    devices.grow_memory()
    leader = cluster.tasks[0][0]
    jobs = [
        CoordinatedJob(name=name, num_tasks=sum(job == name for job, _, _ in cluster.tasks))
        for name in tf_config.JOBS
        if any(job == name for job, _, _ in cluster.tasks)
    ]
    tf_config.wait_for_all_hosts(cluster, tf_config.host_wait_seconds(), lambda line: print(line, file=sys.stderr))
    context.context().configure_coordination_service(
        "standalone",
        service_leader=f"/job:{leader}/replica:0/task:0",
        coordinated_jobs=jobs,
        cluster_register_timeout_in_ms=1000 * START,
        heartbeat_timeout_in_ms=1000 * HEARTBEAT,
    )
    # If a host is lost after the meeting, the leader waits forever for it and holds Python's lock meanwhile.
    faulthandler.dump_traceback_later(2 * START, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError) as error:
        raise HostLost(f"a host was lost at the start: {_first_line(error)}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()


def host_names(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
    """Return the names of a strategy's hosts in their order; one empty name for a single host."""
    cluster = tf_config.read_cluster() if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else None
    return cluster.names if cluster else ("",)


def num_hosts(strategy: tf.distribute.Strategy) -> int:
    """Return the number of a strategy's hosts."""
    return len(host_names(strategy))


def host_index(strategy: tf.distribute.Strategy) -> int:
    """Return the position of this host among a strategy's hosts, counted from 0."""
    return tf_config.read_cluster().position if num_hosts(strategy) > 1 else 0


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this host is the chief, which reports and writes."""
    return host_index(strategy) == 0


def require_agreement(strategy: tf.distribute.Strategy, facts: dict[str, str]) -> None:
    """Raise HostsDisagree, with the same message on every host, if the hosts' facts differ.

    `facts` maps what is compared to short texts (kseg.training.fingerprint). Every host has to call this function at
    the same point.
    """
    names, own = host_names(strategy), host_index(strategy)
    if len(names) == 1:
        return
    turn = f"kseg/facts/{next(_turns)}"
    _put(f"{turn}/{own}", json.dumps(facts))

    def compare() -> None:
        all_facts = [facts, *(json.loads(_get(f"{turn}/{other}")) for other in range(1, len(names)))]
        lines = differences(names, all_facts)
        if lines:
            raise HostsDisagree("\n".join(["the hosts disagree; nothing was started:", *lines]))

    on_chief(strategy, compare)


def differences(names: tuple[str, ...], all_facts: list[dict[str, str]]) -> list[str]:
    """Return a line for each fact that differs between hosts, with the hosts of each value."""
    lines = []
    for key in sorted(set().union(*all_facts)):
        hosts_of: dict[str, list[str]] = {}
        for name, facts in zip(names, all_facts, strict=True):
            hosts_of.setdefault(facts.get(key, "unknown"), []).append(name)
        if len(hosts_of) > 1:
            lines.append(
                f"  {key}: "
                + "; ".join(
                    f"{value} on {', '.join(hosts[:MAX_NAMED])}"
                    + (f" and {len(hosts) - MAX_NAMED} more" if len(hosts) > MAX_NAMED else "")
                    for value, hosts in hosts_of.items()
                )
            )
    return lines


def on_chief(strategy: tf.distribute.Strategy, action: Callable[[], Result]) -> Result | None:
    """Run an action on the chief while the other hosts wait; return its result there, and None on the others.

    If the action raises a UserError, all hosts raise it. Every host has to call this function at the same point.
    """
    hosts, own = num_hosts(strategy), host_index(strategy)
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
        # The store stops with this process, so all hosts have to read the error before.
        for other in range(1, hosts):
            _get(f"{turn}/{other}")
        raise
    _put(turn, "[]")
    return result


def _error_of(name: str, text: str) -> UserError:
    """Return another host's error; a plain UserError if its class is not loaded here."""
    return {kind.__name__: kind for kind in _subclasses(UserError)}.get(name, UserError)(text)


def _subclasses(kind: type[UserError]) -> Iterator[type[UserError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


def _put(key: str, text: str) -> None:
    try:
        context.context().set_config_key_value(key, text)
    except tf.errors.OpError as error:
        raise _to_host_loss(error) from None


def _get(key: str) -> str:
    """Wait until a host has stored a text under a key, and return it."""
    while True:
        try:
            return context.context().get_config_key_value(key, int(1000 * POLL))
        except tf.errors.DeadlineExceededError:
            pass
        except tf.errors.OpError as error:
            raise _to_host_loss(error) from None


def host_loss(error: BaseException) -> HostLost | None:
    """Return the loss of a host behind an error of a step, a variable or an input pipeline, or None."""
    if isinstance(error, HostLost):
        return error
    several = context.context().coordination_service is not None
    if (
        several
        and isinstance(error, tf.errors.OpError)
        and any(phrase in error.message for phrase in _HOST_LOSS_PHRASES)
    ):
        return _to_host_loss(error)
    return None


def raise_host_loss(strategy: tf.distribute.Strategy, error: BaseException) -> None:
    """Raise HostLost if an error of a step was caused by the loss of one of several hosts."""
    loss = host_loss(error) if num_hosts(strategy) > 1 else None
    if loss:
        raise loss from None


def _to_host_loss(error: tf.errors.OpError) -> HostLost:
    cluster = tf_config.read_cluster()
    this_host = cluster.names[cluster.position]
    by_task = {(job, str(index)): name for (job, index, _), name in zip(cluster.tasks, cluster.names)}
    lost = dict.fromkeys(
        by_task[task] for task in _TASK.findall(error.message) if by_task.get(task, this_host) != this_host
    )
    silent = "stopped sending heartbeats" in error.message
    what = (
        f"no heartbeat from {', '.join(lost)} for {HEARTBEAT} s"
        if silent and lost
        else f"the connection to {next(iter(lost))} broke"
        if lost
        else "the connection to another host broke"
    )
    return HostLost(
        f"{what}: {_first_line(error)}. If that host exited by itself, its output tells why. The saved "
        "state is complete: the same command, on the same or another number of hosts, resumes from it"
    )


def _first_line(error: tf.errors.OpError) -> str:
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    relevant = [line for line in lines if any(phrase in line for phrase in _HOST_LOSS_PHRASES)]
    # Every host that forwards an error prepends the same words.
    return (relevant or lines or [type(error).__name__])[0].rpartition("aborted by: ")[2].rstrip(".:")


@contextlib.contextmanager
def exit_on_host_loss() -> Iterator[None]:
    """Exit the process immediately if an error leaves the block on one of several hosts.

    A regular exit would wait for threads that wait for lost hosts. The exit status is 75 for a lost host, 2 for another
    UserError or an OSError, 130 for Ctrl-C, and 1 for any other error. With one host, errors are raised as usual.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        loss = host_loss(error)
        if loss is None and context.context().coordination_service is None:
            raise
        _exit_with(loss or error)


def _exit_with(error: BaseException) -> NoReturn:
    # Messages and statuses are those of kseg.cli.run.
    statuses = {HostLost: LOST_STATUS, UserError: 2, OSError: 2, KeyboardInterrupt: 130, BaseException: 1}
    if isinstance(error, UserError | OSError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(next(status for kind, status in statuses.items() if isinstance(error, kind)))
