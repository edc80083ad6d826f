"""Name the packages; everything else is in setup.cfg."""

from setuptools import find_packages, setup

# setup.cfg can search for packages or list them, but the configs lie outside of the package that they belong to.
setup(packages=[*find_packages(include=["kseg*", "pipeline*", "serving*"]), "kseg.configs"])
