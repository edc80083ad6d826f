"""Starts commands as several hosts on this machine, again and again, from one process that has loaded kseg already.

Loading takes a processor 8 s for each host otherwise. Nothing of TensorFlow has run when a host is split off, so each
is a process of its own, as if it had been started alone. Lines of JSON come in: {"module", "arguments": one list for
each host, "environment", "outputs": a file each}; for each a line goes out, the processes' numbers, and when all have
ended another one, {"statuses": [...], "seconds": when each ended, on time.monotonic()'s clock}.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

PATHS = (Path(__file__).resolve().parents[1], Path(__file__).resolve().parent)


class Hosts:
    """Starts hosts, one lot after another, and waits for them."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "CUDA_VISIBLE_DEVICES": ""})
        self.numbers, self.outputs = [], []

    def start(self, module, arguments, directory, **environment):
        """Start MODULE.main(ARGUMENTS), a list for each host; outputs go to files in a new directory."""
        directory.mkdir()
        self.outputs = [directory / f"host {index}.txt" for index in range(len(arguments))]
        order = {"module": module, "arguments": [list(map(str, each)) for each in arguments],
                 "environment": environment, "outputs": list(map(str, self.outputs))}
        print(json.dumps(order), file=self.server.stdin, flush=True)
        self.numbers = json.loads(self.server.stdout.readline())

    def wait(self):
        """Return (exit statuses, outputs, when each ended) as soon as all have."""
        found = json.loads(self.server.stdout.readline())
        self.numbers = []
        return found["statuses"], [output.read_text() for output in self.outputs], found["seconds"]

    def wait_for(self, condition, what):
        """Wait until a condition is true while all hosts run; their outputs tell why it never was."""
        deadline = time.monotonic() + 300
        while not condition():
            if time.monotonic() > deadline or not all(Path(f"/proc/{number}").exists() for number in self.numbers):
                raise AssertionError("\n".join([f"no {what}", *(output.read_text() for output in self.outputs)]))
            time.sleep(0.02)

    def close(self):
        for number in self.numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, 9)
        self.server.stdin.close()
        self.server.wait(60)


def host(order, index, text):
    """Become one host: run the command and end."""
    with open(order["outputs"][index], "ab", buffering=0) as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ.update(order["environment"], TF_CONFIG=text)
    from kseg import commands

    try:
        main = importlib.import_module(order["module"]).main
        commands.run(lambda: main(order["arguments"][index]))
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    from kseg import evaluate, train  # noqa: F401  All that hosts load, once.
    from kseg.launch import free_ports

    for line in sys.stdin:
        order = json.loads(line)
        count = len(order["arguments"])
        workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
        numbers = []
        for index in range(count):
            text = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
            number = os.fork()
            if not number:
                host(order, index, text)
            numbers.append(number)
        print(json.dumps(numbers), flush=True)
        statuses, seconds = {}, {}
        while len(statuses) < count:
            number, status = os.wait()
            statuses[number], seconds[number] = os.waitstatus_to_exitcode(status), time.monotonic()
        print(json.dumps({"statuses": [statuses[number] for number in numbers],
                          "seconds": [seconds[number] for number in numbers]}), flush=True)


if __name__ == "__main__":
    main()
