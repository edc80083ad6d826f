"""Print every named variant with its published results, or update the tables in Markdown files.

python -m kseg.zoo                      # all variants; `python -m kseg.train --list` prints the same
python -m kseg.zoo deeplabv3_city       # the rows that contain this text
python -m kseg.zoo --write docs/zoo.md
"""

import argparse
from pathlib import Path

from kseg import cli
from kseg.config import zoo


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=cli.program("kseg.zoo"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pattern", nargs="?", default="", help="print the rows that contain this text (default: all)")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        nargs="+",
        default=[],
        help="update the marked tables of Markdown files, and print nothing",
    )
    values = parser.parse_args(arguments)
    for path in values.write:
        path.write_text(zoo.with_updated_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not values.write:
        print(zoo.listing(values.pattern))
    return 0


if __name__ == "__main__":
    cli.run(main)
