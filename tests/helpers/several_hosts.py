"""Start a command as several hosts on this machine, one process for each, and wait for them."""

import os
import time

from kseg.distributed.launcher import free_ports
from kseg.distributed.tf_config import tf_config_text
from tests.helpers.forks import ROOT, Forked


class Hosts:
    """Control the processes of some hosts; `outputs` are the files with their output."""

    def __init__(self, module, arguments, directory):
        """Start `python -m MODULE` with a list of arguments for each host and with outputs in a new directory."""
        directory.mkdir()
        addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(arguments)))
        self.outputs = [directory / f"host {index}.txt" for index in range(len(arguments))]
        for output in self.outputs:
            output.touch()
        self.processes = [
            Forked(
                module,
                host_arguments,
                ROOT,
                os.environ
                | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TF_CONFIG": tf_config_text(addresses, index)},
                output,
            )
            for index, (host_arguments, output) in enumerate(zip(arguments, self.outputs, strict=True))
        ]

    def wait(self, seconds=300):
        """Wait until all processes have exited; return (exit statuses, outputs, times of the exits)."""
        exits = {}

        def all_exited():
            for index, process in enumerate(self.processes):
                if process.poll() is not None:
                    exits.setdefault(index, time.monotonic())
            return len(exits) == len(self.processes)

        self._until(all_exited, "exit", seconds)
        return (
            [process.returncode for process in self.processes],
            [output.read_text() for output in self.outputs],
            [exits[index] for index in range(len(exits))],
        )

    def wait_for(self, condition, what, seconds=300):
        """Wait until a condition is true; fails if a host exits before."""
        self._until(lambda: condition() or any(process.poll() is not None for process in self.processes), what, seconds)
        if not condition():
            self._give_up(what)

    def _until(self, condition, what, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self._give_up(what)
            time.sleep(0.02)

    def _give_up(self, what):
        self.close()
        raise AssertionError("\n".join([f"no {what}", *(output.read_text() for output in self.outputs)]))

    def close(self):
        """Kill the processes that still run."""
        for process in self.processes:
            process.kill()
            process.wait()
