"""The working directory: whose it is, what may change in it, and files that were damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kseg import config as configs
from kseg import datasets, train, workdirs
from kseg.config import Config, Model
from kseg.errors import WorkdirError

CAMVID = datasets.DATASETS["camvid"]


@pytest.fixture
def workdir(tmp_path):
    """A directory in which a run has written a checkpoint."""
    workdirs.open_run(tmp_path / "run", Config(), CAMVID).close()
    (tmp_path / "run" / "checkpoints" / "step-00000001.index").touch()
    return tmp_path / "run"


def test_one_process_at_a_time(workdir):
    with workdirs.open_run(workdir, Config(), CAMVID):
        with pytest.raises(WorkdirError, match="another process is training in"):
            workdirs.open_run(workdir, Config(), CAMVID)
    workdirs.open_run(workdir, Config(), CAMVID).close()


@pytest.mark.parametrize("before, now, free", [
    ("train.log_every=50", "train.log_every=7", True), ("train.seed=0", "train.seed=1", False),
    ("init.backbone=a.npz", "init.backbone=elsewhere/a.npz", True),
    ("init.backbone=", "init.backbone=a.npz", False), ("init.backbone=a.npz", "init.backbone=", False),
    ("init.weights=a.pth", "init.weights=b.pth", True), ("init.skip=", "init.skip=decode_head.*", False)])
def test_what_may_change_once_something_is_trained(tmp_path, before, now, free):
    old, new = (configs.set_value(Config(), value) for value in (before, now))
    workdirs.open_run(tmp_path, old, CAMVID).close()
    # Nothing is trained yet: a config that was mended may take the directory.
    workdirs.open_run(tmp_path, new, CAMVID).close()
    workdirs.open_run(tmp_path, old, CAMVID).close()
    (tmp_path / "checkpoints" / "step-00000001.index").touch()
    if free:
        workdirs.open_run(tmp_path, new, CAMVID).close()
        assert workdirs.read(tmp_path)[0] == new
    else:
        with pytest.raises(WorkdirError, match="belongs to another run"):
            workdirs.open_run(tmp_path, new, CAMVID)
        assert workdirs.read(tmp_path)[0] == old


def test_another_label_table_is_refused(workdir):
    swapped = replace(CAMVID, label_table=(1, 0, *CAMVID.label_table[2:]))
    with pytest.raises(WorkdirError, match="label value 0 as 0, the data now reads it as 1"):
        workdirs.open_run(workdir, Config(), swapped)


@pytest.mark.parametrize("name, content", [
    ("config.json", ""), ("config.json", "[]"), ("dataset.json", ""), ("dataset.json", "{}"), ("dataset.json", "[]"),
    ("dataset.json", '{"name": "none"}')])
def test_damaged_files_are_named(workdir, name, content):
    (workdir / name).write_text(content)
    with pytest.raises(WorkdirError, match=name):
        workdirs.read(workdir)


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    workdirs.trim_metrics(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines) + "\n"
    workdirs.trim_metrics(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:3]) + "\n"


def test_a_checkpoint_knows_its_values_in_the_same_process_too():
    """A second model of one process has the same names, though Keras numbers what it is not told to name."""
    config = replace(Config(), model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4))
    names = []
    for _ in range(2):
        checkpoint = workdirs.tracked(*train.build(config, 3, print))
        names.append({name for name, _ in checkpoint._trackable_children().items() if "/" in name})
    assert names[0] == names[1] and len(names[0]) > 100


@pytest.mark.parametrize("name, directory", [
    ("encnet_shapes", "runs/encnet_shapes"),
    ("encnet_cityscapes:r101-d8-769x769-80k", "runs/encnet_cityscapes-r101-d8-769x769-80k")])
def test_the_default_directory_of_a_run_has_no_colon(name, directory):
    assert workdirs.default(configs.load(name)) == Path(directory)
