"""The tables of the zoo, and the files that contain them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kseg import zoo as command
from kseg.config import Config, files, zoo
from kseg.config.sections import Model
from kseg.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_in_the_documentation_are_current():
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    for block in zoo.BLOCKS:
        assert text.count(f"<!-- zoo {block} -->") == text.count(f"<!-- end of zoo {block} -->") == 1
    assert zoo.with_updated_tables(text) == text, "update it: python -m kseg.zoo --write docs/zoo.md"


def test_writing_changes_only_the_block(tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("before\n<!-- zoo summary -->\nold\n<!-- end of zoo summary -->\nafter\n")
    assert command.main(["--write", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- zoo summary -->\n| config |")
    assert text.endswith("<!-- end of zoo summary -->\nafter\n")
    assert "old" not in text


def test_the_list_has_a_line_for_each_variant_with_aligned_columns():
    lines = zoo.listing().splitlines()
    names = [f"{name}:{variant}" for name in files.config_names() for variant in files.read_config_file(name).variants]
    assert [line.split()[0] for line in lines[1:] if line] == names
    line = next(line for line in lines if line.startswith("encnet_cityscapes:r101-d8-769x769-80k "))
    assert line.split() == [
        "encnet_cityscapes:r101-d8-769x769-80k",
        "R-101",
        "8",
        "769x769",
        "80000",
        "8",
        "MMSegmentation",
        "76.10",
        "76.97",
        "yes",
    ]
    # Right-aligned columns end at the end of their headings.
    for heading in ("steps", "batch", "mIoU", "ms+flip"):
        end = lines[0].index(heading) + len(heading)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines[1:] if line)


def test_unpublished_results_are_dashes():
    line = zoo.listing("encnet_ade20k:r50s").splitlines()[-1]
    assert line.split()[-3:] == ["-", "-", "-"] and " R-50s " in line


def test_the_list_contains_rows_with_a_text_in_any_column():
    assert all("R-18b" in line for line in zoo.listing("r-18B").splitlines()[1:] if line)
    assert len([line for line in zoo.listing("r-18B").splitlines()[1:] if line]) == 4
    with pytest.raises(ConfigError, match="'no such text'"):
        zoo.listing("no such text")


def test_the_summary_contains_the_best_result_of_each_group():
    lines = zoo.summary_table().splitlines()
    headings = [heading.strip() for heading in lines[0].strip("|").split("|")]
    rows = zoo.zoo_rows()
    for line in lines[2:]:
        texts = [text.strip() for text in line.strip("|").split("|")]
        for heading, text in zip(headings[1:], texts[1:]):
            source, depth, stride = re.fullmatch(r"(\w+) R-(\d+)-D(\d+)", heading).groups()
            published = [
                row.variant
                for row in rows
                if f"`{zoo.config_name(row)}`" == texts[0]
                and row.variant.source == source
                and row.config.model.backbone == f"resnet{depth}"
                and row.config.model.output_stride == int(stride)
                and row.variant.miou is not None
            ]
            assert bool(published) == bool(text)
            if text:
                assert float(text.split(" / ")[0]) == max(variant.miou for variant in published)


@pytest.mark.parametrize(
    "model, name",
    [
        (Model(), "R-50"),
        (Model(backbone="resnet101", stem="7x7"), "R-101b"),
        (Model(stem_channels=128), "R-50s"),
        (Model(stem_channels=64), "R-50"),
        (Model(backbone="resnet18", width=32), "R-18"),
    ],
)
def test_backbones_in_tables(model, name):
    assert zoo.backbone_label(replace(Config(), model=model)) == name
