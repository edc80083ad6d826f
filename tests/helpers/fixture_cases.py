"""Model fixtures of the reference systems as kseg configs and models."""

import dataclasses
import json

import numpy as np

from kseg import models
from kseg.conversion import original_configs
from kseg.weights import loading
from tests.helpers.shared_files import FIXTURES

# Only the directories of model cases contain a config.json.
NAMES = sorted(f"{path.parts[-3]}/{path.parts[-2]}" for path in FIXTURES.glob("*/*/config.json"))


class Case:
    """A fixture: its arrays, and a kseg model with its weights."""

    def __init__(self, name, build=models.build):
        self.directory = FIXTURES / name
        self.system = name.split("/")[0]
        self.description = json.loads((self.directory / "config.json").read_text())
        model, self.loss, self.classes = original_configs.translate(self.description["cfg"])
        # The training steps of the fixtures were computed without dropout.
        self.config = dataclasses.replace(model, dropout=0.0)
        self.model = build(self.config, self.classes)
        self.load()

    def load(self):
        loading.load_checkpoint(self.model, self.directory / "model.pth", self.config.head)

    def array(self, name):
        return np.load(self.directory / f"{name}.npy")

    def json(self, name):
        return json.loads((self.directory / f"{name}.json").read_text())
