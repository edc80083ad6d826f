"""DeepLabV3+ (Chen et al. 2018) on ADE20K.

    python -m kseg.train --config deeplabv3plus_ade20k --workdir runs/deeplabv3plus_ade20k
    python -m kseg.train --config deeplabv3plus_ade20k:r101-d8-512x512-80k

Without a variant: R-50-D8, 512x512, 80k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R101, SSS_ADE20K, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="ade20k"),
        augment=Augment(scale=(512, 2048), crop=(512, 512)),
        model=Model(backbone="resnet50", output_stride=8, head="deeplabv3plus"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=80_000, validate_every=8_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-80k": mmsegmentation(
        {},
        "deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512",
        42.72,
        43.75,
        "deeplabv3plus_r50-d8_512x512_80k_ade20k_20200614_185028-bf1400d8.pth",
    ),
    "r50-d8-512x512-160k": mmsegmentation(
        steps(160_000),
        "deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512",
        43.95,
        44.93,
        "deeplabv3plus_r50-d8_512x512_160k_ade20k_20200615_124504-6135c7e0.pth",
    ),
    "r101-d8-512x512-80k": mmsegmentation(R101, "deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512"),
    "r101-d8-512x512-160k": mmsegmentation(
        R101 | steps(160_000),
        "deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512",
        45.47,
        46.35,
        "deeplabv3plus_r101-d8_512x512_160k_ade20k_20200615_123232-38ed86bb.pth",
    ),
    "r50-d8-512x512-130e": sssegmentation(SSS_ADE20K, "deeplabv3plus_resnet50os8_ade20k", 44.51),
    "r50-d16-512x512-130e": sssegmentation(D16 | SSS_ADE20K, "deeplabv3plus_resnet50os16_ade20k", 43.21),
    "r101-d8-512x512-130e": sssegmentation(R101 | SSS_ADE20K, "deeplabv3plus_resnet101os8_ade20k", 45.72),
    "r101-d16-512x512-130e": sssegmentation(R101 | D16 | SSS_ADE20K, "deeplabv3plus_resnet101os16_ade20k", 45.22),
}
