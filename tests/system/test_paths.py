"""Paths that TensorFlow cannot work with are refused before anything is written, and paths of any bytes printed."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from kseg.config.sections import Data
from kseg.datasets import prepare
from kseg.errors import DataError, UserError
from kseg.exporting import exporter
from kseg.system.paths import path_fault, printable
from pipeline import run_local
from serving.config import files
from serving.config.flags import Options
from serving.core import manager
from serving.errors import ServingError
from tests.helpers.small_sets import folder

# The fault of each name.
REFUSED = {"a[b]": "pattern", "a\\b": "pattern", os.fsdecode(b"caf\xe9"): "not UTF-8"}


def test_star_and_question_mark_match_themselves():
    usable = ("a b", "a*b", "a?b", "a{b}", "caf\xe9")
    assert [bool(path_fault(path)) for path in (*usable, *REFUSED)] == [False] * 5 + [True] * 3


def test_bytes_that_are_not_utf_8_are_printed_as_escapes():
    assert printable(os.fsdecode("café ".encode() + b"\xe9\n\xff.png")) == "café \\xe9\n\\xff.png"


@pytest.mark.parametrize("name", REFUSED, ids=["bracket", "backslash", "bytes"])
def test_exports_pipelines_servers_and_preparations_refuse_them(tmp_path, tmp_path_factory, name):
    fault, path, source = REFUSED[name], tmp_path / name, tmp_path_factory.mktemp("source") / "set"
    folder(source, {"train": [np.zeros((2, 3))]})
    with pytest.raises(DataError, match=f"--directory .*{fault}"):
        prepare.prepare_dataset(Data(name="folder", directory=str(path)), source)
    with pytest.raises(UserError, match=f"--out .*{fault}"):
        exporter.export(None, SimpleNamespace(), None, path)
    for arguments in (["--root", path], ["--root", tmp_path / "plain", "--serving", path]):
        with pytest.raises(UserError, match=fault):
            run_local.main(["--config", "encnet_shapes", *map(str, arguments)])
    with pytest.raises(ServingError, match=fault):
        listed = files.read_model_config(Options(model_base_path=str(path)))
        manager.check_model_configs(listed.model_config_list.config)
    assert not list(tmp_path.iterdir())
