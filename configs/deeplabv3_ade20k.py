"""DeepLabV3 (Chen et al. 2017) on ADE20K.

    python -m kseg.train --config deeplabv3_ade20k --workdir runs/deeplabv3_ade20k
    python -m kseg.train --config deeplabv3_ade20k:r101-d8-512x512-80k

Without a variant: R-50-D8, 512x512, 80k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R101, SSS_ADE20K, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="ade20k"),
        augment=Augment(scale=(512, 2048), crop=(512, 512)),
        model=Model(backbone="resnet50", output_stride=8, head="deeplabv3"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=80_000, validate_every=8_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-80k": mmsegmentation(
        {},
        "deeplabv3_r50-d8_4xb4-80k_ade20k-512x512",
        42.42,
        43.28,
        "deeplabv3_r50-d8_512x512_80k_ade20k_20200614_185028-0bb3f844.pth",
    ),
    "r50-d8-512x512-160k": mmsegmentation(
        steps(160_000),
        "deeplabv3_r50-d8_4xb4-160k_ade20k-512x512",
        42.66,
        44.09,
        "deeplabv3_r50-d8_512x512_160k_ade20k_20200615_123227-5d0ee427.pth",
    ),
    "r101-d8-512x512-80k": mmsegmentation(
        R101,
        "deeplabv3_r101-d8_4xb4-80k_ade20k-512x512",
        44.08,
        45.19,
        "deeplabv3_r101-d8_512x512_80k_ade20k_20200615_021256-d89c7fa4.pth",
    ),
    "r101-d8-512x512-160k": mmsegmentation(
        R101 | steps(160_000),
        "deeplabv3_r101-d8_4xb4-160k_ade20k-512x512",
        45.0,
        46.66,
        "deeplabv3_r101-d8_512x512_160k_ade20k_20200615_105816-b1f72b3b.pth",
    ),
    "r50-d8-512x512-130e": sssegmentation(SSS_ADE20K, "deeplabv3_resnet50os8_ade20k", 43.19),
    "r50-d16-512x512-130e": sssegmentation(D16 | SSS_ADE20K, "deeplabv3_resnet50os16_ade20k", 41.41),
    "r101-d8-512x512-130e": sssegmentation(R101 | SSS_ADE20K, "deeplabv3_resnet101os8_ade20k", 45.16),
    "r101-d16-512x512-130e": sssegmentation(R101 | D16 | SSS_ADE20K, "deeplabv3_resnet101os16_ade20k", 43.45),
}
