"""Compare losses and weights of short trainings with those of kseg 0.1.0, bit for bit on the same kind of machine."""

import pytest

from tests.helpers.before import TRAININGS, printed, recorded, require_same, start, training, training_facts
from tests.helpers.exhaustive import exhaustive

# `make test` shows the same for EncNet: test_unchanged_files continues a killed run of kseg 0.1.0.
pytestmark = exhaustive


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes_directory):
    """Train one after another in a process, since each process starts TensorFlow, and return the directory of all."""
    directory = tmp_path_factory.mktemp("trained")
    assert start({name: training(name, shapes_directory, name) for name in TRAININGS}, directory).wait(1800) == 0
    return directory


@pytest.mark.parametrize("name", TRAININGS)
def test_losses_and_weights_are_as_before(trained, name):
    printed(trained, name)
    before = recorded("trainings")
    # bfloat16 has 8 significant bits, so another order of additions makes a larger difference.
    require_same(training_facts(trained / name), before[name], before["machine"], 1e-2 if "bf" in name else 1e-3)
