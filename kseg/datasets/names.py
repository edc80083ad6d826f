"""Names of the datasets, for help texts and checks that must not wait for TensorFlow."""

# The keys of kseg.datasets.registry.DATASETS and of kseg.datasets.sources.SOURCES.
DATASETS = ("ade20k", "camvid", "cityscapes", "folder", "shapes", "voc2012")
PREPARABLE = ("ade20k", "camvid", "cityscapes", "folder", "voc2012")
