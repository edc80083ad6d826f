"""Run one command on each of several hosts, with TF_CONFIG set from a cluster manager or a list of addresses.

    python -m kseg.launch --local 2 -- -m kseg.train --config encnet_camvid
    python -m kseg.launch --hosts 10.0.0.1:5555,10.0.0.2:5555 -- -m kseg.train --config encnet_camvid
    srun python -m kseg.launch --slurm -- -m kseg.train --config encnet_camvid
    python -m kseg.launch --kubernetes SERVICE --count 4 -- -m kseg.train --config encnet_camvid

The arguments after `--` are passed to Python. One process uses all GPUs of its machine. All hosts have to see the same
working directory; each may have its own copy of the data. Exit status 75 means that a host was lost: the same command
resumes the run.

Slurm: one task per node, a restart after the loss of a node, and a checkpoint before the time limit:

    #SBATCH --nodes=4 --ntasks-per-node=1 --requeue --signal=TERM@120
    srun --kill-on-bad-exit=1 python -m kseg.launch --slurm -- -m kseg.train --config NAME --workdir /shared/runs/NAME

Kubernetes: an indexed Job, and a headless service whose name is the subdomain of its pods:

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
import socket
import sys

from kseg import cli
from kseg.distributed import cluster_managers, launcher, tf_config
from kseg.errors import ConfigError

PORT = 5555


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments before `--`."""
    parser = argparse.ArgumentParser(
        prog=cli.program("kseg.launch"),
        description=__doc__,
        usage="%(prog)s [options] -- -m kseg.train ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hosts = parser.add_mutually_exclusive_group(required=True)
    hosts.add_argument("--local", type=int, metavar="N", help="N processes on this machine, which has no GPU")
    hosts.add_argument(
        "--hosts", metavar="HOST:PORT,...", help="the addresses of all hosts, in the same order on every host"
    )
    hosts.add_argument("--slurm", action="store_true", help="the nodes of the job step that srun started")
    hosts.add_argument(
        "--kubernetes",
        metavar="SERVICE",
        help="the pods JOB-0, JOB-1, ... of an indexed Job, below its headless service",
    )
    parser.add_argument(
        "--index",
        type=int,
        metavar="I",
        help="with --hosts: the position of this host in the list, from 0 (default: the address that "
        "belongs to this machine)",
    )
    parser.add_argument("--count", type=int, metavar="N", help="with --kubernetes: the Job's completions")
    first, last = cluster_managers.SLURM_PORTS[0], cluster_managers.SLURM_PORTS[-1]
    parser.add_argument(
        "--port",
        type=int,
        metavar="PORT",
        help=f"the first port on each host (default: {PORT}; on Slurm a port from {first} to {last} "
        "that follows from the job's number)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    values, command = build_parser().parse_args(arguments[:end]), arguments[end + 1 :]
    if not command:
        raise ConfigError("a command is needed after `--`: python -m kseg.launch --local 2 -- -m kseg.train ...")
    if os.environ.get("TF_CONFIG"):
        raise ConfigError(
            f"TF_CONFIG is already set to {os.environ['TF_CONFIG']}; unset it, or run the command without kseg.launch"
        )
    if values.local is not None:
        return launcher.run_local(values.local, command)
    addresses, index = _cluster(values)
    os.environ["TF_CONFIG"] = tf_config.tf_config_text(addresses, index)
    # Mistakes are reported here rather than by the command, which would not mention kseg.launch.
    tf_config.read_cluster()
    print(f"host {index} of {len(addresses)}: {addresses[index]}", flush=True)
    # The command replaces this process, so that it receives the signals and sets the exit status.
    os.execv(sys.executable, [sys.executable, *command])


def _cluster(values: argparse.Namespace) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all hosts and the position of this one."""
    if values.hosts is not None:
        return cluster_managers.from_list(values.hosts, values.index)
    if values.slurm:
        return cluster_managers.from_slurm(os.environ, values.port, launcher.visible_gpus(os.environ))
    return cluster_managers.from_kubernetes(
        os.environ, values.kubernetes, values.count, values.port or PORT, socket.gethostname()
    )


if __name__ == "__main__":
    cli.run(main)
