"""Run this project's server instead of TFX's InfraValidator's container of TensorFlow Serving."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tfx.components.infra_validator import error_types
from tfx.components.infra_validator.model_server_runners import base_runner

from tests.helpers.running import ROOT

# Function with which the executor creates its runner, replaced by LocalServer.
SEAM = ("tfx.components.infra_validator.executor", "_create_model_server_runner")


class LocalServer(base_runner.BaseModelServerRunner):
    """Server of the container's model on a UNIX socket."""

    def __init__(self, model_path, serving_binary, serving_spec):
        self.base, self.name = Path(model_path).parent, serving_spec.model_name
        self.directory, self.process = tempfile.TemporaryDirectory(), None

    def __repr__(self):
        return f"LocalServer({self.base})"

    def GetEndpoint(self):
        return f"unix:{self.directory.name}/socket"

    def Start(self):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "serving.server",
                f"--model_name={self.name}",
                f"--model_base_path={self.base}",
                "--port=0",
                f"--grpc_socket_path={self.directory.name}/socket",
                "--drain_seconds=0",
                "--grace_seconds=1",
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def WaitUntilRunning(self, deadline):
        while not Path(self.directory.name, "socket").exists():
            if self.process.poll() is not None or time.time() > deadline:
                raise error_types.JobAborted("the server exited")
            time.sleep(0.1)

    def Stop(self):
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()

    def GetLogs(self):
        return None
