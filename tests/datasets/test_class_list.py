"""The grammar of classes.txt, and the line to write that each wrong form is answered with."""

import pytest

from kseg.config.sections import IGNORED
from kseg.datasets.class_list import UNMAPPED, classes_text, parse_classes
from kseg.errors import DataError


def mapped(listed):
    return {value: train_id for value, train_id in enumerate(listed.label_table) if train_id != UNMAPPED}


def test_several_values_of_a_class():
    listed = parse_classes("x", "7,8 road #804080\n0,1,2 sky\n11 car\n")
    assert listed.names == ("road", "sky", "car") and listed.palette[0] == (128, 64, 128)
    assert mapped(listed) == {7: 0, 8: 0, 0: 1, 1: 1, 2: 1, 11: 2, 255: IGNORED} and not listed.label_colors


def test_rule_for_all_other_values():
    listed = parse_classes("x", "* ignore\n7 road\n8 sky\n")
    assert listed.label_table == tuple({7: 0, 8: 1}.get(value, IGNORED) for value in range(256))
    listed = parse_classes("x", "7 road\n* rest\n")
    assert listed.label_table == tuple({7: 0, 255: IGNORED}.get(value, 1) for value in range(256))


@pytest.mark.parametrize("text", ["#804080 road\n#000000,#0000ff sky\n", "128,64,128 road\n#000000,#0000FF sky\n"])
def test_colors_select_and_are_the_palette(text):
    listed = parse_classes("x", text)
    assert listed.palette == ((128, 64, 128), (0, 0, 0))
    assert dict(listed.label_colors) == {(128, 64, 128): 0, (0, 0, 0): 1, (0, 0, 255): 1}
    assert mapped(listed) == {0: 0, 1: 1, 255: IGNORED} and listed.other_colors == UNMAPPED


def test_ignored_colors():
    listed = parse_classes("x", "128,64,128 road\n1,2,3 sky\n0,0,0 Void\n* ignore\n")
    assert dict(listed.label_colors)[0, 0, 0] == IGNORED == listed.other_colors and listed.names == ("road", "sky")


def test_three_numbers_are_values_beside_other_values():
    assert mapped(parse_classes("x", "7,8,9 road\n0 sky\n")) == {7: 0, 8: 0, 9: 0, 0: 1, 255: IGNORED}


