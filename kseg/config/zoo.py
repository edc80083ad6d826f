"""List every named variant with what was published for it, as tables for the terminal and for Markdown files."""

from collections.abc import Iterable
from typing import NamedTuple
import itertools
import re

from kseg import config as configs
from kseg.config import Config, files
from kseg.config.variants import Variant
from kseg.errors import ConfigError


def published(config: Config, split: str) -> dict | None:
    """Return what was published for the config's variant on this split, as fractions; None where nothing was.

    {"config", "source", "mIoU", "mIoU_tta"}: single scale, and averaged over scales 0.5 to 1.75 with flip. A config
    without a variant's name is the variant that changes nothing.
    """
    name, variant = files.split_name(config.name)
    if name not in files.config_names() or split != config.data.val_split:
        return None
    variants = files.read(name).variants
    if variant is None:
        variant = next((key for key, row in variants.items() if not row.overrides), None)
    if variant not in variants or variants[variant].miou is None:
        return None
    row = variants[variant]
    return {"config": f"{name}:{variant}", "source": row.source, "mIoU": row.miou / 100,
            "mIoU_tta": None if row.miou_ms_flip is None else row.miou_ms_flip / 100}


COLUMNS = ("config:variant", "backbone", "stride", "crop", "steps", "batch", "source", "mIoU", "ms+flip", "weights")
# Text stands left and numbers right.
LEFT = ("config:variant", "backbone", "crop", "source", "weights")


class Row(NamedTuple):
    """A named variant: its full name, the config it means, and what its source says of it."""

    name: str
    config: Config
    variant: Variant


def rows() -> list[Row]:
    """Return the variants of all named configs, by config and in the order of its file."""
    found = []
    for name in files.config_names():
        for variant, row in files.read(name).variants.items():
            found.append(Row(f"{name}:{variant}", configs.load(f"{name}:{variant}"), row))
    return found


def config_name(row: Row) -> str:
    """Return the name of the config that a row is a variant of."""
    return row.name.partition(":")[0]


def backbone(config: Config) -> str:
    """Return a backbone's name in tables, such as R-50 or, with torchvision's stem, R-50b."""
    model = config.model
    stem = "b" if model.stem == "7x7" else "s" if model.stem_channels not in (0, model.width) else ""
    return f"R-{model.backbone.removeprefix('resnet')}{stem}"


def percent(value: float | None) -> str:
    """Return a percentage with two digits, or - where there is none."""
    return "-" if value is None else f"{value:.2f}"


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's texts, in the order of COLUMNS."""
    config, variant = row.config, row.variant
    height, width = config.augment.crop
    return (row.name, backbone(config), str(config.model.output_stride), f"{height}x{width}", str(config.train.steps),
            str(config.train.global_batch), variant.source, percent(variant.miou), percent(variant.miou_ms_flip),
            "yes" if variant.weights else "-")


def listing(pattern: str = "") -> str:
    """Return the aligned table of the rows that hold `pattern` in any column, upper and lower case alike.

    Raises ConfigError where none does.
    """
    table = [row for row in map(cells, rows()) if pattern.lower() in "  ".join(row).lower()]
    if not table:
        raise ConfigError(f"no row of the zoo holds {pattern!r}; without a text all rows are listed")
    widths = [max(map(len, column)) for column in zip(COLUMNS, *table)]
    groups = itertools.groupby(table, lambda row: row[0].partition(":")[0])
    blocks = ["\n".join(_aligned(row, widths) for row in group) for _, group in groups]
    return "\n\n".join([_aligned(COLUMNS, widths), *blocks])


def _aligned(row: Iterable[str], widths: list[int]) -> str:
    pairs = zip(COLUMNS, row, widths)
    return "  ".join(text.ljust(width) if name in LEFT else text.rjust(width) for name, text, width in pairs).rstrip()


def whole_table() -> str:
    """Return a Markdown table of all rows for each config; the source's config name links to its weights."""
    lines = []
    for name, group in itertools.groupby(rows(), config_name):
        lines += [f"## {name}", "", "| variant | backbone | stride | crop | steps | batch | source | mIoU | ms+flip |",
                  "|---|---|--:|---|--:|--:|---|--:|--:|"]
        for row in group:
            _, bone, stride, crop, steps, batch, source, single, multiple, _ = cells(row)
            original = f"[{row.variant.original}]({row.variant.weights})" if row.variant.weights else (
                row.variant.original)
            lines.append(f"| `{row.name.partition(':')[2]}` | {bone} | {stride} | {crop} | {steps} | {batch} | "
                         f"{source}: {original} | {single} | {multiple} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def summary() -> str:
    """Return a Markdown table of the best published mIoU of each config, by source, depth and output stride."""
    best: dict[tuple, dict[str, Row]] = {}
    for row in rows():
        model = row.config.model
        key = (row.variant.source, int(model.backbone.removeprefix("resnet")), model.output_stride)
        name = config_name(row)
        known = best.setdefault(key, {}).get(name)
        if row.variant.miou is not None and (known is None or row.variant.miou > known.variant.miou):
            best[key][name] = row
    columns = [key for key in sorted(best) if best[key]]
    lines = ["| config | " + " | ".join(f"{source} R-{depth}-D{stride}" for source, depth, stride in columns) + " |",
             "|---|" + "--:|" * len(columns)]
    for name in sorted({name for column in best.values() for name in column}):
        texts = [_published(best[key][name].variant) if name in best[key] else "" for key in columns]
        lines.append(f"| `{name}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _published(variant: Variant) -> str:
    return percent(variant.miou) + (f" / {percent(variant.miou_ms_flip)}" if variant.miou_ms_flip is not None else "")


# What stands between `<!-- zoo NAME -->` and `<!-- end of zoo NAME -->`.
BLOCKS = {"summary": summary, "table": whole_table}


def written(text: str) -> str:
    """Return a Markdown text with its marked blocks made anew."""
    for name, make in BLOCKS.items():
        start, end = f"<!-- zoo {name} -->", f"<!-- end of zoo {name} -->"
        if start in text:
            text = re.sub(f"{re.escape(start)}.*{re.escape(end)}", lambda _: f"{start}\n{make()}\n{end}", text,
                          flags=re.DOTALL)
    return text
