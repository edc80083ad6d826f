"""Class ids of pictures from a server of TensorFlow Serving's protocol, by gRPC or REST.

    python -m serving.client photos 'scans/**/*.png' --server localhost:8500 --model street --out predicted
    python -m serving.client holiday.jpg --server localhost:8501 --rest --model street --overlay --out predicted

    OUT/ids/REL.png      class ids, 8-bit grey; REL as kseg.predict has it
    OUT/overlay/REL.png  with --overlay: the picture mixed with the classes' colours
    OUT/legend.png       with --overlay: the colours

JPEG and PNG are sent as they are; what EXIF would turn, and every other kind, as a PNG of what kseg.predict sees.
From Python: client.Client("localhost:8500", model="street").segment([data]) gives a list of uint8 arrays (H, W).
"""

import argparse
import io
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from kseg import cli
from kseg.errors import DataError, UserError, unknown
from kseg.images import image_files
from kseg.inference.input_files import find_pictures
from serving.clients.connections import Answer, Grpc, RequestError, Rest, Signature, Wanted
from serving.clients.segment_files import colours_of, segment_files, table

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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.client", description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="IMG",
                        help="a picture, a directory (searched recursively), or a quoted pattern: 'photos/**/*.jpg'")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--rest", action="store_true", help="HOST:PORT is that of REST, not of gRPC")
    parser.add_argument("--model", default="default", metavar="NAME", help="default: default")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, metavar="N", help="default: the newest that is available")
    version.add_argument("--label", metavar="L", help="a version's label, such as stable")
    parser.add_argument("--signature", default="serving_default", metavar="NAME",
                        help="default: serving_default; the ids of predict_map have the model's size")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for a request (default 60)")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE",
                        help="speak TLS; PEM certificates of the authority that signed the server's")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures in a request (default 1)")
    parser.add_argument("--overlay", action="store_true", help="write overlays and a legend, too")
    parser.add_argument("--classes", type=Path, metavar="FILE",
                        help="a classes.json with the overlays' colours; default: what the server tells by REST")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="existing files are overwritten")
    values = parser.parse_args(arguments)
    if values.batch < 1 or not values.timeout > 0:
        parser.error(f"--batch {values.batch} and --timeout {values.timeout:g} must be above 0")
    found = find_pictures(values.inputs, values.out, ("ids", "overlay") if values.overlay else ("ids",))
    client = Client(values.server, values.rest, values.model, values.version, values.label, values.signature,
                    values.timeout, values.tls_ca)
    colours = colours_of(client, values.classes) if values.overlay else None
    failed = segment_files(client, found, values.out, values.batch, colours)
    client.close()
    if client.costs:
        print(table(client.costs))
    if failed:
        print(f"{len(failed)} of {len(found)} files failed: {', '.join(map(str, failed[:5]))}"
              f"{f' and {len(failed) - 5} more' if len(failed) > 5 else ''}", file=sys.stderr)
    print(f"wrote results of {len(found) - len(failed)} pictures to {values.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
