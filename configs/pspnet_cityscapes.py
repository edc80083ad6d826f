"""PSPNet (Zhao et al. 2017) on Cityscapes.

    python -m kseg.train --config pspnet_cityscapes --workdir runs/pspnet_cityscapes
    python -m kseg.train --config pspnet_cityscapes:r101-d8-512x1024-220e

Without a variant: R-50-D8, 512x1024, 220 epochs, SSSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Loss, Model, Train
from kseg.config.variants import D16, R101, sssegmentation


def config() -> Config:
    return Config(
        data=Data(name="cityscapes"),
        augment=Augment(scale=(1024, 2048), crop=(512, 1024), crop_tries=9, pad="center"),
        model=Model(
            backbone="resnet50", output_stride=8, head="pspnet", auxiliary_channels=512, initial_weights="uniform"
        ),
        init=Init(backbone="resnet50_v1c"),
        loss=Loss(average="valid"),
        train=Train(global_batch=8, steps=81_840, end_step=81_840, validate_every=8_184),
        evaluate=Evaluate(resize=(1024, 2048), resize_logits="once", scale_of="input", average="logits"),
    )


VARIANTS = {
    "r50-d8-512x1024-220e": sssegmentation({}, "pspnet_resnet50os8_cityscapes", 79.05),
    "r50-d16-512x1024-220e": sssegmentation(D16, "pspnet_resnet50os16_cityscapes", 77.13),
    "r101-d8-512x1024-220e": sssegmentation(R101, "pspnet_resnet101os8_cityscapes", 79.94),
    "r101-d16-512x1024-220e": sssegmentation(R101 | D16, "pspnet_resnet101os16_cityscapes", 77.43),
}
