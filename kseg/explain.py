"""Explain the keys of a config: what each means, its type, limits and default.

kseg config                                     # every key with its value
kseg config train                               # a section
kseg config train.steps --config encnet_camvid  # one key, with its value in a config
"""

import argparse
import textwrap
from pathlib import Path

from kseg import cli
from kseg.config import Config, fields, renames, values
from kseg.config.fields import FieldDescription

WIDTH = 100


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=cli.program("kseg.explain"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="a key or a section (default: all keys)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="update the marked table of a Markdown file, and print nothing"
    )
    cli.add_config_arguments(parser)
    given = parser.parse_args(arguments)
    if given.write:
        text = given.write.read_text(encoding="utf-8")
        given.write.write_text(fields.with_updated_table(text, Config()), encoding="utf-8")
        return 0
    config = cli.load_config(given) if given.config else Config()
    chosen, current = select(given.key), dict(values.leaves(config))
    if len(chosen) == 1:
        print(explanation(chosen[0], current[chosen[0].key], given.config))
    else:
        print("\n".join(listing(chosen, current)))
    return 0


def select(key: str) -> list[FieldDescription]:
    """Return the fields of a section, or the one of a key; all fields for "".

    Raises ConfigError for an unknown key, with the nearest ones.
    """
    described = fields.describe_fields(Config())
    if not key:
        return described
    key = renames.current_key(key)
    if section := [field for field in described if field.key.startswith(f"{key}.")]:
        return section
    values.type_of(Config(), key)
    return [field for field in described if field.key == key]


def explanation(field: FieldDescription, value: object, config: str | None) -> str:
    """Return a paragraph about a key, with its value in a config unless that is None."""
    lines = [field.key, *(f"  {line}" for line in textwrap.wrap(field.description, WIDTH))]
    lines.append(f"  type     {field.type}" + (f", {field.limits}" if field.limits else ""))
    lines.append(f"  default  {fields.value_text(field.default)}")
    if config:
        lines.append(f"  here     {fields.value_text(value)}  ({config})")
    return "\n".join(lines)


def listing(described: list[FieldDescription], current: dict[str, object]) -> list[str]:
    """Return a line per key with its value, as --set takes it, above its description."""
    lines = []
    for field in described:
        lines.append(f"{field.key}={fields.value_text(current[field.key])}")
        lines += textwrap.wrap(field.description, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


if __name__ == "__main__":
    cli.run(main)
