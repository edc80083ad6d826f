"""Small configurations of the original systems, and checkpoints with the weights of a kseg model."""

from collections import OrderedDict

import numpy as np

from kseg.weights import loading
from tests.helpers.torch_writing import FakeTensor, Stored, write_zip


def mmseg_encnet(depth=18, width=4, classes=3, **head):
    """Return MMSegmentation's resolved configuration of a small EncNet at output stride 16."""
    expansion = 4 if depth > 34 else 1
    stages = [width * expansion * 2**stage for stage in range(4)]
    norm = {"type": "SyncBN", "requires_grad": True}
    return {
        "type": "EncoderDecoder",
        "pretrained": "open-mmlab://resnet18_v1c",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": {
            "type": "ResNetV1c",
            "depth": depth,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 1, 2),
            "strides": (1, 2, 2, 1),
            "norm_cfg": norm,
            "norm_eval": False,
            "style": "pytorch",
            "contract_dilation": True,
            "base_channels": width,
            "stem_channels": width,
        },
        "decode_head": {
            "type": "EncHead",
            "in_channels": stages[1:],
            "in_index": (1, 2, 3),
            "channels": 8,
            "num_codes": 5,
            "use_se_loss": True,
            "add_lateral": False,
            "dropout_ratio": 0.1,
            "num_classes": classes,
            "norm_cfg": norm,
            "align_corners": False,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_se_decode": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 0.2},
        }
        | head,
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": stages[2],
            "in_index": 2,
            "channels": 4,
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": 0.1,
            "num_classes": classes,
            "norm_cfg": norm,
            "align_corners": False,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def sss_deeplabv3plus(width=4, classes=3):
    """Return SSSegmentation's resolved configuration of a small DeepLabV3+ on ResNet-18 at output stride 16."""
    loss = {"type": "CrossEntropyLoss", "ignore_index": -100, "reduction": "mean"}
    return {
        "type": "Deeplabv3Plus",
        "num_classes": classes,
        "align_corners": False,
        "norm_cfg": {"type": "SyncBatchNorm"},
        "act_cfg": {"type": "ReLU", "inplace": True},
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "structure_type": "resnet18conv3x3stem",
            "pretrained": True,
            "outstride": 16,
            "use_conv3x3_stem": True,
            "selected_indices": (0, 1, 2, 3),
            "base_channels": width,
            "stem_channels": width,
        },
        "head": {
            "in_channels": [width, 8 * width],
            "feats_channels": 8,
            "shortcut_channels": 2,
            "dilations": [1, 2, 3, 4],
            "dropout": 0.1,
        },
        "auxiliary": {"in_channels": 4 * width, "out_channels": 8, "dropout": 0.1},
        "losses": {"loss_aux": loss | {"scale_factor": 0.4}, "loss_cls": loss | {"scale_factor": 1.0}},
    }


def randomize(model, seed=0):
    """Assign random values to all weights of a model, so that a swap of any two is visible."""
    generator = np.random.default_rng(seed)
    for name, variable in loading.mmseg_names(model).items():
        low, high = (0.5, 1.5) if name.endswith(("running_var", "bn1.weight", "bn.weight")) else (-0.3, 0.3)
        variable.assign(generator.uniform(low, high, variable.shape).astype(np.float32))


def state_of(model):
    """Return a model's weights by PyTorch's names, in PyTorch's layout."""
    arrays = {name: (np.array(target.variable), target.axes) for name, target in loading.torch_targets(model).items()}
    return {name: array.transpose(np.argsort(axes)) if axes else array for name, (array, axes) in arrays.items()}


def write_checkpoint(path, state, **more):
    """Write arrays as an MMSegmentation checkpoint with additional entries."""
    tensors = OrderedDict()
    for key, (name, array) in enumerate(state.items()):
        array = np.ascontiguousarray(array, np.float32)
        stride = tuple(step // array.itemsize for step in array.strides)
        tensors[name] = FakeTensor(Stored(array.ravel(), key=str(key)), 0, array.shape, stride)
    return write_zip(path, {"state_dict": tensors} | more)
