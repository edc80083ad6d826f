"""APCNet (He et al. 2019) on PASCAL VOC 2012 with the augmented train split.

    python -m kseg.train --config apcnet_voc2012 --workdir runs/apcnet_voc2012
    python -m kseg.train --config apcnet_voc2012:r101-d8-512x512-60e

Without a variant: R-50-D8, 512x512, 60 epochs, SSSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Loss, Model, Train
from kseg.config.variants import D16, R101, sssegmentation


def config() -> Config:
    return Config(
        data=Data(name="voc2012", train_split="trainaug"),
        augment=Augment(scale=(512, 2048), crop=(512, 512), crop_tries=9, pad="center"),
        model=Model(
            backbone="resnet50", output_stride=8, head="apcnet", auxiliary_channels=512, initial_weights="uniform"
        ),
        init=Init(backbone="resnet50_v1c"),
        loss=Loss(average="valid"),
        train=Train(global_batch=16, steps=39_660, end_step=39_660, validate_every=3_966),
        evaluate=Evaluate(resize=(512, 2048), resize_logits="once", scale_of="input", average="logits"),
    )


VARIANTS = {
    "r50-d8-512x512-60e": sssegmentation({}, "apcnet_resnet50os8_voc", 76.97),
    "r50-d16-512x512-60e": sssegmentation(D16, "apcnet_resnet50os16_voc", 75.82),
    "r101-d8-512x512-60e": sssegmentation(R101, "apcnet_resnet101os8_voc", 78.99),
    "r101-d16-512x512-60e": sssegmentation(R101 | D16, "apcnet_resnet101os16_voc", 77.98),
}
