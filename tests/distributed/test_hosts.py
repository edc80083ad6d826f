"""What several hosts say of one another, and that one host does without all of it; tests/training/test_several_hosts.py has several.
"""

import pytest
import tensorflow as tf

from kseg.distributed import hosts, tf_config
from kseg.errors import ConfigError, DataError, UserError

NAMES = tuple(f"worker {index} (h:{index})" for index in range(6))


def test_differences_name_each_value_with_its_hosts():
    found = [{"a": "1", "b": "2", "c": "3"} for _ in NAMES]
    assert hosts.differences(NAMES, found) == []
    found[4]["b"] = "5"
    del found[0]["c"]
    assert hosts.differences(NAMES, found) == [
        "  b: 2 on worker 0 (h:0), worker 1 (h:1), worker 2 (h:2) and 2 more; 5 on worker 4 (h:4)",
        "  c: not known on worker 0 (h:0); 3 on worker 1 (h:1), worker 2 (h:2), worker 3 (h:3) and 2 more"]


def test_one_host_needs_nobody(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = hosts.claim()
    assert (hosts.count(strategy), hosts.place(strategy), hosts.is_chief(strategy)) == (1, 0, True)
    hosts.agree(strategy, {"a": "1"})
    assert hosts.on_chief(strategy, lambda: strategy) is strategy
    with pytest.raises(DataError, match="^bad$"):
        hosts.on_chief(strategy, fail)
    # A TF_CONFIG of one host is one host, too.
    monkeypatch.setenv("TF_CONFIG", tf_config.text_of(("h:1",), 0))
    assert hosts.count(hosts.claim()) == 1


def fail():
    raise DataError("bad")


def test_errors_of_one_host_pass():
    with pytest.raises(DataError, match="^bad$"), hosts.ending():
        fail()
    with pytest.raises(tf.errors.UnavailableError), hosts.ending():
        raise aborted("Collective ops is aborted by: nobody")


def aborted(message):
    return tf.errors.UnavailableError(None, None, message)


def test_a_strange_tf_config_and_devices_that_hosts_do_not_share_are_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ConfigError, match="TF_CONFIG"):
        hosts.claim()
    monkeypatch.setenv("TF_CONFIG", tf_config.text_of(("h:1", "h:2"), 0))
    with pytest.raises(ConfigError, match="--cpu-replicas is for one host"):
        hosts.claim(2)


@pytest.mark.parametrize(("message", "said"), [
    ("Graph execution error:\n\nCollective ops is aborted by: recvmsg:Connection reset by peer\nAdditional GRPC error "
     "information from remote target /job:worker/replica:0/task:2 while calling /tensorflow.WorkerService/RecvBuf:",
     r"^the connection to worker 2 \(h:3\) broke: recvmsg:Connection reset by peer\. "),
    ("Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped "
     "sending heartbeats):\n/job:worker/replica:0/task:1\n",
     r"^no sign of life from worker 1 \(h:2\) for 20 s: "),
    # Its own name says nothing.
    ("Collective ops is aborted by: Socket closed\nremote target /job:worker/replica:0/task:0 while calling x",
     "^the connection to another host broke: Socket closed"),
])
def test_errors_of_steps_tell_of_a_lost_host(message, said, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config.text_of(("h:1", "h:2", "h:3"), 0))
    monkeypatch.setattr(hosts.context.context(), "_coordination_service_config", object())
    with pytest.raises(tf_config.HostLost, match=said) as error:
        raise hosts.lost(aborted(message))
    assert "same command" in str(error.value)
    # Whatever else a step may raise.
    assert hosts.lost(aborted("Failed to get element: the tf.data service at h:7 does not answer")) is None
    assert hosts.lost(tf.errors.InvalidArgumentError(None, None, "Collective shape mismatch")) is None
    assert hosts.lost(DataError("Collective ops is aborted by a file")) is None


def test_other_hosts_errors_are_raised_in_their_kind():
    kinds = [tf_config.HostLost, hosts.HostsDisagree, DataError, UserError]
    assert [type(hosts._error_of(kind.__name__, "text")) for kind in kinds] == kinds
    # Such as one of a module that is not loaded here.
    assert type(hosts._error_of("Strange", "text")) is UserError and str(hosts._error_of("Strange", "text")) == "text"
