"""Translate weight names of other systems to MMSegmentation's module paths, which kseg's layers share.

A row of a table is one module. `*` stands for a number that both names share, so a pyramid may have any number of
branches. The suffix after the module ("weight", "running_mean", ...) is the same in both names.
"""

import re
from collections.abc import Iterable, Mapping

from kseg.errors import WeightsError, unknown

# SSSegmentation module -> MMSegmentation module: common to all heads, common to pyramids, and by head.
SSS_COMMON_MODULES = {
    "backbone_net": "backbone",
    "auxiliary_decoder.0": "auxiliary_head.convs.0.conv",
    "auxiliary_decoder.1": "auxiliary_head.convs.0.bn",
    "auxiliary_decoder.4": "auxiliary_head.conv_seg",
}
SSS_PYRAMID_MODULES = {
    "aspp_net.global_branch.1": "decode_head.image_pool.1.conv",
    "aspp_net.global_branch.2": "decode_head.image_pool.1.bn",
    "aspp_net.parallel_branches.*.0": "decode_head.aspp_modules.*.conv",
    "aspp_net.parallel_branches.*.1": "decode_head.aspp_modules.*.bn",
    "aspp_net.bottleneck.0": "decode_head.bottleneck.conv",
    "aspp_net.bottleneck.1": "decode_head.bottleneck.bn",
}
SSS_HEAD_MODULES = {
    "encnet": {
        "bottleneck.0": "decode_head.bottleneck.conv",
        "bottleneck.1": "decode_head.bottleneck.bn",
        "enc_module.encoding_project.0": "decode_head.enc_module.encoding_project.conv",
        "enc_module.encoding_project.1": "decode_head.enc_module.encoding_project.bn",
        "enc_module.encoding.0": "decode_head.enc_module.encoding.0",
        "enc_module.encoding.1": "decode_head.enc_module.encoding.1",
        "enc_module.fc.0": "decode_head.enc_module.fc.0",
        "se_layer": "decode_head.se_layer",
        "decoder.1": "decode_head.conv_seg",
    },
    "deeplabv3": SSS_PYRAMID_MODULES | {"decoder.1": "decode_head.conv_seg"},
    "deeplabv3plus": SSS_PYRAMID_MODULES
    | {
        "aspp_net.parallel_branches.*.depthwise_conv": "decode_head.aspp_modules.*.depthwise_conv.conv",
        "aspp_net.parallel_branches.*.depthwise_bn": "decode_head.aspp_modules.*.depthwise_conv.bn",
        "aspp_net.parallel_branches.*.pointwise_conv": "decode_head.aspp_modules.*.pointwise_conv.conv",
        "aspp_net.parallel_branches.*.pointwise_bn": "decode_head.aspp_modules.*.pointwise_conv.bn",
        "shortcut.0": "decode_head.c1_bottleneck.conv",
        "shortcut.1": "decode_head.c1_bottleneck.bn",
        "decoder.*.depthwise_conv": "decode_head.sep_bottleneck.*.depthwise_conv.conv",
        "decoder.*.depthwise_bn": "decode_head.sep_bottleneck.*.depthwise_conv.bn",
        "decoder.*.pointwise_conv": "decode_head.sep_bottleneck.*.pointwise_conv.conv",
        "decoder.*.pointwise_bn": "decode_head.sep_bottleneck.*.pointwise_conv.bn",
        "decoder.3": "decode_head.conv_seg",
    },
    "apcnet": {
        "acm_modules.*.pooled_redu_conv.0": "decode_head.acm_modules.*.pooled_redu_conv.conv",
        "acm_modules.*.pooled_redu_conv.1": "decode_head.acm_modules.*.pooled_redu_conv.bn",
        "acm_modules.*.input_redu_conv.0": "decode_head.acm_modules.*.input_redu_conv.conv",
        "acm_modules.*.input_redu_conv.1": "decode_head.acm_modules.*.input_redu_conv.bn",
        "acm_modules.*.global_info.0": "decode_head.acm_modules.*.global_info.conv",
        "acm_modules.*.global_info.1": "decode_head.acm_modules.*.global_info.bn",
        "acm_modules.*.gla": "decode_head.acm_modules.*.gla",
        "acm_modules.*.residual_conv.0": "decode_head.acm_modules.*.residual_conv.conv",
        "acm_modules.*.residual_conv.1": "decode_head.acm_modules.*.residual_conv.bn",
        "acm_modules.*.fusion_conv.0": "decode_head.acm_modules.*.fusion_conv.conv",
        "acm_modules.*.fusion_conv.1": "decode_head.acm_modules.*.fusion_conv.bn",
        "decoder.0": "decode_head.bottleneck.conv",
        "decoder.1": "decode_head.bottleneck.bn",
        "decoder.4": "decode_head.conv_seg",
    },
    "pspnet": {
        "ppm_net.branches.*.1": "decode_head.psp_modules.*.1.conv",
        "ppm_net.branches.*.2": "decode_head.psp_modules.*.1.bn",
        "ppm_net.bottleneck.0": "decode_head.bottleneck.conv",
        "ppm_net.bottleneck.1": "decode_head.bottleneck.bn",
        "decoder.1": "decode_head.conv_seg",
    },
    # These rows are for two convolutions; `sss_modules` derives the rows for other numbers.
    "fcn": {
        "decoder.0": "decode_head.convs.0.conv",
        "decoder.1": "decode_head.convs.0.bn",
        "decoder.3": "decode_head.convs.1.conv",
        "decoder.4": "decode_head.convs.1.bn",
        "decoder.7": "decode_head.conv_seg",
    },
}

