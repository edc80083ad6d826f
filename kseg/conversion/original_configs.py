"""Translate model configurations of MMSegmentation and SSSegmentation to kseg's config values.

No option is ignored: it is translated, has no effect on the network and its losses, or must have a supported value.
Anything else is an error that names the option. Missing options have the defaults of the original systems.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kseg.config import Config
from kseg.config.checks import check_config
from kseg.config.sections import Apcnet, Deeplab, Encnet, Fcn, Loss, Model, Pspnet
from kseg.conversion.options import MMSEG_FIXED, RELU, SSS_FIXED, WITHOUT_EFFECT, Options
from kseg.errors import ConfigError
from kseg.models.resnet import BACKBONES, STAGES

MMSEG_HEADS = {
    "EncHead": "encnet",
    "ASPPHead": "deeplabv3",
    "DepthwiseSeparableASPPHead": "deeplabv3plus",
    "APCHead": "apcnet",
    "PSPHead": "pspnet",
    "FCNHead": "fcn",
}
SSS_HEADS = {
    "ENCNet": "encnet",
    "Deeplabv3": "deeplabv3",
    "Deeplabv3Plus": "deeplabv3plus",
    "APCNet": "apcnet",
    "PSPNet": "pspnet",
    "FCN": "fcn",
}


class Original(NamedTuple):
    """A translated configuration."""

    model: Model
    loss: Loss
    classes: int


class Term(NamedTuple):
    """A cross-entropy term of either system."""

    weight: float
    class_weights: tuple[float, ...]
    labelled_only: bool = True


def translate(cfg: Mapping[str, Any]) -> Original:
    """Translate a resolved model configuration of MMSegmentation or SSSegmentation.

    Args:
        cfg: The `model` of an MMSegmentation 1.x config, or the model part of an SSSegmentation 1.7 config.

    Returns:
        The model section, the loss section and the number of classes.

    Raises:
        ConfigError: It is neither, or an option is unknown or has an unsupported value.
    """
    keys = cfg.keys() if isinstance(cfg, Mapping) else set()
    if "decode_head" in keys:
        return from_mmseg(cfg)
    if "head" in keys:
        return from_sss(cfg)
    raise ConfigError("this is not a model configuration: MMSegmentation's has a decode_head, SSSegmentation's a head")


def from_mmseg(cfg: Mapping[str, Any]) -> Original:
    """Translate the `model` of a resolved MMSegmentation 1.x config (see `translate`)."""
    root = Options(cfg)
    head = root.group("decode_head")
    kind = head.choice("type", MMSEG_HEADS)
    backbone, widths = _mmseg_backbone(root.group("backbone"))
    values = _mmseg_head_values(kind, head, widths)
    channels, classes, dropout, align_corners, term = _mmseg_head(head)
    loss = {
        "main": term.weight,
        "average": "valid" if term.labelled_only else "all",
        "class_weights": term.class_weights,
    }
    if kind == "encnet":
        loss["se"] = _mmseg_se_weight(head)
    if head.values.get("sampler") is not None:
        sampler = head.group("sampler")
        # MMSegmentation writes "no threshold" as None and treats 0 as a threshold; kseg writes it as 0.
        threshold = sampler.take("thresh", None, (int, float, type(None)))
        if threshold == 0:
            raise sampler.unsupported("thresh", threshold, "None, or above 0")
        loss |= {"ohem_kept": sampler.take("min_kept", 100_000, int), "ohem_threshold": float(threshold or 0)}
        sampler.finish(MMSEG_FIXED["sampler"])
    head.finish(MMSEG_FIXED["head"] | (MMSEG_FIXED["fcn"] if kind == "fcn" else {}), WITHOUT_EFFECT["mmseg head"])
    auxiliary = 0
    if root.take("auxiliary_head", None):
        side = root.group("auxiliary_head")
        side.expect("type", "FCNHead")
        side.expect("in_channels", widths[2])
        side.expect("in_index", 2)
        side.expect("num_convs", 1, default=2)
        side.expect("concat_input", False, default=True)
        auxiliary, *shared, side_term = _mmseg_head(side)
        _require_equal(
            head, side, {"num_classes": classes, "dropout_ratio": dropout, "align_corners": align_corners}, shared
        )
        _require_equal(
            head.group("loss_decode"),
            side.group("loss_decode"),
            {"class_weight": term.class_weights, "avg_non_ignore": term.labelled_only},
            side_term[1:],
        )
        loss["auxiliary"] = side_term.weight
        side.finish(MMSEG_FIXED["head"] | MMSEG_FIXED["fcn"], WITHOUT_EFFECT["mmseg head"])
    root.finish(MMSEG_FIXED["model"], WITHOUT_EFFECT["mmseg model"])
    model = Model(
        **backbone,
        **values,
        head=kind,
        channels=channels,
        dropout=dropout,
        align_corners=align_corners,
        auxiliary_channels=auxiliary,
    )
    return _checked(model, Loss(**loss), classes)


def _require_equal(head: Options, side: Options, main: Mapping[str, Any], auxiliary: list) -> None:
    """Raise ConfigError if the auxiliary head differs from the main one in a value that kseg's heads share."""
    for (key, value), side_value in zip(main.items(), auxiliary):
        if value != side_value:
            raise ConfigError(
                f"{side.name(key)} = {side_value!r} is not supported with {head.name(key)} = {value!r}; "
                "both heads share one value"
            )


