"""DeepLabV3 (Chen et al. 2017) on Cityscapes.

    python -m kseg.train --config deeplabv3_cityscapes --workdir runs/deeplabv3_cityscapes
    python -m kseg.train --config deeplabv3_cityscapes:r101-d8-512x1024-40k

Without a variant: R-50-D8, 512x1024, 40k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import (
    AMP,
    CROP_769,
    D16,
    D16_MG124,
    R18,
    R18B,
    R50B,
    R101,
    R101B,
    SSS_CITYSCAPES,
    mmsegmentation,
    sssegmentation,
    steps,
)


def config() -> Config:
    return Config(
        data=Data(name="cityscapes"),
        augment=Augment(scale=(1024, 2048), crop=(512, 1024)),
        model=Model(backbone="resnet50", output_stride=8, head="deeplabv3"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=8, steps=40_000, validate_every=4_000),
        evaluate=Evaluate(resize=(1024, 2048)),
    )


VARIANTS = {
    "r50-d8-512x1024-40k": mmsegmentation(
        {},
        "deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024",
        79.09,
        80.45,
        "deeplabv3_r50-d8_512x1024_40k_cityscapes_20200605_022449-acadc2f8.pth",
    ),
    "r50-d8-512x1024-80k": mmsegmentation(
        steps(80_000),
        "deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024",
        79.32,
        80.57,
        "deeplabv3_r50-d8_512x1024_80k_cityscapes_20200606_113404-b92cfdd4.pth",
    ),
    "r50-d8-769x769-40k": mmsegmentation(
        CROP_769,
        "deeplabv3_r50-d8_4xb2-40k_cityscapes-769x769",
        78.58,
        79.89,
        "deeplabv3_r50-d8_769x769_40k_cityscapes_20200606_113723-7eda553c.pth",
    ),
    "r50-d8-769x769-80k": mmsegmentation(
        CROP_769 | steps(80_000),
        "deeplabv3_r50-d8_4xb2-80k_cityscapes-769x769",
        79.89,
        81.06,
        "deeplabv3_r50-d8_769x769_80k_cityscapes_20200606_221338-788d6228.pth",
    ),
    "r101-d8-512x1024-40k": mmsegmentation(
        R101,
        "deeplabv3_r101-d8_4xb2-40k_cityscapes-512x1024",
        77.12,
        79.61,
        "deeplabv3_r101-d8_512x1024_40k_cityscapes_20200605_012241-7fd3f799.pth",
    ),
    "r101-d8-512x1024-80k": mmsegmentation(
        R101 | steps(80_000),
        "deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024",
        80.2,
        81.21,
        "deeplabv3_r101-d8_512x1024_80k_cityscapes_20200606_113503-9e428899.pth",
    ),
    # The original's name says 80k steps as well, but its schedule has 40k.
    "r101-d8-512x1024-amp-80k": mmsegmentation(
        R101 | AMP,
        "deeplabv3_r101-d8_4xb2-amp-80k_cityscapes-512x1024",
        80.48,
        weights="deeplabv3_r101-d8_fp16_512x1024_80k_cityscapes_20200717_230920-774d9cec.pth",
    ),
    "r101-d8-769x769-40k": mmsegmentation(
        R101 | CROP_769,
        "deeplabv3_r101-d8_4xb2-40k_cityscapes-769x769",
        79.27,
        80.11,
        "deeplabv3_r101-d8_769x769_40k_cityscapes_20200606_113809-c64f889f.pth",
    ),
    "r101-d8-769x769-80k": mmsegmentation(
        R101 | CROP_769 | steps(80_000),
        "deeplabv3_r101-d8_4xb2-80k_cityscapes-769x769",
        79.67,
        80.81,
        "deeplabv3_r101-d8_769x769_80k_cityscapes_20200607_013353-60e95418.pth",
    ),
    "r101-d16-mg124-512x1024-40k": mmsegmentation(
        R101 | D16_MG124,
        "deeplabv3_r101-d16-mg124_4xb2-40k_cityscapes-512x1024",
        76.71,
        78.63,
        "deeplabv3_r101-d16-mg124_512x1024_40k_cityscapes_20200908_005644-67b0c992.pth",
    ),
    "r101-d16-mg124-512x1024-80k": mmsegmentation(
        R101 | D16_MG124 | steps(80_000),
        "deeplabv3_r101-d16-mg124_4xb2-80k_cityscapes-512x1024",
        78.36,
        79.84,
        "deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes_20200908_005644-57bb8425.pth",
    ),
    "r18-d8-512x1024-80k": mmsegmentation(
        R18 | steps(80_000),
        "deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024",
        76.7,
        78.27,
        "deeplabv3_r18-d8_512x1024_80k_cityscapes_20201225_021506-23dffbe2.pth",
    ),
    "r18-d8-769x769-80k": mmsegmentation(
        R18 | CROP_769 | steps(80_000),
        "deeplabv3_r18-d8_4xb2-80k_cityscapes-769x769",
        76.6,
        78.26,
        "deeplabv3_r18-d8_769x769_80k_cityscapes_20201225_021506-6452126a.pth",
    ),
    "r50b-d8-512x1024-80k": mmsegmentation(
        R50B | steps(80_000),
        "deeplabv3_r50b-d8_4xb2-80k_cityscapes-512x1024",
        79.63,
        80.98,
        "deeplabv3_r50b-d8_512x1024_80k_cityscapes_20201225_155148-ec368954.pth",
    ),
    "r50b-d8-769x769-80k": mmsegmentation(
        R50B | CROP_769 | steps(80_000),
        "deeplabv3_r50b-d8_4xb2-80k_cityscapes-769x769",
        78.8,
        80.27,
        "deeplabv3_r50b-d8_769x769_80k_cityscapes_20201225_155404-87fb0cf4.pth",
    ),
    "r101b-d8-512x1024-80k": mmsegmentation(
        R101B | steps(80_000),
        "deeplabv3_r101b-d8_4xb2-80k_cityscapes-512x1024",
        80.01,
        81.21,
        "deeplabv3_r101b-d8_512x1024_80k_cityscapes_20201226_171821-8fd49503.pth",
    ),
    "r101b-d8-769x769-80k": mmsegmentation(
        R101B | CROP_769 | steps(80_000),
        "deeplabv3_r101b-d8_4xb2-80k_cityscapes-769x769",
        79.41,
        80.73,
        "deeplabv3_r101b-d8_769x769_80k_cityscapes_20201226_190843-9142ee57.pth",
    ),
    "r18b-d8-512x1024-80k": mmsegmentation(
        R18B | steps(80_000),
        "deeplabv3_r18b-d8_4xb2-80k_cityscapes-512x1024",
        76.26,
        77.88,
        "deeplabv3_r18b-d8_512x1024_80k_cityscapes_20201225_094144-46040cef.pth",
    ),
    "r18b-d8-769x769-80k": mmsegmentation(
        R18B | CROP_769 | steps(80_000),
        "deeplabv3_r18b-d8_4xb2-80k_cityscapes-769x769",
        75.63,
        77.51,
        "deeplabv3_r18b-d8_769x769_80k_cityscapes_20201225_094144-fdc985d9.pth",
    ),
    "r50-d8-512x1024-220e": sssegmentation(SSS_CITYSCAPES, "deeplabv3_resnet50os8_cityscapes", 79.62),
    "r50-d16-512x1024-220e": sssegmentation(D16 | SSS_CITYSCAPES, "deeplabv3_resnet50os16_cityscapes", 78.19),
    "r101-d8-512x1024-220e": sssegmentation(R101 | SSS_CITYSCAPES, "deeplabv3_resnet101os8_cityscapes", 80.28),
    "r101-d16-512x1024-220e": sssegmentation(R101 | D16 | SSS_CITYSCAPES, "deeplabv3_resnet101os16_cityscapes", 78.03),
}
