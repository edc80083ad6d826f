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
import socket
import sys

from kseg import cli
from kseg.distributed import cluster_managers, launcher, tf_config
from kseg.errors import ConfigError

PORT = 5555


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
        return launcher.run_local(values.local, command)
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
        return cluster_managers.from_slurm(os.environ, values.port, launcher.visible_gpus(os.environ))
    return cluster_managers.from_kubernetes(os.environ, values.kubernetes, values.count, values.port or PORT,
                                    socket.gethostname())


if __name__ == "__main__":
    cli.run(main)