def _mmseg_backbone(options: Options) -> tuple[dict[str, Any], list[int]]:
    """Return the backbone's values for the model section, and the channels of the four stages."""
    kind = options.take("type")
    options.expect("type", "ResNet", "ResNetV1c", "ResNetV1d")
    deep, averaged = kind != "ResNet", kind == "ResNetV1d"
    if kind == "ResNet":
        deep, averaged = options.take("deep_stem", False, bool), options.take("avg_down", False, bool)
    strides, dilations = options.numbers("strides", [1, 2, 2, 2]), options.numbers("dilations", [1, 1, 1, 1])
    output_stride = next((stride for stride, stages in STAGES.items() if stages == (strides, dilations)), None)
    if output_stride is None:
        choices = " or ".join(f"{first} with {second}" for first, second in STAGES.values())
        raise options.unsupported("strides", f"{strides} with dilations {dilations}", choices)
    options.expect("style", "pytorch", "caffe", default="pytorch")
    _norm(options, MMSEG_FIXED, {"type": "BN"})
    values = {
        "stem": "deep" if deep else "7x7",
        "downsample": "average" if averaged else "convolution",
        "output_stride": output_stride,
        "stem_channels": options.take("stem_channels", 64, int),
        "stride_on": "1x1" if options.values.get("style") == "caffe" else "3x3",
        "contract_dilation": options.take("contract_dilation", False, bool),
        "multi_grid": options.numbers("multi_grid", None),
        "initial_weights": "kaiming",
    }
    return _with_stages(options, values, MMSEG_FIXED["backbone"], WITHOUT_EFFECT["mmseg backbone"])


def _with_stages(options: Options, values: dict[str, Any], *known: Any) -> tuple[dict[str, Any], list[int]]:
    """Add depth and width to the backbone's values, and return them with the channels of the four stages."""
    name = options.choice("depth", {int(name.removeprefix("resnet")): name for name in BACKBONES})
    width = options.take("base_channels", 64, int)
    options.finish(*known)
    expansion = 4 if BACKBONES[name][1] else 1
    return values | {"backbone": name, "width": width}, [width * expansion * 2**stage for stage in range(4)]


def _norm(options: Options, fixed: Mapping[str, Mapping[str, tuple]], default: Any) -> None:
    norm = options.take("norm_cfg", default)
    if norm is None:
        raise options.unsupported("norm_cfg", norm, "batch normalization")
    options.group("norm_cfg", default).finish(fixed["norm"])


