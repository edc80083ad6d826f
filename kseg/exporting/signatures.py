"""Define the signatures of an exported model, in a graph of TensorFlow's own operations.

    serving_default    image_bytes string [N] -> png_bytes string [N], size int32 [N, 2]
    predict_map        image_bytes string [N] -> class_map uint8 [N, h, w], size int32 [N, 2]; h, w: the model's size
    predict_tensor     image uint8 [N, H, W, 3] -> class_map uint8 [N, H, W]
    predict_scores     image uint8 [N, H, W, 3] -> class_map uint8, confidence uint8 [N, H, W]
    predict_all_scores image uint8 [N, H, W, 3] -> scores float32 [N, H, W, C]; on request
    serve_tf_examples  examples string [N] of tf.train.Example, the image under image/encoded -> as serving_default

Images are RGB, JPEG or PNG, and their sizes may differ within one request. The PNG of an answer holds class ids at the
size of its image. `size` is the (height, width) of each image. Every signature first checks the rank of its input,
because a convolution would abort the server's process on a wrong one.
"""

from collections.abc import Callable

import tensorflow as tf

from kseg.exporting.precisions import Network
from kseg.images import resizing
from kseg.images.decoding import PNG_SIGNATURE, decode_image
from kseg.inference import prediction
from kseg.inference.prediction import Protocol

IMAGE_FEATURE = "image/encoded"


