"""Configurations of the original systems are translated; unsupported options are errors that name them."""

import copy
import json

import pytest

from kseg.config.sections import Deeplab, Encnet, Loss, Model
from kseg.conversion import original_configs
from kseg.errors import ConfigError
from tests.helpers.original_files import mmseg_encnet, sss_deeplabv3plus
from tests.helpers.shared_files import FIXTURES, needs_fixtures

DELETE = object()
CONFIGS = sorted(FIXTURES.glob("*/*/config.json"))


def changed(cfg, changes):
    """Return a copy with the changes {"a.b": value} applied; the value DELETE removes an option."""
    cfg = copy.deepcopy(cfg)
    for key, value in changes.items():
        *groups, last = key.split(".")
        node = cfg
        for group in groups:
            node = node[group]
        if value is DELETE:
            del node[last]
        else:
            node[last] = value
    return cfg


SEPARABLE = {
    "decode_head.type": "DepthwiseSeparableASPPHead",
    "decode_head.in_index": 3,
    "decode_head.in_channels": 32,
    "decode_head.num_codes": DELETE,
    "decode_head.use_se_loss": DELETE,
    "decode_head.add_lateral": DELETE,
    "decode_head.loss_se_decode": DELETE,
    "decode_head.c1_in_channels": 4,
    "decode_head.c1_channels": 2,
}


@needs_fixtures
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def test_fixtures_are_translated_to_the_settings_that_made_them(path):
    description = json.loads(path.read_text())
    args = description["args"]
    model, loss, classes = original_configs.translate(description["cfg"])
    assert (model.head, model.backbone, model.output_stride) == (args["model"], f"resnet{args['depth']}", args["os"])
    assert (classes, model.align_corners) == (args["classes"], args["align_corners"])
    assert model.multi_grid == tuple(map(int, filter(None, args.get("multi_grid", "").split(","))))
    if args["dilations"]:
        assert model.deeplab.dilations == tuple(map(int, args["dilations"].split(",")))
    mmseg = path.parts[-3] == "mmseg"
    assert loss.average == ("all" if mmseg and not args["avg_non_ignore"] else "valid")
    assert loss.ohem_kept == args.get("ohem_min_kept", 0)


def test_mmseg_encnet():
    assert original_configs.from_mmseg(mmseg_encnet()) == (
        Model(
            backbone="resnet18",
            stem="deep",
            width=4,
            stem_channels=4,
            output_stride=16,
            head="encnet",
            channels=8,
            auxiliary_channels=4,
            dropout=0.1,
            encnet=Encnet(codewords=5),
        ),
        Loss(average="all", main=1.0, auxiliary=0.4, se=0.2),
        3,
    )


