"""Build the requests of a load test from image files."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kseg.errors import UserError, unknown

# Seconds that the request for the model's signatures may take.
METADATA_TIMEOUT = 30.0


def read_requests(
    paths: Sequence[Path], server: str, rest: bool, model: str, signature: str, tls_ca: Path | None
) -> list[bytes]:
    """Return one serialized request for each image file.

    A request is a PredictRequest, or JSON with `rest`. It holds the encoded image or its pixels, whichever the
    signature takes. Raises RequestError if the server or the model is missing, and UserError if the signature is
    missing or does not take images.
    """
    from kseg.images import image_files
    from serving.clients import client, segment_files
    from serving.clients.connections import GrpcConnection, ModelSpec, RestConnection

    connection = (RestConnection if rest else GrpcConnection)(server, ModelSpec(model), METADATA_TIMEOUT, tls_ca)
    try:
        signatures = client.retry_request(connection.signatures)
    finally:
        connection.close()
    if signature not in signatures:
        raise UserError(unknown("signature", signature, signatures))
    name, encoded, _ = client.choose_tensors(signature, signatures[signature])
    values = [segment_files.encode_image(path) if encoded else image_files.read_image(path) for path in paths]
    return [
        (rest_request(signature, name, value) if rest else grpc_request(model, signature, name, value))
        for value in values
    ]


def grpc_request(model: str, signature: str, name: str, value: bytes | np.ndarray) -> bytes:
    """Return the serialized PredictRequest of one image, encoded or uint8 (H, W, 3)."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto([value] if isinstance(value, bytes) else value[None]))
    return request.SerializeToString()


def rest_request(signature: str, name: str, value: bytes | np.ndarray) -> bytes:
    """Return the JSON of one image, encoded or uint8 (H, W, 3)."""
    row = {"b64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value.tolist()
    return json.dumps({"signature_name": signature, "inputs": {name: [row]}}).encode("ascii")
