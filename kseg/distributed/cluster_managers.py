"""Find the hosts of a run and this host's position among them, from Slurm, Kubernetes or a list of addresses."""

import itertools
import re
import socket
from collections.abc import Mapping

from kseg.distributed import tf_config
from kseg.errors import ConfigError

# Slurm may run several jobs on one node, so their ports depend on their job numbers. The range ends below the ports
# that operating systems assign by themselves.
SLURM_PORTS = range(15000, 32000)


def from_list(text: str, index: int | None) -> tuple[tuple[str, ...], int]:
    """Return the addresses in a list HOST:PORT,... and this host's position in it.

    If `index` is None, the position is that of the only address of this machine. Raises ConfigError for another form
    of the list, and if the position cannot be determined.
    """
    addresses = tuple(text.split(","))
    for address in addresses:
        tf_config.require_address(address, "--hosts", text)
    if index is None:
        local = [number for number, address in enumerate(addresses) if is_here(address.rpartition(":")[0].strip("[]"))]
        if len(local) != 1:
            names = ", ".join(addresses[number] for number in local) or "none"
            raise ConfigError(
                f"--index I is needed, 0 to {len(addresses) - 1}: of --hosts {text}, {names} "
                f"{'are' if len(local) > 1 else 'is'} this machine ({socket.gethostname()})"
            )
        index = local[0]
    if not 0 <= index < len(addresses):
        raise ConfigError(f"--index must be from 0 to {len(addresses) - 1} for --hosts {text}; got {index}")
    return addresses, index


def is_here(host: str) -> bool:
    """Return whether a host name or an address belongs to this machine."""
    try:
        infos = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in infos:
        # A socket can be bound to this machine's own addresses only.
        try:
            with socket.socket(family, kind, protocol) as bound:
                bound.bind(address)
            return True
        except OSError:
            continue
    return False


def from_slurm(environment: Mapping[str, str], port: int | None, gpus: int) -> tuple[tuple[str, ...], int]:
    """Return the addresses of all tasks of a Slurm job step, node by node, and this task's position.

    Args:
        environment: contains Slurm's variables.
        port: the first port on each node; None: a port that follows from the job's number.
        gpus: number of GPUs of this node.

    Raises:
        ConfigError: srun did not start this process, or a node with GPUs has several tasks.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_JOB_ID")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set: --slurm is for tasks that srun starts, also inside an sbatch "
            "script: `srun python -m kseg.launch --slurm -- ...`"
        )
    nodes, tasks = expand_nodes(environment[names[0]]), expand_counts(environment[names[1]])
    node, local, job = (_number(environment, name) for name in names[2:])
    if len(nodes) != len(tasks) or not (node < len(nodes) and local < tasks[node]):
        raise ConfigError(
            "Slurm's variables contradict each other: " + ", ".join(f"{name}={environment[name]}" for name in names)
        )
    if gpus and max(tasks) > 1:
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={environment[names[1]]}, but the nodes have GPUs, all of which "
            "one process uses; start one process on each node with --ntasks-per-node=1"
        )
    port = port or SLURM_PORTS[job % (len(SLURM_PORTS) - max(tasks))]
    addresses = tuple(f"{name}:{port + task}" for name, count in zip(nodes, tasks) for task in range(count))
    return addresses, sum(tasks[:node]) + local


def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the nodes of a Slurm node list such as a,rack[1-2]n[01-03,07]; raises ConfigError for another form.

    TensorFlow's parser accepts one pair of brackets per name only, and would import TensorFlow.
    """
    # A comma inside brackets does not separate names.
    if not re.fullmatch(r"(?:[^\s,\[\]]|\[[\d,-]+\])+(?:,(?:[^\s,\[\]]|\[[\d,-]+\])+)*", text):
        raise ConfigError(f"a list of nodes must be like a,n[01-03,07]; got {text!r}")
    nodes: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = [
            _expand_ranges(part[1:-1], text) if part.startswith("[") else [part]
            for part in re.findall(r"\[[^\]]*\]|[^\[]+", name)
        ]
        nodes += map("".join, itertools.product(*parts))
    return tuple(nodes)


def _expand_ranges(ranges: str, text: str) -> list[str]:
    numbers = []
    for part in ranges.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (ends[1], ends[2] or ends[1]) if ends else ("1", "0")
        if int(last) < int(first):
            raise ConfigError(f"a list of nodes must be like a,n[01-03,07]; {part!r} in {text!r} is not a range")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers


def expand_counts(text: str) -> tuple[int, ...]:
    """Return the number of tasks of each node from Slurm's form 2(x3),1; raises ConfigError for another form."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE must be like 2(x3),1; got {text!r}")
    return tuple(count for part in parts for count in [int(part[1])] * int(part[2] or 1))


def from_kubernetes(
    environment: Mapping[str, str], service: str, count: int | None, port: int, hostname: str
) -> tuple[tuple[str, ...], int]:
    """Return the addresses JOB-INDEX.SERVICE:PORT of all pods of an indexed Job, and this pod's position.

    Args:
        environment: contains JOB_COMPLETION_INDEX.
        service: name of the headless service.
        count: the Job's completions.
        port: the port on every pod.
        hostname: this pod's host name, JOB-INDEX.

    Raises:
        ConfigError: this process does not run in a pod of such a Job.
    """
    if not environment.get("JOB_COMPLETION_INDEX"):
        raise ConfigError(
            "JOB_COMPLETION_INDEX is not set: --kubernetes is for pods of a Job with completionMode: Indexed"
        )
    index = _number(environment, "JOB_COMPLETION_INDEX")
    if count is None or count < 1:
        raise ConfigError("--kubernetes needs --count N, the Job's completions, which must equal its parallelism")
    if index >= count:
        raise ConfigError(f"--count must be the Job's completions: JOB_COMPLETION_INDEX={index} is not below {count}")
    job, hyphen, number = hostname.partition(".")[0].rpartition("-")
    if not hyphen or number != str(index):
        raise ConfigError(
            f"this pod's host name is {hostname}, not JOB-{index}; remove hostname from the Job's template"
        )
    return tuple(f"{job}-{other}.{service}:{port}" for other in range(count)), index


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{name} must be a number, got {text!r}")
    return int(text)
