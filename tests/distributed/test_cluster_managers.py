"""Find the position in a cluster from Slurm, Kubernetes and lists of addresses."""

import pytest

from kseg.distributed import cluster_managers
from kseg.errors import ConfigError

SLURM = {
    "SLURM_STEP_NODELIST": "rack[1-2]n[08-09],last",
    "SLURM_STEP_TASKS_PER_NODE": "1(x5)",
    "SLURM_NODEID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "70001",
}


def test_slurm_nodes_are_counted_in_the_order_of_the_list():
    addresses, index = cluster_managers.from_slurm(SLURM, 5000, gpus=8)
    assert addresses == ("rack1n08:5000", "rack1n09:5000", "rack2n08:5000", "rack2n09:5000", "last:5000")
    assert index == 3


def test_slurm_tasks_on_one_node_have_different_ports():
    tasks = SLURM | {
        "SLURM_STEP_NODELIST": "b,a",
        "SLURM_STEP_TASKS_PER_NODE": "1,2",
        "SLURM_NODEID": "1",
        "SLURM_LOCALID": "1",
    }
    assert cluster_managers.from_slurm(tasks, 5000, gpus=0) == (("b:5000", "a:5000", "a:5001"), 2)
    with pytest.raises(ConfigError, match="--ntasks-per-node=1"):
        cluster_managers.from_slurm(tasks, 5000, gpus=1)


def test_slurm_jobs_that_share_nodes_have_different_ports():
    ports = {cluster_managers.from_slurm(SLURM | {"SLURM_JOB_ID": str(job)}, None, 0)[0][0] for job in range(900, 950)}
    assert len(ports) == 50
    assert all(15000 <= int(port.rpartition(":")[2]) < 32000 for port in ports)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST not set: .*srun"),
        ({"SLURM_NODEID": "5"}, "contradict each other: .*SLURM_NODEID=5"),
        ({"SLURM_LOCALID": "1"}, "contradict each other: .*SLURM_LOCALID=1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, "contradict each other"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE .*'many'"),
        ({"SLURM_NODEID": "x"}, "SLURM_NODEID .*'x'"),
    ],
)
def test_wrong_slurm_variables_are_named(changed, expected):
    with pytest.raises(ConfigError, match=expected):
        cluster_managers.from_slurm(SLURM | changed, None, 0)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("a", ["a"]),
        ("a,b-c.d", ["a", "b-c.d"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[01-03,07]", ["n01", "n02", "n03", "n07"]),
        ("n[9-11]x", ["n9x", "n10x", "n11x"]),
        ("r[1-2]n[1,3],z", ["r1n1", "r1n3", "r2n1", "r2n3", "z"]),
    ],
)
def test_node_lists_are_expanded(text, nodes):
    assert cluster_managers.expand_nodes(text) == tuple(nodes)


@pytest.mark.parametrize("text", ["", "a,,b", "n[]", "n[1", "n]1[", "n[3-1]", "n[1,]", "n[a-b]", "n[1-2-3]", "a b"])
def test_other_text_is_not_a_node_list(text):
    with pytest.raises(ConfigError, match="a list of nodes must be"):
        cluster_managers.expand_nodes(text)


def test_kubernetes_pods_are_found_below_their_service():
    environment = {"JOB_COMPLETION_INDEX": "2"}
    addresses = ("my-job-0.kseg:5555", "my-job-1.kseg:5555", "my-job-2.kseg:5555")
    for name in ("my-job-2", "my-job-2.kseg.default.svc.cluster.local"):
        assert cluster_managers.from_kubernetes(environment, "kseg", 3, 5555, name) == (addresses, 2)


@pytest.mark.parametrize(
    ("index", "count", "name", "expected"),
    [
        ("", 3, "job-2", "JOB_COMPLETION_INDEX is not set"),
        ("2", None, "job-2", "--count N"),
        ("2", 0, "job-2", "--count N"),
        ("2", 2, "job-2", "--count .* JOB_COMPLETION_INDEX=2 is not below 2"),
        ("2", 3, "worker", "host name is worker, not JOB-2"),
        ("2", 3, "job-1", "host name is job-1, not JOB-2"),
    ],
)
def test_pods_of_another_kind_are_refused(index, count, name, expected):
    with pytest.raises(ConfigError, match=expected):
        cluster_managers.from_kubernetes({"JOB_COMPLETION_INDEX": index}, "kseg", count, 5555, name)


def test_the_position_in_a_list_follows_from_the_address():
    # No machine has an address of TEST-NET-3 (RFC 5737).
    assert cluster_managers.from_list("203.0.113.1:5555,127.0.0.1:6000", None) == (
        ("203.0.113.1:5555", "127.0.0.1:6000"),
        1,
    )
    assert cluster_managers.from_list("203.0.113.1:5555,203.0.113.2:5555", 0)[1] == 0


@pytest.mark.parametrize(
    ("text", "index", "expected"),
    [
        ("203.0.113.1:5555,203.0.113.2:5555", None, "--index I is needed, 0 to 1: .* none is this machine"),
        ("127.0.0.1:1,localhost:2", None, "127.0.0.1:1, localhost:2 are this machine"),
        ("203.0.113.1:5555", 1, "--index must be from 0 to 0 .* got 1"),
        ("203.0.113.1:5555", -1, "--index .* got -1"),
        ("203.0.113.1", 0, "'203.0.113.1', which is not HOST:PORT"),
        ("203.0.113.1:5,", 0, "'', which is not HOST:PORT"),
    ],
)
def test_wrong_lists_are_refused(text, index, expected):
    with pytest.raises(ConfigError, match=expected):
        cluster_managers.from_list(text, index)
