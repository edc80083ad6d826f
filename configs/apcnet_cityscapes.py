"""APCNet (He et al. 2019) on Cityscapes.

    python -m kseg.train --config apcnet_cityscapes --workdir runs/apcnet_cityscapes
    python -m kseg.train --config apcnet_cityscapes:r101-d8-512x1024-40k

Without a variant: R-50-D8, 512x1024, 40k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import CROP_769, D16, R101, SSS_CITYSCAPES, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="cityscapes"),
        augment=Augment(scale=(1024, 2048), crop=(512, 1024)),
        model=Model(backbone="resnet50", output_stride=8, head="apcnet"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=8, steps=40_000, validate_every=4_000),
        evaluate=Evaluate(resize=(1024, 2048)),
    )


VARIANTS = {
    "r50-d8-512x1024-40k": mmsegmentation(
        {},
        "apcnet_r50-d8_4xb2-40k_cityscapes-512x1024",
        78.02,
        79.26,
        "apcnet_r50-d8_512x1024_40k_cityscapes_20201214_115717-5e88fa33.pth",
    ),
    "r50-d8-512x1024-80k": mmsegmentation(
        steps(80_000),
        "apcnet_r50-d8_4xb2-80k_cityscapes-512x1024",
        78.96,
        79.94,
        "apcnet_r50-d8_512x1024_80k_cityscapes_20201214_115716-987f51e3.pth",
    ),
    "r50-d8-769x769-40k": mmsegmentation(
        CROP_769,
        "apcnet_r50-d8_4xb2-40k_cityscapes-769x769",
        77.89,
        79.75,
        "apcnet_r50-d8_769x769_40k_cityscapes_20201214_115717-2a2628d7.pth",
    ),
    "r50-d8-769x769-80k": mmsegmentation(
        CROP_769 | steps(80_000),
        "apcnet_r50-d8_4xb2-80k_cityscapes-769x769",
        78.79,
        80.35,
        "apcnet_r50-d8_769x769_80k_cityscapes_20201214_115718-7ea9fa12.pth",
    ),
    "r101-d8-512x1024-40k": mmsegmentation(
        R101,
        "apcnet_r101-d8_4xb2-40k_cityscapes-512x1024",
        79.08,
        80.34,
        "apcnet_r101-d8_512x1024_40k_cityscapes_20201214_115716-abc9d111.pth",
    ),
    "r101-d8-512x1024-80k": mmsegmentation(
        R101 | steps(80_000),
        "apcnet_r101-d8_4xb2-80k_cityscapes-512x1024",
        79.64,
        80.61,
        "apcnet_r101-d8_512x1024_80k_cityscapes_20201214_115705-b1ff208a.pth",
    ),
    "r101-d8-769x769-40k": mmsegmentation(
        R101 | CROP_769,
        "apcnet_r101-d8_4xb2-40k_cityscapes-769x769",
        77.96,
        79.24,
        "apcnet_r101-d8_769x769_40k_cityscapes_20201214_115718-b650de90.pth",
    ),
    "r101-d8-769x769-80k": mmsegmentation(
        R101 | CROP_769 | steps(80_000),
        "apcnet_r101-d8_4xb2-80k_cityscapes-769x769",
        78.45,
        79.91,
        "apcnet_r101-d8_769x769_80k_cityscapes_20201214_115716-a7fbc2ab.pth",
    ),
    "r50-d8-512x1024-220e": sssegmentation(SSS_CITYSCAPES, "apcnet_resnet50os8_cityscapes", 79.02),
    "r50-d16-512x1024-220e": sssegmentation(D16 | SSS_CITYSCAPES, "apcnet_resnet50os16_cityscapes", 76.97),
    "r101-d8-512x1024-220e": sssegmentation(R101 | SSS_CITYSCAPES, "apcnet_resnet101os8_cityscapes", 79.71),
    "r101-d16-512x1024-220e": sssegmentation(R101 | D16 | SSS_CITYSCAPES, "apcnet_resnet101os16_cityscapes", 78.53),
}
