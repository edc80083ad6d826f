"""APCNet: adaptive pyramid context network (He et al. 2019, CVPR, "Adaptive Pyramid Context Network for Semantic
Segmentation")."""

import keras
from keras import ops

from kseg.config import Model
from kseg.models.blocks import classifier, conv_bn_relu, plain_convolution
from kseg.models.layers import AdaptiveAveragePooling


def apcnet(features: list, classes: int, model: Model) -> dict:
    """Return {"main": logits at the stride of stage 4}: stage 4 beside one context for each pool scale."""
    inputs, initial = features[3], model.initial_weights
    contexts = [_adaptive_context(inputs, scale, model, f"decode_head.acm_modules.{index}")
                for index, scale in enumerate(model.apcnet.pool_scales)]
    outputs = keras.layers.Concatenate(name="decode_head.concat")([inputs, *contexts])
    outputs = conv_bn_relu(outputs, model.channels, 3, "decode_head.bottleneck", initial)
    return {"main": classifier(outputs, classes, model.dropout, "decode_head", initial)}


def _adaptive_context(inputs, scale: int, model: Model, name: str):
    """Adaptive context module (section 3.2): each position mixes the scale * scale regions by its own affinities."""
    channels, initial = model.channels, model.initial_weights
    regions = AdaptiveAveragePooling(scale, name=f"{name}.pool")(inputs)
    regions = conv_bn_relu(regions, channels, 1, f"{name}.pooled_redu_conv", initial)
    regions = keras.layers.Reshape((scale * scale, channels), name=f"{name}.regions")(regions)
    reduced = conv_bn_relu(inputs, channels, 1, f"{name}.input_redu_conv", initial)
    whole = AdaptiveAveragePooling(1, name=f"{name}.global_pool")(reduced)
    whole = conv_bn_relu(whole, channels, 1, f"{name}.global_info", initial)
    affinities = keras.layers.Add(name=f"{name}.global_add")([reduced, whole])
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
    """Sums of regions (N, S, C) weighted by each position's affinities (N, H, W, S): (N, H, W, C), not normalised."""

    def call(self, inputs):
        affinities, regions = inputs
        samples, height, width = ops.shape(affinities)[:3]
        flat = ops.reshape(affinities, (samples, height * width, affinities.shape[-1]))
        return ops.reshape(ops.matmul(flat, regions), (samples, height, width, regions.shape[-1]))

    def compute_output_shape(self, input_shape):
        affinities, regions = input_shape
        return (*affinities[:3], regions[-1])
