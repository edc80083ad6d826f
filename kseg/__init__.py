"""kseg: semantic segmentation from training to TF Serving, with Keras functional models."""

import os

__version__ = "0.1.0"

# TensorFlow reads this once, when it is loaded; its start-up notes would hide ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
