"""Start one process per host on this machine, and stop all of them when one fails."""

from collections.abc import Mapping
from pathlib import Path
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from kseg.distributed import tf_config
from kseg.errors import ConfigError
from kseg.system.signals import Signals

# Seconds for the others to notice that one has failed, and for them to end when they are told to.
NOTICE, GRACE = 45.0, 30.0


def visible_gpus(environment: Mapping[str, str]) -> int:
    """Return how many GPUs a process here would find."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([each for each in chosen.split(",") if each.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def run_local(count: int, command: list[str]) -> int:
    """Run a command as `count` hosts on this machine and return the exit status of the first that fails, else 0.

    Each line of output begins with its host's number. SIGTERM and SIGINT are passed on to all. After a failure the
    others end, if need be by force.
    """
    if count < 1:
        raise ConfigError(f"--local {count}: at least 1 process")
    gpus = visible_gpus(os.environ)
    if gpus and count > 1:
        raise ConfigError(f"--local {count}: one process uses all {gpus} GPUs of this machine; start the command "
                          "without kseg.launch, or set CUDA_VISIBLE_DEVICES= to leave them out")
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
    with Signals() as signals:
        hosts = [subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # A session of its own: a terminal's Ctrl-C would reach it twice, and twice means at once.
            start_new_session=True, env=os.environ | {"TF_CONFIG": tf_config.text_of(addresses, index)})
            for index in range(count)]
        readers = [threading.Thread(target=_copy, args=(index, host), daemon=True)
                   for index, host in enumerate(hosts)]
        for reader in readers:
            reader.start()
        try:
            status = _wait(hosts, signals)
        finally:
            for host in hosts:
                host.kill()
        for reader in readers:
            reader.join(GRACE)
    return status


def _copy(index: int, host: subprocess.Popen) -> None:
    """Print the lines of a process as they come; in one piece, as several write at once."""
    for line in host.stdout:
        sys.stdout.write(f"[{index}] {line.decode(errors='replace')}")
        sys.stdout.flush()


def _wait(hosts: list[subprocess.Popen], signals: Signals) -> int:
    """Wait until all processes have ended; return the status of the first one that failed."""
    status, passed_on, told, failed = 0, False, False, 0.0
    while True:
        codes = [host.poll() for host in hosts]
        if None not in codes and not any(codes) or None not in codes and status:
            return status
        if not status and any(codes):
            # A process that a signal ended has its number, negative; shells add 128.
            code = next(code for code in codes if code)
            status, failed = code if code > 0 else 128 - code, time.monotonic()
        if signals.received is not None and not passed_on:
            passed_on = True
            _send(hosts, signals.received)
        if status and not told and time.monotonic() - failed > NOTICE:
            told = True
            _send(hosts, signal.SIGTERM)
        if told and time.monotonic() - failed > NOTICE + GRACE:
            _send(hosts, signal.SIGKILL)
        time.sleep(0.1)


def _send(hosts: list[subprocess.Popen], number: int) -> None:
    for host in hosts:
        if host.poll() is None:
            host.send_signal(number)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
