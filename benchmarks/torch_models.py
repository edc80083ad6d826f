"""Build plain PyTorch models with the layers, names and initial weights of MMSegmentation's, for benchmarks.gpu.

ResNet-50 (v1c) at output stride 8, one of six heads, and the auxiliary head. kseg's weights under MMSegmentation's
names load strictly.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

CHANNELS, AUXILIARY_CHANNELS, FEATURES, DROPOUT, IGNORED = 512, 256, (256, 512, 1024, 2048), 0.1, 255
# Blocks, stride and dilation of the four stages. The first block of a dilated stage has half the dilation.
STAGES = ((3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4))
POOL_SCALES = (1, 2, 3, 6)
# Weights of the loss terms.
AUXILIARY, PRESENCE = 0.4, 0.2


def convolution(
    inputs: int, outputs: int, kernel: int, dilation: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size, but for its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def conv_bn_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Return MMSegmentation's ConvModule."""
    return nn.Sequential(
        OrderedDict(
            conv=convolution(inputs, outputs, kernel, dilation, groups=groups),
            bn=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(inplace=True),
        )
    )


def separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Return MMSegmentation's DepthwiseSeparableConvModule."""
    return nn.Sequential(
        OrderedDict(
            depthwise_conv=conv_bn_relu(inputs, inputs, 3, dilation, groups=inputs),
            pointwise_conv=conv_bn_relu(inputs, outputs, 1),
        )
    )


