"""Run python -m serving.server in a process on free ports; Linux."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measured_process import ROOT

# Loading and warming up may take long on a busy machine.
START_SECONDS = 300.0
STOP_SECONDS = 60.0
# Flags of the documentation and the manifests for a server on CPUs.
CPUS = len(os.sched_getaffinity(0))
SHIPPED = ("--tensorflow_intra_op_parallelism=1", f"--tensorflow_inter_op_parallelism={CPUS}")


class ServedProcess:
    """A server of the versions in a directory.

    The constructor raises RuntimeError with the end of the server's output if the server does not start.
    """

    def __init__(self, name: str, base: Path, *flags: str):
        self.name = name
        self.log = tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="replace", suffix=".log")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                "-m",
                "serving.server",
                f"--model_name={name}",
                f"--model_base_path={base}",
                "--port=-1",
                "--rest_api_port=-1",
                "--log_requests=false",
                *flags,
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            self.grpc, self.rest = self._addresses()
        except BaseException:
            self.process.kill()
            raise

    def _addresses(self) -> tuple[str, str]:
        """Wait until the server answers, and return HOST:PORT of gRPC and of REST."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            text = self.output()
            matches = [re.search(pattern, text) for pattern in (r"gRPC at (\S+:\d+)", r"REST at http://([^/\s]+)/")]
            if all(matches):
                return tuple(match[1] for match in matches)
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with status {self.process.returncode}:\n{text[-2000:]}")
            time.sleep(0.1)
        raise RuntimeError(f"the server does not answer after {START_SECONDS:.0f} s:\n{self.output()[-2000:]}")

    def output(self) -> str:
        """Return the server's output so far."""
        return Path(self.log.name).read_text(encoding="utf-8", errors="replace")

    def resident(self) -> int:
        """Return the server's resident bytes, or 0 if it has exited."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return 0
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(match[1]) * 1024 if match else 0

    def stop(self) -> int:
        """Stop the server by SIGTERM, as container runtimes do, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.log.close()