class Served(tf.Module):
    """Hold the signatures of a network as functions, for tf.saved_model.save.

    Args:
        network: Maps normalized images to logits.
        protocol: The test protocol: normalization, scales, flip, windows.
        size: (height, width) of the class maps of predict_map, pixels.
        max_pixels: Larger images are refused before they are decoded.
        all_scores: Whether to add predict_all_scores.

    Example:
        >>> import tensorflow as tf
        >>> from kseg.exporting.precisions import export_network
        >>> from kseg.inference import prediction, trained_model
        >>> model, config, _ = trained_model.load_trained(workdir)
        >>> network = export_network(model, config.model, precision="float32", device="any")
        >>> served = Served(network, prediction.protocol_of(config), (32, 48), max_pixels=10**6, all_scores=False)
        >>> served.functions["predict_tensor"](tf.zeros((1, 40, 56, 3), tf.uint8))["class_map"].shape
        TensorShape([1, 40, 56])
    """

    def __init__(self, network: Network, protocol: Protocol, size: tuple[int, int], max_pixels: int, all_scores: bool):
        super().__init__()
        self.network, self.protocol, self.size, self.max_pixels = network, protocol, size, max_pixels
        images = tf.TensorSpec((None, None, None, 3), tf.uint8)
        # All signatures share this function, so that the file contains its graph once.
        self.ids = tf.function(self._ids, input_signature=[images], autograph=False)
        strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
        pixels = tf.TensorSpec((None, None, None, 3), tf.uint8, name="image")
        examples = tf.TensorSpec((None,), tf.string, name="examples")
        methods: dict[str, tuple[Callable, tf.TensorSpec]] = {
            "serving_default": (self.serve, strings),
            "predict_map": (self.predict_map, strings),
            "predict_tensor": (self.predict_tensor, pixels),
            "predict_scores": (self.predict_scores, pixels),
            "serve_tf_examples": (self.serve_tf_examples, examples),
        }
        if all_scores:
            methods["predict_all_scores"] = (self.predict_all_scores, pixels)
        # The attribute cannot be called `signatures`, a name that tf.saved_model reserves.
        self.functions = {
            name: tf.function(method, input_signature=[spec], autograph=False)
            for name, (method, spec) in methods.items()
        }

    def _ids(self, images: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(images)
        return tf.cast(prediction.predict_ids(self.network, images, (shape[1], shape[2]), self.protocol), tf.uint8)

    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image_bytes = tf.ensure_shape(image_bytes, (None,))

        def one(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = self._decoded(data)
            ids = self.ids(image[None])[0]
            return tf.io.encode_png(ids[..., None]), tf.shape(image)[:2]

        # One image is decoded while the network works on another; by default ten would occupy memory.
        png_bytes, size = tf.map_fn(
            one,
            image_bytes,
            parallel_iterations=2,
            fn_output_signature=(tf.TensorSpec((), tf.string), tf.TensorSpec((2,), tf.int32)),
        )
        return {"png_bytes": png_bytes, "size": size}

    def predict_map(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image_bytes = tf.ensure_shape(image_bytes, (None,))

        def one(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = self._decoded(data)
            fitted = resizing.resize_bytes(image[None], self.size)[0]
            return tf.ensure_shape(tf.cast(fitted, tf.uint8), (*self.size, 3)), tf.shape(image)[:2]

        images, size = tf.map_fn(
            one,
            image_bytes,
            fn_output_signature=(tf.TensorSpec((*self.size, 3), tf.uint8), tf.TensorSpec((2,), tf.int32)),
        )
        return {"class_map": tf.ensure_shape(self.ids(images), (None, *self.size)), "size": size}

    def predict_tensor(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"class_map": self.ids(self._pixels(image))}

    def predict_scores(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = self._scores(self._pixels(image))
        # The ids come from the scores, because probabilities can round to a tie.
        ids = tf.argmax(scores, axis=-1, output_type=tf.int32)
        confidence = tf.round(255 * tf.reduce_max(prediction.probabilities(scores, self.protocol.evaluate), axis=-1))
        return {"class_map": tf.cast(ids, tf.uint8), "confidence": tf.cast(confidence, tf.uint8)}

    def predict_all_scores(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = self._scores(self._pixels(image))
        return {"scores": prediction.probabilities(scores, self.protocol.evaluate)}

    def serve_tf_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        examples = tf.ensure_shape(examples, (None,))
        parsed = tf.io.parse_example(examples, {IMAGE_FEATURE: tf.io.FixedLenFeature((), tf.string)})
        return self.serve(parsed[IMAGE_FEATURE])

    def _scores(self, images: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(images)
        return prediction.predict_scores(self.network, images, (shape[1], shape[2]), self.protocol)

    def _pixels(self, images: tf.Tensor) -> tf.Tensor:
        """Check rank and number of pixels: a few bytes of a request can describe a huge tensor."""
        images = tf.ensure_shape(images, (None, None, None, 3))
        with tf.control_dependencies([self._require_max_pixels(tf.shape(images)[1:3])]):
            return tf.identity(images)

    def _require_max_pixels(self, sides: tf.Tensor) -> tf.Operation:
        pixels = tf.cast(sides[0], tf.int64) * tf.cast(sides[1], tf.int64)
        return tf.debugging.Assert(
            pixels <= self.max_pixels, ["image of", sides, "pixels (height, width); maximum:", self.max_pixels]
        )

    def _decoded(self, data: tf.Tensor) -> tf.Tensor:
        """Decode JPEG or PNG bytes; an image that is too large fails before it is decoded."""
        sides = tf.case(
            [
                (tf.io.is_jpeg(data), lambda: tf.io.extract_jpeg_shape(data)[:2]),
                (tf.equal(tf.strings.substr(data, 0, 8), PNG_SIGNATURE), lambda: _png_sides(data)),
            ],
            default=lambda: _refuse_bytes(data),
        )
        with tf.control_dependencies([self._require_max_pixels(sides)]):
            return decode_image(tf.identity(data))


def _png_sides(data: tf.Tensor) -> tf.Tensor:
    """Return (height, width), int32, from the header of a PNG."""
    has_header = tf.strings.length(data) >= 24
    with tf.control_dependencies([tf.debugging.Assert(has_header, ["a PNG that is shorter than its header"])]):
        header = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False)
    return tf.reverse(tf.ensure_shape(header, (2,)), [0])


def _refuse_bytes(data: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies(
        [tf.debugging.Assert(False, ["image_bytes is neither a JPEG nor a PNG; length:", tf.strings.length(data)])]
    ):
        return tf.zeros((2,), tf.int32)
