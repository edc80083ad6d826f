"""The hosts of a run and this one's place among them, from what Slurm, Kubernetes or a list of addresses tells."""

import itertools
import re
import socket
from collections.abc import Mapping

from kseg.distributed import tf_config
from kseg.errors import ConfigError

# Slurm may give one node to several jobs: their ports differ by their numbers, below those that systems give away.
SLURM_PORTS = range(15000, 32000)


def from_list(text: str, index: int | None) -> tuple[tuple[str, ...], int]:
    """Return the addresses in a list HOST:PORT,... and this host's index; raises ConfigError for anything else."""
    addresses = tuple(text.split(","))
    for address in addresses:
        tf_config.require_address(address, "--hosts", text)
    if index is None:
        own = [number for number, address in enumerate(addresses) if is_here(address.rpartition(":")[0].strip("[]"))]
        if len(own) != 1:
            found = ", ".join(addresses[number] for number in own) or "none"
            raise ConfigError(f"--index I is needed, 0 to {len(addresses) - 1}: of --hosts {text}, {found} "
                              f"{'are' if len(own) > 1 else 'is'} this machine ({socket.gethostname()})")
        index = own[0]
    if not 0 <= index < len(addresses):
        raise ConfigError(f"--index {index} is none of the {len(addresses)} hosts of {text}; the first is 0")
    return addresses, index


def is_here(host: str) -> bool:
    """Return whether a name or an address is this machine's."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        # Only a machine's own addresses can be taken.
        try:
            with socket.socket(family, kind, protocol) as taken:
                taken.bind(address)
            return True
        except OSError:
            continue
    return False


def from_slurm(environment: Mapping[str, str], port: int | None, gpus: int) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all tasks of a Slurm job step, node by node, and which of them this one is.

    Raises ConfigError outside of a step, and where a node with GPUs has several tasks.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_JOB_ID")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not set: --slurm is for tasks that srun has started, "
                          "`srun python -m kseg.launch --slurm -- ...`, also inside of an sbatch script")
    nodes, tasks = expand_nodes(environment[names[0]]), expand_counts(environment[names[1]])
    node, local, job = (_number(environment, name) for name in names[2:])
    if len(nodes) != len(tasks) or not (node < len(nodes) and local < tasks[node]):
        raise ConfigError("Slurm's variables do not fit together: "
                          + ", ".join(f"{name}={environment[name]}" for name in names))
    if gpus and max(tasks) > 1:
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={environment[names[1]]}, and the nodes have GPUs: one process "
                          "uses all of a node; start one on each, with --ntasks-per-node=1")
    port = port or SLURM_PORTS[job % (len(SLURM_PORTS) - max(tasks))]
    addresses = tuple(f"{name}:{port + task}" for name, count in zip(nodes, tasks) for task in range(count))
    return addresses, sum(tasks[:node]) + local


def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the nodes of a list as Slurm writes it, such as a,rack[1-2]n[01-03,07]; raises ConfigError otherwise.

    TensorFlow's own reader takes one pair of brackets in a name and needs TensorFlow to be loaded.
    """
    # A comma inside brackets is no end of a name.
    if not re.fullmatch(r"(?:[^\s,\[\]]|\[[\d,-]+\])+(?:,(?:[^\s,\[\]]|\[[\d,-]+\])+)*", text):
        raise ConfigError(f"{text!r} is no list of nodes, such as a,n[01-03,07]")
    found: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = [_expand_range(part[1:-1], text) if part.startswith("[") else [part]
                 for part in re.findall(r"\[[^\]]*\]|[^\[]+", name)]
        found += map("".join, itertools.product(*parts))
    return tuple(found)


def _expand_range(ranges: str, text: str) -> list[str]:
    found = []
    for each in ranges.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", each)
        first, last = (ends[1], ends[2] or ends[1]) if ends else ("1", "0")
        if int(last) < int(first):
            raise ConfigError(f"{text!r} is no list of nodes: {each!r} is no range")
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def expand_counts(text: str) -> tuple[int, ...]:
    """Return the tasks of each node from Slurm's 2(x3),1; raises ConfigError where it is something else."""
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", each) for each in text.split(",")]
    if not all(found):
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is no list of counts, such as 2(x3),1")
    return tuple(count for each in found for count in [int(each[1])] * int(each[2] or 1))


def from_kubernetes(environment: Mapping[str, str], service: str, count: int | None, port: int,
                    hostname: str) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all pods of an indexed Job, JOB-INDEX.SERVICE:PORT, and which of them this one is.

    The Job's name is what stands before the index in this pod's host name. Raises ConfigError elsewhere.
    """
    if not environment.get("JOB_COMPLETION_INDEX"):
        raise ConfigError("JOB_COMPLETION_INDEX is not set: --kubernetes is for pods of a Job with "
                          "completionMode: Indexed")
    index = _number(environment, "JOB_COMPLETION_INDEX")
    if count is None or count < 1:
        raise ConfigError("--kubernetes needs --count N, the Job's completions, which have to be its parallelism too")
    if index >= count:
        raise ConfigError(f"JOB_COMPLETION_INDEX={index}, and --count {count} has 0 to {count - 1}; it has to be the "
                          "Job's completions")
    job, mark, number = hostname.partition(".")[0].rpartition("-")
    if not mark or number != str(index):
        raise ConfigError(f"this pod's host name is {hostname}, not JOB-{index}; leave hostname out of the Job's "
                          "template")
    return tuple(f"{job}-{other}.{service}:{port}" for other in range(count)), index


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{name}={text!r} is no number")
    return int(text)
