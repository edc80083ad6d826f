"""A client that somebody else wrote, as it is published, over gRPC and REST."""

import base64
import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from serving.model_server import Server
from tests.helpers.running_servers import QUICK
from tests.helpers.small_servables import ids_of, segmentation

# OpenVINO's client of TensorFlow Serving's API; its own environment, as it needs another protobuf than TFX.
CLIENT = "ovmsclient==2023.1"
ASKS = """
import base64, json, sys
import ovmsclient

grpc_address, rest_address, path = sys.argv[1:]
picture = open(path, "rb").read()
told = {}
for kind, client in (("grpc", ovmsclient.make_grpc_client(grpc_address)),
                     ("rest", ovmsclient.make_http_client(rest_address))):
    answer = client.predict({"image_bytes": [picture]}, "bands", 3)
    png = answer["png_bytes"][0]
    png = base64.b64decode(png["b64"]) if isinstance(png, dict) else bytes(png)
    faults = []
    for call in (lambda: client.predict({"image_bytes": [b"no picture"]}, "bands", 3),
                 lambda: client.predict({"image_bytes": [picture]}, "bands", 4),
                 lambda: client.predict({"image_bytes": [picture]}, "nobody", 3)):
        try:
            call()
        except Exception as error:
            faults.append(type(error).__name__)
    told[kind] = {"png": base64.b64encode(png).decode(), "status": client.get_model_status("bands", 3),
                  "metadata": client.get_model_metadata("bands", 3), "faults": faults}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment that has the client."""
    directory = tmp_path_factory.mktemp("client") / "environment"
    for words in (["venv", "-q", "--python", sys.executable, directory],
                  ["pip", "install", "-q", "--python", directory / "bin" / "python", CLIENT]):
        done = subprocess.run([sys.executable, "-m", "uv", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{CLIENT} could not be installed: {done.stderr.strip().splitlines()[-1:]}")
    return directory / "bin" / "python"


def test_ovmsclient_works_as_it_is(python, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
    path = tmp_path / "a picture.png"
    cv2.imwrite(str(path), picture[..., ::-1])
    segmentation(tmp_path / "served", 3, shift=1)
    server = Server(replace(QUICK, rest_api_port=-1, model_name="bands", model_base_path=str(tmp_path / "served")))
    server.start()
    try:
        done = subprocess.run([python, "-c", ASKS, f"127.0.0.1:{server.grpc_port}", f"127.0.0.1:{server.rest_port}",
                               path], capture_output=True, text=True, timeout=300)
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for kind in ("grpc", "rest"):
        file = np.frombuffer(base64.b64decode(told[kind]["png"]), np.uint8)
        assert (cv2.imdecode(file, cv2.IMREAD_UNCHANGED) == ids_of(picture, 1)).all()
        assert told[kind]["status"]["3"]["state"] == "AVAILABLE"
        assert told[kind]["faults"] == ["InvalidInputError", "ModelNotFoundError", "ModelNotFoundError"]
    assert list(told["grpc"]["metadata"]["inputs"]) == ["image_bytes"]
    # Over REST it looks for OpenVINO's spelling and, not finding it, hands on what TensorFlow Serving answers.
    signatures = told["rest"]["metadata"]["metadata"]["signature_def"]["signature_def"]
    assert list(signatures["serving_default"]["inputs"]) == ["image_bytes"]