def resize(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (N, C, H, W) bilinearly."""
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)


class Bottleneck(nn.Module):
    """A residual block whose 3x3 convolution has the stride and the dilation."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = convolution(planes, planes, 3, dilation, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = convolution(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride > 1 or inputs != 4 * planes:
            self.downsample = nn.Sequential(
                convolution(inputs, 4 * planes, 1, stride=stride), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, inputs):
        outputs = functional.relu(self.bn1(self.conv1(inputs)), inplace=True)
        outputs = functional.relu(self.bn2(self.conv2(outputs)), inplace=True)
        outputs = self.bn3(self.conv3(outputs))
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        return functional.relu(outputs + shortcut, inplace=True)


class ResNet(nn.Module):
    """ResNet-50 with the deep stem, which returns the outputs of its four stages."""

    def __init__(self):
        super().__init__()
        stem = []
        for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
            stem += [convolution(inputs, outputs, 3, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.stem, self.maxpool = nn.Sequential(*stem), nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, (blocks, stride, dilation) in enumerate(STAGES):
            layers = []
            for block in range(blocks):
                layers.append(
                    Bottleneck(
                        inputs, 64 * 2**stage, 1 if block else stride, dilation if block else max(dilation // 2, 1)
                    )
                )
                inputs = FEATURES[stage]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, images):
        outputs, features = self.maxpool(self.stem(images)), []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            outputs = stage(outputs)
            features.append(outputs)
        return features


class Head(nn.Module):
    """A head, which ends in channel dropout and a 1x1 convolution to the logits."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.dropout, self.conv_seg = nn.Dropout2d(DROPOUT), nn.Conv2d(channels, classes, 1)

    def classify(self, values):
        return self.conv_seg(self.dropout(values))


class Fcn(Head):
    """The head of FCN."""

    def __init__(self, classes: int):
        super().__init__(CHANNELS, classes)
        self.convs = nn.Sequential(conv_bn_relu(FEATURES[3], CHANNELS, 3), conv_bn_relu(CHANNELS, CHANNELS, 3))
        self.conv_cat = conv_bn_relu(FEATURES[3] + CHANNELS, CHANNELS, 3)

    def forward(self, features):
        joined = torch.cat([features[3], self.convs(features[3])], 1)
        return {"main": self.classify(self.conv_cat(joined))}


class Auxiliary(Head):
    """The auxiliary head, on stage 3."""

    def __init__(self, classes: int):
        super().__init__(AUXILIARY_CHANNELS, classes)
        self.convs = nn.Sequential(conv_bn_relu(FEATURES[2], AUXILIARY_CHANNELS, 3))

    def forward(self, features):
        return {"aux": self.classify(self.convs(features[2]))}


class Pspnet(Head):
    """The head of PSPNet."""

    def __init__(self, classes: int):
        super().__init__(CHANNELS, classes)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_bn_relu(FEATURES[3], CHANNELS, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = conv_bn_relu(FEATURES[3] + len(POOL_SCALES) * CHANNELS, CHANNELS, 3)

    def forward(self, features):
        top = features[3]
        branches = [resize(module(top), top.shape[2:]) for module in self.psp_modules]
        return {"main": self.classify(self.bottleneck(torch.cat([top, *branches], 1)))}


class AtrousPyramid(Head):
    """The head of DeepLabV3, or of DeepLabV3+ with a separable pyramid that stage 1 joins."""

    def __init__(self, classes: int, plus: bool):
        super().__init__(CHANNELS, classes)
        inputs = FEATURES[3]
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(inputs, CHANNELS, 1))
        self.aspp_modules = nn.ModuleList([conv_bn_relu(inputs, CHANNELS, 1)])
        for dilation in (12, 24, 36):
            self.aspp_modules.append(
                separable(inputs, CHANNELS, dilation) if plus else conv_bn_relu(inputs, CHANNELS, 3, dilation)
            )
        self.bottleneck = conv_bn_relu(5 * CHANNELS, CHANNELS, 3)
        self.plus = plus
        if plus:
            self.c1_bottleneck = conv_bn_relu(FEATURES[0], 48, 1)
            self.sep_bottleneck = nn.Sequential(separable(CHANNELS + 48, CHANNELS), separable(CHANNELS, CHANNELS))

    def forward(self, features):
        top = features[3]
        branches = [resize(self.image_pool(top), top.shape[2:]), *(module(top) for module in self.aspp_modules)]
        outputs = self.bottleneck(torch.cat(branches, 1))
        if self.plus:
            shortcut = self.c1_bottleneck(features[0])
            outputs = self.sep_bottleneck(torch.cat([resize(outputs, shortcut.shape[2:]), shortcut], 1))
        return {"main": self.classify(outputs)}


class Encoding(nn.Module):
    """EncNet's residuals to learned codewords, in float32: (N, D, H, W) gives (N, K, D)."""

    def __init__(self, channels: int, codewords: int):
        super().__init__()
        limit = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-limit, limit))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, inputs):
        with torch.autocast(inputs.device.type, enabled=False):
            positions = inputs.float().flatten(2).transpose(1, 2)
            distance = (
                positions.square().sum(2, keepdim=True)
                - 2 * positions @ self.codewords.T
                + self.codewords.square().sum(1)
            )
            assignment = (self.scale * distance).softmax(2)
            return assignment.transpose(1, 2) @ positions - assignment.sum(1)[:, :, None] * self.codewords


class EncodingModule(nn.Module):
    """Weight channels by the encoded context; also returns the context."""

    def __init__(self, codewords: int = 32):
        super().__init__()
        self.encoding_project = conv_bn_relu(CHANNELS, CHANNELS, 1)
        self.encoding = nn.Sequential(Encoding(CHANNELS, codewords), nn.BatchNorm1d(codewords), nn.ReLU(inplace=True))
        self.fc = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.Sigmoid())

    def forward(self, inputs):
        context = self.encoding(self.encoding_project(inputs)).mean(1)
        return functional.relu(inputs + inputs * self.fc(context)[:, :, None, None]), context


class Encnet(Head):
    """The head of EncNet, with the layer that predicts which classes are present."""

    def __init__(self, classes: int):
        super().__init__(CHANNELS, classes)
        self.bottleneck, self.enc_module = conv_bn_relu(FEATURES[3], CHANNELS, 3), EncodingModule()
        self.se_layer = nn.Linear(CHANNELS, classes)

    def forward(self, features):
        outputs, context = self.enc_module(self.bottleneck(features[3]))
        return {"main": self.classify(outputs), "se": self.se_layer(context)}


