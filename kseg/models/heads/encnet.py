"""EncNet: context encoding for semantic segmentation (Zhang et al. 2018, arXiv:1803.08904)."""

import keras
from keras import ops

from kseg.config.sections import Model
from kseg.models.blocks import classifier, conv_bn_relu, dense
from kseg.models.layers import ResizeLike
from kseg.models.norms import BatchNormalization


def encnet(features: list[keras.KerasTensor], classes: int, model: Model) -> dict[str, keras.KerasTensor]:
    """Weight the channels of stage 4 by its encoded context (section 3.1).

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config; `model.encnet` has the options of this head.

    Returns:
        "main": float32 logits (N, h, w, classes) at the stride of stage 4.
        "se": float32 class-presence logits (N, classes), present if `model.encnet.se` is set. Only the loss uses them.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.heads.encnet import encnet
        >>> features = [keras.Input((side, side, 8)) for side in (16, 8, 8, 8)]
        >>> logits = encnet(features, classes=2, model=Model(channels=4))
        >>> logits["main"].shape, logits["se"].shape
        ((None, 8, 8, 2), (None, 2))
    """
    initial = model.initial_weights
    top = conv_bn_relu(features[3], model.channels, 3, "decode_head.bottleneck", initial)
    if model.encnet.lateral:
        top = _join_lateral(features, top, model)
    projected = conv_bn_relu(top, model.channels, 1, "decode_head.enc_module.encoding_project", initial)
    residuals = Encoding(model.encnet.codewords, name="decode_head.enc_module.encoding.0")(projected)
    # The last axis is the codeword: the norm has one mean and variance per codeword.
    residuals = BatchNormalization(name="decode_head.enc_module.encoding.1")(residuals)
    residuals = keras.layers.Activation("relu", name="decode_head.enc_module.encoding.relu")(residuals)
    context = keras.layers.GlobalAveragePooling1D("channels_first", name="decode_head.enc_module.mean")(residuals)
    gate = dense(context, model.channels, "decode_head.enc_module.fc.0")
    gate = keras.layers.Activation("sigmoid", name="decode_head.enc_module.sigmoid")(gate)
    gate = keras.layers.Reshape((1, 1, model.channels), name="decode_head.enc_module.gate")(gate)
    weighted = keras.layers.Multiply(name="decode_head.enc_module.weighted")([top, gate])
    outputs = keras.layers.Add(name="decode_head.enc_module.add")([top, weighted])
    outputs = keras.layers.Activation("relu", name="decode_head.enc_module.relu")(outputs)
    heads = {"main": classifier(outputs, classes, model.dropout, "decode_head", initial)}
    if model.encnet.se:
        heads["se"] = dense(context, classes, "decode_head.se_layer", dtype="float32")
    return heads


def _join_lateral(features: list[keras.KerasTensor], top: keras.KerasTensor, model: Model) -> keras.KerasTensor:
    """Join `top` with stages 2 and 3, reduced by 1x1 convolutions and resized to it."""
    joined = [top]
    for index in (0, 1):
        side = conv_bn_relu(
            features[index + 1], model.channels, 1, f"decode_head.lateral_convs.{index}", model.initial_weights
        )
        joined.append(ResizeLike(model.align_corners, name=f"decode_head.lateral_resize.{index}")([side, top]))
    joined = keras.layers.Concatenate(name="decode_head.concat")(joined)
    return conv_bn_relu(joined, model.channels, 3, "decode_head.fusion", model.initial_weights)


@keras.saving.register_keras_serializable("kseg")
class Encoding(keras.layers.Layer):
    """Residuals to learned codewords, softly assigned and summed over all positions (section 3.1, equation 1).

    Features (N, H, W, D) give float32 (N, D, K) for K codewords. The squared distance is expanded to
    |x|^2 - 2 x c + |c|^2, so matrix products replace an (N, HW, K, D) tensor. The sum is not divided by the number of
    positions, so its scale grows with the area.

    Args:
        codewords: Number K of codewords.
    """

    def __init__(self, codewords, **kwargs):
        # Differences of large squares need full precision under every dtype policy.
        super().__init__(**kwargs | {"dtype": "float32"})
        self.number = codewords

    def build(self, input_shape):
        limit = (self.number * input_shape[-1]) ** -0.5
        self.codewords = self.add_weight(
            name="codewords",
            shape=(self.number, input_shape[-1]),
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )
        self.scale = self.add_weight(
            name="scale", shape=(self.number,), initializer=keras.initializers.RandomUniform(-1, 0)
        )

    def call(self, inputs):
        shape = ops.shape(inputs)
        positions = ops.reshape(inputs, (shape[0], shape[1] * shape[2], inputs.shape[-1]))
        distance = (
            ops.sum(ops.square(positions), axis=-1, keepdims=True)
            - 2 * ops.matmul(positions, ops.transpose(self.codewords))
            + ops.sum(ops.square(self.codewords), axis=-1)
        )
        assignment = ops.softmax(self.scale * distance, axis=-1)
        summed = ops.matmul(ops.transpose(positions, (0, 2, 1)), assignment)
        return summed - ops.sum(assignment, axis=1)[:, None, :] * ops.transpose(self.codewords)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1], self.number)

    def get_config(self):
        return super().get_config() | {"codewords": self.number}
