"""The figures of docs/choosing-a-config.md against the pages and the configs that they come from."""

import re

import pytest

from kseg import config as configs
from kseg.datasets import registry
from tests.helpers.running import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "choosing-a-config.md").read_text(encoding="utf-8")
ZOO, RESULTS, PERFORMANCE = (
    (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("zoo", "results", "performance")
)


def rows(text):
    """Return the cells of each row of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_table_of_heads_repeats_the_zoo_and_the_measurements():
    summary = {row[0]: row for row in rows(ZOO.split("<!-- end of zoo summary -->")[0])}
    column = summary["config"].index("SSSegmentation R-101-D8")
    models = {row[0]: row for row in rows(PERFORMANCE.split("## Training")[0]) if row[1:2] == ["kseg, compiled"]}
    steps = {row[0]: row for row in rows(PERFORMANCE.split("## Training")[1]) if row[1:2] == ["kseg"]}
    shown = {row[0].strip("`"): row[1:] for row in rows(PAGE) if len(row) == 7 and row[0].startswith("`")}
    assert set(shown) == {"deeplabv3plus", "deeplabv3", "apcnet", "pspnet", "encnet", "fcn"}
    for head, cells in shown.items():
        published = [summary[f"`{head}_{name}`"][column] for name in ("ade20k", "cityscapes", "voc2012")]
        seconds = steps[head][2].split()[0]
        assert cells == [*published, models[head][7], seconds, steps[head][6]]


def test_every_score_occurs_on_the_page_it_comes_from():
    scores = set(re.findall(r"\b\d\d\.\d\d\b", PAGE))
    assert len(scores) > 20
    assert [score for score in sorted(scores) if score not in ZOO and score not in RESULTS] == []


EPOCHS = [row for row in rows(PAGE) if len(row) == 5 and row[-1][0].isdigit()]


@pytest.mark.parametrize("name, images, batch, steps, epochs", EPOCHS, ids=[row[0] for row in EPOCHS])
def test_epochs_are_those_of_the_configs(name, images, batch, steps, epochs):
    pattern, _, source = name.replace("`", "").partition(" of ")
    config_name = pattern.replace("*", "encnet")
    config = configs.load(config_name)
    table = rows(ZOO.split(f"## {config_name}\n")[1].split("\n## ")[0]) if source else []
    table = [row for row in table if source in row[6]]
    sizes = registry.find_dataset(config.data).published
    count = sizes.get(config.data.train_split, int(images))
    found = {(int(row[4]), int(row[5])) for row in table} or {(config.train.steps, config.train.global_batch)}
    expected = sorted(found)
    assert images == str(count) and {batch} == {str(size) for _, size in found}
    assert steps == " or ".join(str(number) for number, _ in expected)
    assert epochs == " or ".join(f"{number * size / count:.0f}" for number, size in expected)
