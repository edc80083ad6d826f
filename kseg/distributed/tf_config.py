"""TF_CONFIG, which names the hosts of a run, and waiting until all of them have come; nothing of TensorFlow in it.

    {"cluster": {"worker": ["10.0.0.1:5555", "10.0.0.2:5555"]}, "task": {"type": "worker", "index": 0}}

Each host has the same list and its own task. kseg.launch sets it.
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
# The first of them leads: it reports and writes.
JOBS = ("chief", "worker")
# How many seconds the hosts that are there wait for the others, unless the environment says otherwise: pods and nodes
# may come minutes after one another.
WAIT, WAIT_VARIABLE = 600.0, "KSEG_HOSTS_WAIT"
# Seconds between two attempts to reach a host, for one attempt, and between two lines on who is missing.
PAUSE, PATIENCE, LINES = 0.5, 3.0, 30.0


class HostLost(UserError):
    """One of several hosts did not come, or is gone; the job is to be started again."""


class Cluster(NamedTuple):
    """Hosts in the order in which they are counted: their jobs, indices and addresses, and this one's place."""

    tasks: tuple[tuple[str, int, str], ...]
    place: int

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call each host."""
        return tuple(f"{job} {index} ({address})" for job, index, address in self.tasks)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for _, _, address in self.tasks)


def text_of(addresses: tuple[str, ...], index: int) -> str:
    """Return TF_CONFIG of one of several workers."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def read(text: str | None = None) -> Cluster | None:
    """Return the hosts that TF_CONFIG (by default the environment's) names; None without it.

    Raises ConfigError where it does not say what is needed, showing it and an example.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    return _read(text) if text.strip() else None


# Asked for at each step.
@functools.lru_cache
def _read(text: str) -> Cluster:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise _malformed(f"is not JSON ({error})", text) from None
    if not isinstance(values, dict) or not isinstance(values.get("cluster"), dict) or not values["cluster"]:
        raise _malformed('holds no "cluster" of host lists', text)
    tasks = _tasks(values["cluster"], text)
    return Cluster(tasks, _place(values.get("task"), tasks, text))


def _tasks(jobs: dict, text: str) -> tuple[tuple[str, int, str], ...]:
    for job, addresses in jobs.items():
        if job not in JOBS:
            raise _malformed(f"names hosts as {job!r}; all of them train alike, and are called "
                             f"{' or '.join(map(repr, JOBS))}", text)
        if not isinstance(addresses, list) or not addresses:
            raise _malformed(f"lists no addresses for {job!r}", text)
        for address in addresses:
            require_address(address, "TF_CONFIG", text)
    if len(jobs.get("chief", ())) > 1:
        raise _malformed(f"names {len(jobs['chief'])} hosts as 'chief'; one leads", text)
    tasks = tuple((job, index, address) for job in JOBS for index, address in enumerate(jobs.get(job, ())))
    addresses = [address for _, _, address in tasks]
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    if twice:
        raise _malformed(f"names {', '.join(twice)} more than once", text)
    return tasks


def require_address(address: object, where: str, text: str) -> None:
    """Raise ConfigError where an address is not HOST:PORT with a port of 1 to 65535."""
    found = isinstance(address, str) and re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\],]+):(\d{1,5})", address)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise ConfigError(f"{where} names {address!r}, which is no HOST:PORT, such as 10.0.0.1:5555: {text}")


def _place(task: object, tasks: tuple[tuple[str, int, str], ...], text: str) -> int:
    if not isinstance(task, dict) or task.get("type") is None or task.get("index") is None:
        raise _malformed('says nothing of this host: "task" with its "type" and "index" is missing', text)
    job, index = task["type"], task["index"]
    # Some systems write it as text.
    if isinstance(index, str) and index.isascii() and index.isdecimal():
        index = int(index)
    places = [place for place, (name, number, _) in enumerate(tasks) if (name, number) == (job, index)]
    if not places or isinstance(index, bool):
        counts = ", ".join(f"{name} 0 to {max(number for other, number, _ in tasks if other == name)}"
                           for name in JOBS if any(other == name for other, _, _ in tasks))
        raise _malformed(f'makes this host {job!r} {index!r}, and "cluster" has {counts}', text)
    return places[0]


def _malformed(reason: str, text: str) -> ConfigError:
    return ConfigError(f"TF_CONFIG {reason}: {text}\nOn the first of two hosts it may be: {EXAMPLE}")


def waiting_time() -> float:
    """Return how many seconds hosts wait for one another; raises ConfigError where the environment names none."""
    text = os.environ.get(WAIT_VARIABLE, str(WAIT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{WAIT_VARIABLE}={text!r} is no number of seconds, such as {WAIT:g}")
    return seconds


def meet(cluster: Cluster, seconds: float, report: Callable[[str], None]) -> None:
    """Return as soon as every host of a cluster has come here; its port is free again then.

    Each listens at its port until it has reached all others at theirs: nothing else tells a host that is late from one
    that will never come, since TensorFlow's own start waits for all without end. Raises HostLost after `seconds`,
    naming the hosts that were not reached and why; ConfigError where this host's port is taken.
    """
    deadline = time.monotonic() + seconds
    missing = {place: "" for place in range(len(cluster.tasks)) if place != cluster.place}
    said = time.monotonic()
    with _listening(cluster.addresses[cluster.place], deadline), ThreadPoolExecutor(16) as pool:
        while True:
            reasons = pool.map(lambda place: _fault(cluster.addresses[place]), missing)
            missing = {place: reason for place, reason in zip(list(missing), reasons) if reason}
            if not missing:
                return
            names = ", ".join(f"{cluster.names[place]}: {reason}" for place, reason in missing.items())
            if time.monotonic() > deadline:
                raise HostLost(f"{len(missing)} of {len(cluster.tasks)} hosts did not come within {seconds:g} s "
                               f"({WAIT_VARIABLE}): {names}. The same command has to run on each of them")
            if time.monotonic() - said > LINES:
                said = time.monotonic()
                report(f"waiting for {len(missing)} of {len(cluster.tasks)} hosts: {names}")
            time.sleep(PAUSE)


@contextlib.contextmanager
def _listening(address: str, deadline: float) -> Iterator[None]:
    """Listen at the port of an address, which an earlier run of this host may hold for a moment."""
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    while True:
        try:
            # The kernel completes connections up to the backlog, so that nobody has to take them.
            listener = socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET,
                                            backlog=4096, dualstack_ipv6=both)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"cannot listen at port {port}, which TF_CONFIG gives to this host as {address}: "
                                  f"{error.strerror}") from None
            time.sleep(PAUSE)
    with listener:
        yield


def _fault(address: str) -> str:
    """Return why an address cannot be reached; empty where it can."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as reached:
            # Where nobody listens, a connection within one machine may by chance begin where it ends.
            return "nobody listens" if reached.getsockname() == reached.getpeername() else ""
    except OSError as error:
        return error.strerror or str(error)
