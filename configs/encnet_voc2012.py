"""EncNet (Zhang et al. 2018) on PASCAL VOC 2012 with the augmented train split.

    python -m kseg.train --config encnet_voc2012 --workdir runs/encnet_voc2012
    python -m kseg.train --config encnet_voc2012:r101-d8-512x512-20k

Without a variant: R-50-D8, 512x512, 20k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R101, SSS_VOC2012, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="voc2012", train_split="trainaug"),
        # MMSegmentation pads these images before it normalizes them, so the padding is black.
        augment=Augment(scale=(512, 2048), crop=(512, 512), pad_color="black"),
        model=Model(backbone="resnet50", output_stride=8, head="encnet"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=20_000, validate_every=2_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-20k": mmsegmentation({}, "encnet_r50-d8_4xb4-20k_voc12aug-512x512"),
    "r50-d8-512x512-40k": mmsegmentation(steps(40_000), "encnet_r50-d8_4xb4-40k_voc12aug-512x512"),
    "r101-d8-512x512-20k": mmsegmentation(R101, "encnet_r101-d8_4xb4-20k_voc12aug-512x512"),
    "r101-d8-512x512-40k": mmsegmentation(R101 | steps(40_000), "encnet_r101-d8_4xb4-40k_voc12aug-512x512"),
    "r50-d8-512x512-60e": sssegmentation(SSS_VOC2012, "encnet_resnet50os8_voc", 75.53),
    "r50-d16-512x512-60e": sssegmentation(D16 | SSS_VOC2012, "encnet_resnet50os16_voc", 74.55),
    "r101-d8-512x512-60e": sssegmentation(R101 | SSS_VOC2012, "encnet_resnet101os8_voc", 77.61),
    "r101-d16-512x512-60e": sssegmentation(R101 | D16 | SSS_VOC2012, "encnet_resnet101os16_voc", 76.41),
}
