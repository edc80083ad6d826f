"""EncNet (Zhang et al. 2018) on Cityscapes.

    python -m kseg.train --config encnet_cityscapes --workdir runs/encnet_cityscapes
    python -m kseg.train --config encnet_cityscapes:r101-d8-512x1024-40k

Without a variant: R-50-D8, 512x1024, 40k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import CROP_769, D16, R101, SSS_CITYSCAPES, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="cityscapes"),
        augment=Augment(scale=(1024, 2048), crop=(512, 1024)),
        model=Model(backbone="resnet50", output_stride=8, head="encnet"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=8, steps=40_000, validate_every=4_000),
        evaluate=Evaluate(resize=(1024, 2048)),
    )


VARIANTS = {
    "r50-d8-512x1024-40k": mmsegmentation(
        {},
        "encnet_r50-d8_4xb2-40k_cityscapes-512x1024",
        75.67,
        77.08,
        "encnet_r50-d8_512x1024_40k_cityscapes_20200621_220958-68638a47.pth",
    ),
    "r50-d8-512x1024-80k": mmsegmentation(
        steps(80_000),
        "encnet_r50-d8_4xb2-80k_cityscapes-512x1024",
        77.94,
        79.13,
        "encnet_r50-d8_512x1024_80k_cityscapes_20200622_003554-fc5c5624.pth",
    ),
    "r50-d8-769x769-40k": mmsegmentation(
        CROP_769,
        "encnet_r50-d8_4xb2-40k_cityscapes-769x769",
        76.24,
        77.85,
        "encnet_r50-d8_769x769_40k_cityscapes_20200621_220958-3bcd2884.pth",
    ),
    "r50-d8-769x769-80k": mmsegmentation(
        CROP_769 | steps(80_000),
        "encnet_r50-d8_4xb2-80k_cityscapes-769x769",
        77.44,
        78.72,
        "encnet_r50-d8_769x769_80k_cityscapes_20200622_003554-55096dcb.pth",
    ),
    "r101-d8-512x1024-40k": mmsegmentation(
        R101,
        "encnet_r101-d8_4xb2-40k_cityscapes-512x1024",
        75.81,
        77.21,
        "encnet_r101-d8_512x1024_40k_cityscapes_20200621_220933-35e0a3e8.pth",
    ),
    "r101-d8-512x1024-80k": mmsegmentation(
        R101 | steps(80_000),
        "encnet_r101-d8_4xb2-80k_cityscapes-512x1024",
        78.55,
        79.47,
        "encnet_r101-d8_512x1024_80k_cityscapes_20200622_003555-1de64bec.pth",
    ),
    "r101-d8-769x769-40k": mmsegmentation(
        R101 | CROP_769,
        "encnet_r101-d8_4xb2-40k_cityscapes-769x769",
        74.25,
        76.25,
        "encnet_r101-d8_769x769_40k_cityscapes_20200621_220933-2fafed55.pth",
    ),
    "r101-d8-769x769-80k": mmsegmentation(
        R101 | CROP_769 | steps(80_000),
        "encnet_r101-d8_4xb2-80k_cityscapes-769x769",
        76.1,
        76.97,
        "encnet_r101-d8_769x769_80k_cityscapes_20200622_003555-470ef79d.pth",
    ),
    "r50-d8-512x1024-220e": sssegmentation(SSS_CITYSCAPES, "encnet_resnet50os8_cityscapes", 77.98),
    "r50-d16-512x1024-220e": sssegmentation(D16 | SSS_CITYSCAPES, "encnet_resnet50os16_cityscapes", 75.98),
    "r101-d8-512x1024-220e": sssegmentation(R101 | SSS_CITYSCAPES, "encnet_resnet101os8_cityscapes", 78.7),
    "r101-d16-512x1024-220e": sssegmentation(R101 | D16 | SSS_CITYSCAPES, "encnet_resnet101os16_cityscapes", 77.46),
}
