"""Read TF_CONFIG, which lists the hosts of a run, and wait until all of them have started; imports no TensorFlow.

    {"cluster": {"worker": ["10.0.0.1:5555", "10.0.0.2:5555"]}, "task": {"type": "worker", "index": 0}}

Every host has the same list and its own task. kseg.launch sets the variable.
"""

import contextlib
import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from kseg.errors import ConfigError, UserError

EXAMPLE = '{"cluster": {"worker": ["10.0.0.1:5555", "10.0.0.2:5555"]}, "task": {"type": "worker", "index": 0}}'
# The hosts are ordered by job, and the first host is the chief, which reports and writes.
JOBS = ("chief", "worker")
# Seconds that hosts wait for each other, unless the environment variable sets another number. Pods and nodes may start
# minutes after one another.
WAIT, WAIT_VARIABLE = 600.0, "KSEG_HOSTS_WAIT"
# Seconds between two attempts to reach a host, of one attempt, and between two reports of missing hosts.
PAUSE, PATIENCE, REPORT_EVERY = 0.5, 3.0, 30.0


class HostLost(UserError):
    """One of several hosts did not start or is gone; the job has to be restarted."""


class Cluster(NamedTuple):
    """The hosts of a run in order, as (job, index in the job, address), and the position of this host."""

    tasks: tuple[tuple[str, int, str], ...]
    position: int

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts' names in messages."""
        return tuple(f"{job} {index} ({address})" for job, index, address in self.tasks)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for _, _, address in self.tasks)


def tf_config_text(addresses: tuple[str, ...], index: int) -> str:
    """Return TF_CONFIG for one of several workers."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def read_cluster(text: str | None = None) -> Cluster | None:
    """Return the hosts listed in TF_CONFIG, by default the environment variable, or None if it is empty.

    Raises ConfigError with the text and an example if it is incomplete or contradictory.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    return _parse(text) if text.strip() else None


# The training loop asks at every step.
@functools.lru_cache
def _parse(text: str) -> Cluster:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise _malformed(f"is not JSON ({error})", text) from None
    if not isinstance(values, dict) or not isinstance(values.get("cluster"), dict) or not values["cluster"]:
        raise _malformed('contains no "cluster" with lists of hosts', text)
    tasks = _parse_tasks(values["cluster"], text)
    return Cluster(tasks, _position_of(values.get("task"), tasks, text))


def _parse_tasks(jobs: dict, text: str) -> tuple[tuple[str, int, str], ...]:
    for job, addresses in jobs.items():
        if job not in JOBS:
            raise _malformed(
                f"has the job {job!r}; all hosts train alike, and their job is {' or '.join(map(repr, JOBS))}", text
            )
        if not isinstance(addresses, list) or not addresses:
            raise _malformed(f"lists no addresses for {job!r}", text)
        for address in addresses:
            require_address(address, "TF_CONFIG", text)
    if len(jobs.get("chief", ())) > 1:
        raise _malformed(f"lists {len(jobs['chief'])} hosts as 'chief'; there can be one", text)
    tasks = tuple((job, index, address) for job in JOBS for index, address in enumerate(jobs.get(job, ())))
    addresses = [address for _, _, address in tasks]
    repeated = sorted({address for address in addresses if addresses.count(address) > 1})
    if repeated:
        raise _malformed(f"lists {', '.join(repeated)} more than once", text)
    return tasks


def require_address(address: object, where: str, text: str) -> None:
    """Raise ConfigError if an address is not HOST:PORT with a port from 1 to 65535."""
    match = isinstance(address, str) and re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\],]+):(\d{1,5})", address)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise ConfigError(f"{where} lists {address!r}, which is not HOST:PORT, such as 10.0.0.1:5555: {text}")


def _position_of(task: object, tasks: tuple[tuple[str, int, str], ...], text: str) -> int:
    if not isinstance(task, dict) or task.get("type") is None or task.get("index") is None:
        raise _malformed('does not identify this host: "task" with "type" and "index" is missing', text)
    job, index = task["type"], task["index"]
    # Some systems write the index as text.
    if isinstance(index, str) and index.isascii() and index.isdecimal():
        index = int(index)
    positions = [position for position, (name, number, _) in enumerate(tasks) if (name, number) == (job, index)]
    if not positions or isinstance(index, bool):
        ranges = ", ".join(
            f"{name} 0 to {max(number for other, number, _ in tasks if other == name)}"
            for name in JOBS
            if any(other == name for other, _, _ in tasks)
        )
        raise _malformed(f'identifies this host as {job!r} {index!r}, but "cluster" has {ranges}', text)
    return positions[0]


def _malformed(reason: str, text: str) -> ConfigError:
    return ConfigError(f"TF_CONFIG {reason}: {text}\nExample for the first of two hosts: {EXAMPLE}")


def host_wait_seconds() -> float:
    """Return how many seconds hosts wait for each other; raises ConfigError for a wrong environment variable."""
    text = os.environ.get(WAIT_VARIABLE, str(WAIT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{WAIT_VARIABLE} must be a number of seconds above 0, such as {WAIT:g}; got {text!r}")
    return seconds


def wait_for_all_hosts(cluster: Cluster, seconds: float, report: Callable[[str], None]) -> None:
    """Wait until every host of a cluster has called this function; afterwards this host's port is free again.

    Each host listens on its port until it has reached all others on theirs. Without this meeting, a host that is late
    could not be distinguished from one that will never start, because TensorFlow's own start waits forever.

    Raises:
        HostLost: not all hosts were reached within `seconds`; names them with the reasons.
        ConfigError: this host's port is in use.
    """
    deadline = time.monotonic() + seconds
    missing = {position: "" for position in range(len(cluster.tasks)) if position != cluster.position}
    reported = time.monotonic()
    with _listening(cluster.addresses[cluster.position], deadline), ThreadPoolExecutor(16) as pool:
        while True:
            reasons = pool.map(lambda position: _connection_fault(cluster.addresses[position]), missing)
            missing = {position: reason for position, reason in zip(list(missing), reasons) if reason}
            if not missing:
                return
            names = ", ".join(f"{cluster.names[position]}: {reason}" for position, reason in missing.items())
            if time.monotonic() > deadline:
                raise HostLost(
                    f"{len(missing)} of {len(cluster.tasks)} hosts did not start within {seconds:g} s "
                    f"({WAIT_VARIABLE}): {names}. Run the same command on each host"
                )
            if time.monotonic() - reported > REPORT_EVERY:
                reported = time.monotonic()
                report(f"waiting for {len(missing)} of {len(cluster.tasks)} hosts: {names}")
            time.sleep(PAUSE)


@contextlib.contextmanager
def _listening(address: str, deadline: float) -> Iterator[None]:
    """Listen on the port of an address, which a previous run of this host may still hold for a moment."""
    port = int(address.rpartition(":")[2])
    dualstack = socket.has_dualstack_ipv6()
    while True:
        try:
            # The kernel completes connections up to the backlog, so nothing has to accept them.
            listener = socket.create_server(
                ("", port),
                family=socket.AF_INET6 if dualstack else socket.AF_INET,
                backlog=4096,
                dualstack_ipv6=dualstack,
            )
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"cannot listen on port {port}, which TF_CONFIG assigns to this host as {address}: {error.strerror}"
                ) from None
            time.sleep(PAUSE)
    with listener:
        yield


def _connection_fault(address: str) -> str:
    """Return why an address cannot be reached, or an empty text."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as connection:
            # Without a listener, a connection within one machine can happen to connect to itself.
            return "nobody listens" if connection.getsockname() == connection.getpeername() else ""
    except OSError as error:
        return error.strerror or str(error)
