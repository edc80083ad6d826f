"""Training gives the losses and the weights that it gave in kseg 0.1.0, on every head and for every kind of option."""

import os

import pytest

from tests.helpers.before import TRAININGS, printed, recorded, require_same, start, training, training_facts

# Of each kind of head and option one; KSEG_ALL_TRAININGS=1 takes all, which triples the time.
SOME = ("encnet", "deeplabv3plus", "deeplabv3-bfloat16", "pspnet-ohem")
CHOSEN = list(TRAININGS) if os.environ.get("KSEG_ALL_TRAININGS") else SOME


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes_directory):
    """The directory of all trainings, made by two processes, for two cores."""
    directory = tmp_path_factory.mktemp("trained")
    processes = [start({name: training(name, shapes_directory, name) for name in CHOSEN[part::2]}, directory)
                 for part in (0, 1)]
    assert [process.wait(900) for process in processes] == [0, 0]
    return directory


@pytest.mark.parametrize("name", CHOSEN)
def test_losses_and_weights_are_as_before(trained, name):
    printed(trained, name)
    before = recorded("trainings")
    # bfloat16 has 8 bits, so that another order of additions shows sooner.
    require_same(training_facts(trained / name), before[name], before["machine"], 1e-2 if "bf" in name else 1e-3)
