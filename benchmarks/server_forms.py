"""Bytes and time of each form in which a picture goes to a server and its answer comes back, for server.py."""

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

# Which picture a signature's input takes.
ENCODED, PIXELS, EXAMPLE = "image_bytes", "image", "examples"
INPUTS = {"serving_default": ENCODED, "predict_map": ENCODED, "serve_tf_examples": EXAMPLE, "predict_tensor": PIXELS,
          "predict_scores": PIXELS, "predict_all_scores": PIXELS}
# gRPC where answers are lists of numbers, gRPC where they are tensor_content, REST.
WAYS = ("gRPC, values", "gRPC, content", "REST")
MEGABYTE = 1e6


def measure_forms(name: str, directory: Path, picture: Path, servers: dict[str, ServedProcess],
                  rounds: int) -> dict[str, dict]:
    """Return bytes sent and received and the seconds of each round of each form, which take their turns.

    `directory` holds the version that the servers answer for; one of them with `values`, one with `content`.
    """
    signatures = [line for line in (directory / "signatures.txt").read_text(encoding="utf-8").splitlines()
                  if not line.startswith(" ")]
    calls = {}
    for signature in sorted(signatures, key=list(INPUTS).index):
        value = input_value(INPUTS[signature], picture)
        message = load_requests.grpc_request(name, signature, INPUTS[signature], value)
        body = load_requests.rest_request(signature, INPUTS[signature], value)
        for way, call, request in zip(WAYS, (
                grpc_call(servers["values"].grpc), grpc_call(servers["content"].grpc),
                rest_call(servers["values"].rest, f"/v1/models/{name}:predict")), (message, message, body)):
            calls[f"{signature} | {way}"] = (call, request)
    found = {form: {"sent": len(request), "received": len(call(request)), "seconds": []}
             for form, (call, request) in calls.items()}
    for _ in range(rounds):
        for form, (call, request) in calls.items():
            begin = time.perf_counter()
            call(request)
            found[form]["seconds"].append(time.perf_counter() - begin)
    return found


def input_value(name: str, picture: Path) -> bytes | np.ndarray:
    """Return one row of an input: the file's bytes, its pixels, or a tf.train.Example of the file."""
    data = picture.read_bytes()
    if name == PIXELS:
        return np.array(Image.open(io.BytesIO(data)))
    if name == ENCODED:
        return data
    import tensorflow as tf

    return tf.train.Example(features=tf.train.Features(feature={IMAGE_FEATURE: tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[data]))})).SerializeToString()


def grpc_call(server: str) -> Callable[[bytes], bytes]:
    """Return what sends a serialised PredictRequest and returns the answer's bytes."""
    call = grpc.insecure_channel(server, [("grpc.max_receive_message_length", -1)]).unary_unary(PREDICT)
    return lambda request: call(request, timeout=300)


def rest_call(server: str, path: str) -> Callable[[bytes], bytes]:
    """Return what posts JSON and returns the answer's body; RuntimeError where it is no answer."""
    connection = http.client.HTTPConnection(server, timeout=300)

    def call(request: bytes) -> bytes:
        connection.request("POST", path, request, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"REST: {response.status} {text[:300]!r}")
        return text

    return call


def forms_table(found: dict[str, dict]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| signature | way | MB sent | MB received | p50 ms (min..max) |", "|---|---|--:|--:|--:|"]
    for form, figures in found.items():
        median, least, most = (1000 * each(figures["seconds"]) for each in (statistics.median, min, max))
        lines.append(f"| {form} | {figures['sent'] / MEGABYTE:.3f} | {figures['received'] / MEGABYTE:.3f} "
                     f"| {median:.0f} ({least:.0f}..{most:.0f}) |")
    return "\n".join(lines)