def test_sss_deeplabv3plus():
    assert original_configs.from_sss(sss_deeplabv3plus()) == (
        Model(
            backbone="resnet18",
            width=4,
            stem_channels=4,
            output_stride=16,
            head="deeplabv3plus",
            channels=8,
            auxiliary_channels=8,
            dropout=0.1,
            initial_weights="uniform",
            deeplab=Deeplab(dilations=(1, 2, 3, 4), shortcut_channels=2),
        ),
        Loss(average="valid", main=1.0, auxiliary=0.4),
        3,
    )


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"backbone.type": "ResNet"}, {"stem": "7x7", "downsample": "convolution"}),
        (
            {"backbone.type": "ResNet", "backbone.deep_stem": True, "backbone.avg_down": True},
            {"stem": "deep", "downsample": "average"},
        ),
        ({"backbone.type": "ResNetV1d"}, {"stem": "deep", "downsample": "average"}),
        ({"backbone.style": "caffe"}, {"stride_on": "1x1"}),
        ({"backbone.contract_dilation": False}, {"contract_dilation": False}),
        # MMSegmentation's default is false.
        ({"backbone.contract_dilation": DELETE}, {"contract_dilation": False}),
        ({"backbone.stem_channels": DELETE}, {"stem_channels": 64}),
        ({"backbone.stem_channels": 6}, {"stem_channels": 6, "width": 4}),
        ({"backbone.strides": [1, 2, 1, 1], "backbone.dilations": [1, 1, 2, 4]}, {"output_stride": 8}),
        ({"backbone.multi_grid": [1, 2]}, {"multi_grid": (1, 2)}),
        ({"decode_head.add_lateral": True}, {"encnet": Encnet(codewords=5, lateral=True)}),
        ({"decode_head.use_se_loss": False}, {"encnet": Encnet(codewords=5, se=False)}),
        ({"decode_head.num_codes": DELETE}, {"encnet": Encnet(codewords=32)}),
        ({"decode_head.align_corners": True, "auxiliary_head.align_corners": True}, {"align_corners": True}),
        ({"decode_head.dropout_ratio": 0.3, "auxiliary_head.dropout_ratio": 0.3}, {"dropout": 0.3}),
        ({"auxiliary_head": None}, {"auxiliary_channels": 0}),
        ({"auxiliary_head": DELETE}, {"auxiliary_channels": 0}),
        # The dilations are explicit in the config, even if they equal the head's default.
        (
            SEPARABLE | {"decode_head.dilations": [1, 6, 12, 18]},
            {"deeplab": Deeplab(dilations=(1, 6, 12, 18), shortcut_channels=2)},
        ),
        (SEPARABLE, {"deeplab": Deeplab(dilations=(1, 6, 12, 18), shortcut_channels=2)}),
        (
            SEPARABLE | {"decode_head.c1_in_channels": 0, "decode_head.c1_channels": 0},
            {"deeplab": Deeplab(dilations=(1, 6, 12, 18), shortcut_channels=0)},
        ),
    ],
)
def test_mmseg_options_of_the_model(changes, expected):
    model = original_configs.translate(changed(mmseg_encnet(), changes)).model
    assert {key: getattr(model, key) for key in expected} == expected


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"decode_head.loss_decode.avg_non_ignore": True, "auxiliary_head.loss_decode.avg_non_ignore": True},
            {"average": "valid"},
        ),
        ({"decode_head.loss_decode.loss_weight": 0.7}, {"main": 0.7}),
        ({"auxiliary_head.loss_decode.loss_weight": 1}, {"auxiliary": 1.0}),
        ({"decode_head.loss_se_decode.loss_weight": 0.3}, {"se": 0.3}),
        ({"decode_head.loss_se_decode.loss_weight": DELETE}, {"se": 1.0}),
        ({"decode_head.loss_se_decode": DELETE}, {"se": 0.2}),
        (
            {
                "decode_head.loss_decode.class_weight": [1, 2, 0.5],
                "auxiliary_head.loss_decode.class_weight": [1.0, 2.0, 0.5],
            },
            {"class_weights": (1.0, 2.0, 0.5)},
        ),
        (
            {"decode_head.sampler": {"type": "OHEMPixelSampler", "min_kept": 50}},
            {"ohem_kept": 50, "ohem_threshold": 0.0},
        ),
        (
            {"decode_head.sampler": {"type": "OHEMPixelSampler", "thresh": 0.7}},
            {"ohem_kept": 100_000, "ohem_threshold": 0.7},
        ),
        ({"decode_head.sampler": None}, {"ohem_kept": 0}),
        ({"decode_head.loss_decode": [{"type": "CrossEntropyLoss", "loss_weight": 2.0}]}, {"main": 2.0}),
    ],
)
def test_mmseg_options_of_the_loss(changes, expected):
    loss = original_configs.translate(changed(mmseg_encnet(), changes)).loss
    assert {key: getattr(loss, key) for key in expected} == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backbone.type": "ResNeSt"}, r"backbone.type = 'ResNeSt' is not supported; choices: 'ResNet', 'ResNetV1c'"),
        ({"backbone.depth": 34}, r"unknown backbone.depth"),
        ({"backbone.dilations": [1, 1, 2, 2]}, r"backbone.strides = .*\(1, 1, 2, 2\).* is not supported"),
        ({"backbone.strides": DELETE, "backbone.dilations": DELETE}, r"strides = .*\(1, 2, 2, 2\)"),
        (
            {"backbone.style": "tensorflow"},
            r"backbone.style = 'tensorflow' is not supported; choices: 'pytorch', 'caffe'",
        ),
        ({"backbone.frozen_stages": 1}, r"backbone.frozen_stages = 1 is not supported"),
        ({"backbone.norm_eval": True}, r"backbone.norm_eval = True is not supported"),
        ({"backbone.dcn": {"type": "DCN"}}, r"backbone.dcn = \{'type': 'DCN'\} is not supported"),
        ({"backbone.stem_kernel": 5}, r"backbone.stem_kernel = 5 is not supported; known options: avg_down|conv_cfg"),
        ({"backbone.norm_cfg": {"type": "GN", "num_groups": 32}}, r"backbone.norm_cfg.type = 'GN' is not supported"),
        ({"decode_head.norm_cfg": None}, r"decode_head.norm_cfg = None is not supported"),
        ({"decode_head.norm_cfg": {"type": "BN", "eps": 1e-3}}, r"decode_head.norm_cfg.eps = 0.001 is not supported"),
        ({"decode_head.type": "UPerHead"}, r"unknown decode_head.type 'UPerHead'"),
        ({"decode_head.in_channels": [8, 16, 64]}, r"decode_head.in_channels = \[8, 16, 64\]"),
        ({"decode_head.in_index": [0, 1, 3]}, r"decode_head.in_index = \[0, 1, 3\]"),
        ({"decode_head.loss_decode": {"type": "DiceLoss"}}, r"decode_head.loss_decode.type = 'DiceLoss'"),
        ({"decode_head.loss_decode.use_sigmoid": True}, r"decode_head.loss_decode.use_sigmoid = True"),
        ({"decode_head.loss_decode.class_weight": "weights.npy"}, r"loss_decode.class_weight = 'weights.npy'"),
        ({"decode_head.loss_decode.class_weight": [1.0, 1.0, 1.0]}, r"auxiliary_head.loss_decode.class_weight = \(\)"),
        (
            {"decode_head.loss_decode.class_weight": [1.0], "auxiliary_head.loss_decode.class_weight": [1.0]},
            "1 class weights for 3 classes",
        ),
        ({"decode_head.loss_decode": [{"type": "CrossEntropyLoss"}, {"type": "DiceLoss"}]}, "decode_head.loss_decode"),
        ({"decode_head.ignore_index": 0}, r"decode_head.ignore_index = 0 is not supported"),
        ({"decode_head.out_channels": 1}, r"decode_head.out_channels = 1 is not supported"),
        ({"decode_head.sampler": {"type": "OHEMPixelSampler", "thresh": 0}}, r"decode_head.sampler.thresh = 0"),
        ({"decode_head.channels": 8.0}, r"decode_head.channels = 8.0 is not supported"),
        ({"decode_head.use_se_loss": 1}, r"decode_head.use_se_loss = 1 is not supported"),
        ({"decode_head.channels": DELETE}, r"decode_head.channels is missing"),
        ({"auxiliary_head.num_convs": 2}, r"auxiliary_head.num_convs = 2 is not supported; choices: 1"),
        ({"auxiliary_head.num_convs": DELETE}, r"auxiliary_head.num_convs = 2 is not supported"),
        (
            {"auxiliary_head.dropout_ratio": 0.2},
            r"auxiliary_head.dropout_ratio = 0.2 .*decode_head.dropout_ratio = 0.1",
        ),
        ({"auxiliary_head.align_corners": True}, r"auxiliary_head.align_corners = True"),
        ({"auxiliary_head.in_index": 1}, r"auxiliary_head.in_index = 1 is not supported; choices: 2"),
        ({"auxiliary_head.type": "PSPHead"}, r"auxiliary_head.type = 'PSPHead'"),
        ({"neck": {"type": "FPN"}}, r"neck = \{'type': 'FPN'\} is not supported"),
        ({"type": "CascadeEncoderDecoder"}, r"type = 'CascadeEncoderDecoder'"),
        ({"backbone": "resnet"}, r"backbone must be a group of options, got 'resnet'"),
    ],
)
def test_unsupported_mmseg_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        original_configs.translate(changed(mmseg_encnet(), changes))


