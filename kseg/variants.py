"""Offer `kseg.config.variants` under its previous name, from which config files of users import."""

from kseg.config.variants import (AMP, CROP_769, D16, D16_MG124, MMSEGMENTATION, R18, R18B, R50B, R50S, R101, R101B,
                                  SSS, SSS_ADE20K, SSS_CITYSCAPES, SSS_VOC2012, SSSEGMENTATION, Variant,
                                  mmsegmentation, sssegmentation, steps)

__all__ = ["AMP", "CROP_769", "D16", "D16_MG124", "MMSEGMENTATION", "R18", "R18B", "R50B", "R50S", "R101", "R101B",
           "SSS", "SSS_ADE20K", "SSS_CITYSCAPES", "SSS_VOC2012", "SSSEGMENTATION", "Variant", "mmsegmentation",
           "sssegmentation", "steps"]
