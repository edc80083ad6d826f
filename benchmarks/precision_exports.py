"""Write exports of a head with random weights in several precisions for benchmarks.precisions.

PYTHON -m benchmarks.precision_exports DIRECTORY HEAD PRECISION ...
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.kseg_heads import CLASSES
from kseg import models
from kseg.config import Config
from kseg.config.sections import Model
from kseg.exporting import calibration, int8_network, int8_plan
from kseg.exporting.precisions import Network, export_network, folded_model
from kseg.exporting.signatures import Served
from kseg.inference.prediction import protocol_of
from kseg.system.progress import Progress

SIZE = (256, 512)


def main(directory: Path, head: str, precisions: list[str]) -> None:
    config = Config(model=Model(head=head))
    keras.utils.set_random_seed(0)
    model = models.build(config.model, CLASSES)
    for precision in precisions:
        network = (
            integer_network(model, config)
            if precision == "int8"
            else export_network(model, config.model, precision, "cpu")
        )
        served = Served(network, protocol_of(config), SIZE, config.export.max_pixels, all_scores=False)
        tf.saved_model.save(served, str(directory / precision), signatures=served.functions)


def integer_network(model: keras.Model, config: Config) -> Network:
    """Return an int8 network whose ranges are those of two noise images; the speed does not depend on them."""
    main_head = folded_model(model, "cpu")
    plan = int8_plan.plan_integers(main_head)
    generator = np.random.default_rng(0)
    images = [(f"noise {number}", generator.integers(0, 256, (*SIZE, 3), np.uint8)) for number in range(2)]
    statistics = calibration.measure(main_head, plan, images, protocol_of(config), Progress(len(images), "images"))
    return int8_network.integer_network(main_head, plan, statistics)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
