"""Run a third-party client, as published, against the server over gRPC and REST."""

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

# OpenVINO's client of TensorFlow Serving's API. It has its own environment because it needs another protobuf than TFX.
CLIENT = "ovmsclient==2023.1"
SCRIPT = """
import base64, json, sys
import ovmsclient

grpc_address, rest_address, path = sys.argv[1:]
image = open(path, "rb").read()
results = {}
for kind, client in (("grpc", ovmsclient.make_grpc_client(grpc_address)),
                     ("rest", ovmsclient.make_http_client(rest_address))):
    response = client.predict({"image_bytes": [image]}, "bands", 3)
    png = response["png_bytes"][0]
    png = base64.b64decode(png["b64"]) if isinstance(png, dict) else bytes(png)
    errors = []
    for call in (lambda: client.predict({"image_bytes": [b"not an image"]}, "bands", 3),
                 lambda: client.predict({"image_bytes": [image]}, "bands", 4),
                 lambda: client.predict({"image_bytes": [image]}, "unknown", 3)):
        try:
            call()
        except Exception as error:
            errors.append(type(error).__name__)
    results[kind] = {"png": base64.b64encode(png).decode(), "status": client.get_model_status("bands", 3),
                     "metadata": client.get_model_metadata("bands", 3), "errors": errors}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the Python of an environment with the client."""
    directory = tmp_path_factory.mktemp("client") / "environment"
    for words in (
        ["venv", "-q", "--python", sys.executable, directory],
        ["pip", "install", "-q", "--python", directory / "bin" / "python", CLIENT],
    ):
        process = subprocess.run([sys.executable, "-m", "uv", *map(str, words)], capture_output=True, text=True)
        if process.returncode:
            pytest.skip(f"cannot install {CLIENT}: {process.stderr.strip().splitlines()[-1:]}")
    return directory / "bin" / "python"


def test_ovmsclient_works_unchanged(python, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
    path = tmp_path / "an image.png"
    cv2.imwrite(str(path), image[..., ::-1])
    segmentation(tmp_path / "served", 3, shift=1)
    server = Server(replace(QUICK, rest_api_port=-1, model_name="bands", model_base_path=str(tmp_path / "served")))
    server.start()
    try:
        process = subprocess.run(
            [python, "-c", SCRIPT, f"127.0.0.1:{server.grpc_port}", f"127.0.0.1:{server.rest_port}", path],
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        server.stop()
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    for kind in ("grpc", "rest"):
        png = np.frombuffer(base64.b64decode(results[kind]["png"]), np.uint8)
        assert (cv2.imdecode(png, cv2.IMREAD_UNCHANGED) == ids_of(image, 1)).all()
        assert results[kind]["status"]["3"]["state"] == "AVAILABLE"
        assert results[kind]["errors"] == ["InvalidInputError", "ModelNotFoundError", "ModelNotFoundError"]
    assert list(results["grpc"]["metadata"]["inputs"]) == ["image_bytes"]
    # Over REST the client expects OpenVINO's spelling and, without it, returns TensorFlow Serving's response unchanged.
    signatures = results["rest"]["metadata"]["metadata"]["signature_def"]["signature_def"]
    assert list(signatures["serving_default"]["inputs"]) == ["image_bytes"]
