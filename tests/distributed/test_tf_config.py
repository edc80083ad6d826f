"""TF_CONFIG as people write it, and hosts that wait for one another."""

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


@pytest.mark.parametrize(("text", "said"), [
    ("{'cluster': 1}", "is not JSON"),
    ("[1]", 'holds no "cluster"'),
    ('{"task": {"type": "worker", "index": 0}}', 'holds no "cluster"'),
    (config({}, worker(0)), 'holds no "cluster"'),
    (config(TWO, worker(0)), 'holds no "cluster"'),
    (config({"worker": "10.0.0.1:5555"}, worker(0)), "lists no addresses for 'worker'"),
    (config({"worker": []}, worker(0)), "lists no addresses for 'worker'"),
    (config({"worker": TWO, "ps": ["10.0.0.3:5555"]}, worker(0)), "names hosts as 'ps'"),
    (config({"worker": TWO, "evaluator": ["10.0.0.3:5555"]}, worker(0)), "names hosts as 'evaluator'"),
    (config({"chief": TWO}, worker(0)), "2 hosts as 'chief'"),
    (config({"worker": [TWO[0], "10.0.0.2"]}, worker(0)), "'10.0.0.2', which is no HOST:PORT"),
    (config({"worker": [TWO[0], "10.0.0.2:70000"]}, worker(0)), "'10.0.0.2:70000', which is no HOST:PORT"),
    (config({"worker": [TWO[0], "grpc://10.0.0.2:1"]}, worker(0)), "'grpc://10.0.0.2:1', which is no HOST:PORT"),
    (config({"worker": [TWO[0], 5555]}, worker(0)), "5555, which is no HOST:PORT"),
    (config({"worker": [TWO[0], TWO[0]]}, worker(0)), "10.0.0.1:5555 more than once"),
    (config({"chief": [TWO[0]], "worker": [TWO[0]]}, worker(0)), "10.0.0.1:5555 more than once"),
    (json.dumps({"cluster": {"worker": TWO}}), "says nothing of this host"),
    (config({"worker": TWO}, {"type": "worker"}), "says nothing of this host"),
    (config({"worker": TWO}, worker(2)), "'worker' 2, and \"cluster\" has worker 0 to 1"),
    (config({"worker": TWO}, worker(-1)), "'worker' -1"),
    (config({"worker": TWO}, worker("first")), "'worker' 'first'"),
    (config({"worker": TWO}, worker(True)), "'worker' True"),
    (config({"worker": TWO}, {"type": "chief", "index": 0}), "'chief' 0, and"),
])
def test_what_is_wrong_is_said_with_the_value(text, said):
    with pytest.raises(ConfigError) as error:
        tf_config.read(text)
    assert said in str(error.value)
    assert text in str(error.value)


def test_hosts_and_this_ones_place_are_read(monkeypatch):
    found = tf_config.read(config({"worker": TWO}, worker(1)))
    assert found == Cluster((("worker", 0, TWO[0]), ("worker", 1, TWO[1])), 1)
    assert found.names == ("worker 0 (10.0.0.1:5555)", "worker 1 (10.0.0.2:5555)")
    # The chief comes first, wherever it stands; other keys and an index as text are some systems' own.
    found = tf_config.read(json.dumps({"cluster": {"worker": TWO, "chief": ["[fe80::1]:1"]}, "environment": "cloud",
                                      "task": worker("0")}))
    assert found.addresses == ("[fe80::1]:1", *TWO) and found.place == 1
    monkeypatch.setenv("TF_CONFIG", tf_config.text_of(tuple(TWO), 1))
    assert tf_config.read().place == 1
    monkeypatch.setenv("TF_CONFIG", " ")
    assert tf_config.read() is None


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_waiting_time_is_a_number_of_seconds(text, monkeypatch):
    monkeypatch.setenv("KSEG_HOSTS_WAIT", text)
    with pytest.raises(ConfigError, match=f"KSEG_HOSTS_WAIT='{text}'"):
        tf_config.waiting_time()


def clusters_of(count):
    tasks = tuple(("worker", index, f"127.0.0.1:{port}") for index, port in enumerate(free_ports(count)))
    return [Cluster(tasks, place) for place in range(count)]


def test_hosts_that_come_one_after_another_meet_and_free_their_ports():
    hosts, back = clusters_of(3), []

    def come(host):
        time.sleep(0.4 * host.place)
        # The last one is there when the first goes on.
        arrived.append(host.place)
        tf_config.meet(host, 30, pytest.fail)
        back.append((host.place, len(arrived)))

    arrived = []
    threads = [threading.Thread(target=come, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    # Those who leave first are still to be reached by the others, as TensorFlow's own servers are from then on.
    servers = []
    while len(back) < 3 and any(thread.is_alive() for thread in threads):
        for place, _ in back[len(servers):]:
            port = int(hosts[place].addresses[place].rpartition(":")[2])
            servers.append(socket.create_server(("127.0.0.1", port)))
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    for server in servers:
        server.close()
    assert sorted(back) == [(0, 3), (1, 3), (2, 3)]


def test_a_host_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(tf_config, "LINES", 0.2)
    host, lines = clusters_of(3)[0], []
    port = int(host.addresses[1].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(HostLost) as error:
        tf_config.meet(host, 1, lines.append)
    assert "1 of 3 hosts did not come within 1 s" in str(error.value)
    assert host.names[2] in str(error.value) and host.names[1] not in str(error.value)
    assert lines and host.names[2] in lines[0]


def test_a_name_that_cannot_be_resolved_is_named():
    host = Cluster((("worker", 0, clusters_of(1)[0].addresses[0]), ("worker", 1, "no-such-host.invalid:5555")), 0)
    with pytest.raises(HostLost, match=r"worker 1 \(no-such-host.invalid:5555\): \S"):
        tf_config.meet(host, 0.5, pytest.fail)


def test_a_port_that_is_taken_is_named():
    host = clusters_of(2)[0]
    port = int(host.addresses[0].rpartition(":")[2])
    with socket.create_server(("", port)), pytest.raises(ConfigError, match=f"cannot listen at port {port}, .*in use"):
        tf_config.meet(host, 0.5, pytest.fail)
