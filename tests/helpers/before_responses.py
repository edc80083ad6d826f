"""Print the answers of SavedModels as facts in JSON, a line for each, with TensorFlow alone.

python -m tests.helpers.before_responses DIRECTORY ... -- IMAGE ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.helpers.before import digest


def facts(array):
    return {
        "bits": digest(array),
        "shape": list(array.shape),
        "mean": float(array.mean()),
        "shares": (np.bincount(array.ravel(), minlength=256)[:7] / array.size).tolist(),
    }


def main(place, images):
    signatures = tf.saved_model.load(place).signatures
    data = [Path(picture).read_bytes() for picture in images]
    found = {name: {} for name in sorted(signatures)}
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[each]))}
            )
        ).SerializeToString()
        for each in data
    ]
    strings = {
        "serving_default": {"image_bytes": tf.constant(data)},
        "predict_map": {"image_bytes": tf.constant(data)},
        "serve_tf_examples": {"examples": tf.constant(examples)},
    }
    answers = {name: signatures[name](**request) for name, request in strings.items()}
    pixels = tf.io.decode_image(data[0], 3, expand_animations=False)[None]
    answers |= {name: signatures[name](image=pixels) for name in ("predict_tensor", "predict_scores")}
    for name, answer in answers.items():
        for key, value in sorted(answer.items()):
            value = value.numpy()
            found[name][key] = (
                [facts(tf.io.decode_png(each).numpy()) for each in value] if value.dtype == object else facts(value)
            )
            if value.dtype == object:
                found[name]["bytes"] = {"bits": [digest(np.frombuffer(each, np.uint8)) for each in value]}
    print(json.dumps(found))


if __name__ == "__main__":
    separator = sys.argv.index("--")
    for directory in sys.argv[1:separator]:
        main(directory, sys.argv[separator + 1 :])
