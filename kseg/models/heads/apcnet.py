"""APCNet (He et al. 2019, CVPR, "Adaptive Pyramid Context Network for Semantic Segmentation")."""

import keras
from keras import ops

from kseg.config.sections import Model
from kseg.models.blocks import classifier, conv_bn_relu, plain_convolution
from kseg.models.layers import AdaptiveAveragePooling


def apcnet(features: list[keras.KerasTensor], classes: int, model: Model) -> dict[str, keras.KerasTensor]:
    """Join stage 4 with one adaptive context map per pool scale.

    Args:
        features: Outputs (N, h, w, C) of the backbone's four stages.
        classes: Number of classes.
        model: The `model` section of a config; `model.apcnet` has the options of this head.

    Returns:
        {"main": float32 logits (N, h, w, classes) at the stride of stage 4}.

    Example:
        >>> import keras
        >>> from kseg.config.sections import Model
        >>> from kseg.models.heads.apcnet import apcnet
        >>> features = [keras.Input((side, side, 8)) for side in (16, 8, 8, 8)]
        >>> apcnet(features, classes=2, model=Model(channels=4))["main"].shape
        (None, 8, 8, 2)
    """
    inputs, initial = features[3], model.initial_weights
    contexts = [
        _adaptive_context(inputs, scale, model, f"decode_head.acm_modules.{index}")
        for index, scale in enumerate(model.apcnet.pool_scales)
    ]
    outputs = keras.layers.Concatenate(name="decode_head.concat")([inputs, *contexts])
    outputs = conv_bn_relu(outputs, model.channels, 3, "decode_head.bottleneck", initial)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", initial)}


def _adaptive_context(inputs: keras.KerasTensor, scale: int, model: Model, name: str) -> keras.KerasTensor:
    """Mix scale * scale regional features at every position by its affinities (section 3.2)."""
    channels, initial = model.channels, model.initial_weights
    regions = AdaptiveAveragePooling(scale, name=f"{name}.pool")(inputs)
    regions = conv_bn_relu(regions, channels, 1, f"{name}.pooled_redu_conv", initial)
    regions = keras.layers.Reshape((scale * scale, channels), name=f"{name}.regions")(regions)
    reduced = conv_bn_relu(inputs, channels, 1, f"{name}.input_redu_conv", initial)
    global_info = AdaptiveAveragePooling(1, name=f"{name}.global_pool")(reduced)
    global_info = conv_bn_relu(global_info, channels, 1, f"{name}.global_info", initial)
    affinities = keras.layers.Add(name=f"{name}.global_add")([reduced, global_info])
    affinities = plain_convolution(affinities, scale * scale, f"{name}.gla")
    affinities = keras.layers.Activation("sigmoid", name=f"{name}.sigmoid")(affinities)
    outputs = RegionMixture(name=f"{name}.mixture")([affinities, regions])
    outputs = conv_bn_relu(outputs, channels, 1, f"{name}.residual_conv", initial)
    outputs = keras.layers.Add(name=f"{name}.add")([outputs, reduced])
    outputs = keras.layers.Activation("relu", name=f"{name}.relu")(outputs)
    if model.apcnet.fusion:
        outputs = conv_bn_relu(outputs, channels, 1, f"{name}.fusion_conv", initial)
    return outputs


@keras.saving.register_keras_serializable("kseg")
class RegionMixture(keras.layers.Layer):
    """Sum of regions weighted by the affinities of every position.

    Affinities (N, H, W, S) and regions (N, S, C) give (N, H, W, C). The sum is not normalized.
    """

    def call(self, inputs):
        affinities, regions = inputs
        samples, height, width = ops.shape(affinities)[:3]
        flat = ops.reshape(affinities, (samples, height * width, affinities.shape[-1]))
        return ops.reshape(ops.matmul(flat, regions), (samples, height, width, regions.shape[-1]))

    def compute_output_shape(self, input_shape):
        affinities, regions = input_shape
        return (*affinities[:3], regions[-1])
