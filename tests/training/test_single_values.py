"""Norms that see one value per channel are found from the shapes of the training graph."""

import re

import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg import models
from kseg.errors import ConfigError
from kseg.models import norms
from kseg.training import optimizers, trainer
from kseg.training.single_values import require_several_values
from tests.helpers.exhaustive import all_of
from tests.helpers.small_models import tiny
from tests.helpers.small_sets import config as config_of
from tests.helpers.small_sets import folder

POOLED = {
    "deeplabv3": ["decode_head.image_pool.1.bn"],
    "deeplabv3plus": ["decode_head.image_pool.1.bn"],
    "pspnet": ["decode_head.psp_modules.0.1.bn"],
    "apcnet": [f"decode_head.acm_modules.{index}.global_info.bn" for index in range(3)],
    "encnet": [],
    "fcn": [],
}


def counted_values(model, shape, monkeypatch):
    """Return {layer name: values per channel} that the norms of a model really see in training mode."""
    seen = {}
    call = norms.BatchNormalization.call
    monkeypatch.setattr(
        norms.BatchNormalization,
        "call",
        lambda layer, inputs, training=False: (
            seen.update({layer.name: int(np.prod(inputs.shape[:-1]))}) if training and layer.trainable else None,
            call(layer, inputs, training=training),
        )[1],
    )
    model(tf.zeros(shape), training=True)
    return seen


@pytest.fixture(scope="module", params=POOLED)
def head(request):
    return request.param


@pytest.fixture(scope="module", params=all_of([False], True))
def network(request, head):
    return models.build(tiny(head=head), 3, recompute=request.param)


@pytest.mark.parametrize("crop", [(64, 64), (8, 8), (8, 40), (1, 1)])
def test_the_refused_layers_are_those_that_see_one_value(network, head, crop, monkeypatch):
    # Another case may have frozen layers of the same model.
    network.trainable = True
    seen = counted_values(network, (1, *crop, 3), monkeypatch)
    single = [name for name, values in seen.items() if values == 1]
    if crop == (64, 64):
        assert set(POOLED[head]) <= set(single) and bool(POOLED[head]) == bool(single)
    if not single:
        require_several_values(network, 1, 1, crop)
        return
    with pytest.raises(ConfigError) as caught:
        require_several_values(network, 1, 1, crop)
    named = re.search(r"norms? (\S+)", str(caught.value))[1].rstrip(",")
    assert named in single and "train.global_batch=2" in str(caught.value)
    if len(single) <= 3:
        frozen = re.search(r"train\.freeze=(\S+)", str(caught.value))[1].split(",")
        assert sorted(frozen) == sorted(single)
        optimizers.freeze_layers(network, frozen)
        require_several_values(network, 1, 1, crop)
    require_several_values(network, 2, 1, crop)


@pytest.mark.parametrize(
    ("batch", "parts", "refused", "advice"),
    [
        (1, 1, True, "train.global_batch=2"),
        (4, 4, True, "train.accumulate to at most 2"),
        (4, 2, False, ""),
        (2, 2, True, "train.global_batch=4"),
        (2, 1, False, ""),
    ],
)
def test_parts_count_on_their_own(batch, parts, refused, advice):
    network = models.build(tiny(head="pspnet"), 3)
    if not refused:
        require_several_values(network, batch, parts, (64, 64))
        return
    with pytest.raises(ConfigError, match=f"decode_head.psp_modules.0.1.bn .*{advice}"):
        require_several_values(network, batch, parts, (64, 64))


def test_a_larger_crop_is_advised_only_where_it_helps():
    for head, helps in (("fcn", True), ("pspnet", False)):
        with pytest.raises(ConfigError) as caught:
            require_several_values(models.build(tiny(head=head), 3), 1, 1, (8, 8))
        assert ("augment.crop" in str(caught.value)) == helps


def test_training_is_refused_before_its_first_step(tmp_path):
    label = np.zeros((16, 16))
    config = config_of(folder(tmp_path / "data", {"train": [label] * 2, "val": [label]}), (16, 16), batch=1)
    config = configs.from_dict(
        configs.to_dict(config) | {"model": configs.to_dict(configs.Config(model=tiny(head="deeplabv3")))["model"]}
    )
    with pytest.raises(ConfigError, match="decode_head.image_pool.1.bn"):
        trainer.train(config, tmp_path / "run", tf.distribute.get_strategy(), report=lambda line: None)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_several_replicas_of_one_image_are_no_single_value():
    """Synchronized norms share their statistics over replicas: their global batch counts."""
    require_several_values(models.build(tiny(head="deeplabv3"), 3), 2, 1, (64, 64))