def test_sss_options():
    changes = {
        "backbone.style": "caffe",
        "backbone.use_conv3x3_stem": False,
        "backbone.use_checkpoint": True,
        "backbone.use_avg_for_downsample": True,
        "losses.loss_cls.class_weight": [1, 2, 0.5],
        "losses.loss_aux.class_weight": [1, 2, 0.5],
        "losses.loss_cls.label_smoothing": None,
        "losses.loss_cls.norm_loss_with_class_weight": True,
    }
    model, loss, _ = original_configs.translate(changed(sss_deeplabv3plus(), changes))
    assert (model.stride_on, model.stem, model.downsample) == ("1x1", "7x7", "average")
    assert loss.class_weights == (1.0, 2.0, 0.5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"losses.loss_cls.weight": [1.0, 1.0, 1.0]}, r"losses.loss_cls.weight = \[1.0, 1.0, 1.0\] is not supported"),
        ({"losses.loss_cls.label_smoothing": 0.1}, "losses.loss_cls.label_smoothing = 0.1 is not supported"),
        ({"losses.loss_cls.class_weight": [1.0, 1.0, 1.0]}, r"losses.loss_aux.class_weight = \(\)"),
        ({"type": "CCNet"}, "unknown type 'CCNet'"),
        ({"backbone.outstride": 32}, "backbone.outstride = 32 is not supported; choices: 8, 16"),
        ({"backbone.type": "HRNet"}, "backbone.type = 'HRNet'"),
        ({"backbone.selected_indices": [1, 2, 3]}, r"backbone.selected_indices = \[1, 2, 3\]"),
        ({"head.in_channels": [4, 16]}, r"head.in_channels = \[4, 16\]"),
        ({"head.kernel": 5}, "head.kernel = 5 is not supported"),
        ({"auxiliary.num_convs": 2}, "auxiliary.num_convs = 2"),
        ({"auxiliary.dropout": 0.5}, "auxiliary.dropout = 0.5 .* head.dropout = 0.1"),
        ({"auxiliary": [{}, {}]}, "auxiliary must be a group of options"),
        ({"losses.loss_cls.ignore_index": 255}, "losses.loss_cls.ignore_index = 255"),
        ({"losses.loss_edge": {}}, r"losses.loss_edge = \{\} is not supported"),
        ({"losses.loss_aux": DELETE}, "losses.loss_aux is missing"),
        ({"act_cfg": {"type": "GELU"}}, "act_cfg = {'type': 'GELU'}"),
        ({"is_freeze_norm": True}, "is_freeze_norm = True"),
        ({"num_classes": DELETE}, "num_classes is missing"),
    ],
)
def test_unsupported_sss_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        original_configs.translate(changed(sss_deeplabv3plus(), changes))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"backbone.use_conv3x3_stem": False}, {"stem": "7x7"}),
        ({"backbone.use_avg_for_downsample": True}, {"downsample": "average"}),
        # SSSegmentation's default is true.
        ({"backbone.contract_dilation": False}, {"contract_dilation": False}),
        ({"auxiliary": None, "losses.loss_aux": DELETE}, {"auxiliary_channels": 0}),
        ({"align_corners": True}, {"align_corners": True}),
    ],
)
def test_sss_options_of_the_model(changes, expected):
    model = original_configs.translate(changed(sss_deeplabv3plus(), changes)).model
    assert {key: getattr(model, key) for key in expected} == expected


@pytest.mark.parametrize("cfg", [None, [], {}, {"model": {}}])
def test_other_values_than_model_configurations(cfg):
    with pytest.raises(ConfigError, match="not a model configuration"):
        original_configs.translate(cfg)