def _mmseg_head(head: Options) -> tuple[int, int, float, bool, Term]:
    """Return channels, classes, dropout, align_corners and the cross-entropy of a main or auxiliary head."""
    _norm(head, MMSEG_FIXED, None)
    classes = head.take("num_classes", kind=int)
    head.expect("out_channels", None, classes, default=None)
    options = head.group("loss_decode", {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0})
    name = options.take("loss_name", "loss_ce", str)
    if not name.startswith("loss_"):
        raise options.unsupported("loss_name", name, "names that start with loss_, since others are only logged")
    term = Term(
        float(options.take("loss_weight", 1.0, (int, float))),
        tuple(map(float, options.numbers("class_weight", None, (int, float)))),
        options.take("avg_non_ignore", False, bool),
    )
    options.finish(MMSEG_FIXED["loss"])
    return (
        head.take("channels", kind=int),
        classes,
        float(head.take("dropout_ratio", 0.1, (int, float))),
        head.take("align_corners", False, bool),
        term,
    )


def _mmseg_head_values(kind: str, head: Options, widths: list[int]) -> dict[str, Any]:
    """Return the values of the main head's section, after checking its inputs."""
    if kind == "encnet":
        lateral = head.take("add_lateral", False, bool)
        inputs = [3] if head.values.get("in_index") == [3] and not lateral else [1, 2, 3]
        head.expect("in_index", inputs)
        head.expect("in_channels", [widths[stage] for stage in inputs])
        return {
            "encnet": Encnet(
                codewords=head.take("num_codes", 32, int), lateral=lateral, se=head.take("use_se_loss", True, bool)
            )
        }
    head.expect("in_index", 3, -1, default=-1)
    head.expect("in_channels", widths[3])
    if kind == "deeplabv3plus":
        shortcut = head.take("c1_channels", kind=int)
        head.expect("c1_in_channels", widths[0] if shortcut else 0)
        return {"deeplab": Deeplab(dilations=head.numbers("dilations", [1, 6, 12, 18]), shortcut_channels=shortcut)}
    if kind == "deeplabv3":
        return {"deeplab": Deeplab(dilations=head.numbers("dilations", [1, 6, 12, 18]))}
    if kind == "apcnet":
        return {
            "apcnet": Apcnet(
                pool_scales=head.numbers("pool_scales", [1, 2, 3, 6]), fusion=head.take("fusion", True, bool)
            )
        }
    if kind == "pspnet":
        return {"pspnet": Pspnet(pool_scales=head.numbers("pool_scales", [1, 2, 3, 6]))}
    return {"fcn": Fcn(convolutions=head.take("num_convs", 2, int), concat_input=head.take("concat_input", True, bool))}


def _mmseg_se_weight(head: Options) -> float:
    options = head.group("loss_se_decode", {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 0.2})
    weight = float(options.take("loss_weight", 1.0, (int, float)))
    options.take("loss_name", "loss_ce", str)
    # MMSegmentation's default is a softmax, which does not model the presence of classes.
    options.expect("use_sigmoid", True, default=False)
    options.finish(MMSEG_FIXED["se loss"])
    return weight


def from_sss(cfg: Mapping[str, Any]) -> Original:
    """Translate the model part of an SSSegmentation 1.7 config (see `translate`)."""
    root = Options(cfg)
    kind = root.choice("type", SSS_HEADS)
    _norm(root, SSS_FIXED, None)
    root.expect("act_cfg", *RELU)
    backbone, widths = _sss_backbone(root.group("backbone"), kind, root.values["norm_cfg"])
    head = root.group("head")
    values = _sss_head_values(kind, head, widths)
    channels, dropout = head.take("feats_channels", kind=int), float(head.take("dropout", kind=(int, float)))
    head.finish(SSS_FIXED["fcn"] if kind == "fcn" else {})
    losses = root.group("losses")
    term = _sss_term(losses, "loss_cls", "loss")
    loss = {"main": term.weight, "average": "valid", "class_weights": term.class_weights}
    auxiliary = 0
    if root.take("auxiliary"):
        side = root.group("auxiliary")
        side.expect("in_channels", widths[2])
        auxiliary = side.take("out_channels", kind=int)
        _require_equal(head, side, {"dropout": dropout}, [float(side.take("dropout", kind=(int, float)))])
        side.finish(SSS_FIXED["auxiliary"])
        side_term = _sss_term(losses, "loss_aux", "loss")
        _require_equal(
            losses.group("loss_cls"),
            losses.group("loss_aux"),
            {"class_weight": term.class_weights},
            [side_term.class_weights],
        )
        loss["auxiliary"] = side_term.weight
    if kind == "encnet":
        # Without presence logits SSSegmentation never computes this term, although its config may contain it.
        if values["encnet"].se or "loss_se" in losses.values:
            loss["se"] = _sss_term(losses, "loss_se", "se loss").weight
    losses.finish({})
    align_corners, classes = root.take("align_corners", kind=bool), root.take("num_classes", kind=int)
    root.finish(SSS_FIXED["model"], WITHOUT_EFFECT["sss model"])
    model = Model(
        **backbone,
        **values,
        head=kind,
        channels=channels,
        dropout=dropout,
        align_corners=align_corners,
        auxiliary_channels=auxiliary,
    )
    return _checked(model, Loss(**loss), classes)


