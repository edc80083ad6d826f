"""Make the requests of a load test from image files."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kseg.errors import UserError, unknown

# Seconds that the question for the signature's inputs may take.
LOOK_UP = 30.0


def read_requests(paths: Sequence[Path], server: str, rest: bool, model: str, signature: str,
                  tls_ca: Path | None) -> list[bytes]:
    """Return a request's bytes for each picture: PredictRequest, or JSON; of pixels where the signature takes them.

    Raises UserError where the server, the model or the signature is not there or takes no pictures.
    """
    from kseg.images import image_files
    from serving.clients import client, segment_files
    from serving.clients.connections import Grpc, Rest, Wanted

    connection = (Rest if rest else Grpc)(server, Wanted(model), LOOK_UP, tls_ca)
    try:
        signatures = client.retried(connection.signatures)
    finally:
        connection.close()
    if signature not in signatures:
        raise UserError(unknown("signature", signature, signatures))
    name, encoded, _ = client.chosen(signature, signatures[signature])
    values = [segment_files.encoded(path) if encoded else image_files.read_image(path) for path in paths]
    return [(rest_request(signature, name, value) if rest else grpc_request(model, signature, name, value))
            for value in values]


def grpc_request(model: str, signature: str, name: str, value: bytes | np.ndarray) -> bytes:
    """Return a PredictRequest of one row, bytes or an array, serialised."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto([value] if isinstance(value, bytes) else value[None]))
    return request.SerializeToString()


def rest_request(signature: str, name: str, value: bytes | np.ndarray) -> bytes:
    """Return the JSON of one row, bytes or an array."""
    row = {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value.tolist()
    return json.dumps({"signature_name": signature, "inputs": {name: [row]}}).encode("ascii")
