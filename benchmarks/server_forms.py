"""Measure bytes and time of all forms of requests and answers for benchmarks.server."""

import http.client
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from benchmarks.served_process import ServedProcess
from kseg.exporting.signatures import IMAGE_FEATURE
from serving.clients import load_requests
from serving.clients.load_generator import PREDICT

# Signature -> name of its input.
ENCODED, PIXELS, EXAMPLE = "image_bytes", "image", "examples"
INPUTS = {
    "serving_default": ENCODED,
    "predict_map": ENCODED,
    "serve_tf_examples": EXAMPLE,
    "predict_tensor": PIXELS,
    "predict_scores": PIXELS,
    "predict_all_scores": PIXELS,
}
# gRPC with answers as lists of numbers, gRPC with answers as tensor_content, and REST.
PROTOCOLS = ("gRPC, values", "gRPC, content", "REST")
MEGABYTE = 1e6


def measure_forms(
    name: str, directory: Path, image: Path, servers: dict[str, ServedProcess], rounds: int
) -> dict[str, dict]:
    """Measure all forms in turn.

    Args:
        name: The model's name.
        directory: The exported version that the servers serve.
        image: The image file to send.
        servers: A server that answers with `values` and one that answers with `content`.
        rounds: Number of timed calls of every form.

    Returns:
        {form: bytes sent and received, and the seconds of all rounds}.
    """
    signatures = [
        line
        for line in (directory / "signatures.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith(" ")
    ]
    calls = {}
    for signature in sorted(signatures, key=list(INPUTS).index):
        value = input_value(INPUTS[signature], image)
        message = load_requests.grpc_request(name, signature, INPUTS[signature], value)
        body = load_requests.rest_request(signature, INPUTS[signature], value)
        for protocol, call, request in zip(
            PROTOCOLS,
            (
                grpc_call(servers["values"].grpc),
                grpc_call(servers["content"].grpc),
                rest_call(servers["values"].rest, f"/v1/models/{name}:predict"),
            ),
            (message, message, body),
        ):
            calls[f"{signature} | {protocol}"] = (call, request)
    results = {
        form: {"sent": len(request), "received": len(call(request)), "seconds": []}
        for form, (call, request) in calls.items()
    }
    for _ in range(rounds):
        for form, (call, request) in calls.items():
            begin = time.perf_counter()
            call(request)
            results[form]["seconds"].append(time.perf_counter() - begin)
    return results


def input_value(name: str, image: Path) -> bytes | np.ndarray:
    """Return one row of an input: the file's bytes, its uint8 pixels (H, W, 3), or a tf.train.Example of the file."""
    data = image.read_bytes()
    if name == PIXELS:
        return np.array(Image.open(io.BytesIO(data)))
    if name == ENCODED:
        return data
    import tensorflow as tf

    return tf.train.Example(
        features=tf.train.Features(
            feature={IMAGE_FEATURE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
        )
    ).SerializeToString()


def grpc_call(server: str) -> Callable[[bytes], bytes]:
    """Return a function that sends a serialized PredictRequest and returns the answer's bytes."""
    call = grpc.insecure_channel(server, [("grpc.max_receive_message_length", -1)]).unary_unary(PREDICT)
    return lambda request: call(request, timeout=300)


def rest_call(server: str, path: str) -> Callable[[bytes], bytes]:
    """Return a function that posts JSON and returns the answer's body.

    It raises RuntimeError for another status than 200.
    """
    connection = http.client.HTTPConnection(server, timeout=300)

    def call(request: bytes) -> bytes:
        connection.request("POST", path, request, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"REST: {response.status} {text[:300]!r}")
        return text

    return call


def forms_table(results: dict[str, dict]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| signature | protocol | MB sent | MB received | p50 ms (min..max) |", "|---|---|--:|--:|--:|"]
    for form, row in results.items():
        median, fastest, slowest = (1000 * function(row["seconds"]) for function in (statistics.median, min, max))
        lines.append(
            f"| {form} | {row['sent'] / MEGABYTE:.3f} | {row['received'] / MEGABYTE:.3f} "
            f"| {median:.0f} ({fastest:.0f}..{slowest:.0f}) |"
        )
    return "\n".join(lines)
