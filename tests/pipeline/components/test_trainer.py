"""Test the config and working directory that the pipeline passes to the training."""

from types import SimpleNamespace

import pytest

from kseg import config as configs
from kseg.errors import WorkdirError
from pipeline.components import trainer


class TrainCalled(Exception):
    """Call of the training, with its arguments (config, workdir)."""


@pytest.fixture
def train_arguments(tmp_path, monkeypatch):
    """Return a function that runs `run_fn` and returns the training's arguments (config, workdir)."""

    def train(config, workdir, strategy):
        raise TrainCalled(config, workdir)

    monkeypatch.setattr(trainer.trainer, "train", train)

    def run(*overrides, base=None, examples="1"):
        config = configs.load("encnet_shapes", ["init.backbone=resnet18", *overrides])
        with pytest.raises(TrainCalled) as raised:
            trainer.run_fn(
                SimpleNamespace(
                    custom_config={"config": configs.to_json(config), "training": str(tmp_path / "training")},
                    train_files=[f"{tmp_path}/examples/{examples}/Split-train/*"],
                    base_model=base,
                )
            )
        return raised.value.args

    return run


def test_training_reads_the_records(train_arguments, tmp_path):
    config, workdir = train_arguments()
    assert (config.data.name, config.data.directory) == ("folder", str(tmp_path / "examples" / "1"))
    assert (config.init.backbone, config.init.weights) == ("resnet18", "")
    assert workdir.parent == tmp_path / "training"
    # A dataset with a prepared format keeps its name.
    assert train_arguments("data.name=camvid")[0].data.name == "camvid"


def test_warm_start(train_arguments, tmp_path):
    weights = tmp_path / "model" / "Format-TFMA" / "best.weights.h5"
    weights.parent.mkdir(parents=True)
    weights.touch()
    base = str(tmp_path / "model" / "Format-Serving")
    config, workdir = train_arguments(base=base)
    # The weights cover the whole model, so those of the backbone are not needed.
    assert (config.init.backbone, config.init.weights) == ("", str(weights))
    assert workdir != train_arguments()[1]
    weights.unlink()
    with pytest.raises(WorkdirError, match="best.weights.h5"):
        trainer.run_fn(
            SimpleNamespace(
                custom_config={"config": configs.to_json(configs.load("encnet_shapes")), "training": str(tmp_path)},
                train_files=[f"{tmp_path}/examples/1/Split-train/*"],
                base_model=base,
            )
        )


def test_same_training_has_the_same_workdir(train_arguments):
    workdir = train_arguments()[1]
    assert train_arguments()[1] == workdir
    other_workdirs = {
        train_arguments("train.steps=7")[1],
        train_arguments(examples="2")[1],
        train_arguments("train.seed=1")[1],
    }
    assert len(other_workdirs | {workdir}) == 4


def test_buckets_are_mounted():
    assert str(trainer.local_path("gs://bucket/a/b")) == "/gcs/bucket/a/b"
    assert str(trainer.local_path("/data/a")) == "/data/a"
