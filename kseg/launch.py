"""Starts one command on each of several hosts, by setting TF_CONFIG from what a cluster manager tells or a list.

    python -m kseg.launch --local 2 -- -m kseg.train --config encnet_camvid
    python -m kseg.launch --hosts 10.0.0.1:5555,10.0.0.2:5555 -- -m kseg.train --config encnet_camvid
    srun python -m kseg.launch --slurm -- -m kseg.train --config encnet_camvid
    python -m kseg.launch --kubernetes SERVICE --count 4 -- -m kseg.train --config encnet_camvid

What follows `--` is given to Python. One process uses all GPUs of its machine. All hosts have to see the working
directory; the data may lie on each. With exit status 75 a host was lost, and the same command continues.

Slurm: one task on each node, a new start after the loss of a node, and a checkpoint when the time is over:

    #SBATCH --nodes=4 --ntasks-per-node=1 --requeue --signal=TERM@120
    srun --kill-on-bad-exit=1 python -m kseg.launch --slurm -- -m kseg.train --config NAME --workdir /shared/runs/NAME

Kubernetes: an indexed Job and a headless service whose name its pods have as their subdomain:

    apiVersion: v1
    kind: Service
    metadata: {name: kseg}
    spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {job-name: camvid}}
    ---
    apiVersion: batch/v1
    kind: Job
    metadata: {name: camvid}
    spec:
      completions: 4
      parallelism: 4
      completionMode: Indexed
      backoffLimit: 100
      template:
        spec:
          subdomain: kseg
          restartPolicy: OnFailure
          terminationGracePeriodSeconds: 120
          containers:
            - name: train
              image: IMAGE
              command: [python, -m, kseg.launch, --kubernetes, kseg, --count, "4", --,
                        -m, kseg.train, --config, NAME, --workdir, /shared/runs/NAME]
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from kseg import cli
from kseg.distributed import cluster_managers, tf_config
from kseg.errors import ConfigError
from kseg.system.signals import Signals

PORT = 5555
# Seconds for the others to notice that one has failed, and for them to end when they are told to.
NOTICE, GRACE = 45.0, 30.0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    values, command = _parser().parse_args(arguments[:end]), arguments[end + 1:]
    if not command:
        raise ConfigError("what is to be started follows `--`: python -m kseg.launch --local 2 -- -m kseg.train ...")
    if os.environ.get("TF_CONFIG"):
        raise ConfigError(f"TF_CONFIG is set already, to {os.environ['TF_CONFIG']}; unset it, or start the command "
                          "without kseg.launch")
    if values.local is not None:
        return run_local(values.local, command)
    addresses, index = _cluster(values)
    os.environ["TF_CONFIG"] = tf_config.text_of(addresses, index)
    # Checked here, where it is made.
    tf_config.read()
    print(f"host {index} of {len(addresses)}: {addresses[index]}", flush=True)
    # In this process's place: signals and the exit status are the command's own.
    os.execv(sys.executable, [sys.executable, *command])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kseg.launch", description=__doc__,
                                     usage="%(prog)s [options] -- -m kseg.train ...",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--local", type=int, metavar="N", help="N processes on this machine, which has no GPU")
    where.add_argument("--hosts", metavar="HOST:PORT,...", help="the addresses of all hosts, in one order everywhere")
    where.add_argument("--slurm", action="store_true", help="the nodes of the job step that srun started")
    where.add_argument("--kubernetes", metavar="SERVICE",
                       help="the pods JOB-0, JOB-1, ... of an indexed Job below its headless service")
    parser.add_argument("--index", type=int, metavar="I",
                        help="with --hosts: which of them this one is, from 0; by default the one whose address is "
                             "this machine's")
    parser.add_argument("--count", type=int, metavar="N", help="with --kubernetes: the Job's completions")
    parser.add_argument("--port", type=int, metavar="PORT",
                        help=f"the first port on each host (default: {PORT}; on Slurm one of "
                             f"{cluster_managers.SLURM_PORTS[0]} to {cluster_managers.SLURM_PORTS[-1]} by the job's number)")
    return parser


def _cluster(values: argparse.Namespace) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all hosts, and which of them this one is."""
    if values.hosts is not None:
        return cluster_managers.from_list(values.hosts, values.index)
    if values.slurm:
        return cluster_managers.from_slurm(os.environ, values.port, visible_gpus(os.environ))
    return cluster_managers.from_kubernetes(os.environ, values.kubernetes, values.count, values.port or PORT,
                                    socket.gethostname())


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


if __name__ == "__main__":
    cli.run(main)
