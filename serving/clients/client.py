"""Request class ids of images from one served model, over gRPC or REST."""

import io
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from kseg.errors import DataError, UserError, unknown
from kseg.images import image_files
from serving.clients.connections import GrpcConnection, ModelSpec, Prediction, RequestError, RestConnection, Signature

Result = TypeVar("Result")
# Seconds to wait before each retry of a request that the server cannot take at the moment. Each delay is stretched by
# up to a half, so that clients that failed together do not retry together.
RETRY_DELAYS = (0.2, 0.4, 0.8, 1.6)
PREFERRED_OUTPUTS = ("png_bytes", "class_map")


class Cost(NamedTuple):
    """Cost of one answered request: round-trip seconds, bytes sent, bytes received."""

    seconds: float
    sent: int
    received: int


class Client:
    """Request class ids of images from one served model.

    The signature takes either encoded images (one input named `..._bytes`) or pixels (one uint8 input), and returns
    `png_bytes` or `class_map`. The attribute `costs` lists a `Cost` for each answered request. A REST client must not
    be shared between threads.

    Args:
        server: HOST:PORT of the server's gRPC port, or of its REST port with `rest`.
        rest: Use REST instead of gRPC. REST does not import TensorFlow.
        model: Name of the served model.
        version: Version of the model; by default the newest available one.
        label: Label of a version, such as "stable", instead of `version`.
        signature: Name of the signature to call.
        timeout: Seconds after which an attempt of a request fails.
        tls_ca: PEM file with the certificate of the authority that signed the server's; enables TLS.

    Raises:
        RequestError: The server cannot be reached, or has no such model, version or label.
        UserError: The address, the certificate file or the signature is unusable.

    Example:
        >>> client = Client(address)
        >>> (ids,) = client.segment([image_bytes])
        >>> ids.dtype, ids.ndim
        (dtype('uint8'), 2)
        >>> client.close()
    """

    def __init__(
        self,
        server: str,
        rest: bool = False,
        model: str = "default",
        version: int | None = None,
        label: str | None = None,
        signature: str = "serving_default",
        timeout: float = 60.0,
        tls_ca: Path | None = None,
    ):
        self.costs: list[Cost] = []
        self.spec, self.signature = ModelSpec(model, version, label), signature
        self.connection = (RestConnection if rest else GrpcConnection)(server, self.spec, timeout, tls_ca)
        signatures = self._signatures()
        if signature not in signatures:
            # TensorFlow's internal signatures begin with two underscores.
            raise UserError(unknown("signature", signature, (name for name in signatures if not name.startswith("__"))))
        self.input, self.encoded, self.output = choose_tensors(signature, signatures[signature])

    def segment(self, encoded: Sequence[bytes]) -> list[np.ndarray]:
        """Return the class ids of encoded images.

        A signature of encoded images gets all of them in one request. For a signature of pixels the images are decoded
        here, and each image size makes one request.

        Args:
            encoded: Contents of image files: JPEG or PNG, or any format that Pillow reads where the signature takes
                pixels.

        Returns:
            One uint8 array (H, W) of class ids for each image, in the same order. H and W are those of the image,
            except for signatures that resize, such as `predict_map`.

        Raises:
            RequestError: The request failed, after retries where the server was busy.
            DataError: An image cannot be decoded (only for signatures of pixels).
        """
        if self.encoded:
            return self._request_ids(encoded)
        images = [_decode_image(data, index) for index, data in enumerate(encoded)]
        results: list = [None] * len(images)
        for shape in dict.fromkeys(image.shape for image in images):
            indices = [index for index, image in enumerate(images) if image.shape == shape]
            for index, ids in zip(indices, self._request_ids(np.stack([images[index] for index in indices]))):
                results[index] = ids
        return results

    def close(self) -> None:
        self.connection.close()

    def _request_ids(self, values: Sequence[bytes] | np.ndarray) -> list[np.ndarray]:
        def predict() -> Prediction:
            started = time.perf_counter()
            prediction = self.connection.predict(self.signature, self.input, values, self.output)
            self.costs.append(Cost(time.perf_counter() - started, prediction.sent, prediction.received))
            return prediction

        results = retry_request(predict).values
        if len(results) != len(values):
            raise RequestError("UNKNOWN", f"the server returned {len(results)} results for {len(values)} images", False)
        return [_decode_ids(value) if isinstance(value, bytes) else value for value in results]

    def _signatures(self) -> dict[str, Signature]:
        """Return the model's signatures.

        Raises RequestError; for an unknown model or version its message lists the available ones.
        """
        try:
            return retry_request(self.connection.signatures)
        except RequestError as error:
            if error.code != "NOT_FOUND":
                raise
            message = f"{self.connection.server} has no {self.spec}: {error}"
        names = self.connection.model_names()
        if names and self.spec.name not in names:
            raise RequestError("NOT_FOUND", f"{message}. {unknown('model', self.spec.name, names)}", False)
        try:
            versions = self.connection.available_versions()
        except RequestError:
            raise RequestError("NOT_FOUND", f"{message}; the server has no model of that name", False) from None
        raise RequestError(
            "NOT_FOUND", f"{message}; available versions: {', '.join(map(str, versions)) or 'none'}", False
        )


def choose_tensors(name: str, signature: Signature) -> tuple[str, bool, str]:
    """Return a signature's input, whether it takes encoded images, and its output of class ids.

    Raises UserError if the signature does not take images or does not return class ids.
    """
    outputs = [output for output in PREFERRED_OUTPUTS if output in signature.outputs]
    if len(signature.inputs) == 1 and outputs:
        ((key, dtype),) = signature.inputs.items()
        if dtype == "DT_UINT8" or dtype == "DT_STRING" and key.endswith("_bytes"):
            return key, dtype == "DT_STRING", outputs[0]
    inputs = ", ".join(f"{key} ({dtype})" for key, dtype in sorted(signature.inputs.items()))
    raise UserError(
        f"signature {name!r} takes {inputs} and returns {', '.join(sorted(signature.outputs))}; this "
        "client needs a signature with one input, either uint8 or named ..._bytes, and an output "
        f"{' or '.join(PREFERRED_OUTPUTS)}"
    )


def retry_request(request: Callable[[], Result]) -> Result:
    """Return the result of `request`, retrying retryable errors after RETRY_DELAYS."""
    for delay in RETRY_DELAYS:
        try:
            return request()
        except RequestError as error:
            if not error.retryable:
                raise
            time.sleep(delay * random.uniform(1.0, 1.5))
    return request()


def _decode_image(data: bytes, index: int) -> np.ndarray:
    try:
        return image_files.read_image(io.BytesIO(data))
    except DataError as error:
        # The message begins with the name of the BytesIO object, which means nothing to a user.
        raise DataError(f"image {index}: {str(error).partition(': ')[2]}") from None


def _decode_ids(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        if image.mode != "L":
            raise RequestError(
                "UNKNOWN", f"the server returned a PNG of mode {image.mode}; class ids have mode L", False
            )
        return np.array(image)
