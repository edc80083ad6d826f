"""DeepLabV3+ (Chen et al. 2018) on PASCAL VOC 2012 with the augmented train split.

    python -m kseg.train --config deeplabv3plus_voc2012 --workdir runs/deeplabv3plus_voc2012
    python -m kseg.train --config deeplabv3plus_voc2012:r101-d8-512x512-20k

Without a variant: R-50-D8, 512x512, 20k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R101, SSS_VOC2012, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="voc2012", train_split="trainaug"),
        # MMSegmentation pads these images before it normalizes them, so the padding is black.
        augment=Augment(scale=(512, 2048), crop=(512, 512), pad_color="black"),
        model=Model(backbone="resnet50", output_stride=8, head="deeplabv3plus"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=20_000, validate_every=2_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-20k": mmsegmentation(
        {},
        "deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512",
        75.93,
        77.5,
        "deeplabv3plus_r50-d8_512x512_20k_voc12aug_20200617_102323-aad58ef1.pth",
    ),
    "r50-d8-512x512-40k": mmsegmentation(
        steps(40_000),
        "deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512",
        76.81,
        77.57,
        "deeplabv3plus_r50-d8_512x512_40k_voc12aug_20200613_161759-e1b43aa9.pth",
    ),
    "r101-d8-512x512-20k": mmsegmentation(
        R101,
        "deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512",
        77.22,
        78.59,
        "deeplabv3plus_r101-d8_512x512_20k_voc12aug_20200617_102345-c7ff3d56.pth",
    ),
    "r101-d8-512x512-40k": mmsegmentation(
        R101 | steps(40_000),
        "deeplabv3plus_r101-d8_4xb4-40k_voc12aug-512x512",
        78.62,
        79.53,
        "deeplabv3plus_r101-d8_512x512_40k_voc12aug_20200613_205333-faf03387.pth",
    ),
    "r50-d8-512x512-60e": sssegmentation(SSS_VOC2012, "deeplabv3plus_resnet50os8_voc", 77.43),
    "r50-d16-512x512-60e": sssegmentation(D16 | SSS_VOC2012, "deeplabv3plus_resnet50os16_voc", 76.92),
    "r101-d8-512x512-60e": sssegmentation(R101 | SSS_VOC2012, "deeplabv3plus_resnet101os8_voc", 79.19),
    "r101-d16-512x512-60e": sssegmentation(R101 | D16 | SSS_VOC2012, "deeplabv3plus_resnet101os16_voc", 78.31),
}
