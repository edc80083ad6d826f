"""A config names the initial weights of a training run."""

import numpy as np
import pytest

from kseg import config as configs
from kseg import models
from kseg.errors import ConfigError, WeightsError
from kseg.weights import downloads, loading
from tests.helpers.original_files import state_of


def tiny_config(*overrides):
    small = ["model.width=4", "model.channels=8", "model.auxiliary_channels=4"]
    return configs.load("encnet_camvid", [*small, *overrides])


def backbone_arrays(model):
    """Return the backbone's weights by torchvision's names."""
    return {
        name.removeprefix("backbone."): array for name, array in state_of(model).items() if name.startswith("backbone.")
    }


@pytest.fixture(scope="module")
def donor():
    return models.build(tiny_config().model, 11)


def test_init_loads_a_whole_model_or_a_backbone_except_skipped_weights(tmp_path, donor):
    np.savez(tmp_path / "a.npz", **state_of(donor))
    donor.save_weights(tmp_path / "a.weights.h5")
    np.savez(tmp_path / "b.npz", **backbone_arrays(donor))
    for init, skipped in [
        (f"init.weights={tmp_path / 'a.npz'}", "decode_head.conv_seg.bias"),
        (f"init.weights={tmp_path / 'a.weights.h5'}", "decode_head.conv_seg.bias"),
        (f"init.backbone={tmp_path / 'b.npz'}", "bn1.running_mean"),
    ]:
        config = tiny_config(init, f"init.skip={skipped}")
        model = models.build(config.model, 11)
        for variable in model.weights:
            variable.assign(np.full(variable.shape, 7))
        notes = loading.load_initial(model, config)
        assert str(tmp_path) in notes[0] and f"init.skip skipped 1: {skipped}" in notes[-1]
        whole = init.startswith("init.weights")
        expected = state_of(donor)
        for name, array in state_of(model).items():
            loaded = (whole or name.startswith("backbone.")) and name not in (skipped, f"backbone.{skipped}")
            assert np.array_equal(array, expected[name]) if loaded else (array == 7).all(), name
    assert loading.load_initial(donor, tiny_config()) == []


def test_a_backbone_and_a_whole_model_exclude_each_other():
    with pytest.raises(ConfigError, match="init.weights.*init.backbone=a.npz"):
        tiny_config("init.weights=a.pth", "init.backbone=a.npz")


def test_a_whole_model_and_a_backbone_are_not_confused(tmp_path, donor):
    np.savez(tmp_path / "a.npz", **state_of(donor))
    config = tiny_config(f"init.backbone={tmp_path / 'a.npz'}")
    with pytest.raises(WeightsError, match="decode_head.conv_seg.weight"):
        loading.load_initial(donor, config)
    # Skipping its heads makes the file a backbone.
    loading.load_initial(
        donor, tiny_config(f"init.backbone={tmp_path / 'a.npz'}", "init.skip=decode_head.*,auxiliary_head.*")
    )
    np.savez(tmp_path / "b.npz", **backbone_arrays(donor))
    with pytest.raises(WeightsError, match="b.npz contains only a backbone.*init.backbone"):
        loading.load_initial(donor, tiny_config(f"init.weights={tmp_path / 'b.npz'}"))


def test_a_published_backbone_is_found_by_its_name(tmp_path, donor, monkeypatch):
    np.savez(tmp_path / "published.npz", **backbone_arrays(donor))
    names = []
    monkeypatch.setattr(downloads, "fetch_backbone", lambda name: names.append(name) or tmp_path / "published.npz")
    notes = loading.load_initial(donor, tiny_config("init.backbone=resnet18_v1c"))
    assert names == ["resnet18_v1c"] and str(tmp_path / "published.npz") in notes[0]
    with pytest.raises(WeightsError, match="absent.pth does not exist"):
        loading.load_initial(donor, tiny_config("init.backbone=absent.pth"))


def test_a_failed_load_changes_nothing(tmp_path, donor):
    state = state_of(donor)
    state["decode_head.conv_seg.bias"] = state["decode_head.conv_seg.bias"] * np.nan
    np.savez(tmp_path / "a.npz", **state)
    model = models.build(tiny_config().model, 11)
    before = state_of(model)
    with pytest.raises(WeightsError, match="non-finite values in 1 weights: decode_head.conv_seg.bias"):
        loading.load_checkpoint(model, tmp_path / "a.npz", "encnet")
    assert all(np.array_equal(array, before[name]) for name, array in state_of(model).items())


def test_impossible_weights_and_skips_are_refused(tmp_path, donor):
    state = state_of(donor)
    state["backbone.bn1.running_var"] = -state["backbone.bn1.running_var"]
    np.savez(tmp_path / "a.npz", **state)
    with pytest.raises(WeightsError, match="negative variances in backbone.bn1.running_var"):
        loading.load_checkpoint(donor, tmp_path / "a.npz", "encnet")
    np.savez(tmp_path / "b.npz", **state_of(donor))
    with pytest.raises(WeightsError, match="init.skip skips all"):
        loading.load_checkpoint(donor, tmp_path / "b.npz", "encnet", skip=["*"])


def test_a_long_error_repeats_its_first_line_at_the_end(tmp_path, donor):
    np.savez(tmp_path / "b.npz", **backbone_arrays(donor))
    with pytest.raises(WeightsError) as error:
        loading.load_checkpoint(donor, tmp_path / "b.npz", "encnet")
    lines = str(error.value).splitlines()
    assert len(lines) > 20 and lines[0] == lines[-1] and "contains only a backbone" in lines[0]
