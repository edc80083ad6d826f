"""What training is told by the pipeline: where its records lie, what it starts from, and where it is continued."""

from types import SimpleNamespace

import pytest

from kseg import config as configs
from kseg.errors import WorkdirError
from pipeline.components import trainer


class Told(Exception):
    """In place of a training: (config, workdir)."""


@pytest.fixture
def told(tmp_path, monkeypatch):
    def train(config, workdir, strategy):
        raise Told(config, workdir)

    monkeypatch.setattr(trainer.train, "train", train)

    def run(*overrides, base=None, examples="1"):
        config = configs.load("encnet_shapes", ["init.backbone=resnet18", *overrides])
        with pytest.raises(Told) as raised:
            trainer.run_fn(SimpleNamespace(
                custom_config={"config": configs.to_json(config), "training": str(tmp_path / "training")},
                train_files=[f"{tmp_path}/examples/{examples}/Split-train/*"], base_model=base))
        return raised.value.args

    return run


def test_records_are_read(told, tmp_path):
    config, workdir = told()
    assert (config.data.name, config.data.directory) == ("folder", str(tmp_path / "examples" / "1"))
    assert (config.init.backbone, config.init.weights) == ("resnet18", "")
    assert workdir.parent == tmp_path / "training"
    # A set that kseg has a form for keeps its name.
    assert told("data.name=camvid")[0].data.name == "camvid"


def test_warm_start(told, tmp_path):
    weights = tmp_path / "model" / "Format-TFMA" / "best.weights.h5"
    weights.parent.mkdir(parents=True)
    weights.touch()
    base = str(tmp_path / "model" / "Format-Serving")
    config, workdir = told(base=base)
    # The whole model starts from those; the backbone's own would only be overwritten.
    assert (config.init.backbone, config.init.weights) == ("", str(weights))
    assert workdir != told()[1]
    weights.unlink()
    with pytest.raises(WorkdirError, match="best.weights.h5"):
        trainer.run_fn(SimpleNamespace(
            custom_config={"config": configs.to_json(configs.load("encnet_shapes")), "training": str(tmp_path)},
            train_files=[f"{tmp_path}/examples/1/Split-train/*"], base_model=base))


def test_the_same_training_is_found_again(told):
    workdir = told()[1]
    assert told()[1] == workdir
    others = {told("train.steps=7")[1], told(examples="2")[1], told("train.seed=1")[1]}
    assert len(others | {workdir}) == 4


def test_buckets_are_mounted():
    assert str(trainer.here("gs://bucket/a/b")) == "/gcs/bucket/a/b"
    assert str(trainer.here("/data/a")) == "/data/a"
