"""PSPNet (Zhao et al. 2017) on ADE20K.

    python -m kseg.train --config pspnet_ade20k --workdir runs/pspnet_ade20k
    python -m kseg.train --config pspnet_ade20k:r101-d8-512x512-130e

Without a variant: R-50-D8, 512x512, 130 epochs, SSSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Loss, Model, Train
from kseg.config.variants import D16, R101, sssegmentation


def config() -> Config:
    return Config(
        data=Data(name="ade20k"),
        augment=Augment(scale=(512, 2048), crop=(512, 512), crop_tries=9, pad="center"),
        model=Model(
            backbone="resnet50", output_stride=8, head="pspnet", auxiliary_channels=512, initial_weights="uniform"
        ),
        init=Init(backbone="resnet50_v1c"),
        loss=Loss(average="valid"),
        train=Train(global_batch=16, steps=164_190, end_step=164_190, validate_every=16_419),
        evaluate=Evaluate(resize=(512, 2048), resize_logits="once", scale_of="input", average="logits"),
    )


VARIANTS = {
    "r50-d8-512x512-130e": sssegmentation({}, "pspnet_resnet50os8_ade20k", 42.64),
    "r50-d16-512x512-130e": sssegmentation(D16, "pspnet_resnet50os16_ade20k", 40.23),
    "r101-d8-512x512-130e": sssegmentation(R101, "pspnet_resnet101os8_ade20k", 44.55),
    "r101-d16-512x512-130e": sssegmentation(R101 | D16, "pspnet_resnet101os16_ade20k", 43.4),
}
