"""Call one model of a server for the class ids of images, over gRPC or REST."""

import io
import random
import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from typing import TypeVar

import numpy as np
from PIL import Image

from kseg.errors import DataError, UserError, unknown
from kseg.images import image_files
from serving.clients.connections import Answer, Grpc, RequestError, Rest, Signature, Wanted

Found = TypeVar("Found")
# Seconds between attempts of a request that a server cannot take at the moment; each is stretched by up to a half, so
# that clients which failed together do not come back together.
PAUSES = (0.2, 0.4, 0.8, 1.6)
PREFERRED_OUTPUTS = ("png_bytes", "class_map")


class Cost(NamedTuple):
    """What one answered request took: seconds of its round trip, bytes sent, bytes received."""

    seconds: float
    sent: int
    received: int


class Client:
    """Asks one model; `costs` grows by one for each answer. By REST, use it in one thread at a time.

    `server` is HOST:PORT, `timeout` in seconds for each attempt, `tls_ca` a PEM file of the authority that signed the
    server's certificate. The signature takes encoded pictures (an input called ..._bytes) or pixels (uint8) and gives
    `png_bytes` or `class_map`. Raises RequestError where the server or the model is not there, and UserError for a
    signature that is not there or of another kind.
    """

    def __init__(self, server: str, rest: bool = False, model: str = "default", version: int | None = None,
                 label: str | None = None, signature: str = "serving_default", timeout: float = 60.0,
                 tls_ca: Path | None = None):
        self.costs: list[Cost] = []
        self.wanted, self.signature = Wanted(model, version, label), signature
        self.connection = (Rest if rest else Grpc)(server, self.wanted, timeout, tls_ca)
        found = self._signatures()
        if signature not in found:
            # Those with underscores are TensorFlow's own.
            raise UserError(unknown("signature", signature, (name for name in found if not name.startswith("__"))))
        self.input, self.encoded, self.output = chosen(signature, found[signature])

    def segment(self, encoded: Sequence[bytes]) -> list[np.ndarray]:
        """Return the uint8 class ids (H, W) of encoded pictures, from one request; RequestError where it fails.

        Where the signature takes pixels, pictures are decoded here, DataError where that fails, and those of each size
        make a request. The ids have the picture's own size, or that which the signature gives.
        """
        if self.encoded:
            return self._ids(encoded)
        images = [_decoded(data, number) for number, data in enumerate(encoded)]
        found: list = [None] * len(images)
        for shape in dict.fromkeys(image.shape for image in images):
            indices = [index for index, image in enumerate(images) if image.shape == shape]
            for index, ids in zip(indices, self._ids(np.stack([images[index] for index in indices]))):
                found[index] = ids
        return found

    def close(self) -> None:
        self.connection.close()

    def _ids(self, values: Sequence[bytes] | np.ndarray) -> list[np.ndarray]:
        def ask() -> Answer:
            started = time.perf_counter()
            answer = self.connection.predict(self.signature, self.input, values, self.output)
            self.costs.append(Cost(time.perf_counter() - started, answer.sent, answer.received))
            return answer

        answered = retried(ask).values
        if len(answered) != len(values):
            raise RequestError("UNKNOWN", f"{len(answered)} answers for {len(values)} pictures", False)
        return [_ids_of(value) if isinstance(value, bytes) else value for value in answered]

    def _signatures(self) -> dict[str, Signature]:
        """Return the model's signatures; where it is not there, the message lists what is."""
        try:
            return retried(self.connection.signatures)
        except RequestError as error:
            if error.code != "NOT_FOUND":
                raise
            message = f"{self.connection.server} has no {self.wanted}: {error}"
        names = self.connection.names()
        if names and self.wanted.name not in names:
            raise RequestError("NOT_FOUND", f"{message}. {unknown('model', self.wanted.name, names)}", False)
        try:
            versions = self.connection.versions()
        except RequestError:
            raise RequestError("NOT_FOUND", f"{message}; it knows no model of that name", False) from None
        raise RequestError("NOT_FOUND", f"{message}; available versions: {', '.join(map(str, versions)) or 'none'}",
                           False)


def chosen(name: str, signature: Signature) -> tuple[str, bool, str]:
    """Return a signature's input, whether that takes encoded pictures, and the output that holds class ids.

    Raises UserError where it takes something else than pictures, or gives no ids.
    """
    outputs = [output for output in PREFERRED_OUTPUTS if output in signature.outputs]
    if len(signature.inputs) == 1 and outputs:
        (key, kind), = signature.inputs.items()
        if kind == "DT_UINT8" or kind == "DT_STRING" and key.endswith("_bytes"):
            return key, kind == "DT_STRING", outputs[0]
    takes = ", ".join(f"{key} ({kind})" for key, kind in sorted(signature.inputs.items()))
    raise UserError(f"signature {name!r} takes {takes} and gives {', '.join(sorted(signature.outputs))}; a client of "
                    f"pictures needs one input, ..._bytes or uint8, and {' or '.join(PREFERRED_OUTPUTS)}")


def retried(ask: Callable[[], Found]) -> Found:
    """Return what `ask` does; where the server cannot take it at the moment, it is asked again after PAUSES."""
    for pause in PAUSES:
        try:
            return ask()
        except RequestError as error:
            if not error.passing:
                raise
            time.sleep(pause * random.uniform(1.0, 1.5))
    return ask()


def _decoded(data: bytes, number: int) -> np.ndarray:
    try:
        return image_files.read_image(io.BytesIO(data))
    except DataError as error:
        # In the place of a file's name it has that of an object in memory.
        raise DataError(f"picture {number}: {str(error).partition(': ')[2]}") from None


def _ids_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        if image.mode != "L":
            raise RequestError("UNKNOWN", f"the answer is a picture of mode {image.mode}, not of class ids", False)
        return np.array(image)
