"""Time calls in turn for benchmarks.server and print their seconds as JSON.

python -m benchmarks.server_direct overhead MODEL_DIRECTORY NAME HOST:PORT IMAGE PAIRS THREADS
python -m benchmarks.server_direct export MODEL_DIRECTORY HEIGHT WIDTH PAIRS
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Untimed calls before the timed ones.
WARM_UP = 3


def overhead(directory: str, name: str, server: str, image: str, pairs: int, threads: int) -> dict[str, list[float]]:
    """Return the seconds of Predict over gRPC, and of the same signature called in this process.

    It is called in a session with the server's thread settings, and as a function of TensorFlow 2.
    """
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from serving.core import session_model

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    data = Path(image).read_bytes()
    values = np.array([data], object)
    session = session_model.load_session_model(Path(directory), ("serve",), session_model.Threads(0, 1, threads))
    function = tf.saved_model.load(directory).signatures["serving_default"]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(server, [("grpc.max_receive_message_length", -1)])
    )
    outputs = tuple(session.signatures["serving_default"].outputs)

    def predict() -> bytes:
        # The work of the client counts, as for any user.
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data]))
        return stub.Predict(request, timeout=300).outputs["png_bytes"].string_val[0]

    calls = {
        "gRPC": predict,
        "session": lambda: session.run("serving_default", {"image_bytes": values}, outputs, None)["png_bytes"][0],
        "function": lambda: function(image_bytes=tf.constant([data]))["png_bytes"].numpy()[0],
    }
    if len({call() for call in calls.values()}) > 1:
        raise ValueError("the server and a direct call give different answers")
    return in_turn(calls, pairs)


def export(directory: str, height: int, width: int, pairs: int) -> dict[str, list[float]]:
    """Return the seconds of the exported model, and of the compiled Keras model of its config with random weights."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kseg import config as configs
    from kseg import models
    from kseg.inference import prediction

    config = configs.from_json(Path(directory, "assets", "config.json").read_text(encoding="utf-8"))
    protocol = prediction.protocol_of(config)
    classes = json.loads(Path(directory, "assets", "classes.json").read_text(encoding="utf-8"))["classes"]
    model = models.build(config.model, len(classes))
    # The auxiliary outputs only serve the loss.
    main = keras.Model(model.input, {"main": model.output["main"]})

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
    def compiled(images: tf.Tensor) -> tf.Tensor:
        size = tf.shape(images)
        return tf.cast(prediction.predict_ids(main, images, (size[1], size[2]), protocol), tf.uint8)

    exported = tf.saved_model.load(directory).signatures["predict_tensor"]
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8))
    return in_turn(
        {
            "Keras model, compiled": lambda: compiled(image).numpy(),
            "exported": lambda: exported(image=image)["class_map"].numpy(),
        },
        pairs,
    )


def in_turn(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of all calls in all rounds; the order is reversed in every other round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            calls[name]()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    # Prints of libraries go to standard error, so that the answer is the only output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, *words = sys.argv[1:]
    numbers = [int(word) if word.isdecimal() else word for word in words]
    print(json.dumps({"overhead": overhead, "export": export}[kind](*numbers)), file=answer, flush=True)