# Prefix of a weight's name -> head. The order matters: UPerNet has pooling modules, too, and DeepLabV3+ has all modules
# of DeepLabV3.
SSS_HEAD_BY_PREFIX = {
    "enc_module.": "encnet",
    "acm_modules.": "apcnet",
    "ppm_net.": "pspnet",
    "shortcut.": "deeplabv3plus",
    "decoder.0.depthwise_conv.": "deeplabv3plus",
    "aspp_net.": "deeplabv3",
    "decoder.0.": "fcn",
}
MMSEG_HEAD_BY_PREFIX = {
    "enc_module.": "encnet",
    "acm_modules.": "apcnet",
    "fpn_convs.": "upernet",
    "psp_modules.": "pspnet",
    "sep_bottleneck.": "deeplabv3plus",
    "aspp_modules.": "deeplabv3",
}
# Many heads extend FCN by a module, so a head is FCN only if it has no other modules than these.
MMSEG_FCN_MODULES = {"convs", "conv_cat", "conv_seg"}

# Layer of keras.applications' ResNet50 and ResNet101 -> torchvision's module.
KERAS_STEM_MODULES = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
KERAS_BLOCK_MODULES = {
    "0_conv": "downsample.0",
    "0_bn": "downsample.1",
    "1_conv": "conv1",
    "1_bn": "bn1",
    "2_conv": "conv2",
    "2_bn": "bn2",
    "3_conv": "conv3",
    "3_bn": "bn3",
}

# Weights of the ImageNet classifier in backbone files, by torchvision's and mmpretrain's names.
CLASSIFIERS = ("fc.weight", "fc.bias", "head.fc.weight", "head.fc.bias")


def sss_modules(head: str, convolutions: int = 2) -> Mapping[str, str]:
    """Return the table SSSegmentation module -> MMSegmentation module of a head.

    `convolutions` is the number of 3x3 convolutions of an FCN head. Raises WeightsError for an unknown head.
    """
    if head not in SSS_HEAD_MODULES:
        raise WeightsError(unknown("head of an SSSegmentation checkpoint", head, SSS_HEAD_MODULES))
    rows = SSS_HEAD_MODULES[head]
    if head == "fcn":
        # A convolution, norm and ReLU take three indices; a dropout precedes the last convolution.
        rows = {f"decoder.{3 * convolutions + 1}": "decode_head.conv_seg"}
        for index in range(convolutions):
            rows |= {
                f"decoder.{3 * index}": f"decode_head.convs.{index}.conv",
                f"decoder.{3 * index + 1}": f"decode_head.convs.{index}.bn",
            }
    return SSS_COMMON_MODULES | rows


def sss_to_mmseg(name: str, head: str, convolutions: int = 2) -> str:
    """Translate an SSSegmentation weight name of a model with the given head.

    `convolutions` is the number of 3x3 convolutions of an FCN head. Raises WeightsError for unknown heads and names.
    """
    modules = sss_modules(head, convolutions)
    for module, replacement in modules.items():
        pattern = re.escape(module).replace(r"\*", r"(\d+)") + r"\."
        if match := re.match(pattern, name):
            number = match[1] if match.groups() else ""
            return f"{replacement.replace('*', number)}.{name[match.end() :]}"
    choices = [f"{module}.{{...}}" for module in modules]
    raise WeightsError(unknown(f"weight of an SSSegmentation {head} model", name, choices))


def sss_head(names: Iterable[str]) -> str:
    """Detect the main head of an SSSegmentation checkpoint from its weight names; "" if unsupported."""
    names = list(names)
    head = _first_match(SSS_HEAD_BY_PREFIX, names)
    known = {module.split(".")[0] for module in sss_modules(head)} if head else set()
    # Unsupported heads may have these modules, too, in addition to others.
    return head if {name.split(".")[0] for name in names} <= known else ""


def mmseg_head(names: Iterable[str]) -> str:
    """Detect the main head of an MMSegmentation checkpoint from its weight names; "" if unsupported."""
    prefix = "decode_head."
    names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if any(re.match(r"aspp_modules\.\d+\.depthwise_conv\.", name) for name in names):
        return "deeplabv3plus"
    if {name.split(".")[0] for name in names} <= MMSEG_FCN_MODULES:
        return "fcn" if names else ""
    return _first_match(MMSEG_HEAD_BY_PREFIX, names)


def _first_match(head_by_prefix: Mapping[str, str], names: Iterable[str]) -> str:
    names = list(names)
    return next((head for prefix, head in head_by_prefix.items() if any(name.startswith(prefix) for name in names)), "")


def keras_to_torchvision(layer: str) -> str:
    """Return torchvision's module for a layer of keras.applications' ResNet50 or ResNet101; "" for other layers."""
    if layer in KERAS_STEM_MODULES:
        return KERAS_STEM_MODULES[layer]
    match = re.fullmatch(r"conv([2-5])_block(\d+)_(\d_(?:conv|bn))", layer)
    if not match or match[3] not in KERAS_BLOCK_MODULES:
        return ""
    # keras.applications counts the stem as stage 1, and blocks from 1.
    return f"layer{int(match[1]) - 1}.{int(match[2]) - 1}.{KERAS_BLOCK_MODULES[match[3]]}"
