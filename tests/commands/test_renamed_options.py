"""Options under the names of the previous release."""

import pytest

from kseg import data
from kseg.config import renames


@pytest.mark.parametrize("option, noted", [("--out", False), ("--directory", True)])
def test_prepare_writes_to_out_and_takes_the_old_name_with_a_note(option, noted, capsys):
    renames.note.cache_clear()
    values = data.build_parser().parse_args(["prepare", "folder", "--source", "a", option, "b"])
    assert values.directory == "b" and ("--directory is now --out" in capsys.readouterr().err) == noted


def test_prepare_has_its_usual_place_without_an_option():
    assert data.build_parser().parse_args(["prepare", "folder", "--source", "a"]).directory == ""
