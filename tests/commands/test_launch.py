"""The launcher: what it starts, which status it ends with, and that it leaves nothing running."""

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

# What stands for a training command: it waits for what its host is told to do.
HOST = """
import json, os, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def stop(number, frame):
    print("saved", number, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("there", os.getpid(), os.environ["TF_CONFIG"], flush=True)
{}
"""
SLEEP = "time.sleep(60)"


def start(*arguments, environment=()):
    return subprocess.Popen([sys.executable, "-m", "kseg.launch", *arguments], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **dict(environment)})


def there(process, count):
    """Return {host: (process number, TF_CONFIG)} as soon as all have said so."""
    found = {}
    while len(found) < count:
        host, word, number, text = process.stdout.readline().split(" ", 3)
        assert word == "there"
        found[host] = int(number), json.loads(text)
    return found


def ended(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def test_local_hosts_have_addresses_of_their_own_and_one_list():
    process = start("--local", "3", "--", "-c", HOST.format(""))
    found = there(process, 3)
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 0
    lists = [text["cluster"]["worker"] for _, text in found.values()]
    assert lists[0] == lists[1] == lists[2] and len(set(lists[0])) == 3
    assert {host: text["task"]["index"] for host, (_, text) in found.items()} == {"[0]": 0, "[1]": 1, "[2]": 2}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_goes_to_all_hosts_which_can_save(number, status):
    process = start("--local", "2", "--", "-c", HOST.format(SLEEP))
    found = there(process, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert sorted(output.splitlines()) == [f"[0] saved {number:d}", f"[1] saved {number:d}"]
    assert process.returncode == status
    assert all(ended(each) for each, _ in found.values())


@pytest.mark.parametrize(("action", "status"), [
    ("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_first_failure_is_the_status_and_ends_the_others(action, status):
    # Not even asked twice do they end: the last resort has to come.
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    script = """
import sys
from kseg.distributed import launcher
launcher.NOTICE = launcher.GRACE = 0.3
sys.exit(launcher.run_local(3, ["-c", sys.argv[1]]))
"""
    process = subprocess.Popen([sys.executable, "-c", script, HOST.format(
        f"exec({action!r} if index == 1 else {deaf!r} if index == 2 else {SLEEP!r})")],
        text=True, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    found = there(process, 3)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert all(ended(each) for each, _ in found.values())


def test_one_host_of_a_list_takes_the_launchers_place():
    process = start("--hosts", "203.0.113.1:5555,203.0.113.2:5555", "--index", "1", "--", "-c",
                    HOST.format("sys.exit(9)"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 9
    assert output.splitlines()[0] == "host 1 of 2: 203.0.113.2:5555"
    assert f"there {process.pid} " in output
    assert '"worker": ["203.0.113.1:5555", "203.0.113.2:5555"]}, "task": {"type": "worker", "index": 1}' in output


def test_slurms_variables_become_tf_config():
    process = start("--slurm", "--port", "6000", "--", "-c", HOST.format(""), environment=SLURM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert '"last:6000"]}, "task": {"type": "worker", "index": 3}' in output


@pytest.mark.parametrize(("arguments", "environment", "said"), [
    (["--local", "2"], {}, "what is to be started follows `--`"),
    (["--local", "2", "--"], {}, "what is to be started follows `--`"),
    (["--local", "0", "--", "x"], {}, "--local 0"),
    (["--local", "2", "--", "x"], {"CUDA_VISIBLE_DEVICES": "0,1"}, "uses all 2 GPUs"),
    (["--local", "2", "--", "x"], {"TF_CONFIG": "{}"}, "TF_CONFIG is set already, to {}"),
    (["--hosts", "a", "--", "x"], {}, "'a', which is no HOST:PORT"),
    (["--hosts", "a:1,a:1", "--index", "0", "--", "x"], {}, "a:1 more than once"),
    (["--slurm", "--", "x"], {}, "not set: --slurm"),
    (["--kubernetes", "kseg", "--count", "2", "--", "x"], {}, "JOB_COMPLETION_INDEX is not set"),
])
def test_what_is_wrong_is_said(arguments, environment, said, monkeypatch):
    for name, value in ({"CUDA_VISIBLE_DEVICES": "", "TF_CONFIG": ""} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        launch.main(arguments)
    assert said in str(error.value)


def test_help_lists_the_choices_and_the_files_for_clusters(capsys):
    with pytest.raises(SystemExit) as stopped:
        launch.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(each in text for each in ("--local", "--hosts", "--slurm", "--kubernetes", "#SBATCH", "kind: Job"))


def test_the_job_in_the_help_is_one():
    yaml = pytest.importorskip("yaml")
    text = launch.__doc__[launch.__doc__.index("    apiVersion"):]
    service, job = yaml.safe_load_all("\n".join(line[4:] for line in text.splitlines()))
    pod, spec = job["spec"]["template"]["spec"], job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    command = pod["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "kseg.launch"]
    values = launch._parser().parse_args(command[3:command.index("--")])
    assert values.kubernetes == service["metadata"]["name"] == pod["subdomain"]
    assert values.count == spec["completions"]
