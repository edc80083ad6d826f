"""PSPNet (Zhao et al. 2017) on PASCAL VOC 2012 with the augmented train split.

    python -m kseg.train --config pspnet_voc2012 --workdir runs/pspnet_voc2012
    python -m kseg.train --config pspnet_voc2012:r101-d8-512x512-60e

Without a variant: R-50-D8, 512x512, 60 epochs, SSSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Loss, Model, Train
from kseg.config.variants import D16, R101, sssegmentation


def config() -> Config:
    return Config(
        data=Data(name="voc2012", train_split="trainaug"),
        augment=Augment(scale=(512, 2048), crop=(512, 512), crop_tries=9, pad="center"),
        model=Model(
            backbone="resnet50", output_stride=8, head="pspnet", auxiliary_channels=512, initial_weights="uniform"
        ),
        init=Init(backbone="resnet50_v1c"),
        loss=Loss(average="valid"),
        train=Train(global_batch=16, steps=39_660, end_step=39_660, validate_every=3_966),
        evaluate=Evaluate(resize=(512, 2048), resize_logits="once", scale_of="input", average="logits"),
    )


VARIANTS = {
    "r50-d8-512x512-60e": sssegmentation({}, "pspnet_resnet50os8_voc", 77.93),
    "r50-d16-512x512-60e": sssegmentation(D16, "pspnet_resnet50os16_voc", 76.29),
    "r101-d8-512x512-60e": sssegmentation(R101, "pspnet_resnet101os8_voc", 79.04),
    "r101-d16-512x512-60e": sssegmentation(R101 | D16, "pspnet_resnet101os16_voc", 77.92),
}
