"""Measure the request rate and latency of a TensorFlow Serving API.

    python -m serving.load_test street.jpg --server localhost:8500 --model street
    python -m serving.load_test photos --server localhost:8501 --rest --model street --concurrency 1,8,32 --out FILE

Each client sends a request with one image, waits for the response, and sends the next request. The table has one row
for each number of clients. `requests/s` counts answered requests. Latencies are milliseconds from sending a request to
its whole response, for answered requests only. A warm-up of one second does not count. `clients busy` is the fraction
of CPU time that the busiest client process used: near 100 % the clients limit the rate instead of the server, and more
--processes help if there are cores for them. A server on the same machine shares its cores with the clients.
"""

import argparse
import json
import os
import sys
import urllib.parse
from pathlib import Path

from kseg import cli
from kseg.errors import UserError
from serving.clients import load_report, load_requests

CONCURRENCY = (1, 2, 4, 8, 16)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=cli.program("serving.load_test"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMG", help="images, directories of images, or quoted patterns")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--rest", action="store_true", help="HOST:PORT is the REST port instead of the gRPC port")
    parser.add_argument("--model", default="default", metavar="NAME", help="name of the model (default: default)")
    parser.add_argument(
        "--signature",
        default="serving_default",
        metavar="S",
        help="a signature that takes encoded images or pixels (default: serving_default)",
    )
    parser.add_argument(
        "--concurrency",
        type=_numbers,
        default=CONCURRENCY,
        metavar="N,...",
        help=f"numbers of clients, run one after another (default {','.join(map(str, CONCURRENCY))})",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=10.0,
        metavar="S",
        help="measured seconds for each number of clients (default 10)",
    )
    parser.add_argument(
        "--warm-up", type=_positive, default=1.0, metavar="S", help="seconds of load before the measurement (default 1)"
    )
    parser.add_argument(
        "--deadline", type=_positive, default=60.0, metavar="S", help="seconds that a request may take (default 60)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that share the clients, which are threads (default: one per core, at most 4)",
    )
    parser.add_argument(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="enable TLS for gRPC; PEM certificates of the authority that signed the server's",
    )
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the results to this file")
    values = parser.parse_args(arguments)
    if values.processes < 1:
        parser.error(f"--processes {values.processes} must be at least 1")
    if values.tls_ca and values.rest:
        parser.error("--tls-ca applies to gRPC only; REST is not encrypted")
    from kseg.inference.input_files import find_input_files
    from serving.clients import load_generator
    from serving.clients.connections import read_certificates

    # The output directory is a dummy, since a load test writes no images.
    paths = [file.path for file in find_input_files(values.images, Path(os.devnull), ()) if not file.is_video]
    if not paths:
        raise UserError(f"no images among {', '.join(values.images)}, only videos")
    requests = load_requests.read_requests(
        paths, values.server, values.rest, values.model, values.signature, values.tls_ca
    )
    path = f"/v1/models/{urllib.parse.quote(values.model, safe='')}:predict" if values.rest else ""
    target = load_generator.Target(values.server, path, values.deadline, read_certificates(values.tls_ca))
    print(
        f"{len(requests)} images, {sum(map(len, requests)) / len(requests) / 1e3:.1f} kB per request, to "
        f"{values.signature} of {values.model} at {values.server} over {'REST' if values.rest else 'gRPC'}"
    )
    with load_generator.clients(target, requests, min(values.processes, max(values.concurrency))) as clients:
        loads = load_report.run_loads(clients, values.concurrency, values.seconds, values.warm_up)
    if values.out:
        rows = [load_report.report_json(load) for load in loads]
        values.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if not any(load.latencies for load in loads):
        print("error: no request was answered", file=sys.stderr)
        return 1
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected positive integers such as 1,2,4, got {text!r}")
    return tuple(map(int, parts))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


if __name__ == "__main__":
    cli.run(main)
