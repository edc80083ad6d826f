"""Messages of several hosts about each other, and a single host; tests/training/test_several_hosts.py runs several."""

import pytest
import tensorflow as tf

from kseg.distributed import hosts, tf_config
from kseg.errors import ConfigError, DataError, UserError

NAMES = tuple(f"worker {index} (h:{index})" for index in range(6))


def test_differences_name_each_value_with_its_hosts():
    facts = [{"a": "1", "b": "2", "c": "3"} for _ in NAMES]
    assert hosts.differences(NAMES, facts) == []
    facts[4]["b"] = "5"
    del facts[0]["c"]
    assert hosts.differences(NAMES, facts) == [
        "  b: 2 on worker 0 (h:0), worker 1 (h:1), worker 2 (h:2) and 2 more; 5 on worker 4 (h:4)",
        "  c: unknown on worker 0 (h:0); 3 on worker 1 (h:1), worker 2 (h:2), worker 3 (h:3) and 2 more",
    ]


def test_one_host_needs_no_others(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = hosts.claim_hosts()
    assert (hosts.num_hosts(strategy), hosts.host_index(strategy), hosts.is_chief(strategy)) == (1, 0, True)
    hosts.require_agreement(strategy, {"a": "1"})
    assert hosts.on_chief(strategy, lambda: strategy) is strategy
    with pytest.raises(DataError, match="^bad$"):
        hosts.on_chief(strategy, fail)
    # TF_CONFIG may list a single host.
    monkeypatch.setenv("TF_CONFIG", tf_config.tf_config_text(("h:1",), 0))
    assert hosts.num_hosts(hosts.claim_hosts()) == 1


def fail():
    raise DataError("bad")


def test_errors_of_one_host_are_raised():
    with pytest.raises(DataError, match="^bad$"), hosts.exit_on_host_loss():
        fail()
    with pytest.raises(tf.errors.UnavailableError), hosts.exit_on_host_loss():
        raise aborted("Collective ops is aborted by: nobody")


def aborted(message):
    return tf.errors.UnavailableError(None, None, message)


def test_a_malformed_tf_config_and_replicas_on_several_hosts_are_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ConfigError, match="TF_CONFIG"):
        hosts.claim_hosts()
    monkeypatch.setenv("TF_CONFIG", tf_config.tf_config_text(("h:1", "h:2"), 0))
    with pytest.raises(ConfigError, match="--cpu-replicas.*TF_CONFIG"):
        hosts.claim_hosts(2)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Graph execution error:\n\nCollective ops is aborted by: recvmsg:Connection reset by peer\nAdditional GRPC "
            "error information from remote target /job:worker/replica:0/task:2 while calling "
            "/tensorflow.WorkerService/RecvBuf:",
            r"connection to worker 2 \(h:3\) .*: recvmsg:Connection reset by peer\. ",
        ),
        (
            "Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy "
            "(stopped sending heartbeats):\n/job:worker/replica:0/task:1\n",
            r"no heartbeat from worker 1 \(h:2\) for 20 s: ",
        ),
        # This host's own name does not identify the lost host.
        (
            "Collective ops is aborted by: Socket closed\nremote target /job:worker/replica:0/task:0 while calling x",
            "connection to another host .*: Socket closed",
        ),
    ],
)
def test_errors_of_steps_identify_a_lost_host(message, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config.tf_config_text(("h:1", "h:2", "h:3"), 0))
    monkeypatch.setattr(hosts.context.context(), "_coordination_service_config", object())
    with pytest.raises(tf_config.HostLost, match=expected) as error:
        raise hosts.host_loss(aborted(message))
    assert "same command" in str(error.value)
    # A step may raise other errors as well.
    assert hosts.host_loss(aborted("Failed to get element: the tf.data service at h:7 does not answer")) is None
    assert hosts.host_loss(tf.errors.InvalidArgumentError(None, None, "Collective shape mismatch")) is None
    assert hosts.host_loss(DataError("Collective ops is aborted by a file")) is None


def test_errors_of_other_hosts_keep_their_class():
    kinds = [tf_config.HostLost, hosts.HostsDisagree, DataError, UserError]
    assert [type(hosts._error_of(kind.__name__, "text")) for kind in kinds] == kinds
    # A class of a module that is not loaded here becomes a UserError.
    assert type(hosts._error_of("Strange", "text")) is UserError and str(hosts._error_of("Strange", "text")) == "text"
