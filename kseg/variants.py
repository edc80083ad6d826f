"""Offer `kseg.config.variants` under the name that users' config files import."""

from kseg.config.variants import *  # noqa: F403
