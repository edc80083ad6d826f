"""Offer `kseg.config.variants` under the name that users' config files import."""
