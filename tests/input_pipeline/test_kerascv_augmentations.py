"""KerasCV layers change colors but not labels, and their draws depend on the seed only."""

import builtins
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from kseg.errors import ConfigError
from kseg.input_pipeline import kerascv_augmentations
from tests.helpers.small_sets import config, folder
from tests.helpers.splits import train_batches

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 17, 3)).astype(np.float32)


def augmented(name, count=6, start=0, threads=1):
    change = kerascv_augmentations.build_extra_augmentations((name,))
    seeds = tf.data.Dataset.range(start, count).map(lambda step: tf.stack([3, tf.cast(step, tf.int32)]))
    changed = tf.autograph.experimental.do_not_convert(lambda seed: change(IMAGE, seed))
    return [image.numpy() for image in seeds.map(changed, num_parallel_calls=threads)]


def test_draws_depend_on_the_step_only_and_images_become_smoother():
    pytest.importorskip("keras_cv")
    for name in kerascv_augmentations.LAYERS:
        images = augmented(name)
        assert len({image.tobytes() for image in images}) > 3
        assert all((image == again).all() for image, again in zip(images[2:], augmented(name, 6, 2, 4), strict=True))
        for image in images:
            assert image.shape == IMAGE.shape and (image == np.round(image)).all()
            assert 0 <= image.min() and image.max() <= 255 and image[1:-1, 1:-1].std() <= IMAGE[1:-1, 1:-1].std() + 0.5
        assert min(image.std() for image in images) < 0.9 * IMAGE.std()


def test_batches_are_augmented_and_labels_unchanged(tmp_path):
    pytest.importorskip("keras_cv")
    label = np.random.default_rng(1).integers(0, 3, (8, 8))
    settings = config(folder(tmp_path, {"train": [label] * 2}))
    for index in range(2):
        tf.io.write_file(
            str(tmp_path / f"train/images/e{index:02d}.png"), tf.io.encode_png(tf.constant(IMAGE[:8, :8], tf.uint8))
        )
    extra = dataclasses.replace(settings, augment=dataclasses.replace(settings.augment, extra=("gaussian_blur",)))
    (plain,), (blurred,) = (list(train_batches(case).take(1)) for case in (settings, extra))
    assert (plain["label"].numpy() == blurred["label"].numpy()).all()
    assert (plain["image"].numpy() != blurred["image"].numpy()).mean() > 0.2


def test_layers_work_with_deterministic_training():
    pytest.importorskip("keras_cv")
    # tests/conftest.py ends it with the test.
    tf.config.experimental.enable_op_determinism()
    change = kerascv_augmentations.build_extra_augmentations(tuple(kerascv_augmentations.LAYERS))
    assert change(tf.zeros((4, 5, 3)), tf.constant([0, 1])).shape == (4, 5, 3)


def test_unknown_layers_are_refused():
    with pytest.raises(ConfigError, match="unknown layer in augment.extra 'gausian_blur'. Did you mean gaussian_blur"):
        kerascv_augmentations.build_extra_augmentations(("gausian_blur",))


def test_missing_keras_cv_names_the_extra_to_install(monkeypatch):
    original = builtins.__import__

    def without(name, *rest, **more):
        if name == "keras_cv":
            raise ImportError("No module named 'keras_cv'")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"augment.extra needs KerasCV.*\[dev\]"):
        kerascv_augmentations.build_extra_augmentations(("sharpness",))
    assert kerascv_augmentations.build_extra_augmentations(()) is not None
