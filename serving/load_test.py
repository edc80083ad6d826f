"""How many requests a second a server of TensorFlow Serving's protocol answers, and how long each takes.

    python -m serving.load_test street.jpg --server localhost:8500 --model street
    python -m serving.load_test photos --server localhost:8501 --rest --model street --concurrency 1,8,32 --out FILE

For each number of clients: each sends a request of one picture, waits for the answer, and sends the next. requests/s
are answers; the times are milliseconds from sending to the whole answer, of requests that were answered; the first
second does not count. `clients busy` is how much of its time the busiest process of clients worked: near 100 % it is
not the server that limits, and --processes helps where there are cores for them. A server on the same machine shares
its cores with the clients.
"""

import argparse
import base64
import json
import os
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kseg import cli
from kseg.errors import UserError, unknown

CONCURRENCY = (1, 2, 4, 8, 16)
# Seconds that the question for the signature's inputs may take.
LOOK_UP = 30.0
# Percent.
QUANTILES = (50, 95, 99)
ROW = "{:>11}{:>13}{:>10}{:>10}{:>10}{:>10}{:>14}  {}"
HEAD = ROW.format("concurrency", "requests/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "clients busy", "errors")


def read_requests(paths: Sequence[Path], server: str, rest: bool, model: str, signature: str,
                  tls_ca: Path | None) -> list[bytes]:
    """Return a request's bytes for each picture: PredictRequest, or JSON; of pixels where the signature takes them.

    Raises UserError where the server, the model or the signature is not there or takes no pictures.
    """
    from kseg.images import image_files
    from serving import client
    from serving.clients import segment_files
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


def row(load) -> str:
    """Return a line of the table."""
    times = [f"{1000 * value:.1f}" for value in quantiles(load)] if load.latencies else ["-"] * (len(QUANTILES) + 1)
    errors = ", ".join(f"{count} {code}" for code, count in sorted(load.failures.items())) or "0"
    return ROW.format(load.clients, f"{load.rate:.1f}", *times, f"{100 * load.busy:.0f} %", errors)


def quantiles(load) -> list[float]:
    """Return QUANTILES and the maximum of what answers took, seconds."""
    return [*np.percentile(load.latencies, QUANTILES).tolist(), max(load.latencies)]


def as_json(load) -> dict:
    """Return a line of the table for a file; times in seconds."""
    times = quantiles(load) if load.latencies else [None] * (len(QUANTILES) + 1)
    return {"concurrency": load.clients, "seconds": load.seconds, "answers": len(load.latencies),
            "requests_per_second": load.rate, "failures": dict(load.failures), "messages": load.messages,
            "clients_busy": load.busy, **dict(zip([*(f"p{number}" for number in QUANTILES), "max"], times))}


def measure(clients, concurrency: Sequence[int], seconds: float, warm_up: float) -> list:
    """Print the table line by line, and return its Loads."""
    from serving.clients.load_generator import LIMIT

    print(HEAD)
    loads = []
    for number in concurrency:
        told = _Told(number, seconds)
        loads.append(clients.run(number, seconds, warm_up, told))
        # Over the last line that told how far it is.
        print(("\r\x1b[K" if told.live else "") + row(loads[-1]))
        for code, message in sorted(loads[-1].messages.items()):
            print(f"{'':11}  {code}: {' '.join(message.split())[:200]}")
    if any(load.busy > LIMIT for load in loads):
        print(f"the clients were busy more than {LIMIT:.0%} of the time: the server may answer more; see --processes")
    return loads


class _Told:
    """Tells how far a run is, in one line that is rewritten on a terminal, every 5 seconds elsewhere."""

    def __init__(self, clients: int, seconds: float):
        self.clients, self.seconds, self.live = clients, seconds, sys.stdout.isatty()
        self.said = 0.0

    def __call__(self, passed: float, answers: int, failures: int) -> None:
        if passed - self.said < (0.2 if self.live else 5.0):
            return
        self.said = passed
        line = (f"{self.clients} clients: {passed:.0f} of {self.seconds:g} s, {answers / passed:.1f} requests/s, "
                f"{failures} failed")
        print(f"\r\x1b[K{line}" if self.live else line, end="" if self.live else "\n", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.load_test", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("pictures", nargs="+", metavar="IMG", help="pictures, directories of them, or quoted patterns")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--rest", action="store_true", help="HOST:PORT is that of REST, not of gRPC")
    parser.add_argument("--model", default="default", metavar="NAME", help="default: default")
    parser.add_argument("--signature", default="serving_default", metavar="S",
                        help="one that takes encoded pictures or pixels (default: serving_default)")
    parser.add_argument("--concurrency", type=_numbers, default=CONCURRENCY, metavar="N,...",
                        help=f"numbers of clients, one after the other (default {','.join(map(str, CONCURRENCY))})")
    parser.add_argument("--seconds", type=_positive, default=10.0, metavar="S",
                        help="that count, for each number of clients (default 10)")
    parser.add_argument("--warm-up", type=_positive, default=1.0, metavar="S",
                        help="before them, which do not (default 1)")
    parser.add_argument("--deadline", type=_positive, default=60.0, metavar="S",
                        help="that a request may take (default 60)")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), metavar="N",
                        help="that the clients, threads, are spread over (default: one a core, at most 4)")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE",
                        help="gRPC by TLS; PEM certificates of the authority that signed the server's")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the figures there, too")
    values = parser.parse_args(arguments)
    if values.processes < 1:
        parser.error(f"--processes {values.processes} must be at least 1")
    if values.tls_ca and values.rest:
        parser.error("--tls-ca is of gRPC; REST is clear text")
    from kseg.inference.input_files import find_pictures
    from serving.clients import load_generator
    from serving.clients.connections import read_certificates

    # Where it writes is of no matter, as it writes nothing.
    paths = [picture.path for picture in find_pictures(values.pictures, Path(os.devnull), ()) if not picture.video]
    if not paths:
        raise UserError(f"no pictures among {', '.join(values.pictures)}, only videos")
    requests = read_requests(paths, values.server, values.rest, values.model, values.signature, values.tls_ca)
    path = f"/v1/models/{urllib.parse.quote(values.model, safe='')}:predict" if values.rest else ""
    target = load_generator.Target(values.server, path, values.deadline, read_certificates(values.tls_ca))
    print(f"{len(requests)} pictures, {sum(map(len, requests)) / len(requests) / 1e3:.1f} kB a request, to "
          f"{values.signature} of {values.model} at {values.server} by {'REST' if values.rest else 'gRPC'}")
    with load_generator.clients(target, requests, min(values.processes, max(values.concurrency))) as clients:
        loads = measure(clients, values.concurrency, values.seconds, values.warm_up)
    if values.out:
        values.out.write_text(json.dumps([as_json(load) for load in loads], indent=1) + "\n", encoding="utf-8")
    if not any(load.latencies for load in loads):
        print("error: no request was answered", file=sys.stderr)
        return 1
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"not numbers such as 1,2,4: {text!r}")
    return tuple(map(int, parts))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a number above 0: {text!r}")
    return value


if __name__ == "__main__":
    cli.run(main)