class AdaptiveContext(nn.Module):
    """Mix the features of scale x scale regions at every position by its affinities."""

    def __init__(self, scale: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(scale)
        self.pooled_redu_conv = conv_bn_relu(FEATURES[3], CHANNELS, 1)
        self.input_redu_conv = conv_bn_relu(FEATURES[3], CHANNELS, 1)
        self.global_info = conv_bn_relu(CHANNELS, CHANNELS, 1)
        self.gla = nn.Conv2d(CHANNELS, scale * scale, 1)
        self.residual_conv, self.fusion_conv = conv_bn_relu(CHANNELS, CHANNELS, 1), conv_bn_relu(CHANNELS, CHANNELS, 1)

    def forward(self, inputs):
        regions = self.pooled_redu_conv(self.pool(inputs)).flatten(2)
        reduced = self.input_redu_conv(inputs)
        affinities = self.gla(reduced + self.global_info(functional.adaptive_avg_pool2d(reduced, 1))).sigmoid()
        mixture = (regions @ affinities.flatten(2)).view_as(reduced)
        return self.fusion_conv(functional.relu(self.residual_conv(mixture) + reduced))


class Apcnet(Head):
    """The head of APCNet."""

    def __init__(self, classes: int):
        super().__init__(CHANNELS, classes)
        self.acm_modules = nn.ModuleList(AdaptiveContext(scale) for scale in POOL_SCALES)
        self.bottleneck = conv_bn_relu(FEATURES[3] + len(POOL_SCALES) * CHANNELS, CHANNELS, 3)

    def forward(self, features):
        joined = torch.cat([features[3], *(module(features[3]) for module in self.acm_modules)], 1)
        return {"main": self.classify(self.bottleneck(joined))}


HEADS: dict[str, Callable[[int], Head]] = {
    "encnet": Encnet,
    "deeplabv3": lambda classes: AtrousPyramid(classes, plus=False),
    "deeplabv3plus": lambda classes: AtrousPyramid(classes, plus=True),
    "apcnet": Apcnet,
    "pspnet": Pspnet,
    "fcn": Fcn,
}


class Segmentation(nn.Module):
    """A backbone with its main and its auxiliary head."""

    def __init__(self, head: str, classes: int):
        super().__init__()
        self.backbone, self.decode_head, self.auxiliary_head = ResNet(), HEADS[head](classes), Auxiliary(classes)

    def forward(self, images):
        features = self.backbone(images)
        return self.decode_head(features) | self.auxiliary_head(features)

    def main(self, images):
        """Return the main head's logits alone."""
        return self.decode_head(self.backbone(images))["main"]


def build(head: str, classes: int) -> Segmentation:
    """Build a model with MMSegmentation's random initial weights."""
    model = Segmentation(head, classes)
    for module in model.modules():
        # Other layers keep PyTorch's initial weights.
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.groups > 1:
                # MMSegmentation counts all channels of a depthwise convolution.
                nn.init.normal_(module.weight, std=(2 / (module.weight[0, 0].numel() * module.out_channels)) ** 0.5)
        elif isinstance(module, Head):
            nn.init.normal_(module.conv_seg.weight, std=0.01)
            nn.init.zeros_(module.conv_seg.bias)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
    return model


def total_loss(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of a model's loss terms in float32, with the mean over all pixels.

    Args:
        outputs: logits by name.
        labels: uint8 (N, H, W), class ids, or 255 for pixels that are ignored.
    """
    labels, total = labels.long(), 0.0
    for name, weight in (("main", 1.0), ("aux", AUXILIARY)):
        logits = resize(outputs[name].float(), labels.shape[1:])
        summed = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        total += weight * summed / labels.numel()
    if "se" in outputs:
        logits = outputs["se"].float()
        present = torch.zeros(len(labels), IGNORED + 1, device=labels.device).scatter_(1, labels.flatten(1), 1.0)
        present = present[:, : logits.shape[1]]
        total += PRESENCE * functional.binary_cross_entropy_with_logits(logits, present)
    return total
