"""APCNet (He et al. 2019) on ADE20K.

    python -m kseg.train --config apcnet_ade20k --workdir runs/apcnet_ade20k
    python -m kseg.train --config apcnet_ade20k:r101-d8-512x512-80k

Without a variant: R-50-D8, 512x512, 80k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R101, SSS_ADE20K, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="ade20k"),
        augment=Augment(scale=(512, 2048), crop=(512, 512)),
        model=Model(backbone="resnet50", output_stride=8, head="apcnet"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=80_000, validate_every=8_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-80k": mmsegmentation(
        {},
        "apcnet_r50-d8_4xb4-80k_ade20k-512x512",
        42.2,
        43.3,
        "apcnet_r50-d8_512x512_80k_ade20k_20201214_115705-a8626293.pth",
    ),
    "r50-d8-512x512-160k": mmsegmentation(
        steps(160_000),
        "apcnet_r50-d8_4xb4-160k_ade20k-512x512",
        43.4,
        43.94,
        "apcnet_r50-d8_512x512_160k_ade20k_20201214_115706-25fb92c2.pth",
    ),
    "r101-d8-512x512-80k": mmsegmentation(
        R101,
        "apcnet_r101-d8_4xb4-80k_ade20k-512x512",
        45.54,
        46.65,
        "apcnet_r101-d8_512x512_80k_ade20k_20201214_115704-c656c3fb.pth",
    ),
    "r101-d8-512x512-160k": mmsegmentation(
        R101 | steps(160_000),
        "apcnet_r101-d8_4xb4-160k_ade20k-512x512",
        45.41,
        46.63,
        "apcnet_r101-d8_512x512_160k_ade20k_20201214_115705-73f9a8d7.pth",
    ),
    "r50-d8-512x512-130e": sssegmentation(SSS_ADE20K, "apcnet_resnet50os8_ade20k", 43.47),
    "r50-d16-512x512-130e": sssegmentation(D16 | SSS_ADE20K, "apcnet_resnet50os16_ade20k", 41.54),
    "r101-d8-512x512-130e": sssegmentation(R101 | SSS_ADE20K, "apcnet_resnet101os8_ade20k", 45.74),
    "r101-d16-512x512-130e": sssegmentation(R101 | D16 | SSS_ADE20K, "apcnet_resnet101os16_ade20k", 43.48),
}
