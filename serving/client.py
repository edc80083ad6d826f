"""Write class ids of images, requested from a TensorFlow Serving API over gRPC or REST.

    python -m serving.client photos 'scans/**/*.png' --server localhost:8500 --model street --out predicted
    python -m serving.client holiday.jpg --server localhost:8501 --rest --model street --overlay --out predicted

    OUT/ids/REL.png      class ids as 8-bit grayscale; REL is the name that kseg.predict uses
    OUT/overlay/REL.png  with --overlay: the image blended with the colors of its classes
    OUT/legend.png       with --overlay: the color of each class

JPEG and PNG files are sent unchanged. Images that their EXIF orientation rotates, and all other formats, are sent as a
PNG of the pixels that kseg.predict would use. In Python, serving.clients.client.Client returns arrays.
"""

import argparse
import sys
from pathlib import Path

from kseg import cli
from kseg.inference.input_files import find_input_files
from serving.clients.client import Client
from serving.clients.segment_files import cost_table, find_colors, segment_files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=cli.program("serving.client"), description=__doc__.splitlines()[0])
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMG",
        help="an image, a directory (searched recursively), or a quoted pattern: 'photos/**/*.jpg'",
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--rest", action="store_true", help="HOST:PORT is the REST port instead of the gRPC port")
    parser.add_argument("--model", default="default", metavar="NAME", help="name of the model (default: default)")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, metavar="N", help="version of the model (default: newest available)")
    version.add_argument("--label", metavar="L", help="label of a version, such as stable")
    parser.add_argument(
        "--signature",
        default="serving_default",
        metavar="NAME",
        help="signature to call (default: serving_default); predict_map returns ids of the model's size",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds that a request may take (default 60)"
    )
    parser.add_argument(
        "--tls-ca",
        type=Path,
        metavar="FILE",
        help="enable TLS; PEM certificates of the authority that signed the server's certificate",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images per request (default 1)")
    parser.add_argument("--overlay", action="store_true", help="also write overlays and a legend")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="a classes.json with the overlay colors (default: the colors that the server lists over REST)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="output directory; existing files are overwritten"
    )
    values = parser.parse_args(arguments)
    if values.batch < 1 or not values.timeout > 0:
        parser.error(f"--batch {values.batch} and --timeout {values.timeout:g} must be above 0")
    files = find_input_files(values.inputs, values.out, ("ids", "overlay") if values.overlay else ("ids",))
    client = Client(
        values.server,
        values.rest,
        values.model,
        values.version,
        values.label,
        values.signature,
        values.timeout,
        values.tls_ca,
    )
    colors = find_colors(client, values.classes) if values.overlay else None
    failed = segment_files(client, files, values.out, values.batch, colors)
    client.close()
    if client.costs:
        print(cost_table(client.costs))
    if failed:
        print(
            f"{len(failed)} of {len(files)} files failed: {', '.join(map(str, failed[:5]))}"
            f"{f' and {len(failed) - 5} more' if len(failed) > 5 else ''}",
            file=sys.stderr,
        )
    print(f"wrote results of {len(files) - len(failed)} images to {values.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
