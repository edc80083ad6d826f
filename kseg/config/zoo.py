"""List every named variant with its published results, as tables for the terminal and for Markdown files."""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from kseg import config as configs
from kseg.config import Config, files
from kseg.config.variants import Variant
from kseg.errors import ConfigError

COLUMNS = ("config:variant", "backbone", "stride", "crop", "steps", "batch", "source", "mIoU", "ms+flip", "weights")
# Text columns are aligned left, number columns right.
LEFT = ("config:variant", "backbone", "crop", "source", "weights")


def published(config: Config, split: str) -> dict | None:
    """Return the published result of a config's variant on a split, or None if there is none.

    The result is {"config", "source", "mIoU", "mIoU_tta"} with fractions: single-scale, and averaged over scales 0.5 to
    1.75 and mirrored images. A config without a variant's name counts as the variant without overrides.
    """
    name, variant = files.split_name(config.name)
    if name not in files.config_names() or split != config.data.val_split:
        return None
    variants = files.read_config_file(name).variants
    if variant is None:
        variant = next((key for key, row in variants.items() if not row.overrides), None)
    if variant not in variants or variants[variant].miou is None:
        return None
    row = variants[variant]
    return {
        "config": f"{name}:{variant}",
        "source": row.source,
        "mIoU": row.miou / 100,
        "mIoU_tta": None if row.miou_ms_flip is None else row.miou_ms_flip / 100,
    }


class ZooRow(NamedTuple):
    """A named variant: its full name, its config, and its published results."""

    name: str
    config: Config
    variant: Variant


def zoo_rows() -> list[ZooRow]:
    """Return the variants of all named configs, by config name and in the order of their files."""
    rows = []
    for name in files.config_names():
        for variant, row in files.read_config_file(name).variants.items():
            rows.append(ZooRow(f"{name}:{variant}", configs.load(f"{name}:{variant}"), row))
    return rows


def config_name(row: ZooRow) -> str:
    """Return the name of a row's config without the variant."""
    return row.name.partition(":")[0]


def backbone_label(config: Config) -> str:
    """Return a backbone's name for tables, such as R-50, or R-50b with torchvision's stem."""
    model = config.model
    stem = "b" if model.stem == "7x7" else "s" if model.stem_channels not in (0, model.width) else ""
    return f"R-{model.backbone.removeprefix('resnet')}{stem}"


def percent_text(value: float | None) -> str:
    """Return a percentage with two decimals, or - for None."""
    return "-" if value is None else f"{value:.2f}"


def row_cells(row: ZooRow) -> tuple[str, ...]:
    """Return a row's texts in the order of COLUMNS."""
    config, variant = row.config, row.variant
    height, width = config.augment.crop
    return (
        row.name,
        backbone_label(config),
        str(config.model.output_stride),
        f"{height}x{width}",
        str(config.train.steps),
        str(config.train.global_batch),
        variant.source,
        percent_text(variant.miou),
        percent_text(variant.miou_ms_flip),
        "yes" if variant.weights else "-",
    )


def listing(pattern: str = "") -> str:
    """Return the aligned table of the rows that contain `pattern` in any column, ignoring case.

    Raises ConfigError if there is no such row.
    """
    table = [row for row in map(row_cells, zoo_rows()) if pattern.lower() in "  ".join(row).lower()]
    if not table:
        raise ConfigError(f"no row of the zoo contains {pattern!r}; without a text all rows are listed")
    widths = [max(map(len, column)) for column in zip(COLUMNS, *table)]
    groups = itertools.groupby(table, lambda row: row[0].partition(":")[0])
    blocks = ["\n".join(_aligned(row, widths) for row in group) for _, group in groups]
    return "\n\n".join([_aligned(COLUMNS, widths), *blocks])


def _aligned(row: Iterable[str], widths: list[int]) -> str:
    cells = zip(COLUMNS, row, widths)
    return "  ".join(text.ljust(width) if name in LEFT else text.rjust(width) for name, text, width in cells).rstrip()


def whole_table() -> str:
    """Return a Markdown table for each config; the name of the original config links to its weights."""
    lines = []
    for name, group in itertools.groupby(zoo_rows(), config_name):
        lines += [
            f"## {name}",
            "",
            "| variant | backbone | stride | crop | steps | batch | source | mIoU | ms+flip |",
            "|---|---|--:|---|--:|--:|---|--:|--:|",
        ]
        for row in group:
            _, backbone, stride, crop, steps, batch, source, single_scale, multi_scale, _ = row_cells(row)
            original = (
                f"[{row.variant.original}]({row.variant.weights})" if row.variant.weights else (row.variant.original)
            )
            lines.append(
                f"| `{row.name.partition(':')[2]}` | {backbone} | {stride} | {crop} | {steps} | {batch} | "
                f"{source}: {original} | {single_scale} | {multi_scale} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def summary_table() -> str:
    """Return a Markdown table of the best published mIoU of each config, by source, depth and output stride."""
    best: dict[tuple, dict[str, ZooRow]] = {}
    for row in zoo_rows():
        model = row.config.model
        key = (row.variant.source, int(model.backbone.removeprefix("resnet")), model.output_stride)
        name = config_name(row)
        previous = best.setdefault(key, {}).get(name)
        if row.variant.miou is not None and (previous is None or row.variant.miou > previous.variant.miou):
            best[key][name] = row
    columns = [key for key in sorted(best) if best[key]]
    lines = [
        "| config | " + " | ".join(f"{source} R-{depth}-D{stride}" for source, depth, stride in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for name in sorted({name for column in best.values() for name in column}):
        texts = [_result_text(best[key][name].variant) if name in best[key] else "" for key in columns]
        lines.append(f"| `{name}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _result_text(variant: Variant) -> str:
    results = [variant.miou, variant.miou_ms_flip]
    return " / ".join(percent_text(result) for result in results if result is not None)


# Tables between `<!-- zoo NAME -->` and `<!-- end of zoo NAME -->` in Markdown files.
BLOCKS = {"summary": summary_table, "table": whole_table}


def with_updated_tables(text: str) -> str:
    """Return a Markdown text in which the marked tables are regenerated."""
    for name, make_table in BLOCKS.items():
        start, end = f"<!-- zoo {name} -->", f"<!-- end of zoo {name} -->"
        if start in text:
            text = re.sub(
                f"{re.escape(start)}.*{re.escape(end)}",
                lambda _: f"{start}\n{make_table()}\n{end}",
                text,
                flags=re.DOTALL,
            )
    return text
