"""Warm-up requests: what a server runs on a new version before anybody's request reaches it.

assets.extra/tf_serving_warmup_requests is a TFRecord of PredictionLog messages, at most 1000 (TensorFlow Serving).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from kseg.exporting.signatures import IMAGE_FEATURE

PLACE = Path("assets.extra", "tf_serving_warmup_requests")


def write(directory: Path, size: tuple[int, int], batches: tuple[int, ...], report: Callable[[str], None]) -> None:
    """Write a request for each signature and batch size of a SavedModel, read all back and run them.

    Pictures are (height, width) `size`. The messages' classes come with the extra [serving]; without it nothing is
    written, and `report` says so.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        report("no warm-up requests: they need tensorflow-serving-api, which the extra [serving] installs")
        return
    signatures = tf.saved_model.load(str(directory)).signatures
    path = directory / PLACE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name in sorted(signatures):
            for batch in batches:
                log = prediction_log_pb2.PredictionLog()
                log.predict_log.request.model_spec.signature_name = name
                for key, values in example_inputs(signatures[name], size, batch).items():
                    log.predict_log.request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
                writer.write(log.SerializeToString())
    replay(path, signatures)


def replay(path: Path, signatures) -> int:
    """Run the requests of a warm-up file on a loaded model's signatures, as a server does, and return how many."""
    from tensorflow_serving.apis import prediction_log_pb2

    count = 0
    for count, record in enumerate(tf.data.TFRecordDataset(str(path)), 1):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        signatures[request.model_spec.signature_name](**inputs)
    return count


def example_inputs(signature, size: tuple[int, int], batch: int) -> dict[str, np.ndarray]:
    """Return inputs of that many pictures, of grey ramps, for a signature of kseg.exporting.signatures."""
    image = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8)[:, None], (*size, 3))
    encoded = tf.io.encode_jpeg(image).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    example = tf.train.Example(features=tf.train.Features(feature={IMAGE_FEATURE: feature}))
    values = {"image_bytes": np.array([encoded] * batch, object), "image": np.stack([image] * batch),
              "examples": np.array([example.SerializeToString()] * batch, object)}
    return {key: values[key] for key in signature.structured_input_signature[1]}
