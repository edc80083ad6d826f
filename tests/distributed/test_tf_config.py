"""Parse TF_CONFIG as people write it, and let hosts wait for each other."""

import json
import socket
import threading
import time

import pytest

from kseg.distributed import tf_config
from kseg.distributed.launcher import free_ports
from kseg.distributed.tf_config import Cluster, HostLost
from kseg.errors import ConfigError

TWO = ["10.0.0.1:5555", "10.0.0.2:5555"]


def config(cluster, task):
    return json.dumps({"cluster": cluster, "task": task})


def worker(index):
    return {"type": "worker", "index": index}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{'cluster': 1}", "is not JSON"),
        ("[1]", 'contains no "cluster"'),
        ('{"task": {"type": "worker", "index": 0}}', 'contains no "cluster"'),
        (config({}, worker(0)), 'contains no "cluster"'),
        (config(TWO, worker(0)), 'contains no "cluster"'),
        (config({"worker": "10.0.0.1:5555"}, worker(0)), "lists no addresses for 'worker'"),
        (config({"worker": []}, worker(0)), "lists no addresses for 'worker'"),
        (config({"worker": TWO, "ps": ["10.0.0.3:5555"]}, worker(0)), "'ps'"),
        (config({"worker": TWO, "evaluator": ["10.0.0.3:5555"]}, worker(0)), "'evaluator'"),
        (config({"chief": TWO}, worker(0)), "2 hosts as 'chief'"),
        (config({"worker": [TWO[0], "10.0.0.2"]}, worker(0)), "'10.0.0.2', which is not HOST:PORT"),
        (config({"worker": [TWO[0], "10.0.0.2:70000"]}, worker(0)), "'10.0.0.2:70000', which is not HOST:PORT"),
        (config({"worker": [TWO[0], "grpc://10.0.0.2:1"]}, worker(0)), "'grpc://10.0.0.2:1', which is not HOST:PORT"),
        (config({"worker": [TWO[0], 5555]}, worker(0)), "5555, which is not HOST:PORT"),
        (config({"worker": [TWO[0], TWO[0]]}, worker(0)), "10.0.0.1:5555 more than once"),
        (config({"chief": [TWO[0]], "worker": [TWO[0]]}, worker(0)), "10.0.0.1:5555 more than once"),
        (json.dumps({"cluster": {"worker": TWO}}), '"task" with "type" and "index"'),
        (config({"worker": TWO}, {"type": "worker"}), '"task" with "type" and "index"'),
        (config({"worker": TWO}, worker(2)), "'worker' 2, but \"cluster\" has worker 0 to 1"),
        (config({"worker": TWO}, worker(-1)), "'worker' -1"),
        (config({"worker": TWO}, worker("first")), "'worker' 'first'"),
        (config({"worker": TWO}, worker(True)), "'worker' True"),
        (config({"worker": TWO}, {"type": "chief", "index": 0}), "'chief' 0, but"),
    ],
)
def test_malformed_values_are_refused_with_the_reason_and_the_text(text, part):
    with pytest.raises(ConfigError) as error:
        tf_config.read_cluster(text)
    assert part in str(error.value)
    assert text in str(error.value)


def test_hosts_and_the_position_of_this_one_are_read(monkeypatch):
    cluster = tf_config.read_cluster(config({"worker": TWO}, worker(1)))
    assert cluster == Cluster((("worker", 0, TWO[0]), ("worker", 1, TWO[1])), 1)
    assert cluster.names == ("worker 0 (10.0.0.1:5555)", "worker 1 (10.0.0.2:5555)")
    # The chief comes first in any order. Some systems add other keys, or write the index as text.
    cluster = tf_config.read_cluster(
        json.dumps({"cluster": {"worker": TWO, "chief": ["[fe80::1]:1"]}, "environment": "cloud", "task": worker("0")})
    )
    assert cluster.addresses == ("[fe80::1]:1", *TWO) and cluster.position == 1
    monkeypatch.setenv("TF_CONFIG", tf_config.tf_config_text(tuple(TWO), 1))
    assert tf_config.read_cluster().position == 1
    monkeypatch.setenv("TF_CONFIG", " ")
    assert tf_config.read_cluster() is None


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_the_waiting_time_must_be_a_number_of_seconds(text, monkeypatch):
    monkeypatch.setenv("KSEG_HOSTS_WAIT", text)
    with pytest.raises(ConfigError, match=f"KSEG_HOSTS_WAIT.*'{text}'"):
        tf_config.host_wait_seconds()


def clusters_of(count):
    tasks = tuple(("worker", index, f"127.0.0.1:{port}") for index, port in enumerate(free_ports(count)))
    return [Cluster(tasks, position) for position in range(count)]


def test_hosts_that_start_one_after_another_meet_and_free_their_ports():
    hosts, started, met = clusters_of(3), [], []

    def start(host):
        time.sleep(0.4 * host.position)
        started.append(host.position)
        tf_config.wait_for_all_hosts(host, 30, pytest.fail)
        # All hosts have started before the first one continues.
        met.append((host.position, len(started)))

    threads = [threading.Thread(target=start, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    # The other hosts can still reach those that have continued, because TensorFlow's servers listen there from then on.
    servers = []
    while len(met) < 3 and any(thread.is_alive() for thread in threads):
        for position, _ in met[len(servers) :]:
            port = int(hosts[position].addresses[position].rpartition(":")[2])
            servers.append(socket.create_server(("127.0.0.1", port)))
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    for server in servers:
        server.close()
    assert sorted(met) == [(0, 3), (1, 3), (2, 3)]


def test_a_host_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(tf_config, "REPORT_EVERY", 0.2)
    host, lines = clusters_of(3)[0], []
    port = int(host.addresses[1].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(HostLost) as error:
        tf_config.wait_for_all_hosts(host, 1, lines.append)
    assert "1 of 3 hosts did not start within 1 s" in str(error.value)
    assert host.names[2] in str(error.value) and host.names[1] not in str(error.value)
    assert lines and host.names[2] in lines[0]


def test_a_name_that_cannot_be_resolved_is_named():
    host = Cluster((("worker", 0, clusters_of(1)[0].addresses[0]), ("worker", 1, "no-such-host.invalid:5555")), 0)
    with pytest.raises(HostLost, match=r"worker 1 \(no-such-host.invalid:5555\): \S"):
        tf_config.wait_for_all_hosts(host, 0.5, pytest.fail)


def test_a_port_in_use_is_named():
    host = clusters_of(2)[0]
    port = int(host.addresses[0].rpartition(":")[2])
    with socket.create_server(("", port)), pytest.raises(ConfigError, match=f"cannot listen on port {port}, .*in use"):
        tf_config.wait_for_all_hosts(host, 0.5, pytest.fail)
