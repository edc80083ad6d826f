"""Paths that TensorFlow takes for patterns are refused before anything is written."""

from types import SimpleNamespace

import pytest
from tensorflow_serving.config import model_server_config_pb2 as config_pb2

from kseg.errors import UserError
from kseg.exporting import exporter
from kseg.system.patterns import pattern_fault
from pipeline import run_local
from serving.core import manager
from serving.errors import ServingError

REFUSED = ("a[b]", "a\\b")


def test_star_and_question_mark_match_themselves():
    assert [bool(pattern_fault(path)) for path in ("a b", "a*b", "a?b", "a{b}", *REFUSED)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_exports_pipelines_and_servers_refuse_them(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(UserError, match="--out .*pattern"):
        exporter.export(None, SimpleNamespace(), None, path)
    for arguments in (["--root", path], ["--root", tmp_path / "plain", "--serving", path]):
        with pytest.raises(UserError, match="pattern"):
            run_local.main(["--config", "encnet_shapes", *map(str, arguments)])
    model = config_pb2.ModelConfig(name="m", base_path=str(path), model_platform="tensorflow")
    with pytest.raises(ServingError, match="pattern"):
        manager.check_model_configs([model])
    assert not list(tmp_path.iterdir())