@pytest.mark.parametrize(
    "line",
    [
        "255 Ignore",
        "255 IGNORE",
        "255 void",
        "255 Unlabeled",
        "255 unlabelled",
        "255 background-ignore",
        "255 __ignore__",
        "255 don't care",
    ],
)
def test_names_of_ignored_pixels_in_any_case(line):
    listed = parse_classes("x", f"road\nsky\n{line}\n")
    assert listed.names == ("road", "sky") and listed.label_table[255] == IGNORED


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("background 0\nobject 255\n", 1, ["`0 background`", "`255 object`"]),
        ("sky\nobject 255\n", 2, ["`255 object`"]),
        ("# my classes\nroad\n", 1, ["remove the line", "`my classes`"]),
        ("road\n// end\n", 2, ["remove the line"]),
        ("sky # the upper part\nroad\n", 1, ["remark", "`sky`"]),
        ("0 sky\n7 road // flat #804080\n", 2, ["`7 road`"]),
        ("road\t7\nsky\t8\n", 1, ["`7 road`", "`8 sky`"]),
        ("name,r,g,b\nroad,128,64,128\n", 1, ["header", "`#804080 road`", "`0 road #804080`"]),
        ("\nID;Name;R;G;B\n7;road;128;64;128\n", 2, ["header", "`7 road #804080`"]),
        ("red\tgreen\tblue\tclass\n128\t64\t128\troad\n", 1, ["header", "`#804080 road`"]),
        ("# label:color_rgb:parts:actions\nroad:128,64,128::\n", 1, ["header", "`#804080 road`"]),
        ("Class\nroad\nsky\n", 1, ["header"]),
        ("0 0 0 sky\n128 64 128 road\n", 1, ["`#000000 sky`"]),
        ("128, 64, 128 road\n0, 0, 0 sky\n", 1, ["`#804080 road`"]),
        ("sky\nroad 128 64 128\n", 2, ["`#804080 road`"]),
        ("7 road 128 64 128\n8 sky 0 0 0\n", 1, ["`7 road #804080`"]),
        ("road,#804080\nsky,#000000\n", 1, ["`road #804080`"]),
        ("7 #804080 road\n8 sky\n", 1, ["`7 road #804080`"]),
        ("#fff road\n#000 sky\n", 1, ["`#ffffff road`"]),
        ('["road", "sky"]\n', 1, ["JSON", "`road`"]),
        ('{\n  "road": 7,\n  "sky": 8\n}\n', 1, ["JSON", "`7 road`"]),
        ("names:\n  0: road\n", 1, ["YAML"]),
        ("- road\n- sky\n", 1, ["YAML"]),
        ("0: road\n1: sky\n", 1, ["`0 road`"]),
        ("1. road\n2. sky\n", 1, ["`1 road`"]),
        ("7, 8 road\nsky\n", 1, ["`7,8 road`"]),
        ("7 road 0\n8 sky 1\n", 1, ["`7 road`"]),
        ("0\n1\n2\n", 1, ["number", "`0 road`"]),
        ("0 0\n1 1\n", 1, ["number"]),
        ("sky\n3.5\n", 2, ["number"]),
        ("road\nsky\n-1 ignore\n", 3, ["0 to 255"]),
        ('"road"\n"sky"\n', 1, ["`road`"]),
        ("road,\nsky,\n", 1, ["`road`"]),
        ("road\nunlabeled\n", 2, ["VALUE ignore"]),
        ("7 road\n8 road\n", 2, ["repeated", "7,8 road"]),
        ("7,7 road\n8 sky\n", 1, ["value 7 is repeated"]),
        ("* ignore\n* rest\n", 2, ["repeated"]),
        ("*\nsky\n", 1, ["`* ignore`"]),
        ("#804080 road\nsky\n", 2, ["`#rrggbb sky`"]),
        ("#804080 road\n7 sky\n", 2, ["7 is not a color"]),
        ("#804080 road\n128,64,128 sky\n", 2, ["#804080 is repeated"]),
        ("128,64,128 road\n0,0,0 sky\n255 ignore\n", 1, ["`#804080 road`"]),
        ("300,1,1 road\n0,0,0 sky\n", 1, ["300", "above 255"]),
        ("#804080 road #000000\n#000001 sky\n", 1, ["two colors"]),
    ],
)
def test_wrong_forms_are_answered_with_the_right_line(text, line, words):
    with pytest.raises(DataError) as error:
        parse_classes("data/classes.txt", text)
    assert str(error.value).startswith(f"data/classes.txt, line {line}: ")
    assert [word for word in words if word not in str(error.value)] == []


def test_list_in_one_line():
    with pytest.raises(DataError, match="lists 1 class;.*`road`, `sky`, `car`"):
        parse_classes("classes.txt", "road, sky, car\n")


def test_names_with_numbers_and_commas():
    names = ("lane 1", "lane 2", "wall, building", "Boeing 747", "3D-Objekt", "bus/truck")
    assert parse_classes("x", "\n".join(names)).names == names
    assert parse_classes("x", "0 sky\n1 F 16\n").names == ("sky", "F 16")


@pytest.mark.parametrize(
    "text",
    [
        "7,8 road #804080\n0,1,2 sky\n11 ignore\n255 car\n",
        "lane 1\nlane 2\n",
        "255 ignore\n1,2,3 road\n4,5,6 sky\n",
        "* ignore\n7 road\n8 sky\n",
        "5 F 16\nsky\n",
    ],
)
def test_written_lists_select_the_same(text):
    listed = parse_classes("x", text)
    assert parse_classes("x", classes_text(listed.names, listed.palette, listed.label_table)) == listed
