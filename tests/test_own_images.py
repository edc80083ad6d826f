"""The examples of classes.txt in docs/own-images.md are read as the page says."""

import re

import pytest

from kseg.datasets import class_list
from tests.helpers.running import ROOT

PAGE = (ROOT / "docs" / "own-images.md").read_text(encoding="utf-8")
TABLE = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"
]
# The class of each raw value or color that an example selects.
EXPECTED = {
    "binary masks with 0 and 255": {0: "background", 255: "object"},
    "colors": {(0, 0, 0): "background", (128, 64, 128): "road", (0, 0, 142): "car", (0, 0, 70): "car"},
    "many values, few of interest": {0: "background", 7: "road", 26: "car", 27: "car"},
}


@pytest.mark.parametrize("column, title", enumerate(TABLE[0]))
def test_an_example_of_other_labels_is_read(column, title):
    classes = class_list.parse_classes("classes.txt", "\n".join(row[column] for row in TABLE[2:]))
    raw_values = dict(classes.label_colors)
    for selected, name in EXPECTED[title].items():
        assert classes.names[classes.label_table[raw_values.get(selected, selected)]] == name


def test_the_plain_example_counts_from_0():
    (text,) = re.findall(r"The first line is id 0:\n\n```\n(.*?)```", PAGE, re.DOTALL)
    classes = class_list.parse_classes("classes.txt", text)
    assert classes.names == ("background", "road", "car") and classes.label_table[:3] == (0, 1, 2)
