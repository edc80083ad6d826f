"""FCN (Long et al. 2015) on PASCAL VOC 2012 with the augmented train split.

    python -m kseg.train --config fcn_voc2012 --workdir runs/fcn_voc2012
    python -m kseg.train --config fcn_voc2012:r101-d8-512x512-60e

Without a variant: R-50-D8, 512x512, 60 epochs, SSSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Fcn, Init, Loss, Model, Train
from kseg.config.variants import D16, R101, sssegmentation


def config() -> Config:
    return Config(
        data=Data(name="voc2012", train_split="trainaug"),
        augment=Augment(scale=(512, 2048), crop=(512, 512), crop_tries=9, pad="center"),
        model=Model(
            backbone="resnet50",
            output_stride=8,
            head="fcn",
            auxiliary_channels=512,
            initial_weights="uniform",
            fcn=Fcn(concat_input=False),
        ),
        init=Init(backbone="resnet50_v1c"),
        loss=Loss(average="valid"),
        train=Train(global_batch=16, steps=39_660, end_step=39_660, validate_every=3_966),
        evaluate=Evaluate(resize=(512, 2048), resize_logits="once", scale_of="input", average="logits"),
    )


VARIANTS = {
    "r50-d8-512x512-60e": sssegmentation({}, "fcn_resnet50os8_voc", 67.8),
    "r50-d16-512x512-60e": sssegmentation(D16, "fcn_resnet50os16_voc", 66.58),
    "r101-d8-512x512-60e": sssegmentation(R101, "fcn_resnet101os8_voc", 70.59),
    "r101-d16-512x512-60e": sssegmentation(R101 | D16, "fcn_resnet101os16_voc", 69.39),
}
