"""Write the warm-up requests that a server replays before a new version answers requests.

assets.extra/tf_serving_warmup_requests is a TFRecord file of at most 1000 PredictionLog messages (TensorFlow Serving).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from kseg.exporting.signatures import IMAGE_FEATURE

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")


def write_warmup(
    directory: Path, size: tuple[int, int], batches: tuple[int, ...], report: Callable[[str], None]
) -> None:
    """Write one request per signature and batch size of a SavedModel, read them back and run them.

    Without the extra [serving], which has the classes of the messages, nothing is written but a line of `report`.

    Args:
        directory: The SavedModel.
        size: (height, width) of the images, pixels.
        batches: Numbers of images per request.
        report: Receives the note.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        report("no warm-up requests written: they need tensorflow-serving-api, which the extra [serving] installs")
        return
    signatures = tf.saved_model.load(str(directory)).signatures
    path = directory / WARMUP_FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name in sorted(signatures):
            for batch in batches:
                log = prediction_log_pb2.PredictionLog()
                log.predict_log.request.model_spec.signature_name = name
                for key, values in example_inputs(signatures[name], size, batch).items():
                    log.predict_log.request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
                writer.write(log.SerializeToString())
    replay_warmup(path, signatures)


def replay_warmup(path: Path, signatures: Mapping[str, Callable]) -> int:
    """Run the requests of a warm-up file on the signatures of a loaded model, and return their number."""
    from tensorflow_serving.apis import prediction_log_pb2

    count = 0
    for count, record in enumerate(tf.data.TFRecordDataset(str(path)), 1):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        signatures[request.model_spec.signature_name](**inputs)
    return count


def example_inputs(
    signature: tf.types.experimental.ConcreteFunction, size: tuple[int, int], batch: int
) -> dict[str, np.ndarray]:
    """Return the inputs of a signature for `batch` images of (height, width) `size` that show a gray ramp."""
    image = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8)[:, None], (*size, 3))
    encoded = tf.io.encode_jpeg(image).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    example = tf.train.Example(features=tf.train.Features(feature={IMAGE_FEATURE: feature}))
    values = {
        "image_bytes": np.array([encoded] * batch, object),
        "image": np.stack([image] * batch),
        "examples": np.array([example.SerializeToString()] * batch, object),
    }
    return {key: values[key] for key in signature.structured_input_signature[1]}
