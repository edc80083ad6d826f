"""Old spellings of keys and values work wherever a config is read, with one note on stderr."""

import dataclasses
import json

import pytest

from kseg import config as configs
from kseg.config import Augment, Config, renames
from kseg.config.values import config_differences
from kseg.datasets import registry
from kseg.errors import ConfigError, WorkdirError
from kseg.inference import trained_model
from kseg.training import working_directory

EXPECTED = Augment(pad="center", pad_color="black")
OLD_FILE = """
from kseg.config import Augment, Config
from kseg.config.variants import Variant
def config(): return Config(augment=Augment({keywords}))
VARIANTS = {{"old": Variant({{"augment.pad_colour": "black", "augment.pad": "centre"}})}}
"""


@pytest.fixture(autouse=True)
def new_notes():
    """Let each test print its notes again."""
    renames.note.cache_clear()


@pytest.fixture
def notes(capsys):
    """Return a function that returns the notes printed since the last call."""
    return lambda: [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


def assert_both_noted(lines):
    assert len(lines) == 2
    assert sum("augment.pad_colour is now augment.pad_color;" in line for line in lines) == 1
    assert sum("augment.pad=centre is now augment.pad=center;" in line for line in lines) == 1


def old_json(config):
    """Return the config as kseg 0.1.0 stored it."""
    values = configs.to_dict(config)
    values["augment"]["pad_colour"] = values["augment"].pop("pad_color")
    values["augment"]["pad"] = values["augment"]["pad"].replace("center", "centre")
    return json.dumps(values)


def test_overrides(notes):
    overrides = ["augment.pad_colour=black", "augment.pad=centre"]
    assert configs.load("encnet_camvid", overrides + overrides).augment == dataclasses.replace(
        configs.load("encnet_camvid").augment, pad="center", pad_color="black"
    )
    assert_both_noted(notes())


def test_keywords_in_a_config_file(tmp_path, notes):
    path = tmp_path / "mine.py"
    path.write_text(OLD_FILE.format(keywords="pad='centre', pad_colour='black'"))
    assert configs.load(str(path)).augment == EXPECTED
    assert_both_noted(notes())


def test_variants_of_a_config_file(tmp_path, notes):
    path = tmp_path / "mine.py"
    path.write_text(OLD_FILE.format(keywords=""))
    assert configs.load(f"{path}:old").augment == EXPECTED
    assert_both_noted(notes())


def test_keywords_positions_replacement_and_attributes(notes):
    section = Augment(pad="centre", pad_colour="black")
    assert section == EXPECTED and section.pad_colour == "black"
    assert dataclasses.replace(EXPECTED, pad_colour="mean").pad_color == "mean"
    assert dataclasses.replace(EXPECTED, flip=0.0) == Augment(pad="center", pad_color="black", flip=0.0)
    assert_both_noted(notes())
    with pytest.raises(TypeError, match="pad_couleur"):
        Augment(pad_couleur="black")


def test_stored_json(notes):
    config = Config(augment=EXPECTED)
    assert configs.from_json(old_json(config)) == config
    assert_both_noted(notes())


@pytest.mark.parametrize("changed", [False, True])
def test_a_working_directory_resumes(tmp_path, notes, changed):
    config = dataclasses.replace(configs.load("encnet_shapes"), augment=EXPECTED)
    dataset = registry.DATASETS["shapes"]
    working_directory.open_workdir(tmp_path, config, dataset).close()
    (tmp_path / "config.json").write_text(old_json(config))
    # With a checkpoint, only the same config may resume.
    (tmp_path / "checkpoints" / "step-00000001.index").touch()
    assert trained_model.read_config(tmp_path) == config
    assert_both_noted(notes())
    if changed:
        other = dataclasses.replace(config, augment=Augment(pad="center"))
        with pytest.raises(WorkdirError, match="augment.pad_color: black"):
            working_directory.open_workdir(tmp_path, other, dataset)
        return
    working_directory.open_workdir(tmp_path, config, dataset).close()
    assert (tmp_path / "config.json").read_text() == configs.to_json(config)


def test_current_names_print_no_note(notes):
    config = configs.load("encnet_camvid", ["augment.pad_color=black", "augment.pad=center"])
    assert config_differences(configs.from_json(configs.to_json(config)), config) == [] and notes() == []


def test_errors_name_the_current_key():
    with pytest.raises(ConfigError, match="augment.pad_color.*'green'"):
        configs.load("encnet_camvid", ["augment.pad_colour=green"])
