"""EncNet (Zhang et al. 2018) on ADE20K.

    python -m kseg.train --config encnet_ade20k --workdir runs/encnet_ade20k
    python -m kseg.train --config encnet_ade20k:r101-d8-512x512-80k

Without a variant: R-50-D8, 512x512, 80k steps, MMSegmentation's recipe.
"""

from kseg.config import Augment, Config, Data, Evaluate, Init, Model, Train
from kseg.config.variants import D16, R50S, R101, SSS_ADE20K, mmsegmentation, sssegmentation, steps


def config() -> Config:
    return Config(
        data=Data(name="ade20k"),
        augment=Augment(scale=(512, 2048), crop=(512, 512)),
        model=Model(backbone="resnet50", output_stride=8, head="encnet"),
        init=Init(backbone="resnet50_v1c"),
        train=Train(global_batch=16, steps=80_000, validate_every=8_000),
        evaluate=Evaluate(resize=(512, 2048)),
    )


VARIANTS = {
    "r50-d8-512x512-80k": mmsegmentation(
        {},
        "encnet_r50-d8_4xb4-80k_ade20k-512x512",
        39.53,
        41.17,
        "encnet_r50-d8_512x512_80k_ade20k_20200622_042412-44b46b04.pth",
    ),
    "r50-d8-512x512-160k": mmsegmentation(
        steps(160_000),
        "encnet_r50-d8_4xb4-160k_ade20k-512x512",
        40.1,
        41.71,
        "encnet_r50-d8_512x512_160k_ade20k_20200622_101059-b2db95e0.pth",
    ),
    "r101-d8-512x512-80k": mmsegmentation(
        R101,
        "encnet_r101-d8_4xb4-80k_ade20k-512x512",
        42.11,
        43.61,
        "encnet_r101-d8_512x512_80k_ade20k_20200622_101128-dd35e237.pth",
    ),
    "r101-d8-512x512-160k": mmsegmentation(
        R101 | steps(160_000),
        "encnet_r101-d8_4xb4-160k_ade20k-512x512",
        42.61,
        44.01,
        "encnet_r101-d8_512x512_160k_ade20k_20200622_073348-7989641f.pth",
    ),
    "r50s-d8-512x512-80k": mmsegmentation(R50S, "encnet_r50s-d8_4xb4-80k_ade20k-512x512"),
    "r50-d8-512x512-130e": sssegmentation(SSS_ADE20K, "encnet_resnet50os8_ade20k", 40.6),
    "r50-d16-512x512-130e": sssegmentation(D16 | SSS_ADE20K, "encnet_resnet50os16_ade20k", 39.7),
    "r101-d8-512x512-130e": sssegmentation(R101 | SSS_ADE20K, "encnet_resnet101os8_ade20k", 43.43),
    "r101-d16-512x512-130e": sssegmentation(R101 | D16 | SSS_ADE20K, "encnet_resnet101os16_ade20k", 41.65),
}
