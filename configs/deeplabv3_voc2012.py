"""DeepLabV3 (Chen et al. 2017) on PASCAL VOC 2012 with the augmented train split.

    python -m kseg.train --config deeplabv3_voc2012 --workdir runs/deeplabv3_voc2012
    python -m kseg.train --config deeplabv3_voc2012:r101-d8-512x512-20k

Without a variant: R-50-D8, 512x512, 20k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R101, SSS_VOC2012, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="voc2012", train_split="trainaug"),
        # MMSegmentation pads these images before it normalizes them, so the padding is black.
        augment=Augment(scale=(512, 2048), crop=(512, 512), pad_color="black"),
        model=Model(backbone="resnet50", output_stride=8, head="deeplabv3"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=20_000, validate_every=2_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-20k": mmsegmentation(
        {},
        "deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512",
        76.17,
        77.42,
        "deeplabv3_r50-d8_512x512_20k_voc12aug_20200617_010906-596905ef.pth",
    ),
    "r50-d8-512x512-40k": mmsegmentation(
        steps(40_000),
        "deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512",
        77.68,
        78.78,
        "deeplabv3_r50-d8_512x512_40k_voc12aug_20200613_161546-2ae96e7e.pth",
    ),
    "r101-d8-512x512-20k": mmsegmentation(
        R101,
        "deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512",
        78.7,
        79.95,
        "deeplabv3_r101-d8_512x512_20k_voc12aug_20200617_010932-8d13832f.pth",
    ),
    "r101-d8-512x512-40k": mmsegmentation(
        R101 | steps(40_000),
        "deeplabv3_r101-d8_4xb4-40k_voc12aug-512x512",
        77.92,
        79.18,
        "deeplabv3_r101-d8_512x512_40k_voc12aug_20200613_161432-0017d784.pth",
    ),
    "r50-d8-512x512-60e": sssegmentation(SSS_VOC2012, "deeplabv3_resnet50os8_voc", 77.72),
    "r50-d16-512x512-60e": sssegmentation(D16 | SSS_VOC2012, "deeplabv3_resnet50os16_voc", 76.86),
    "r101-d8-512x512-60e": sssegmentation(R101 | SSS_VOC2012, "deeplabv3_resnet101os8_voc", 79.52),
    "r101-d16-512x512-60e": sssegmentation(R101 | D16 | SSS_VOC2012, "deeplabv3_resnet101os16_voc", 78.55),
}
