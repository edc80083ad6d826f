"""Exports of a small model with different weights, requests for them, and their expected answers."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from kseg import config as configs
from kseg import models
from kseg.datasets import registry
from kseg.exporting import exporter
from kseg.exporting.signatures import IMAGE_FEATURE

CONFIG, OVERRIDES = (
    "encnet_shapes",
    ("model.width=4", "model.channels=8", "model.auxiliary_channels=4", "model.output_stride=16", "augment.crop=48,64"),
)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A request: a signature and its inputs."""

    signature: str
    inputs: Arrays

    def message(self, model: str) -> predict_pb2.PredictRequest:
        """Return the request for gRPC."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, self.signature
        for name, values in self.inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        return request


def export(out: Path, seeds: tuple[int, ...]) -> list[Path]:
    """Write versions 1, 2, ... of a model with different random weights and return their directories."""
    config = configs.load(CONFIG, list(OVERRIDES))
    dataset = registry.find_dataset(config.data)
    model = models.build(config.model, len(dataset.classes))
    return [_export(model, config, dataset, out, seed) for seed in seeds]


def _export(model: keras.Model, config: configs.Config, dataset: registry.Dataset, out: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    last = model.get_layer("decode_head.conv_seg")
    kernel, bias = last.get_weights()
    last.set_weights([random.normal(0, 1, kernel.shape), np.zeros_like(bias)])
    # Without this shift one class could win in all pixels.
    scores = model(random.normal(0, 1, (2, 64, 64, 3)).astype(np.float32))["main"].numpy()
    last.set_weights([last.get_weights()[0], -scores.mean((0, 1, 2))])
    return exporter.export(model, config, dataset, out)


def cases(seed: int = 0) -> list[Case]:
    """Return requests for all signatures with one and with several images of different sizes."""
    random = np.random.default_rng(seed)

    def random_image(height: int, width: int) -> np.ndarray:
        coarse = random.uniform(0, 255, (1, 6, 8, 3)).astype(np.float32)
        return tf.cast(tf.image.resize(coarse, (height, width), "bicubic", antialias=False), tf.uint8).numpy()[0]

    def encoded(*sizes: tuple[int, int]) -> np.ndarray:
        images = [random_image(*size) for size in sizes]
        return np.array(
            [
                (tf.io.encode_png if number % 2 else tf.io.encode_jpeg)(image).numpy()
                for number, image in enumerate(images)
            ],
            object,
        )

    def examples(*sizes: tuple[int, int]) -> np.ndarray:
        return np.array(
            [
                tf.train.Example(
                    features=tf.train.Features(
                        feature={IMAGE_FEATURE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
                    )
                ).SerializeToString()
                for data in encoded(*sizes)
            ],
            object,
        )

    return [
        Case("serving_default", {"image_bytes": encoded((120, 160))}),
        Case("serving_default", {"image_bytes": encoded((97, 131), (64, 200), (33, 20))}),
        Case("predict_map", {"image_bytes": encoded((150, 100), (60, 80))}),
        Case("predict_tensor", {"image": random_image(96, 128)[None]}),
        Case("predict_tensor", {"image": np.stack([random_image(40, 56) for _ in range(3)])}),
        Case("predict_scores", {"image": random_image(50, 70)[None]}),
        Case("serve_tf_examples", {"examples": examples((80, 90), (30, 40))}),
    ]


def answers(directory: Path, requests: list[Case]) -> list[Arrays]:
    """Return the answers of an exported version to requests, computed without a server."""
    signatures = tf.saved_model.load(str(directory)).signatures
    return [
        {
            name: values.numpy()
            for name, values in signatures[case.signature](
                **{name: tf.constant(values) for name, values in case.inputs.items()}
            ).items()
        }
        for case in requests
    ]


def equal(actual: Arrays, expected: Arrays) -> bool:
    """Return whether all outputs have the same names, dtypes, shapes and values."""
    return set(actual) == set(expected) and all(
        actual[name].dtype == values.dtype
        and actual[name].shape == values.shape
        and actual[name].tolist() == values.tolist()
        for name, values in expected.items()
    )
