"""Paths that TensorFlow takes for patterns are refused before anything is written."""

from types import SimpleNamespace

import numpy as np
import pytest
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from kseg.config.sections import Data
from kseg.datasets import prepare
from kseg.errors import DataError, UserError
from kseg.exporting import exporter
from kseg.system.patterns import pattern_fault
from pipeline import run_local
from serving.core import manager
from serving.errors import ServingError
from tests.helpers.small_sets import folder

REFUSED = ("a[b]", "a\\b")


def test_star_and_question_mark_match_themselves():
    assert [bool(pattern_fault(path)) for path in ("a b", "a*b", "a?b", "a{b}", *REFUSED)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_exports_pipelines_servers_and_preparations_refuse_them(tmp_path, tmp_path_factory, name):
    path, source = tmp_path / name, tmp_path_factory.mktemp("source") / "set"
    folder(source, {"train": [np.zeros((2, 3))]})
    with pytest.raises(DataError, match="--directory .*pattern"):
        prepare.prepare_dataset(Data(name="folder", directory=str(path)), source)
    with pytest.raises(UserError, match="--out .*pattern"):
        exporter.export(None, SimpleNamespace(), None, path)
    for arguments in (["--root", path], ["--root", tmp_path / "plain", "--serving", path]):
        with pytest.raises(UserError, match="pattern"):
            run_local.main(["--config", "encnet_shapes", *map(str, arguments)])
    model = config_pb2.ModelConfig(name="m", base_path=str(path), model_platform="tensorflow")
    with pytest.raises(ServingError, match="pattern"):
        manager.check_model_configs([model])
    assert not list(tmp_path.iterdir())
