"""DeepLabV3+ (Chen et al. 2018) on Cityscapes.

    python -m kseg.train --config deeplabv3plus_cityscapes --workdir runs/deeplabv3plus_cityscapes
    python -m kseg.train --config deeplabv3plus_cityscapes:r101-d8-512x1024-40k

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
        model=Model(backbone="resnet50", output_stride=8, head="deeplabv3plus"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=8, steps=40_000, validate_every=4_000),
        evaluate=Evaluate(resize=(1024, 2048)),
    )


VARIANTS = {
    "r50-d8-512x1024-40k": mmsegmentation(
        {},
        "deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024",
        79.61,
        81.01,
        "deeplabv3plus_r50-d8_512x1024_40k_cityscapes_20200605_094610-d222ffcd.pth",
    ),
    "r50-d8-512x1024-80k": mmsegmentation(
        steps(80_000),
        "deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024",
        80.09,
        81.13,
        "deeplabv3plus_r50-d8_512x1024_80k_cityscapes_20200606_114049-f9fb496d.pth",
    ),
    "r50-d8-769x769-40k": mmsegmentation(
        CROP_769,
        "deeplabv3plus_r50-d8_4xb2-40k_cityscapes-769x769",
        78.97,
        80.46,
        "deeplabv3plus_r50-d8_769x769_40k_cityscapes_20200606_114143-1dcb0e3c.pth",
    ),
    "r50-d8-769x769-80k": mmsegmentation(
        CROP_769 | steps(80_000),
        "deeplabv3plus_r50-d8_4xb2-80k_cityscapes-769x769",
        79.83,
        81.48,
        "deeplabv3plus_r50-d8_769x769_80k_cityscapes_20200606_210233-0e9dfdc4.pth",
    ),
    "r101-d8-512x1024-40k": mmsegmentation(
        R101,
        "deeplabv3plus_r101-d8_4xb2-40k_cityscapes-512x1024",
        80.21,
        81.82,
        "deeplabv3plus_r101-d8_512x1024_40k_cityscapes_20200605_094614-3769eecf.pth",
    ),
    "r101-d8-512x1024-80k": mmsegmentation(
        R101 | steps(80_000),
        "deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024",
        80.97,
        82.03,
        "deeplabv3plus_r101-d8_512x1024_80k_cityscapes_20200606_114143-068fcfe9.pth",
    ),
    "r101-d8-512x1024-amp-80k": mmsegmentation(
        R101 | AMP | steps(80_000),
        "deeplabv3plus_r101-d8_4xb2-amp-80k_cityscapes-512x1024",
        80.46,
        weights="deeplabv3plus_r101-d8_fp16_512x1024_80k_cityscapes_20200717_230920-f1104f4b.pth",
    ),
    "r101-d8-769x769-40k": mmsegmentation(
        R101 | CROP_769,
        "deeplabv3plus_r101-d8_4xb2-40k_cityscapes-769x769",
        79.46,
        80.5,
        "deeplabv3plus_r101-d8_769x769_40k_cityscapes_20200606_114304-ff414b9e.pth",
    ),
    "r101-d8-769x769-80k": mmsegmentation(
        R101 | CROP_769 | steps(80_000),
        "deeplabv3plus_r101-d8_4xb2-80k_cityscapes-769x769",
        80.65,
        81.47,
        "deeplabv3plus_r101-d8_769x769_80k_cityscapes_20220406_154720-dfcc0b68.pth",
    ),
    "r101-d16-mg124-512x1024-40k": mmsegmentation(
        R101 | D16_MG124, "deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024"
    ),
    "r101-d16-mg124-512x1024-80k": mmsegmentation(
        R101 | D16_MG124 | steps(80_000),
        "deeplabv3plus_r101-d16-mg124_4xb2-80k_cityscapes-512x1024",
        79.9,
        81.33,
        "deeplabv3plus_r101-d16-mg124_512x1024_80k_cityscapes_20200908_005644-ee6158e0.pth",
    ),
    "r18-d8-512x1024-80k": mmsegmentation(
        R18 | steps(80_000),
        "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024",
        76.89,
        78.76,
        "deeplabv3plus_r18-d8_512x1024_80k_cityscapes_20201226_080942-cff257fe.pth",
    ),
    "r18-d8-769x769-80k": mmsegmentation(
        R18 | CROP_769 | steps(80_000),
        "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-769x769",
        76.26,
        77.91,
        "deeplabv3plus_r18-d8_769x769_80k_cityscapes_20201226_083346-f326e06a.pth",
    ),
    "r50b-d8-512x1024-80k": mmsegmentation(
        R50B | steps(80_000),
        "deeplabv3plus_r50b-d8_4xb2-80k_cityscapes-512x1024",
        80.28,
        81.44,
        "deeplabv3plus_r50b-d8_512x1024_80k_cityscapes_20201225_213645-a97e4e43.pth",
    ),
    "r50b-d8-769x769-80k": mmsegmentation(
        R50B | CROP_769 | steps(80_000),
        "deeplabv3plus_r50b-d8_4xb2-80k_cityscapes-769x769",
        79.41,
        80.56,
        "deeplabv3plus_r50b-d8_769x769_80k_cityscapes_20201225_224655-8b596d1c.pth",
    ),
    "r101b-d8-512x1024-80k": mmsegmentation(
        R101B | steps(80_000),
        "deeplabv3plus_r101b-d8_4xb2-80k_cityscapes-512x1024",
        80.16,
        81.41,
        "deeplabv3plus_r101b-d8_512x1024_80k_cityscapes_20201226_190843-9c3c93a4.pth",
    ),
    "r101b-d8-769x769-80k": mmsegmentation(
        R101B | CROP_769 | steps(80_000),
        "deeplabv3plus_r101b-d8_4xb2-80k_cityscapes-769x769",
        79.88,
        81.46,
        "deeplabv3plus_r101b-d8_769x769_80k_cityscapes_20201226_205041-227cdf7c.pth",
    ),
    "r18b-d8-512x1024-80k": mmsegmentation(
        R18B | steps(80_000),
        "deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-512x1024",
        75.87,
        77.52,
        "deeplabv3plus_r18b-d8_512x1024_80k_cityscapes_20201226_090828-e451abd9.pth",
    ),
    # The original's name says 80k steps as well, but its schedule has 40k.
    "r18b-d8-769x769-80k": mmsegmentation(
        R18B | CROP_769,
        "deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-769x769",
        76.36,
        78.24,
        "deeplabv3plus_r18b-d8_769x769_80k_cityscapes_20201226_151312-2c868aff.pth",
    ),
    "r50-d8-512x1024-220e": sssegmentation(SSS_CITYSCAPES, "deeplabv3plus_resnet50os8_cityscapes", 80.38),
    "r50-d16-512x1024-220e": sssegmentation(D16 | SSS_CITYSCAPES, "deeplabv3plus_resnet50os16_cityscapes", 79.73),
    "r101-d8-512x1024-220e": sssegmentation(R101 | SSS_CITYSCAPES, "deeplabv3plus_resnet101os8_cityscapes", 81.09),
    "r101-d16-512x1024-220e": sssegmentation(
        R101 | D16 | SSS_CITYSCAPES, "deeplabv3plus_resnet101os16_cityscapes", 80.2
    ),
}