def _sss_backbone(options: Options, kind: str, norm: Any) -> tuple[dict[str, Any], list[int]]:
    """Return the backbone's values for the model section, and the channels of the four stages."""
    _norm(options, SSS_FIXED, norm)
    # These are the stages that the model uses. The auxiliary decoder uses the second to last of them.
    stages = {"encnet": [1, 2, 3], "deeplabv3plus": [0, 1, 2, 3]}.get(kind, [2, 3])
    options.expect("selected_indices", stages, [0, 1, 2, 3], default=[0, 1, 2, 3])
    output_stride = options.take("outstride", 8, int)
    if output_stride not in STAGES:
        raise options.unsupported("outstride", output_stride, ", ".join(map(str, STAGES)))
    averaged = options.take("use_avg_for_downsample", False, bool)
    options.expect("style", "pytorch", "caffe", default="pytorch")
    values = {
        "stem": "deep" if options.take("use_conv3x3_stem", True, bool) else "7x7",
        "downsample": "average" if averaged else "convolution",
        "output_stride": output_stride,
        "stem_channels": options.take("stem_channels", 64, int),
        "stride_on": "1x1" if options.values.get("style") == "caffe" else "3x3",
        "contract_dilation": options.take("contract_dilation", True, bool),
        "initial_weights": "uniform",
    }
    return _with_stages(options, values, SSS_FIXED["backbone"], WITHOUT_EFFECT["sss backbone"])


def _sss_head_values(kind: str, head: Options, widths: list[int]) -> dict[str, Any]:
    """Return the values of the head's section, after checking the channels of its inputs."""
    if kind == "encnet":
        head.expect("in_channels_list", widths[1:])
        extra = head.group("extra")
        se = extra.take("use_se_loss", kind=bool)
        # SSSegmentation fails to build its lateral connections.
        extra.finish({"add_lateral": (False,)})
        return {"encnet": Encnet(codewords=head.take("num_codes", kind=int), se=se)}
    if kind == "deeplabv3plus":
        head.expect("in_channels", [widths[0], widths[3]])
        return {
            "deeplab": Deeplab(
                dilations=head.numbers("dilations"), shortcut_channels=head.take("shortcut_channels", kind=int)
            )
        }
    head.expect("in_channels", widths[3])
    if kind == "deeplabv3":
        return {"deeplab": Deeplab(dilations=head.numbers("dilations"))}
    if kind == "apcnet":
        return {"apcnet": Apcnet(pool_scales=head.numbers("pool_scales"))}
    if kind == "pspnet":
        return {"pspnet": Pspnet(pool_scales=head.numbers("pool_scales"))}
    return {"fcn": Fcn(convolutions=2, concat_input=False)}


def _sss_term(losses: Options, key: str, fixed: str) -> Term:
    options = losses.group(key)
    weight = float(options.take("scale_factor", 1.0, (int, float)))
    class_weights = () if fixed == "se loss" else tuple(map(float, options.numbers("class_weight", None, (int, float))))
    options.finish(SSS_FIXED[fixed])
    return Term(weight, class_weights)


def _checked(model: Model, loss: Loss, classes: int) -> Original:
    """Return the values if they are valid in a config; raises ConfigError otherwise."""
    if loss.class_weights and len(loss.class_weights) != classes:
        raise ConfigError(f"{len(loss.class_weights)} class weights for {classes} classes")
    check_config(Config(model=model, loss=loss))
    return Original(model, loss, classes)
