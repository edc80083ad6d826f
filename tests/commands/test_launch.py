"""Launch processes: their environment, the exit status, and no process left running."""

import json
import os
import signal
import subprocess
import sys

import pytest

from kseg import launch
from kseg.errors import ConfigError
from tests.distributed.test_cluster_managers import SLURM
from tests.helpers.running import ROOT

# Replaces a training command; it reports its start and then does what the test inserts.
HOST = """
import json, os, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def stop(number, frame):
    print("saved", number, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("started", os.getpid(), os.environ["TF_CONFIG"], flush=True)
{}
"""
SLEEP = "time.sleep(60)"


def start(*arguments, environment=()):
    return subprocess.Popen(
        [sys.executable, "-m", "kseg.launch", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **dict(environment)},
    )


def wait_for_start(process, count):
    """Return {host: (process ID, TF_CONFIG)} as soon as all hosts have started."""
    hosts = {}
    while len(hosts) < count:
        host, word, number, text = process.stdout.readline().split(" ", 3)
        assert word == "started"
        hosts[host] = int(number), json.loads(text)
    return hosts


def has_exited(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def test_local_hosts_share_a_list_of_different_addresses():
    process = start("--local", "3", "--", "-c", HOST.format(""))
    hosts = wait_for_start(process, 3)
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 0
    lists = [text["cluster"]["worker"] for _, text in hosts.values()]
    assert lists[0] == lists[1] == lists[2] and len(set(lists[0])) == 3
    assert {host: text["task"]["index"] for host, (_, text) in hosts.items()} == {"[0]": 0, "[1]": 1, "[2]": 2}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_forwarded_to_all_hosts_which_save(number, status):
    process = start("--local", "2", "--", "-c", HOST.format(SLEEP))
    hosts = wait_for_start(process, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert sorted(output.splitlines()) == [f"[0] saved {number:d}", f"[1] saved {number:d}"]
    assert process.returncode == status
    assert all(has_exited(number) for number, _ in hosts.values())


@pytest.mark.parametrize(("action", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_first_failure_is_the_status_and_stops_the_others(action, status):
    # One host ignores SIGTERM, so only SIGKILL stops it.
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    script = """
import sys
from kseg.distributed import launcher
launcher.NOTICE = launcher.GRACE = 0.3
sys.exit(launcher.run_local(3, ["-c", sys.argv[1]]))
"""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            HOST.format(f"exec({action!r} if index == 1 else {deaf!r} if index == 2 else {SLEEP!r})"),
        ],
        text=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    hosts = wait_for_start(process, 3)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert all(has_exited(number) for number, _ in hosts.values())


def test_the_command_replaces_the_launcher_on_a_host_of_a_list():
    process = start(
        "--hosts", "203.0.113.1:5555,203.0.113.2:5555", "--index", "1", "--", "-c", HOST.format("sys.exit(9)")
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 9
    assert output.splitlines()[0] == "host 1 of 2: 203.0.113.2:5555"
    assert f"started {process.pid} " in output
    assert '"worker": ["203.0.113.1:5555", "203.0.113.2:5555"]}, "task": {"type": "worker", "index": 1}' in output


def test_slurm_variables_become_tf_config():
    process = start("--slurm", "--port", "6000", "--", "-c", HOST.format(""), environment=SLURM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert '"last:6000"]}, "task": {"type": "worker", "index": 3}' in output


@pytest.mark.parametrize(
    ("arguments", "environment", "part"),
    [
        (["--local", "2"], {}, "a command is needed after `--`"),
        (["--local", "2", "--"], {}, "a command is needed after `--`"),
        (["--local", "0", "--", "x"], {}, "--local must be at least 1"),
        (["--local", "2", "--", "x"], {"CUDA_VISIBLE_DEVICES": "0,1"}, "uses all 2 GPUs"),
        (["--local", "2", "--", "x"], {"TF_CONFIG": "{}"}, "TF_CONFIG is already set to {}"),
        (["--hosts", "a", "--", "x"], {}, "'a', which is not HOST:PORT"),
        (["--hosts", "a:1,a:1", "--index", "0", "--", "x"], {}, "a:1 more than once"),
        (["--slurm", "--", "x"], {}, "not set: --slurm"),
        (["--kubernetes", "kseg", "--count", "2", "--", "x"], {}, "JOB_COMPLETION_INDEX is not set"),
    ],
)
def test_wrong_arguments_are_refused(arguments, environment, part, monkeypatch):
    for name, value in ({"CUDA_VISIBLE_DEVICES": "", "TF_CONFIG": ""} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        launch.main(arguments)
    assert part in str(error.value)


def test_help_lists_the_choices_and_the_files_for_clusters(capsys):
    with pytest.raises(SystemExit) as stopped:
        launch.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("--local", "--hosts", "--slurm", "--kubernetes", "#SBATCH", "kind: Job"))


def test_the_job_in_the_help_is_consistent():
    yaml = pytest.importorskip("yaml")
    text = launch.__doc__[launch.__doc__.index("    apiVersion") :]
    service, job = yaml.safe_load_all("\n".join(line[4:] for line in text.splitlines()))
    pod, spec = job["spec"]["template"]["spec"], job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    command = pod["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "kseg.launch"]
    values = launch.build_parser().parse_args(command[3 : command.index("--")])
    assert values.kubernetes == service["metadata"]["name"] == pod["subdomain"]
    assert values.count == spec["completions"]
