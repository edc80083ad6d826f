"""Run one process per host on this machine, and stop all of them when one fails."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from kseg.distributed import tf_config
from kseg.errors import ConfigError
from kseg.system.signals import Signals

# Seconds for the other processes to notice that one has failed, and then for them to exit after SIGTERM.
NOTICE, GRACE = 45.0, 30.0


def visible_gpus(environment: Mapping[str, str]) -> int:
    """Return how many GPUs a process on this machine would use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def run_local(count: int, command: list[str]) -> int:
    """Run a command as `count` hosts on this machine, and return the exit status of the first that fails, or 0.

    Every line of output begins with its host's number. SIGTERM and SIGINT are forwarded to all processes. After a
    failure the other processes are stopped, if necessary by SIGKILL.
    """
    if count < 1:
        raise ConfigError(f"--local must be at least 1, got {count}")
    gpus = visible_gpus(os.environ)
    if gpus and count > 1:
        raise ConfigError(
            f"--local {count}: one process uses all {gpus} GPUs of this machine; run the command "
            "without kseg.launch, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
    with Signals() as signals:
        hosts = [
            subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # In a session of its own, a process does not receive a terminal's Ctrl-C in addition to the forwarded
                # SIGINT; two of them stop it without saving.
                start_new_session=True,
                env=os.environ | {"TF_CONFIG": tf_config.tf_config_text(addresses, index)},
            )
            for index in range(count)
        ]
        readers = [
            threading.Thread(target=_copy_output, args=(index, host), daemon=True) for index, host in enumerate(hosts)
        ]
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


def _copy_output(index: int, host: subprocess.Popen) -> None:
    """Print a process's lines as they arrive; one write per line keeps the lines of several processes apart."""
    for line in host.stdout:
        sys.stdout.write(f"[{index}] {line.decode(errors='replace')}")
        sys.stdout.flush()


def _wait(hosts: list[subprocess.Popen], signals: Signals) -> int:
    """Wait until all processes have exited, and return the status of the first that failed, or 0."""
    status, forwarded, terminated, failed_at = 0, False, False, 0.0
    while True:
        codes = [host.poll() for host in hosts]
        if None not in codes and not any(codes) or None not in codes and status:
            return status
        if not status and any(codes):
            # Popen returns the negative number of a signal; shells add the number to 128.
            code = next(code for code in codes if code)
            status, failed_at = code if code > 0 else 128 - code, time.monotonic()
        if signals.received is not None and not forwarded:
            forwarded = True
            _send(hosts, signals.received)
        if status and not terminated and time.monotonic() - failed_at > NOTICE:
            terminated = True
            _send(hosts, signal.SIGTERM)
        if terminated and time.monotonic() - failed_at > NOTICE + GRACE:
            _send(hosts, signal.SIGKILL)
        time.sleep(0.1)


def _send(hosts: list[subprocess.Popen], number: int) -> None:
    for host in hosts:
        if host.poll() is None:
            host.send_signal(number)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that are not in use."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
