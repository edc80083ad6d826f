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
import sys
from pathlib import Path


from kseg import cli
from kseg.inference.input_files import find_pictures
from serving.clients.client import Client
from serving.clients.segment_files import colours_of, segment_files, table


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
